"""Cells: one write-once record each, and the xarray Dataset they make.

The only door to xarray below analysis. A record is an npz with what was found for each test
sample, and beside it a JSON, written last, that commits it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.keys import BNMode, encode_part

FORMAT_VERSION = 1

_CURRENT = "features"  # beside the protocols' folders: digest of the features last probed

METRICS = ("top1", "top5", "mean_per_class", "ece")
_CERTIFIED = ("converged",)  # 1 or 0; NaN for protocols that do not iterate
COUNTS = ("n_train", "n_test", "n_skipped", "seconds")
_MODEL_INFO = ("backbone", "family", "paradigm", "method", "stage", "lineage")


@dataclass(frozen=True, order=True)
class Cell:
    """One score's place: what was measured, how, and on which features."""

    model: str
    dataset: str
    bn_mode: str
    protocol: str
    seed: int
    digest: str

    def path(self, root: Path) -> Path:
        """Where its JSON lies: there or not, it says whether the cell is done."""
        parts = (self.model, self.dataset, self.bn_mode, self.protocol)
        name = f"{self.seed}-{self.digest[:12]}.json"
        return root.joinpath(*(encode_part(part) for part in parts), name)

    def __str__(self) -> str:
        return f"{self.model} {self.dataset} {self.bn_mode} {self.protocol} seed {self.seed}"


def record(
    root: Path, cell: Cell, facts: Mapping[str, Any], outcomes: Mapping[str, np.ndarray]
) -> None:
    """Commit a cell: what was found for each sample first, then the facts.

    Raises
    ------
    FeatStoreError
        It could not be written, as on a full disk; then it is not there at all.
    """
    path = cell.path(root)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(outcomes))  # type: ignore[arg-type]  # all are arrays
    data = buffer.getvalue()
    document = {
        "format": FORMAT_VERSION,
        "model": cell.model,
        "dataset": cell.dataset,
        "bn_mode": cell.bn_mode,
        "protocol": cell.protocol,
        "seed": cell.seed,
        "features": cell.digest,
        **facts,
        "outcomes_sha256": hashlib.sha256(data).hexdigest(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path.with_suffix(".npz"), data)
        _write(path, json.dumps(document, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise FeatStoreError(
            f"{cell} could not be written below {root} ({error.strerror}). All cells recorded "
            f"before are kept; make room and run the same command again"
        ) from error


def mark_current(root: Path, model: str, dataset: str, bn_mode: str, digest: str) -> None:
    """Say which features' cells count from now on, for one model, dataset and BN mode."""
    path = root.joinpath(*(encode_part(part) for part in (model, dataset, bn_mode)), _CURRENT)
    if not path.exists() or path.read_text().strip() != digest:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, f"{digest}\n".encode())


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def records(root: str | Path) -> Iterator[dict[str, Any]]:
    """Every record below a results folder, in the order of their places.

    Raises
    ------
    CorruptStoreError, StoreMismatchError
        A record cannot be read, or is of another format version.
    """
    for path in sorted(Path(root).glob("*/*/*/*/*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            version = document["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStoreError(
                f"{path} is no record of a cell ({error}). Delete it, and probe again"
            ) from error
        if version != FORMAT_VERSION:
            raise StoreMismatchError(
                f"{path} has format version {version}, this featstore reads {FORMAT_VERSION}. Use "
                f"the featstore that wrote it, or another --results"
            )
        yield document | {"path": str(path)}


def outcomes_of(document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a record keeps for each test sample, checked against its checksum.

    Raises
    ------
    CorruptStoreError
        The file is gone, or not what was written.
    """
    path = Path(document["path"]).with_suffix(".npz")
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != document["outcomes_sha256"]:
        raise CorruptStoreError(f"{path} is not what was written. Delete its record, probe again")
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name] for name in arrays.files}


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
        features = Path(document["path"]).parents[1] / _CURRENT
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
    bounds = [f"{metric}_{end}" for metric in METRICS for end in ("low", "high")]
    values = {
        name: np.full(shape, np.nan)
        for name in ("score", "low", "high", *METRICS, *bounds, *COUNTS, *_CERTIFIED)
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
    found = {name: float(document[name]) for name in COUNTS}
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


def target_of(root: str | Path) -> Path:
    """Where the Dataset of a folder of records is written."""
    root = Path(root) if Path(root).name else Path(root).absolute()  # `.` has no name of its own
    return root.with_name(f"{root.name}.zarr")


def check_target(target: Path) -> None:
    """Refuse to replace what is no Dataset of results, such as a store of features.

    Raises
    ------
    FeatStoreError
        Something else is there.
    """
    document = target / "zarr.json"
    if not target.exists():
        return
    try:
        attributes = json.loads(document.read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        attributes = {}
    if "featstore_version" not in attributes:
        raise FeatStoreError(
            f"{target} would be replaced by the results, and is none: a store of features, or not "
            f"featstore's. Give another folder for --results"
        )


def refresh(root: str | Path, target: str | Path | None = None) -> Path:
    """Write the Dataset beside the records, as `<root>.zarr` unless told otherwise.

    `xr.open_zarr` opens it, with nothing else installed.

    Built aside and swapped under a lock, so that a reader finds the old one or the new one.
    """
    target = Path(target) if target else target_of(root)
    check_target(target)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside, old = target.with_suffix(".new"), target.with_suffix(".old")
        shutil.rmtree(aside, ignore_errors=True)
        with warnings.catch_warnings():
            # Readers that do not know the extension ignore it; it makes opening one read.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            dataset = open_results(root)
            # As objects they are stored with variable length, which Zarr's specification knows.
            texts = [n for n, v in dataset.variables.items() if v.dtype.kind == "U"]
            dataset = dataset.assign_coords({n: dataset[n].astype(object) for n in texts})
            dataset.to_zarr(aside, zarr_format=3, consolidated=True)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return target


def export(dataset: xr.Dataset, path: Path, *, form: str) -> None:
    """Write the Dataset as a table of cells (`csv`, `parquet`) or as it is (`netcdf`).

    Raises
    ------
    ValueError
        The form is none of these.
    """
    if form not in ("csv", "parquet", "netcdf"):
        raise ValueError(f"format must be csv, parquet or netcdf, got {form!r}")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if form == "netcdf":
            dataset.to_netcdf(partial, engine="h5netcdf", invalid_netcdf=False)
        else:
            table = dataset.to_dataframe().reset_index()
            table = table[table["score"].notna()]
            if form == "csv":
                table.to_csv(partial, index=False)
            else:
                table.to_parquet(partial, index=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
