"""From records to one Dataset over model x dataset x BN mode x protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore.errors import FeatStoreError
from featstore.kernels.metrics import N_BINS
from featstore.keys import BNMode, sha256_json
from featstore.results.records import records, target_of
from featstore.results.schema import CERTIFIED, COUNTS

_MODEL_INFO = ("backbone", "family", "paradigm", "method", "teacher", "stage", "lineage")


_FIRST = ("score", "low", "high", *COUNTS, *CERTIFIED)  # there in any case

logger = logging.getLogger(__name__)


def open_results(
    root: str | Path = "data/results", *, seeds: bool = False, skip_errors: bool = False
) -> xr.Dataset:
    """All cells as one Dataset over (model, dataset, bn_mode, protocol), NaN where there is none.

    A model without BatchNorm is shown under every BN mode. Where features were extracted anew, only
    cells of those last probed count. `score` is the dataset's headline metric, `low` and `high` its
    95 % interval. Of cells with probabilities, `reliability_count`, `reliability_confidence` and
    `reliability_accuracy` have one more dim, `bin`, of the 15 bins by which `ece` is measured.
    `transductive` says of which cells scored images take part in a statistic; the variable
    `ece_scaled` always is, and has it as an attribute (in tables of `export`, in its name).
    Protocols that share `without_normalisation` differ in `normalisation` alone, and so for
    `backbone_bn`, "" of what runs off the store. The coordinate `headline` (dataset, protocol)
    names the metric that is the score, several of them if cells disagree; `features_digest` (model,
    dataset, bn_mode) begins the SHA-256 of the test split's recipe, "" of what was trained on
    images. Where trainings diverged, `diverged` is their share of a cell's seeds.

    Parameters
    ----------
    root : folder of the records
    seeds : keep a `seed` dimension; else means over seeds, in which each test image of a bin counts
    skip_errors : leave out records that are damaged, say which, and count them in the attribute
        `damaged_records`

    Raises
    ------
    CorruptStoreError
        A record is damaged: it is named.
    StoreMismatchError
        A record is of another format version.
    FeatStoreError
        There is no record.
    """
    damaged: list[FeatStoreError] = []
    found = newest(map(_in_numbers, records(root, damaged=damaged if skip_errors else None)))
    for one in damaged:
        logger.warning("left out: %s", one)
    if not found:
        lost = f" ({len(damaged)} are damaged)" if damaged else ""
        raise FeatStoreError(f"no results in {root}{lost}. Run: featstore probe -p knn-marks")
    dataset = _assemble(found, seeds=seeds)
    dataset.attrs["damaged_records"] = len(damaged)
    dataset.encoding["source"] = str(target_of(root))  # as of a Dataset that is opened from there
    return dataset


def newest(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The one record of each place that counts; says so where that is a guess by their dates."""
    by_place: dict[tuple[Any, ...], dict[str, Any]] = {}
    guessed = {}
    for document in documents:
        if document["current"] is False:
            continue  # of features that were replaced
        place = tuple(document[k] for k in ("model", "dataset", "bn_mode", "protocol", "seed"))
        # A cell that read a split more, such as val, goes before one made when it was not there.
        rank = len(document["splits"]), document["created"]
        known = by_place.get(place)
        if known and (document["current"] is None or not document["splits"]):
            guessed[place] = document["path"]
        if known is None or rank >= (len(known["splits"]), known["created"]):
            by_place[place] = document
    if guessed:
        logger.warning(
            "%d cells have records of several features or weights, and nothing says which count: "
            "the newest do. One is %s",
            len(guessed), next(iter(guessed.values())),
        )  # fmt: skip
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
    numbers: dict[str, Any] = dict.fromkeys(_FIRST, np.nan)  # of each variable one cell's
    for document in documents:
        numbers |= document["numbers"]
    if not any(d["numbers"]["diverged"] for d in documents):
        del numbers["diverged"]
    values = {name: np.full((*shape, *np.shape(one)), np.nan) for name, one in numbers.items()}
    transductive = np.zeros((len(axes["bn_mode"]), len(axes["protocol"])), bool)
    for document in documents:
        everywhere = document["model_info"]["bn_free"]
        modes = axes["bn_mode"] if everywhere else [document["bn_mode"]]
        # What is so by its protocol is so in every mode that shows it; by its BN mode, in that one.
        by_protocol = document.get("transductive_by_protocol", document["bn_mode"] != BNMode.BATCH)
        for mode in modes:
            at = tuple(place[axis][mode if axis == "bn_mode" else document[axis]] for axis in axes)
            for name in values.keys() & document["numbers"].keys():
                values[name][at] = document["numbers"][name]
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


def _in_numbers(document: dict[str, Any]) -> dict[str, Any]:
    """The record with `numbers`, of each variable one or as many as bins, for what they are of.

    Its other parts go, since thousands of records are held at a time.
    """
    metrics, certificate = document.pop("metrics"), document.pop("certificate")
    found = {name: ends["value"] for name, ends in metrics.items()}
    for name, ends in metrics.items():
        found[f"{name}_low"], found[f"{name}_high"] = ends["low"], ends["high"]
    headline = document["headline"]
    score = {"score": found[headline]}
    score |= {end: found[f"{headline}_{end}"] for end in ("low", "high")}
    found = score | found | {name: document[name] for name in COUNTS}
    found |= {name: certificate[name] for name in CERTIFIED if name in certificate}
    found["diverged"] = "diverged" in certificate
    numbers: dict[str, Any] = {
        name: np.nan if value is None else float(value) for name, value in found.items()
    }
    for name, column in certificate.get("reliability", {}).items():
        numbers[f"reliability_{name}"] = np.array(column, dtype=float)  # None becomes NaN
    return document | {"numbers": numbers}


def describe_models(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Coordinates that describe models, from what is stored about each, in their order."""
    coords: dict[str, Any] = {
        name: ("model", [str(info.get(name, "")) for info in infos]) for name in _MODEL_INFO
    }
    coords["bn_free"] = ("model", [bool(info["bn_free"]) for info in infos])
    return coords


def _descriptions(
    documents: Sequence[Mapping[str, Any]], axes: Mapping[str, list[Any]]
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
    return coords | _provenance(documents, axes)


def _provenance(
    documents: Sequence[Mapping[str, Any]], axes: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """Which metric a score is, and which features it was measured on, "" where there is none."""
    metrics: dict[tuple[str, str], set[str]] = {}
    digests: dict[tuple[str, str, str], str] = {}
    for document in documents:
        model, dataset = document["model"], document["dataset"]
        metrics.setdefault((dataset, document["protocol"]), set()).add(document["headline"])
        modes = axes["bn_mode"] if document["model_info"]["bn_free"] else [document["bn_mode"]]
        for mode in modes if "test" in document["splits"] else ():
            digests[model, dataset, mode] = document["splits"]["test"][:12]
    headline = [
        [", ".join(sorted(metrics.get((d, p), ()))) for p in axes["protocol"]]
        for d in axes["dataset"]
    ]
    digest = [
        [[digests.get((m, d, mode), "") for mode in axes["bn_mode"]] for d in axes["dataset"]]
        for m in axes["model"]
    ]
    return {
        "headline": (("dataset", "protocol"), headline),
        "features_digest": (("model", "dataset", "bn_mode"), digest),
    }
