"""From records to one Dataset over model x dataset x BN mode x protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore.errors import FeatStoreError
from featstore.kernels.metrics import N_BINS
from featstore.keys import BNMode, sha256_json
from featstore.results.records import is_current, records

_CERTIFIED = ("converged",)  # 1 or 0; NaN for protocols that do not iterate
_COUNTS = ("n_train", "n_test", "n_skipped", "seconds")
_RELIABILITY = ("count", "confidence", "accuracy")
_MODEL_INFO = ("backbone", "family", "paradigm", "method", "teacher", "stage", "lineage")


def open_results(root: str | Path = "data/results", *, seeds: bool = False) -> xr.Dataset:
    """All cells as one Dataset over (model, dataset, bn_mode, protocol), NaN where there is none.

    A model without BatchNorm is shown under every BN mode. Where features were extracted anew, only
    cells of those last probed count. `score` is the dataset's headline metric, `low` and `high` its
    95 % interval. Of cells with probabilities, `reliability_count`, `reliability_confidence` and
    `reliability_accuracy` have one more dim, `bin`, of the 15 bins by which `ece` is measured.
    `transductive` says of which cells scored images take part in a statistic; the variable
    `ece_scaled` always is, and has it as an attribute (in tables of `export`, in its name).
    Protocols that share `without_normalisation` differ in `normalisation` alone, and so for
    `backbone_bn`, "" of what runs off the store.

    Parameters
    ----------
    root : folder of the records
    seeds : keep a `seed` dimension; else means over seeds, in which each test image of a bin counts

    Raises
    ------
    FeatStoreError
        There is no record, or one cannot be read.
    """
    found = newest(records(root))
    if not found:
        raise FeatStoreError(f"no results in {root}. Run: featstore probe -p knn-marks")
    return _assemble(found, seeds=seeds)


def newest(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The one record of each place that counts."""
    by_place: dict[tuple[Any, ...], dict[str, Any]] = {}
    for document in documents:
        if not is_current(document):
            continue  # of features that were replaced
        place = tuple(document[k] for k in ("model", "dataset", "bn_mode", "protocol", "seed"))
        # A cell that read a split more, such as val, goes before one made when it was not there.
        rank = len(document["splits"]), document["created"]
        known = by_place.get(place)
        if known is None or rank >= (len(known["splits"]), known["created"]):
            by_place[place] = document
    return list(by_place.values())


def _assemble(documents: list[dict[str, Any]], *, seeds: bool) -> xr.Dataset:
    axes = {
        "model": sorted({d["model"] for d in documents}),
        "dataset": sorted({d["dataset"] for d in documents}),
        "bn_mode": [m.value for m in BNMode if any(d["bn_mode"] == m for d in documents)],
        "protocol": sorted({d["protocol"] for d in documents}, key=natural),
        "seed": sorted({d["seed"] for d in documents}),
    }
    place = {axis: {name: i for i, name in enumerate(names)} for axis, names in axes.items()}
    shape = tuple(len(names) for names in axes.values())
    metrics = list(dict.fromkeys(name for d in documents for name in d["metrics"]))
    bounds = [f"{metric}_{end}" for metric in metrics for end in ("low", "high")]
    values = {
        name: np.full(shape, np.nan)
        for name in ("score", "low", "high", *metrics, *bounds, *_COUNTS, *_CERTIFIED)
    }
    if any("reliability" in d["certificate"] for d in documents):
        values |= {f"reliability_{one}": np.full((*shape, N_BINS), np.nan) for one in _RELIABILITY}
    transductive = np.zeros((len(axes["bn_mode"]), len(axes["protocol"])), bool)
    for document in documents:
        everywhere = document["model_info"]["bn_free"]
        modes = axes["bn_mode"] if everywhere else [document["bn_mode"]]
        # What is so by its protocol is so in every mode that shows it; by its BN mode, in that one.
        by_protocol = document.get("transductive_by_protocol", document["bn_mode"] != BNMode.BATCH)
        for mode in modes:
            at = tuple(place[axis][mode if axis == "bn_mode" else document[axis]] for axis in axes)
            for name, value in _numbers(document).items():
                values[name][at] = value
            if document["transductive"] and (by_protocol or mode == document["bn_mode"]):
                transductive[at[2], at[3]] = True
    dims = (*axes, "bin")
    variables = {name: (dims[: array.ndim], array) for name, array in values.items()}
    dataset = xr.Dataset(variables, coords=axes)
    if "bin" in dataset.dims:
        edges = np.linspace(0, 1, N_BINS + 1)
        ends = {"bin_low": ("bin", edges[:-1]), "bin_high": ("bin", edges[1:])}
        dataset = dataset.assign_coords({"bin": np.arange(N_BINS), **ends})
    counted = dataset["score"].notnull().sum("seed").astype("float64")
    spread = dataset["score"].std("seed", ddof=1) if len(axes["seed"]) > 1 else None
    if not seeds:
        dataset = _mean_over_seeds(dataset)
    if spread is not None:
        dataset["score_sd"] = spread  # over seeds
    dataset["n_seeds"] = counted.where(counted > 0)
    for end in ("", "_low", "_high"):
        if f"ece_scaled{end}" in dataset:  # whatever the protocol: temperatures are of test images
            dataset[f"ece_scaled{end}"].attrs["transductive"] = 1
    dataset["transductive"] = (("bn_mode", "protocol"), transductive)
    dataset = dataset.assign_coords(_descriptions(documents, axes))
    dataset.attrs = {
        "title": "featstore results",
        "featstore_version": documents[0]["versions"]["featstore"],
        "created": max(d["created"] for d in documents),
    }
    return dataset


def _mean_over_seeds(dataset: xr.Dataset) -> xr.Dataset:
    """Means; of what is said of a bin of confidence, over all seeds' test images in it."""
    mean = dataset.mean("seed")
    for name in ("confidence", "accuracy") if "bin" in dataset.dims else ():
        by_images = dataset[f"reliability_{name}"].weighted(dataset["reliability_count"].fillna(0))
        mean[f"reliability_{name}"] = by_images.mean("seed")
    return mean


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which `k20` comes before `k100`."""
    parts = "".join(c if c.isdigit() else f"\0{c}\0" for c in name).split("\0")
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def _apart_from(settings: Mapping[str, Any], name: str) -> str:
    """Digest of what a protocol is apart from one setting: protocols that share it are twins."""
    told = {name, "name", "sets", "source"}
    if name == "normalisation":
        told.add("head_bn")  # says the same again
    return sha256_json({k: v for k, v in settings.items() if k not in told})[:12]


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of each variable a number, or one for each bin of confidence."""
    metrics = document["metrics"]
    found: dict[str, Any] = {name: float(document[name]) for name in _COUNTS}
    for name in _CERTIFIED:
        if name in document["certificate"]:
            found[name] = float(document["certificate"][name])
    for name, ends in metrics.items():
        found[name] = ends["value"]
        found[f"{name}_low"], found[f"{name}_high"] = ends["low"], ends["high"]
    for name, column in document["certificate"].get("reliability", {}).items():
        found[f"reliability_{name}"] = np.array(column, dtype=float)  # None becomes NaN
    headline = document["headline"]
    found["score"] = found[headline]
    found["low"], found["high"] = found[f"{headline}_low"], found[f"{headline}_high"]
    return {name: np.nan if value is None else value for name, value in found.items()}


def describe_models(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Coordinates that describe models, from what is stored about each, in their order."""
    coords: dict[str, Any] = {
        name: ("model", [str(info.get(name, "")) for info in infos]) for name in _MODEL_INFO
    }
    coords["bn_free"] = ("model", [bool(info["bn_free"]) for info in infos])
    return coords


def _descriptions(
    documents: Iterable[Mapping[str, Any]], axes: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """Coordinates that describe models, datasets, protocols and pairs of them."""
    models = {d["model"]: d["model_info"] for d in documents}
    sets = {d["dataset"]: d for d in documents}
    protocols = {d["protocol"]: d["settings"] for d in documents}
    coords = describe_models([models[m] for m in axes["model"]])
    for name in ("shift", "cluster", "metric"):
        values = [str(sets[d]["dataset_info"].get(name, "")) for d in axes["dataset"]]
        coords[name] = ("dataset", values)
    coords["n_categories"] = ("dataset", [int(sets[d]["n_categories"]) for d in axes["dataset"]])
    for name in ("kind", "scale", "normalisation", "backbone_bn"):
        coords[name] = ("protocol", [str(protocols[p].get(name, "")) for p in axes["protocol"]])
    for name in ("normalisation", "backbone_bn"):
        values = [_apart_from(protocols[p], name) for p in axes["protocol"]]
        coords[f"without_{name}"] = ("protocol", values)
    seen = [
        [sets[d]["dataset_info"]["source"] in models[m]["pretraining"] for d in axes["dataset"]]
        for m in axes["model"]
    ]
    coords["seen_in_pretraining"] = (("model", "dataset"), np.array(seen, bool))
    return coords
