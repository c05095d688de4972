"""Confidence intervals of accuracies."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri


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
        `correct` is not boolean: the draws are binomial only then.
    """
    if correct.dtype != np.bool_:
        raise ValueError(f"correct must be boolean, got {correct.dtype}")
    rows = np.bincount(labels, minlength=n_categories)
    hits = np.bincount(labels, weights=correct, minlength=n_categories)
    hits, rows = hits[rows > 0], rows[rows > 0]
    if len(rows) == 0:
        return float("nan"), float("nan")
    draws = rng.binomial(rows, hits / rows, size=(resamples, len(rows)))
    means = np.mean(draws / rows, axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
