"""Passes over rows by which logistic regression is fitted, in memory or block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import array_api_compat.numpy
import numpy as np
from array_api_compat import is_cupy_namespace, is_numpy_namespace

from featstore.backend import Array, to_device, to_host
from featstore.blocks import Block, reduce_blocks
from featstore.cuda import Cuda, Device
from featstore.errors import ProbeError
from featstore.kernels.cuda_softmax import CudaSoftmax
from featstore.kernels.descent import SOLVER_ARRAYS, Basis, Evaluate, sample_step
from featstore.kernels.host_rows import HostRows
from featstore.kernels.softmax import Sums, category_sums, sigmoid_sums, softmax_sums
from featstore.probes.data import Data, Task
from featstore.probes.rows import HELD_SHARE, JoinedRows, Prepared, held, on_host

_WORTH_SINGLE = 2**24  # rows x features x categories from which float32 pays


@dataclass(frozen=True)
class Passes:
    """What a fit needs of its rows.

    Attributes
    ----------
    n : rows
    exact, quick : `Evaluate` in float64 and, where it pays, in about the digits of float32
    basis : coordinates to solve in
    xp : namespace of the arrays that both take and give
    """

    n: int
    exact: Evaluate
    quick: Evaluate | None
    basis: Basis
    xp: Any = array_api_compat.numpy

    @property
    def options(self) -> dict[str, Any]:
        """What a fit by these passes is to be told."""
        return {"basis": self.basis, "quick": self.quick, "xp": self.xp}

    @classmethod
    def over(
        cls, blocks: Sequence[Prepared], data: Data, task: Task, *, weights: int = 1
    ) -> Passes:
        """Of rows in memory if they fit, else block by block; `data` is what they are part of.

        `weights` are so many as fits by these passes leave.
        """
        rows = held(blocks, data, task)
        if rows is not blocks and is_numpy_namespace(task.xp):
            x, y = (np.concatenate(part) for part in zip(*(b.read() for b in rows), strict=True))
            if y.ndim == 2 or np.any(y != y[0]):
                host = HostRows(x, y, task.n_categories)
                pays = x.size * task.n_categories >= _WORTH_SINGLE
                return cls(len(x), host.exact, host.quick if pays else None, host.basis)
        kept = zip(blocks, data.sizes, strict=True)
        sizes = [size if block.rows is None else len(block.rows) for block, size in kept]
        n = sum(sizes)
        step, sample, seen = sample_step(n, data.width), [], 0
        sums = np.zeros((data.width + 1, task.n_categories))
        for x, y in (block.read() for block in rows):
            sample.append(to_host(x[-seen % step :: step, :]))  # the same rows in any division
            sums += to_host(category_sums(x, y, task.n_categories, xp=task.xp))
            seen += x.shape[0]
        basis = replace(Basis.of(np.concatenate(sample)), sums=sums)
        exact, xp, quick = partial(evaluate, rows=rows, task=task), task.xp, None
        if is_cupy_namespace(task.xp) and not task.multi_label:
            quick, xp = gpu_passes(blocks, sizes, data, task, Cuda(), weights=weights)
        return cls(n, exact, quick, basis, xp)


def gpu_passes(
    blocks: Sequence[Prepared],
    sizes: Sequence[int],
    data: Data,
    task: Task,
    gpu: Device,
    *,
    weights: int = 1,
) -> tuple[Evaluate, Any]:
    """Passes by products of halves, within the task's memory, and where their solver is to work.

    On the GPU too if what it remembers, and the weights it leaves, take half of the memory at most;
    else on the host.

    Raises
    ------
    ProbeError
        The memory is too small.
    """
    memory = gpu.free_memory() * 4 // 5
    if task.memory is not None:
        memory = task.memory - task.memory // HELD_SHARE
    solver = (SOLVER_ARRAYS + weights) * 8 * (data.width + 1) * task.n_categories
    there = 2 * solver <= memory
    stored = on_host(blocks)
    plain = all(block.mean is None and not block.unit for block in blocks)

    def read(i: int) -> np.ndarray:
        block = stored[i]
        if not plain:
            return block.read()[0]
        features = block.block.read()[0]  # float16 as it is takes half of the GPU's memory
        return features if block.rows is None else features[block.rows]

    kept = zip(blocks, np.split(data.labels, np.cumsum(data.sizes)[:-1]), strict=True)
    labels = np.concatenate([y if block.rows is None else y[block.rows] for block, y in kept])
    try:
        quick = CudaSoftmax(
            JoinedRows(sizes, read, data.width),
            labels,
            n_categories=task.n_categories,
            memory=memory - solver if there else memory,
            device=gpu,
        )
    except ValueError as error:  # the memory is too small
        raise ProbeError(str(error)) from error
    return quick, task.xp if there else array_api_compat.numpy


def evaluate(weight: Array, *, rows: Sequence[Block], task: Task) -> Sums:
    """`softmax_sums` of all rows, or `sigmoid_sums` where a row may have several labels.

    Arrays come as the weight does, whatever the device that they are made on.
    """
    sums = sigmoid_sums if task.multi_label else softmax_sums
    kernel = partial(_sums, weight=to_device(weight, task.xp), sums=sums, xp=task.xp)
    found = reduce_blocks(kernel, rows, _add, parallel=task.parallel)
    if isinstance(weight, np.ndarray):
        return float(found[0]), to_host(found[1]), to_host(found[2])
    return float(found[0]), found[1], found[2]


def _sums(block: Block, *, weight: Array, sums: Any, xp: Any) -> Sums:
    features, labels = block.read()
    found: Sums = sums(weight, features, labels, xp=xp)
    return found


def _add(a: Sums, b: Sums) -> Sums:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
