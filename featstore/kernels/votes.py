"""What nearest neighbours say of a row's category: their weights, and the votes they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from featstore.backend import Array

_TIED = 1 - 1e-12  # share of the largest sum from which on another one ties with it


def inverse_distance_weights(distance: Array, *, xp: Any) -> Array:
    """Vote weight 1 / distance; where a distance is 0, those of 0 get 1 and the others 0.

    Parameters
    ----------
    distance : (q, k) float64, none negative
    xp : array namespace of `distance`

    Returns
    -------
    weights : (q, k) float64, as scikit-learn's `weights="distance"`
    """
    exact = distance == 0
    inverse = 1.0 / xp.where(exact, xp.ones_like(distance), distance)
    hit = xp.any(exact, axis=1, keepdims=True)
    return xp.where(hit, xp.astype(exact, distance.dtype), inverse)


def softmax_weights(similarity: Array, *, temperature: float, xp: Any) -> Array:
    """Vote weight exp(similarity / temperature), divided by that of the row's best neighbour.

    A common factor changes no vote; this one keeps the exponential from overflowing.
    Source: Wu et al., *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*
    (CVPR 2018), section 3.4, as DINO's kNN evaluation runs it.

    Parameters
    ----------
    similarity : (q, k) floating
    temperature : above 0; DINO's is 0.07
    xp : array namespace of `similarity`

    Returns
    -------
    weights : (q, k), in 0..1
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return xp.exp((similarity - xp.max(similarity, axis=1, keepdims=True)) / temperature)


def votes(labels: Array, weights: Array, *, n_categories: int, xp: Any) -> Array:
    """Sum of the neighbours' weights for each category; the first largest one is the prediction.

    Ties, up to a relative 1e-12: what is as close to the largest sum is given as that sum, so that
    `argmax` finds the lowest such category, in whatever order a sum was rounded. So `winners` does.

    Parameters
    ----------
    labels : (q, k) integer, each in 0..n_categories-1: the neighbours' categories
    weights : (q, k) floating, none negative
    n_categories : number of categories c
    xp : array namespace of both arrays

    Returns
    -------
    total : (q, c) float64, added in the order of the neighbours

    Raises
    ------
    ValueError
        A label is out of range, or shapes differ.
    """
    if weights.shape != labels.shape:
        raise ValueError(f"weights must be of shape {labels.shape}, got {weights.shape}")
    if 0 in labels.shape:
        return xp.zeros((labels.shape[0], n_categories), dtype=xp.float64)
    lowest, highest = int(xp.min(labels)), int(xp.max(labels))
    if lowest < 0 or highest >= n_categories:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"labels must lie in 0..{n_categories - 1} (categories), got {wrong}")
    if array_api_compat.is_numpy_namespace(xp):  # it adds in the order of the neighbours as well
        rows = np.arange(len(labels))[:, None] * n_categories
        flat = np.bincount(
            (rows + labels).ravel(), weights.ravel(), minlength=len(labels) * n_categories
        )
        total = flat.reshape(len(labels), n_categories)
    else:
        weights = xp.astype(weights, xp.float64)
        categories = xp.arange(n_categories, dtype=labels.dtype)[None, :]
        total = xp.zeros((labels.shape[0], n_categories), dtype=xp.float64)
        for j in range(labels.shape[1]):  # neighbour by neighbour: (q, k, c) at once would not fit
            chosen = xp.astype(labels[:, j : j + 1] == categories, xp.float64)
            total += chosen * weights[:, j : j + 1]
    most = xp.max(total, axis=1, keepdims=True)
    return xp.where(total >= most * _TIED, most, total)


def winners(labels: np.ndarray, weights: np.ndarray, *, ks: Sequence[int]) -> np.ndarray:
    """Predictions for several k and weightings at once, from lists sorted by nearness.

    A category's votes after each of its neighbours are running sums, so what wins among the first k
    is the largest of their first k, and the number of categories costs nothing. The sums, ties and
    predictions are those of `votes`.

    Parameters
    ----------
    labels : (q, m) integer from 0, below 2**40: the neighbours' categories
    weights : (q, m), or (w, q, m) of w weightings, floating; the first of each row above 0, and
        none negative
    ks : each in 1..m

    Returns
    -------
    predicted : (q, len(ks)) or (w, q, len(ks)) int64

    Raises
    ------
    ValueError
        A k or a label is out of range, or shapes do not fit.
    """
    count, m = labels.shape
    if not ks or min(ks) < 1 or max(ks) > m:
        raise ValueError(f"ks must lie in 1..{m} (neighbours in a list), got {list(ks)}")
    if weights.shape[-2:] != labels.shape or weights.ndim > 3:
        raise ValueError(
            f"weights must be of shape {labels.shape} or (w, {count}, {m}), got {weights.shape}"
        )
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0 or highest >= 2**40:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"labels must lie in 0..2**40-1, got {wrong}")
    each = weights[None] if weights.ndim == 2 else weights
    found = np.empty((len(each), count, len(ks)), np.int64)
    step = max(1, 2**17 // m)  # so that what is made of some rows stays in a core's cache
    for start in range(0, count, step):
        rows = slice(start, start + step)
        order = _Order.of(labels[rows])
        for number, one in enumerate(each):
            found[number, rows] = order.winners(one[rows], ks)
    return found.reshape(*weights.shape[:-1], len(ks))


@dataclass(frozen=True)
class _Order:
    """Lists of neighbours by category, then by nearness.

    Attributes
    ----------
    labels : (q, m) as given
    place : (m, q) flat places in the lists of what is sorted so
    more : (m, q) whether the one before is of the same category
    """

    labels: np.ndarray
    place: np.ndarray
    more: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> _Order:
        count, m = labels.shape
        bits = max(1, int(m - 1).bit_length())
        small = int(labels.max(initial=0)) < 2 ** (31 - bits)
        key: np.ndarray = labels.astype(np.uint32 if small else np.uint64)
        key = np.left_shift(key, bits) | np.arange(m, dtype=key.dtype)
        key.sort(axis=1)
        category = key >> bits
        more = np.zeros((m, count), bool)
        more[1:] = (category[:, 1:] == category[:, :-1]).T
        place = (key & (2**bits - 1)).astype(np.int64) + np.arange(count)[:, None] * m
        return cls(labels, np.ascontiguousarray(place.T), more)

    def winners(self, weights: np.ndarray, ks: Sequence[int]) -> np.ndarray:
        """(q, len(ks)) categories of most votes."""
        count, m = self.labels.shape
        total = np.take(weights, self.place).astype(np.float64, copy=False)
        for j in range(1, m):  # in the order of the neighbours, as `votes` adds
            np.add(total[j], total[j - 1], out=total[j], where=self.more[j])
        running = np.empty((count, m))
        np.put(running, self.place, total)
        most = np.maximum.accumulate(running, axis=1) * _TIED
        found = np.empty((count, len(ks)), np.int64)
        for column, k in enumerate(ks):
            tied = running[:, :k] >= most[:, k - 1 : k]
            found[:, column] = self.labels[np.arange(count), tied.argmax(axis=1)]
            several = np.flatnonzero(np.count_nonzero(tied, axis=1) > 1)
            some = np.where(tied[several], self.labels[several, :k], found[several, column, None])
            found[several, column] = some.min(axis=1)
        return found
