"""Rows of the report's tables, as plain numbers and words: a template is slow at selecting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from featstore.analysis.calibration import SCALED
from featstore.analysis.resampling import STATISTICS
from featstore.analysis.selection import ENDS, is_independent
from featstore.analysis.style import shades
from featstore.reporting.text import coefficient, percent

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
    """A model each, its `cells` (score, shade, value, interval) by dataset, all as text.

    `stage` is "" of independent models.
    """
    cells = results[["score", "low", "high"]].sel(protocol=protocol, bn_mode=bn_mode)
    values, *limits = (
        cells[name].transpose("model", "dataset").values for name in ("score", "low", "high")
    )
    low, high = np.nanmin(values), np.nanmax(values)
    shade = shades(values, "YlGnBu", low, max(high, low + 0.01))
    # Not by NumPy: strings may be of a kind that not all of it takes.
    own = zip(is_independent(results).values, results["stage"].values, strict=True)
    stages = ["" if independent else str(stage) for independent, stage in own]
    columns = (values.tolist(), shade, *(end.tolist() for end in limits))
    return [
        {
            "model": model,
            "stage": stage,
            "cells": [
                (percent(one), colour, f"{one:.6g}", _interval(low, high, percent))
                for one, colour, low, high in zip(*row, strict=True)
            ],
        }
        for model, stage, *row in zip(cells["model"].values.tolist(), stages, *columns, strict=True)
    ]


def map_rows(correlations: xr.Dataset, statistic: str, lowest: float) -> Rows:
    """A protocol each, its `cells` (coefficient, shade, interval and models) by protocol."""
    square = correlations.transpose("protocol", "other", ...)
    values = square[statistic].values
    shade = shades(values, *(("RdBu", -1.0, 1.0) if lowest < 0 else ("Blues", lowest, 1.0)))
    columns = [
        values,
        *(square[f"{statistic}{end}"].values for end in ENDS[1:]),
        square["n"].values,
    ]
    rows: Rows = []
    for name, colours, *row in zip(
        square["protocol"].values.tolist(), shade, *(c.tolist() for c in columns), strict=True
    ):
        cells = [
            (value, colour, f"{_interval(low, high, coefficient)} n = {n:.0f}".strip())
            for colour, value, low, high, n in zip(colours, *row, strict=True)
        ]
        rows.append({"protocol": name, "cells": cells})
    return rows


def pair_rows(tables: Sequence[xr.Dataset]) -> Rows:
    """Two protocols each, with the coefficients of every table; `pearson` is [r, low, high]."""
    protocols = tables[0]["protocol"].values.tolist()
    first, second = np.triu_indices(len(protocols), 1)
    rows: Rows = [
        {"a": protocols[i], "b": protocols[j], "tables": []}
        for i, j in zip(first, second, strict=True)
    ]
    for table in tables:
        columns = [ends_of(table, name)[first, second].tolist() for name in STATISTICS]
        counts = table["n"].values[first, second].tolist()
        for row, *found in zip(rows, *columns, counts, strict=True):
            row["tables"].append(dict(zip((*STATISTICS, "n"), found, strict=True)))
    return rows


def predictor_rows(found: xr.Dataset) -> Rows:
    """A protocol of `predictors` each."""
    rows = _columns(found, ["protocol", "n", "n_datasets", "seconds"])
    return _with_ends(rows, found, STATISTICS)


def domain_rows(found: xr.Dataset, of_all: xr.Dataset | None) -> Rows:
    """A protocol of `correlate_domains` each, its `cells` by dataset, and its means.

    Parameters
    ----------
    of_all : the same of all models, for a last column
    """
    rows = _with_ends(_columns(found, ["protocol"]), found, ["pearson_mean"])
    cells = ends_of(found.transpose("protocol", "dataset", ...), "pearson").tolist()
    last = ends_of(of_all, "pearson_mean").tolist() if of_all is not None else [None] * len(rows)
    for row, own, mean in zip(rows, cells, last, strict=True):
        row |= {"mean": row.pop("pearson_mean"), "cells": own, "mean_of_all": mean}
    return rows


def behind_rows(rivals: xr.Dataset | None, rows: Rows) -> Rows:
    """Of each row of `predictor_rows`, how far the best of them is ahead, and the p-value of that.

    `behind` is [difference, low, high], `p_holm` is adjusted for all pairs of predictors; both are
    NaN of the best itself, or where they cannot be told.
    """
    nothing = {"behind": [np.nan] * 3, "p_holm": np.nan}
    if rivals is None or not rows:
        return [dict(nothing) for _ in rows]
    ahead = rivals.sel(protocol=rows[0]["protocol"])
    out: Rows = [dict(nothing)]
    for row in rows[1:]:
        pair = ahead.sel(other=row["protocol"])
        behind = [float(pair[name]) for name in ("difference", "low", "high")]
        out.append({"behind": behind, "p_holm": float(pair["p_holm"])})
    return out


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
            rows, ends_of(table, "difference").tolist(), *counts, strict=True
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


def described_rows(results: xr.Dataset, dim: str) -> tuple[Rows, Rows]:
    """What results say of each model, dataset or protocol: columns, and a row each."""
    coords = {
        str(name).removeprefix("n_").replace("_", " ").capitalize(): own.values
        for name, own in results.coords.items()
        # What begins like this tells which protocols are twins, by digests that nobody reads.
        if own.dims == (dim,) and name != dim and not str(name).startswith("without_")
    }
    if dim == "dataset":
        others = [name for name in results["n_test"].dims if name != dim]
        coords["Test images"] = results["n_test"].max(others).values
        coords["Models that saw it in pretraining"] = results["seen_in_pretraining"].sum("model")
    columns = [
        {"title": title, "number": np.asarray(own).dtype.kind in "iuf"}
        for title, own in coords.items()
    ]
    texts = [
        np.asarray(own).tolist() if column["number"] else [_word(one) for one in own]
        for column, own in zip(columns, coords.values(), strict=True)
    ]
    names = [str(name) for name in results[dim].values]
    rows = [
        {"name": name, "cells": list(cells)} for name, *cells in zip(names, *texts, strict=True)
    ]
    return columns, rows


def digest_rows(results: xr.Dataset) -> Rows:
    """A model and dataset each that has features, its `cells` their digests by BN mode."""
    if "features_digest" not in results:
        return []
    digests = results["features_digest"].transpose("model", "dataset", "bn_mode")
    return [
        {"model": str(model), "dataset": str(dataset), "cells": [str(one)[:12] for one in cells]}
        for model, own in zip(digests["model"].values, digests.values, strict=True)
        for dataset, cells in zip(digests["dataset"].values, own, strict=True)
        if any(map(str, cells))
    ]


def _word(value: Any) -> str:
    """A name, or of a flag whether it is set."""
    return ("yes" if value else "no") if isinstance(value, bool | np.bool_) else str(value)


def _interval(low: float, high: float, show: Callable[[float], str]) -> str:
    return f"[{show(low)}, {show(high)}]" if np.isfinite(low) else ""


def _columns(table: xr.Dataset, names: Sequence[str]) -> Rows:
    """Of a Dataset with one dim in front, a row each."""
    columns = [table[name].values.tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def ends_of(table: xr.Dataset, name: str) -> Any:
    """A number and its limits, (..., 3)."""
    return np.stack([table[f"{name}{end}"].values for end in ENDS], axis=-1)


def _with_ends(rows: Rows, table: xr.Dataset, names: Sequence[str]) -> Rows:
    for name in names:
        for row, ends in zip(rows, ends_of(table, name).tolist(), strict=True):
            row[name] = ends
    return rows
