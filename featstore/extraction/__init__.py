"""Extraction: images through backbones into the store, each chunk once."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets import Dataset, ImageSplit, load_dataset
from featstore.errors import FeatStoreError, MissingDatasetError, UnknownNameError
from featstore.extraction.asked import Asked, by_transform, load_asked
from featstore.extraction.passes import Progress, Station, fill
from featstore.extraction.stations import Opener
from featstore.extraction.targets import Options, Target, choose_device, recipe_of, transform_of
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName, load_model
from featstore.store import Store, parse_codec, view_number

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What an extraction did.

    Attributes
    ----------
    filled, up_to_date : splits, over all keys ; images : decoded ; seconds : in all
    failed : models and datasets that could not be had, and why; the others were done
    """

    filled: int
    up_to_date: int
    images: int
    seconds: float
    failed: tuple[str, ...] = ()


def extract(
    models: Sequence[str] | Mapping[str, nn.Module],
    datasets: Sequence[str],
    *,
    splits: Sequence[str] = (),
    bn_modes: Iterable[str] = ("eval",),
    views: int = 0,
    store: str | Path = "data/features.zarr",
    weights: str = "pretrained",
    seed: int = 0,
    variant: str = "",
    batch_size: int = 64,
    num_workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    dtype: str = "float16",
    codec: str = "none",
    chunk_rows: int = 2048,
    fingerprint: str = "names",
    data_root: str | Path | None = None,
    download: bool = False,
    overwrite: bool = False,
    skip_errors: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Embed every dataset with every model and keep what is not kept yet.

    Models that share an input transform share one decoding pass; sites of a model share one
    forward pass. Interrupted at any moment, the same call goes on with the chunks that are missing.
    A model or dataset that is not there is left out, said in the log and in the summary, as long
    as there are others.

    Parameters
    ----------
    models, datasets : names, or names of sets; models may be modules of your own by the name to
        keep them under, in eval mode and with ImageNet's input unless their `pretrained_cfg` says
        otherwise. Their code is in no recipe: give a module that computes otherwise another name
    splits : of each dataset; all it has if empty
    bn_modes : of `eval`, `batch`, `adapt`; a model without BatchNorm is stored once, under `eval`
    views : random views of each train split besides, stored as `train+aug0`, `train+aug1`, ...
        The plain split and all views share one decoding pass
    weights : `pretrained`, `random` (from `seed`; the name then ends in `~randomSEED`), or a path
    variant : keeps features of another recipe apart, as MODEL~VARIANT
    fingerprint : what the recipe says of the images: `names` (with sizes and labels), or `full`,
        which reads every byte of every file first
    num_workers : processes that decode beside the model, by default as many as cores for a GPU; 0,
        the default for a CPU and for images in memory, decodes in threads and takes turns with the
        model, so that neither gets in the other's way
    progress : called as progress(what, images done, images in all); while a file is fetched or
        unpacked `what` is its name and `(MiB)`, and it is those that are counted

    Raises
    ------
    FeatStoreError
        Nothing that was committed is lost; see its subclasses.
    ValueError
        An option is out of its range.
    """
    options = Options(batch_size, precision, dtype, codec, chunk_rows, fingerprint)
    modes = [BNMode(mode) for mode in bn_modes]
    _check_options(options, modes)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if re.match(r"random\d", variant):
        raise ValueError(f"variant {variant!r} would read as random weights; use another name")
    target = choose_device(device)
    fetching = partial(in_mib, progress)
    loaded = [load_dataset(name, data_root=data_root, download=download, progress=fetching)
              for name in datasets_.expand(datasets)]  # fmt: skip
    check_views(views, splits, loaded)
    failed: list[FeatStoreError] = []
    asked = list(load_asked(models, weights, seed, variant, failed, fetching))
    Store(store)  # refuses another format version before any work is done
    begun = time.perf_counter()
    filled = up_to_date = decoded = missing = 0
    for dataset in loaded:
        split_of = cache(dataset.split)
        try:
            for name in splits or dataset.splits:
                split_of(name)
        except MissingDatasetError as error:
            failed.append(error)
            missing += 1
            if missing == len(loaded):
                raise
            log.warning("left out: %s", error)
            continue
        for transform, members in by_transform(asked, dataset):
            opener = Opener(members, dataset, modes, Path(store), target, options, overwrite)
            for name in splits or dataset.splits:
                images = split_of(name)
                train = split_of("train") if _adapts(members, modes) else None
                numbers = range(views) if name == "train" else ()
                targets = [Target.of(images, transform, view) for view in (None, *numbers)]
                stations = [one for part in targets for one in opener.open(part, train)]
                filled += sum(len(station.writers) for station in stations)
                up_to_date += len(targets) * opener.keys - sum(len(s.writers) for s in stations)
                if not stations:
                    continue
                started = time.perf_counter()
                done = fill(
                    stations, images, train, transform,
                    batch_size=batch_size, num_workers=workers(num_workers, images, target),
                    skip_errors=skip_errors, progress=progress,
                )  # fmt: skip
                decoded += done
                _log_timing(Path(store), stations, done, time.perf_counter() - started, target)
    told = tuple(str(error) for error in failed)
    return Summary(filled, up_to_date, decoded, time.perf_counter() - begun, told)


def stored_against_now(
    key: FeatureKey,
    *,
    store: str | Path = "data/features.zarr",
    data_root: str | Path | None = None,
    weights: str = "pretrained",
    options: Options | None = None,
) -> dict[str, dict[str, tuple[Any, Any]]]:
    """For each stored split of a key, the recipe fields that would differ if it were extracted now.

    Raises
    ------
    MissingFeaturesError
        Nothing is stored under the key.
    UnknownNameError
        The model was given as a module, which no name leads to.
    """
    found = {split.name: split for split in Store(store).splits(key)}
    if not found:
        Store(store).open(key)  # raises, and says what is there
    name = ModelName.parse(key.model)
    if name.base not in models_.catalogue() and ":" not in name.base:
        raise UnknownNameError(
            f"{key.model} cannot be loaded by its name, so there is nothing to compare with. If it "
            f"was a module given to featstore.extract, give it again: what differs is said there"
        )
    model = load_model(key.model, weights=weights)
    dataset = load_dataset(key.dataset, data_root=data_root)
    transform = transform_of(dataset, model.data_config)
    split_of = cache(dataset.split)
    train = split_of("train") if key.bn_mode is BNMode.ADAPT else None
    differences = {}
    for split_name, split in found.items():
        view = view_number(split_name)
        images = split_of(split_name if view is None else "train")
        target = Target.of(images, transform, view)
        now = recipe_of(model, name.site, key.bn_mode, target, train, options or Options())
        differences[split_name] = split.recipe.differences(now)
    return differences


def _check_options(options: Options, modes: Sequence[BNMode]) -> None:
    if set(modes) != {BNMode.EVAL} and options.batch_size < 2:
        raise ValueError("batch_size must be at least 2 where BatchNorm takes its statistics")
    if options.batch_size < 1 or options.chunk_rows < 1:
        raise ValueError("batch_size and chunk_rows must be at least 1")
    if options.dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {options.dtype!r}")
    if options.precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be fp32, bf16 or fp16, got {options.precision!r}")
    if options.fingerprint not in ("names", "full"):
        raise ValueError(f"fingerprint must be names or full, got {options.fingerprint!r}")
    parse_codec(options.codec, options.dtype)


def in_mib(progress: Progress, what: str, done: int, total: int) -> None:
    """Tell of bytes fetched in MiB, under a name that says so."""
    progress(f"{what} (MiB)", done >> 20, total >> 20)


def check_views(views: int, splits: Sequence[str], datasets: Sequence[Dataset]) -> None:
    """Refuse views that cannot be before any work is done."""
    if views < 0:
        raise ValueError(f"views must be 0 or more, got {views}")
    if not views:
        return
    if splits and "train" not in splits:
        raise ValueError(f"views are of the train split, and splits are {', '.join(splits)}")
    for dataset in datasets:
        if "train" not in dataset.splits:
            raise ValueError(f"views are of the train split, and {dataset.name} has none")
        if dataset.transform != "own":
            transform_of(dataset, {}).augmented()  # refuses a study that publishes none


def _adapts(members: Sequence[Asked], modes: Sequence[BNMode]) -> bool:
    return BNMode.ADAPT in modes and not all(one.model.bn_free for one in members)


def workers(asked: int | None, images: ImageSplit, device: torch.device | None = None) -> int:
    if asked is not None:
        return asked
    in_memory = isinstance(images.read, datasets_.ArrayImages)
    on_cpu = device is not None and device.type == "cpu"
    return 0 if in_memory or on_cpu else min(16, os.cpu_count() or 1)


def _log_timing(
    store: Path, stations: Sequence[Station], images: int, seconds: float, device: torch.device
) -> None:
    """Append to the log beside the store; nothing reads it but people and plans."""
    line = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "splits": [str(w.split) for station in stations for w in station.writers.values()],
        "images": images,
        "seconds": round(seconds, 3),
        "device": str(device),
    }
    with store.with_suffix(".log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


__all__ = [
    "Options",
    "Progress",
    "Summary",
    "choose_device",
    "extract",
    "stored_against_now",
    "transform_of",
]
