"""Rows of a split as a protocol reads them: normalised, kept in memory, joined over blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from featstore.backend import to_device
from featstore.blocks import ArrayBlock, Block, Rows
from featstore.kernels.scale import l2_normalise, zscore
from featstore.probes.data import Data, Task

NORMALISATIONS = ("none", "l2", "zscore", "zscore-own")

HOLD_BYTES = 2 * 2**30
"""A probe that reads its rows many times keeps them in memory up to this size."""

HELD_SHARE = 8
"""Of a GPU's memory, one such share at most is for rows that are kept so."""


@dataclass(frozen=True)
class Prepared:
    """A block whose rows come normalised, in float64, on the device.

    Attributes
    ----------
    mean, variance : (d,) of the normalisation, or None for none
    rows : positions to take, or None for all
    unit : divide rows by their norm
    """

    block: Block
    xp: Any
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    rows: np.ndarray | None = None
    unit: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `read` gives."""
        return np.dtype(np.float64)

    def read(self) -> Rows:
        """Features (n, d) float64 and labels (n,), both on the device."""
        features, labels = self.block.read()
        if self.rows is not None:
            features, labels = features[self.rows], labels[self.rows]
        x = self.xp.astype(to_device(features, self.xp), self.xp.float64)
        if self.mean is not None and self.variance is not None:
            mean, variance = to_device(self.mean, self.xp), to_device(self.variance, self.xp)
            x = zscore(x, mean, variance, xp=self.xp)
        if self.unit:
            x = l2_normalise(x, xp=self.xp)
        return x, to_device(labels, self.xp)


def prepared(
    task: Task, data: Data, normalisation: str, keep: np.ndarray | None = None
) -> list[Prepared]:
    """Blocks of a split, normalised; `keep` is an (n,) mask of rows to take.

    `zscore` is by the train split's moments, `zscore-own` by the split's own (transductive).
    """
    own = {"none": None, "l2": None, "zscore": task.train, "zscore-own": data}[normalisation]
    mean, variance = (own.mean, own.variance) if own else (None, None)
    edges = np.cumsum([0, *data.sizes])
    return [
        Prepared(
            block,
            task.xp,
            mean,
            variance,
            None if keep is None else np.flatnonzero(keep[edges[i] : edges[i + 1]]),
            unit=normalisation == "l2",
        )
        for i, block in enumerate(data.blocks)
    ]


def on_host(blocks: Sequence[Prepared]) -> list[Prepared]:
    """The same rows as numpy arrays, whatever the device: any thread may read them."""
    return [replace(block, xp=array_api_compat.numpy) for block in blocks]


class JoinedRows:
    """Rows of all blocks as one array of the host, of which a slice reads what it needs.

    Parameters
    ----------
    sizes : rows in each block, at least one block
    read : rows (n, width) of a block by its number, from several threads at a time
    """

    def __init__(self, sizes: Sequence[int], read: Callable[[int], np.ndarray], width: int) -> None:
        self.edges, self.read = np.cumsum([0, *sizes]), read
        self.shape, self.dtype = (int(self.edges[-1]), width), read(0).dtype

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self.shape[0])
        if start >= stop:
            return np.empty((0, self.shape[1]), self.dtype)
        first = int(np.searchsorted(self.edges, start, side="right")) - 1
        last = int(np.searchsorted(self.edges, stop, side="left"))
        rows = np.concatenate([self.read(i) for i in range(first, last)])
        return rows[start - self.edges[first] : stop - self.edges[first]]


def held(blocks: Sequence[Prepared], data: Data, task: Task) -> Sequence[Block]:
    """The blocks in memory if they fit, for probes that pass over them many times."""
    most = HOLD_BYTES
    if task.memory is not None and array_api_compat.is_cupy_namespace(task.xp):
        most = min(most, task.memory // HELD_SHARE)
    if len(data) * data.width * 8 > most:
        return blocks
    return [ArrayBlock(*block.read()) for block in blocks]
