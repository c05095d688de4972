"""Nearest neighbours in a whole bank on a CPU: a rough screen, then exact values of what it leaves.

For each query a sample of the bank gives a value that the k-th best very likely exceeds. A screen
(`screens`) passes over the bank and keeps what may be above that; double precision finds the k best
among it (`ranking`). What the sample promised is verified, and where it was wrong
the search is made again with what is known by then, so the result never depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from featstore.kernels.ranking import Asked, Pairs, best, by_query, values
from featstore.kernels.screens import Coded, Screen, above, fastest, floats, lowered

_TILE = 1024  # rows of the bank in one product
_QUERIES = 2560  # queries in one product, and in one pass over the bank
_SAMPLE = 4096  # rows of the bank that the first guess is made from
_KEPT = 2**28  # bytes of coded rows that one search makes once for all of its queries
_PAIRS = 6_000_000  # that a pass may keep, at some 30 bytes each
_U32 = 2.0**-24


@dataclass
class Bank:
    """Rows to search in, read a block at a time, and what a first search made of them.

    Attributes
    ----------
    sizes : rows of each block ; read : gives block i, (sizes[i], d) floating and finite
    metric : `euclidean`, `cosine` or `inner`
    keep : whether to keep what a screen takes of the bank for the next queries, however large it
        is: d or 2 d bytes a row, where the screen is rougher than float32
    screen : how rough scores are computed
    """

    sizes: Sequence[int]
    read: Callable[[int], np.ndarray]
    metric: str
    keep: bool = False
    screen: Screen = field(default_factory=fastest)
    centre: np.ndarray | None = None
    sample: list[Coded] = field(default_factory=list)
    coded: dict[int, Coded] = field(default_factory=dict)
    squares: dict[int, np.ndarray] = field(default_factory=dict)

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
    # Alike in size, so that one scale serves a block.
    order = np.argsort(np.abs(queries).max(axis=1), kind="stable")

    def work(rows: np.ndarray) -> None:
        value[rows], index[rows] = _search(bank, queries[rows], k, None)

    with _threads() as (share, threads):
        size = len(bank) * queries.shape[1] * 2  # at most
        held = bank.screen.keeps and (bank.keep or size <= _KEPT)
        if held:
            blocks = np.array_split(np.arange(len(bank.sizes)), threads)
            share(partial(_code_blocks, bank), blocks)
        rounds = -(-len(queries) // (threads * _QUERIES))
        share(work, np.array_split(order, min(len(order), threads * rounds)))
    if held and not bank.keep:
        bank.coded.clear()
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


def _prepare(bank: Bank) -> None:
    """Centre and sample, once for a bank."""
    if bank.sample:
        return
    n, blocks = len(bank), list(range(len(bank.sizes)))
    if n > 16 * _SAMPLE and len(blocks) > 16:  # a bank on a disk is not read twice for a sample
        blocks = np.linspace(0, len(blocks) - 1, 16).astype(int).tolist()
    step = max(1, sum(bank.sizes[i] for i in blocks) // _SAMPLE)
    rows = np.concatenate([bank.read(i)[::step] for i in blocks])
    bank.centre = _unit(rows, bank.metric).mean(axis=0, dtype=np.float64).astype(np.float32)
    x = _centred(rows, bank)
    bank.sample = [_code(bank, x[i : i + _TILE]) for i in range(0, len(x), _TILE)]


def _unit(rows: np.ndarray, metric: str) -> np.ndarray:
    """Rows as they are compared: float64 where they are given so, else float32."""
    rows = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32, copy=False)
    if metric != "cosine":
        return rows
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return np.asarray(rows / np.where(norm == 0, 1, norm).astype(rows.dtype)[:, None])


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


def _code_blocks(bank: Bank, blocks: np.ndarray) -> None:
    """Code all tiles of some blocks that are not coded yet."""
    for first, rows in _tiles(bank, blocks.tolist()):
        if first not in bank.coded:
            bank.coded[first] = _code(bank, _centred(rows, bank))


def _tiles(bank: Bank, blocks: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each tile, of all blocks or of some."""
    edges = [0, *accumulate(bank.sizes)]
    for block in range(len(bank.sizes)) if blocks is None else blocks:
        rows = bank.read(block)
        for start in range(0, len(rows), _TILE):
            yield edges[block] + start, rows[start : start + _TILE]


def _search(
    bank: Bank, queries: np.ndarray, k: int, least: np.ndarray | None, wider: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The same of few queries, given what the k-th best score is known to reach.

    `wider` is by how much to widen the guess where nothing is known.
    """
    coded = bank.screen.queries(_centred(queries, bank))
    if least is None:
        least = _guess(bank, coded, k, wider)
    try:
        pairs, bound, longest = _survivors(bank, coded, least)
    except _TooMany as error:
        parts = [
            _search(bank, queries[rows], k, least[rows])
            for rows in np.array_split(np.arange(len(queries)), min(error.pieces, len(queries)))
        ]
        return np.concatenate([v for v, _ in parts]), np.concatenate([i for _, i in parts])

    # Exact values of the k best by score first: none that scores much less than these reach needs
    # one. Scores are rough, but by no more than `bound`.
    count = len(queries)
    rough = by_query([one.query for one in pairs], [one.score for one in pairs], count, -np.inf)
    edge = np.full(count, -np.inf)
    if rough.shape[1] > k:
        edge = np.partition(rough, rough.shape[1] - k, axis=1)[:, rough.shape[1] - k]
    asked = Asked.of(queries, np.asarray(bank.centre), longest, bank.metric)
    likely = [one.where(one.score >= edge[one.query]) for one in pairs]
    known = values(asked, _tiles(bank), likely, bank.squares)
    reached = asked.scores(best(likely, known, count, k)[0][:, -1])
    cut = lowered(reached - bound, bank.screen)
    others = [
        one.where((one.score < edge[one.query]) & (one.score >= cut[one.query])) for one in pairs
    ]
    known += values(asked, _tiles(bank), others, bank.squares)
    value, index = best([*likely, *others], known, count, k)
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
            value[redo], index[redo] = _search(bank, queries[redo], k, part, more)
    return value, index


def _guess(bank: Bank, coded: Coded, k: int, wider: int) -> np.ndarray:
    """(q,) score that a query's k-th best exceeds, but for one query in ten thousand or so.

    The number of sampled rows among the k best is hypergeometric, whatever the rows are.
    """
    size = sum(len(tile.norm) for tile in bank.sample)
    mean = k * size / len(bank)
    rank = wider * int(np.ceil(mean + 4.8 * np.sqrt(mean) + 1))
    if rank >= size:
        return np.full(len(coded.norm), -np.inf)
    found = [
        floats(bank.screen.scores(coded, tile, {})) - bank.screen.lift(coded, tile)
        for tile in bank.sample
    ]
    scores = np.concatenate(found, axis=1).astype(np.float32, copy=False)
    return np.partition(scores, size - rank, axis=1)[:, size - rank].astype(np.float64)


def _survivors(
    bank: Bank, coded: Coded, least: np.ndarray
) -> tuple[list[Pairs], np.ndarray, float]:
    """Pairs that may score `least` or more; (q,) how far off scores can be; the longest norm."""
    out: dict[Any, Any] = {}
    pairs: list[Pairs] = []
    total, bounds, longest = 0, np.zeros(len(least)), 0.0
    for first, rows in _tiles(bank):
        tile = bank.coded.get(first)
        if tile is None:
            tile = _code(bank, _centred(rows, bank))
        bound = bank.screen.bound(coded, tile) + _centring(bank, coded, tile)
        bounds, longest = np.maximum(bounds, bound), max(longest, float(tile.norm.max()))
        found = bank.screen.scores(coded, tile, out)
        flat = above(found, least - bound, out)
        query, row = np.divmod(flat.astype(np.uint32), np.uint32(len(rows)))
        score = floats(found.ravel()[flat])
        pairs.append(Pairs(first, query.view(np.int32), row.view(np.int32), score))
        total += len(flat)
        if total > _PAIRS and len(least) > 1:
            share = (first + len(rows)) / len(bank)
            raise _TooMany(max(2, int(total / share / _PAIRS) + 1))
    return pairs, bounds, longest


def _centring(bank: Bank, coded: Coded, tile: Coded) -> np.ndarray:
    """(q,) what single precision can cost a score before it is made.

    Centring rounds each number by a unit of it, and offsets are products of what is rounded so with
    the centre; dividing by a norm rounds rows of length 1 as they are before.
    """
    centre = np.linalg.norm(np.asarray(bank.centre, dtype=np.float64))
    norm = tile.norm.max(initial=0.0)
    offset = float(np.abs(tile.offset).max(initial=0.0))
    apart = (1.0 + centre) * (coded.norm + norm)
    if bank.metric == "cosine":
        apart += centre
    return np.asarray(8 * _U32 * (coded.norm * norm + apart + offset))
