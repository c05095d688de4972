"""Losses and gradients of multinomial logistic regression on a GPU, by products of halves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from featstore.cuda import Array, Cuda, Device

_TILE_ROWS = 8192
_FEWEST_ROWS = 256
_LOW = 2.0**-11  # what the second half of a number is to be multiplied by
_RESIDUAL = 2.0**14  # what a residual was multiplied by
_TOP = 14  # exponent of the largest number before it becomes two halves


class CudaSoftmax:
    """Evaluations of the summed cross-entropy of one set of rows, for a solver on the host.

    An instance is an `Evaluate` of `kernels.logistic`: weight (d+1, c) float64 -> loss, gradient
    (d+1, c) float64 and the sum of p (1 - p) of each category (c,) float64.

    Rows stay on the GPU where they fit into the memory, and are staged anew for each evaluation
    where they do not. A weight and a residual enter products as two halves of 11 bits each, times
    powers of two: 22 bits, as good as float32's 24 beside the rounding of its sums. Rows of float16
    are exact as they are, which makes two products each for logits and gradient; others are taken
    as two halves as well, which makes three. Products are summed in float32 over a tile, losses and
    tiles in float64, in one order: two evaluations of one weight are the same bit for bit.

    Parameters
    ----------
    features : (n, d) floating, finite, n >= 1: a numpy or cupy array, or what else has a shape and
        a dtype and gives numpy rows for a slice, from several threads at a time; float64 is
        rounded to float32
    labels : (n,) integer, each in 0..n_categories-1, on the host
    n_categories : number of categories c
    memory : most bytes to use on the GPU; None is four fifths of what is free
    device : where to compute; None is the current GPU

    Raises
    ------
    ValueError
        Shapes do not fit, a label or a feature is out of range, or memory is too small.
    """

    def __init__(
        self,
        features: Any,
        labels: np.ndarray,
        *,
        n_categories: int,
        memory: int | None = None,
        device: Device | None = None,
    ) -> None:
        labels = np.asarray(labels)
        n, width = features.shape
        if labels.shape != (n,) or n == 0:
            raise ValueError(f"labels must be (n,) of {n} rows, at least 1, got {labels.shape}")
        if labels.min() < 0 or labels.max() >= n_categories:
            raise ValueError(
                f"labels must lie in 0..{n_categories - 1}, got {labels.min()}..{labels.max()}"
            )
        self.device = Cuda() if device is None else device
        self.features, self.n, self.width, self.c = features, n, width, n_categories
        self.stride = -(-(width + 1) // 8) * 8  # one column is 1, for the intercept
        self.columns = -(-n_categories // 8) * 8
        self.single = np.dtype(features.dtype) == np.float16
        self._take(self.device.free_memory() * 4 // 5 if memory is None else memory)
        self.labels = self.device.xp.asarray(labels.astype(np.int32))
        self.scale = 1.0 if self.single else self._scale()
        self._kept: list[tuple[int, list[Array]]] | None = None
        if self.resident:
            self._kept = [
                (start, [half.copy() for half in halves]) for start, halves in self._staged()
            ]

    def _take(self, memory: int) -> None:
        """Choose sizes within the memory, and allocate what an evaluation needs."""
        xp, pair = self.device.xp, 2 * self.columns
        row = self.stride * (2 if self.single else 4)  # as halves
        # Two staged blocks; to make halves of floats, four more of these while they are made.
        staged = 2 * row if self.single else 7 * row
        fixed = self.stride * (self.columns * 40 + pair * 8) + 4 * self.n
        rows = min(-(-self.n // 8) * 8, _TILE_ROWS)
        while (need := fixed + rows * (staged + pair * 6 + 16)) > memory and rows > _FEWEST_ROWS:
            rows = max(_FEWEST_ROWS, rows // 16 * 8)
        if need > memory:
            raise ValueError(
                f"memory of {memory} bytes is too small for {self.c} categories and rows of width "
                f"{self.width}: {need} are the least"
            )
        self.rows = rows
        self.resident = need + self.n * row <= memory
        self._weight = xp.zeros((pair, self.stride), dtype=xp.float16)
        self._logits = xp.empty((rows, pair), dtype=xp.float32)
        self._residuals = xp.empty((rows, pair), dtype=xp.float16)
        self._loss = xp.empty(rows, dtype=xp.float32)
        self._part = xp.empty((self.stride, pair), dtype=xp.float32)
        self._uncertain = xp.empty((-(-rows // 64), self.c), dtype=xp.float32)

    def __call__(self, weight: Array) -> tuple[float, Array, Array]:
        """Loss, gradient and uncertainties of a weight (d+1, c), each summed over all rows.

        Gradient and uncertainties are where the weight is: on the GPU or on the host.
        """
        xp = self.device.xp
        scale = self._put(weight)
        loss = xp.zeros((), dtype=xp.float64)
        gradient = xp.zeros((self.stride, self.c), dtype=xp.float64)
        uncertain = xp.zeros(self.c, dtype=xp.float64)
        for start, halves in self._staged() if self._kept is None else self._kept:
            n = halves[0].shape[0]
            self._residuals_of(start, halves, 1 / (scale * self.scale))
            loss += xp.sum(self._loss[:n], dtype=xp.float64)
            gradient += self._gradient_of(halves)
            uncertain += self._uncertain_of(n)
        gradient = gradient[: self.width + 1, :]
        if isinstance(weight, np.ndarray):
            to_host = self.device.to_host
            return float(loss), to_host(gradient), to_host(uncertain)
        return float(loss), gradient, uncertain

    def _put(self, weight: Array) -> float:
        """The weight on the device as two halves a number; what it was multiplied by."""
        xp = self.device.xp
        weight = xp.asarray(weight)
        scale = _power(float(xp.max(xp.abs(weight))))
        rows = weight.T * scale
        high = rows.astype(xp.float16)
        low = ((rows - high) / _LOW).astype(xp.float16)
        self._weight[: self.c, : self.width + 1] = high
        self._weight[self.columns : self.columns + self.c, : self.width + 1] = low
        return scale

    def _residuals_of(self, start: int, halves: list[Array], scale: float) -> None:
        """Losses of a tile's rows, and residuals p - [own category] as two halves each."""
        n, columns = halves[0].shape[0], self.columns
        logits = self._logits[:n, :]
        product = self.device.product
        product(halves[0], self._weight, logits, form="nt", scale=scale)
        if not self.single:
            out, scale = logits[:, :columns], scale * _LOW
            product(halves[1], self._weight[:columns, :], out, form="nt", scale=scale, add=True)
        labels = self.labels[start : start + n]
        args = logits, labels, n, self.c, 2 * columns, self._residuals, self._loss
        self.device.launch("residuals", (-(-n // 8),), 256, args)

    def _gradient_of(self, halves: list[Array]) -> Array:
        """Gradient (stride, c) of a tile, float64."""
        n, columns = halves[0].shape[0], self.columns
        residuals, scale = self._residuals[:n, :], 1 / (_RESIDUAL * self.scale)
        product = self.device.product
        product(halves[0], residuals, self._part, form="tn", scale=scale)
        if not self.single:
            out, scale = self._part[:, :columns], scale * _LOW
            product(halves[1], residuals[:, :columns], out, form="tn", scale=scale, add=True)
        high, low = self._part[:, : self.c], self._part[:, columns : columns + self.c]
        return high.astype(np.float64) + low * _LOW

    def _uncertain_of(self, n: int) -> Array:
        parts = -(-n // 64)
        args = self._residuals, n, self.c, 2 * self.columns, self._uncertain
        self.device.launch("uncertainties", (-(-self.c // 256), parts), 256, args)
        return self.device.xp.sum(self._uncertain[:parts, :], axis=0, dtype=np.float64)

    def _scale(self) -> float:
        """A power of two by which no feature leaves the range of halves."""
        xp = self.device.xp
        largest = xp.ones((), dtype=xp.float32)
        for _, rows in self._blocks():
            largest = xp.maximum(largest, xp.max(xp.abs(rows)))
        if not math.isfinite(float(largest)):
            raise ValueError("features must be finite, and some are NaN or infinite")
        return _power(float(largest))

    def _blocks(self) -> Iterator[tuple[int, Array]]:
        """Tiles of rows, and 1 after each, as float16 or float32 on the device."""
        spans = [(i, min(i + self.rows, self.n)) for i in range(0, self.n, self.rows)]
        dtype = np.float16 if self.single else np.float32
        xp, width = self.device.xp, self.width

        def fill(start: int, stop: int, out: Array) -> None:
            out[:, :width] = self.features[start:stop]
            out[:, width] = 1
            out[:, width + 1 :] = 0

        if not isinstance(self.features, np.ndarray) and isinstance(self.features[:0], xp.ndarray):
            for start, stop in spans:  # on the GPU already
                block = xp.empty((stop - start, self.stride), dtype=dtype)
                fill(start, stop, block)
                yield start, block
            return
        staged = self.device.stage(fill, spans, (self.rows, self.stride), dtype)
        yield from zip((start for start, _ in spans), staged, strict=True)

    def _staged(self) -> Iterator[tuple[int, list[Array]]]:
        """Tiles of rows as the halves that products take."""
        for start, rows in self._blocks():
            if self.single:
                yield start, [rows]
                continue
            scaled = rows * np.float32(self.scale)
            high = scaled.astype(np.float16)
            yield start, [high, ((scaled - high) / np.float32(_LOW)).astype(np.float16)]


def _power(largest: float) -> float:
    """The power of two that brings a number just below 2^14, kept within float32's range."""
    if largest == 0:
        return 1.0
    return 2.0 ** min(100, max(-100, _TOP - math.frexp(largest)[1]))
