"""Passes over rows by which logistic regression is fitted, in memory or block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import is_numpy_namespace

from featstore.backend import Array, to_device, to_host
from featstore.blocks import Block, reduce_blocks
from featstore.kernels.descent import Basis, Evaluate, sample_step
from featstore.kernels.host_rows import HostRows
from featstore.kernels.softmax import Sums, sigmoid_sums, softmax_sums
from featstore.probes.data import Data, Prepared, Task, held

_WORTH_SINGLE = 2**24  # rows x features x categories from which float32 pays


@dataclass(frozen=True)
class Passes:
    """What a fit needs of its rows.

    Attributes
    ----------
    n : rows
    exact, quick : `Evaluate` in float64 and, where it pays, in float32
    basis : coordinates to solve in
    """

    n: int
    exact: Evaluate
    quick: Evaluate | None
    basis: Basis

    @classmethod
    def over(cls, blocks: Sequence[Prepared], data: Data, task: Task) -> Passes:
        """Of rows in memory if they fit, else block by block; `data` is what they are part of."""
        rows = held(blocks, data)
        if rows is not blocks and is_numpy_namespace(task.xp):
            x, y = (np.concatenate(part) for part in zip(*(b.read() for b in rows), strict=True))
            if y.ndim == 2 or np.any(y != y[0]):
                host = HostRows(x, y, task.n_categories)
                pays = x.size * task.n_categories >= _WORTH_SINGLE
                return cls(len(x), host.exact, host.quick if pays else None, host.basis)
        kept = zip(blocks, data.sizes, strict=True)
        n = sum(size if block.rows is None else len(block.rows) for block, size in kept)
        step, sample, seen = sample_step(n, data.width), [], 0
        for x, _ in (block.read() for block in rows):
            sample.append(to_host(x[-seen % step :: step, :]))  # the same rows in any division
            seen += x.shape[0]
        basis = Basis.of(np.concatenate(sample))
        return cls(n, partial(evaluate, rows=rows, task=task), None, basis)


def evaluate(weight: np.ndarray, *, rows: Sequence[Block], task: Task) -> Sums:
    """`softmax_sums` of all rows, or `sigmoid_sums` where a row may have several labels."""
    sums = sigmoid_sums if task.multi_label else softmax_sums
    kernel = partial(_sums, weight=to_device(weight, task.xp), sums=sums, xp=task.xp)
    found = reduce_blocks(kernel, rows, _add, parallel=task.parallel)
    return float(found[0]), to_host(found[1]), to_host(found[2])


def _sums(block: Block, *, weight: Array, sums: Any, xp: Any) -> Sums:
    features, labels = block.read()
    found: Sums = sums(weight, features, labels, xp=xp)
    return found


def _add(a: Sums, b: Sums) -> Sums:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
