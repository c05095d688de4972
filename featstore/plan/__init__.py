"""A plan of an extraction before any of it is run: cells, passes, bytes, hours, what is missing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets import Dataset, Transform, default_data_root, load_dataset
from featstore.datasets.names import base_of
from featstore.errors import MissingDatasetError
from featstore.extraction import check_views, transform_of
from featstore.home import expanded
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName
from featstore.models.blueprint import Blueprint, blueprint
from featstore.plan.missing import Missing, Room, missing_datasets, missing_weights, rooms
from featstore.store import Store

_BYTES_OF_A_ROW = 80  # label, index, validity and a sample's name, beside the embedding


@dataclass
class Line:
    """One dataset of a plan.

    Attributes
    ----------
    cells : (model, BN mode) pairs, sites apart ; done : of these, complete in the store
    images : in the splits asked for, None if nobody knows before it is there
    passes : decoding passes over the splits, one for each input transform that is wanted
    embeddings : images times forward passes ; bytes : on disk ; seconds : None if no rate is known
    """

    dataset: str
    cells: int = 0
    done: int = 0
    images: int | None = 0
    passes: int = 0
    embeddings: int = 0
    bytes: int = 0
    seconds: float | None = 0.0


@dataclass
class Plan:
    """What an extraction would do.

    Attributes
    ----------
    lines : one for each dataset ; missing : what has to be fetched, converted or placed by hand
    rooms : what has to be written, by place ; rate : where the images a second come from
    """

    lines: list[Line] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    rate: str = ""

    @property
    def total(self) -> Line:
        """All datasets together; what is unknown of one is left out of the sum."""
        total = Line("total")
        for line in self.lines:
            total.cells += line.cells
            total.done += line.done
            total.images = (total.images or 0) + (line.images or 0)
            total.passes += line.passes
            total.embeddings += line.embeddings
            total.bytes += line.bytes
        known = [line.seconds for line in self.lines if line.seconds is not None]
        total.seconds = sum(known) if len(known) == len(self.lines) else None
        return total


@dataclass(frozen=True)
class _Cell:
    """A model at its sites, one BN mode, and the rows of each split that are to be made."""

    blueprint: Blueprint
    names: dict[str, str]  # site -> name in the store
    mode: BNMode


def plan(
    models: Sequence[str],
    datasets: Sequence[str],
    *,
    splits: Sequence[str] = (),
    bn_modes: Iterable[str] = ("eval",),
    views: int = 0,
    weights: str = "pretrained",
    seed: int = 0,
    variant: str = "",
    store: str | Path = "data/features.zarr",
    data_root: str | Path | None = None,
    dtype: str = "float16",
    rate: float | None = None,
) -> Plan:
    """What `extract` with the same arguments would do; fetches nothing and builds no weights.

    Images are counted on disk for a dataset without published counts, else by these. What is in
    the store counts as done by its name; whether its recipe is the same only `extract` finds out.

    Parameters
    ----------
    rate : images a second through one model; by default as measured by earlier extractions into
        this store, each model's own or else the median of all

    Raises
    ------
    UnknownNameError
        No such model or dataset, or a dataset has no such split.
    ValueError
        An option is out of its range.
    """
    modes = [BNMode(mode) for mode in bn_modes]
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}")
    if rate is not None and not rate > 0:
        raise ValueError(f"rate must be more than 0 images/s, got {rate:g}")
    root = expanded(data_root) if data_root else default_data_root()
    cells = list(_cells(models, modes, weights, seed, variant))
    rates = {} if rate else _measured(Path(store))
    made = Plan(rate=_rate_source(rate, rates))
    found: dict[str, Dataset] = {}
    absent: dict[str, MissingDatasetError] = {}
    names = datasets_.expand(datasets)
    for name in names:
        try:
            found[name] = load_dataset(name, data_root=root)
        except MissingDatasetError as error:
            absent[name] = error
    check_views(views, splits, list(found.values()))
    for name in names:
        line = Line(name, sum(len(cell.names) for cell in cells), images=None, seconds=None)
        if name in found:
            try:
                line = _line(found[name], splits, cells, views, Store(store), dtype, rate, rates)
            except MissingDatasetError as error:
                absent[name] = error
        made.lines.append(line)
    made.missing = [
        *missing_weights(models, weights),
        *missing_datasets({base_of(name): absent.get(name) for name in names}, root),
    ]
    counted = all(line.images is not None for line in made.lines)
    made.rooms = rooms(str(store), made.total.bytes, counted, made.missing)
    return made


def _cells(
    models: Sequence[str], modes: Sequence[BNMode], weights: str, seed: int, variant: str
) -> Iterator[_Cell]:
    by_base: dict[str, dict[str, str]] = {}
    for name in models_.expand(models):
        parsed = ModelName.parse(name)
        full = parsed
        if weights != "pretrained" and not parsed.variant.startswith("random"):
            of = f"random{seed}" if weights == "random" else Path(weights).stem
            full = replace(parsed, variant=of).with_variant(parsed.variant)
        named = str(full.with_variant(variant))
        by_base.setdefault(f"{parsed.base}~{parsed.variant}", {})[parsed.site] = named
    for key, names in by_base.items():
        built = blueprint(key.rpartition("~")[0])
        for mode in [BNMode.EVAL] if built.bn_free else modes:
            yield _Cell(built, names, mode)


def _line(
    dataset: Dataset,
    splits: Sequence[str],
    cells: Sequence[_Cell],
    views: int,
    store: Store,
    dtype: str,
    rate: float | None,
    rates: dict[str, float],
) -> Line:
    """Line of a dataset; MissingDatasetError where it is absent and nobody has counted it."""
    splits = splits or dataset.splits
    adapts = ["train"] if any(cell.mode is BNMode.ADAPT for cell in cells) else []
    counts = _counts(dataset, [*splits, *adapts])
    wanted = {split: counts[split] for split in splits}
    line = Line(dataset.name, images=sum(wanted.values()))
    wanted |= {f"train+aug{v}": counts["train"] for v in range(views) if "train" in splits}
    passes: set[tuple[Transform, str]] = set()
    for cell in cells:
        transform = transform_of(dataset, cell.blueprint.data_config)
        complete = {
            site: {
                split.name
                for split in store.splits(FeatureKey(name, dataset.name, cell.mode))
                if split.complete
            }
            for site, name in cell.names.items()
        }
        line.cells += len(cell.names)
        line.done += sum(bool(wanted) and set(wanted) <= found for found in complete.values())
        images = 0
        for split, n in wanted.items():
            lacking = [site for site, found in complete.items() if split not in found]
            if lacking:
                passes.add((transform, split.partition("+")[0]))  # shared with its views
                images += n
            width = sum(cell.blueprint.width(site) for site in lacking)
            line.bytes += n * (width * np.dtype(dtype).itemsize + _BYTES_OF_A_ROW * len(lacking))
        if images and cell.mode is BNMode.ADAPT:
            passes.add((transform, "adapting"))
            images += counts["train"]
        line.embeddings += images
        speed = rate or rates.get(cell.blueprint.name) or rates.get("")
        known = bool(speed) or not images
        if line.seconds is not None:
            line.seconds = line.seconds + (images / speed if speed else 0) if known else None
    line.passes = len(passes)
    return line


def _counts(dataset: Dataset, splits: Sequence[str]) -> dict[str, int]:
    """Images of each split, as published or as found on disk.

    Raises
    ------
    UnknownNameError, MissingDatasetError
        There is no such split; nobody has counted it, and it is not on disk.
    """
    entry = datasets_.catalogue().get(base_of(dataset.name))
    if entry and not entry.folder and set(splits) <= set(entry.n_images):
        return {split: entry.n_images[split] for split in splits}
    return {split: len(dataset.split(split)) for split in splits}


def _rate_source(rate: float | None, rates: dict[str, float]) -> str:
    if rate:
        return f"{rate:g} images/s through each model, as given"
    if rates:
        return f"measured by earlier extractions; {rates['']:.0f} images/s for models not seen yet"
    return ""


def _measured(store: Path) -> dict[str, float]:
    """Images a second through each model by the store's log, and under "" the median of all."""
    log = store.with_suffix(".log.jsonl")
    if not log.is_file():
        return {}
    found: dict[str, list[float]] = {}
    for line in _lines(log):
        # A split is named `MODEL[@SITE] DATASET BN_MODE SPLIT`; sites share a forward pass.
        words = [split.split(" ") for split in line["splits"]]
        passes = {(word[0].partition("@")[0], *word[-2:]) for word in words}
        if line["images"] and line["seconds"]:
            for model, *_ in passes:
                speed = line["images"] * len(passes) / line["seconds"]
                found.setdefault(model, []).append(speed)
    rates = {model: statistics.median(speeds) for model, speeds in found.items()}
    return rates | {"": statistics.median(rates.values())} if rates else {}


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    """Lines of the log that are whole: one may be cut off where the disk was full."""
    for text in log.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"splits", "images", "seconds"} <= set(line):
            yield line
