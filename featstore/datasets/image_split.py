"""One split of a labelled image dataset, whatever it is read from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from featstore.keys import canonical_json


@runtime_checkable
class BytesReader(Protocol):
    """A reader whose `content` is short of the images' bytes, and which can be asked for all."""

    def bytes_digest(self) -> str:
        """SHA-256 over every byte of every image, in hex; raises BadImageError."""


@dataclass(frozen=True)
class ImageSplit:
    """Images in the dataset's own order, with their labels.

    Attributes
    ----------
    dataset, name : the dataset's catalogue name and the split's, `train`, `val` or `test`
    sample_ids : n names, unique in the split, such as the path below the dataset's root
    labels : (n,) int64, each in 0..len(categories)-1; of a multi-label dataset
        (n, len(categories)) int8: 1 present, 0 absent, -1 not to be counted
    categories : names of the categories, in the order of their labels
    read : position in 0..n-1 -> RGB image; picklable, for loader processes; raises BadImageError;
        may be a `BytesReader`
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

    def __post_init__(self) -> None:
        if self.labels.ndim == 2:
            shape = (len(self.sample_ids), len(self.categories))
            if self.labels.shape != shape or self.labels.dtype != np.int8:
                raise ValueError(
                    f"labels of a multi-label split must be {shape} int8, got {self.labels.shape} "
                    f"{self.labels.dtype}"
                )

    def __len__(self) -> int:
        return len(self.sample_ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content, the names, the labels and the categories, in hex."""
        parts = [self.content, list(self.sample_ids), list(self.categories)]
        if self.labels.ndim == 2:
            parts.append("multi-label")  # else the bytes of n x 8 labels could pass for n labels
        labels = np.ascontiguousarray(self.labels, dtype="<i8" if self.labels.ndim == 1 else "i1")
        return hashlib.sha256(canonical_json(parts) + labels.tobytes()).hexdigest()

    @cached_property
    def bytes_digest(self) -> str:
        """SHA-256 over every byte of every image, in hex: each file is read, once.

        The content itself where that is made of all bytes already.

        Raises
        ------
        BadImageError
            A file cannot be read.
        """
        return self.read.bytes_digest() if isinstance(self.read, BytesReader) else self.content


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
