"""What a protocol is, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from featstore.backend import Array, to_host
from featstore.blocks import Block
from featstore.errors import NotApplicableError
from featstore.kernels.calibration import fit_temperature, folded_error, scaled_error
from featstore.kernels.metrics import (
    bootstrap_precision,
    expected_calibration_error,
    interpolated_precision,
    mean_per_class,
    outcomes,
    reliability_table,
    top_k_accuracy,
)
from featstore.kernels.resample import stratified_bootstrap, wilson_interval
from featstore.probes.data import Task
from featstore.probes.rows import NORMALISATIONS

_RESAMPLES = 1000

Metrics = dict[str, dict[str, float | None]]
"""Name -> `value`, `low` and `high` (95 %; None where there is no interval)."""


def check_exponents(name: str, values: Sequence[float], *, ascending: bool = False) -> None:
    """Refuse exponents of 10 that are none, too large for what is made of them, or out of order."""
    if not values or not all(-100 <= one <= 100 for one in values):
        raise ValueError(
            f"{name} must be exponents of 10 in -100..100, at least one, got {list(values)}"
        )
    if ascending:
        check_ascending(name, values)


def check_ascending(name: str, values: Sequence[float]) -> None:
    """Refuse a grid by whose order its ends and the smallest of equals could not be told."""
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{name} must ascend, each once, got {list(values)}")


@dataclass(frozen=True)
class Measured:
    """One cell's result.

    Attributes
    ----------
    metrics : name -> value, low and high (95 %; None where there is no interval)
    outcomes : what is kept of each test row, arrays of the same length; of classifiers index (in
        the dataset), label, top5, top5_score, rank and margin
    certificate : what the fit says of itself, and of classifiers with probabilities the bins of
        their calibration error as `reliability` ; seconds : of this protocol
    """

    metrics: Metrics
    outcomes: dict[str, np.ndarray]
    certificate: dict[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A complete, frozen instruction for one score.

    Attributes
    ----------
    allowed : normalisations that protocols of the class may have
    name : never means anything else later
    normalisation : `none`, `zscore`, `zscore-own`, `l2`, or `bn` for a trained one in the head
    shots : train images of each category that it is shown, drawn by the cell's seed; 0 for all
    fraction : instead, int(fraction * train images / all categories) of each, or all that it has
    sets : studies that it belongs to
    source : where it is from
    headline : the metric that is its score; "" for the dataset's own
    scale : `share` for a score in 0..1, `real` for one that is no share of anything
    """

    allowed: ClassVar[tuple[str, ...]] = NORMALISATIONS

    name: str
    normalisation: str = "none"
    shots: int = 0
    fraction: float = 1.0
    sets: tuple[str, ...] = ()
    source: str = ""
    kind: str = ""
    headline: str = ""
    scale: str = "share"

    def __post_init__(self) -> None:
        if self.normalisation not in self.allowed:
            raise ValueError(
                f"normalisation must be one of {', '.join(self.allowed)}, "
                f"got {self.normalisation!r}"
            )
        if self.shots < 0 or not 0 < self.fraction <= 1 or (self.shots and self.fraction < 1):
            raise ValueError(
                f"shots must be 0 or more, fraction lie in 0..1 and not be 0, and one of them be "
                f"given, got {self.shots} and {self.fraction:g}"
            )

    @property
    def transductive(self) -> bool:
        """Whether statistics are used that scored images take part in, whatever the BN mode."""
        # Clusters are made of the test images.
        return (
            self.normalisation == "zscore-own"
            or (self.scores_train and self.normalisation == "zscore")
            or self.kind == "clustering"
        )

    @property
    def scores_train(self) -> bool:
        """Whether it scores images of train as well, as episodes do, so that whatever is made of
        train is transductive: embeddings in BN mode `adapt` are.
        """
        return self.kind == "fewshot"

    def splits(self, stored: Collection[str]) -> tuple[str, ...]:
        """Splits that it reads, of those that are stored or else the ones it cannot do without."""
        return ("train", "test")

    def settings(self) -> dict[str, Any]:
        """Every setting by name, as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def changed(self, name: str, settings: Mapping[str, Any]) -> Self:
        """The same with other settings, under another name; raises ValueError as it is made."""
        return replace(self, name=name, **settings)

    def check(self, task: Task) -> None:
        """Refuse what cannot be scored.

        Raises
        ------
        ProbeError
            No rows, one category only, or one in test that train lacks; several labels a row.
        """
        if task.multi_label:
            raise NotApplicableError(
                f"{self.name} is for one label an image, and these have several each"
            )
        task.check()

    def measure(self, task: Task) -> Measured:
        """Result on one task, whose train split is already cut down to `shots`.

        Raises
        ------
        ProbeError
            It cannot run on these features.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it is measured")


@dataclass(frozen=True)
class Fitted:
    """What a classifier comes to: scores for test rows, and how far its fit can be trusted.

    Attributes
    ----------
    blocks : of the test split, prepared
    score : features (m, d) of a block and its number -> (m, c) scores, the highest wins
    certificate : JSON values about selection and convergence
    held_out : log-probabilities (v, c), finite, of rows that the scoring fit, or one like it, has
        not seen, and their labels (v,), for calibration
    """

    blocks: Sequence[Block]
    score: Callable[[Array, int], Array]
    certificate: dict[str, Any]
    held_out: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, kw_only=True)
class Classifier(Protocol):
    """A protocol that gives every test row a score for each category.

    Attributes
    ----------
    probabilities : whether scores are log-probabilities, so that calibration can be measured
    rescaled : whether it is measured after temperature scaling as well
    """

    probabilities: bool = True
    rescaled: bool = False

    def fit(self, task: Task) -> Fitted:
        """Scorer from the task's train split."""
        raise NotImplementedError(f"{type(self).__name__} must say how it is fitted")

    def measure(self, task: Task) -> Measured:
        """Top-1, top-5, mean per class and calibration; of several labels a row, 11-point mAP."""
        fitted = self.fit(task)
        parts = []
        for number, block in enumerate(fitted.blocks):
            features, labels = block.read()
            found = fitted.score(features, number)
            kept = {} if task.multi_label else summary(found, labels, xp=task.xp)
            if task.multi_label or self.rescaled:
                kept["scores"] = as_float32(to_host(found))
            parts.append(kept)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows = {"index": task.test.index, "label": task.test.labels, **joined}
        certificate = dict(fitted.certificate)
        if task.multi_label:
            return Measured(precision(rows["scores"], rows["label"]), rows, certificate)
        scores = rows.pop("scores", None)
        metrics = accuracy(rows, task.n_categories)
        if self.probabilities:
            metrics |= calibration(rows, certificate)
        if scores is not None:
            temperature = fit_temperature(*fitted.held_out) if fitted.held_out else None
            metrics |= scaled_calibration(scores, rows["label"], temperature, certificate)
        return Measured(metrics, rows, certificate)


def summary(scores: Array, labels: Array, *, xp: Any) -> dict[str, np.ndarray]:
    """What is kept of each row of scores (n, c): its best five, the true one's rank and margin."""
    found = outcomes(scores, labels, xp=xp)
    return {
        "top5": to_host(found.top).astype(np.int32),
        "top5_score": as_float32(to_host(found.top_score)),
        "rank": to_host(found.rank).astype(np.int32),
        "margin": as_float32(to_host(found.margin)),
    }


def as_float32(values: np.ndarray) -> np.ndarray:
    """Half the room; what stands for "no vote at all" becomes float32's lowest number."""
    most = np.finfo(np.float32).max
    return np.asarray(np.clip(values, -most, most), dtype=np.float32)


def accuracy(kept: Mapping[str, np.ndarray], n_categories: int) -> Metrics:
    """Top-1, top-5 and mean per class of rows with a `rank` and a `label`."""
    n = len(kept["label"])
    metrics: Metrics = {}
    for name, k in (("top1", 1), ("top5", 5)):
        value = top_k_accuracy(kept["rank"], k)
        low, high = wilson_interval(round(value * n), n)
        metrics[name] = {"value": value, "low": low, "high": high}
    right = kept["rank"] == 0
    rng = np.random.default_rng(0)  # of the interval, not of the cell: its seed draws the fit
    low, high = stratified_bootstrap(
        right, kept["label"], n_categories, resamples=_RESAMPLES, rng=rng
    )
    value = mean_per_class(right, kept["label"], n_categories)
    metrics["mean_per_class"] = {"value": value, "low": low, "high": high}
    return metrics


def calibration(kept: Mapping[str, np.ndarray], certificate: dict[str, Any]) -> Metrics:
    """Calibration error of rows whose `top5_score` are log-probabilities.

    What it is made of is noted in the certificate as `reliability`: count, mean confidence and
    accuracy of each bin of confidence, None where a bin is empty.
    """
    confidence, right = np.exp(kept["top5_score"][:, 0].astype(np.float64)), kept["rank"] == 0
    columns = reliability_table(confidence, right)
    certificate["reliability"] = {
        name: [None if np.isnan(one) else one for one in column.tolist()]
        for name, column in zip(("count", "confidence", "accuracy"), columns, strict=True)
    }
    return {"ece": _bare(expected_calibration_error(confidence, right))}


def scaled_calibration(
    scores: np.ndarray,
    labels: np.ndarray,
    temperature: float | None,
    certificate: dict[str, Any],
) -> Metrics:
    """Calibration error after temperature scaling.

    `ece_scaled`: the temperature is fitted on folds of the scored rows, as published, so it is
    transductive. `ece_scaled_val`: it is the given one, fitted on rows held out, where there are
    any, and noted in the certificate.
    """
    metrics: Metrics = {}
    if len(labels) >= 5:
        metrics["ece_scaled"] = _bare(folded_error(scores, labels))
    if temperature is not None:
        certificate["temperature"] = temperature
        metrics["ece_scaled_val"] = _bare(scaled_error(scores, labels, temperature))
    return metrics


def precision(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """11-point mean average precision of scores (n, c), where a row may have several labels."""
    present = labels == 1  # as in Ericsson et al.: what is marked difficult counts as absent
    rng = np.random.default_rng(0)
    low, high = bootstrap_precision(scores, present, resamples=_RESAMPLES, rng=rng)
    value = float(np.nanmean(interpolated_precision(scores, present)))
    return {"map11": {"value": value, "low": low, "high": high}}


def _bare(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}
