"""Logistic regression off the store, its C chosen on rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from featstore.backend import Array, to_device, to_host
from featstore.blocks import Block
from featstore.errors import NotApplicableError
from featstore.kernels.descent import LogisticCertificate
from featstore.kernels.logistic import fit_logistic, fit_logistic_path
from featstore.kernels.softmax import predict_log_proba
from featstore.probes.base import Classifier, Fitted, check_exponents
from featstore.probes.data import SHOTS, Data, Task
from featstore.probes.held_out import folds, permuted_folds
from featstore.probes.passes import Passes
from featstore.probes.rows import Prepared, held, prepared

_FLOOR = 0.01  # cross-entropy of a row: errors of a smaller one count as errors of this
DRAWS = ("stratified", "permutation")


@dataclass(frozen=True, kw_only=True)
class LogisticRegression(Classifier):
    """L2-penalised logistic regression with intercept, by L-BFGS to a stated excess.

    Multinomial; of several labels a row, one regression for each category against the rest, all
    with one C.

    Attributes
    ----------
    log10_c : ascending grid of C = 10**x, C as in scikit-learn; of one there is nothing to choose
    two_columns : of two categories, and of each where a row may have several, C is instead that of
        a softmax of two columns, as Ericsson et al. count it: half of scikit-learn's
    ties : of equally good C, the `smallest` wins or the `largest`
    official : choose C on the dataset's own val split, where there is one and it is stored, and
        fit again on train and val
    held_out : else the share of train on which C is chosen, by the dataset's metric; the model is
        then fitted again on all of train. Of few images, folds take turns; of one image of each
        category, C is that nearest 1
    draw : of these rows: `stratified` (every n-th row of a category, n = 1 / held_out rounded,
        after a seeded shuffle) or `permutation` (the first of a seeded permutation of the dataset)
    path_tolerance, path_iterations : fits made to choose C are one solve, each going on from the C
        before; it ends at this excess of the objective over the optimum as its curvature tells
        (of a cross-entropy below .01 a row, of that), or after so many iterations
    tolerance, max_iterations : the final fit ends at this excess, certified, or after so many; its
        certificate is recorded
    """

    log10_c: tuple[float, ...]
    two_columns: bool = False
    ties: str = "smallest"
    official: bool = False
    held_out: float = 0.1
    draw: str = "stratified"
    path_tolerance: float = 1e-6
    path_iterations: int = 1000
    tolerance: float = 1e-4
    max_iterations: int = 2000
    rescaled: bool = True
    kind: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exponents("log10_c", self.log10_c, ascending=True)
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"held_out must lie in 0..0.5 and not be 0, got {self.held_out:g}")
        if not (0 < self.tolerance < np.inf and 0 < self.path_tolerance < np.inf):
            raise ValueError(
                f"tolerance and path_tolerance must be above 0, got {self.tolerance:g} and "
                f"{self.path_tolerance:g}"
            )
        if min(self.max_iterations, self.path_iterations) < 1:
            raise ValueError(
                f"max_iterations and path_iterations must be at least 1, got "
                f"{self.max_iterations} and {self.path_iterations}"
            )
        if self.ties not in ("smallest", "largest"):
            raise ValueError(f"ties must be smallest or largest, got {self.ties!r}")
        if self.draw not in DRAWS:
            raise ValueError(f"draw must be one of {', '.join(DRAWS)}, got {self.draw!r}")

    def splits(self, stored: Any) -> tuple[str, ...]:
        """Train and test, and val where it is official and stored."""
        return ("train", "val", "test") if self.official and "val" in stored else ("train", "test")

    def check(self, task: Task) -> None:
        """As for every protocol; several labels a row are welcome."""
        task.check()

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities; of several labels a row, by log-odds."""
        cs = [10.0**x for x in self.log10_c]
        # The same log-odds pay twice as much in one column as in two, which share them. We fit one
        # where a row may have several labels, else one for each category.
        scale = 1.0
        if task.multi_label and self.two_columns:
            scale = 0.5
        elif not task.multi_label and task.n_categories == 2 and not self.two_columns:
            scale = 2.0
        penalties = [scale / c for c in cs]
        sides, every = self._sides(task)
        chosen = self._choose(task, sides, penalties)
        best = chosen.best
        rows = Passes.over(prepared(task, every, self.normalisation), every, task)
        weight, certificate = fit_logistic(
            rows.exact,
            **_shape(task),
            penalty=penalties[best],
            start=None if chosen.start is None else to_device(to_host(chosen.start), rows.xp),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            **rows.options,
        )
        on_device = to_device(weight, task.xp)
        return Fitted(
            prepared(task, task.test, self.normalisation),
            lambda x, number: _predict(on_device, x, task),
            {
                **asdict(certificate),
                "C": cs[best],
                "C_at_edge": bool(sides) and best in (0, len(cs) - 1),
                "C_tried": cs if sides else [cs[best]],
                "train_rows": len(every),
                "held_out_rows": chosen.rows,
                **chosen.certificate,
            },
            None if task.multi_label else chosen.unseen,
        )

    def _sides(self, task: Task) -> tuple[list[tuple[list[Prepared], list[Prepared]]], Data]:
        """Rows to fit each C on and those to choose it by, perhaps in folds; rows of the final fit.

        No such pair where there is nothing to choose, or no row can be spared.
        """
        if len(self.log10_c) == 1:
            return [], task.train
        if self.official and task.val is not None:
            kept = prepared(task, task.train, self.normalisation)
            asked = prepared(task, task.val, self.normalisation)
            return [(kept, asked)], task.train.joined(task.val)
        if self.draw == "permutation":
            masks = permuted_folds(task, self.held_out)
        elif task.multi_label:
            raise NotApplicableError(f"{self.name} draws rows by category, and a row has several")
        else:
            masks = folds(task.train.labels, self.held_out, task.seed)
        sides = [
            (
                prepared(task, task.train, self.normalisation, ~out),
                prepared(task, task.train, self.normalisation, out),
            )
            for out in masks
        ]
        return sides, task.train

    def _choose(
        self,
        task: Task,
        sides: Sequence[tuple[list[Prepared], list[Prepared]]],
        penalties: Sequence[float],
    ) -> _Chosen:
        """The C of the best score on the rows to choose by; without any, that nearest 1."""
        if not sides:
            return _Chosen(min(range(len(self.log10_c)), key=lambda i: abs(self.log10_c[i])))
        paths = [
            self._path(Passes.over(kept, task.train, task, weights=len(penalties)), task, penalties)
            for kept, _ in sides
        ]
        rows = [held(asked, task.train, task) for _, asked in sides]

        def unseen(i: int) -> tuple[np.ndarray, np.ndarray]:
            """Scores of all rows to choose by, each by the fit that has not seen it."""
            found = [_scores(path[i][0], of, task) for path, of in zip(paths, rows, strict=True)]
            scores, labels = zip(*found, strict=True)
            return np.concatenate(scores), np.concatenate(labels)

        scores = [task.score(*unseen(i)) for i in range(len(penalties))]
        order = range(len(scores)) if self.ties == "smallest" else range(len(scores) - 1, -1, -1)
        best = max(order, key=lambda i: scores[i])
        own = unseen(best)
        fits = [certificate for path in paths for _, certificate in path]
        told = {
            f"held_out_{task.metric}": scores,
            "folds": len(sides),
            "path_excess": max(one.estimate for one in fits),
            "path_passes": sum(one.evaluations for one in fits),
            "path_converged": all(one.converged for one in fits),
        }
        return _Chosen(best, paths[0][best][0], own, len(own[1]), told)

    def _path(
        self, rows: Passes, task: Task, penalties: Sequence[float]
    ) -> list[tuple[Array, LogisticCertificate]]:
        """A fit for each C, on the rows that may be seen."""
        return fit_logistic_path(
            rows.exact,
            **_shape(task),
            penalties=penalties,
            tolerance=self.path_tolerance,
            max_iterations=self.path_iterations,
            estimated=True,
            floor=_FLOOR * rows.n,
            **rows.options,
        )


@dataclass(frozen=True)
class _Chosen:
    """Which C, and what is known of the choice.

    Attributes
    ----------
    best : its number ; start : weight of its fit, if any ; rows : that it was chosen by
    unseen : scores and labels of these rows, by fits that have not seen them
    """

    best: int
    start: Array | None = None
    unseen: tuple[np.ndarray, np.ndarray] | None = None
    rows: int = 0
    certificate: dict[str, Any] = field(default_factory=dict)


def _shape(task: Task) -> dict[str, Any]:
    return {"n_features": task.train.width, "n_categories": task.n_categories}


def _predict(weight: Array, features: Array, task: Task) -> Array:
    if task.multi_label:
        return features @ weight[:-1, :] + weight[-1:, :]
    return predict_log_proba(weight, features, xp=task.xp)


def _scores(weight: Array, rows: Sequence[Block], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, c) of a weight on some rows, and their labels."""
    on_device = to_device(weight, task.xp)
    read = [(_predict(on_device, x, task), y) for x, y in (block.read() for block in rows)]
    found, labels = zip(*read, strict=True)
    return np.concatenate([*map(to_host, found)]), np.concatenate([*map(to_host, labels)])


PROTOCOLS = [
    LogisticRegression(
        name="logreg",
        log10_c=tuple(float(x) for x in range(-6, 6)),
        sets=("core",),
        source="C over Ericsson et al.'s range (arXiv:2011.13377), chosen on a tenth of train",
    ),
    LogisticRegression(
        name="logreg-ericsson",
        log10_c=tuple(float(x) for x in np.linspace(-5, 6, 45)),
        two_columns=True,
        ties="largest",  # they go from the largest C down, and the first of the best wins
        official=True,
        held_out=0.2,
        draw="permutation",
        path_tolerance=1e-8,
        path_iterations=5000,
        sets=("ericsson2021",),
        source="Ericsson et al., arXiv:2011.13377: 45 C on the official validation split or a "
        "fifth of train; every fit converged, as theirs were not",
    ),
    *(
        LogisticRegression(
            name=f"logreg-{shots}shot",
            log10_c=(0.0,),
            normalisation="l2",
            shots=shots,
            sets=("kshot",),
            source="Tian et al., arXiv:2003.11539: C = 1 on normalised features; few train images "
            "of each category",
        )
        for shots in SHOTS
    ),
]
