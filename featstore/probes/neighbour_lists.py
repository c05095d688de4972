"""Lists of nearest train rows, made once for all protocols of a task and kept beside its cells."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import array_api_compat
import array_api_compat.numpy
import numpy as np
import xxhash

from featstore.backend import Array, to_device, to_host
from featstore.blocks import reduce_blocks
from featstore.errors import ProbeError
from featstore.kernels import cuda_neighbours
from featstore.kernels.neighbours import Neighbours, check_rows, merge_nearest, nearest
from featstore.kernels.search import Bank, search
from featstore.probes.data import Data, Task
from featstore.probes.rows import HOLD_BYTES, JoinedRows, Prepared, on_host, prepared

logger = logging.getLogger(__name__)


class Search:
    """Train rows near test rows; the longest lists are kept for the whole task, and on the disk.

    Parameters
    ----------
    task : its `lists` is the folder to keep them in, if any
    metric, normalisation : as a protocol has them
    """

    def __init__(self, task: Task, metric: str, normalisation: str) -> None:
        self.task, self.metric, self.normalisation = task, metric, normalisation
        self.edges = np.cumsum([0, *task.test.sizes])

    def nearest(self, number: int, k: int) -> Neighbours:
        """Values and positions (q, k) of the nearest train rows to a block of test rows."""
        value, index = self._lists(k)
        span = slice(self.edges[number], self.edges[number + 1])
        xp = self.task.xp
        return to_device(value[span, :k], xp), to_device(index[span, :k], xp)

    def _lists(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        key = ("neighbours", self.metric, self.normalisation)
        known = self.task.cache.get(key)
        if known is None and self.task.lists is not None:
            known = read_lists(self._file(self.task.lists), len(self.task.test))
        if known is None or known[0].shape[1] < k:
            try:
                known = self._search(k)
            except ValueError as error:  # of rows that no distance is defined for
                raise ProbeError(str(error)) from error
            if self.task.lists is not None:
                write_lists(self._file(self.task.lists), *known)
        self.task.cache[key] = known
        return known

    def _file(self, folder: Path) -> Path:
        return folder.with_name(f"{self.metric}-{self.normalisation}-{folder.name}.npz")

    def _search(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        task, xp = self.task, self.task.xp
        if array_api_compat.is_numpy_namespace(xp):
            bank = Bank(task.train.sizes, self._reader(task.train, "train"), self.metric)
            return search(bank, self._read_all(task.test, "test"), k=k)
        if array_api_compat.is_cupy_namespace(xp) and k <= cuda_neighbours.MOST_K:
            value, index = cuda_neighbours.nearest_cuda(
                JoinedRows(task.train.sizes, self._reader(task.train, "train"), task.train.width),
                self._read_all(task.test, "test"),
                k=k,
                metric=self.metric,
                memory=task.memory,
            )
            return to_host(value), to_host(index)
        starts = np.cumsum([0, *task.train.sizes]).tolist()
        blocks = list(zip(starts, prepared(task, task.train, self.normalisation), strict=False))
        found = []
        for block in prepared(task, task.test, self.normalisation):
            make = partial(_search_block, queries=block.read()[0], k=k, metric=self.metric, xp=xp)
            merge = partial(merge_nearest, k=k, metric=self.metric, xp=xp)
            found.append(reduce_blocks(make, blocks, merge, parallel=task.parallel))
        value, index = (np.concatenate([to_host(one[i]) for one in found]) for i in (0, 1))
        return value, index

    def _reader(self, data: Data, name: str) -> Callable[[int], np.ndarray]:
        """Rows of a block, checked; in memory if all of them fit, since they are read often."""
        plain = self.normalisation == "none" or (
            self.normalisation == "l2" and self.metric == "cosine"  # which divides by norms itself
        )
        blocks = on_host(prepared(self.task, data, self.normalisation))
        starts = np.cumsum([0, *data.sizes]).tolist()

        def read(i: int) -> np.ndarray:
            rows = (data.blocks[i] if plain else blocks[i]).read()[0]
            check_rows(name, rows, self.metric, first=starts[i], xp=array_api_compat.numpy)
            return rows

        itemsize = data.dtype.itemsize if plain else 8
        if len(data) * data.width * itemsize > HOLD_BYTES:
            return read
        held = [read(i) for i in range(len(blocks))]
        return lambda i: held[i]

    def _read_all(self, data: Data, name: str) -> np.ndarray:
        read = self._reader(data, name)
        return np.concatenate([read(i) for i in range(len(data.blocks))])


def _search_block(
    block: tuple[int, Prepared], *, queries: Array, k: int, metric: str, xp: object
) -> Neighbours:
    first, rows = block
    return nearest(rows.read()[0], queries, k=k, metric=metric, first=first, xp=xp)


def read_lists(file: Path, queries: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Lists (q, k) of values and rows as they were written, or None if there are none to trust."""
    try:
        with file.open("rb") as opened, np.load(opened) as kept:
            value, index, digest = kept["value"], kept["index"], int(kept["digest"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s), and is made again", file, error)
        return None
    if digest != _digest(value, index) or len(value) != queries:
        logger.warning("%s is not what was written, and is made again", file)
        return None
    return value, index.astype(np.int64)


def write_lists(file: Path, value: np.ndarray, index: np.ndarray) -> None:
    """Keep lists, whole or not at all; a disk that is full is no reason to lose a score."""
    index = index.astype(np.int32) if index.max(initial=0) < 2**31 else index
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            np.savez(out, value=value, index=index, digest=np.uint64(_digest(value, index)))
        part.replace(file)
    except OSError as error:
        if part.exists():
            part.unlink()
        logger.warning("neighbour lists are not kept, %s: %s", file, error)


def _digest(value: np.ndarray, index: np.ndarray) -> int:
    found = xxhash.xxh3_64(np.ascontiguousarray(value).data)
    found.update(np.ascontiguousarray(index).data)
    return found.intdigest()
