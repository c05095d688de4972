"""From a dataset's name to labelled images in splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featstore.datasets import (
    caltech,
    cdfsl,
    cifar,
    cub,
    domainnet,
    huggingface,
    imagenet,
    inaturalist,
    listed_sets,
    tiny,
    torchvision_sets,
    voc,
    webdataset,
)
from featstore.datasets.fetching import fetch_files, unfinished
from featstore.datasets.files import load_folder
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry, base_of, catalogue, default_data_root, split_transform
from featstore.errors import CatalogueError, MissingDatasetError, UnknownNameError
from featstore.fetch import Progress
from featstore.home import expanded
from featstore.names import unknown

Reader = Callable[..., ImageSplit]
"""Called as reader(entry, split, root): raises MissingDatasetError, BadImageError."""

READERS: dict[str, Reader] = {
    "tiny": tiny.read,
    "torchvision": torchvision_sets.read,
    "imagenet": imagenet.read,
    "inaturalist": inaturalist.read,
    "cub": cub.read,
    "voc-segmentation": voc.read_segmentation,
    "voc-classification": voc.read_classification,
    "domainnet": domainnet.read,
    "caltech256": caltech.read_256,
    "caltech101": caltech.read_101,
    "listed": listed_sets.read,
    "cifar": cifar.read,
    "cdfsl": cdfsl.read,
    "webdataset": webdataset.read,
    "huggingface": huggingface.read,
}
"""Readers of catalogue entries, by the name that the entries give."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk or in memory.

    Attributes
    ----------
    name : as in the store, with its transform ; splits : names of its splits
    split : name -> ImageSplit; raises UnknownNameError, MissingDatasetError, BadImageError
    info : shift, cluster, metric, source: what analysis wants to know
    transform : `own`, or a study's ; square : what a study's transform does first
    """

    name: str
    splits: Sequence[str]
    split: Callable[[str], ImageSplit]
    info: dict[str, Any]
    transform: str = "own"
    square: str = ""


def load_dataset(
    name: str,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Dataset of a name; its images are read only when a split is asked for.

    Parameters
    ----------
    name : catalogue name, `folder:PATH`, `wds:PATTERN` or `hf:NAME`, with an `@TRANSFORM` or
        without
    data_root : folder that holds downloads
    download : fetch what is missing
    progress : called with the name of what is fetched or unpacked, bytes done and bytes in all

    Raises
    ------
    UnknownNameError
        No such dataset; says which come near.
    """
    full, transform = split_transform(name)
    base = base_of(name)
    root = expanded(data_root) if data_root else default_data_root()
    entry = catalogue().get(base) or _loose_entry(base, download)
    if entry.task == "dense":
        raise UnknownNameError(
            f"{base} is listed for detection and dense prediction, which featstore does not run "
            f"yet; it has no images with one label each to embed"
        )
    parts: Mapping[str, Callable[[], ImageSplit]]
    if entry.reader == "folder":
        path = Path(entry.folder, expanded(entry.path))
        parts = {s: partial(_same, images) for s, images in load_folder(base, path).items()}
    elif entry.reader in READERS:
        read = READERS[entry.reader]
        if entry.reader == "huggingface":
            read = partial(read, download=download)
        if download and entry.urls:
            read = partial(_fetched, read, progress)
        parts = {s: partial(_read, read, entry, s, root) for s in entry.splits}
    else:
        known = ", ".join(["folder", *READERS])
        raise CatalogueError(f"{base} names the reader {entry.reader!r}; there are {known}")
    info = {
        "shift": entry.shift,
        "cluster": entry.cluster or base,
        "metric": entry.metric,
        "source": entry.source or base,
    }
    return Dataset(full, tuple(parts), _picker(base, parts), info, transform, entry.square)


def _loose_entry(base: str, download: bool) -> Entry:
    """Entry of what is named by its place; raises UnknownNameError for anything else."""
    prefix, _, path = base.partition(":")
    if prefix == "folder":
        return Entry(base, "folder", path=path)
    if prefix == "wds":
        return Entry(base, "webdataset", splits=webdataset.splits_of(path), path=path)
    if prefix == "hf":
        splits = huggingface.splits_of(path, download=download)
        return Entry(base, "huggingface", splits=splits, path=path)
    listing = "featstore datasets lists them; folder:PATH works as well"
    raise unknown("dataset", base, catalogue(), listing)


def _read(read: Reader, entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split by a reader, whose complaint of missing files is completed by where to get them."""
    try:
        return read(entry, split, root)
    except MissingDatasetError as error:
        source = entry.by_hand or ", ".join(entry.urls)
        if not source or any(one in str(error) for one in (source, *entry.urls)):
            raise
        raise MissingDatasetError(f"{error}. It is had from {source}") from error


def _fetched(
    read: Reader, progress: Progress | None, entry: Entry, split: str, root: Path
) -> ImageSplit:
    """Split by a reader, for which files are fetched until none of it is missing."""
    if not unfinished(entry, split, root):
        with suppress(MissingDatasetError):
            return read(entry, split, root)
    for _ in fetch_files(entry, split, root, progress):
        with suppress(MissingDatasetError):  # another file may hold what is missing
            return read(entry, split, root)
    return read(entry, split, root)


def _same(images: ImageSplit) -> ImageSplit:
    return images


def _picker(
    dataset: str, parts: Mapping[str, Callable[[], ImageSplit]]
) -> Callable[[str], ImageSplit]:
    def pick(split: str) -> ImageSplit:
        if split not in parts:
            raise UnknownNameError(f"{dataset} has no split {split!r}; it has {', '.join(parts)}")
        return parts[split]()

    return pick
