"""Multinomial logistic regression off the store, its C chosen on a held-out tenth of train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from featstore.backend import Array, to_device, to_host
from featstore.blocks import Block, reduce_blocks
from featstore.kernels.softmax import (
    fit_logistic,
    fit_logistic_path,
    predict_log_proba,
    softmax_loss,
)
from featstore.probes.base import Fitted, Protocol, Task, held, prepared


@dataclass(frozen=True, kw_only=True)
class LogisticRegression(Protocol):
    """L2-penalised logistic regression with intercept, by L-BFGS to a stated gradient.

    Attributes
    ----------
    log10_c : ascending grid of C = 10**x, C as in scikit-learn; the smallest of the best wins
    held_out : share of train (every n-th row, n = 1 / share rounded), stratified and seeded, on
        which C is chosen by top-1; the model is then fitted again on all of train
    path_tolerance, path_iterations : a fit made to choose C ends at this certified excess of the
        objective over the optimum, or after so many iterations; it starts from the C before
    tolerance, max_iterations : the same of the final fit; its certificate is recorded
    """

    log10_c: tuple[float, ...]
    held_out: float = 0.1
    path_tolerance: float = 1e-3
    path_iterations: int = 200
    tolerance: float = 1e-4
    max_iterations: int = 2000
    kind: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"held_out must lie in 0..0.5, got {self.held_out}")

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities."""
        out = held_out_rows(task.train.labels, self.held_out, task.seed)
        # scikit-learn fits one column for two categories; in two, the same optimum costs double
        scale = 2.0 if task.n_categories == 2 else 1.0
        cs = [10.0**x for x in self.log10_c]
        penalties = [scale / c for c in cs]
        shape = {"n_features": task.train.width, "n_categories": task.n_categories}
        accuracies, start = self._choose(task, out, penalties, shape)
        best = int(np.argmax(accuracies))
        rows = held(prepared(task, task.train, self.normalisation), task.train)
        weight, certificate = fit_logistic(
            partial(_evaluate, rows=rows, task=task),
            **shape,
            penalty=penalties[best],
            start=start,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        on_device = to_device(weight, task.xp)
        return Fitted(
            prepared(task, task.test, self.normalisation),
            lambda x, number: predict_log_proba(on_device, x, xp=task.xp),
            {
                **asdict(certificate),
                "C": cs[best],
                "C_at_edge": best in (0, len(cs) - 1),
                "C_tried": cs,
                "held_out_rows": int(out.sum()),
                "held_out_top1": accuracies,
            },
        )

    def _choose(
        self, task: Task, out: np.ndarray, penalties: Sequence[float], shape: dict[str, int]
    ) -> tuple[list[float], np.ndarray]:
        """Top-1 on the held-out rows for each C tried, and the weight of the best."""
        kept = held(prepared(task, task.train, self.normalisation, ~out), task.train)
        asked = held(prepared(task, task.train, self.normalisation, out), task.train)
        accuracies: list[float] = []
        best = np.zeros((shape["n_features"] + 1, shape["n_categories"]))
        path = fit_logistic_path(
            partial(_evaluate, rows=kept, task=task),
            **shape,
            penalties=penalties,
            tolerance=self.path_tolerance,
            max_iterations=self.path_iterations,
        )
        for weight, _ in path:
            count = partial(_count_right, weight=to_device(weight, task.xp), xp=task.xp)
            top1 = reduce_blocks(count, asked, _add) / int(out.sum())
            if top1 > max(accuracies, default=-1.0):
                best = weight
            accuracies.append(top1)
        return accuracies, best


def held_out_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) mask of a seeded share of the rows, spread evenly over the categories.

    A category of one row stays whole.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_category = shuffled[np.argsort(labels[shuffled], kind="stable")]
    step = round(1 / share)
    mask = np.zeros(len(labels), bool)
    mask[by_category[step - 1 :: step]] = True
    counts = np.bincount(labels)
    lonely = counts[labels] == 1
    mask[lonely] = False
    if not mask.any():  # fewer rows than a share: one of the largest category
        mask[by_category[labels[by_category] == counts.argmax()][0]] = True
    return mask


def _evaluate(weight: np.ndarray, *, rows: Sequence[Block], task: Task) -> tuple[float, np.ndarray]:
    kernel = partial(_loss, weight=to_device(weight, task.xp), xp=task.xp)
    loss, gradient = reduce_blocks(kernel, rows, _add_pairs, parallel=task.parallel)
    return float(loss), to_host(gradient)


def _loss(block: Block, *, weight: Array, xp: Any) -> tuple[Array, Array]:
    features, labels = block.read()
    return softmax_loss(weight, features, labels, xp=xp)


def _count_right(block: Block, *, weight: Array, xp: Any) -> int:
    """Rows of a block that a weight gets right."""
    features, labels = block.read()
    guess = xp.argmax(predict_log_proba(weight, features, xp=xp), axis=1)
    return int(xp.sum(xp.astype(guess == labels, xp.int64)))


def _add(a: int, b: int) -> int:
    return a + b


def _add_pairs(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], a[1] + b[1]


PROTOCOLS = [
    LogisticRegression(
        name="logreg",
        log10_c=tuple(float(x) for x in range(-6, 6)),
        source="C over Ericsson et al.'s range (arXiv:2011.13377), chosen on a tenth of train",
    )
]
