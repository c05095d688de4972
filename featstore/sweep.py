"""A sweep: which cells are missing, and filling them off the store."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from featstore import datasets as datasets_
from featstore import models as models_
from featstore import probes
from featstore.backend import gpu_available, namespace
from featstore.blocks import check_scheduler, cpu_count, map_tasks
from featstore.errors import FeatStoreError, MissingFeaturesError, NotApplicableError
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName
from featstore.names import unknown
from featstore.probes import Data, Measured, Task
from featstore.results import Cell, check_target, mark_current, record, refresh, target_of
from featstore.store import Features, Store

Progress = Callable[[str, int, int], None]
"""Called with the cells' features, cells done and cells in all."""


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
class _Job:
    """Missing cells of one set of features and one seed: one task of the scheduler.

    Attributes
    ----------
    named : protocols that were asked for by their own name, not by that of a set
    """

    store: str
    results: str
    key: FeatureKey
    digest: str
    protocols: tuple[str, ...]
    named: frozenset[str]
    seed: int
    device: str
    parallel: bool


def probe(
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    *,
    protocols: Sequence[str] = ("all",),
    bn_modes: Iterable[str] = (),
    seeds: Sequence[int] = (0,),
    store: str | Path = "data/features.zarr",
    results: str | Path = "data/results",
    device: str = "auto",
    scheduler: str = "threads",
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Fill every cell that is missing, off the store, and refresh `results.zarr`.

    An error in one cell is reported at the end; the others are filled. A protocol that was asked
    for by a set's name may be left out where the features are too few for it.

    Parameters
    ----------
    models, datasets, bn_modes : as extracted; all that the store holds where empty
    protocols : names, or names of sets
    seeds : of draws, splits and initialisations; a cell each
    device : `cpu`, `cuda:N`, or `auto` for a GPU if cupy finds one
    scheduler : `threads`, `processes` (faster for many small cells; a script that asks for them
        must guard its work by `if __name__ == "__main__"`), `sync`, `local:N` (N processes) or the
        address of a Dask scheduler
    overwrite : fill cells that are there again

    Raises
    ------
    UnknownNameError
        No protocol of that name.
    FeatStoreError
        The store holds nothing, or the scheduler cannot be reached.
    """
    names = probes.expand(protocols)
    begun = time.perf_counter()
    summary = Summary()
    if device == "auto":
        device = "cuda" if gpu_available() else "cpu"
    _check(device, scheduler, seeds, Path(results))
    jobs = list(
        _jobs(summary, models, datasets, names, frozenset(protocols),
              [BNMode(m) for m in bn_modes], seeds,
              Path(store).absolute(), Path(results).absolute(), device, overwrite)
    )  # fmt: skip
    if len(jobs) == 1:  # a lone job has all cores to itself: its blocks are mapped, not the jobs
        jobs, scheduler = [_Job(**{**vars(jobs[0]), "parallel": True})], "sync"
    total = sum(len(job.protocols) for job in jobs)
    done = 0
    # The same on every scheduler, since the number of threads changes the last digit of a sum.
    threads = max(1, cpu_count() // max(1, len(jobs)))
    here = scheduler in ("sync", "threads")  # then the limit is this process's, set once for all
    work = partial(_fill, threads=None if here else threads)
    try:
        with _limit_threads(threads if here else None):
            for filled, failed, left, what in map_tasks(work, jobs, scheduler=scheduler):
                summary.filled += filled
                summary.failed += failed
                summary.not_applicable += left
                done += filled + len(failed) + len(left)
                progress(what, done, total)
    finally:  # after Ctrl-C as well: what is done shall be seen
        if any(Path(results).glob("*/*/*/*/*.json")):
            summary.results = str(refresh(results))
    summary.seconds = time.perf_counter() - begun
    return summary


def _check(device: str, scheduler: str, seeds: Sequence[int], results: Path) -> None:
    """Refuse what cannot be before any work is done."""
    try:
        namespace(device)
    except RuntimeError as error:  # a device that is not there
        raise ValueError(str(error)) from error
    check_scheduler(scheduler)
    if min(seeds, default=0) < 0:
        raise ValueError(f"seeds must be 0 or more, got {min(seeds)}")
    if results.exists() and not results.is_dir():
        raise FeatStoreError(f"{results} is a file. Give a folder for --results")
    check_target(target_of(results))


def _jobs(
    summary: Summary,
    models: Sequence[str],
    datasets: Sequence[str],
    protocols: Sequence[str],
    named: frozenset[str],
    modes: Sequence[BNMode],
    seeds: Sequence[int],
    store_path: Path,
    results: Path,
    device: str,
    overwrite: bool,
) -> Iterable[_Job]:
    store = Store(store_path)
    for key in _keys(store, models, datasets, modes, summary):
        try:
            features = store.open(key)
            digest = features.digest("train", "test")
        except MissingFeaturesError as error:
            # What is merely among all that is stored need not be fit for scoring.
            (summary.failed if models or datasets else summary.not_applicable).append(
                Failure(str(key), str(error))
            )
            continue
        except FeatStoreError as error:
            summary.failed.append(Failure(str(key), str(error)))
            continue
        mark_current(results, key.model, key.dataset, key.bn_mode, digest)
        for seed in seeds:
            cells = {p: Cell(key.model, key.dataset, key.bn_mode, p, seed, digest)
                     for p in protocols}  # fmt: skip
            missing = tuple(
                p for p, cell in cells.items() if overwrite or not cell.path(results).exists()
            )
            summary.up_to_date += len(cells) - len(missing)
            if missing:
                yield _Job(str(store_path), str(results), key, digest, missing, named, seed,
                           device, False)  # fmt: skip


def _keys(
    store: Store,
    models: Sequence[str],
    datasets: Sequence[str],
    modes: Sequence[BNMode],
    summary: Summary,
) -> list[FeatureKey]:
    """Keys asked for; a model without BatchNorm stands under `eval` for every mode.

    What is asked for by name and not stored is a failure; `all` means all that is stored.
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
    for model in named_models or sorted(there[0]):
        for dataset in named_sets or sorted(there[1]):
            pair = [k for k in stored if (k.model, k.dataset) == (model, dataset)]
            free = [key for key in pair if _is_bn_free(store, key)]
            found += free or [key for key in pair if not modes or key.bn_mode in modes]
            missing: list[BNMode] = []
            if pair and not free:
                missing = [mode for mode in modes if mode not in {key.bn_mode for key in pair}]
            elif not pair and named_models and named_sets:
                missing = list(modes) or [BNMode.EVAL]
            for mode in missing:
                _fail_missing(store, FeatureKey(model, dataset, mode), summary)
    if not (named_models and named_sets):
        for flag, name in [*(("-m", m) for m in named_models), *(("-d", d) for d in named_sets)]:
            if not any(name in (key.model, key.dataset) for key in stored):
                other = "-d DATASET" if flag == "-m" else "-m MODEL"
                summary.failed.append(
                    Failure(name, f"nothing stored. Run: featstore extract {flag} {name} {other}")
                )
    return found


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


def _fail_missing(store: Store, key: FeatureKey, summary: Summary) -> None:
    try:
        store.open(key)
    except FeatStoreError as error:
        summary.failed.append(Failure(str(key), str(error)))


def _is_bn_free(store: Store, key: FeatureKey) -> bool:
    return any(
        bool(split.attrs["model"]["bn_free"]) for split in store.splits(key) if not split.damaged
    )


@contextmanager
def _limit_threads(threads: int | None) -> Iterator[None]:
    """So many threads in BLAS and in torch within, if any number is given."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


_Filled = tuple[int, list[Failure], list[Failure]]  # cells filled, failed, not applicable


def _fill(job: _Job, *, threads: int | None) -> tuple[int, list[Failure], list[Failure], str]:
    """Fill the cells of a job; what came of them, and the features' name."""
    what = f"{job.key} seed {job.seed}"
    try:
        with _limit_threads(threads):
            return *_fill_cells(job), what
    except FeatStoreError as error:  # unreadable features: all cells of the job
        return 0, [Failure(f"{what} {p}", str(error)) for p in job.protocols], [], what


def _fill_cells(job: _Job) -> _Filled:
    features = Store(job.store).open(job.key)
    train, test = Data.of_split(features["train"]), Data.of_split(features["test"])
    categories = features["train"].categories
    task = Task(
        train, test, len(categories), job.seed, namespace(job.device), job.device, job.parallel
    )
    filled = 0
    failed: list[Failure] = []
    not_applicable: list[Failure] = []
    for protocol, measured in probes.run([probes.get(p) for p in job.protocols], task):
        cell = Cell(
            job.key.model, job.key.dataset, job.key.bn_mode, protocol.name, job.seed, job.digest
        )
        if isinstance(measured, FeatStoreError):
            by_set = protocol.name not in job.named
            left = by_set and isinstance(measured, NotApplicableError)
            (not_applicable if left else failed).append(Failure(str(cell), str(measured)))
            continue
        record(Path(job.results), cell, _facts(job, features, task, protocol, measured),
               measured.outcomes)  # fmt: skip
        filled += 1
    return filled, failed, not_applicable


def _facts(
    job: _Job, features: Features, task: Task, protocol: probes.Protocol, measured: Measured
) -> dict[str, Any]:
    """What a record says beside where it is and what was found for each sample."""
    attrs = features["train"].attrs
    return {
        "metrics": measured.metrics,
        "n_train": len(task.train),
        "n_test": len(task.test),
        "n_skipped": task.train.n_skipped + task.test.n_skipped,
        "n_categories": task.n_categories,
        "seconds": round(measured.seconds, 6),
        "certificate": measured.certificate,
        "settings": protocol.settings(),
        # in BN mode `batch` test images are normalised by one another, whatever the protocol
        "transductive": protocol.transductive or job.key.bn_mode is BNMode.BATCH,
        "model_info": attrs["model"],
        "dataset_info": attrs["dataset"],
        "versions": {
            "featstore": version("featstore"),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": job.device,
    }
