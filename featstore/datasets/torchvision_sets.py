"""Torchvision's classification sets as torchvision reads them, with their official splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from PIL import Image

from featstore.datasets.files import check_labels, file_split
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.lists import absent, check_count, find_whole, first_line
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, CatalogueError


@dataclass(frozen=True)
class Source:
    """How torchvision is asked for each split of a set.

    Attributes
    ----------
    make : torchvision's class
    splits : keyword arguments by split
    """

    make: Callable[..., Any]
    splits: Mapping[str, Mapping[str, Any]]


def _named(*names: str, **other: str) -> dict[str, dict[str, str]]:
    """Splits asked for by `split=`, under our name or torchvision's own."""
    return {name: {"split": name} for name in names} | {k: {"split": v} for k, v in other.items()}


_BOOLEAN = {"train": {"train": True}, "test": {"train": False}}

SOURCES: dict[str, Source] = {
    "country211": Source(tv.Country211, _named("train", "test", val="valid")),
    "fashion_mnist": Source(tv.FashionMNIST, _BOOLEAN),
    "flowers102": Source(tv.Flowers102, _named("train", "val", "test")),
    "gtsrb": Source(tv.GTSRB, _named("train", "test")),
    "mnist": Source(tv.MNIST, _BOOLEAN),
    "rendered_sst2": Source(tv.RenderedSST2, _named("train", "val", "test")),
    "stl10": Source(tv.STL10, _named("train", "test")),
    "svhn": Source(tv.SVHN, _named("train", "test")),
}


@dataclass(frozen=True)
class TorchvisionImages:
    """Reader of a torchvision set that holds its images in memory."""

    dataset: Any

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position."""
        image: Image.Image = self.dataset[position][0]
        return image.convert("RGB")


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of a catalogue entry.

    Raises
    ------
    MissingDatasetError
        It is not there, or could not be fetched; says where it was looked for.
    BadImageError
        Its lists cannot be understood.
    """
    name = entry.name
    if name not in SOURCES:
        raise CatalogueError(f"{name}: the reader {entry.reader!r} reads {', '.join(SOURCES)}")
    source = SOURCES[name]
    root = find_whole(entry, root) or root
    dataset = _open(entry, source.make, root, dict(source.splits[split]))
    labels = _labels(dataset)
    check_count(entry, split, len(labels))
    files = _files(dataset)
    categories = [str(c) for c in getattr(dataset, "classes", range(int(labels.max()) + 1))]
    if files is not None:
        return file_split(name, split, root, files, labels.tolist(), categories)
    ids = tuple(f"{split}/{i}" for i in range(len(labels)))
    check_labels(name, ids, labels, categories)
    pixels = np.ascontiguousarray(np.asarray(dataset.data))
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    images = TorchvisionImages(dataset)
    return ImageSplit(name, split, ids, labels, tuple(categories), images, content)


def _open(entry: Entry, make: Callable[..., Any], root: Path, arguments: dict[str, Any]) -> Any:
    try:
        return make(root=str(root), download=False, **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        raise absent(entry, root, first_line(error)) from error
    except (LookupError, TypeError) as error:
        raise BadImageError(
            f"{entry.name}: its lists below {root} cannot be understood ({type(error).__name__}: "
            f"{first_line(error)}). Remove them and fetch the dataset again"
        ) from error


def _labels(dataset: Any) -> np.ndarray:
    """(n,) int64, from whichever attribute the class keeps them in."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return np.asarray(getattr(dataset, attribute), dtype=np.int64)
    return np.array([label for _, label in dataset._samples], dtype=np.int64)


def _files(dataset: Any) -> list[str] | None:
    """Paths of the images, or None where the class holds them in memory."""
    if hasattr(dataset, "_image_files"):
        return [str(path) for path in dataset._image_files]
    for attribute in ("samples", "_samples"):
        if hasattr(dataset, attribute):
            return [str(path) for path, _ in getattr(dataset, attribute)]
    return None
