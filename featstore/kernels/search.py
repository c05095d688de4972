"""Nearest neighbours in a whole bank on a CPU: a rough screen, then exact values of what it leaves.

For each query a sample of the bank gives a value that the k-th best very likely exceeds. A screen
(`screens`) passes over the bank once and keeps what may be above that; single precision and then
double narrow it down to the k best. What the sample promised is verified, and where it was wrong
the search is made again with what is known by then, so the result never depends on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from featstore.kernels.scale import sum_last
from featstore.kernels.screens import Coded, Screen, above, fastest, floats, lowered

_TILE = 1024  # rows of the bank in one product
_QUERIES = 2560  # queries in one product, and in one pass over the bank
_SAMPLE = 4096  # rows of the bank that the first guess is made from
_PAIRS = 6_000_000  # that a pass may keep, at some 30 bytes each
_U32 = 2.0**-24
_CLOSE = 1e-4  # squared distances below this share of |q|^2 + |x|^2 are summed from differences


@dataclass
class Bank:
    """Rows to search in, read a block at a time, and what a first search made of them.

    Attributes
    ----------
    sizes : rows of each block ; read : gives block i, (sizes[i], d) floating and finite
    metric : `euclidean`, `cosine` or `inner`
    keep : whether to keep what a screen takes of the bank, for the next queries: d or 2 d bytes a
        row, where the screen is rougher than float32
    screen : how rough scores are computed
    """

    sizes: Sequence[int]
    read: Callable[[int], np.ndarray]
    metric: str
    keep: bool = False
    screen: Screen = field(default_factory=fastest)
    centre: np.ndarray | None = None
    sample: tuple[list[Coded], int] | None = None
    coded: dict[int, Coded] = field(default_factory=dict)

    @classmethod
    def of_array(cls, rows: np.ndarray, metric: str, **options: Any) -> Bank:
        """A bank in memory."""
        sizes = [min(_TILE, len(rows) - i) for i in range(0, len(rows), _TILE)]
        return cls(sizes, lambda i: rows[i * _TILE : (i + 1) * _TILE], metric, **options)

    def __len__(self) -> int:
        return sum(self.sizes)


class _TooMany(Exception):  # noqa: N818  # not an error: it only leaves the loop
    """More pairs than memory is meant for; `pieces` of the queries would do."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces


def search(bank: Bank, queries: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of a bank to each query, exactly.

    A value is made in double precision from its own pair of rows alone, so the division into
    blocks, their order and the other queries change no bit of it.

    Parameters
    ----------
    bank : at least one row
    queries : (q, d) floating and finite
    k : neighbours wanted; of a smaller bank all rows are given

    Returns
    -------
    value : (q, min(k, n)) float64, the best first; distances for `euclidean`, else similarities
    index : (q, min(k, n)) int64 rows of the bank. Ties: the lower row first.
    """
    k = min(k, len(bank))
    value = np.empty((len(queries), k))
    index = np.empty((len(queries), k), np.int64)
    if not len(queries):
        return value, index
    _prepare(bank)
    _csr_without_warnings()
    # Alike in size, so that one scale serves a block.
    order = np.argsort(np.abs(queries).max(axis=1), kind="stable")

    def work(rows: np.ndarray) -> None:
        value[rows], index[rows] = _search(bank, queries[rows], k, None)

    with _threads() as (share, threads):
        rounds = -(-len(queries) // (threads * _QUERIES))
        share(work, np.array_split(order, min(len(order), threads * rounds)))
    return value, index


@contextmanager
def _threads() -> Iterator[tuple[Callable[..., Any], int]]:
    """A `map` over as many threads as BLAS or torch may use here, each with one of its own.

    So all steps run on every core, not the products alone.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield lambda work, parts: list(map(work, parts)), 1
        return
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool,
    ):
        yield lambda work, parts: list(pool.map(work, parts)), threads
    torch.set_num_threads(threads)  # what a thread of the pool set may count for all


@cache
def _csr_without_warnings() -> None:
    """Spend torch's one warning a process that its sparse matrices may change, which all get."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one = np.zeros((1, 1), np.float32)
        _dots(one, one, np.zeros(1, np.int32), np.zeros(1, np.int32))


def _prepare(bank: Bank) -> None:
    """Centre and sample, once for a bank."""
    if bank.sample is not None:
        return
    n, blocks = len(bank), list(range(len(bank.sizes)))
    if n > 16 * _SAMPLE and len(blocks) > 16:  # a bank on a disk is not read twice for a sample
        blocks = np.linspace(0, len(blocks) - 1, 16).astype(int).tolist()
    step = max(1, sum(bank.sizes[i] for i in blocks) // _SAMPLE)
    rows = np.concatenate([bank.read(i)[::step] for i in blocks])
    bank.centre = _unit(rows, bank.metric).mean(axis=0, dtype=np.float64).astype(np.float32)
    x = _centred(rows, bank)
    tiles = [_code(bank, x[i : i + _TILE]) for i in range(0, len(x), _TILE)]
    bank.sample = tiles, len(x)


def _unit(rows: np.ndarray, metric: str) -> np.ndarray:
    """Rows as they are compared: float64 where they are given so, else float32."""
    rows = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32, copy=False)
    if metric != "cosine":
        return rows
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return np.asarray(rows / np.where(norm == 0, 1, norm).astype(rows.dtype)[:, None])


def _squares(rows: np.ndarray) -> np.ndarray:
    """(n,) float64 sums of squares; a row's is the same in whatever block it stands."""
    wide = rows.astype(np.float64)
    return np.asarray(sum_last(wide * wide))


def _centred(rows: np.ndarray, bank: Bank) -> np.ndarray:
    return np.asarray(_unit(rows, bank.metric) - bank.centre, dtype=np.float32)


def _code(bank: Bank, centred: np.ndarray) -> Coded:
    """A tile for the screen; its offsets are what a score has beside the product of centred rows.

    For distances it is -|x|^2 / 2, since -|q - x|^2 / 2 is q.x - |x|^2 / 2 less what depends on the
    query alone; else it is the product with the centre.
    """
    if bank.metric == "euclidean":
        offset = -np.einsum("ij,ij->i", centred, centred, dtype=np.float64) / 2
    else:
        offset = np.einsum("ij,j->i", centred, np.asarray(bank.centre), dtype=np.float64)
    return bank.screen.tile(centred, offset)


def _tiles(bank: Bank) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each tile."""
    first = 0
    for block, size in enumerate(bank.sizes):
        rows = bank.read(block)
        for start in range(0, size, _TILE):
            yield first + start, rows[start : start + _TILE]
        first += size


@dataclass(frozen=True)
class _Pairs:
    """What a tile may hold of the best: query and row of the tile (p,), and their score (p,)."""

    first: int
    query: np.ndarray
    row: np.ndarray
    score: np.ndarray

    def where(self, mask: np.ndarray) -> _Pairs:
        """Some of them."""
        kept = np.flatnonzero(mask)
        return _Pairs(self.first, self.query[kept], self.row[kept], self.score[kept])


def _search(
    bank: Bank, queries: np.ndarray, k: int, least: np.ndarray | None, wider: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The same of few queries, given what the k-th best score is known to reach.

    `wider` is by how much to widen the guess where nothing is known.
    """
    centred = _centred(queries, bank)
    coded = bank.screen.queries(centred)
    if least is None:
        least = _guess(bank, coded, k, wider)
    try:
        pairs, bound = _survivors(bank, centred, coded, least)
    except _TooMany as error:
        parts = [
            _search(bank, queries[rows], k, least[rows])
            for rows in np.array_split(np.arange(len(queries)), min(error.pieces, len(queries)))
        ]
        return np.concatenate([v for v, _ in parts]), np.concatenate([i for _, i in parts])

    # Exact values of the k best by score first: none that scores much less than these reach needs
    # one. Scores are rough, but by no more than `bound`.
    count = len(queries)
    rough = _by_query([one.query for one in pairs], [one.score for one in pairs], count, -np.inf)
    edge = np.full(count, -np.inf)
    if rough.shape[1] > k:
        edge = np.partition(rough, rough.shape[1] - k, axis=1)[:, rough.shape[1] - k]
    asked = _Asked.of(bank, queries)
    likely = [one.where(one.score >= edge[one.query]) for one in pairs]
    values = _values(bank, asked, likely)
    table = _by_query([one.query for one in likely], values, count, np.inf)
    kth = np.full(count, np.inf)
    if table.shape[1] >= k:
        kth = np.partition(table, k - 1, axis=1)[:, k - 1]
    reached = asked.score(kth, bank)
    known = reached > -np.inf
    cut = lowered(reached - bound, bank.screen)
    others = [
        one.where((one.score < edge[one.query]) & (one.score >= cut[one.query])) for one in pairs
    ]
    value, index = _ranked(likely, values, others, _values(bank, asked, others), count, k)
    # From 0.0, since -0.0 would be another value.
    value = np.sqrt(value) if bank.metric == "euclidean" else 0.0 - value
    for again, lower, more in (
        (known & (reached < least), reached, 1),
        (~known & (least > -np.inf), None, 8 * wider),
    ):
        redo = np.flatnonzero(again)
        if len(redo):
            part = None if lower is None else lower[redo]
            value[redo], index[redo] = _search(bank, queries[redo], k, part, more)
    return value, index


def _guess(bank: Bank, coded: Coded, k: int, wider: int) -> np.ndarray:
    """(q,) score that a query's k-th best exceeds, but for one query in ten thousand or so.

    The number of sampled rows among the k best is hypergeometric, whatever the rows are.
    """
    tiles, size = bank.sample  # type: ignore[misc]
    mean = k * size / len(bank)
    rank = wider * int(np.ceil(mean + 4.8 * np.sqrt(mean) + 1))
    if rank >= size:
        return np.full(len(coded.norm), -np.inf)
    found = [
        floats(bank.screen.scores(coded, tile, {})) - bank.screen.lift(coded, tile)
        for tile in tiles
    ]
    scores = np.concatenate(found, axis=1).astype(np.float32, copy=False)
    return np.partition(scores, size - rank, axis=1)[:, size - rank].astype(np.float64)


def _survivors(
    bank: Bank, centred: np.ndarray, coded: Coded, least: np.ndarray
) -> tuple[list[_Pairs], np.ndarray]:
    """Pairs that may score `least` or more, and (q,) how far off their scores can be."""
    out: dict[Any, Any] = {}
    pairs: list[_Pairs] = []
    total, bounds = 0, np.zeros(len(centred))
    for first, rows in _tiles(bank):
        tile = bank.coded.get(first)
        if tile is None:
            tile = _code(bank, _centred(rows, bank))
            if bank.keep and bank.screen.keeps:
                bank.coded[first] = tile
        bound = bank.screen.bound(coded, tile) + _centring(coded, tile)
        bounds = np.maximum(bounds, bound)
        found = bank.screen.scores(coded, tile, out)
        flat = above(found, least - bound, out)
        query, row = np.divmod(flat.astype(np.uint32), np.uint32(len(rows)))
        score = floats(found.ravel()[flat])
        pairs.append(_Pairs(first, query.view(np.int32), row.view(np.int32), score))
        total += len(flat)
        if total > _PAIRS and len(centred) > 1:
            share = (first + len(rows)) / len(bank)
            raise _TooMany(max(2, int(total / share / _PAIRS) + 1))
    return pairs, bounds


def _centring(coded: Coded, tile: Coded) -> np.ndarray:
    """(q,) what the rounding of centred rows, and of norms before, can cost a score."""
    norm = tile.norm.max(initial=0.0)
    offset = float(np.abs(tile.offset).max(initial=0.0))
    return np.asarray(8 * _U32 * (coded.norm * norm + coded.norm + norm + offset))


@dataclass(frozen=True)
class _Asked:
    """Queries in double precision: as they are, |q|^2, and what their scores lack of values."""

    wide: np.ndarray
    square: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, bank: Bank, queries: np.ndarray) -> _Asked:
        """Queries as they are asked of a bank."""
        wide, centre = queries.astype(np.float64), np.asarray(bank.centre, dtype=np.float64)
        square = _squares(queries)
        if bank.metric == "euclidean":
            shift = _squares(wide - centre) / 2
        else:
            shift = -(wide @ centre)
            if bank.metric == "cosine":
                shift /= np.where(square == 0, 1, np.sqrt(square))
        return cls(wide, square, shift)

    def score(self, value: np.ndarray, bank: Bank) -> np.ndarray:
        """(q,) scores of values as `_values` gives them, rounded down."""
        found = self.shift - value / 2 if bank.metric == "euclidean" else self.shift - value
        size = np.abs(self.shift) + np.abs(np.where(np.isfinite(value), value, 0))
        return np.asarray(found - 2.0**-40 * size)


def _ranked(
    likely: Sequence[_Pairs],
    values: Sequence[np.ndarray],
    others: Sequence[_Pairs],
    more: Sequence[np.ndarray],
    count: int,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's pairs by exact values, ties by lower row."""
    of = [one.query for one in (*likely, *others)]
    rank = _by_query(of, [*values, *more], count, np.inf)
    places = [one.row.astype(np.int64) + one.first for one in (*likely, *others)]
    place = _by_query(of, places, count, 2**62)
    if rank.shape[1] < k:  # of queries that are asked again
        short = ((0, 0), (0, k - rank.shape[1]))
        rank = np.pad(rank, short, constant_values=np.inf)
        place = np.pad(place, short, constant_values=2**62)
    order = np.argsort(rank, axis=1, kind="stable")
    rank, place = (np.take_along_axis(one, order, 1) for one in (rank, place))
    order = _tied(rank, place)[:, :k]
    return np.take_along_axis(rank, order, 1), np.take_along_axis(place, order, 1)


def _tied(rank: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Order (q, m) that puts equal neighbours in a sorted list in the order of their rows."""
    order = np.broadcast_to(np.arange(rank.shape[1]), rank.shape).copy()
    wrong = (rank[:, 1:] == rank[:, :-1]) & (place[:, 1:] < place[:, :-1])
    for query in np.flatnonzero(wrong.any(axis=1)):
        order[query] = np.lexsort((place[query], rank[query]))
    return order


def _values(bank: Bank, asked: _Asked, pairs: Sequence[_Pairs]) -> list[np.ndarray]:
    """Of each tile (p,) squared distances or negated similarities in double precision."""
    found = []
    for one, (_, rows) in zip(pairs, _tiles(bank), strict=True):
        query, row = one.query, one.row
        if not len(query):
            found.append(np.empty(0))
            continue
        x = rows.astype(np.float64)
        value = -_dots(asked.wide, x, query, row)
        if bank.metric != "inner":
            square = np.asarray(sum_last(x * x))
        if bank.metric == "cosine":
            size = np.sqrt(asked.square[query] * square[row])
            value /= np.where(size == 0, 1, size)
        if bank.metric == "euclidean":
            both = asked.square[query] + square[row]
            value = both + 2 * value
            close = np.flatnonzero(value < _CLOSE * both)
            for some in np.array_split(close, len(close) * x.shape[1] // 2**20 + 1):
                apart = asked.wide[query[some]] - x[row[some]]
                value[some] = sum_last(apart * apart)
        found.append(value)
    return found


def _dots(queries: np.ndarray, rows: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(p,) products of pairs of rows, `query` ascending; nothing is gathered into memory."""
    starts = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(np.bincount(query, minlength=len(queries)), out=starts[1:])
    q, x = torch.from_numpy(queries), torch.from_numpy(rows)
    wanted = torch.sparse_csr_tensor(
        torch.from_numpy(starts),
        torch.from_numpy(row.astype(np.int64)),
        torch.zeros(len(row), dtype=q.dtype),
        size=(len(queries), len(rows)),
        check_invariants=False,
    )
    found: np.ndarray = torch.sparse.sampled_addmm(wanted, q, x.T, beta=0.0).values().numpy()
    return found


def _by_query(
    queries: Sequence[np.ndarray], values: Sequence[np.ndarray], count: int, blank: float
) -> np.ndarray:
    """(count, longest) values of each query in the order in which they come, then blanks."""
    counts = np.stack([np.bincount(one, minlength=count) for one in queries])
    before = np.cumsum(counts, axis=0) - counts
    table = np.full((count, max(1, int(counts.sum(axis=0).max()))), blank, values[0].dtype)
    for one, value, own, start in zip(queries, values, counts, before, strict=True):
        first = np.cumsum(own) - own
        place = np.arange(len(one)) + np.repeat(start - first, own)
        table[one, place] = value
    return table
