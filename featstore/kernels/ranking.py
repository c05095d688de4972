"""Exact values of the pairs that a screen leaves, and the best of them for each query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featstore.kernels.pairs import pair_dots
from featstore.kernels.scale import sum_last

_CLOSE = 1e-4  # squared distances below this share of |q|^2 + |x|^2 are summed from differences
_STRIP = 128  # rows squared at a time
_NOWHERE = 2**62  # stands where there is no row


@dataclass(frozen=True)
class Pairs:
    """What a tile may hold of the best.

    Attributes
    ----------
    first : row of the bank at which the tile begins
    query : (p,) int32, ascending ; row : (p,) int32 of the tile, ascending for each query
    score : (p,) float32, rough
    """

    first: int
    query: np.ndarray
    row: np.ndarray
    score: np.ndarray

    def where(self, mask: np.ndarray) -> Pairs:
        """Some of them."""
        kept = np.flatnonzero(mask)
        return Pairs(self.first, self.query[kept], self.row[kept], self.score[kept])


@dataclass(frozen=True)
class Asked:
    """Queries in double precision, and what connects their scores with values.

    Attributes
    ----------
    wide : (q, d) as they are ; square : (q,) their squared norms
    scale : what a screen takes rows and queries times
    shift : (q,) score less the value that it stands for, or less minus half a squared distance
    size : (q,) norm of a query as its score takes it, and of the centre
    """

    metric: str
    wide: np.ndarray
    square: np.ndarray
    scale: float
    shift: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, centre: np.ndarray, scale: float, metric: str) -> Asked:
        """Queries (q, d) of a bank whose rows are scaled, then centred by `centre` (d,)."""
        wide, centre = queries.astype(np.float64), centre.astype(np.float64)
        square = squares(queries)
        size = np.sqrt(square)
        if metric == "euclidean":
            shift = squares(wide, scale, centre) / 2
        else:
            shift = -np.einsum("ij,j->i", wide, centre) * scale
        if metric == "cosine":
            size = np.where(square == 0, 1, size)
            shift, size = shift / size, np.ones_like(size)
        apart = np.sqrt(squares(centre[None]))[0]
        return cls(metric, wide, square, scale, shift, size * scale + apart)

    def scores(self, value: np.ndarray, query: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """(p,) scores, rounded down, of values as `values` gives them.

        Parameters
        ----------
        value, query : (p,) of pairs
        norm : (p,) of their rows of the bank, scaled and centred
        """
        found = (value * self.scale) * self.scale  # the square of a scale might overflow
        found = self.shift[query] - (found / 2 if self.metric == "euclidean" else found)
        # A sum of d products is off by d units of |q| |x|, a norm by less.
        units = (2 * self.wide.shape[1] + 64) * 2.0**-53
        return np.asarray(found - units * (self.size[query] + norm) ** 2)


def values(
    asked: Asked,
    tiles: Iterable[tuple[int, np.ndarray]],
    pairs: Sequence[Pairs],
    known: dict[int, np.ndarray],
) -> list[np.ndarray]:
    """Of each tile (p,) squared distances or negated similarities, each from its two rows alone.

    Squared norms of rows are kept in `known`, by the first row of their tile.
    """
    found = []
    for one, (first, rows) in zip(pairs, tiles, strict=True):
        query, row = one.query, one.row
        if not len(query):
            found.append(np.empty(0))
            continue
        used = np.zeros(len(rows), bool)
        used[row] = True
        few = 2 * np.count_nonzero(used) < len(rows)  # then the others need not even be read
        if few:
            rows, row = rows[used], (np.cumsum(used) - 1)[row]
        x = widened(rows, np.float64)
        value = -_dots(asked.wide, x, query, row)
        if asked.metric != "inner":
            if few:
                square = squares(x)
            else:
                if first not in known:
                    known[first] = squares(x)
                square = known[first]
        if asked.metric == "cosine":
            # Not the root of the product, which overflows where neither of the two does.
            size = np.sqrt(asked.square)[query] * np.sqrt(square)[row]
            value /= np.where(size == 0, 1, size)
        if asked.metric == "euclidean":
            both = asked.square[query] + square[row]
            value = both + 2 * value
            close = np.flatnonzero(value < _CLOSE * both)
            for some in np.array_split(close, len(close) * x.shape[1] // 2**20 + 1):
                apart = asked.wide[query[some]] - x[row[some]]
                value[some] = sum_last(apart * apart)
        found.append(value)
    return found


def squares(rows: np.ndarray, scale: float = 1.0, centre: np.ndarray | None = None) -> np.ndarray:
    """(n,) float64 sums of squares of rows (n, d), or of these times `scale` less `centre` (d,).

    A row's is the same in whatever block it stands.
    """
    found = np.empty(len(rows))
    for start in range(0, len(rows), _STRIP):  # copies of all rows would be the largest buffers
        wide = rows[start : start + _STRIP].astype(np.float64)
        if centre is not None:
            wide = wide * scale - centre
        found[start : start + _STRIP] = sum_last(wide * wide)
    return found


def widened(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """Rows as float32 or float64; of float16 by torch, up to ten times as fast as NumPy."""
    if rows.dtype != np.float16:
        return rows.astype(dtype, copy=False)
    if not (rows.flags.writeable and rows.flags.c_contiguous):
        rows = rows.copy()  # torch warns of what it may not write
    wide = torch.float32 if dtype == np.float32 else torch.float64
    return np.asarray(torch.from_numpy(rows).to(wide).numpy())


def best(
    pairs: Sequence[Pairs], found: Sequence[np.ndarray], count: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k lowest of each query's values (count, k) and their rows, ties by lower row.

    Of fewer pairs than k the rest is infinite.
    """
    of = [one.query for one in pairs]
    rank = by_query(of, found, count, np.inf)
    place = by_query(of, [one.row.astype(np.int64) + one.first for one in pairs], count, _NOWHERE)
    short = ((0, 0), (0, max(0, k - rank.shape[1])))
    rank = np.pad(rank, short, constant_values=np.inf)
    place = np.pad(place, short, constant_values=_NOWHERE)
    order = np.argsort(rank, axis=1, kind="stable")
    rank, place = (np.take_along_axis(one, order, 1) for one in (rank, place))
    # Rows do not ascend among all pairs, so equal values may stand in another order than theirs.
    wrong = (rank[:, 1:] == rank[:, :-1]) & (place[:, 1:] < place[:, :-1])
    for query in np.flatnonzero(wrong.any(axis=1)):
        again = np.lexsort((place[query], rank[query]))
        rank[query], place[query] = rank[query, again], place[query, again]
    return rank[:, :k], place[:, :k]


def by_query(
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


def _dots(queries: np.ndarray, rows: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
    starts = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(np.bincount(query, minlength=len(queries)), out=starts[1:])
    tensors = (torch.from_numpy(one) for one in (queries, rows, starts, row.astype(np.int64)))
    return np.asarray(pair_dots(*tensors).numpy())
