"""Extraction: images through backbones into the store, each chunk once."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets import Dataset, ImageSplit, Transform, load_dataset
from featstore.extraction.loader import row_order
from featstore.extraction.passes import Progress, Station, fill
from featstore.extraction.targets import Options, choose_device, notes_of, recipe_of
from featstore.keys import BNMode, FeatureKey, Recipe
from featstore.models import Encoder, Model, ModelName, load_model
from featstore.store import Rows, Store, chunk_rows_for, create, parse_codec, resume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What an extraction did.

    Attributes
    ----------
    filled, up_to_date : splits, over all keys ; images : decoded ; seconds : in all
    """

    filled: int
    up_to_date: int
    images: int
    seconds: float


@dataclass(frozen=True)
class _Asked:
    """A model with all sites and variants asked for, as they are named in the store."""

    model: Model
    names: dict[str, str]  # site -> name in the store

    @cached_property
    def widths(self) -> dict[str, int]:
        """Features at each site, found by embedding two black images."""
        c, h, w = self.model.data_config["input_size"]
        cpu = torch.device("cpu")
        encoder = _encoder(self.model, list(self.names), BNMode.EVAL, cpu, Options())
        embedded = encoder(torch.zeros(2, c, h, w, dtype=torch.uint8))
        return {site: rows.shape[1] for site, rows in embedded.items()}


def extract(
    models: Sequence[str],
    datasets: Sequence[str],
    *,
    splits: Sequence[str] = (),
    bn_modes: Iterable[str] = ("eval",),
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
    data_root: str | Path | None = None,
    download: bool = False,
    overwrite: bool = False,
    skip_errors: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Embed every dataset with every model and keep what is not kept yet.

    Models that share an input transform share one decoding pass; sites of a model share one
    forward pass. Interrupted at any moment, the same call goes on with the chunks that are missing.

    Parameters
    ----------
    models, datasets : names, or names of sets
    splits : of each dataset; all it has if empty
    bn_modes : of `eval`, `batch`, `adapt`; a model without BatchNorm is stored once, under `eval`
    weights : `pretrained`, `random` (from `seed`; the name then ends in `~randomSEED`), or a path
    variant : keeps features of another recipe apart, as MODEL~VARIANT
    num_workers : processes that decode; by default as many as cores, none for images in memory
    progress : called as progress(what, images done, images in all)

    Raises
    ------
    FeatStoreError
        Nothing that was committed is lost; see its subclasses.
    ValueError
        An option is out of its range.
    """
    options = Options(batch_size, precision, dtype, codec, chunk_rows)
    modes = [BNMode(mode) for mode in bn_modes]
    _check_options(options, modes)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if re.match(r"random\d", variant):
        raise ValueError(f"variant {variant!r} would read as random weights; use another name")
    target = choose_device(device)
    loaded = [load_dataset(name, data_root=data_root, download=download)
              for name in datasets_.expand(datasets)]  # fmt: skip
    asked = list(_load_models(models, weights, seed, variant))
    Store(store)  # refuses another format version before any work is done
    begun = time.perf_counter()
    filled = up_to_date = decoded = 0
    for dataset in loaded:
        for transform, members in _by_transform(asked):
            encoders: dict[tuple[str, BNMode], Encoder] = {}
            for name in splits or dataset.splits:
                images = dataset.split(name)
                stations = list(
                    _open_writers(members, dataset, images, modes, transform, Path(store), target,
                                  options, encoders,
                                  overwrite=overwrite)
                )  # fmt: skip
                filled += sum(len(station.writers) for station in stations)
                up_to_date += _count(members, modes) - sum(len(s.writers) for s in stations)
                if not stations:
                    continue
                train = dataset.split("train") if any(s.adapts for s in stations) else None
                started = time.perf_counter()
                done = fill(
                    stations, images, train, transform,
                    batch_size=batch_size, num_workers=_workers(num_workers, images),
                    skip_errors=skip_errors, progress=progress,
                )  # fmt: skip
                decoded += done
                _log_timing(Path(store), stations, done, time.perf_counter() - started, target)
    return Summary(filled, up_to_date, decoded, time.perf_counter() - begun)


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
    """
    found = {split.name: split for split in Store(store).splits(key)}
    if not found:
        Store(store).open(key)  # raises, and says what is there
    name = ModelName.parse(key.model)
    model = load_model(key.model, weights=weights)
    dataset = load_dataset(key.dataset, data_root=data_root)
    transform = Transform.own(model.data_config)
    differences = {}
    for split_name, split in found.items():
        now = _recipe(model, name.site, key.bn_mode, transform, dataset,
                      dataset.split(split_name), options or Options())  # fmt: skip
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
    parse_codec(options.codec, options.dtype)


def _load_models(names: Sequence[str], weights: str, seed: int, variant: str) -> Iterator[_Asked]:
    """Each model once, with all of its sites that are asked for."""
    by_base: dict[str, list[ModelName]] = {}
    for name in models_.expand(names):
        parsed = ModelName.parse(name)
        by_base.setdefault(f"{parsed.base}~{parsed.variant}", []).append(parsed)
    for members in by_base.values():
        model = load_model(str(members[0]), weights=weights, seed=seed)
        own = ModelName.parse(model.name)
        yield _Asked(
            model,
            {
                m.site: str(ModelName(own.base, m.site, own.variant or m.variant)
                            .with_variant(variant))
                for m in members
            },
        )  # fmt: skip


def _by_transform(asked: Sequence[_Asked]) -> list[tuple[Transform, list[_Asked]]]:
    groups: dict[Transform, list[_Asked]] = {}
    for one in asked:
        groups.setdefault(Transform.own(one.model.data_config), []).append(one)
    return list(groups.items())


def _modes_of(model: Model, modes: Sequence[BNMode]) -> list[BNMode]:
    """BN modes to compute: one model without BatchNorm is the same in all of them."""
    return [BNMode.EVAL] if model.bn_free else list(modes)


def _count(members: Sequence[_Asked], modes: Sequence[BNMode]) -> int:
    return sum(len(one.names) * len(_modes_of(one.model, modes)) for one in members)


def _recipe(
    model: Model,
    site: str,
    mode: BNMode,
    transform: Transform,
    dataset: Dataset,
    images: ImageSplit,
    options: Options,
) -> Recipe:
    train = dataset.split("train") if mode is BNMode.ADAPT else None
    return recipe_of(model, site, mode, transform, images, train, options)


def _open_writers(
    members: Sequence[_Asked],
    dataset: Dataset,
    images: ImageSplit,
    modes: Sequence[BNMode],
    transform: Transform,
    root: Path,
    device: torch.device,
    options: Options,
    encoders: dict[tuple[str, BNMode], Encoder],
    *,
    overwrite: bool,
) -> Iterator[Station]:
    """A station for each model and BN mode of which any site is unfinished.

    `encoders` keeps those that were made: one that was adapted to a dataset serves all its splits.
    """
    order = row_order(images.fingerprint, len(images))
    rows = Rows(
        [images.sample_ids[int(i)] for i in order], order, images.labels[order], images.categories
    )
    for one in members:
        for mode in _modes_of(one.model, modes):
            writers = {}
            for site, name in one.names.items():
                key = FeatureKey(name, dataset.name, mode)
                recipe = _recipe(one.model, site, mode, transform, dataset, images, options)
                if overwrite:
                    Store(root).remove(key, images.name)
                writer = resume(root, key, images.name, recipe, options.codec) or create(
                    root, key, images.name, recipe, rows,
                    width=one.widths[site], dtype=options.dtype, codec=options.codec,
                    chunk_rows=chunk_rows_for(len(images), options.chunk_rows),
                    notes=notes_of(one.model, dataset.info, device, options),
                )  # fmt: skip
                if not writer.split.complete:
                    writers[site] = writer
            if writers:
                place = (one.model.name, mode)
                if place not in encoders:
                    encoders[place] = _encoder(one.model, list(one.names), mode, device, options)
                yield Station(encoders[place], writers, adapts=mode is BNMode.ADAPT)


def _encoder(
    model: Model, sites: Sequence[str], mode: BNMode, device: torch.device, options: Options
) -> Encoder:
    # Modes other than `eval` change the module, which belongs to all of them.
    module = model.module if mode is BNMode.EVAL else copy.deepcopy(model.module)
    encoder = Encoder(
        module,
        sites,
        mean=model.data_config["mean"],
        std=model.data_config["std"],
        device=device,
        precision=options.precision,
    )
    if mode is BNMode.BATCH:
        encoder.use_batch_statistics()
    return encoder


def _workers(asked: int | None, images: ImageSplit) -> int:
    if asked is not None:
        return asked
    in_memory = isinstance(images.read, datasets_.ArrayImages)
    return 0 if in_memory else min(16, os.cpu_count() or 1)


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


__all__ = ["Options", "Progress", "Summary", "choose_device", "extract", "stored_against_now"]
