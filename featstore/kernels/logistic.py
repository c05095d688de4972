"""Logistic regression at its optimum: one fit, or a whole path of penalties in one solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featstore.cuda import Array
from featstore.kernels.descent import Basis, Descent, Evaluate, LogisticCertificate

__all__ = ["Basis", "LogisticCertificate", "fit_logistic", "fit_logistic_path"]


def fit_logistic(
    evaluate: Evaluate,
    *,
    n_features: int,
    n_categories: int,
    penalty: float,
    start: Array | None = None,
    tolerance: float = 1e-7,
    max_iterations: int = 20_000,
    basis: Basis | None = None,
    quick: Evaluate | None = None,
    xp: Any = np,
) -> tuple[Array, LogisticCertificate]:
    """Weights that minimise summed cross-entropy + penalty / 2 x squared weights.

    The intercept is not penalised. The scale is that of scikit-learn's `LogisticRegression`:
    penalty = 1 / C, for three categories or more. For two, scikit-learn fits one column, which is
    the difference of ours, so that the same optimum has penalty = 2 / C.

    Parameters
    ----------
    evaluate : (d+1, c) float64 -> loss and gradient summed over all rows (see
        `softmax.softmax_sums`). `host_rows.HostRows(features, labels, c)` has such a function,
        `exact`, a faster `quick`, and a `basis`
    n_features, n_categories : d and c
    penalty : above 0
    start : (d+1, c) first guess; None is all zeros
    tolerance : largest `excess` of the certificate that counts as converged
    max_iterations : most steps of L-BFGS
    basis : coordinates to solve in; saves most of the steps where features are correlated
    quick : `evaluate` in fewer digits, to begin with; `evaluate` goes on from there
    xp : array namespace of what `evaluate` takes and gives, in which the solver works

    Returns
    -------
    weight : (d+1, c) float64 of that namespace ; certificate
    """
    _check_penalties([penalty])
    descent = Descent(evaluate, quick, (n_features + 1, n_categories), basis, start, xp=xp)
    certificate = descent.solve(penalty, tolerance, max_iterations)
    return descent.weight, certificate


def fit_logistic_path(
    evaluate: Evaluate,
    *,
    n_features: int,
    n_categories: int,
    penalties: Sequence[float],
    tolerance: float = 1e-7,
    max_iterations: int = 20_000,
    basis: Basis | None = None,
    quick: Evaluate | None = None,
    estimated: bool = False,
    floor: float = 0.0,
    xp: Any = np,
) -> list[tuple[Array, LogisticCertificate]]:
    """One fit per penalty, from the strongest to the weakest: one solve, a few passes each.

    Each goes on from the solution before it with all that was learned there: the loss's gradient
    and its changes along the last steps, to which another penalty only adds what is known.
    Every fit has its own certificate, so that one that converged depends on its start by no more
    than the tolerance; the order in which `penalties` come changes nothing.

    Parameters
    ----------
    evaluate, n_features, n_categories, basis, xp : as for `fit_logistic`
    penalties : each above 0, on the scale of `fit_logistic`
    tolerance : largest `excess` (or `estimate`) of a certificate that counts as converged
    max_iterations : most steps of L-BFGS for each penalty
    quick : `evaluate` in float32, to begin with. What it finds counts where `estimated` is asked
        for and `tolerance` is 1e-6 or more; else, and where rounding hides the descent, `evaluate`
        goes on from there
    estimated : end each fit by the certificate's `estimate`, which takes a fraction of the passes
    floor : objective below which errors count as if it were this large. On separable rows the
        optimum falls to nothing, where a relative error says nothing either

    Returns
    -------
    fits : (weight (d+1, c) float64, certificate) for each penalty, in the order given
    """
    _check_penalties(penalties)
    shape = (n_features + 1, n_categories)
    descent = Descent(evaluate, quick, shape, basis, None, estimated=estimated, floor=floor, xp=xp)
    fits = {}
    for penalty in sorted(set(penalties), reverse=True):
        certificate = descent.solve(penalty, tolerance, max_iterations)
        fits[penalty] = descent.weight, certificate
    return [fits[penalty] for penalty in penalties]


def _check_penalties(penalties: Sequence[float]) -> None:
    if not len(penalties):
        raise ValueError("penalties must hold at least one")
    for penalty in penalties:
        if not 0 < penalty < np.inf:
            raise ValueError(f"penalty must be above 0 and finite, got {penalty}")
