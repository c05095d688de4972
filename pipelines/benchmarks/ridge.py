"""Ridge regression: 45 lambdas with leave-one-out errors, beside scikit-learn's RidgeCV.

python pipelines/benchmarks/ridge.py [--small] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce

import numpy as np
from common import Row, clusters, compare, run
from sklearn.linear_model import RidgeCV

from featstore import kernels

LAMBDAS = np.logspace(-4, 6, 45)
Path = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Many rows, fed in blocks; and fewer rows than features, at once."""
    if arguments.small:
        return [beside(blocks, 600, 24, 5, repeats=1), beside(few, 40, 96, 5, repeats=1)]
    return [
        beside(blocks, 50_000, 768, 100, repeats=3, goal=0.05),
        beside(few, 500, 2048, 50, repeats=3),
    ]


def blocks(x: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    """Squared errors (45,) from blocks of rows, as off a store."""
    parts = [(x[i : i + 4096], y[i : i + 4096]) for i in range(0, len(x), 4096)]
    sums = (kernels.ridge.gram_block(*part, n_categories=c, xp=np) for part in parts)
    gram = reduce(kernels.ridge.merge_grams, sums)
    solution = kernels.ridge.solve_ridge(gram, LAMBDAS, xp=np)
    return np.sum([kernels.ridge.loo_errors(*part, solution, xp=np)[0] for part in parts], axis=0)


def few(x: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    """Squared errors (45,) from all rows, through products between rows."""
    solution = kernels.ridge.solve_ridge_rows(x, y, LAMBDAS, n_categories=c, xp=np)
    return np.asarray(kernels.ridge.loo_errors(x, y, solution, xp=np)[0])


def beside(path: Path, n: int, d: int, c: int, *, repeats: int, goal: float | None = None) -> Row:
    """One way of ours on made-up features, and how far the errors of the best lambda differ."""
    x, y = clusters(n, d, c, apart=0.1)
    model = RidgeCV(alphas=LAMBDAS)
    what = f"ridge, 45 lambdas, {n} x {d}, {c} categories"
    row = compare(
        what, partial(path, x, y, c), "RidgeCV", partial(model.fit, x, np.eye(c)[y]),
        goal=goal, repeats=repeats,
    )  # fmt: skip
    squared = path(x, y, c)
    best = LAMBDAS[np.argmin(squared)]
    off = abs(squared.min() / (n * c) / -model.best_score_ - 1)
    same = "the same" if best == model.alpha_ else f"{best:g}, not {model.alpha_:g}"
    return replace(row, note=f"lambda {same}, its error off by {off:.0e} of itself")


if __name__ == "__main__":
    run(measure, __doc__ or "")
