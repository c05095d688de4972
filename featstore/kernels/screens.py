"""Rough scores of all pairs by the fastest matrix product at hand, with a bound on their error.

A score is q.x + b: an inner product of two centred rows, and an offset of the bank's row. A screen
computes it for a block of queries and a tile of a bank, rounded to whatever its product takes, and
says how far off it can be at most. What it leaves out by that bound cannot be among the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_U32 = 2.0**-24  # unit roundoffs
_U16 = 2.0**-8
_TINY = 2.0**-100  # so that a bound of numbers that underflow is none of 0


@dataclass(frozen=True)
class Coded:
    """Rows as a screen's product takes them.

    Attributes
    ----------
    codes : what is multiplied ; offset : (t,) float32 of a tile, None of queries
    scale : what codes are multiplied by: (t,) of a tile, one number of queries
    error : (n,) float64, bound of the norm of what rounding took from each row
    norm : (n,) float64, bound of the norm of each row
    """

    codes: Any
    offset: Any
    scale: Any
    error: np.ndarray
    norm: np.ndarray

    def part(self, start: int, stop: int) -> Coded:
        """Some of the queries."""
        rows = slice(start, stop)
        return Coded(self.codes[rows], None, self.scale, self.error[rows], self.norm[rows])


class Screen(Protocol):
    """One way to compute rough scores."""

    name: str
    keeps: bool
    """Whether coded tiles are worth keeping: they are smaller than the rows."""

    def queries(self, rows: np.ndarray) -> Coded:
        """(q, d) float32 rows as its product takes them."""

    def tile(self, rows: np.ndarray, offset: np.ndarray) -> Coded:
        """(t, d) float32 rows and their (t,) float64 offsets."""

    def scores(self, queries: Coded, tile: Coded, out: dict[Any, Any]) -> np.ndarray:
        """(q, t) scores: float32, or bfloat16 as int16; `out` keeps buffers from call to call."""

    def lift(self, queries: Coded, tile: Coded) -> np.ndarray | float:
        """(t,) what it adds to the scores of a tile, so that `bound` need not cover it."""

    def bound(self, queries: Coded, tile: Coded) -> np.ndarray:
        """(q,) float64: no score of the tile is off by more, rounding of the output left aside."""


def _bound(queries: Coded, tile: Coded, rounding: float) -> np.ndarray:
    """Cauchy and Schwarz: |q.x - q'.x'| <= |q - q'| |x| + |q| |x - x'| + |q - q'| |x - x'|.

    `rounding` bounds what summing costs, relative to |q| |x| + |b|.
    """
    error, norm = tile.error.max(initial=0.0), tile.norm.max(initial=0.0)
    offset = float(np.abs(tile.offset).max(initial=0.0))
    lost = queries.error * (norm + error) + queries.norm * error
    return np.asarray(lost + rounding * (queries.norm * norm + offset) + _TINY)


class Float32:
    """Single precision: as good as exact, and everywhere."""

    name = "float32"
    keeps = False

    def queries(self, rows: np.ndarray) -> Coded:
        """Rows as its product takes them."""
        return Coded(rows, None, 1.0, np.zeros(len(rows)), _norms(rows))

    def tile(self, rows: np.ndarray, offset: np.ndarray) -> Coded:
        """Rows and offsets as its product takes them."""
        return Coded(rows, offset.astype(np.float32), 1.0, np.zeros(len(rows)), _norms(rows))

    def scores(self, queries: Coded, tile: Coded, out: dict[Any, Any]) -> np.ndarray:
        """Scores, in a buffer that the next call overwrites."""
        found = _buffer(out, (len(queries.codes), len(tile.codes)), np.float32)
        torch.mm(
            torch.from_numpy(queries.codes),
            torch.from_numpy(tile.codes).T,
            out=torch.from_numpy(found),
        )
        if tile.offset.any():
            found += tile.offset
        return found

    def lift(self, queries: Coded, tile: Coded) -> float:
        """What it adds to scores."""
        return 0.0

    def bound(self, queries: Coded, tile: Coded) -> np.ndarray:
        """How far off a score can be."""
        return _bound(queries, tile, (queries.codes.shape[1] + 8) * _U32)


class BFloat16:
    """Products of two numbers of eight bits, summed in single precision.

    The offset is three more columns, each what the one before lost of it.
    """

    name = "bfloat16"
    keeps = True

    def queries(self, rows: np.ndarray) -> Coded:
        """Rows as its product takes them."""
        return self._coded(rows, np.ones((len(rows), 3), np.float32), None)

    def tile(self, rows: np.ndarray, offset: np.ndarray) -> Coded:
        """Rows and offsets as its product takes them."""
        left, columns = torch.from_numpy(offset), []
        for _ in range(3):
            columns.append(left.bfloat16())
            left = left - columns[-1].double()
        return self._coded(rows, torch.stack(columns, 1).float().numpy(), offset)

    def _coded(self, rows: np.ndarray, more: np.ndarray, offset: np.ndarray | None) -> Coded:
        width = -(-(rows.shape[1] + 3) // 32) * 32  # matrix units take columns by 32
        codes = torch.zeros((len(rows), width), dtype=torch.bfloat16)
        codes[:, : rows.shape[1]] = torch.from_numpy(rows)
        error = _norms(rows - codes[:, : rows.shape[1]].float().numpy())
        codes[:, rows.shape[1] : rows.shape[1] + 3] = torch.from_numpy(more)
        offset = None if offset is None else offset.astype(np.float32)
        return Coded(codes, offset, 1.0, error, _norms(rows))

    def scores(self, queries: Coded, tile: Coded, out: dict[Any, Any]) -> np.ndarray:
        """Scores, in a buffer that the next call overwrites."""
        found = _buffer(out, (len(queries.codes), len(tile.codes)), np.int16)
        into = torch.from_numpy(found).view(torch.bfloat16)
        torch.mm(queries.codes, tile.codes.T, out=into)
        return found

    def lift(self, queries: Coded, tile: Coded) -> float:
        """What it adds to scores."""
        return 0.0

    def bound(self, queries: Coded, tile: Coded) -> np.ndarray:
        """How far off a score can be."""
        # Some units flush what is below the normal numbers, which the last term covers.
        width = queries.codes.shape[1]
        return np.asarray(_bound(queries, tile, (width + 64) * _U32 + 2.0**-22) + width * 2.0**-126)


class Int8:
    """Products of integers of eight bits, whose sums are exact.

    A row of the bank has its own scale, a block of queries one: so let those of a block be alike.
    """

    name = "int8"
    keeps = True

    def queries(self, rows: np.ndarray) -> Coded:
        """Rows as its product takes them."""
        most = float(np.abs(rows).max(initial=0.0))
        scale = float(np.float32(most / 127)) or 1.0
        codes, error = _integers(torch.from_numpy(rows), torch.tensor(scale, dtype=torch.float32))
        return Coded((codes + 128).to(torch.uint8), None, scale, error, _norms(rows))

    def tile(self, rows: np.ndarray, offset: np.ndarray) -> Coded:
        """Rows and offsets as its product takes them."""
        x = torch.from_numpy(rows)
        scale = x.abs().amax(1) / 127
        scale[scale == 0] = 1
        codes, error = _integers(x, scale[:, None])
        packed = torch.ops.onednn.qlinear_prepack(codes.to(torch.int8), None)
        return Coded(packed, offset.astype(np.float32), scale, error, _norms(rows))

    def scores(self, queries: Coded, tile: Coded, out: dict[Any, Any]) -> np.ndarray:
        """Scores, in a buffer that the next call overwrites."""
        zero = out.setdefault("zero", {})
        n = len(tile.scale)
        if n not in zero:
            zero[n] = torch.zeros(n, dtype=torch.int32)
        offset = torch.from_numpy((tile.offset + self.lift(queries, tile)).astype(np.float32))
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            queries.codes, queries.scale, 128, tile.codes, tile.scale, zero[n],
            offset, 1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return np.asarray(found.view(torch.int16).numpy())

    def lift(self, queries: Coded, tile: Coded) -> np.ndarray:
        """What it adds to scores."""
        # What a row of the bank lost can cost a score; rows lose unlike much, so one by one.
        return np.asarray(queries.norm.max(initial=0.0) * tile.error)

    def bound(self, queries: Coded, tile: Coded) -> np.ndarray:
        """How far off a score can be."""
        norm, error = tile.norm.max(initial=0.0), tile.error.max(initial=0.0)
        offset = float(np.abs(tile.offset).max(initial=0.0))
        summed = 2.0**-20 * (queries.norm * norm + offset + queries.norm.max(initial=0.0) * error)
        return np.asarray(queries.error * (norm + error) + summed + _TINY)


def _integers(rows: Tensor, scale: Tensor) -> tuple[Tensor, np.ndarray]:
    """Nearest multiples of a scale, as float32, and the norms of what is lost."""
    codes = torch.round(rows / scale).clamp_(-127, 127)
    lost = torch.addcmul(rows, codes, scale.expand_as(rows), value=-1.0)
    # The product above is rounded too.
    return codes, _norms(lost.numpy()) + 2.0**-22 * _norms(rows.numpy())


def _norms(rows: np.ndarray) -> np.ndarray:
    """(n,) float64, at least the norm of each row, and hardly more."""
    square = np.einsum("ij,ij->i", rows, rows)
    # A sum of d squares is off by a relative (d + 1) roundings at most, its root by half of that.
    slack = 1 + (rows.shape[1] + 4) * _U32
    return np.asarray(np.sqrt(square.astype(np.float64)) * slack + 2.0**-60)


def _buffer(out: dict[Any, Any], shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """An array to write into, the same one for the same shape: fresh memory costs page faults."""
    key = shape, np.dtype(dtype).str
    if key not in out:
        out[key] = np.empty(shape, dtype)
    found: np.ndarray = out[key]
    return found


def above(scores: np.ndarray, least: np.ndarray, out: dict[Any, Any]) -> np.ndarray:
    """Flat places in ascending order of scores (q, t) that may be at least `least` (q,) float64.

    bfloat16 scores are compared as the integers they are, and `least` is lowered by all that
    rounding the output can cost.
    """
    mask = _buffer(out, scores.shape, np.bool_)
    if scores.dtype == np.float32:
        low = np.nextafter(least.astype(np.float32), np.float32(-np.inf))
        np.greater_equal(scores, low[:, None], out=mask)
    else:
        whole = torch.from_numpy(_lowered(least)).bfloat16().view(torch.int16).numpy()
        # Integers rank floats of positive sign as the floats do, those of negative sign backwards.
        for rows, positive in ((whole >= 0, True), (whole < 0, False)):
            if rows.all():
                _compare(scores, whole, positive, mask)
            elif rows.any():
                part = np.empty((int(rows.sum()), scores.shape[1]), bool)
                _compare(scores[rows], whole[rows], positive, part)
                mask[rows] = part
    return np.flatnonzero(mask)


def lowered(least: np.ndarray, screen: Screen) -> np.ndarray:
    """(q,) float32 that a screen's score is not below where it is not below `least` (q,) float64,
    rounding of the output included.
    """
    if isinstance(screen, Float32):
        return np.nextafter(least.astype(np.float32), np.float32(-np.inf))
    return floats(torch.from_numpy(_lowered(least)).bfloat16().view(torch.int16).numpy())


def _lowered(least: np.ndarray) -> np.ndarray:
    return np.asarray(least - np.abs(least) * 2 * _U16 - 2.0**-120)


def _compare(scores: np.ndarray, least: np.ndarray, positive: bool, out: np.ndarray) -> None:
    if positive:
        np.greater_equal(scores, least[:, None], out=out)
    else:
        np.less_equal(scores.view(np.uint16), least.view(np.uint16)[:, None], out=out)


def floats(scores: np.ndarray) -> np.ndarray:
    """Scores as float32."""
    if scores.dtype == np.float32:
        return scores
    return np.left_shift(scores.view(np.uint16).astype(np.uint32), 16).view(np.float32)


@cache
def fastest() -> Screen:
    """The screen to use on this machine, by timing a tile of each; never by a processor's name.

    All give the same neighbours bit for bit, so that an unlucky choice costs time alone.
    """
    rows = np.random.default_rng(0).normal(size=(1024, 512)).astype(np.float32)
    screens: list[Screen] = [BFloat16(), Int8()]
    right = [Float32(), *(one for one in screens if _is_right(one))]
    coded = [(one, one.queries(rows), one.tile(rows, np.zeros(len(rows)))) for one in right]
    least: dict[str, float] = {}
    out: dict[Any, Any] = {}
    for _ in range(6):  # in turns, so that what else the machine does falls on all
        for screen, queries, tile in coded:
            begun = time.perf_counter()
            screen.scores(queries, tile, out)
            took = time.perf_counter() - begun
            least[screen.name] = min(took, least.get(screen.name, took))
    best = right[0]
    for screen in right[1:]:
        # A wider band costs more exact products afterwards, so it has to be much faster.
        if least[screen.name] * 1.5 < least[best.name]:
            best = screen
    return best


def _is_right(screen: Screen) -> bool:
    """Whether it can be had here, and does not saturate, as some integer units do."""
    rows = np.ones((64, 512), np.float32)
    rows[:, ::2] *= np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    try:
        queries, tile = screen.queries(rows), screen.tile(rows, np.ones(64))
        found = floats(screen.scores(queries, tile, {})) - screen.lift(queries, tile)
    except (RuntimeError, AttributeError, NotImplementedError):  # an operation torch lacks here
        return False
    exact = rows.astype(np.float64) @ rows.T.astype(np.float64) + 1
    far = screen.bound(queries, tile)[:, None] + screen.lift(queries, tile)
    far = far + (np.abs(exact) + screen.lift(queries, tile)) * _U16
    return bool((np.abs(found - exact) <= far).all())


SCREENS: dict[str, Callable[[], Screen]] = {
    "float32": Float32,
    "bfloat16": BFloat16,
    "int8": Int8,
}
