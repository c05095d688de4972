"""Tests of whether two classifiers differ, and of many such questions at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom


@dataclass(frozen=True)
class McNemar:
    """Pairs of classifiers on the same rows; () of one pair, (M, K) of M against K.

    Attributes
    ----------
    only_a, only_b : int64 rows that the one alone has right
    p : two-sided p-value of both being right equally often; 1 where no row tells them apart
    """

    only_a: np.ndarray
    only_b: np.ndarray
    p: np.ndarray


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray, *, mid_p: bool = False) -> McNemar:
    """McNemar's test of one pair of classifiers, or of every pair of two groups of them.

    Of the rows that one alone has right, either has half if both are as good. The p-value is
    that of the binomial distribution whatever their number, so that few are no worse than many:
    it never errs more often than it says. Sources: McNemar, *Note on the Sampling Error of the
    Difference Between Correlated Proportions or Percentages* (1947); for the exact and the mid-p
    test, Fagerland, Lydersen, Laake, *The McNemar Test for Binary Matched-Pairs Data* (2013).

    Parameters
    ----------
    correct_a : (n,) bool, or (n, M) of M classifiers
    correct_b : (n,) bool, or (n, K), of the same rows; `mcnemar(correct, correct)` is of all pairs
    mid_p : count half the probability of what was seen: less cautious with few rows, and rarely
        beyond the nominal level

    Raises
    ------
    ValueError
        The two are not boolean, of the same rows and of as many dimensions, 1 or 2.
    """
    for one in (correct_a, correct_b):
        if one.dtype != np.bool_ or one.ndim != correct_a.ndim or one.ndim not in (1, 2):
            raise ValueError(
                "correct_a and correct_b must be boolean and both (n,), or (n, M) and (n, K), got "
                f"{correct_a.dtype} {correct_a.shape} and {correct_b.dtype} {correct_b.shape}"
            )
    if len(correct_a) != len(correct_b):
        raise ValueError(
            f"both must be of the same rows, got {len(correct_a)} and {len(correct_b)}"
        )
    a, b = (one.astype(np.float64) for one in (correct_a, correct_b))  # BLAS knows no integers
    only_a, only_b = (np.rint(one).astype(np.int64) for one in (a.T @ (1 - b), (1 - a).T @ b))
    fewer, apart = np.minimum(only_a, only_b), only_a + only_b
    tail = binom.cdf(fewer, apart, 0.5)
    if mid_p:
        tail = tail - binom.pmf(fewer, apart, 0.5) / 2
    return McNemar(only_a, only_b, np.minimum(1.0, 2 * tail))


def holm(p: np.ndarray, axis: int = -1) -> np.ndarray:
    """P-values adjusted for being of one family, so that no true hypothesis is rejected too often.

    Rejecting those below a level keeps the probability of any false rejection below it, whatever
    the dependence. Source: Holm, *A Simple Sequentially Rejective Multiple Test Procedure* (1979).

    Parameters
    ----------
    p : (...) floating in 0..1; NaN is no member of the family, and stays
    axis : along which it is one family

    Raises
    ------
    ValueError
        A p-value lies outside 0..1.
    """
    p = np.asarray(p, dtype=np.float64)
    if (p < 0).any() or (p > 1).any():
        raise ValueError(f"p must lie in 0..1, got {np.nanmin(p):g}..{np.nanmax(p):g}")
    order = np.argsort(p, axis=axis)  # NaN comes last
    ordered = np.moveaxis(np.take_along_axis(p, order, axis), axis, -1)
    left = np.isfinite(ordered).sum(axis=-1, keepdims=True) - np.arange(ordered.shape[-1])
    adjusted = np.minimum(1.0, np.maximum.accumulate(ordered * left, axis=-1))
    out = np.empty_like(p)
    np.put_along_axis(out, order, np.moveaxis(adjusted, -1, axis), axis)
    return out
