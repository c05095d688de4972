"""Exact nearest neighbours on a GPU, the bank staged tile by tile: screened on tensor cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from featstore.cuda import Array, Cuda, Device
from featstore.kernels.streamed_search import Lists, Screen, Side, search

MOST_K = 2048
"""Most neighbours: a list and its candidates are sorted in 48 KiB of a multiprocessor's memory."""

METRICS = ("inner", "cosine", "euclidean")  # as the kernel `exact` numbers them

_TILE_ROWS = 16_384
_QUERY_ROWS = 8192
_FEWEST = 256  # rows of a tile, and queries: with fewer, a product is slow and still takes memory
_SORTED = 1024, 2 * MOST_K  # fewest and most elements of a list and its candidates
_ELEMENT = 12  # bytes of a value and a row

Candidates: TypeAlias = tuple[Array, Array]
"""Columns (q, most_candidates) int32 and how many there are, (q,) int32."""


def nearest_cuda(
    bank: Any,
    queries: Any,
    *,
    k: int,
    metric: str,
    first: int = 0,
    memory: int | None = None,
    device: Device | None = None,
) -> tuple[Array, Array]:
    """The k nearest rows of a bank to each query, exactly, as `neighbours.nearest` defines them.

    But rows are not checked for a direction here: the cosine with one of zeros is 0.

    No division into tiles changes a bit. The bank passes by once (once for every block of
    queries, where memory cannot hold all of them), in tiles copied to the GPU while the one before
    is searched; lists that fail their proof, which those of rows in random order do not, cost a
    second pass.

    Rows of float16 are exact on tensor cores; others are screened by a float16 copy, whose error
    is part of the proof. All values come from float64 sums over the rows as they are.

    Parameters
    ----------
    bank : (n, d) floating, finite: a numpy or cupy array, or what else has a shape and a dtype and
        gives numpy rows for a slice, from several threads at a time
    queries : (q, d) floating, finite; numpy or cupy
    k : neighbours wanted, in 1..2048
    metric : `euclidean` (value: distance, ascending), `cosine` or `inner` (descending)
    first : position in a larger bank of the first row of this one
    memory : most bytes to use on the GPU; None is four fifths of what is free
    device : where to compute; None is the current GPU

    Returns
    -------
    value : (q, min(k, n)) float64 ; index : (q, min(k, n)) int64, on the GPU. Ties: lower row first

    Raises
    ------
    ValueError
        k, the metric or the widths are wrong, a value is not finite, or memory is too small.
    """
    _check(bank, queries, k, metric)
    device = Cuda() if device is None else device
    xp, k = device.xp, min(k, bank.shape[0])
    value = xp.empty((queries.shape[0], k), dtype=xp.float64)
    index = xp.empty((queries.shape[0], k), dtype=xp.int64)
    if value.size == 0:
        return value, index
    dtype = _common(bank, queries)
    plan = plan_sizes(
        bank.shape,
        queries.shape[0],
        k=k,
        itemsize=dtype.itemsize,
        memory=device.free_memory() * 4 // 5 if memory is None else memory,
    )
    searcher = CudaSearcher(device, plan, k, metric, bank.shape[1])
    for start in range(0, queries.shape[0], plan.queries):
        some = slice(start, min(start + plan.queries, queries.shape[0]))
        found, row = search(
            searcher,
            lambda: _tiles(device, bank, plan, dtype),
            _padded(device, queries[some], plan.stride, dtype),
            k=k,
            metric=metric,
            n_rows=bank.shape[0],
            width=bank.shape[1],
            query_rows=plan.query_rows,
        )
        value[some, :] = -found if metric == "euclidean" else found
        index[some, :] = row
    index += first
    return value, index


def _check(bank: Any, queries: Any, k: int, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if not 1 <= k <= MOST_K:
        raise ValueError(f"k must lie in 1..{MOST_K} on a GPU, got {k}")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank has rows of width {bank.shape[1]}, queries of {queries.shape[1]}")
    if bank.shape[0] >= 2**31 - 1:
        raise ValueError(f"a bank has fewer than 2**31 - 1 rows on a GPU, got {bank.shape[0]}")


@dataclass(frozen=True)
class Plan:
    """Sizes of what is on the GPU at a time.

    Attributes
    ----------
    queries : in one pass over the bank ; query_rows : of them, in one product
    tile_rows : of the bank ; stride : elements from one row to the next
    sorted : elements of a query's list and its candidates together
    bytes : that all of it takes
    """

    queries: int
    query_rows: int
    tile_rows: int
    stride: int
    sorted: int
    bytes: int


def plan_sizes(
    bank: tuple[int, int], n_queries: int, *, k: int, itemsize: int, memory: int
) -> Plan:
    """The largest sizes that keep within memory, up to those beyond which nothing gets faster.

    Parameters
    ----------
    bank : its shape (n, d)
    itemsize : bytes of an element of the bank and the queries
    memory : bytes

    Raises
    ------
    ValueError
        Even the smallest sizes take more.
    """
    stride = -(-bank[1] // 8) * 8
    room = _SORTED[0]
    while room < min(4 * k, _SORTED[1]):
        room *= 2
    row = stride * (itemsize if itemsize == 2 else itemsize + 2) + 64
    staged = stride * itemsize

    def total(queries: int, query_rows: int, tile_rows: int) -> int:
        # Twice the queries: those whose list fails are copied and searched for again.
        lists = 2 * queries * (row + k * _ELEMENT + 128) + n_queries * k * 16
        candidates = query_rows * (room - k) * _ELEMENT
        return lists + candidates + tile_rows * (row + staged + query_rows * 4)

    sizes = [n_queries, min(n_queries, _QUERY_ROWS), min(-(-bank[0] // 8) * 8, _TILE_ROWS)]
    while (need := total(*sizes)) > memory:
        tries = []
        for i in range(3):
            smaller = list(sizes)
            smaller[i] = min(sizes[i], max(_FEWEST, -(-sizes[i] // 16) * 8))
            smaller[1] = min(smaller[:2])
            tries.append(smaller)
        sizes = min(tries, key=lambda each: total(*each))
        if total(*sizes) == need:
            raise ValueError(
                f"memory of {memory} bytes is too small to search {bank[0]} rows of width "
                f"{bank[1]}: {need} are the least"
            )
    return Plan(sizes[0], sizes[1], sizes[2], stride=stride, sorted=room, bytes=need)


class CudaSearcher:
    """The three steps of a search by cuBLAS and raw kernels; one block of queries at a time."""

    def __init__(self, device: Device, plan: Plan, k: int, metric: str, width: int) -> None:
        xp = self.xp = device.xp
        self.device, self.plan, self.width = device, plan, width
        self.metric = METRICS.index(metric)
        self.most_candidates = plan.sorted - k
        kept = plan.query_rows, self.most_candidates
        self._scores = xp.empty((plan.query_rows, plan.tile_rows), dtype=xp.float32)
        self._columns = xp.empty(kept, dtype=xp.int32)
        self._values = xp.empty(kept, dtype=xp.float64)
        self._count = xp.zeros(plan.query_rows, dtype=xp.int32)  # `keep` sets it back to 0

    def side(self, rows: Array) -> Side:
        """Lengths of (n, stride) rows; a copy in halves, unless that is what they are."""
        xp, n = self.xp, rows.shape[0]
        halves = rows if rows.dtype == xp.float16 else xp.empty(rows.shape, dtype=xp.float16)
        norm, residual = xp.empty((2, n), dtype=xp.float64)
        scale = xp.empty(n, dtype=xp.float32)
        args = rows, n, self.width, rows.shape[1], halves, norm, residual, scale
        self.device.launch(f"measure_{rows.dtype.name}", (-(-n // 8),), 256, args)
        return Side(rows, halves, norm, residual, scale)

    def screen(self, queries: Side, tile: Side, screen: Screen) -> Candidates:
        """Columns of the tile whose score reaches the query's threshold."""
        q, t = len(queries), len(tile)
        scores, columns, count = self._scores[:q, :t], self._columns[:q, :], self._count[:q]
        self.device.product(queries.halves, tile.halves, scores, form="nt")
        args = (
            self._scores,
            q,
            t,
            self._scores.shape[1],
            screen.row_scale,
            screen.threshold,
            screen.column_scale,
            screen.column_bias,
            self.most_candidates,
            columns,
            count,
        )
        self.device.launch("survivors", (-(-t // 1024), -(-q // 16)), 256, args)
        return columns, count

    def measure(self, queries: Side, tile: Side, candidates: Candidates) -> Array:
        """Values (q, most_candidates) float64 of the candidates there are."""
        columns, count = candidates
        q = len(queries)
        args = (
            queries.rows,
            tile.rows,
            self.plan.stride,
            queries.norm,
            tile.norm,
            self.metric,
            self.most_candidates,
            columns,
            count,
            self._values,
        )
        self.device.launch(f"exact_{tile.rows.dtype.name}", (q,), 128, args)
        return self._values[:q, :]

    def keep(self, lists: Lists, candidates: Candidates, values: Array, first: int) -> None:
        """Sort lists and candidates together; the k best are the lists."""
        columns, count = candidates
        q, k = lists.value.shape
        args = (
            k,
            self.most_candidates,
            values,
            columns,
            count,
            first,
            lists.value,
            lists.row,
            lists.overflow,
        )
        self.device.launch("keep", (q,), 128, args, shared=self.plan.sorted * _ELEMENT)


def _common(bank: Any, queries: Any) -> np.dtype:
    """The narrowest of float16, float32 and float64 that holds both."""
    both = np.result_type(np.dtype(bank.dtype), np.dtype(queries.dtype))
    return both if both in (np.float16, np.float32) else np.dtype(np.float64)


def _padded(device: Device, rows: Any, stride: int, dtype: np.dtype) -> Array:
    """Rows on the device, each followed by zeros up to the stride."""
    xp = device.xp
    if isinstance(rows, np.ndarray):
        host = np.zeros((rows.shape[0], stride), dtype)
        host[:, : rows.shape[1]] = rows
        return xp.asarray(host)
    if rows.dtype == dtype and rows.shape[1] == stride and rows.flags.c_contiguous:
        return rows
    padded = xp.zeros((rows.shape[0], stride), dtype=dtype)
    padded[:, : rows.shape[1]] = rows
    return padded


def _tiles(device: Device, bank: Any, plan: Plan, dtype: np.dtype) -> Iterator[tuple[int, Array]]:
    """One pass over the bank."""
    n, width = bank.shape
    spans = [(i, min(i + plan.tile_rows, n)) for i in range(0, n, plan.tile_rows)]

    def fill(start: int, stop: int, out: np.ndarray) -> None:
        out[:, :width] = bank[start:stop]
        out[:, width:] = 0

    if not isinstance(bank, np.ndarray) and isinstance(bank[:0], device.xp.ndarray):
        for start, stop in spans:  # on the GPU already
            yield start, _padded(device, bank[start:stop], plan.stride, dtype)
        return
    staged = device.stage(fill, spans, (plan.tile_rows, plan.stride), dtype)
    yield from zip((start for start, _ in spans), staged, strict=True)
