"""Exact nearest neighbours of one block of a bank, and the merge of such lists."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import array_api_compat

from featstore.backend import Array, strip_size
from featstore.kernels import cuda_neighbours
from featstore.kernels.scale import l2_normalise, sum_last
from featstore.kernels.search import LARGEST, METRICS, Bank, search

Neighbours: TypeAlias = tuple[Array, Array]
"""Values (q, k) float64 and rows of the bank (q, k) int64, the best first, ties by lower row."""


_BANK_ROWS = 16_384  # rows of the bank compared at a time
_COSTS = 2**23  # float64 in one matrix of costs, queries x rows: 64 MiB
_PAD = 4  # candidates beyond k; with none, no list could be certified
_GROWTH = 8  # an uncertified list is made again from this many times as many candidates
_EPS = 2.0**-52
_TINY = 2.0**-1022


def nearest(
    bank: Array,
    queries: Array,
    *,
    k: int,
    metric: str,
    first: int = 0,
    xp: Any,
) -> Neighbours:
    """The k nearest rows of one block of a bank to each query, exactly.

    However bank and queries are divided into blocks, the merged lists hold the same rows and the
    same values bit for bit: a value is made from its own pair of rows alone, in double precision.
    That of a duplicate is 0 under `euclidean`. The last bits differ between namespaces.

    In numpy it is `featstore.kernels.search`, for whole banks as well: values are dot products, and
    distances come from these and squared norms, or where two rows are close from differences. In
    cupy it is `featstore.kernels.cuda_neighbours`, for k up to 2048. Elsewhere values are sums of
    element-wise products or squared differences, and a matrix product only proposes candidates. A
    list stands when the last of its k values is better
    than any row left out can be, given a bound on the product's rounding error (Higham, *Accuracy
    and Stability of Numerical Algorithms*, 2nd ed., section 3.1: it holds for every order of
    summation); else it is made again from more candidates, in the end from all rows of the block.

    Parameters
    ----------
    bank : (n, d) floating, finite; n >= 0, and fewer than k rows give all of them
    queries : (q, d) floating, finite
    k : neighbours wanted, at least 1
    metric : `euclidean` (value: distance, ascending), `cosine` (value: similarity, descending; rows
        are normalised here), `inner` (value: product, descending)
    first : position in the whole bank of the first row of this block
    xp : array namespace of both arrays

    Returns
    -------
    value : (q, min(k, n)) float64 ; index : (q, min(k, n)) int64. Ties: the lower row first.

    Raises
    ------
    ValueError
        `k` is less than 1, the metric is not one of the three, the widths differ, or a row is one
        that `check_rows` refuses.
    """
    _check_options(k, metric)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank has rows of width {bank.shape[1]}, queries of {queries.shape[1]}")
    check_rows("bank", bank, metric, xp=xp)
    check_rows("queries", queries, metric, xp=xp)
    if array_api_compat.is_numpy_namespace(xp) and bank.shape[0]:
        value, index = search(Bank.of_array(bank, metric), queries, k=k)
        return value, index + first
    if array_api_compat.is_cupy_namespace(xp) and k <= cuda_neighbours.MOST_K and bank.shape[0]:
        return cuda_neighbours.nearest_cuda(bank, queries, k=k, metric=metric, first=first)
    queries = _prepare(queries, metric, xp)
    found = (
        xp.zeros((queries.shape[0], 0), dtype=xp.float64),
        xp.zeros((queries.shape[0], 0), dtype=xp.int64),
    )
    for start in range(0, bank.shape[0], _BANK_ROWS):
        tile = _prepare(bank[start : min(start + _BANK_ROWS, bank.shape[0]), :], metric, xp)
        value, index = _nearest_in_tile(tile, queries, k, metric, xp)
        part = (value, index + (first + start))
        found = part if start == 0 else merge_nearest(found, part, k=k, metric=metric, xp=xp)
    return found


def _check_options(k: int, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def check_rows(name: str, rows: Array, metric: str, *, first: int = 0, xp: Any) -> None:
    """Refuse rows that no distance is defined for; `first` is the number of the first of them.

    Raises
    ------
    ValueError
        A number is NaN, infinite, or 2**500 (3.3e150) or more; or, under `cosine`, a row is zero
        and has no direction, or holds no number of 2**-500 or more, so that its square vanishes.
    """
    largest = xp.maximum(xp.max(rows, axis=1), -xp.min(rows, axis=1))
    wide = rows.dtype == xp.float64  # in which alone squares can overflow
    _refuse(largest < math.inf, f"{name} must be finite", "is not", first, xp)
    if wide:
        within = f"{name} must lie within 2**500 (3.3e150) of 0, beyond which squares overflow"
        _refuse(largest < LARGEST, within, "does not", first, xp)
    if metric == "cosine":
        some = f"{name} must hold no row of zeros, which has no cosine"
        _refuse(largest > 0, some, "is one", first, xp)
        if wide:
            some = f"{name} must hold a number of 2**-500 or more, below which squares vanish"
            _refuse(largest >= 1 / LARGEST, some, "does not", first, xp)


def _refuse(sound: Array, rule: str, verdict: str, first: int, xp: Any) -> None:
    if not bool(xp.all(sound)):
        row = first + int(xp.argmin(xp.astype(sound, xp.int8)))
        raise ValueError(f"{rule}, and row {row} {verdict}")


def merge_nearest(a: Neighbours, b: Neighbours, *, k: int, metric: str, xp: Any) -> Neighbours:
    """The k best of two lists over different rows of a bank; associative and commutative.

    Parameters
    ----------
    a, b : (value (q, .) float64, index (q, .) int64) as `nearest` returns them
    k, metric : as for `nearest`
    xp : array namespace of the four arrays

    Returns
    -------
    value, index : (q, min(k, values in both lists))

    Raises
    ------
    ValueError
        `k` is less than 1, the metric is not one of the three, or the lists are of unlike queries.
    """
    _check_options(k, metric)
    if a[0].shape[0] != b[0].shape[0]:
        raise ValueError(
            f"lists must be of the same queries, got {a[0].shape[0]} in a, {b[0].shape[0]} in b"
        )
    value = xp.concat((a[0], b[0]), axis=1)
    index = xp.concat((a[1], b[1]), axis=1)
    by_row = xp.argsort(index, axis=1)
    value = xp.take_along_axis(value, by_row, axis=1)
    index = xp.take_along_axis(index, by_row, axis=1)
    return _best(value, index, k, metric, xp)


def _prepare(rows: Array, metric: str, xp: Any) -> Array:
    if metric == "cosine":
        return l2_normalise(rows, xp=xp)
    return xp.astype(rows, xp.float64)


def _nearest_in_tile(tile: Array, queries: Array, k: int, metric: str, xp: Any) -> Neighbours:
    n, width = tile.shape
    square = sum_last(tile * tile)
    longest = xp.sqrt(xp.max(square))
    # Both what is summed here and the direct values are off by at most width + 10 rounding units of
    # (|q| + |b|)^2, or of |q| |b|; four times that covers the rounding of the bound itself.
    slack = (4 * width + 64) * _EPS
    parts = []
    step = max(1, _COSTS // n)
    for start in range(0, queries.shape[0], step):
        some = queries[start : min(start + step, queries.shape[0]), :]
        length = sum_last(some * some)
        if metric == "euclidean":
            # The product is scaled before, exactly; |q|^2 changes no order, so the limits carry it.
            cost = (-2.0 * some) @ tile.T
            cost += square
            bound = slack * (xp.sqrt(length) + longest) ** 2 + width * _TINY
            limits = length, bound
        else:
            cost = (-some) @ tile.T
            bound = slack * xp.sqrt(length) * longest + width * _TINY
            limits = xp.zeros_like(length), bound
        parts.append(_certified(tile, some, cost, limits, k, metric, min(n, k + _PAD), xp))
    if len(parts) == 1:
        return parts[0]
    value = [part[0] for part in parts] or [xp.zeros((0, min(k, n)), dtype=xp.float64)]
    index = [part[1] for part in parts] or [xp.zeros((0, min(k, n)), dtype=xp.int64)]
    return xp.concat(value, axis=0), xp.concat(index, axis=0)


def _certified(
    tile: Array,
    queries: Array,
    cost: Array,
    limits: tuple[Array, Array],
    k: int,
    metric: str,
    m: int,
    xp: Any,
) -> Neighbours:
    """The k best of the m cheapest rows, and of more of them where m prove too few.

    `limits` holds, per query, what a cost lacks of the negated similarity or squared distance, and
    how far off the sum of the two can be.
    """
    n = tile.shape[0]
    near = _cheapest(cost, m, xp)
    last = xp.take_along_axis(cost, near[:, m - 1 :], axis=1)[:, 0]
    near = xp.sort(near, axis=1)
    value, index = _best(_values(tile, queries, near, metric, xp), near, k, metric, xp)
    if m == n:
        return value, index
    worst = value[:, -1]
    worst = worst * worst if metric == "euclidean" else -worst
    sure = worst < last + limits[0] - limits[1]
    if bool(xp.all(sure)):
        return value, index
    redo = xp.nonzero(~sure)[0]
    again = _certified(
        tile,
        xp.take(queries, redo, axis=0),
        xp.take(cost, redo, axis=0),
        (xp.take(limits[0], redo, axis=0), xp.take(limits[1], redo, axis=0)),
        k,
        metric,
        min(n, _GROWTH * m),
        xp,
    )
    # Row i of the answer is row i of the first try, or the next row of the second.
    count = value.shape[0]
    missed = xp.astype(~sure, xp.int64)
    source = xp.where(sure, xp.arange(count, dtype=xp.int64), count - 1 + xp.cumulative_sum(missed))
    value = xp.take(xp.concat((value, again[0]), axis=0), source, axis=0)
    index = xp.take(xp.concat((index, again[1]), axis=0), source, axis=0)
    return value, index


def _cheapest(cost: Array, m: int, xp: Any) -> Array:
    """Columns of the m lowest costs of each row (q, m), the highest of them last."""
    if m == cost.shape[1]:
        return xp.broadcast_to(xp.arange(m, dtype=xp.int64), cost.shape)
    if hasattr(xp, "argpartition"):  # not in the standard
        return xp.argpartition(cost, m - 1, axis=1)[:, :m]
    return xp.argsort(cost, axis=1)[:, :m]


def _values(tile: Array, queries: Array, near: Array, metric: str, xp: Any) -> Array:
    """Distance or similarity (q, m) of each query to its m rows, a few pairs at a time."""
    width = tile.shape[1]
    (count, m), gathered = near.shape, strip_size(xp)
    columns = min(m, max(1, gathered // width))
    rows = max(1, gathered // (width * columns))
    strips = []
    for top in range(0, count, rows):
        bottom = min(top + rows, count)
        mine = queries[top:bottom, None, :]
        pieces = []
        for left in range(0, m, columns):
            some = near[top:bottom, left : min(left + columns, m)]
            pairs = xp.reshape(xp.take(tile, xp.reshape(some, (-1,)), axis=0), (*some.shape, width))
            if metric == "euclidean":
                pairs -= mine
                pairs *= pairs
            else:
                pairs *= mine
            pieces.append(sum_last(pairs))
        strips.append(pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=1))
    value = strips[0] if len(strips) == 1 else xp.concat(strips, axis=0)
    return xp.sqrt(value) if metric == "euclidean" else value + 0.0  # -0.0 would be another value


def _best(value: Array, index: Array, k: int, metric: str, xp: Any) -> Neighbours:
    """The k best of lists whose rows of the bank ascend, so that a stable sort settles ties."""
    order = xp.argsort(value if metric == "euclidean" else -value, axis=1)
    order = order[:, : min(k, value.shape[1])]
    return xp.take_along_axis(value, order, axis=1), xp.take_along_axis(index, order, axis=1)
