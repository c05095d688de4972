"""One split of a labelled image dataset, whatever it is read from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featstore.keys import canonical_json


@dataclass(frozen=True)
class ImageSplit:
    """Images in the dataset's own order, with their labels.

    Attributes
    ----------
    dataset, name : the dataset's catalogue name and the split's, `train`, `val` or `test`
    sample_ids : n names, unique in the split, such as the path below the dataset's root
    labels : (n,) int64, each in 0..len(categories)-1
    categories : names of the categories, in the order of their labels
    read : position in 0..n-1 -> RGB image; picklable, for loader processes; raises BadImageError
    content : hex digest that changes when an image does, as cheaply as the layout allows
        (names and sizes of files; bytes of arrays)
    """

    dataset: str
    name: str
    sample_ids: tuple[str, ...]
    labels: np.ndarray
    categories: tuple[str, ...]
    read: Callable[[int], Image.Image]
    content: str

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content, the names, the labels and the categories, in hex."""
        labels = np.ascontiguousarray(self.labels, dtype="<i8")
        parts = [self.content, list(self.sample_ids), list(self.categories)]
        return hashlib.sha256(canonical_json(parts) + labels.tobytes()).hexdigest()


@dataclass(frozen=True)
class ArrayImages:
    """Reader of images held in memory.

    Attributes
    ----------
    pixels : (n, height, width) or (n, height, width, 3) uint8
    """

    pixels: np.ndarray

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position."""
        return Image.fromarray(self.pixels[position]).convert("RGB")

    @property
    def content(self) -> str:
        """SHA-256 of shape and pixels, in hex."""
        head = str(self.pixels.shape).encode()
        return hashlib.sha256(head + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()
