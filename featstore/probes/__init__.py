"""Probes: protocols that are answered off the store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from featstore.backend import namespace, to_host
from featstore.errors import FeatStoreError, ProbeError, UnknownNameError
from featstore.kernels.metrics import (
    expected_calibration_error,
    mean_per_class,
    outcomes,
    top_k_accuracy,
)
from featstore.kernels.resample import stratified_bootstrap, wilson_interval
from featstore.names import expand_sets, unknown
from featstore.probes import knn, linear, logreg, ridge
from featstore.probes.base import Data, Fitted, Protocol, Task

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in [*knn.PROTOCOLS, *logreg.PROTOCOLS, *linear.PROTOCOLS, *ridge.PROTOCOLS]
}

_RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """One cell's result.

    Attributes
    ----------
    metrics : name -> value, low and high (95 %; None where there is no interval)
    outcomes : per test row: index (in the dataset), label, top5, top5_score, rank and margin
    certificate : what the fit says of itself ; seconds : of this protocol
    """

    metrics: dict[str, dict[str, float | None]]
    outcomes: dict[str, np.ndarray]
    certificate: dict[str, Any]
    seconds: float


def get(name: str) -> Protocol:
    """Protocol of a name; `NAME+field=value` is NAME with a setting changed, under that name.

    Raises
    ------
    UnknownNameError
        No such protocol or setting.
    """
    base, *overrides = name.split("+")
    if base not in PROTOCOLS:
        raise unknown("protocol", base, PROTOCOLS, "featstore protocols lists them")
    protocol = PROTOCOLS[base]
    fixed = {"name", "sets", "source", "kind", "probabilities"}
    for override in overrides:
        setting, _, text = override.partition("=")
        known = {f.name for f in fields(protocol)} - fixed
        if setting not in known:
            raise UnknownNameError(
                f"{base} has no setting {setting!r}; it has {', '.join(sorted(known))}"
            )
        try:
            protocol = replace(protocol, name=name, **{setting: _parse(protocol, setting, text)})
        except ValueError as error:
            raise UnknownNameError(f"{name}: {error}") from None
    return protocol


def _parse(protocol: Protocol, setting: str, text: str) -> Any:
    """A setting's value in the type that it has."""
    old = getattr(protocol, setting)
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            return tuple(float(part) for part in text.split(","))
        return type(old)(text)
    except (ValueError, KeyError):
        raise UnknownNameError(
            f"{protocol.name}: {setting} must be like {old!r}, got {text!r}"
        ) from None


def expand(names: Iterable[str]) -> list[str]:
    """Protocol names with each set's name (`all`, `marks2024`, `dino`) replaced by its members."""
    return expand_sets(names, PROTOCOLS, lambda name: get(name).name)


def run(
    protocols: Sequence[Protocol], task: Task
) -> Iterator[tuple[Protocol, Measured | FeatStoreError]]:
    """Each protocol's result on one task, or the error that it ended in; the others go on."""
    try:
        task.check()
    except ProbeError as error:
        yield from ((protocol, error) for protocol in protocols)
        return
    # The largest k first: its neighbour lists then serve every smaller one.
    for protocol in sorted(protocols, key=lambda p: -getattr(p, "k", 0)):
        started = time.perf_counter()
        try:
            measured = measure(protocol, task, started)
        except FeatStoreError as error:
            yield protocol, error
        except (ValueError, RuntimeError) as error:  # of a kernel, such as no memory left
            yield protocol, ProbeError(f"{protocol.name}: {error}")
        else:
            yield protocol, measured


def measure(protocol: Protocol, task: Task, started: float) -> Measured:
    """Result of one protocol on one task.

    Raises
    ------
    ProbeError
        The protocol cannot run on these features.
    """
    fitted = protocol.fit(task)
    found = _outcomes(fitted, task)
    seconds = time.perf_counter() - started
    return Measured(
        _metrics(found, task, probabilities=protocol.probabilities),
        found,
        fitted.certificate,
        seconds,
    )


def score(
    X_train: np.ndarray,
    y_train: np.ndarray,
    X_test: np.ndarray,
    y_test: np.ndarray,
    *,
    protocol: str,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, dict[str, float | None]]:
    """Metrics of a protocol on plain arrays, without any store.

    Parameters
    ----------
    X_train, X_test : (n, d) and (m, d) finite features
    y_train, y_test : (n,) and (m,) integer labels in 0..c-1
    protocol : its name

    Returns
    -------
    metrics : name -> value, low and high (95 % interval)

    Raises
    ------
    UnknownNameError, ProbeError, ValueError
        No such protocol; it cannot run on these; shapes do not fit or features are not finite.
    """
    train, test = Data.of_arrays(X_train, y_train), Data.of_arrays(X_test, y_test)
    n_categories = int(max(train.labels.max(initial=0), test.labels.max(initial=0))) + 1
    task = Task(train, test, n_categories, seed, namespace(device), device)
    task.check()
    return measure(get(protocol), task, time.perf_counter()).metrics


def _outcomes(fitted: Fitted, task: Task) -> dict[str, np.ndarray]:
    """What is kept of each test row, in order, made block by block."""
    parts = []
    for number, block in enumerate(fitted.blocks):
        features, labels = block.read()
        found = outcomes(fitted.score(features, number), labels, xp=task.xp)
        parts.append(
            {
                "top5": to_host(found.top).astype(np.int32),
                "top5_score": _as_float32(to_host(found.top_score)),
                "rank": to_host(found.rank).astype(np.int32),
                "margin": _as_float32(to_host(found.margin)),
            }
        )
    kept = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"index": task.test.index, "label": task.test.labels, **kept}


def _as_float32(values: np.ndarray) -> np.ndarray:
    """Half the room; what stands for "no vote at all" becomes float32's lowest number."""
    most = np.finfo(np.float32).max
    return np.asarray(np.clip(values, -most, most), dtype=np.float32)


def _metrics(
    found: dict[str, np.ndarray], task: Task, *, probabilities: bool
) -> dict[str, dict[str, float | None]]:
    n = len(found["label"])
    right = found["rank"] == 0
    metrics: dict[str, dict[str, float | None]] = {}
    for name, k in (("top1", 1), ("top5", 5)):
        value = float(top_k_accuracy(found["rank"], k))
        low, high = wilson_interval(round(value * n), n)
        metrics[name] = {"value": value, "low": float(low), "high": float(high)}
    rng = np.random.default_rng(0)  # of the interval, not of the cell: its seed draws the fit
    low, high = stratified_bootstrap(
        right, found["label"], task.n_categories, resamples=_RESAMPLES, rng=rng
    )
    value = float(mean_per_class(right, found["label"], task.n_categories))
    metrics["mean_per_class"] = {"value": value, "low": float(low), "high": float(high)}
    if probabilities:
        confidence = np.exp(found["top5_score"][:, 0].astype(np.float64))
        error = float(expected_calibration_error(confidence, right))
        metrics["ece"] = {"value": error, "low": None, "high": None}
    return metrics


__all__ = [
    "PROTOCOLS",
    "Data",
    "Measured",
    "Protocol",
    "Task",
    "expand",
    "get",
    "measure",
    "run",
    "score",
]
