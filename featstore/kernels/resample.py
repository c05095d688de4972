"""Confidence intervals of accuracies, and of their differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from featstore.kernels.metrics import check_labels


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction.

    Source: Wilson, *Probable Inference, the Law of Succession, and Statistical Inference* (1927).

    Parameters
    ----------
    successes : rows that are correct, 0..n
    n : rows; of 0 rows both limits are NaN
    confidence : share of repeated experiments whose interval holds the truth, nominally

    Raises
    ------
    ValueError
        `successes` lies outside 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n} (rows), got {successes}")
    if n == 0:
        return float("nan"), float("nan")
    z = float(ndtri(0.5 + confidence / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact limit is 0 or 1; rounding would put it beside.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return low, high


def stratified_bootstrap(
    correct: np.ndarray,
    labels: np.ndarray,
    n_categories: int,
    *,
    resamples: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean per-class accuracy, rows resampled within each category.

    Drawing n rows with replacement from a category with s correct ones among n, and counting the
    correct, is n independent draws that each succeed with probability s / n: a binomial number. So
    that number is drawn at once, and the result has exactly the distribution of the plain
    bootstrap. A category that is all right or all wrong contributes no width.

    Parameters
    ----------
    correct : (n,) bool
    labels : (n,) integer, each in 0..n_categories-1; a category without rows is left out
    n_categories : number of categories
    resamples : number of bootstrap resamples
    rng : source of randomness
    confidence : share of resamples inside the interval

    Returns
    -------
    low, high : in 0..1; NaN of no rows

    Raises
    ------
    ValueError
        `correct` is not boolean: the draws are binomial only then. A label is out of range.
    """
    if correct.dtype != np.bool_:
        raise ValueError(f"correct must be boolean, got {correct.dtype}")
    check_labels(labels, n_categories, xp=np)
    rows = np.bincount(labels, minlength=n_categories)
    hits = np.bincount(labels, weights=correct, minlength=n_categories)
    hits, rows = hits[rows > 0], rows[rows > 0]
    if len(rows) == 0:
        return float("nan"), float("nan")
    draws = rng.binomial(rows, hits / rows, size=(resamples, len(rows)))
    means = np.mean(draws / rows, axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of accuracy between every two of M models on the same rows.

    Attributes
    ----------
    value : (M, M) accuracy of the first model less that of the second
    low, high : (M, M) percentile interval
    p : (M, M) two-sided p-value of no difference: twice the smaller share of resamples on either
        side of 0, those at 0 on both and the sample itself counted in; 1 at most
    p_normal : (M, M) of a normal distribution that spreads as resamples do. `p` is no smaller than
        2 / (R + 1), which a family of many tests soon asks for. Where nothing spreads, it is `p`
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_normal: np.ndarray


def bootstrap_accuracies(
    correct: np.ndarray,
    *,
    resamples: int,
    rng: np.random.Generator,
    strata: np.ndarray | None = None,
    block: int = 32,
) -> np.ndarray:
    """Accuracy of every model in each resample of the rows, the same rows for all models.

    So all that compares models is read off it: `paired_differences`, ranks, their intervals. A
    resample is a vector of how often each row is drawn, and all sums are one product of these
    counts with `correct`: integers below 2**24, which float32 adds without rounding.

    Of a category one row less is drawn than it has, or small ones would spread too little: by half
    the variance if they have two. Source: McCarthy, Snowden, *The Bootstrap and Finite Population
    Sampling* (1985); Rao, Wu, *Resampling Inference with Complex Survey Data* (1988).

    Parameters
    ----------
    correct : (n, M) bool, n in 1..2**24 rows and M models
    resamples : R
    rng : source of randomness; it gives the same resamples in blocks of any size
    strata : (n,) integer, the category of each row: rows are drawn within categories, and an
        accuracy is the mean over those that there are. One of a single row spreads by nothing
    block : resamples whose counts are in memory at a time, n numbers each

    Returns
    -------
    accuracies : (R, M) float64 in 0..1

    Raises
    ------
    ValueError
        `correct` is not boolean or of another shape, or `strata` are; a number lies outside its
        range.
    """
    if correct.dtype != np.bool_ or correct.ndim != 2 or 0 in correct.shape:
        raise ValueError(
            f"correct must be boolean and (n, M), neither 0, got {correct.dtype} {correct.shape}"
        )
    n = len(correct)
    if n > 2**24:
        raise ValueError(f"correct must have 1..{2**24} rows, got {n}")
    if min(resamples, block) < 1:
        raise ValueError(f"resamples and block must be at least 1, got {resamples} and {block}")
    first: int | np.ndarray = 0
    beyond: int | np.ndarray = n
    draws = n
    right: np.ndarray = correct.astype(np.float32)
    if strata is not None:
        if strata.shape != (n,):
            raise ValueError(f"strata must be ({n},) as rows of correct, got {strata.shape}")
        size = np.unique(strata, return_counts=True)[1]
        drawn = np.maximum(size - 1, 1)
        draws = int(drawn.sum())
        beyond = np.repeat(np.cumsum(size), drawn)
        first = beyond - np.repeat(size, drawn)
        share = n / (len(size) * np.repeat(drawn, size)[:, None])
        right = correct[np.argsort(strata, kind="stable")] * share
    hits = np.empty((resamples, correct.shape[1]), right.dtype)
    counts = np.empty((min(block, resamples), n), right.dtype)
    for start in range(0, resamples, block):
        some = counts[: min(block, resamples - start)]
        for one in some:
            one[:] = np.bincount(rng.integers(first, beyond, size=draws), minlength=n)
        np.matmul(some, right, out=hits[start : start + len(some)])
    accuracies = hits / np.float64(n)
    # Sums of shares round: without this, models that are the same would differ by it.
    return accuracies if strata is None else np.round(accuracies, 12)


def paired_differences(
    accuracy: np.ndarray, accuracies: np.ndarray, *, confidence: float = 0.95
) -> PairedDifferences:
    """Differences between every two models, with intervals and p-values.

    Source: Efron, Tibshirani, *An Introduction to the Bootstrap* (1993), 13.3; the p-value is
    the one at which the percentile interval begins to leave 0 out, but for the sample counted in.

    Parameters
    ----------
    accuracy : (M,) of all rows
    accuracies : (R, M) of resamples, of `bootstrap_accuracies` or the mean of several such
    confidence : share of resamples inside the interval, above 0 and below 1

    Raises
    ------
    ValueError
        The two are not of as many models, or `confidence` lies outside its range.
    """
    if accuracies.ndim != 2 or accuracy.shape != accuracies.shape[1:]:
        raise ValueError(
            f"accuracies must be (R, M) and accuracy (M,), of as many models, got "
            f"{accuracies.shape} and {accuracy.shape}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in 0..1 and be neither, got {confidence:g}")
    models = len(accuracy)
    value = accuracy[:, None] - accuracy
    low, high, p, p_normal = (np.empty((models, models)) for _ in range(4))
    ends = [0.5 - confidence / 2, 0.5 + confidence / 2]
    for i in range(models):
        apart = accuracies[:, i : i + 1] - accuracies
        low[i], high[i] = np.quantile(apart, ends, axis=0)
        side = np.minimum((apart <= 0).sum(axis=0), (apart >= 0).sum(axis=0))
        p[i] = np.minimum(1.0, 2 * (side + 1) / (len(apart) + 1))
        spread = apart.std(axis=0)
        far = np.divide(np.abs(value[i]), spread, out=np.zeros(models), where=spread > 0)
        p_normal[i] = np.where(spread > 0, 2 * ndtr(-far), p[i])
    return PairedDifferences(value, low, high, p, p_normal)
