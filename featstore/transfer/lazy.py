"""An array that is not yet read, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.transfer.spool import block_rows

Blocks = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Source:
    """An array that is not yet read.

    Attributes
    ----------
    where : its file, and its name in there
    shape : rows first ; dtype : in words
    blocks : starts reading its rows in order
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Blocks

    def read(self) -> np.ndarray:
        """All of it."""
        parts = list(self.blocks())
        return np.concatenate(parts) if parts else np.zeros(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def of_array(name: str, values: Any) -> Source:
    """Source of an array in memory, or of a list of names or numbers."""
    array = np.asarray(values)
    if array.dtype == object:  # strings, as pandas holds them
        array = np.array(array.tolist())
    steps = block_rows(int(np.prod(array.shape[1:])), array.itemsize)
    starts = range(0, len(array) if array.ndim else 0, steps)
    return Source(
        name, array.shape, str(array.dtype), lambda: (array[i : i + steps] for i in starts)
    )
