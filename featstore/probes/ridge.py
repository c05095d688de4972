"""Ridge regression to one-hot categories off the store, its lambda chosen by leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from featstore.backend import Array, to_host
from featstore.blocks import Block, reduce_blocks
from featstore.kernels.ridge import (
    Gram,
    RidgeSolution,
    gram_block,
    loo_errors,
    merge_grams,
    solve_ridge,
    solve_ridge_rows,
)
from featstore.probes.base import Classifier, Fitted, check_exponents
from featstore.probes.data import SHOTS, Task
from featstore.probes.rows import held, prepared


@dataclass(frozen=True, kw_only=True)
class Ridge(Classifier):
    """Least squares to one-hot categories with an L2 penalty and an intercept.

    Attributes
    ----------
    log10_lambda : ascending grid of lambda = 10**x, on the scale of scikit-learn's `Ridge(alpha)`;
        the one of least squared leave-one-out error wins, the smallest of equals
    """

    log10_lambda: tuple[float, ...]
    probabilities: bool = False
    kind: str = "ridge"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exponents("log10_lambda", self.log10_lambda, ascending=True)

    def fit(self, task: Task) -> Fitted:
        """Scorer by fitted values."""
        rows = held(prepared(task, task.train, self.normalisation), task.train, task)
        lambdas = [10.0**x for x in self.log10_lambda]
        solution = _solve(task, rows, lambdas, self.normalisation)
        squared, correct = reduce_blocks(
            partial(_loo, solution=solution, xp=task.xp), rows, _add_pairs, parallel=task.parallel
        )
        best = int(np.argmin(squared))
        weight = solution.weight(best, xp=task.xp)
        n = len(task.train)
        return Fitted(
            prepared(task, task.test, self.normalisation),
            lambda x, number: x @ weight[:-1, :] + weight[-1:, :],
            {
                "lambda": lambdas[best],
                "lambda_at_edge": best in (0, len(lambdas) - 1),
                "loo_squared_error": [float(s) / n for s in squared],
                "loo_top1": [float(c) / n for c in correct],
            },
        )


def _solve(
    task: Task, rows: Sequence[Block], lambdas: Sequence[float], normalisation: str
) -> RidgeSolution:
    """By products between features, or between rows where these are fewer."""
    if len(task.train) > task.train.width:
        return solve_ridge(gram_sums(task, normalisation), lambdas, xp=task.xp)
    parts = [block.read() for block in rows]
    features, labels = (task.xp.concat(of, axis=0) for of in zip(*parts, strict=True))
    return solve_ridge_rows(features, labels, lambdas, n_categories=task.n_categories, xp=task.xp)


def gram_sums(task: Task, normalisation: str) -> Gram:
    """Sums over the train rows, made once for all protocols of a task that normalise alike."""
    key = ("gram", normalisation)
    if key not in task.cache:
        task.cache[key] = reduce_blocks(
            partial(_gram, n_categories=task.n_categories, xp=task.xp),
            prepared(task, task.train, normalisation),
            merge_grams,
            parallel=task.parallel,
        )
    gram: Gram = task.cache[key]
    return gram


def _gram(block: Block, *, n_categories: int, xp: Any) -> Gram:
    features, labels = block.read()
    return gram_block(features, labels, n_categories=n_categories, xp=xp)


def _loo(block: Block, *, solution: RidgeSolution, xp: Any) -> tuple[np.ndarray, np.ndarray]:
    features, labels = block.read()
    squared, correct = loo_errors(features, labels, solution, xp=xp)
    return to_host(squared), to_host(correct)


def _add_pairs(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], a[1] + b[1]


_GRID: Sequence[float] = [x / 2 for x in range(-8, 13)]

PROTOCOLS = [
    Ridge(
        name="ridge",
        log10_lambda=tuple(_GRID),
        sets=("core",),
        source="scikit-learn's RidgeCV with one-hot targets, on the grid stated",
    ),
    *(
        Ridge(
            name=f"ridge-{shots}shot",
            log10_lambda=tuple(_GRID),
            shots=shots,
            sets=("kshot",),
            source="as ridge, of few train images of each category",
        )
        for shots in SHOTS
    ),
]
