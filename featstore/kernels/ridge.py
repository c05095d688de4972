"""Ridge regression to one-hot categories, with exact leave-one-out errors, from merged sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featstore.backend import Array, strip_size
from featstore.kernels.metrics import check_labels


@dataclass(frozen=True)
class Gram:
    """Sums over rows from which every ridge regression on them can be solved.

    Products are of deviations from the block's own mean, since sums of raw products would lose
    digits where features have a large mean.

    Attributes
    ----------
    n : number of rows
    mean : (d,) float64, mean of the features
    counts : (c,) float64, rows of each category
    xx : (d, d) float64, sum over rows of (x - mean)(x - mean)'
    xy : (d, c) float64, sum over rows of (x - mean) y', with y the one-hot category
    """

    n: int
    mean: Array
    counts: Array
    xx: Array
    xy: Array


@dataclass(frozen=True)
class RidgeSolution:
    """Ridge regressions to one-hot categories for several lambdas, in one eigenbasis.

    Attributes
    ----------
    lambdas : L penalties, on the scale of scikit-learn's `alpha`
    n : number of rows
    mean : (d,) float64, mean of the features
    target_mean : (c,) float64, share of each category
    basis : (d, k) float64, eigenvectors of the sums of products in columns; k is d, or n of rows
        fewer than features, and a direction without spread may then be a column of zeros
    shrink : (L, k) float64, 1 / (eigenvalue + lambda)
    xy : (k, c) float64, products with the targets in that basis
    """

    lambdas: tuple[float, ...]
    n: int
    mean: Array
    target_mean: Array
    basis: Array
    shrink: Array
    xy: Array

    def weight(self, choice: int, *, xp: Any) -> Array:
        """Weight (d+1, c) float64 for `lambdas[choice]`; its last row is the intercept."""
        slope = self.basis @ (self.shrink[choice, :][:, None] * self.xy)
        return xp.concat((slope, (self.target_mean - self.mean @ slope)[None, :]), axis=0)


def gram_block(features: Array, labels: Array, *, n_categories: int, xp: Any) -> Gram:
    """Sums over one block of rows; `merge_grams` joins those of two.

    Parameters
    ----------
    features : (n, d) floating, finite, n >= 1
    labels : (n,) integer, each in 0..n_categories-1
    n_categories : number of categories c
    xp : array namespace of both arrays

    Raises
    ------
    ValueError
        Shapes do not fit, there are no rows, a feature is not finite, a label out of range.
    """
    rows, mean = _centred(features, labels, n_categories, xp)
    target = _one_hot(labels, n_categories, xp.float64, xp)
    counts = xp.sum(target, axis=0)
    return Gram(rows.shape[0], mean, counts, rows.T @ rows, rows.T @ target)


def merge_grams(a: Gram, b: Gram) -> Gram:
    """Sums over two blocks together, from those of each; associative up to rounding.

    Source: the multivariate form of Chan, Golub, LeVeque (1979), eq. 2.1.

    Raises
    ------
    ValueError
        They differ in width or in the number of categories.
    """
    if a.xy.shape != b.xy.shape:
        raise ValueError(
            f"b must have {a.xy.shape[0]} features and {a.xy.shape[1]} categories (those of a), "
            f"got {b.xy.shape[0]} and {b.xy.shape[1]}"
        )
    n = a.n + b.n
    delta = b.mean - a.mean
    spread = delta[:, None] * (a.n * b.n / n)
    return Gram(
        n=n,
        mean=a.mean + delta * (b.n / n),
        counts=a.counts + b.counts,
        xx=a.xx + b.xx + spread * delta[None, :],
        xy=a.xy + b.xy + spread * (b.counts / b.n - a.counts / a.n)[None, :],
    )


def solve_ridge(gram: Gram, lambdas: Sequence[float], *, xp: Any) -> RidgeSolution:
    """Ridge regressions for every lambda, from one eigendecomposition.

    Each minimises the squared error summed over rows and categories + lambda x squared weights, as
    scikit-learn's `Ridge(alpha=lambda)` does; the intercept is not penalised and targets are 0 or
    1. (`RidgeClassifier` codes them -1 and 1: twice the scores less 1, so the same predictions.)
    A lambda far below 1e-16 x the largest eigenvalue x d has no effect that float64 can show.

    Parameters
    ----------
    gram : sums over all rows, at least two, of at least two categories
    lambdas : L penalties, each above 0
    xp : array namespace of the arrays in `gram`

    Raises
    ------
    ValueError
        A lambda is not above 0, none is given, or there are fewer than two rows or categories.
    """
    _check_solvable(lambdas, gram.n, gram.counts, xp)
    values, basis = xp.linalg.eigh(gram.xx)
    values = xp.where(values > 0, values, xp.zeros_like(values))  # rounding makes some negative
    return _solution(gram.n, gram.mean, gram.counts, lambdas, values, basis, basis.T @ gram.xy, xp)


def solve_ridge_rows(
    features: Array, labels: Array, lambdas: Sequence[float], *, n_categories: int, xp: Any
) -> RidgeSolution:
    """The same regressions from all rows at once, by the smaller of the two Gram matrices.

    Of fewer rows than features that is the (n, n) matrix of products between rows, whose
    eigenvectors u and values s give those of the other as x'u / sqrt(s).
    Source: Saunders, Gammerman, Vovk, *Ridge Regression Learning Algorithm in Dual Variables*
    (1998).

    Parameters
    ----------
    features : (n, d) floating, finite, n >= 2
    labels : (n,) integer, each in 0..n_categories-1, of at least two categories
    lambdas : L penalties, each above 0
    n_categories : number of categories c
    xp : array namespace of both arrays

    Raises
    ------
    ValueError
        As `gram_block` and `solve_ridge` do.
    """
    n, d = features.shape
    if n > d:
        gram = gram_block(features, labels, n_categories=n_categories, xp=xp)
        return solve_ridge(gram, lambdas, xp=xp)
    rows, mean = _centred(features, labels, n_categories, xp)
    target = _one_hot(labels, n_categories, xp.float64, xp)
    counts = xp.sum(target, axis=0)
    _check_solvable(lambdas, n, counts, xp)
    values, between = xp.linalg.eigh(rows @ rows.T)
    # The mean takes one direction of n away, equal rows more: what is left of them is rounding.
    real = values > n * 2.0**-52 * xp.max(values)
    values = xp.where(real, values, xp.zeros_like(values))
    root = xp.sqrt(xp.where(real, values, xp.ones_like(values)))
    between = between * (xp.astype(real, xp.float64) / root)
    xy = values[:, None] * (between.T @ target)
    return _solution(n, mean, counts, lambdas, values, rows.T @ between, xy, xp)


def loo_errors(
    features: Array, labels: Array, solution: RidgeSolution, *, xp: Any
) -> tuple[Array, Array]:
    """Leave-one-out errors of one block of the rows a solution was made from, for every lambda.

    Both results are sums over rows, so those of all blocks add up to those of the split. They are
    exact, intercept included: the error of a row left out is its residual / (1 - its leverage).
    Source: Allen, *The Relationship between Variable Selection and Data Augmentation and a Method
    for Prediction* (1974), the PRESS statistic.

    Of many rows, none of which pulls the fit far, fitted values are made in float32, from rows
    scaled so that none of their directions dwarfs another; `squared` then agrees with float64 to
    about 1e-8 of itself, and two scores that are equal to 1e-6 may be taken in either order.

    Parameters
    ----------
    features : (n, d) floating; rows that are in the solution's sums
    labels : (n,) integer, each in 0..c-1
    solution : what `solve_ridge` returned, L lambdas
    xp : array namespace of all arrays

    Returns
    -------
    squared : (L,) float64, squared errors summed over rows and categories
    correct : (L,) int64, rows whose own category has the largest left-out score, ties by lower

    Raises
    ------
    ValueError
        Shapes do not fit, a feature is not finite, or a label is none of the solution's.
    """
    if features.shape[1:] != solution.mean.shape:
        raise ValueError(
            f"features must be (n, {solution.mean.shape[0]}), as wide as those of solution, "
            f"got {features.shape}"
        )
    _check(features, labels, solution.target_mean.shape[0], xp)
    if not bool(xp.all(xp.take(solution.target_mean, labels, axis=0) > 0)):
        raise ValueError("labels must be categories that solution has rows of, and some are not")
    rows = (xp.astype(features, xp.float64) - solution.mean) @ solution.basis
    # Fits of all lambdas are rows * most @ xy with one more factor in 0..1; half of `most` goes to
    # each side, so that the squared norm of a row becomes its largest leverage.
    most = xp.max(solution.shrink, axis=0)
    factor = solution.shrink / most
    rows = rows * xp.sqrt(most)
    weight = xp.sqrt(most)[:, None] * solution.xy
    leverage = factor @ (rows * rows).T + 1.0 / solution.n
    # Below a unit of rounding, 1 - leverage is noise: the fit passes through the row.
    freedom = 1.0 - leverage
    freedom = xp.where(freedom > 2.0**-52, freedom, xp.full_like(freedom, 2.0**-52))
    fast = solution.n >= _MANY_ROWS and bool(xp.min(freedom) > 0.5)
    if fast:
        left, right = _few_factors(factor, xp)
        return _sum_errors(rows, labels, weight, freedom, solution, left, right, xp)
    one = xp.ones((1, 1), dtype=xp.float64)
    parts = [
        _sum_errors(
            rows, labels, weight, freedom[i : i + 1, :], solution, one, factor[i : i + 1, :], xp
        )
        for i in range(factor.shape[0])
    ]
    return xp.concat([squared for squared, _ in parts]), xp.concat([right for _, right in parts])


_MANY_ROWS = 4096
"""From here on float32's rounding is lost in the sum over rows; below, float64 costs nothing."""


def _few_factors(factor: Array, xp: Any) -> tuple[Array, Array]:
    """float32 (L, r) and (r, k) whose product is `factor` (L, k) within float32's rounding.

    eigenvalue + lambda has an inverse that hardly varies but with the ratio of the two, so that
    few singular values of all those inverses are above it: 9 to 30 for 45 lambdas.
    """
    u, s, v = xp.linalg.svd(factor, full_matrices=False)
    r = int(xp.sum(xp.astype(s > 2.0**-26, xp.int64)))
    return xp.astype(u[:, :r] * s[:r], xp.float32), xp.astype(v[:r, :], xp.float32)


def _sum_errors(
    rows: Array,
    labels: Array,
    weight: Array,
    freedom: Array,
    solution: RidgeSolution,
    left: Array,
    right: Array,
    xp: Any,
) -> tuple[Array, Array]:
    """`squared` and `correct` of the lambdas whose factors are left (L, r) @ right (r, k).

    Arithmetic is that of `left`, sums are float64.
    """
    dtype, (count, rank) = left.dtype, left.shape
    k, c = weight.shape
    rows = xp.astype(rows, dtype)
    # (r c, k), so that one product fits a strip of rows to everything
    slopes = xp.reshape(right[:, None, :] * xp.astype(weight.T, dtype)[None, :, :], (rank * c, k))
    target = _one_hot(labels, c, dtype, xp).T - xp.astype(solution.target_mean, dtype)[:, None]
    strip = max(128, max(2**20, strip_size(xp)) // (count * c))
    squared = xp.zeros(count, dtype=xp.float64)
    correct = xp.zeros(count, dtype=xp.int64)
    for first in range(0, rows.shape[0], strip):
        span = slice(first, min(first + strip, rows.shape[0]))
        own_label, free = labels[span], freedom[:, span]
        m = own_label.shape[0]
        fitted = left @ xp.reshape(slopes @ rows[span, :].T, (rank, c * m))
        residual = xp.reshape(fitted, (count, c, m)) - target[:, span]
        error = xp.astype(xp.sum(residual * residual, axis=1), xp.float64) / (free * free)
        squared = squared + xp.sum(error, axis=1)
        # Left-out scores are (residual + own * (1 - leverage)) / (1 - leverage) for own 0 or 1, so
        # without a division only that of the own category moves.
        where = xp.broadcast_to(own_label[None, None, :], (count, 1, m))
        own = xp.take_along_axis(residual, where, axis=1)[:, 0, :] + xp.astype(free, dtype)
        best = xp.max(residual, axis=1)
        hit = own > best
        if bool(xp.any(own == best)):  # the lower of equals wins
            hit = hit | ((own == best) & (xp.argmax(residual, axis=1) > own_label))
        correct = correct + xp.sum(xp.astype(hit, xp.int64), axis=1)
    return squared, correct


def _solution(
    n: int,
    mean: Array,
    counts: Array,
    lambdas: Sequence[float],
    values: Array,
    basis: Array,
    xy: Array,
    xp: Any,
) -> RidgeSolution:
    grid = xp.asarray(list(lambdas), dtype=xp.float64)
    shrink = 1.0 / (values[None, :] + grid[:, None])
    return RidgeSolution(
        tuple(float(value) for value in lambdas), n, mean, counts / n, basis, shrink, xy
    )


def _check_solvable(lambdas: Sequence[float], n: int, counts: Array, xp: Any) -> None:
    if len(lambdas) == 0 or not all(0 < value < math.inf for value in lambdas):
        raise ValueError(f"lambdas must all be above 0, and at least one, got {list(lambdas)}")
    if n < 2:
        raise ValueError(f"ridge regression needs at least 2 rows, got {n}")
    known = int(xp.sum(xp.astype(counts > 0, xp.int64)))
    if known < 2:
        raise ValueError(f"labels must be of at least 2 categories, got {known}")


def _check(features: Array, labels: Array, n_categories: int, xp: Any) -> None:
    if len(features.shape) != 2 or labels.shape != features.shape[:1] or not labels.shape[0]:
        raise ValueError(
            f"features must be (n, d) and labels (n,), n at least 1, got {features.shape} and "
            f"{labels.shape}"
        )
    check_labels(labels, n_categories, xp=xp)
    finite = xp.all(xp.isfinite(features), axis=1)
    if not bool(xp.all(finite)):
        row = int(xp.argmin(xp.astype(finite, xp.int64)))
        raise ValueError(f"features must be finite, and row {row} is not")


def _centred(features: Array, labels: Array, n_categories: int, xp: Any) -> tuple[Array, Array]:
    """Rows (n, d) float64 less their mean, and that mean (d,)."""
    _check(features, labels, n_categories, xp)
    rows = xp.astype(features, xp.float64)
    pivot = rows[0, :]  # a mean of equal numbers is not always that number; a mean of zeros is 0
    rows = rows - pivot
    shift = xp.mean(rows, axis=0)
    return rows - shift, pivot + shift


def _one_hot(labels: Array, n_categories: int, dtype: Any, xp: Any) -> Array:
    categories = xp.arange(n_categories, dtype=labels.dtype)
    return xp.astype(labels[:, None] == categories[None, :], dtype)
