"""Logistic regression exactly as Ericsson et al. ran it: scikit-learn's, stopped early.

It is there to compare with their tables, not to measure models: their fits end after 100
iterations, each begins where that of the C before ended, so the score depends on the order of the
sweep. `logreg-ericsson` is the protocol they meant.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from featstore.backend import to_device, to_host
from featstore.errors import NotApplicableError
from featstore.probes.base import Classifier, Fitted, as_float32, check_exponents
from featstore.probes.data import Data, Task
from featstore.probes.held_out import permuted_folds
from featstore.probes.rows import prepared


@dataclass(frozen=True, kw_only=True)
class LiteralLogistic(Classifier):
    """scikit-learn's LogisticRegression, L-BFGS, warm starts, warnings of non-convergence counted.

    Attributes
    ----------
    log10_c : C = 10**x in the order of the sweep, as they wrote it: of two classes, and of each
        category where a row may have several, half of what it is in scikit-learn's binary
        regression; the first of the best wins
    published : take the C that the authors chose for this model and dataset, and fit once
    iterations : most iterations of a fit
    held_out : share of train on which C is chosen where the dataset has no val split; of a draw of
        few images, folds take turns; of one image of each category, C is that nearest 1
    """

    log10_c: tuple[float, ...]
    published: bool = False
    iterations: int = 100
    held_out: float = 0.2
    rescaled: bool = True
    kind: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exponents("log10_c", self.log10_c)
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"held_out must lie in 0..0.5 and not be 0, got {self.held_out:g}")

    def splits(self, stored: Collection[str]) -> tuple[str, ...]:
        """Train and test, and val where it is stored."""
        return ("train", "val", "test") if "val" in stored else ("train", "test")

    def check(self, task: Task) -> None:
        """As for every protocol; several labels a row are welcome."""
        task.check()
        if self.published and (_base(task.model), _base(task.dataset)) not in published_c():
            raise NotApplicableError(
                f"{self.name}: no C was published for {task.model or 'this model'} on "
                f"{task.dataset or 'this dataset'}. Use logreg-ericsson-literal"
            )

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities; of several labels a row, by log-odds."""
        every = task.train if task.val is None else task.train.joined(task.val)
        certificate: dict[str, Any] = {}
        if self.published:
            best = published_c()[_base(task.model), _base(task.dataset)]
            fits, unseen = _Fits(task, self.iterations), None
        else:
            best, fits, unseen, certificate = self._sweep(task)
        cut = fits.cut
        fits.fit(*_rows(task, every, self.normalisation), best)
        return Fitted(
            prepared(task, task.test, self.normalisation),
            lambda x, number: to_device(fits.predict(to_host(x)), task.xp),
            {
                "C": best,
                **certificate,
                "train_rows": len(every),
                "converged": fits.cut == cut,
                "unconverged_fits": fits.cut,
            },
            None if task.multi_label else unseen,
        )

    def _sweep(
        self, task: Task
    ) -> tuple[float, _Fits, tuple[np.ndarray, np.ndarray] | None, dict[str, Any]]:
        """The C chosen on held-out rows, the estimator to go on with, scores and labels of these
        rows, and what is said of the choice.
        """
        x, y = _rows(task, task.train, self.normalisation)
        if task.val is not None:
            sides = [(x, y, *_rows(task, task.val, self.normalisation))]
        else:
            masks = permuted_folds(task, self.held_out)
            sides = [(x[~out], y[~out], x[out], y[out]) for out in masks]
        del x, y  # large, and the sides hold what is needed
        if not sides:
            best = 10.0 ** min(self.log10_c, key=abs)
            told = {"C_tried": [best], "C_at_edge": False, "held_out_rows": 0}
            return best, _Fits(task, self.iterations), None, told
        cs = [10.0**exponent for exponent in self.log10_c]
        fits = [_Fits(task, self.iterations) for _ in sides]  # folds do not begin where others end
        labels = np.concatenate([t for *_, t in sides])
        scores: list[float] = []
        unseen = None
        for c in cs:
            found = []
            for one, (kept, known, asked, _) in zip(fits, sides, strict=True):
                one.fit(kept, known, c)
                found.append(one.predict(asked))
            scores.append(task.score(np.concatenate(found), labels))
            if scores[-1] > max(scores[:-1], default=-np.inf):
                unseen = as_float32(np.concatenate(found)), labels
        best = cs[int(np.argmax(scores))]
        fits[0].cut = sum(one.cut for one in fits)
        return (
            best,
            fits[0],
            unseen,
            {
                "C_tried": cs,
                "C_at_edge": best in (min(cs), max(cs)),
                "held_out_rows": len(labels),
                "folds": len(sides),
                f"held_out_{task.metric}": scores,
            },
        )


class _Fits:
    """Their estimator: every fit begins where the one before ended, whatever that was of.

    Of several labels a row it is fitted to one category after the other, within each C (`linear.py`
    of their repository). Theirs is multinomial for two classes too: a softmax of two columns, each
    the other's negative, so that both pay the penalty for half the log-odds. That is scikit-learn's
    regression of one column with twice the C.
    """

    def __init__(self, task: Task, iterations: int) -> None:
        from sklearn.linear_model import LogisticRegression  # slow to import

        self.model = LogisticRegression(max_iter=iterations, warm_start=True)
        self.weights: list[tuple[np.ndarray, np.ndarray]] = []  # of each category's log-odds
        self.task, self.cut = task, 0

    def fit(self, x: np.ndarray, y: np.ndarray, c: float) -> None:
        """Fit with their C, and count what was cut off."""
        self.weights = []
        for target in (y == 1).T if self.task.multi_label else [y]:
            self._fit(x, target, c)
            self.weights.append((self.model.coef_[0].copy(), self.model.intercept_[0]))

    def _fit(self, x: np.ndarray, target: np.ndarray, c: float) -> None:
        from sklearn.exceptions import ConvergenceWarning

        classes = np.unique(target)
        known = getattr(self.model, "classes_", classes)
        self.model.set_params(
            C=2 * c if len(classes) == 2 else c,
            warm_start=np.array_equal(known, classes),  # anew after rows that lacked a category
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            self.model.fit(x, target)
        if self.model.n_iter_.max() >= self.model.max_iter:
            self.cut += 1

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, c) log-probabilities of all categories; of several labels a row, log-odds."""
        if self.task.multi_label:
            return np.stack([x @ slope + offset for slope, offset in self.weights], axis=1)
        scores = np.full((len(x), self.task.n_categories), -np.inf)
        scores[:, self.model.classes_] = self.model.predict_log_proba(x)
        return scores


def _rows(task: Task, data: Data, normalisation: str) -> tuple[np.ndarray, np.ndarray]:
    read = [block.read() for block in prepared(task, data, normalisation)]
    return (
        np.concatenate([to_host(x) for x, _ in read]),
        np.concatenate([to_host(y) for _, y in read]),
    )


@lru_cache(maxsize=1)
def published_c() -> dict[tuple[str, str], float]:
    """C that Ericsson et al. chose, by model and dataset (run_linear.sh of their code)."""
    with Path(__file__).with_name("ericsson_c.csv").open(encoding="utf-8", newline="") as file:
        return {(row["model"], row["dataset"]): float(row["C"]) for row in csv.DictReader(file)}


def _base(name: str) -> str:
    """Catalogue name within a stored one, without site, transform and variant."""
    return name.partition("~")[0].partition("@")[0]


_SWEEP = tuple(float(x) for x in np.linspace(6, -5, 45))  # C = 1 / lambda, as lambda ascends

PROTOCOLS = [
    LiteralLogistic(
        name=f"logreg-ericsson-literal{suffix}",
        log10_c=_SWEEP,
        published=bool(suffix),
        sets=("ericsson2021-literal",),
        source="Ericsson et al., arXiv:2011.13377, as their code runs: 100 iterations, warm sweep"
        + (", with the C that they chose" if suffix else ""),
    )
    for suffix in ("", "-published")
]
