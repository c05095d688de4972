"""Datasets: a name leads to labelled images in splits, and to what analysis wants to know."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from featstore.datasets import tiny, torchvision_sets
from featstore.datasets.files import load_folder
from featstore.datasets.image_split import ArrayImages, ImageSplit
from featstore.datasets.transforms import NAMES as TRANSFORMS
from featstore.datasets.transforms import Transform, check_name
from featstore.errors import UnknownNameError
from featstore.names import expand_sets, read_catalogue, unknown


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue.

    Attributes
    ----------
    reader : `tiny` or `torchvision`
    sets : studies that it belongs to
    shift : `in-domain`, a kind of covariate shift, `other`, or ""
    metric : the headline metric, `top1` or `mean_per_class`
    source : what a model has seen that was pretrained on it
    """

    name: str
    reader: str
    sets: list[str] = field(default_factory=list)
    shift: str = ""
    metric: str = "top1"
    source: str = ""
    description: str = ""


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk or in memory.

    Attributes
    ----------
    name : as in the store ; splits : names of its splits
    split : name -> ImageSplit; raises UnknownNameError, MissingDatasetError, BadImageError
    info : shift, metric, source: what analysis wants to know
    """

    name: str
    splits: Sequence[str]
    split: Callable[[str], ImageSplit]
    info: dict[str, Any]


@cache
def catalogue() -> dict[str, Entry]:
    """All datasets known by name."""
    return read_catalogue(Path(__file__).with_name("catalogue.toml"), Entry)


def expand(names: Iterable[str]) -> list[str]:
    """Dataset names with each set's name (`tiny`, `all`) replaced by its members, in order."""
    return expand_sets(names, catalogue(), lambda name: split_transform(name)[0])


def split_transform(name: str) -> tuple[str, str]:
    """A dataset's name with its `@TRANSFORM` taken off where it is `own`, and the transform.

    Raises
    ------
    UnknownNameError
        No transform has that name.
    """
    base, mark, transform = name.rpartition("@")
    if name == "folder:":
        raise UnknownNameError("folder: names no folder. Write folder:PATH")
    folder = name.startswith("folder:")
    if not mark or (folder and transform not in TRANSFORMS):
        base, transform = name, "own"  # a folder's path may hold an @ of its own
    check_name(transform)
    if folder:  # one name for `a/b/`, `./a/b` and `a/b`
        base = f"folder:{os.path.normpath(base.removeprefix('folder:'))}"
    return (base if transform == "own" else f"{base}@{transform}"), transform


def default_data_root() -> Path:
    """Where datasets lie unless told otherwise: `FEATSTORE_HOME`, or the user's cache folder."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("FEATSTORE_HOME") or cache_home / "featstore")
    return home.expanduser() / "datasets"


def load_dataset(
    name: str, *, data_root: str | Path | None = None, download: bool = False
) -> Dataset:
    """Dataset of a name; its images are read only when a split is asked for.

    Parameters
    ----------
    name : catalogue name or `folder:PATH`
    data_root : folder that holds downloads
    download : fetch what is missing

    Raises
    ------
    UnknownNameError
        No such dataset; says which come near.
    """
    base = split_transform(name)[0]
    if base.startswith("folder:"):
        path = Path(base.removeprefix("folder:")).expanduser()
        loaded = load_folder(base, path)
        info = {"shift": "", "metric": "top1", "source": base}
        return Dataset(base, tuple(loaded), _picker(base, loaded.__getitem__, tuple(loaded)), info)
    if base not in catalogue():
        listing = "featstore datasets lists them; folder:PATH works as well"
        raise unknown("dataset", base, catalogue(), listing)
    entry = catalogue()[base]
    info = {"shift": entry.shift, "metric": entry.metric, "source": entry.source or base}
    if entry.reader == "tiny":
        names: Sequence[str] = ("train", "test")
        return Dataset(base, names, _picker(base, lambda s: tiny.load_split(base, s), names), info)
    root = Path(data_root).expanduser() if data_root else default_data_root()
    names = torchvision_sets.split_names(base)

    def open_split(split: str) -> ImageSplit:
        return torchvision_sets.load_split(base, split, root, download=download)

    return Dataset(base, names, _picker(base, open_split, names), info)


def _picker(
    dataset: str, load: Callable[[str], ImageSplit], names: Sequence[str]
) -> Callable[[str], ImageSplit]:
    def pick(split: str) -> ImageSplit:
        if split not in names:
            raise UnknownNameError(f"{dataset} has no split {split!r}; it has {', '.join(names)}")
        return load(split)

    return pick


__all__ = [
    "ArrayImages",
    "Dataset",
    "ImageSplit",
    "Transform",
    "catalogue",
    "default_data_root",
    "expand",
    "load_dataset",
    "split_transform",
]
