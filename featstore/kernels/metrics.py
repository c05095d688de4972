"""What a classifier's scores say of each row, and the summaries over rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from featstore.backend import Array

N_TOP = 5
"""Categories kept for each row."""

_LOWEST = -1.7976931348623157e308  # the lowest float64: what stands in for a score of -inf


class Outcomes(NamedTuple):
    """What is kept of the scores of n rows; m is 5, or the number of categories if that is less.

    Attributes
    ----------
    top : (n, m) int64, the categories with the largest scores, the best first
    top_score : (n, m) float64, their scores
    rank : (n,) int64, number of categories before the true one; 0 is a correct prediction
    margin : (n,) float64, score of the true category less the best of the others
    """

    top: Array
    top_score: Array
    rank: Array
    margin: Array


def outcomes(scores: Array, labels: Array, *, xp: Any) -> Outcomes:
    """Best categories of each row, and where its true category stands; ties: lower index first.

    Parameters
    ----------
    scores : (n, c) floating, larger is better; -inf is allowed (and returned as the lowest
        float64), NaN is not
    labels : (n,) integer, each in 0..c-1
    xp : array namespace of both arrays
    """
    n_categories = scores.shape[1]
    scores = xp.astype(scores, xp.float64)
    lowest = xp.full_like(scores, _LOWEST)  # so that no score equals the -inf of what is taken
    scores = xp.where(scores > lowest, scores, lowest)
    barred = xp.full_like(scores, -xp.inf)
    categories = xp.arange(n_categories, dtype=xp.int64)[None, :]
    labels = xp.astype(labels, xp.int64)[:, None]

    own = xp.take_along_axis(scores, labels, axis=1)
    before = (scores > own) | ((scores == own) & (categories < labels))
    rank = xp.sum(xp.astype(before, xp.int64), axis=1)
    best_other = xp.max(xp.where(categories == labels, barred, scores), axis=1)

    left, top = scores, []
    for _ in range(min(N_TOP, n_categories)):
        best = xp.argmax(left, axis=1, keepdims=True)
        top.append(best)
        left = xp.where(categories == best, barred, left)
    chosen = xp.concat(top, axis=1)
    top_score = xp.take_along_axis(scores, chosen, axis=1)
    return Outcomes(chosen, top_score, rank, own[:, 0] - best_other)


def top_k_accuracy(rank: np.ndarray, k: int) -> float:
    """Share of rows whose true category is among the k best; NaN of no rows.

    Parameters
    ----------
    rank : (n,) integer, 0 = best
    k : at least 1
    """
    return float(np.mean(rank < k)) if len(rank) else float("nan")


def mean_per_class(correct: np.ndarray, labels: np.ndarray, n_categories: int) -> float:
    """Mean over categories of the share of their rows that are correct; NaN of no rows.

    Parameters
    ----------
    correct : (n,) bool
    labels : (n,) integer, each in 0..n_categories-1; a category without rows is left out
    n_categories : number of categories
    """
    rows = np.bincount(labels, minlength=n_categories)
    hits = np.bincount(labels, weights=correct, minlength=n_categories)
    present = rows > 0
    return float(np.mean(hits[present] / rows[present])) if present.any() else float("nan")


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """Mean distance of accuracy from confidence over bins of equal width, weighted by their rows.

    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017),
    eq. 3. Bin b holds confidences in (b / bins, (b + 1) / bins], the first also 0.

    Parameters
    ----------
    confidence : (n,) floating in 0..1, probability of the predicted category
    correct : (n,) bool, whether it was the true one
    bins : number of bins

    Returns
    -------
    error : in 0..1; NaN of no rows
    """
    if len(confidence) == 0:
        return float("nan")
    place = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1
    place = np.clip(place, 0, bins - 1)
    gap = np.asarray(correct, dtype=np.float64) - confidence
    return float(np.sum(np.abs(np.bincount(place, weights=gap))) / len(confidence))
