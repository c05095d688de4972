"""Probes: protocols that are answered off the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from featstore.backend import namespace
from featstore.errors import FeatStoreError, ProbeError, UnknownNameError
from featstore.names import expand_sets, unknown
from featstore.probes import knn, linear, literal, logreg, prototypes, ridge, scores
from featstore.probes.base import Measured, Metrics, Protocol
from featstore.probes.data import Data, Task

logger = logging.getLogger(__name__)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for module in (knn, logreg, literal, linear, ridge, prototypes, scores)
    for protocol in module.PROTOCOLS
}


_FIXED = frozenset(
    (
        "name",
        "sets",
        "source",
        "kind",
        "probabilities",
        "headline",
        "scale",
        "statistic",
        "rescaled",
    )
)

P = TypeVar("P", bound=Protocol)


def get(name: str) -> Protocol:
    """Protocol of a name; `NAME+field=value` is NAME with a setting changed, under that name.

    Raises
    ------
    UnknownNameError
        No such protocol or setting.
    """
    return find(name, PROTOCOLS)


def find(name: str, known: Mapping[str, P]) -> P:
    """As `get`, among some protocols.

    Raises
    ------
    UnknownNameError
        No such protocol or setting.
    """
    base, *overrides = name.split("+")
    if base not in known:
        raise unknown("protocol", base, known, "featstore protocols lists them")
    protocol = known[base]
    settings = {f.name for f in fields(protocol)} - _FIXED
    changed: dict[str, Any] = {}
    for override in overrides:
        setting, _, text = override.partition("=")
        if setting not in settings:
            raise UnknownNameError(
                f"{base} has no setting {setting!r}; it has {', '.join(sorted(settings))}"
            )
        changed[setting] = _parse(protocol, setting, text)
    try:
        return protocol.changed(name, changed) if changed else protocol
    except ValueError as error:
        raise UnknownNameError(f"{name}: {error}") from None


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
    """Each protocol's result on one task, or the error that it ended in; the others go on.

    Whatever a protocol raises is its own failure: a sweep of days is not lost to one cell. What is
    no error of the store or the features comes as a ProbeError, its traceback in the debug log.
    """
    # The largest k first: its neighbour lists then serve every smaller one.
    tasks: dict[tuple[int, float], Task] = {}
    for protocol in sorted(protocols, key=lambda p: -getattr(p, "k", 0)):
        started = time.perf_counter()
        found: Measured | FeatStoreError
        try:
            measured = measure(protocol, task, tasks)
            found = replace(measured, seconds=time.perf_counter() - started)
        except FeatStoreError as error:
            found = error
        except Exception as error:  # numpy's and cupy's of no memory left are no RuntimeError
            logger.debug("%s failed", protocol.name, exc_info=True)
            # Not chained: the frames of a traceback would keep all that filled the memory.
            found = ProbeError(f"{protocol.name}: {_told(error)}")
        yield protocol, found


def _told(error: Exception) -> str:
    """What an error says, after its type's name where a message alone may say nothing."""
    if isinstance(error, ValueError | RuntimeError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def measure(
    protocol: Protocol, task: Task, tasks: dict[tuple[int, float], Task] | None = None
) -> Measured:
    """Result of one protocol on one task; `tasks` keeps those cut down to fewer train rows.

    Raises
    ------
    ProbeError
        The protocol cannot run on these features.
    """
    protocol.check(task)
    part = protocol.shots, protocol.fraction
    if part == (0, 1.0):
        return protocol.measure(task)
    tasks = {} if tasks is None else tasks
    if part not in tasks:
        tasks[part] = task.few(*part)
    measured = protocol.measure(tasks[part])
    drawn = {"train_rows": len(tasks[part].train)}
    return replace(measured, certificate=drawn | measured.certificate)


def score(
    X_train: np.ndarray,
    y_train: np.ndarray,
    X_test: np.ndarray,
    y_test: np.ndarray,
    *,
    protocol: str,
    seed: int = 0,
    device: str = "cpu",
) -> Metrics:
    """Metrics of a protocol on plain arrays, without any store.

    Parameters
    ----------
    X_train, X_test : (n, d) and (m, d) finite features
    y_train, y_test : (n,) and (m,) whole numbers in 0..c-1, c at most 2**20
    protocol : its name
    seed : of draws, splits and initialisations; 0 or more
    device : `cpu`, `cuda` or `cuda:N`

    Returns
    -------
    metrics : name -> value, low and high (95 % interval)

    Raises
    ------
    UnknownNameError, ProbeError, ValueError
        No such protocol; it cannot run on these; shapes do not fit, features are not finite, a
        label is none, or the seed is below 0.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    train = Data.of_arrays(X_train, y_train, names=("X_train", "y_train"))
    test = Data.of_arrays(X_test, y_test, names=("X_test", "y_test"))
    n_categories = int(max(train.labels.max(initial=0), test.labels.max(initial=0))) + 1
    task = Task(train, test, n_categories, seed, namespace(device), device)
    return measure(get(protocol), task).metrics


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
