"""Correlation coefficients along the last axis, and a test between two that share a variable."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr


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


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b over the last axis: concordant less discordant pairs, over those not tied.

    Source: Kendall, *The treatment of ties in ranking problems* (1945).

    Parameters
    ----------
    x, y : (..., n) floating; the leading axes broadcast

    Returns
    -------
    tau : (...) float64 in -1..1; NaN where either is constant, holds a NaN, or n < 2
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    concordant, untied_x, untied_y = (np.zeros(np.broadcast_shapes(x.shape, y.shape)[:-1]),) * 3
    for lag in range(1, x.shape[-1]):  # each pair once, in the memory of one of its sides
        rise_x = np.sign(x[..., lag:] - x[..., :-lag])
        rise_y = np.sign(y[..., lag:] - y[..., :-lag])
        concordant = concordant + np.sum(rise_x * rise_y, axis=-1)
        untied_x = untied_x + np.sum(np.abs(rise_x), axis=-1)
        untied_y = untied_y + np.sum(np.abs(rise_y), axis=-1)
    untied = np.sqrt(untied_x) * np.sqrt(untied_y)
    return np.clip(concordant / np.where(untied > 0, untied, np.nan), -1.0, 1.0)


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


def steiger(
    r_xz: np.ndarray, r_yz: np.ndarray, r_xy: np.ndarray, n: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Test of x and y being equally correlated with z, all three seen on the same n observations.

    Dunn and Clark's z with the two coefficients pooled where their covariance is taken.
    Source: Steiger, *Tests for comparing elements of a correlation matrix* (1980), equation 14.
    It assumes Pearson's r of normal variables, and is a good approximation for Spearman's.

    Parameters
    ----------
    r_xz, r_yz : (...) the two that are compared, each in -1..1
    r_xy : (...) how x and y go together
    n : (...) observations; the axes of all four broadcast

    Returns
    -------
    z : (...) positive where x goes better with z ; p : (...) two-sided
        Both NaN with fewer than 4 observations, and where a coefficient compared is -1 or 1, or
        x and y are one (`r_xy` is 1), so that there is nothing to compare.
    """
    r_xz, r_yz, r_xy = (np.asarray(r, dtype=np.float64) for r in (r_xz, r_yz, r_xy))
    n = np.asarray(n, dtype=np.float64)
    pooled = ((r_xz + r_yz) / 2) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):  # what is infinite becomes NaN below
        shared = r_xy * (1 - 2 * pooled) - pooled * (1 - 2 * pooled - r_xy**2) / 2
        covariance = shared / (1 - pooled) ** 2
        apart = np.arctanh(r_xz) - np.arctanh(r_yz)
        z = apart * np.sqrt((n - 3) / (2 - 2 * covariance))
    z = np.where((n >= 4) & np.isfinite(z), z, np.nan)
    return z, 2 * ndtr(-np.abs(z))


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
