"""Nearest neighbours in a whole bank on a CPU: a rough screen, then exact values of what it leaves.

For each query a sample of the bank gives a value that the k-th best very likely exceeds. A screen
(`screens`) passes over the bank and keeps what may be above that; double precision finds the k best
among it (`ranking`). What the sample promised is verified, and where it was wrong
the search is made again with what is known by then, so the result never depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from featstore.kernels.ranking import Asked, Pairs, best, by_query, values, widened
from featstore.kernels.screens import Coded, Screen, above, fastest, floats, lowered

METRICS = ("euclidean", "cosine", "inner")

_TILE = 1024  # rows of the bank in one product
_QUERIES = 1280  # queries in one product, and in one pass over the bank
_STRIP = 256  # queries whose scores of the sample are held at a time
_SAMPLE = 4096  # rows of the bank that the first guess is made from
_KEPT = 2**28  # bytes of coded rows that one search makes once for all of its queries
_PAIRS = 6_000_000  # that a pass may keep, at some 30 bytes each
_U32 = 2.0**-24
LARGEST = 2.0**500  # numbers whose squares, summed, are below what float64 can hold
_SCALED = 40  # binary exponent of the largest number, once rows are scaled
_LONGEST = 2.0**60  # norms whose squares float32 can hold


@dataclass
class Bank:
    """Rows to search in, read a block at a time, and what a first search made of them.

    Attributes
    ----------
    sizes : rows of each block
    read : gives block i, (sizes[i], d) floating, each number within 2**500 of 0
    metric : `euclidean`, `cosine` or `inner`
    keep : whether to keep what a screen takes of the bank for the next queries, however large it
        is: d or 2 d bytes a row, where the screen is rougher than float32
    screen : how rough scores are computed
    most : largest number, sign aside, that rows or queries were seen to hold
    scale : power of two that a screen takes rows and queries times, since the squares of float32
        overflow from 1e19 on, and vanish below 1e-22
    """

    sizes: Sequence[int]
    read: Callable[[int], np.ndarray]
    metric: str
    keep: bool = False
    screen: Screen = field(default_factory=fastest)
    most: float = 0.0
    scale: float = 1.0
    centre: np.ndarray | None = None
    sample: list[Coded] = field(default_factory=list)
    coded: dict[int, Coded] = field(default_factory=dict)
    squares: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")

    @classmethod
    def of_array(cls, rows: np.ndarray, metric: str, **options: Any) -> Bank:
        """A bank in memory: rows (n, d), floating."""
        _check_rows("rows", rows)
        sizes = [min(_TILE, len(rows) - i) for i in range(0, len(rows), _TILE)]
        return cls(sizes, lambda i: rows[i * _TILE : (i + 1) * _TILE], metric, **options)

    def __len__(self) -> int:
        return sum(self.sizes)


class _TooMany(Exception):  # noqa: N818  # not an error: it only leaves the loop
    """More pairs than memory is meant for; `pieces` of the queries would do."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces


class _OutOfScale(Exception):  # noqa: N818  # not an error: it only begins the search anew
    """A row of the bank is much longer than the rows that its scale was made from."""


def search(bank: Bank, queries: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of a bank to each query, exactly.

    A value is made in double precision from its own pair of rows alone, so the division into
    blocks, their order and the other queries change no bit of it.

    Parameters
    ----------
    bank : of any size; `Bank.of_array(rows, metric)` makes one of an array
    queries : (q, d) floating, each number within 2**500 of 0
    k : neighbours wanted, at least 1; of a smaller bank all rows are given

    Returns
    -------
    value : (q, min(k, n)) float64, the best first; distances for `euclidean`, else similarities
    index : (q, min(k, n)) int64 rows of the bank. Ties: the lower row first. The cosine with a row
        of zeros is 0

    Raises
    ------
    ValueError
        k is below 1; queries have another width than the bank, or are not (q, d) floating; a number
        is NaN, infinite, or 2**500 (3.3e150) or more, where squares overflow.
    """
    _check_rows("queries", queries)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, len(bank))
    value = np.empty((len(queries), k))
    index = np.empty((len(queries), k), np.int64)
    if not len(queries) or not k:
        return value, index
    width = bank.read(0).shape[1] if bank.centre is None else len(bank.centre)
    if width != queries.shape[1]:
        raise ValueError(f"queries must be as wide as the bank, {width}, got {queries.shape[1]}")
    largest = _largest("queries", queries)
    # Alike in size, so that one scale serves a block.
    order = np.argsort(largest, kind="stable")
    try:
        _search_all(bank, queries, order, value, index, float(largest.max()))
    except _OutOfScale:
        edges = [0, *accumulate(bank.sizes)]
        bank.most = max(
            float(_largest("the bank", bank.read(i), first=edges[i]).max(initial=0.0))
            for i in range(len(bank.sizes))
        )
        bank.sample.clear()
        _search_all(bank, queries, order, value, index, float(largest.max()))
    if not (np.isfinite(value).all() and index.max() < len(bank)):
        raise ValueError("rows of the bank must be finite, and some are not")  # read anew each time
    return value, index


def _check_rows(name: str, rows: np.ndarray) -> None:
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        found = (
            f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        )
        raise ValueError(f"{name} must be a floating array (n, d), got {found}")


def _largest(name: str, rows: np.ndarray, first: int = 0) -> np.ndarray:
    """(n,) float64 largest number of each row, sign aside; `first` is the number of the first."""
    largest: np.ndarray = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
    wrong = ~(largest < LARGEST)
    if wrong.any():
        raise ValueError(
            f"{name} must be finite and lie within 2**500 (3.3e150) of 0, beyond which squares "
            f"overflow, and row {first + int(wrong.argmax())} does not"
        )
    return largest


def _search_all(
    bank: Bank,
    queries: np.ndarray,
    order: np.ndarray,
    value: np.ndarray,
    index: np.ndarray,
    most: float,
) -> None:
    """Fill value and index (q, k), queries of numbers up to `most` in some order, on all threads.

    Threads share the queries, or of a bank that is too large to be kept coded its blocks: so each
    is read and coded once for all queries that memory has room for, and not by every thread.
    """
    _prepare(bank, most)
    size = len(bank) * queries.shape[1] * 2  # at most
    large = size > _KEPT and not bank.keep
    with _threads() as (share, threads):
        blocks = [part for part in np.array_split(np.arange(len(bank.sizes)), threads) if len(part)]
        over = _Over(share, blocks) if large else _Over(_each, [np.arange(len(bank.sizes))])

        def work(rows: np.ndarray) -> None:
            value[rows], index[rows] = _search(bank, queries[rows], value.shape[1], None, over)

        if bank.screen.keeps and not large:
            share(partial(_code_blocks, bank), blocks)
        rounds = -(-len(queries) // (threads * _QUERIES))
        pieces = rounds if large else threads * rounds
        (_each if large else share)(work, np.array_split(order, min(len(order), pieces)))
    if not bank.keep:
        bank.coded.clear()


def _each(work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
    return [work(part) for part in parts]


@dataclass(frozen=True)
class _Over:
    """Blocks of a bank in parts, and a map over these."""

    share: Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
    parts: Sequence[np.ndarray]


@contextmanager
def _threads() -> Iterator[tuple[Callable[..., Any], int]]:
    """A `map` over as many threads as torch may use here, whose own products take one each.

    So all steps run on every core, not the products alone. All products are torch's, which counts
    its threads for each thread apart; what NumPy's library is told holds for a whole process.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield _each, 1
        return
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield lambda work, parts: list(pool.map(work, parts)), threads
    finally:
        torch.set_num_threads(threads)  # what a thread of the pool set may count for all


def _prepare(bank: Bank, most: float) -> None:
    """Scale, centre and sample: once for a bank, and again for queries of much larger numbers."""
    if bank.sample and _scale(max(most, bank.most), bank.metric) == bank.scale:
        return
    n, blocks = len(bank), list(range(len(bank.sizes)))
    if n > 16 * _SAMPLE and len(blocks) > 16:  # a bank on a disk is not read twice for a sample
        blocks = np.linspace(0, len(blocks) - 1, 16).astype(int).tolist()
    step = max(1, sum(bank.sizes[i] for i in blocks) // _SAMPLE)
    rows = np.concatenate([bank.read(i)[::step] for i in blocks])
    bank.coded.clear()
    bank.most = float(np.max([most, bank.most, float(rows.max()), -float(rows.min())]))  # or NaN
    if not bank.most < LARGEST:
        raise _OutOfScale
    bank.scale = _scale(bank.most, bank.metric)
    x = _unit(rows, bank)
    size = np.abs(x).max(axis=1)
    usual = x[size <= 1024 * np.median(size)]  # a centre of few long rows would be far from all
    bank.centre = usual.mean(axis=0, dtype=np.float64).astype(np.float32)
    bank.sample = [_code(bank, rows[i : i + _TILE]) for i in range(0, len(rows), _TILE)]


def _scale(most: float, metric: str) -> float:
    """What brings numbers of up to `most` where their squares neither overflow nor vanish."""
    if metric == "cosine" or most == 0 or 2.0**-20 <= most <= 2.0**_SCALED:
        return 1.0
    return 2.0 ** min(500, _SCALED - math.frexp(most)[1])


def _unit(rows: np.ndarray, bank: Bank) -> np.ndarray:
    """Rows as they are compared, scaled: float64 where they are given so, else float32."""
    wide = rows.dtype == np.float64 or bank.scale > 2.0**100  # which float32 might not hold
    rows = widened(rows, np.float64 if wide else np.float32)
    if bank.metric != "cosine":
        return rows if bank.scale == 1 else rows * np.asarray(bank.scale, rows.dtype)
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not norm.max(initial=0.0) < 2**11 * LARGEST:
        raise _OutOfScale
    norm[norm == 0] = 1
    # Norms themselves may be beyond float32, or among its numbers of few digits.
    same = rows.dtype if 2.0**-100 < norm.min(initial=1.0) <= norm.max() < 2.0**100 else np.float64
    return np.asarray(rows / norm.astype(same)[:, None])


def _centred(rows: np.ndarray, bank: Bank) -> np.ndarray:
    return np.asarray(_unit(rows, bank) - bank.centre, dtype=np.float32)


def _code(bank: Bank, rows: np.ndarray) -> Coded:
    """A tile for the screen; its offsets are what a score has beside the product of centred rows.

    For distances it is -|x|^2 / 2, since -|q - x|^2 / 2 is q.x - |x|^2 / 2 less what depends on the
    query alone; else it is the product with the centre.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # the norms tell
        centred = _centred(rows, bank)
        if bank.metric == "euclidean":
            offset = -np.einsum("ij,ij->i", centred, centred, dtype=np.float64) / 2
        else:
            offset = np.einsum("ij,j->i", centred, np.asarray(bank.centre), dtype=np.float64)
        tile = bank.screen.tile(centred, offset)
    if not tile.norm.max(initial=0.0) < _LONGEST:
        raise _OutOfScale
    return tile


def _code_blocks(bank: Bank, blocks: np.ndarray) -> None:
    """Code all tiles of some blocks that are not coded yet."""
    for first, rows in _tiles(bank, blocks):
        if first not in bank.coded:
            bank.coded[first] = _code(bank, rows)


def _tiles(bank: Bank, blocks: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each tile of some blocks."""
    edges = [0, *accumulate(bank.sizes)]
    for block in blocks:
        rows = bank.read(block)
        for start in range(0, len(rows), _TILE):
            yield edges[block] + start, rows[start : start + _TILE]


def _search(
    bank: Bank, queries: np.ndarray, k: int, least: np.ndarray | None, over: _Over, wider: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The same of few queries, given what the k-th best score is known to reach.

    `wider` is by how much to widen the guess where nothing is known.
    """
    coded = bank.screen.queries(_centred(queries, bank))
    if least is None:
        least = _guess(bank, coded, k, wider)
    try:
        found = over.share(partial(_survivors, bank, coded, least), over.parts)
    except _TooMany as error:
        parts = [
            _search(bank, queries[rows], k, least[rows], over)
            for rows in np.array_split(np.arange(len(queries)), min(error.pieces, len(queries)))
        ]
        return np.concatenate([v for v, _ in parts]), np.concatenate([i for _, i in parts])

    pairs, norms = ([one for part in found for one in part[i]] for i in (0, 1))
    bound = np.max([part[2] for part in found], axis=0)
    del found

    # Exact values of the k best by score first: none that scores much less than these reach needs
    # one. Scores are rough, but by no more than `bound`.
    count = len(queries)
    edge = _kth([one.query for one in pairs], [one.score for one in pairs], count, k)
    asked = Asked.of(queries, np.asarray(bank.centre), bank.scale, bank.metric)
    likely = [one.where(one.score >= edge[one.query]) for one in pairs]
    known = _values(bank, asked, likely, over)
    # As low as rounding may have left them, each by what its own row can cost.
    low = [
        asked.scores(value, one.query, norm[one.row])
        for value, one, norm in zip(known, likely, norms, strict=True)
    ]
    reached = _kth([one.query for one in likely], low, count, k)
    cut = lowered(reached - bound, bank.screen)
    others = [
        one.where((one.score < edge[one.query]) & (one.score >= cut[one.query])) for one in pairs
    ]
    del pairs
    # Most of these turn out worse than what is known, and need no place in a table.
    worst = -_kth([one.query for one in likely], [-value for value in known], count, k)
    for one, value in zip(others, _values(bank, asked, others, over), strict=True):
        good = value <= worst[one.query]
        likely.append(one.where(good))
        known.append(value[good])
    del others
    value, index = best(likely, known, count, k)
    # From 0.0, since -0.0 would be another value.
    value = np.sqrt(value) if bank.metric == "euclidean" else 0.0 - value
    full = reached > -np.inf
    for again, lower, more in (
        (full & (reached < least), reached, 1),
        (~full & (least > -np.inf), None, 8 * wider),
    ):
        redo = np.flatnonzero(again)
        if len(redo):
            part = None if lower is None else lower[redo]
            value[redo], index[redo] = _search(bank, queries[redo], k, part, over, more)
    return value, index


def _values(bank: Bank, asked: Asked, pairs: Sequence[Pairs], over: _Over) -> list[np.ndarray]:
    """Exact values of the pairs of each tile."""
    counts = [sum(-(-bank.sizes[block] // _TILE) for block in part) for part in over.parts]
    ends = [0, *accumulate(counts)]

    def work(i: int) -> list[np.ndarray]:
        mine = pairs[ends[i] : ends[i + 1]]
        return values(asked, _tiles(bank, over.parts[i]), mine, bank.squares)

    return [one for part in over.share(work, range(len(counts))) for one in part]


def _kth(
    queries: Sequence[np.ndarray], scores: Sequence[np.ndarray], count: int, k: int
) -> np.ndarray:
    """(count,) the k-th best score of each query, -inf where there are fewer."""
    table = by_query(queries, scores, count, -np.inf)
    if table.shape[1] < k:
        return np.full(count, -np.inf)
    place = table.shape[1] - k
    return np.asarray(np.partition(table, place, axis=1)[:, place])


def _guess(bank: Bank, coded: Coded, k: int, wider: int) -> np.ndarray:
    """(q,) score that a query's k-th best exceeds, but for one query in ten thousand or so.

    The number of sampled rows among the k best is hypergeometric, whatever the rows are.
    """
    size = sum(len(tile.norm) for tile in bank.sample)
    mean = k * size / len(bank)
    rank = wider * int(np.ceil(mean + 4.8 * np.sqrt(mean) + 1))
    if rank >= size:
        return np.full(len(coded.norm), -np.inf)
    scores = np.empty((min(_STRIP, len(coded.norm)), size), np.float32)
    least = np.empty(len(coded.norm))
    edges = np.cumsum([0, *(len(tile.norm) for tile in bank.sample)])
    for start in range(0, len(least), _STRIP):  # of all queries they would take most of the memory
        some = coded.part(start, start + _STRIP)
        table = scores[: len(some.norm)]
        out: dict[Any, Any] = {}
        for tile, left, right in zip(bank.sample, edges[:-1], edges[1:], strict=True):
            found = floats(bank.screen.scores(some, tile, out))
            np.subtract(
                found, bank.screen.lift(some, tile), out=table[:, left:right], casting="same_kind"
            )
        table.partition(size - rank, axis=1)
        least[start : start + _STRIP] = table[:, size - rank]
    return least


def _survivors(
    bank: Bank, coded: Coded, least: np.ndarray, blocks: np.ndarray
) -> tuple[list[Pairs], list[np.ndarray], np.ndarray]:
    """Of some blocks: pairs that may score `least` or more, norms of rows, each by its tile; (q,)
    how far off scores can be.
    """
    out: dict[Any, Any] = {}
    pairs: list[Pairs] = []
    norms: list[np.ndarray] = []
    room = _PAIRS * sum(bank.sizes[i] for i in blocks) / len(bank)
    total, seen, bounds = 0, 0, np.zeros(len(least))
    for first, rows in _tiles(bank, blocks):
        tile = bank.coded.get(first)
        if tile is None:
            tile = _code(bank, rows)
        bound = bank.screen.bound(coded, tile) + _centring(bank, coded, tile)
        bounds = np.maximum(bounds, bound)
        norms.append(tile.norm)
        found = bank.screen.scores(coded, tile, out)
        flat = above(found, least - bound, out)
        query, row = np.divmod(flat.astype(np.uint32), np.uint32(len(rows)))
        score = floats(found.ravel()[flat])
        pairs.append(Pairs(first, query.view(np.int32), row.view(np.int32), score))
        total, seen = total + len(flat), seen + len(rows)
        if total > room and len(least) > 1:
            raise _TooMany(max(2, int(total / seen * len(bank) / _PAIRS) + 1))
    return pairs, norms, bounds


def _centring(bank: Bank, coded: Coded, tile: Coded) -> np.ndarray:
    """(q,) what single precision can cost a score before it is made.

    Centring rounds each number by a unit of it, and offsets are products of what is rounded so with
    the centre; dividing by a norm rounds rows of length 1 as they are before. Scaled numbers may
    lose digits at the lower end of single precision.
    """
    centre = np.linalg.norm(np.asarray(bank.centre, dtype=np.float64))
    norm = tile.norm.max(initial=0.0)
    offset = float(np.abs(tile.offset).max(initial=0.0))
    length = 1.0 if bank.metric == "cosine" else 2.0**-100
    apart = (length + centre) * (coded.norm + norm)
    if bank.metric == "cosine":
        apart += centre
    return np.asarray(8 * _U32 * (coded.norm * norm + apart + offset))
