"""Rows on disk in any order: what a permutation needs that is larger than memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_BYTES = 8 * 2**20
"""Bytes of rows that are read at once."""


def block_rows(width: int, itemsize: int) -> int:
    """Rows that make up a block."""
    return max(1, BLOCK_BYTES // max(1, width * itemsize))


class Spool:
    """(n, width) rows in a file without a name, so that a process that is killed leaves nothing."""

    def __init__(self, beside: Path, width: int, dtype: str) -> None:
        places = (place for place in (beside, *beside.parents) if place.is_dir())
        self._file: Any = tempfile.TemporaryFile(dir=next(places))  # noqa: SIM115  # closed below
        self._width, self._dtype = width, np.dtype(dtype)
        self._row = width * self._dtype.itemsize

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, positions: Iterable[int], rows: np.ndarray) -> None:
        """Write (m, width) rows, each at its position."""
        stored = np.ascontiguousarray(rows, dtype=self._dtype)
        for position, row in zip(positions, stored, strict=True):
            os.pwrite(self._file.fileno(), row.tobytes(), int(position) * self._row)

    def append(self, rows: np.ndarray) -> None:
        """Write (m, width) rows behind those appended before."""
        stored = np.ascontiguousarray(rows, dtype=self._dtype)
        self._file.write(stored.tobytes())
        self._file.flush()

    def take(self, positions: Iterable[int]) -> np.ndarray:
        """(m, width) rows at these positions.

        Read one by one: a mapped file would count as memory, page by page, until all of it does.
        """
        handle = self._file.fileno()
        data = b"".join(os.pread(handle, self._row, int(p) * self._row) for p in positions)
        return np.frombuffer(data, self._dtype).reshape(-1, self._width)

    def blocks(self, n: int) -> Iterator[np.ndarray]:
        """The first n rows, block by block."""
        step = block_rows(self._width, self._dtype.itemsize)
        for start in range(0, n, step):
            rows = min(step, n - start)
            data = os.pread(self._file.fileno(), rows * self._row, start * self._row)
            yield np.frombuffer(data, self._dtype).reshape(rows, self._width)
