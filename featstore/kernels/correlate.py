"""Correlation coefficients along the last axis, and the bootstrap interval of one."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

_FEWEST = 4  # observations below which resampling says nothing of the spread


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis.

    Parameters
    ----------
    x, y : (..., n) floating; the leading axes broadcast

    Returns
    -------
    r : (...) float64 in -1..1; NaN where either is constant, holds a NaN, or n < 2
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x, constant_x = _unit(x)
    y, constant_y = _unit(y)
    r = np.clip(np.sum(x * y, axis=-1), -1.0, 1.0)
    return np.where(constant_x | constant_y, np.nan, r)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over the last axis, tied values at their mean rank.

    Parameters
    ----------
    x, y : (..., n) floating; the leading axes broadcast

    Returns
    -------
    rho : (...) float64 in -1..1; NaN where either is constant, holds a NaN, or n < 2
    """
    return pearson(rank_data(x), rank_data(y))


def rank_data(x: np.ndarray) -> np.ndarray:
    """Ranks 1..n along the last axis, tied values at the mean of their ranks.

    Parameters
    ----------
    x : (..., n) floating

    Returns
    -------
    rank : (..., n) float64; a row that holds a NaN is all NaN
    """
    x = np.asarray(x, dtype=np.float64)
    n = x.shape[-1]
    order = np.argsort(x, axis=-1)
    ordered = np.take_along_axis(x, order, axis=-1)
    place = np.arange(n)
    differs = np.ones(x.shape, dtype=bool)  # from the value before it in order
    differs[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = np.maximum.accumulate(np.where(differs, place, 0), axis=-1)
    ends = np.ones(x.shape, dtype=bool)
    ends[..., :-1] = differs[..., 1:]
    last = np.flip(np.where(ends, place, n - 1), axis=-1)
    last = np.flip(np.minimum.accumulate(last, axis=-1), axis=-1)
    rank = np.empty(x.shape)
    np.put_along_axis(rank, order, (first + last) / 2 + 1, axis=-1)
    return np.where(np.isnan(x).any(axis=-1, keepdims=True), np.nan, rank)


def bootstrap_correlation(
    x: np.ndarray,
    y: np.ndarray,
    *,
    statistic: Literal["pearson", "spearman"],
    resamples: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Correlation of paired observations with its BCa bootstrap interval.

    Pairs are resampled together. A resample in which either variable is constant has no
    correlation and is dropped. Source: Efron, *Better Bootstrap Confidence Intervals* (1987). All
    resamples are held at once: resamples x n float64, a few times over.

    Parameters
    ----------
    x, y : (n,) floating
    statistic : `pearson` or `spearman` (ranks are taken anew in each resample)
    resamples : number of bootstrap resamples, at least 1
    rng : source of randomness
    confidence : share of repeated experiments whose interval holds the truth, nominally

    Returns
    -------
    r, low, high : float; all NaN where r is undefined, low and high NaN below 4 observations

    Raises
    ------
    ValueError
        The statistic is neither of the two.
    """
    if statistic not in ("pearson", "spearman"):
        raise ValueError(f"statistic must be pearson or spearman, got {statistic!r}")
    correlate = pearson if statistic == "pearson" else spearman
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    r, n = float(correlate(x, y)), len(x)
    if n < _FEWEST or np.isnan(r):
        return r, float("nan"), float("nan")

    drawn = rng.integers(0, n, size=(resamples, n))
    spread = correlate(x[drawn], y[drawn])
    spread = spread[~np.isnan(spread)]
    if len(spread) == 0:
        return r, float("nan"), float("nan")

    below = (np.mean(spread < r) + np.mean(spread <= r)) / 2
    below = np.clip(below, 0.5 / len(spread), 1 - 0.5 / len(spread))  # the finest B draws can tell
    bias = ndtri(below)
    others = np.nonzero(~np.eye(n, dtype=bool))[1].reshape(n, n - 1)  # row i: all but i
    jackknife = correlate(x[others], y[others])
    pull = np.nanmean(jackknife) - jackknife[~np.isnan(jackknife)]
    power = float(np.sum(pull**2)) ** 1.5
    acceleration = float(np.sum(pull**3)) / (6 * power) if power > 0 else 0.0

    tails = bias + ndtri(np.array([0.5 - confidence / 2, 0.5 + confidence / 2]))
    low, high = np.quantile(spread, ndtr(bias + tails / (1 - acceleration * tails)))
    return r, float(low), float(high)


def _unit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from the mean, scaled to length 1, and where x is constant, NaN or too short."""
    if x.shape[-1] < 2:
        return np.zeros(x.shape), np.ones(x.shape[:-1], dtype=bool)
    spread = np.max(x, axis=-1, keepdims=True) - np.min(x, axis=-1, keepdims=True)
    flat = ~(spread > 0)  # also where the spread is NaN
    # Scaled before it is squared, so that tiny or huge values neither vanish nor overflow.
    x = (x - np.mean(x, axis=-1, keepdims=True)) / np.where(flat, 1.0, spread)
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    return x / np.where(flat, 1.0, length), flat[..., 0]
