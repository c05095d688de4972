"""Published tables as the Dataset that one's own results make."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore.datasets import names as datasets_
from featstore.keys import BNMode
from featstore.models.names import ModelName
from featstore.models.names import catalogue as known_models
from featstore.names import unknown
from featstore.results.cube import describe_models

_PACKAGED = Path(__file__).parents[1] / "_data" / "published"
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "data" / "published"
"""NAME.toml and NAME/*.csv: inside the package once installed, `data/published` in a clone."""

NAMES = ("ericsson2021", "model-cards")
"""Studies whose tables are held."""

_DIMS = ("model", "dataset", "bn_mode", "protocol")
_UNKNOWN = ("n_skipped", "n_seeds", "seconds")  # of open_results(); no table says them
_SHARES = {"percent": 100.0, "share": 1.0}  # what a printed number is divided by to lie in 0..1


@dataclass(frozen=True)
class Metric:
    """What a column of numbers is.

    Attributes
    ----------
    unit : as printed; `percent` and `share` become shares of 1
    better : `higher`, `lower`, or "" where neither is
    of : `cell`, or `model` for what is said of a model whatever the dataset
    """

    name: str
    unit: str
    better: str
    of: str = "cell"

    @property
    def scale(self) -> str:
        """`share` of 0..1, or `real`."""
        return "share" if self.unit in _SHARES else "real"

    def value(self, printed: str) -> float:
        """A printed number, as a share if it is one."""
        return float(printed) / _SHARES.get(self.unit, 1.0)


@dataclass(frozen=True)
class PublishedProtocol:
    """How numbers were measured.

    Attributes
    ----------
    headline : the metric that is its score; "" for the dataset's own
    transform : that images went through, by its name after @; "" if none of featstore's
    ours : protocols of featstore that answer to it, each with what is known to differ
    nothing : why there is none
    """

    name: str
    kind: str
    normalisation: str = "none"
    backbone_bn: str = ""
    headline: str = ""
    transform: str = ""
    nothing: str = ""
    ours: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A study's tables: names of theirs -> names of ours, and the rows as printed.

    Attributes
    ----------
    takes : commands that fill what can be compared
    differences : of datasets, by our names
    rows : of all files; columns table, model, dataset, protocol, metric, value, ci95, note
    """

    name: str
    title: str
    source: str
    takes: str
    models: Mapping[str, str]
    datasets: Mapping[str, str]
    protocols: Mapping[str, PublishedProtocol]
    metrics: Mapping[str, Metric]
    differences: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]


def published(name: str) -> xr.Dataset:
    """Published numbers as a Dataset like that of `open_results()`, so that all analyses take it.

    `score` is the headline metric, of surface normals the share within 30 degrees; `low` and `high`
    are its 95 % interval where one was printed, else NaN, as is all that no table says (`seconds`,
    ...). Models and datasets have the catalogue's names and descriptions, protocols featstore's
    names where it runs them. Means over datasets stand under datasets of their own (`mean-of-11`),
    which have metrics and no score, so that no analysis counts them beside what they are means of.

    Parameters
    ----------
    name : `ericsson2021` (arXiv:2011.13377v2, tables 1-10) or `model-cards` (ImageNet top-1 as
        stated beside checkpoints)

    Returns
    -------
    Dataset with dims (model, dataset, bn_mode, protocol), in the order of the tables
        Each metric has the attributes `scale` (`share` of 0..1, or `real`), `units` ("1" of a
        share) and `better` (`higher`, `lower`, or "" for neither). Beside the coordinates of
        `open_results()`, `table` (dataset, protocol) says where numbers stand and `note` (model,
        dataset, protocol) what is said beside them, and of model cards the source; for ericsson2021
        `pretraining_epochs` and `pretraining_batch_size` (model).

    Raises
    ------
    UnknownNameError
        No tables of that name are held.
    """
    study = published_study(name)
    datasets = datasets_.catalogue()
    axes: dict[str, list[str]] = {
        "model": list(study.models.values()),
        "dataset": list(study.datasets.values()),
        "bn_mode": [BNMode.EVAL.value],
        "protocol": [one.name for one in study.protocols.values()],
    }
    values, coords = _filled(study, axes, datasets)
    out = xr.Dataset(
        {key: (_DIMS, array) for key, array in values.items()},
        axes | _descriptions(study, axes, datasets) | coords,
        {"title": study.title, "source": study.source, "study": study.name},
    )
    return _with_counts(_with_attributes(out, study), datasets)


@cache
def published_study(name: str) -> Published:
    """Tables as printed, with the names of theirs and of ours; raises UnknownNameError."""
    if name not in NAMES:
        raise unknown("published tables", name, NAMES, f"There are {' and '.join(NAMES)}")
    told = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    rows: list[Mapping[str, str]] = []
    for path in sorted((FOLDER / name).glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    told["protocols"] = {one: PublishedProtocol(**f) for one, f in told["protocols"].items()}
    told["metrics"] = {one: Metric(**f) for one, f in told["metrics"].items()}
    return Published(name=name, rows=tuple(rows), **told)


def _ours(names: Mapping[str, str], theirs: str) -> str:
    """Our name for one of theirs, whatever its case: their code writes names in lower case."""
    return {one.casefold(): ours for one, ours in names.items()}[theirs.casefold()]


def _filled(
    study: Published, axes: Mapping[str, list[str]], datasets: Mapping[str, datasets_.Entry]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables over all dims, and coordinates, of what the rows say."""
    shape = tuple(len(axes[dim]) for dim in _DIMS)
    place = {dim: {one: i for i, one in enumerate(names)} for dim, names in axes.items()}
    metrics = study.metrics.values()
    values: dict[str, Any] = {key: np.full(shape, np.nan) for key in ("score", "low", "high")}
    values |= {one.name: np.full(shape, np.nan) for one in metrics if one.of == "cell"}
    of_models = {one.name: np.full(shape[0], np.nan) for one in metrics if one.of == "model"}
    notes = np.full((shape[0], shape[1], shape[3]), "", dtype=object)
    headlines = np.full((shape[1], shape[3]), "", dtype=object)
    tables: list[list[dict[str, None]]] = [[{} for _ in range(shape[3])] for _ in range(shape[1])]
    for row in study.rows:
        metric = study.metrics[row["metric"]]
        value = metric.value(row["value"])
        model = place["model"][_ours(study.models, row["model"])]
        if metric.of == "model":
            of_models[metric.name][model] = value
            continue
        named, protocol = _ours(study.datasets, row["dataset"]), study.protocols[row["protocol"]]
        dataset, column = place["dataset"][named], place["protocol"][protocol.name]
        found = {metric.name: value}
        if row["ci95"]:
            half = metric.value(row["ci95"])
            found |= {f"{metric.name}_low": value - half, f"{metric.name}_high": value + half}
        if named in datasets and metric.name == (protocol.headline or datasets[named].metric):
            headlines[dataset, column] = metric.name
            found["score"] = value
            found |= {end: found.get(f"{metric.name}_{end}", np.nan) for end in ("low", "high")}
        for key, number in found.items():
            values.setdefault(key, np.full(shape, np.nan))[model, dataset, 0, column] = number
        tables[dataset][column][row["table"]] = None
        told = "; ".join(one for one in (row["note"], row.get("source", "")) if one)
        notes[model, dataset, column] = notes[model, dataset, column] or told
    units = {one.name: one.unit for one in metrics}
    coords = {
        "headline": (("dataset", "protocol"), headlines.astype(str)),
        "table": (("dataset", "protocol"), [[", ".join(cell) for cell in row] for row in tables]),
        "note": (("model", "dataset", "protocol"), notes.astype(str)),
        **{key: ("model", column, {"units": units[key]}) for key, column in of_models.items()},
    }
    return values, coords


def _with_attributes(out: xr.Dataset, study: Published) -> xr.Dataset:
    """The same, its variables saying their scale and whether more is better."""
    for end in ("", "_low", "_high"):
        for metric in study.metrics.values():
            if (key := f"{metric.name}{end}") in out.data_vars:
                told = {"scale": metric.scale, "better": metric.better, "units": metric.unit}
                out[key].attrs |= told if metric.scale == "real" else told | {"units": "1"}
    for key in ("score", "low", "high"):
        out[key].attrs |= {"scale": "share", "better": "higher", "units": "1"}
    if "ece_scaled" in out:  # as in open_results(): temperatures are of test images
        out["ece_scaled"].attrs["transductive"] = 1
    return out


def _with_counts(out: xr.Dataset, datasets: Mapping[str, datasets_.Entry]) -> xr.Dataset:
    """The same with the numbers of images of its cells: as published with the dataset."""
    # An episode's images are of all splits together.
    split = out["score"].notnull() & (out["kind"] != "fewshot")
    for name in ("train", "test"):
        known = [datasets[one].n_images if one in datasets else {} for one in out["dataset"].values]
        count = xr.DataArray([float(one.get(name, np.nan)) for one in known], dims="dataset")
        out[f"n_{name}"] = count.where(split).transpose(*_DIMS)
    for name in _UNKNOWN:
        out[name] = xr.full_like(out["n_test"], np.nan)
    sees = np.zeros((out.sizes["bn_mode"], out.sizes["protocol"]), dtype=bool)
    out["transductive"] = (("bn_mode", "protocol"), sees)
    return out


def _descriptions(
    study: Published, axes: Mapping[str, list[str]], datasets: Mapping[str, datasets_.Entry]
) -> dict[str, Any]:
    """Coordinates that describe models, datasets, protocols and pairs, as in `open_results()`."""
    entries = [known_models()[ModelName.parse(name).base] for name in axes["model"]]
    infos = []
    for name, entry in zip(axes["model"], entries, strict=True):
        # Another checkpoint of a method is another run.
        run = {"lineage": name} if ModelName.parse(name).variant else {}
        # All that were published are ResNets, which have BatchNorm, and ViTs, which have none.
        infos.append(asdict(entry) | run | {"bn_free": entry.backbone.startswith("vit")})
    coords = describe_models(infos)
    sets = [datasets.get(name) for name in axes["dataset"]]
    coords["shift"] = ("dataset", [one.shift if one else "" for one in sets])
    clusters = [one.cluster if one else "" for one in sets]
    coords["cluster"] = (
        "dataset",
        [cluster or name for cluster, name in zip(clusters, axes["dataset"], strict=True)],
    )
    coords["metric"] = ("dataset", [one.metric if one else "" for one in sets])
    coords["n_categories"] = ("dataset", [one.categories if one else 0 for one in sets])
    protocols = study.protocols.values()
    coords["scale"] = ("protocol", ["share" for _ in protocols])
    for field_ in ("kind", "normalisation", "backbone_bn"):
        coords[field_] = ("protocol", [getattr(one, field_) for one in protocols])
    for field_ in ("normalisation", "backbone_bn"):  # none is another's twin
        coords[f"without_{field_}"] = ("protocol", axes["protocol"])
    sources = [(one.source or one.name) if one else None for one in sets]
    seen = [[source in entry.pretraining for source in sources] for entry in entries]
    coords["seen_in_pretraining"] = (("model", "dataset"), np.array(seen, bool))
    none = np.full((len(entries), len(sets), len(axes["bn_mode"])), "")
    coords["features_digest"] = (("model", "dataset", "bn_mode"), none)
    return coords
