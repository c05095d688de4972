"""Which cells are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featstore import datasets as datasets_
from featstore import models as models_
from featstore import probes
from featstore.errors import FeatStoreError, MissingFeaturesError
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName
from featstore.names import unknown
from featstore.results import Cell, mark_current
from featstore.store import Features, Store


@dataclass(frozen=True)
class Failure:
    """A cell, or all cells of some features, that could not be filled, and why."""

    what: str
    error: str


@dataclass
class Summary:
    """What a sweep did.

    Attributes
    ----------
    filled, up_to_date : cells ; failed : those that ended in an error ; seconds : in all
    not_applicable : cells of a set's protocol that these features are too few for
    results : the refreshed results.zarr, or "" if there is no cell at all
    """

    filled: int = 0
    up_to_date: int = 0
    failed: list[Failure] = field(default_factory=list)
    not_applicable: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    results: str = ""


@dataclass(frozen=True)
class Job:
    """Missing cells of one set of features and one seed: one task of the scheduler.

    Attributes
    ----------
    named : protocols that were asked for by their own name, not by that of a set
    """

    store: str
    results: str
    key: FeatureKey
    cells: tuple[Cell, ...]
    named: frozenset[str]
    seed: int
    device: str
    parallel: bool = False
    device_memory: int | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep is asked for: arguments of `probe`, checked.

    Attributes
    ----------
    protocols : names, sets replaced by their members
    named : names as they were given
    """

    models: Sequence[str]
    datasets: Sequence[str]
    protocols: Sequence[str]
    named: frozenset[str]
    bn_modes: Sequence[BNMode]
    seeds: Sequence[int]
    store: Path
    results: Path
    device: str
    overwrite: bool
    device_memory: int | None = None


def find_jobs(asked: Sweep, summary: Summary) -> Iterator[Job]:
    """Missing cells of all that is asked for; what is there or cannot be goes into the summary."""
    store = Store(asked.store)
    # What is merely among all that is stored need not be fit for scoring.
    unfit = summary.failed if asked.models or asked.datasets else summary.not_applicable
    keys, absent = find_keys(store, asked.models, asked.datasets, asked.bn_modes)
    summary.failed += absent
    for key in keys:
        try:
            features = store.open(key)
        except MissingFeaturesError as error:
            unfit.append(Failure(str(key), str(error)))
            continue
        except FeatStoreError as error:
            summary.failed.append(Failure(str(key), str(error)))
            continue
        digests = _digests(features, asked, summary, unfit)
        stored = {name: split.digest for name, split in features.splits.items()}
        mark_current(asked.results, key.model, key.dataset, key.bn_mode, stored)
        for seed in asked.seeds:
            cells = [
                Cell(key.model, key.dataset, key.bn_mode, protocol, seed, digest)
                for protocol, digest in digests.items()
            ]
            missing = tuple(
                one for one in cells if asked.overwrite or not one.path(asked.results).exists()
            )
            summary.up_to_date += len(cells) - len(missing)
            if missing:
                yield Job(
                    str(asked.store), str(asked.results), key, missing, asked.named, seed,
                    asked.device, device_memory=asked.device_memory,
                )  # fmt: skip


def _digests(
    features: Features, asked: Sweep, summary: Summary, unfit: list[Failure]
) -> dict[str, str]:
    """Digest of the splits that each protocol reads, for those whose splits are stored."""
    digests: dict[str, str] = {}
    faults: dict[str, list[str]] = {}
    for protocol in asked.protocols:
        try:
            splits = probes.get(protocol).splits(features.splits)
            digests[protocol] = features.digest(*splits)
        except MissingFeaturesError as error:
            faults.setdefault(str(error), []).append(protocol)
    scored = {"train", "test"} <= set(features.splits)
    for fault, lacking in faults.items():
        if not scored:  # no protocol can do anything: once for all
            unfit.append(Failure(str(features.key), fault))
            continue
        for protocol in lacking:
            kind = summary.failed if protocol in asked.named else summary.not_applicable
            kind.append(Failure(f"{features.key} {protocol}", fault))
    return digests


def find_keys(
    store: Store, models: Sequence[str], datasets: Sequence[str], bn_modes: Sequence[BNMode]
) -> tuple[list[FeatureKey], list[Failure]]:
    """Stored keys that are asked for, and what is asked for by name and not stored.

    Names may be those of sets; `all`, or none, means all that is stored. A model without BatchNorm
    stands under `eval` for every mode.

    Raises
    ------
    MissingFeaturesError
        The store holds nothing.
    UnknownNameError
        A name is none of a catalogue, and nothing is stored under it.
    """
    stored = store.keys()
    if not stored:
        raise MissingFeaturesError(
            f"no features in {store.path}. Run: featstore extract -m MODEL -d DATASET"
        )
    there = {key.model for key in stored}, {key.dataset for key in stored}
    named_models = _named("model", models, models_.expand, models_.catalogue(), there[0])
    named_sets = _named("dataset", datasets, datasets_.expand, datasets_.catalogue(), there[1])
    found = []
    failed: list[Failure] = []
    for model in named_models or sorted(there[0]):
        for dataset in named_sets or sorted(there[1]):
            pair = [k for k in stored if (k.model, k.dataset) == (model, dataset)]
            free = [key for key in pair if _is_bn_free(store, key)]
            found += free or [key for key in pair if not bn_modes or key.bn_mode in bn_modes]
            missing: list[BNMode] = []
            if pair and not free:
                missing = [mode for mode in bn_modes if mode not in {key.bn_mode for key in pair}]
            elif not pair and named_models and named_sets:
                missing = list(bn_modes) or [BNMode.EVAL]
            for mode in missing:
                failed += _missing(store, FeatureKey(model, dataset, mode))
    if not (named_models and named_sets):
        for flag, name in [*(("-m", m) for m in named_models), *(("-d", d) for d in named_sets)]:
            if not any(name in (key.model, key.dataset) for key in stored):
                other = "-d DATASET" if flag == "-m" else "-m MODEL"
                failed.append(
                    Failure(name, f"nothing stored. Run: featstore extract {flag} {name} {other}")
                )
    return found, failed


def _named(
    kind: str,
    names: Sequence[str],
    expand: Callable[[Iterable[str]], list[str]],
    catalogue: Iterable[str],
    stored: Iterable[str],
) -> list[str]:
    """Names asked for, none if `all` is among them.

    Raises
    ------
    UnknownNameError
        It is a word of no catalogue that nothing is stored under.
    """
    if "all" in names:
        return []
    known = {*catalogue, *stored}
    wanted = expand(names)
    for name in wanted:
        plain = str(ModelName.parse(name).base) if kind == "model" else name
        if ":" not in plain and plain not in known and name not in known:
            raise unknown(kind, name, known, "featstore ls lists what is stored")
    return wanted


def _missing(store: Store, key: FeatureKey) -> list[Failure]:
    """Why features are not there, in the store's own words."""
    try:
        store.open(key)
    except FeatStoreError as error:
        return [Failure(str(key), str(error))]
    return []


def _is_bn_free(store: Store, key: FeatureKey) -> bool:
    return any(
        bool(split.attrs["model"]["bn_free"]) for split in store.splits(key) if not split.damaged
    )
