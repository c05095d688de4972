"""Rows of the report's tables, as plain numbers and words: a template is slow at selecting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from featstore.analysis.calibration import SCALED
from featstore.analysis.correlate import ENDS, STATISTICS, is_independent
from featstore.analysis.style import shades

Rows = list[dict[str, Any]]

_CHANGES = ("difference", "spearman", "places", "agreement_change")


def ranking_rows(ranking: xr.Dataset) -> Rows:
    """A model of `rank_models` each, its `cells` (mean score, datasets) by protocol."""
    names = ["model", "independent", "stage", "place", "mean_rank", "mean_score", "n_cells"]
    cells = [ranking[k].transpose("model", "protocol").values for k in ("score", "n_datasets")]
    rows = _columns(ranking, [*names, "backbone", "family"])
    for row, score, count in zip(rows, *cells, strict=True):
        row["cells"] = list(zip(score.tolist(), count.tolist(), strict=True))
    return rows


def heat_rows(results: xr.Dataset, protocol: str, bn_mode: str) -> Rows:
    """A model each, its `cells` (score, shade) by dataset; `stage` is "" of independent models."""
    cells = results["score"].sel(protocol=protocol, bn_mode=bn_mode)
    values = cells.transpose("model", "dataset").values
    low, high = np.nanmin(values), np.nanmax(values)
    shade = shades(values, "YlGnBu", low, max(high, low + 0.01))
    # Not by NumPy: strings may be of a kind that not all of it takes.
    own = zip(is_independent(results).values, results["stage"].values, strict=True)
    stages = ["" if independent else str(stage) for independent, stage in own]
    return [
        {"model": model, "stage": stage, "cells": list(zip(*row, strict=True))}
        for model, stage, *row in zip(
            cells["model"].values.tolist(), stages, values.tolist(), shade, strict=True
        )
    ]


def map_rows(correlations: xr.Dataset, statistic: str, lowest: float) -> Rows:
    """A protocol each, its `cells` (coefficient, shade) by protocol."""
    values = correlations[statistic].transpose("protocol", "other").values
    shade = shades(values, *(("RdBu", -1.0, 1.0) if lowest < 0 else ("Blues", lowest, 1.0)))
    return [
        {"protocol": name, "cells": list(zip(*row, strict=True))}
        for name, *row in zip(
            correlations["protocol"].values.tolist(), values.tolist(), shade, strict=True
        )
    ]


def pair_rows(tables: Sequence[xr.Dataset]) -> Rows:
    """Two protocols each, with the coefficients of every table; `pearson` is [r, low, high]."""
    protocols = tables[0]["protocol"].values.tolist()
    first, second = np.triu_indices(len(protocols), 1)
    rows: Rows = [
        {"a": protocols[i], "b": protocols[j], "tables": []}
        for i, j in zip(first, second, strict=True)
    ]
    for table in tables:
        columns = [_ends(table, name)[first, second].tolist() for name in STATISTICS]
        counts = table["n"].values[first, second].tolist()
        for row, *found in zip(rows, *columns, counts, strict=True):
            row["tables"].append(dict(zip((*STATISTICS, "n"), found, strict=True)))
    return rows


def predictor_rows(found: xr.Dataset) -> Rows:
    """A protocol of `predictors` each."""
    rows = _columns(found, ["protocol", "n", "n_datasets", "seconds"])
    return _with_ends(rows, found, STATISTICS)


def calibration_rows(found: xr.Dataset) -> Rows:
    """A protocol of `calibration_errors` each."""
    counts = ["n_models", "n_cells", *(f"{name}_cells" for name in SCALED)]
    with_ends = ["ece", *(f"{name}{which}" for name in SCALED for which in ("", "_before"))]
    return _with_ends(_columns(found, ["protocol", *counts]), found, with_ends)


def compared_rows(found: xr.Dataset) -> Rows:
    """A protocol of `compare_protocols` each that shares a cell with the reference."""
    names = ["protocol", "seconds", "reference_seconds", "n_models", "n_datasets"]
    rows = _with_ends(_columns(found, names), found, ("difference", "places", *STATISTICS))
    told = {"reference": found.attrs["reference"]}
    return [row | told for row in rows if row["n_models"]]


def backbone_rows(found: xr.Dataset) -> dict[str, Rows]:
    """Of each change of `backbone_bn`, a protocol each that it changes."""
    numbers = ["agreement_before", "agreement_after", "n_models", "n_ranked", "n_datasets"]
    out: dict[str, Rows] = {}
    for change in found["change"].values.tolist():
        one = found.sel(change=change)
        one = one.isel(protocol=np.flatnonzero(one["n_models"].values))
        rows = _columns(one, ["protocol", "after", "transductive", *numbers])
        rows = _with_ends(rows, one, _CHANGES)
        out |= {change: rows} if rows else {}
    return out


def head_rows(found: xr.Dataset) -> tuple[Rows, Rows]:
    """Of `head_bn` a kind and a change each, and a pair each.

    `among` holds ([difference, low, high], models) of all models, those with BatchNorm, the others;
    what is said of rankings is among all.
    """
    whole = found.drop_dims("pair").stack(row=("kind", "change")).reset_index("row")
    whole = whole.transpose("row", ...).isel(row=whole["n_pairs"].sel(among="all").values > 0)
    single = found.drop_dims(["kind", "change"])
    single = single.rename({name: str(name).removesuffix("_by_pair") for name in single.data_vars})
    groups = _columns(whole, ["kind", "change", "transductive"])
    pairs = _columns(single, ["before", "after", "pair_kind", "pair_change", "transductive"])
    for rows, table in ((groups, whole), (pairs, single)):
        counts = (table[name].values.tolist() for name in ("n_models", "n_datasets", "n_pairs"))
        for row, ends, models, n_datasets, n_pairs in zip(
            rows, _ends(table, "difference").tolist(), *counts, strict=True
        ):
            row["among"] = list(zip(ends, models, strict=True))
            row |= {"n_datasets": n_datasets[0], "n_pairs": n_pairs[0]}
        among_all = table.sel(among="all")
        _with_ends(rows, among_all, _CHANGES[1:])
        for name in ("agreement_before", "agreement_after"):
            for row, value in zip(rows, among_all[name].values.tolist(), strict=True):
                row[name] = value
    return groups, pairs


def moved_rows(found: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Of each BN mode of `bn_displacement` in which models were compared, a row."""
    rows = _columns(found, ["bn_mode", "n_models"])
    rows = _with_ends(rows, found, ("displacement_mean", "cka_mean"))
    return {row["bn_mode"]: row for row in rows if row["n_models"]}


def _columns(table: xr.Dataset, names: Sequence[str]) -> Rows:
    """Of a Dataset with one dim in front, a row each."""
    columns = [table[name].values.tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _ends(table: xr.Dataset, name: str) -> Any:
    """A number and its limits, (..., 3)."""
    return np.stack([table[f"{name}{end}"].values for end in ENDS], axis=-1)


def _with_ends(rows: Rows, table: xr.Dataset, names: Sequence[str]) -> Rows:
    for name in names:
        for row, ends in zip(rows, _ends(table, name).tolist(), strict=True):
            row[name] = ends
    return rows
