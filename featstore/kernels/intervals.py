"""Confidence intervals of correlations: by formula, from estimates without one unit, from draws.

A unit is what was drawn independently: a model or, where several models stem from one training
run, their lineage. Fewer than four units have no interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

Statistic = Literal["pearson", "spearman", "kendall"]
Interval = tuple[np.ndarray, np.ndarray]

FEWEST_UNITS = 4
_PERFECT = 1 - 1e-12  # a coefficient of 1 but for rounding


def fisher(
    r: np.ndarray, n: np.ndarray | int, *, statistic: Statistic, confidence: float = 0.95
) -> Interval:
    """Interval of a coefficient over n independent observations, by Fisher's z transformation.

    z = artanh(r) is taken as normal, of the standard deviation 1 / sqrt(n - 3) for Pearson
    (Fisher, *On the "probable error" of a coefficient of correlation deduced from a small sample*,
    1921), sqrt((1 + r^2 / 2) / (n - 3)) for Spearman and sqrt(.437 / (n - 4)) for Kendall (Bonett,
    Wright, *Sample size requirements for estimating Pearson, Kendall and Spearman correlations*,
    2000). These are of the bivariate normal: with tails heavier than its, Pearson's interval is
    too narrow, however many observations there are.

    The z of a perfect coefficient is infinite, and all it shows is that no two observations are out
    of order. So its outer limit is 1, and its inner one that of Spearman's coefficient half a step
    below 1 (the next value is 1 - 12 / (n (n^2 - 1))), or what the other two are in a normal
    distribution with this rank correlation. A variable correlated with itself is not meant.

    Parameters
    ----------
    r : (...) in -1..1
    n : (...) observations of each
    statistic : which coefficient it is
    confidence : share of repeated experiments whose interval holds the truth, nominally

    Returns
    -------
    low, high : (...) in -1..1; NaN where `r` is, of n < 4, and of an imperfect Kendall of n = 4

    Raises
    ------
    ValueError
        There is no such statistic, or `confidence` lies outside 0..1.
    """
    _check(confidence, statistic)
    r, n = np.broadcast_arrays(np.asarray(r, dtype=np.float64), np.asarray(n, dtype=np.float64))
    variance = {"pearson": 1.0, "spearman": 1 + r**2 / 2, "kendall": 0.437}[statistic]
    free = n - (4 if statistic == "kendall" else 3)
    reach = ndtri(0.5 + confidence / 2) * np.sqrt(variance / np.where(free >= 1, free, np.nan))
    z = _artanh(r)
    low, high = np.tanh(z - reach), np.tanh(z + reach)
    return _with_perfect(r, n, low, high, statistic, confidence)


def jackknife(
    estimate: np.ndarray,
    without_one: np.ndarray,
    *,
    statistic: Statistic | None,
    confidence: float = 0.95,
) -> Interval:
    """Interval of an estimate from what it is without each unit: Student's t around it.

    With u units the variance is (u - 1) / u times the sum of squared deviations of the estimates
    without one from their mean, and t has u - 1 degrees of freedom. It holds for the mean of
    several coefficients as for one, and whatever the distribution. Source: Efron, Tibshirani, *An
    Introduction to the Bootstrap* (1993), chapter 11.

    It is taken on the scale on which `pipelines/benchmarks/coverage.py` found it to cover best:
    artanh for Pearson, arcsine for Spearman, none for Kendall, which is a mean over pairs and
    nearly normal as it is. A perfect coefficient is perfect without any unit as well; it has the
    limits that `fisher` gives it.

    Parameters
    ----------
    estimate : (...)
    without_one : (..., units) NaN where there is no estimate without that unit, which is left out
    statistic : which coefficient it is, or is a mean of; None for what is no correlation, such as
        the difference of two
    confidence : share of repeated experiments whose interval holds the truth, nominally

    Returns
    -------
    low, high : (...) in -1..1 unless `statistic` is None; NaN where the estimate is, and of fewer
        than four units

    Raises
    ------
    ValueError
        There is no such statistic, or `confidence` lies outside 0..1.
    """
    _check(confidence, statistic)
    estimate = np.asarray(estimate, dtype=np.float64)
    without_one = np.asarray(without_one, dtype=np.float64)
    to, back = _SCALES[statistic]
    there = np.isfinite(without_one)
    units = _enough(np.count_nonzero(there, axis=-1))
    apart = _deviations(np.where(there, to(without_one), np.nan))
    deviation = np.sqrt((units - 1) / units * np.sum(apart**2, axis=-1))
    reach = stdtrit(units - 1, 0.5 + confidence / 2) * deviation
    low, high = back(to(estimate) - reach), back(to(estimate) + reach)
    if statistic is None:
        return low, high
    return _with_perfect(estimate, units, low, high, statistic, confidence)


def percentile(draws: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interval that holds the middle share of bootstrap draws.

    Of a correlation over few units it is too narrow; see `jackknife`. Source: Efron, Tibshirani,
    *An Introduction to the Bootstrap* (1993), chapter 13.

    Parameters
    ----------
    draws : (..., resamples) NaN where a draw had no estimate, which is left out
    confidence : share of the draws inside

    Returns
    -------
    low, high : (...) NaN where there are no draws

    Raises
    ------
    ValueError
        `confidence` lies outside 0..1.
    """
    _check(confidence)
    ends = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    draws = np.asarray(draws, dtype=np.float64)
    low, high = np.moveaxis(_quantiles(draws, np.broadcast_to(ends, (*draws.shape[:-1], 2))), -1, 0)
    return low, high


def bca(
    estimate: np.ndarray, draws: np.ndarray, without_one: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval.

    Draws that equal the estimate count half as below it. All are rounded to 12 decimals first, so
    that coefficients of the same ranks are equal. Where every draw is the same, as with a perfect
    correlation, the interval has no width. Source: Efron, *Better Bootstrap Confidence Intervals*
    (1987).

    Parameters
    ----------
    estimate : (...) of all units
    draws : (..., resamples) of units drawn with replacement; NaN where a draw had no estimate
    without_one : (..., units) of all units but one, for the acceleration; NaN where there is none
    confidence : share of repeated experiments whose interval holds the truth, nominally

    Returns
    -------
    low, high : (...) NaN where the estimate is, without draws, and of fewer than four units

    Raises
    ------
    ValueError
        `confidence` lies outside 0..1.
    """
    _check(confidence)
    estimate, draws, without_one = (
        np.round(np.asarray(one, dtype=np.float64), 12) for one in (estimate, draws, without_one)
    )
    known = np.isfinite(estimate) & (without_one.shape[-1] >= FEWEST_UNITS)
    count = np.count_nonzero(np.isfinite(draws), axis=-1)
    middle = estimate[..., None]
    below = (np.sum(draws < middle, axis=-1) + np.sum(draws <= middle, axis=-1)) / 2
    count = np.where(known & (count > 0), count, np.nan)
    half = 0.5 / count  # the finest that so many draws can tell
    bias = ndtri(np.clip(below / count, half, 1 - half))
    pull = -_deviations(without_one)
    size = np.sum(pull**2, axis=-1) ** 1.5
    acceleration = np.sum(pull**3, axis=-1) / np.where(size > 0, 6 * size, np.inf)
    shifted = bias[..., None] + ndtri(np.array([0.5 - confidence / 2, 0.5 + confidence / 2]))
    ends = ndtr(bias[..., None] + shifted / (1 - acceleration[..., None] * shifted))
    low, high = np.moveaxis(_quantiles(draws, ends), -1, 0)
    return low, high


def _artanh(r: np.ndarray) -> np.ndarray:
    """Fisher's z; finite of a perfect coefficient."""
    return np.asarray(np.arctanh(np.clip(r, -_PERFECT, _PERFECT)))


_SCALES: dict[str | None, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "pearson": (_artanh, np.tanh),
    "spearman": (
        lambda r: np.arcsin(np.clip(r, -1, 1)),
        lambda angle: np.sin(np.clip(angle, -np.pi / 2, np.pi / 2)),
    ),
    "kendall": (np.asarray, lambda tau: np.clip(tau, -1, 1)),
    None: (np.asarray, np.asarray),
}


def stabilised(coefficient: np.ndarray, statistic: Statistic) -> np.ndarray:
    """Coefficients (...) on the scale of `jackknife`, where their spread depends little on them."""
    return _SCALES[statistic][0](np.asarray(coefficient, dtype=np.float64))


def _check(confidence: float, statistic: str | None = None) -> None:
    if statistic not in _SCALES:
        raise ValueError(f"statistic must be pearson, spearman or kendall, got {statistic!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in 0..1 and be neither, got {confidence:g}")


def _enough(units: np.ndarray) -> np.ndarray:
    return np.where(units >= FEWEST_UNITS, units, np.nan)


def _deviations(values: np.ndarray) -> np.ndarray:
    """Values (..., n) less their mean, 0 where they are NaN."""
    there = np.isfinite(values)
    total = np.sum(np.where(there, values, 0.0), axis=-1, keepdims=True)
    mean = total / np.maximum(np.count_nonzero(there, axis=-1, keepdims=True), 1)
    return np.where(there, values - mean, 0.0)


def _with_perfect(
    r: np.ndarray, n: np.ndarray, low: np.ndarray, high: np.ndarray, statistic: Statistic,
    confidence: float,
) -> Interval:  # fmt: skip
    """Limits in which those of a perfect coefficient are put, as told in `fisher`."""
    n = _enough(n)
    rho = 1 - 6 / (n * (n**2 - 1))
    reach = ndtri(0.5 + confidence / 2) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    inner = np.tanh(np.arctanh(rho) - reach)
    if statistic != "spearman":
        inner = 2 * np.sin(np.pi * inner / 6)  # Pearson's, of the bivariate normal
    if statistic == "kendall":
        inner = 2 / np.pi * np.arcsin(inner)
    outer = np.where(np.isnan(n), np.nan, 1.0)
    low = np.where(r >= _PERFECT, inner, np.where(r <= -_PERFECT, -outer, low))
    high = np.where(r <= -_PERFECT, -inner, np.where(r >= _PERFECT, outer, high))
    return low, high


def _quantiles(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Quantiles (..., k) of values (..., n) at shares (..., k), linear between values; no NaN."""
    if not values.shape[-1]:
        return np.full(shares.shape, np.nan)
    ordered = np.sort(values, axis=-1)  # NaN comes last
    last = np.count_nonzero(np.isfinite(values), axis=-1)[..., None] - 1
    known = np.isfinite(shares) & (last >= 0)
    place = np.where(known, shares, 0.0) * np.maximum(last, 0)
    below = np.floor(place).astype(np.intp)
    above = np.minimum(below + 1, np.maximum(last, 0))
    lower, upper = (np.take_along_axis(ordered, at, axis=-1) for at in (below, above))
    return np.where(known, lower + (place - below) * (upper - lower), np.nan)
