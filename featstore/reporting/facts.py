"""What a report tells beside rankings and correlations: extremes, shifts, gaps and costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from featstore.analysis.plots import mode_label, protocol_label
from featstore.analysis.selection import is_independent, shares

LINEAR_FORMS = {  # what follows linear-marks in a name, and what it says
    "-1view": "off the store; the head is trained on one embedding of each image, that of its "
    "centre view, without augmentation",
    "-8view": "off the store, which keeps eight augmented views of each train image; one of them "
    "is drawn for each image and epoch",
    "-literal": "as the authors' trainer runs; the backbone is in train mode, so that the head is "
    "trained on features by the statistics of each batch, and tested on those by running "
    "statistics that have drifted to the target data. Models without BatchNorm keep their scores; "
    "the section on BatchNorm leaves them out",
}


_LINEAR_HEADS = ("", "-bn", "-mlp", "-mlp-bn")


def counted(results: xr.Dataset, baseline: str) -> xr.DataArray:
    """Cells that count once, in the BN modes that there are for them.

    A model without BatchNorm has the same ones under every BN mode. What trains with the backbone
    in the loop stands under `eval`, since what BatchNorm does is a setting of its own.
    """
    own = ~results["bn_free"].astype(bool) | (results["bn_mode"] == baseline)
    if "backbone_bn" not in results.coords:
        return own
    return own & ((results["backbone_bn"] == "") | (results["bn_mode"] == "eval"))


def extreme(correlations: xr.Dataset, *, largest: bool) -> xr.Dataset | None:
    """The pair of protocols with the largest or smallest Pearson r; None without any r."""
    r = correlations["pearson"].values
    above = np.triu(np.ones(r.shape, dtype=bool), 1) & np.isfinite(r)
    if not above.any():
        return None
    order = np.where(above, -r if largest else r, np.inf)
    row, column = np.unravel_index(np.argmin(order), r.shape)
    return correlations.isel(protocol=int(row), other=int(column))


def best_predictor(
    domains: dict[str, xr.Dataset] | None, protocols: Sequence[str]
) -> xr.Dataset | None:
    """Of these protocols the one whose in-domain scores go best, on average, with others."""
    if domains is None:
        return None
    found = domains["independent"].sel(protocol=protocols)
    if not found["pearson_mean"].notnull().any():
        return None
    return found.isel(protocol=int(found["pearson_mean"].argmax("protocol")))


def cheap_predictor(found: xr.Dataset) -> xr.Dataset | None:
    """Of `predictors`, the best that takes at most a tenth of the target's time."""
    cheap = found["spearman"].where(found["seconds"] <= found.attrs["seconds"] / 10)
    return found.isel(protocol=int(cheap.argmax("protocol"))) if cheap.notnull().any() else None


def bn_shift(results: xr.Dataset, baseline: str) -> list[dict[str, Any]]:
    """For each BN mode but the baseline, how far it moves each model that has BatchNorm.

    `by_protocol` is the mean over independent models and datasets, or all models if none is.
    """
    results = shares(results)
    has_bn = ~results["bn_free"].astype(bool).values
    with_bn = results["score"].sel(model=has_bn)
    chosen = is_independent(results).values[has_bn]
    rows = []
    for mode in [str(mode) for mode in results["bn_mode"].values if mode != baseline]:
        change = with_bn.sel(bn_mode=mode) - with_bn.sel(bn_mode=baseline)
        by_model = change.mean(["dataset", "protocol"])
        if by_model.notnull().any():
            own = change.isel(model=np.flatnonzero(chosen))
            some = own if own.notnull().any() else change
            by_protocol = some.mean(["model", "dataset"]).dropna("protocol")
            row = {"mode": mode, "change": change, "by_model": by_model}
            rows.append(row | {"by_protocol": by_protocol, "n": some.sizes["model"]})
    return rows


def without_score(results: xr.Dataset) -> xr.DataArray:
    """Cells that were recorded, and found no score, as of a training that diverged."""
    return results["score"].isnull() & results["n_test"].notnull()


def failed(results: xr.Dataset, counted: xr.DataArray) -> list[dict[str, Any]]:
    """Cells without a score that were recorded, those that count once."""
    dims = ("protocol", "bn_mode", "model", "dataset")
    cells = (without_score(results) & counted).transpose(*dims)
    names = [cells[dim].values for dim in dims]
    seconds = results["seconds"].transpose(*dims).values
    rows = []
    for place in np.argwhere(cells.values):
        at = tuple(place.tolist())
        row = {dim: str(own[i]) for dim, own, i in zip(dims, names, at, strict=True)}
        row["bn_mode"] = mode_label(row["bn_mode"])
        rows.append(row | {"seconds": float(seconds[at])})
    return rows


def unconverged(results: xr.Dataset, counted: xr.DataArray) -> list[dict[str, Any]]:
    """Protocols with fits that stopped before they converged, and in how many cells of all."""
    if "converged" not in results:
        return []
    share = results["converged"].where(counted & results["score"].notnull())
    stopped = (share < 1).sum(["model", "dataset", "bn_mode"])
    of = share.notnull().sum(["model", "dataset", "bn_mode"])
    columns = (stopped["protocol"].values, stopped.values.tolist(), of.values.tolist())
    return [
        {"protocol": str(name), "cells": cells, "of": every}
        for name, cells, every in zip(*columns, strict=True)
        if cells
    ]


def gaps(results: xr.Dataset, baseline: str) -> list[tuple[str, str, str, str, int]]:
    """Missing cells as (model, dataset, BN modes, protocols, how many), like ones in one row.

    Those that were recorded without a score are not missing. BN modes and protocols have a dagger
    where they are transductive.
    """
    dims = ("protocol", "bn_mode", "model", "dataset")
    missing = (results["score"].isnull() & ~without_score(results)).transpose(*dims)
    asked = counted(results, baseline).broadcast_like(missing).transpose(*dims).values
    protocols = [str(name) for name in missing["protocol"].values]
    modes = [str(name) for name in missing["bn_mode"].values]
    labels = [protocol_label(results, name, baseline) for name in protocols]
    cells = missing.values & asked
    whole = cells.any(axis=(2, 3)) & (cells | ~asked).all(axis=(2, 3))
    rows = []
    for p, m in np.argwhere(whole):
        count = int(cells[p, m].sum())
        rows.append(("every model", "every dataset", mode_label(modes[m]), labels[p], count))
    cells = cells & ~whole[:, :, None, None]
    for model, dataset in np.argwhere(cells.any(axis=(0, 1)).reshape(cells.shape[2:])):
        alike = defaultdict(list)
        for m, mode in enumerate(modes):
            gone = tuple(np.flatnonzero(cells[:, m, model, dataset]))
            if gone:
                alike[gone].append(mode_label(mode))
        for gone, where in alike.items():
            names = [labels[p] for p in gone]
            text = f"all {len(names)}" if len(names) == len(protocols) > 1 else ", ".join(names)
            place = (str(missing["model"].values[model]), str(missing["dataset"].values[dataset]))
            rows.append((*place, ", ".join(where), text, len(gone) * len(where)))
    return rows


def costs(results: xr.Dataset, baseline: str) -> list[dict[str, Any]]:
    """Seconds by protocol, over cells that were computed."""
    seconds = results["seconds"].where(counted(results, baseline) & results["score"].notnull())
    rows = []
    for name in results["protocol"].values:
        times = seconds.sel(protocol=name).values
        times = times[np.isfinite(times)]
        if times.size:
            spread = {"median": float(np.median(times)), "most": float(times.max())}
            rows.append({"protocol": str(name), "cells": times.size, "sum": times.sum(), **spread})
    return rows


def linear_forms(protocols: Sequence[str]) -> dict[str, list[str]]:
    """Linear probes as published, each with its other forms of the same head and settings."""
    found = {}
    for name in protocols:
        if name.partition("+")[0] in [f"linear-marks{head}" for head in _LINEAR_HEADS]:
            rest = name.removeprefix("linear-marks")
            forms = [f"linear-marks{form}{rest}" for form in LINEAR_FORMS]
            found[name] = [form for form in forms if form in protocols]
    return found
