"""What a classifier's scores say of each row, and the summaries over rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from featstore.backend import Array

N_TOP = 5
"""Categories kept for each row."""

N_BINS = 15
"""Bins of equal width by which calibration is measured."""

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


def check_labels(labels: Array, n_categories: int, *, xp: Any, name: str = "labels") -> None:
    """Refuse labels that are no integers in 0..n_categories-1.

    Two passes over them; of a GPU's array, two waits for its answer.

    Parameters
    ----------
    labels : (n,) any dtype ; n_categories : c ; name : what to call them
    xp : array namespace of `labels`

    Raises
    ------
    ValueError
        They are of another dtype, or one lies outside.
    """
    if not xp.isdtype(labels.dtype, "integral"):
        raise ValueError(f"{name} must be integers, got {labels.dtype}")
    if 0 in labels.shape:
        return
    low, high = int(xp.min(labels)), int(xp.max(labels))
    if low < 0 or high >= n_categories:
        raise ValueError(
            f"{name} must lie in 0..{n_categories - 1} (categories), got {low}..{high}"
        )


def outcomes(scores: Array, labels: Array, *, xp: Any) -> Outcomes:
    """Best categories of each row, and where its true category stands; ties: lower index first.

    Parameters
    ----------
    scores : (n, c) floating, larger is better; -inf is allowed (and returned as the lowest
        float64), NaN is not
    labels : (n,) integer, each in 0..c-1
    xp : array namespace of both arrays

    Raises
    ------
    ValueError
        A label is out of range: of a negative one the score would be that of another category.
    """
    n_categories = scores.shape[1]
    check_labels(labels, n_categories, xp=xp)
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


def own_score(scores: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """A dataset's own metric of scores (n, c), by which settings are chosen.

    Parameters
    ----------
    labels : (n,) categories; or (n, c) of several labels a row, 1 where present, of which it is
        the 11-point mean average precision whatever the metric
    metric : `top1` or `mean_per_class`
    """
    if labels.ndim == 2:
        return float(np.nanmean(interpolated_precision(scores, labels == 1)))
    right = scores.argmax(axis=1) == labels
    if metric == "mean_per_class":
        return mean_per_class(right, labels, scores.shape[1])
    return float(right.mean())


def mean_per_class(correct: np.ndarray, labels: np.ndarray, n_categories: int) -> float:
    """Mean over categories of the share of their rows that are correct; NaN of no rows.

    Parameters
    ----------
    correct : (n,) bool
    labels : (n,) integer, each in 0..n_categories-1; a category without rows is left out
    n_categories : number of categories

    Raises
    ------
    ValueError
        A label is out of range.
    """
    check_labels(labels, n_categories, xp=np)
    rows = np.bincount(labels, minlength=n_categories)
    hits = np.bincount(labels, weights=correct, minlength=n_categories)
    present = rows > 0
    return float(np.mean(hits[present] / rows[present])) if present.any() else float("nan")


def reliability_table(
    confidence: np.ndarray, correct: np.ndarray, bins: int = N_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows counted, and their confidence and accuracy averaged, in bins of equal width.

    Bin b holds confidences in (b / bins, (b + 1) / bins], the first also 0.

    Parameters
    ----------
    confidence : (n,) floating in 0..1, probability of the predicted category
    correct : (n,) bool, whether it was the true one
    bins : number of bins

    Returns
    -------
    count : (bins,) int64 rows
    mean_confidence, accuracy : (bins,) float64 means over them; NaN of none
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1
    place = np.clip(place, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    some = np.where(count > 0, count, np.nan)
    sums = [np.bincount(place, weights=one, minlength=bins) for one in (confidence, correct)]
    return count, sums[0] / some, sums[1] / some


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = N_BINS
) -> float:
    """Mean distance of accuracy from confidence over bins of equal width, weighted by their rows.

    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017),
    eq. 3.

    Parameters
    ----------
    confidence, correct, bins : as for `reliability_table`

    Returns
    -------
    error : in 0..1; NaN of no rows
    """
    if len(confidence) == 0:
        return float("nan")
    count, mean_confidence, accuracy = reliability_table(confidence, correct, bins)
    return float(np.nansum(count * np.abs(accuracy - mean_confidence)) / len(confidence))


def interpolated_precision(
    scores: np.ndarray, present: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """11-point average precision of each category.

    It is the mean over t = 0, 0.1, ..., 1 of the best precision at a recall of t or more; rows of
    equal score enter together, and no precision is taken for granted before the first. Source:
    Everingham, Van Gool, Williams, Winn, Zisserman, *The PASCAL Visual Object Classes (VOC)
    Challenge* (2010), section 4.2.

    Parameters
    ----------
    scores : (n, c) floating, larger is surer
    present : (n, c) bool
    weights : (..., n) how often each row counts, as in bootstrap draws; once by default

    Returns
    -------
    precision : (..., c) in 0..1; NaN for a category that no row has
    """
    n, n_categories = scores.shape
    weights = np.ones(n, np.int64) if weights is None else weights
    found = np.full((*weights.shape[:-1], n_categories), np.nan)
    for category in range(n_categories):
        order = np.argsort(-scores[:, category], kind="stable")
        ranked = scores[order, category]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        counted = weights[..., order]
        hits = np.cumsum(counted * present[order, category], axis=-1)[..., ends]
        rows = np.cumsum(counted, axis=-1)[..., ends]
        precision = np.divide(hits, rows, out=np.zeros(hits.shape), where=rows > 0)
        best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        total = hits[..., -1:]
        levels = []
        for tenth in range(11):  # in whole numbers, since 3/10 is not 0.3
            at = np.sum(10 * hits < tenth * total, axis=-1, keepdims=True)
            levels.append(np.take_along_axis(best, at, axis=-1)[..., 0])
        found[..., category] = np.where(total[..., 0] > 0, np.mean(levels, axis=0), np.nan)
    return found


def bootstrap_precision(
    scores: np.ndarray,
    present: np.ndarray,
    *,
    resamples: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean 11-point average precision, over draws of rows.

    Parameters
    ----------
    scores, present : as for `interpolated_precision`
    resamples : draws of n rows with replacement

    Returns
    -------
    low, high : in 0..1; a draw without any row of a category leaves that category out
    """
    n = len(scores)
    means = []
    for start in range(0, resamples, 50):  # 50 draws of 100,000 rows are 40 MB
        draws = rng.multinomial(n, np.full(n, 1 / n), size=min(50, resamples - start))
        means.append(np.nanmean(interpolated_precision(scores, present, draws), axis=-1))
    ends = [0.5 - confidence / 2, 0.5 + confidence / 2]
    low, high = np.quantile(np.concatenate(means), ends)
    return float(low), float(high)
