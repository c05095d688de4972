"""CIFAR-10 and CIFAR-100, python version, without running what their pickles may hold."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featstore.datasets.files import check_labels
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.lists import check_count, find_any, first_line, incomplete
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, CatalogueError

log = logging.getLogger(__name__)

_SIDE = 32
_HOST = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Source:
    """Files of a set, with the md5 that its publisher's have."""

    splits: Mapping[str, Mapping[str, str]]
    labels: str
    meta: str
    names: str


SOURCES = {
    "cifar10": Source(
        splits={
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        labels="labels",
        meta="batches.meta",
        names="label_names",
    ),
    "cifar100": Source(
        splits={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        labels="fine_labels",
        meta="meta",
        names="fine_label_names",
    ),
}

# What a pickled NumPy array is made of, by NumPy 1 and 2, from Python 2 and 3.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of plain values and NumPy arrays, which can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # NumPy 1's private module is an alias that warns.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


@dataclass(frozen=True)
class CifarImages:
    """Reader of (n, 32, 32, 3) uint8 pixels; enough of them to be resized in loader processes."""

    pixels: np.ndarray

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position."""
        return Image.fromarray(self.pixels[position])


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of a catalogue entry.

    Raises
    ------
    MissingDatasetError
        Its folder or one of its files is not there.
    BadImageError
        A file is damaged, of another form, or asks to run code.
    """
    name = entry.name
    if name not in SOURCES:
        raise CatalogueError(f"{name}: the reader {entry.reader!r} reads {', '.join(SOURCES)}")
    source = SOURCES[name]
    base = find_any(entry, root)
    meta = _load(name, base, source.meta)
    categories = tuple(map(_text, _field(base / source.meta, meta, source.names)))
    pixels, labels = [], []
    for file, md5 in source.splits[split].items():
        batch = _load(name, base, file, md5)
        data, targets = _rows(base / file, batch, source.labels)
        pixels.append(data)
        labels.append(targets)
    images = np.concatenate(pixels).reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    images = np.ascontiguousarray(images)
    label = np.concatenate(labels)
    ids = tuple(f"{split}/{i}" for i in range(len(images)))
    check_labels(name, ids, label, categories)
    check_count(entry, split, len(images))
    content = hashlib.sha256(images.tobytes()).hexdigest()
    return ImageSplit(name, split, ids, label, categories, CifarImages(images), content)


def _load(name: str, base: Path, file: str, md5: str = "") -> dict[str, Any]:
    """Content of a pickle, by str keys: Python 2 wrote bytes."""
    path = base / file
    if not path.is_file():
        raise incomplete(name, path)
    if md5 and _md5(path) != md5:
        log.warning("%s: %s is not the published file, by its md5", name, path)
    with path.open("rb") as stream:
        try:
            found = _ArrayUnpickler(stream, encoding="latin1").load()
        # A damaged pickle raises whatever the values that it happens to hold raise.
        except Exception as error:
            raise BadImageError(
                f"{path} is not read: {first_line(error)}, and only arrays are expected. Fetch "
                f"{_HOST} again"
            ) from error
    if not isinstance(found, dict):
        raise BadImageError(f"{path} holds no table of batches. Fetch {_HOST} again")
    return {_text(key): value for key, value in found.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _md5(path: Path) -> str:
    # The publisher's sum: it tells another file from theirs, and guards nothing.
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _field(path: Path, table: Mapping[str, Any], key: str) -> Any:
    if key not in table:
        raise BadImageError(
            f"{path} has no {key!r}; it has {', '.join(sorted(table)) or 'nothing'}. Fetch the "
            f"dataset's python version"
        )
    return table[key]


def _rows(path: Path, batch: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3072) uint8 and (n,) int64 of a batch."""
    data, labels = _field(path, batch, "data"), _field(path, batch, key)
    form = (getattr(data, "dtype", None), getattr(data, "shape", ())[1:])
    if form != (np.dtype(np.uint8), (3 * _SIDE**2,)) or not isinstance(labels, list):
        raise BadImageError(f"{path} does not hold rows of {3 * _SIDE**2} bytes with their labels")
    if len(data) != len(labels) or not all(isinstance(one, int) for one in labels):
        raise BadImageError(
            f"{path} holds {len(data)} images and {len(labels)} labels, which must be as many "
            f"integers. Fetch the dataset again"
        )
    return data, np.array(labels, np.int64)
