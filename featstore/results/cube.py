"""From records to one Dataset over model x dataset x BN mode x protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore.errors import FeatStoreError
from featstore.keys import BNMode
from featstore.results.records import CURRENT, records

_METRICS = ("top1", "top5", "mean_per_class", "ece")
_CERTIFIED = ("converged",)  # 1 or 0; NaN for protocols that do not iterate
_COUNTS = ("n_train", "n_test", "n_skipped", "seconds")
_MODEL_INFO = ("backbone", "family", "paradigm", "method", "stage", "lineage")


def open_results(root: str | Path = "data/results", *, seeds: bool = False) -> xr.Dataset:
    """All cells as one Dataset over (model, dataset, bn_mode, protocol), NaN where there is none.

    A model without BatchNorm is shown under every BN mode. Where features were extracted anew, only
    cells of those last probed count. `score` is the dataset's headline metric, `low` and `high` its
    95 % interval.

    Parameters
    ----------
    root : folder of the records
    seeds : keep a `seed` dimension; else means over seeds

    Raises
    ------
    FeatStoreError
        There is no record, or one cannot be read.
    """
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    current: dict[Path, str] = {}
    for document in records(root):
        features = Path(document["path"]).parents[1] / CURRENT
        if features not in current:
            current[features] = features.read_text().strip() if features.exists() else ""
        if current[features] not in ("", document["features"]):
            continue  # of features that were replaced
        place = tuple(document[k] for k in ("model", "dataset", "bn_mode", "protocol", "seed"))
        if place not in newest or document["created"] >= newest[place]["created"]:
            newest[place] = document
    if not newest:
        raise FeatStoreError(f"no results in {root}. Run: featstore probe -p knn-marks")
    return _assemble(list(newest.values()), seeds=seeds)


def _assemble(documents: list[dict[str, Any]], *, seeds: bool) -> xr.Dataset:
    axes = {
        "model": sorted({d["model"] for d in documents}),
        "dataset": sorted({d["dataset"] for d in documents}),
        "bn_mode": [m.value for m in BNMode if any(d["bn_mode"] == m for d in documents)],
        "protocol": sorted({d["protocol"] for d in documents}, key=_natural),
        "seed": sorted({d["seed"] for d in documents}),
    }
    place = {axis: {name: i for i, name in enumerate(names)} for axis, names in axes.items()}
    shape = tuple(len(names) for names in axes.values())
    bounds = [f"{metric}_{end}" for metric in _METRICS for end in ("low", "high")]
    values = {
        name: np.full(shape, np.nan)
        for name in ("score", "low", "high", *_METRICS, *bounds, *_COUNTS, *_CERTIFIED)
    }
    transductive = np.zeros((len(axes["bn_mode"]), len(axes["protocol"])), bool)
    for document in documents:
        everywhere = document["model_info"]["bn_free"]
        modes = axes["bn_mode"] if everywhere else [document["bn_mode"]]
        for mode in modes:
            at = tuple(place[axis][mode if axis == "bn_mode" else document[axis]] for axis in axes)
            for name, value in _numbers(document).items():
                values[name][at] = value
            if document["transductive"] and mode == document["bn_mode"]:
                transductive[at[2], at[3]] = True
    dims = tuple(axes)
    dataset = xr.Dataset({name: (dims, array) for name, array in values.items()}, coords=axes)
    counted = dataset["score"].notnull().sum("seed").astype("float64")
    if not seeds:
        dataset = dataset.mean("seed")
    dataset["n_seeds"] = counted.where(counted > 0)
    dataset["transductive"] = (("bn_mode", "protocol"), transductive)
    dataset = dataset.assign_coords(_descriptions(documents, axes))
    dataset.attrs = {
        "title": "featstore results",
        "featstore_version": documents[0]["versions"]["featstore"],
        "created": max(d["created"] for d in documents),
    }
    return dataset


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which `k20` comes before `k100`."""
    parts = "".join(c if c.isdigit() else f"\0{c}\0" for c in name).split("\0")
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def _numbers(document: Mapping[str, Any]) -> dict[str, float]:
    metrics = document["metrics"]
    found = {name: float(document[name]) for name in _COUNTS}
    for name in _CERTIFIED:
        if name in document["certificate"]:
            found[name] = float(document["certificate"][name])
    for name, ends in metrics.items():
        found[name] = ends["value"]
        found[f"{name}_low"], found[f"{name}_high"] = ends["low"], ends["high"]
    headline = document["dataset_info"]["metric"]
    found["score"] = found[headline]
    found["low"], found["high"] = found[f"{headline}_low"], found[f"{headline}_high"]
    return {name: np.nan if value is None else value for name, value in found.items()}


def _descriptions(
    documents: Iterable[Mapping[str, Any]], axes: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """Coordinates that describe models, datasets, protocols and pairs of them."""
    models = {d["model"]: d["model_info"] for d in documents}
    sets = {d["dataset"]: d for d in documents}
    kinds = {d["protocol"]: d["settings"]["kind"] for d in documents}
    coords: dict[str, Any] = {
        name: ("model", [str(models[m].get(name, "")) for m in axes["model"]])
        for name in _MODEL_INFO
    }
    coords["bn_free"] = ("model", [bool(models[m]["bn_free"]) for m in axes["model"]])
    for name in ("shift", "cluster", "metric"):
        values = [str(sets[d]["dataset_info"].get(name, "")) for d in axes["dataset"]]
        coords[name] = ("dataset", values)
    coords["n_categories"] = ("dataset", [int(sets[d]["n_categories"]) for d in axes["dataset"]])
    coords["kind"] = ("protocol", [kinds[p] for p in axes["protocol"]])
    seen = [
        [sets[d]["dataset_info"]["source"] in models[m]["pretraining"] for d in axes["dataset"]]
        for m in axes["model"]
    ]
    coords["seen_in_pretraining"] = (("model", "dataset"), np.array(seen, bool))
    return coords
