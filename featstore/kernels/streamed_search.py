"""The order of work of an exact search whose bank passes by once, whatever does the work.

A low-precision product screens each tile of the bank. What may still be among the k best is
measured exactly at once, while the tile is at hand, and joins the list of its query. Everything
dropped is provably worse than a threshold; at the end, a list stands if its last value reaches the
highest threshold that its query was given.

While rows are few, that threshold is the value at a rank that the k best of the whole bank would
hardly miss, were rows in random order; where they do miss it, because rows come sorted, say, the
query is searched for again with thresholds that cannot fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any

FIRST_ROWS = 128  # measured exactly for every query; then as many rows at a time as were seen
LAST_ROW = 2**31 - 1  # stands where a list has no row yet

_EXACT = 2.0**-52
_FLOAT = 2.0**-22  # four rounding units: of float32 where sums are cut off instead of rounded
_TINY = 2.0**-120
_WIDER = 1 + 2.0**-10  # for the rounding of the bounds themselves


@dataclass(frozen=True)
class Side:
    """Rows of the bank, or queries, and their low-precision copies, n each.

    Attributes
    ----------
    rows, halves : as the device keeps them
    norm, residual : (n,) float64 lengths of a row, and of what its copy times its scale lacks
    scale : (n,) float32 powers of two
    """

    rows: Array
    halves: Array
    norm: Array
    residual: Array
    scale: Array

    def part(self, which: Any) -> Side:
        """Some of the rows, by a slice or by positions."""
        return Side(
            self.rows[which],
            self.halves[which],
            self.norm[which],
            self.residual[which],
            self.scale[which],
        )

    def __len__(self) -> int:
        return int(self.norm.shape[0])


@dataclass(frozen=True)
class Screen:
    """What survives: queries and rows whose score x row_scale x column_scale + column_bias is not
    below the threshold. All float32: (q,), (q,), (n,), (n,).
    """

    row_scale: Array
    threshold: Array
    column_scale: Array
    column_bias: Array


@dataclass(frozen=True)
class Lists:
    """The best rows of each query so far.

    Attributes
    ----------
    value : (q, k) float64 similarities, descending; -inf where there is none yet
    row : (q, k) int32 positions in the bank, ascending among equal values
    overflow : (q,) int32, not 0 where candidates of a tile were too many to be kept
    """

    value: Array
    row: Array
    overflow: Array


class Searcher(Protocol):
    """Who does the work: three steps on one block of queries and one tile of the bank."""

    xp: Any
    most_candidates: int
    """Candidates of a query and a tile that can be kept, at least k."""

    def side(self, rows: Array) -> Side:
        """Low-precision copies of rows, and their lengths."""

    def screen(self, queries: Side, tile: Side, screen: Screen) -> Any:
        """Candidates: all rows of the tile that survive, in no order, and their number."""

    def measure(self, queries: Side, tile: Side, candidates: Any) -> Any:
        """Values of candidates, float64, each from its own two rows alone."""

    def keep(self, lists: Lists, candidates: Any, values: Any, first: int) -> None:
        """Put the k best of lists and candidates into the lists; tiles begin at row `first`."""


Tiles: TypeAlias = Callable[[], Iterable[tuple[int, Array]]]
"""One pass over the bank: position of a tile's first row, and its rows as the device has them."""


def search(
    searcher: Searcher,
    tiles: Tiles,
    queries: Array,
    *,
    k: int,
    metric: str,
    n_rows: int,
    width: int,
    query_rows: int,
) -> tuple[Array, Array]:
    """The k best rows of a bank for each query, exactly; ties go to the lower row.

    Parameters
    ----------
    searcher : does the work
    tiles : passes over the bank; one pass, and two more where lists fail
    queries : (q, .) rows on the device, q >= 1
    k : at most n_rows and the searcher's `most_candidates`
    metric : `inner`, `cosine` or `euclidean`
    n_rows, width : of the bank
    query_rows : most queries the searcher takes at a time

    Returns
    -------
    value : (q, k) float64 similarity, or minus the distance ; row : (q, k) int32

    Raises
    ------
    ValueError
        A row of the bank, or a query, holds what is not finite.
    """
    xp = searcher.xp
    every = searcher.side(queries)
    if not bool(xp.all(xp.isfinite(every.norm))):
        raise ValueError("queries must be finite, and some are NaN or infinite")
    run = _Pass(searcher, tiles, k, metric, n_rows, width, query_rows)
    nothing = xp.full((len(every),), -math.inf, dtype=xp.float64)
    lists, failed = run(every, nothing, None)
    for most in (None, searcher.most_candidates):  # of so few rows, all can be candidates
        redo = xp.nonzero(failed)[0]
        if redo.shape[0] == 0:
            break
        # k rows reach the last value of a list, so that nothing below it is of use.
        again, failed_again = run(every.part(redo), lists.value[redo, k - 1], most, sure=True)
        lists.value[redo, :] = again.value
        lists.row[redo, :] = again.row
        failed[redo] = failed_again
    return lists.value, lists.row


@dataclass(frozen=True)
class _Pass:
    searcher: Searcher
    tiles: Tiles
    k: int
    metric: str
    n_rows: int
    width: int
    query_rows: int

    def __call__(
        self, queries: Side, floor: Array, most: int | None, *, sure: bool = False
    ) -> tuple[Lists, Array]:
        """Lists from one pass, and which of them may lack a row: (q,) bool.

        Values below `floor` (q,) are of no use; at most `most` rows are screened at a time.
        """
        xp, k, n = self.searcher.xp, self.k, len(queries)
        lists = Lists(
            xp.full((n, k), -math.inf, dtype=xp.float64),
            xp.full((n, k), LAST_ROW, dtype=xp.int32),
            xp.zeros((n,), dtype=xp.int32),
        )
        dropped = floor
        seen, longest = 0, xp.zeros((), dtype=xp.float64)
        for first, rows in self.tiles():
            tile = self.searcher.side(rows)
            longest = xp.maximum(longest, xp.max(tile.norm))  # a NaN stays
            for start, stop in _steps(len(tile), seen, most):
                rank = k if sure else _rank(seen + start, k, self.n_rows)
                bar = xp.maximum(floor, lists.value[:, rank - 1])
                dropped = xp.maximum(dropped, bar)
                self._step(queries, tile.part(slice(start, stop)), bar, lists, first + start)
            seen += len(tile)
        if not bool(xp.isfinite(longest)):
            raise ValueError("rows of the bank must be finite, and some are NaN or infinite")
        return lists, (lists.value[:, k - 1] < dropped) | (lists.overflow != 0)

    def _step(self, queries: Side, tile: Side, bar: Array, lists: Lists, first: int) -> None:
        screen = screen_of(queries, tile, bar, self.metric, self.width, self.searcher.xp)
        for start in range(0, len(queries), self.query_rows):
            some = slice(start, min(start + self.query_rows, len(queries)))
            mine = queries.part(some)
            own = Screen(
                screen.row_scale[some],
                screen.threshold[some],
                screen.column_scale,
                screen.column_bias,
            )
            candidates = self.searcher.screen(mine, tile, own)
            values = self.searcher.measure(mine, tile, candidates)
            into = Lists(lists.value[some, :], lists.row[some, :], lists.overflow[some])
            self.searcher.keep(into, candidates, values, first)


def _steps(rows: int, seen: int, most: int | None) -> Iterator[tuple[int, int]]:
    """A tile in pieces, each of at most as many rows as came before it."""
    start = 0
    while start < rows:
        size = max(FIRST_ROWS, seen + start)
        stop = min(rows, start + (size if most is None else min(size, most)))
        yield start, stop
        start = stop


def _rank(seen: int, k: int, n_rows: int) -> int:
    """A rank among the rows seen that the k-th best of all hardly comes before: once in 1e9.

    Of the k best, those seen are hypergeometric with this mean, where rows are in random order.
    """
    mean = k * seen / n_rows
    return min(k, math.ceil(mean + 6 * math.sqrt(mean) + 6))


def screen_of(queries: Side, tile: Side, bar: Array, metric: str, width: int, xp: Any) -> Screen:
    """Thresholds that no row better than `bar` (q,) can miss, whatever rounding does.

    With q and x two rows, a hat for copies and d for what these lack, |q.x - q^.x^| is at most
    |dq| |x| + |q| |dx| + |dq| |dx|. Tensor cores add to that: they cut off what float32 cannot
    hold, after every 4 products or more, so that a sum of d is off by at most 3 d 2^-24 |q^| |x^|
    (Fasi, Higham, Mikaitis, Pranesh, *Numerical Behavior of NVIDIA Tensor Cores*, PeerJ Computer
    Science 7, 2021); we take 4 (d + 64) 2^-24. Distances go by q.x - |x|^2 / 2, which falls where
    they rise. A row whose copy is poor (far from float16's range) survives always.
    """
    q, q_lost, q_factor, q_poor = _lengths(queries, metric, xp)
    x, x_lost, x_factor, x_poor = _lengths(tile, metric, xp)
    none = xp.zeros_like(x)
    longest = xp.max(xp.where(x_poor, none, x))
    lost = xp.max(xp.where(x_poor, none, x_lost))
    product = (q + q_lost) * (longest + lost)
    error = (product - q * longest) + (width + 64) * _FLOAT * product
    spread = (q + longest) ** 2
    bias = none
    if metric == "euclidean":
        spread = spread + bar**2
        error = error + _FLOAT * (q * longest + longest**2)
        bar = (q**2 - bar**2) / 2
        bias = -(x**2) / 2
    error = (error + (2 * width + 64) * _EXACT * spread) * _WIDER + _TINY
    threshold = bar - error
    threshold = threshold - xp.abs(threshold) * 2.0**-23  # float32 may round it up
    threshold = xp.where(q_poor, xp.full_like(threshold, -math.inf), threshold)
    single = xp.float32
    return Screen(
        q_factor.astype(single),
        threshold.astype(single),
        xp.where(x_poor, none, x_factor).astype(single),
        xp.where(x_poor, xp.full_like(bias, math.inf), bias).astype(single),
    )


def _lengths(side: Side, metric: str, xp: Any) -> tuple[Array, Array, Array, Array]:
    """Norm, residual and scale (n,) float64 as the metric counts them; which copies are poor."""
    norm, residual, scale = side.norm, side.residual, side.scale.astype(xp.float64)
    poor = ~((residual * 128 <= norm) & xp.isfinite(norm))
    if metric != "cosine":
        return norm, residual, scale, poor
    some = norm > 0
    inverse = xp.where(some, 1 / xp.where(some, norm, xp.ones_like(norm)), xp.zeros_like(norm))
    return some.astype(xp.float64), residual * inverse, scale * inverse, poor
