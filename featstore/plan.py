"""A plan of an extraction before any of it is run: cells, passes, bytes, hours, what is missing."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets import Dataset, Transform, default_data_root, load_dataset
from featstore.datasets.names import status as dataset_status
from featstore.errors import FeatStoreError
from featstore.extraction import transform_of
from featstore.home import expanded
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName
from featstore.models.blueprint import Blueprint, blueprint
from featstore.models.fetch import status as model_status
from featstore.store import Store

_BYTES_OF_A_ROW = 80  # label, index, validity and a sample's name, beside the embedding


@dataclass(frozen=True)
class Missing:
    """What an extraction needs and has not got: a model or a dataset, and where it comes from."""

    what: str
    status: str
    source: str
    licence: str


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
    free_bytes : where the store is ; rate : where the images a second come from
    """

    lines: list[Line] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    free_bytes: int = 0
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
        No such model or dataset.
    ValueError
        An option is out of its range.
    """
    modes = [BNMode(mode) for mode in bn_modes]
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}")
    if views < 0:
        raise ValueError(f"views must be 0 or more, got {views}")
    if rate is not None and not rate > 0:
        raise ValueError(f"rate must be more than 0 images/s, got {rate:g}")
    root = expanded(data_root) if data_root else default_data_root()
    cells = list(_cells(models, modes, weights, seed, variant))
    rates = {} if rate else _measured(Path(store))
    made = Plan(rate=_rate_source(rate, rates))
    for name in datasets_.expand(datasets):
        dataset = load_dataset(name, data_root=root)
        made.lines.append(_line(dataset, cells, splits, views, Store(store), dtype, rate, rates))
    place = next(p for p in (Path(store).absolute(), *Path(store).absolute().parents) if p.exists())
    made.free_bytes = shutil.disk_usage(place).free
    wanted = models if weights == "pretrained" else ()
    made.missing = [*_missing_models(wanted), *_missing_datasets(datasets, root)]
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
    cells: Sequence[_Cell],
    splits: Sequence[str],
    views: int,
    store: Store,
    dtype: str,
    rate: float | None,
    rates: dict[str, float],
) -> Line:
    line = Line(dataset.name)
    counts = _counts(dataset, splits or dataset.splits)
    if counts is None:
        line.images = line.seconds = None
        counts = {}
    wanted = dict(counts)
    wanted |= {f"train+aug{v}": counts["train"] for v in range(views) if "train" in counts}
    line.images = None if line.images is None else sum(counts.values())
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
            images += counts.get("train", 0)
        line.embeddings += images
        speed = rate or rates.get(cell.blueprint.name) or rates.get("")
        known = bool(speed) or not images
        if line.seconds is not None:
            line.seconds = line.seconds + (images / speed if speed else 0) if known else None
    line.passes = len(passes)
    return line


def _counts(dataset: Dataset, splits: Sequence[str]) -> dict[str, int] | None:
    """Images of each split: as published, or as found on disk; None where neither is to be had."""
    entry = datasets_.catalogue().get(datasets_.split_transform(dataset.name)[0].partition("@")[0])
    if entry and entry.n_images:
        return {split: entry.n_images.get(split, 0) for split in splits}
    try:
        return {split: len(dataset.split(split)) for split in splits}
    except FeatStoreError:
        return None


def _missing_models(models: Sequence[str]) -> Iterator[Missing]:
    known = models_.catalogue()
    for base in dict.fromkeys(ModelName.parse(n).base for n in models_.expand(models)):
        if base in known and (status := model_status(known[base])) != "ready":
            entry = known[base]
            source = entry.by_hand or ", ".join(entry.urls) or f"timm's hub, {entry.arch}"
            yield Missing(base, status, source, entry.licence)


def _missing_datasets(datasets: Sequence[str], root: Path) -> Iterator[Missing]:
    known = datasets_.catalogue()
    bases = (_base(name) for name in datasets_.expand(datasets))
    for base in dict.fromkeys(bases):
        if base in known and (status := dataset_status(known[base], root)) != "ready":
            entry = known[base]
            licence = entry.licence + (" (needs an account or a click)" if entry.login else "")
            yield Missing(base, status, entry.by_hand or ", ".join(entry.urls), licence)


def _base(name: str) -> str:
    full, transform = datasets_.split_transform(name)
    return full.removesuffix(f"@{transform}")


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
