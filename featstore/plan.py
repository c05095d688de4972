"""A plan of an extraction before any of it is run: cells, passes, bytes, hours, what is missing."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets import Dataset, Transform, default_data_root, load_dataset
from featstore.datasets.names import status as dataset_status
from featstore.errors import MissingDatasetError
from featstore.extraction import check_views, transform_of
from featstore.home import expanded, home
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName
from featstore.models.blueprint import Blueprint, blueprint
from featstore.models.fetch import original_path
from featstore.models.fetch import status as model_status
from featstore.models.load import entry_of
from featstore.models.remap import fresh
from featstore.store import Store

_NEEDS_LOGIN = " (needs an account or a click)"
_BYTES_OF_A_ROW = 80  # label, index, validity and a sample's name, beside the embedding


@dataclass(frozen=True)
class Missing:
    """What an extraction needs and has not got, and where it comes from.

    Attributes
    ----------
    kind : `weights` or `datasets` ; what : the name
    status : `fetchable`, `convert` (by `featstore convert`, once it is fetched) or `by hand`
    place : folder that it is fetched to, "" for what is the user's own
    bytes : of the download, 0 if unknown; of weights, those of the backbone alone, in float32
    """

    kind: str
    what: str
    status: str
    source: str
    licence: str = ""
    place: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Room:
    """What goes to one place, and whether there is room for it.

    Attributes
    ----------
    what : `features`, or a kind of what is missing ; count : of such, 1 of features
    bytes : at least, if not `exact` ; free : bytes on its disk
    enough : whether these suffice for all that goes to that disk
    """

    what: str
    place: str
    count: int
    bytes: int
    exact: bool
    free: int
    enough: bool


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
        *_missing_weights(models, weights),
        *_missing_datasets({_base(name): absent.get(name) for name in names}, root),
    ]
    made.rooms = _rooms(Path(store), made)
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
    entry = datasets_.catalogue().get(_base(dataset.name))
    if entry and not entry.folder and set(splits) <= set(entry.n_images):
        return {split: entry.n_images[split] for split in splits}
    return {split: len(dataset.split(split)) for split in splits}


def _missing_weights(models: Sequence[str], weights: str) -> Iterator[Missing]:
    if weights not in ("pretrained", "random") and not expanded(weights).exists():
        yield Missing("weights", weights, "by hand", f"your own file, {weights}")
    if weights != "pretrained":
        return
    names = map(ModelName.parse, models_.expand(models))
    for base in dict.fromkeys(n.base for n in names if not re.match(r"random\d", n.variant)):
        entry = entry_of(base)
        fresh((), entry.rules)  # refuses rules that nobody can read, before anything is fetched
        status, source, place = model_status(entry), entry.whence, str(home() / "weights")
        if base.startswith("file:"):
            status, place = "ready" if expanded(entry.weights).exists() else "by hand", ""
        elif entry.weights == "hub":
            status, source, place = _of_timm(entry.arch)
        elif entry.weights or status == "incomplete":
            place = ""
        elif original_path(entry).exists():
            source, place = f"{original_path(entry)}, by featstore convert {base}", ""
        if status != "ready":
            size = 4 * blueprint(base).parameters if place else 0
            licence = entry.licence + _NEEDS_LOGIN * entry.login
            yield Missing("weights", base, status, source, licence, place, size)


def _of_timm(arch: str) -> tuple[str, str, str]:
    """Status, source and place of the weights that timm fetches by itself."""
    config = timm.get_pretrained_cfg(arch)
    if config is None or not (config.hf_hub_id or config.url):
        return "by hand", "timm has none: give --weights PATH, or --weights random", ""
    if config.hf_hub_id:
        source, place = f"https://huggingface.co/{config.hf_hub_id}", Path(constants.HF_HUB_CACHE)
        folder = repo_folder_name(repo_id=config.hf_hub_id, repo_type="model")
        files = [path for path in place.glob(f"{folder}/snapshots/*/*") if path.exists()]
        there = any(path.suffix in (".safetensors", ".bin") for path in files)
    else:
        source, place = str(config.url), Path(torch.hub.get_dir(), "checkpoints")
        there = (place / Path(urlsplit(source).path).name).is_file()
    return "ready" if there else "fetchable", source, str(place)


def _missing_datasets(
    bases: dict[str, MissingDatasetError | None], root: Path
) -> Iterator[Missing]:
    """Datasets that are not there: published ones by a look at folders, others by what failed."""
    for base, error in bases.items():
        entry = datasets_.catalogue().get(base)
        status = dataset_status(entry, root) if entry and not entry.folder else "ready"
        if entry and status != "ready":
            licence = entry.licence + _NEEDS_LOGIN * entry.login
            source = entry.by_hand or ", ".join(entry.urls)
            yield Missing("datasets", base, status, source, licence, str(root), entry.size)
        elif error:
            status = "fetchable" if "--download" in str(error) else "by hand"
            yield Missing("datasets", base, status, str(error).removeprefix(f"{base}: "))


def _base(name: str) -> str:
    full, transform = datasets_.split_transform(name)
    return full.removesuffix(f"@{transform}")


def _rooms(store: Path, made: Plan) -> list[Room]:
    needs = {("features", str(store)): {"": made.total.bytes}}
    for one in made.missing:
        if one.place:  # what two entries share is fetched once
            needs.setdefault((one.kind, one.place), {})[one.source] = one.bytes
    counted = all(line.images is not None for line in made.lines)
    exact = {"features": counted, "weights": False}
    disks = {place: _nearest(Path(place).absolute()) for _, place in needs}
    asked: Counter[int] = Counter()
    for (_, place), sizes in needs.items():
        asked[disks[place].stat().st_dev] += sum(sizes.values())
    return [
        Room(
            what, place, len(sizes), sum(sizes.values()), exact.get(what, all(sizes.values())),
            free := shutil.disk_usage(disks[place]).free,
            asked[disks[place].stat().st_dev] <= free,
        )
        for (what, place), sizes in needs.items()
    ]  # fmt: skip


def _nearest(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


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
