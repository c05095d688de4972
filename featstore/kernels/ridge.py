"""Ridge regression to one-hot categories, with exact leave-one-out errors, from merged sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featstore.backend import Array


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
    basis : (d, d) float64, eigenvectors of the Gram matrix in columns
    shrink : (L, d) float64, 1 / (eigenvalue + lambda)
    xy : (d, c) float64, products with the targets in that basis
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
    features : (n, d) floating, n >= 1
    labels : (n,) integer, each in 0..n_categories-1
    n_categories : number of categories c
    xp : array namespace of both arrays
    """
    rows = xp.astype(features, xp.float64)
    mean = xp.mean(rows, axis=0)
    rows = rows - mean
    target = _one_hot(labels, n_categories, xp)
    counts = xp.sum(target, axis=0)
    return Gram(rows.shape[0], mean, counts, rows.T @ rows, rows.T @ target)


def merge_grams(a: Gram, b: Gram) -> Gram:
    """Sums over two blocks together, from those of each; associative up to rounding.

    Source: the multivariate form of Chan, Golub, LeVeque (1979), eq. 2.1.
    """
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
    gram : sums over all rows, at least two
    lambdas : L penalties, each above 0
    xp : array namespace of the arrays in `gram`

    Raises
    ------
    ValueError
        A lambda is not above 0, none is given, or there are fewer than two rows.
    """
    if len(lambdas) == 0 or not min(lambdas) > 0:
        raise ValueError(f"lambdas must all be above 0, and at least one, got {list(lambdas)}")
    if gram.n < 2:
        raise ValueError(f"ridge regression needs at least 2 rows, got {gram.n}")
    values, basis = xp.linalg.eigh(gram.xx)
    values = xp.where(values > 0, values, xp.zeros_like(values))  # rounding makes some negative
    grid = xp.asarray(list(lambdas), dtype=xp.float64)
    return RidgeSolution(
        lambdas=tuple(float(value) for value in lambdas),
        n=gram.n,
        mean=gram.mean,
        target_mean=gram.counts / gram.n,
        basis=basis,
        shrink=1.0 / (values[None, :] + grid[:, None]),
        xy=basis.T @ gram.xy,
    )


def loo_errors(
    features: Array, labels: Array, solution: RidgeSolution, *, xp: Any
) -> tuple[Array, Array]:
    """Leave-one-out errors of one block of the rows a solution was made from, for every lambda.

    Both results are sums over rows, so those of all blocks add up to those of the split. They are
    exact, intercept included: the error of a row left out is its residual / (1 - its leverage).
    Source: Allen, *The Relationship between Variable Selection and Data Augmentation and a Method
    for Prediction* (1974), the PRESS statistic.

    Parameters
    ----------
    features : (n, d) floating; rows that are in the solution's Gram sums
    labels : (n,) integer, each in 0..c-1
    solution : what `solve_ridge` returned, L lambdas
    xp : array namespace of all arrays

    Returns
    -------
    squared : (L,) float64, squared errors summed over rows and categories
    correct : (L,) int64, rows whose own category has the largest left-out score, ties by lower
    """
    rows = (xp.astype(features, xp.float64) - solution.mean) @ solution.basis
    target = _one_hot(labels, solution.xy.shape[1], xp)
    leverage = (rows * rows) @ solution.shrink.T + 1.0 / solution.n
    # Below a unit of rounding, 1 - leverage is noise: the fit passes through the row.
    freedom = 1.0 - leverage
    freedom = xp.where(freedom > 2.0**-52, freedom, xp.full_like(freedom, 2.0**-52))
    centred = target - solution.target_mean
    squared, correct = [], []
    for choice in range(len(solution.lambdas)):
        fitted = rows @ (solution.shrink[choice, :][:, None] * solution.xy)
        error = (centred - fitted) / freedom[:, choice][:, None]
        guess = xp.argmax(target - error, axis=1)
        squared.append(xp.sum(error * error))
        correct.append(xp.sum(xp.astype(guess == labels, xp.int64)))
    return xp.stack(squared), xp.stack(correct)


def _one_hot(labels: Array, n_categories: int, xp: Any) -> Array:
    categories = xp.arange(n_categories, dtype=labels.dtype)
    return xp.astype(labels[:, None] == categories[None, :], xp.float64)
