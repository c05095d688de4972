"""Logistic regression: its losses over blocks of rows, and the fit of its optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import minimize

from featstore.backend import Array

Evaluate: TypeAlias = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Weight (d+1, c) -> cross-entropy summed over all rows, and its gradient (d+1, c), float64."""

_CORRECTIONS = 20  # steps L-BFGS remembers: fewer evaluations than with 10, memory 40 x weight


def softmax_loss(weight: Array, features: Array, labels: Array, *, xp: Any) -> tuple[Array, Array]:
    """Cross-entropy of a linear classifier over one block of rows, with its gradient.

    Both results are sums over rows, not means, so those of two blocks add up to
    the result for the two blocks together.

    Parameters
    ----------
    weight : (d+1, c) floating; its last row is the intercept
    features : (n, d) same dtype as `weight`
    labels : (n,) integer, each in 0..c-1
    xp : array namespace the three arrays belong to

    Returns
    -------
    loss : () ; gradient : (d+1, c), both in the dtype of `weight`
    """
    logits = _logits(weight, features, xp)
    odds = xp.exp(logits)
    total = xp.sum(odds, axis=1, keepdims=True)
    categories = xp.arange(weight.shape[1], dtype=labels.dtype)
    target = xp.astype(labels[:, None] == categories[None, :], weight.dtype)
    loss = xp.sum(xp.log(total)) - xp.sum(logits * target)
    error = odds / total - target
    return loss, xp.concat((features.T @ error, xp.sum(error, axis=0, keepdims=True)), axis=0)


def sigmoid_loss(weight: Array, features: Array, present: Array, *, xp: Any) -> tuple[Array, Array]:
    """Cross-entropy of one-vs-rest classifiers over one block of rows, with its gradient.

    Summed over rows and categories, so that those of two blocks add up; each category's column of
    the weight is a problem of its own.

    Parameters
    ----------
    weight : (d+1, c) floating; its last row is the intercept
    features : (n, d) same dtype as `weight`
    present : (n, c) integer; 1 where the row has the category, anything else counts as absent
    xp : array namespace the three arrays belong to

    Returns
    -------
    loss : () ; gradient : (d+1, c), both in the dtype of `weight`
    """
    logits = features @ weight[:-1, :] + weight[-1:, :]
    target = xp.astype(present == 1, weight.dtype)
    small = xp.exp(-xp.abs(logits))  # never overflows
    positive = xp.where(logits > 0, logits, xp.zeros_like(logits))
    loss = xp.sum(positive - logits * target + xp.log1p(small))
    share = xp.where(logits > 0, 1.0 / (1.0 + small), small / (1.0 + small))
    error = share - target
    return loss, xp.concat((features.T @ error, xp.sum(error, axis=0, keepdims=True)), axis=0)


def predict_log_proba(weight: Array, features: Array, *, xp: Any) -> Array:
    """Log-probability of every category for each row.

    Parameters
    ----------
    weight : (d+1, c) floating; its last row is the intercept
    features : (n, d) same dtype as `weight`
    xp : array namespace of both arrays

    Returns
    -------
    log_proba : (n, c) in the dtype of `weight`
    """
    logits = _logits(weight, features, xp)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))


def _logits(weight: Array, features: Array, xp: Any) -> Array:
    logits = features @ weight[:-1, :] + weight[-1:, :]
    return logits - xp.max(logits, axis=1, keepdims=True)  # exp can no longer overflow


@dataclass(frozen=True)
class LogisticCertificate:
    """How near a fit came to the optimum, and what that took.

    Attributes
    ----------
    objective : summed cross-entropy + penalty / 2 x squared weights, at the weight returned
    excess : estimate of (objective - optimum) / objective from the gradient at the weight returned.
        The weights' part, |gradient|^2 / (2 penalty), is a bound: the penalty makes the objective
        strongly convex in them. The intercept's part, |gradient|^2 c / cross-entropy, takes its
        curvature to be what it is where all c categories are about as hard
    gradient_norm : Euclidean norm of the objective's gradient at the weight returned
    iterations : iterations of L-BFGS
    evaluations : calls of `evaluate`
    converged : whether `excess` is at most the tolerance asked for; never merely that the solver
        stopped
    """

    objective: float
    excess: float
    gradient_norm: float
    iterations: int
    evaluations: int
    converged: bool


def fit_logistic(
    evaluate: Evaluate,
    *,
    n_features: int,
    n_categories: int,
    penalty: float,
    start: np.ndarray | None = None,
    tolerance: float = 1e-7,
    max_iterations: int = 20_000,
) -> tuple[np.ndarray, LogisticCertificate]:
    """Weights that minimise summed cross-entropy + penalty / 2 x squared weights.

    The intercept is not penalised. The scale is that of scikit-learn's `LogisticRegression`:
    penalty = 1 / C, for three categories or more. For two, scikit-learn fits one column, which is
    the difference of ours, so that the same optimum has penalty = 2 / C.

    L-BFGS-B (Byrd, Lu, Nocedal, Zhu 1995) on the host in float64. Only the certificate's
    estimate or the number of iterations stops it; when its line search fails it starts again from
    where it stands, as long as that helps.

    Parameters
    ----------
    evaluate : (d+1, c) float64 -> loss and gradient summed over all rows (see `softmax_loss`)
    n_features, n_categories : d and c
    penalty : above 0
    start : (d+1, c) first guess; None is all zeros
    tolerance : largest `excess` of the certificate that counts as converged
    max_iterations : most iterations of L-BFGS

    Returns
    -------
    weight : (d+1, c) float64 ; certificate
    """
    fit = _Fit(evaluate, (n_features + 1, n_categories), penalty)
    return fit.run(np.zeros(fit.shape) if start is None else start, tolerance, max_iterations)


def fit_logistic_path(
    evaluate: Evaluate,
    *,
    n_features: int,
    n_categories: int,
    penalties: Sequence[float],
    tolerance: float = 1e-7,
    max_iterations: int = 20_000,
) -> list[tuple[np.ndarray, LogisticCertificate]]:
    """One fit per penalty, from the strongest to the weakest, each started from those before it.

    Every fit has its own certificate, so that one that converged depends on its start by no more
    than the tolerance; the order in which `penalties` come changes nothing.

    Parameters
    ----------
    evaluate, n_features, n_categories, tolerance : as for `fit_logistic`
    penalties : each above 0, on the scale of `fit_logistic`
    max_iterations : most iterations of L-BFGS for each penalty

    Returns
    -------
    fits : (weight (d+1, c) float64, certificate) for each penalty, in the order given
    """
    shape = (n_features + 1, n_categories)
    weight = before = np.zeros(shape)
    fits = {}
    for penalty in sorted(set(penalties), reverse=True):
        fit = _Fit(evaluate, shape, penalty)
        # Weights move almost linearly in the logarithm of the penalty: going on as far as the last
        # step went saves half of all evaluations, or more, where penalties are spaced evenly there.
        ahead = 2 * weight - before
        start = ahead if fit.objective(ahead)[0] < fit.objective(weight)[0] else weight
        before = weight
        weight, _ = fits[penalty] = fit.run(start, tolerance, max_iterations)
    return [fits[penalty] for penalty in penalties]


class _Fit:
    """One penalised objective; it keeps the estimates at the last point it was asked for."""

    def __init__(self, evaluate: Evaluate, shape: tuple[int, int], penalty: float) -> None:
        if not penalty > 0:
            raise ValueError(f"penalty must be above 0, got {penalty}")
        self.evaluate, self.shape, self.penalty = evaluate, shape, penalty
        self.evaluations = 0
        self.at = np.empty(0)
        self.excess = self.gradient_norm = np.inf

    def objective(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Objective and flat gradient at a weight of any shape."""
        weight = flat.reshape(self.shape)
        loss, slope = self.evaluate(weight)
        gradient = np.array(slope, dtype=np.float64)
        gradient[:-1] += self.penalty * weight[:-1]
        value = float(loss) + self.penalty / 2 * float(np.vdot(weight[:-1], weight[:-1]))

        self.evaluations += 1
        self.at = flat.copy()
        self.gradient_norm = float(np.linalg.norm(gradient))
        gap = float(np.vdot(gradient[:-1], gradient[:-1])) / (2 * self.penalty)
        if loss > 0:
            gap += float(np.vdot(gradient[-1], gradient[-1])) * self.shape[1] / float(loss)
        self.excess = gap / value if gap > 0 else 0.0
        return value, gradient.ravel()

    def run(
        self, start: np.ndarray, tolerance: float, max_iterations: int
    ) -> tuple[np.ndarray, LogisticCertificate]:
        """Weight whose excess is at most the tolerance, or the best that was reached."""

        def stop_when_certain(intermediate_result: Any) -> None:
            if not np.array_equal(intermediate_result.x, self.at):
                self.objective(intermediate_result.x)
            if self.excess <= tolerance:
                raise StopIteration

        flat = np.array(start, dtype=np.float64).ravel()
        value, _ = self.objective(flat)
        iterations, helped = 0, True
        while self.excess > tolerance and iterations < max_iterations and helped:
            found = minimize(
                self.objective,
                flat,
                jac=True,
                method="L-BFGS-B",
                callback=stop_when_certain,
                options={
                    "maxiter": max_iterations - iterations,
                    "maxfun": 100 * max_iterations,
                    "maxcor": _CORRECTIONS,
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
            iterations += found.nit
            helped = found.fun < value  # else rounding hides any further descent
            flat = found.x if helped else flat
            value, _ = self.objective(flat)
        certificate = LogisticCertificate(
            objective=value,
            excess=self.excess,
            gradient_norm=self.gradient_norm,
            iterations=iterations,
            evaluations=self.evaluations,
            converged=self.excess <= tolerance,
        )
        return flat.reshape(self.shape), certificate
