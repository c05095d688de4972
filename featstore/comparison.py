"""Features off the store against each other: of two models, or of one in two BN modes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featstore.backend import Array, gpu_available, namespace, to_device, to_host
from featstore.errors import FeatStoreError
from featstore.kernels.similarity import FEWEST_ROWS, cka_matrices, displacement
from featstore.keys import BNMode
from featstore.results import (
    Compared,
    build_similarity,
    check_target,
    similarity_target,
    write_similarity,
)
from featstore.store import SPLITS, Split, Store
from featstore.sweep.finding import Failure, find_keys

Progress = Callable[[str, int, int], None]
"""Called with what is being done, feature sets done and feature sets in all."""


@dataclass
class Similarities:
    """What a comparison of features did.

    Attributes
    ----------
    datasets : compared ; feature_sets : in all of them ; rows : most images of a dataset
    failed : feature sets that could not be compared, and why
    left_out : those merely among all that is stored that have no such split
    seconds : in all ; results : the Zarr that `open_similarity` opens, or "" if it is as it was
    """

    datasets: int = 0
    feature_sets: int = 0
    rows: int = 0
    failed: list[Failure] = field(default_factory=list)
    left_out: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    results: str = ""


def similarity(
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    *,
    bn_modes: Iterable[str] = (),
    store: str | Path = "data/features.zarr",
    results: str | Path = "data/results",
    split: str = "test",
    rows: int = 2000,
    device: str = "auto",
    progress: Progress = lambda what, done, total: None,
) -> Similarities:
    """Compare every two sets of features of each dataset, and keep that for `open_similarity`.

    A set of features is that of a model in a BN mode. What was kept before is replaced. Compared
    are the images that all chosen sets have features of: the first `rows` of them in stored order,
    which is a random one seeded by the dataset. Sets are left out by name if they cannot be read,
    or are of other images than most. Of each dataset, that many rows of every set are in memory at
    once, as stored, and 256 MiB of Gram matrices.

    Parameters
    ----------
    models, datasets, bn_modes : as extracted; all that the store holds where empty
    split : train, val or test
    rows : most images of a dataset, at least 4
    device : `cpu`, `cuda:N`, or `auto` for a GPU if cupy finds one

    Raises
    ------
    UnknownNameError
        Nothing goes by that name.
    FeatStoreError
        The store holds nothing, or there is something else where the outcome is to be kept.
    ValueError
        An argument is out of its range.
    """
    begun = time.perf_counter()
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if rows < FEWEST_ROWS:
        raise ValueError(f"rows must be {FEWEST_ROWS} or more, got {rows}")
    if device == "auto":
        device = "cuda" if gpu_available() else "cpu"
    try:
        xp = namespace(device)
    except RuntimeError as error:  # a device that is not there
        raise ValueError(str(error)) from error
    check_target(similarity_target(results))

    done = Similarities()
    chosen = _splits(Store(store), models, datasets, [BNMode(m) for m in bn_modes], split, done)
    total = sum(map(len, chosen.values()))
    compared = []
    seen = 0
    for splits in chosen.values():
        seen += len(splits)
        one = _compare(splits, rows, xp, done.failed)
        compared += [one] if one else []
        progress("comparing", seen, total)
    if compared:
        info = {s.key.model: s.attrs["model"] for splits in chosen.values() for s in splits}
        done.results = str(write_similarity(build_similarity(compared, info, split=split), results))
    done.datasets, done.feature_sets = len(compared), sum(len(one.sets) for one in compared)
    done.rows = max((one.rows for one in compared), default=0)
    done.seconds = time.perf_counter() - begun
    return done


def _splits(
    store: Store,
    models: Sequence[str],
    datasets: Sequence[str],
    bn_modes: Sequence[BNMode],
    name: str,
    done: Similarities,
) -> dict[str, list[Split]]:
    """Finished splits that are asked for, by dataset."""
    keys, absent = find_keys(store, models, datasets, bn_modes)
    done.failed += absent
    unfit = done.failed if models or datasets else done.left_out
    found: dict[str, list[Split]] = {}
    for key in keys:
        try:
            found.setdefault(key.dataset, []).append(store.open(key)[name])
        except FeatStoreError as error:
            unfit.append(Failure(f"{key} {name}", str(error)))
    return {dataset: splits for dataset, splits in found.items() if splits}


def _compare(splits: Sequence[Split], most: int, xp: Any, failed: list[Failure]) -> Compared | None:
    """Every two of one dataset's sets; None if nothing is left to compare."""
    splits = _of_same_images(splits, failed)
    first = splits[0]
    index = first.array("index")
    common = np.logical_and.reduce([_by_index(split, split.valid) for split in splits])
    wanted = index[common[index]][:most]
    if len(wanted) < FEWEST_ROWS:
        what = f"{first.key.dataset} {first.name}"
        fault = f"only {len(wanted)} images have features in all {len(splits)} sets, it takes 4"
        failed.append(Failure(what, f"{fault}. Choose models with -m, or extract more images"))
        return None
    read, features = [], []
    for split in splits:
        try:
            features.append(to_device(_rows(split, wanted), xp))
            read.append(split)
        except FeatStoreError as error:
            failed.append(Failure(str(split), str(error)))
    if not read:
        return None
    debiased, biased = (to_host(one) for one in cka_matrices(features, xp=xp))
    return Compared(
        first.key.dataset,
        len(wanted),
        [(split.key.model, split.key.bn_mode.value) for split in read],
        debiased,
        biased,
        _displacements(read, features, xp),
    )


def _of_same_images(splits: Sequence[Split], failed: list[Failure]) -> list[Split]:
    """Those of the same images as most are."""
    images = [split.recipe.fields["images"] for split in splits]
    usual = Counter(images).most_common(1)[0][0]
    first = splits[images.index(usual)]
    labels = _by_index(first, first.label)
    same = []
    for split, own in zip(splits, images, strict=True):
        # What was imported has a fingerprint of its own: then the labels have to do.
        imported = any("imported" in one.recipe.fields for one in (first, split))
        matches = imported and np.array_equal(_by_index(split, split.label), labels)
        if own == usual or matches:
            same.append(split)
            continue
        fault = f"it is of other images than {first}. Leave one out, or make it again"
        failed.append(Failure(str(split), f"{fault}: {split.origin} --overwrite"))
    return same


def _by_index(split: Split, values: np.ndarray) -> np.ndarray:
    """What is stored for each row, in the order of the dataset."""
    return values[np.argsort(split.array("index"))]


def _rows(split: Split, wanted: np.ndarray) -> np.ndarray:
    """(m, d) features of images by their positions in the dataset, as stored.

    Raises
    ------
    CorruptStoreError
        A chunk is not what was written.
    """
    place = np.argsort(split.array("index"))[wanted]
    rows = np.empty((len(wanted), split.shape[1]), dtype=split.embedding.dtype)
    for number in range(len(split.chunk_digest)):
        span = split.span(number)
        here = (place >= span.start) & (place < span.stop)
        if here.any():
            rows[here] = split.chunk(number)[place[here] - span.start]
    return rows


def _displacements(splits: Sequence[Split], features: Sequence[Array], xp: Any) -> np.ndarray:
    """(s, s), NaN but between BN modes of one model."""
    moved = np.full((len(splits), len(splits)), np.nan)
    for i, j in np.ndindex(moved.shape):
        same = splits[i].key.model == splits[j].key.model
        if same and features[i].shape == features[j].shape:  # imports may differ
            moved[i, j] = displacement(features[i], features[j], xp=xp)
    return moved
