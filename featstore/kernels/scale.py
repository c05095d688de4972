"""Moments of features that merge over blocks, and the scalings made from them."""

from __future__ import annotations

from typing import Any, TypeAlias

from featstore.backend import Array

Moments: TypeAlias = tuple[int, Array, Array]
"""Number of rows n, their mean (d,), and m2 (d,), the sum of squared deviations from the mean."""


def block_moments(x: Array, *, xp: Any) -> Moments:
    """Number, mean and summed squared deviations of one block of rows.

    A column that is constant has exactly its value as mean and exactly 0 as m2, in every block
    and after every merge; its variance can thus be told from that of a column that varies little.

    Parameters
    ----------
    x : (n, d) floating, n >= 0
    xp : array namespace of `x`

    Returns
    -------
    n ; mean : (d,) float64 ; m2 : (d,) float64. Variance with ddof 0 is m2 / n.
    """
    n, width = x.shape
    if n == 0:
        return 0, xp.zeros(width, dtype=xp.float64), xp.zeros(width, dtype=xp.float64)
    rows = xp.astype(x, xp.float64)
    pivot = rows[0, :]  # a mean of equal numbers is not always that number; a mean of zeros is 0
    rows = rows - pivot
    shift = xp.mean(rows, axis=0)
    rows = rows - shift
    return n, pivot + shift, xp.sum(rows * rows, axis=0)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of two blocks together, from those of each.

    Associative up to rounding. Source: Chan, Golub, LeVeque, *Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances* (1979), eq. 2.1.

    Parameters
    ----------
    a, b : (n, mean (d,), m2 (d,)) as `block_moments` returns them
    """
    n_a, mean_a, m2_a = a
    n_b, mean_b, m2_b = b
    if n_a == 0:
        return b
    if n_b == 0:
        return a
    n = n_a + n_b
    delta = mean_b - mean_a
    return n, mean_a + delta * (n_b / n), m2_a + m2_b + delta * delta * (n_a * n_b / n)


def zscore(x: Array, mean: Array, variance: Array, *, xp: Any) -> Array:
    """Rows minus the mean, divided by the standard deviation; a deviation of 0 counts as 1.

    Parameters
    ----------
    x : (n, d) floating
    mean : (d,) float64
    variance : (d,) float64, ddof 0
    xp : array namespace of the three arrays

    Returns
    -------
    scaled : (n, d) float64
    """
    deviation = xp.sqrt(variance)
    deviation = xp.where(deviation == 0, xp.ones_like(deviation), deviation)
    return (xp.astype(x, xp.float64) - mean) / deviation


def l2_normalise(x: Array, *, xp: Any) -> Array:
    """Rows divided by their Euclidean norm; a row of zeros stays zero.

    Parameters
    ----------
    x : (n, d) floating
    xp : array namespace of `x`

    Returns
    -------
    unit : (n, d) float64; a row's result is the same bit for bit in whatever block it stands
    """
    rows = xp.astype(x, xp.float64)
    norm = xp.sqrt(sum_last(rows * rows))[:, None]
    return rows / xp.where(norm == 0, xp.ones_like(norm), norm)


def sum_last(terms: Array) -> Array:
    """Sum over the last axis in an order that depends on nothing but the length of that axis.

    `xp.sum` may add in another order when the shape, the strides or the device change, so the sum
    of one row could depend on the rows around it. Here all is element-wise addition, which IEEE 754
    rounds the same everywhere: halves are added until eight columns or fewer are left, then those.

    Parameters
    ----------
    terms : (..., d) floating, d >= 1

    Returns
    -------
    total : (...) in the dtype of `terms`
    """
    width = terms.shape[-1]
    odd = []
    while width > 8:
        half = width // 2
        if width % 2:
            odd.append(terms[..., width - 1])
        terms = terms[..., :half] + terms[..., half : 2 * half]
        width = half
    total = terms[..., 0]
    for column in range(1, width):
        total = total + terms[..., column]
    for rest in odd:
        total = total + rest
    return total
