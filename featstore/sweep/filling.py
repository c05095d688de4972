"""Cells of one set of features, measured and recorded."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featstore import probes
from featstore.backend import namespace
from featstore.blocks import limit_own_threads, limit_threads
from featstore.errors import FeatStoreError, NotApplicableError
from featstore.keys import BNMode
from featstore.probes import Data, Measured, Protocol, Task
from featstore.results import record
from featstore.store import Features, Store
from featstore.sweep.finding import Failure, Job

_Filled = tuple[int, list[Failure], list[Failure]]  # cells filled, failed, not applicable


def fill(job: Job, *, threads: int, shared: bool) -> tuple[int, list[Failure], list[Failure], str]:
    """Fill the cells of a job; what came of them, and the features' name.

    `threads` is how many it may use; `shared` says that other jobs run in this process, whose BLAS
    is limited already.
    """
    what = f"{job.key} seed {job.seed}"
    try:
        with limit_own_threads(threads) if shared else limit_threads(threads):
            return *_fill_cells(job), what
    except FeatStoreError as error:  # unreadable features: all cells of the job
        return 0, [Failure(str(cell), str(error)) for cell in job.cells], [], what


def _fill_cells(job: Job) -> _Filled:
    features = Store(job.store).open(job.key)
    filled = 0
    failed: list[Failure] = []
    not_applicable: list[Failure] = []
    cells = {cell.protocol: cell for cell in job.cells}
    # Protocols that read the same splits share a task, and with it what it keeps.
    groups: dict[tuple[str, ...], list[Protocol]] = {}
    for protocol in map(probes.get, cells):
        groups.setdefault(protocol.splits(features.splits), []).append(protocol)
    for splits, protocols in groups.items():
        task = _task(job, features, splits)
        digests = {name: features[name].digest for name in splits}
        place = cells[protocols[0].name].path(Path(job.results))
        task = replace(task, lists=place.parents[1] / "neighbours" / features.digest(*splits)[:12])
        for protocol, measured in probes.run(protocols, task):
            cell = cells[protocol.name]
            if isinstance(measured, FeatStoreError):
                by_set = protocol.name not in job.named
                left = by_set and isinstance(measured, NotApplicableError)
                (not_applicable if left else failed).append(Failure(str(cell), str(measured)))
                continue
            facts = _facts(job, features, task, protocol, measured) | {"splits": digests}
            record(Path(job.results), cell, facts, measured.outcomes)
            filled += 1
    return filled, failed, not_applicable


def _task(job: Job, features: Features, splits: Sequence[str]) -> Task:
    data = {name: Data.of_split(features[name]) for name in splits}
    first = features[splits[0]]
    return Task(
        data["train"],
        data["test"],
        len(first.categories),
        job.seed,
        namespace(job.device),
        job.device,
        job.parallel,
        memory=job.device_memory,
        val=data.get("val"),
        views=[data[name] for name in splits if "+" in name],
        metric=first.attrs["dataset"]["metric"],
        model=job.key.model,
        dataset=job.key.dataset,
    )


def _facts(
    job: Job, features: Features, task: Task, protocol: Protocol, measured: Measured
) -> dict[str, Any]:
    """What a record says beside where it is and what was found for each sample."""
    attrs = features["train"].attrs
    return {
        **told(protocol, measured, attrs["dataset"]),
        "n_train": measured.certificate.get("train_rows", len(task.train)),  # fewer if drawn
        "n_test": len(task.test),
        "n_skipped": task.train.n_skipped + task.test.n_skipped,
        "n_categories": task.n_categories,
        "transductive": protocol.transductive
        or _by_bn_mode(protocol, job.key.bn_mode, bn_free=bool(attrs["model"]["bn_free"])),
        "model_info": attrs["model"],
        "versions": versions(),
        "device": job.device,
    }


def _by_bn_mode(protocol: Protocol, bn_mode: BNMode, *, bn_free: bool) -> bool:
    """Whether scored images take part in a statistic of the model's own BatchNorm."""
    # In `batch` test images are normalised by one another, in `adapt` by the train split.
    return bn_mode is BNMode.BATCH or (
        bn_mode is BNMode.ADAPT and protocol.scores_train and not bn_free
    )


def told(protocol: Protocol, measured: Measured, dataset_info: dict[str, Any]) -> dict[str, Any]:
    """Of a record, what a protocol says by its settings and by what came of it."""
    own = dataset_info["metric"]
    first = own if own in measured.metrics else next(iter(measured.metrics))
    return {
        "metrics": measured.metrics,
        "headline": protocol.headline or first,
        "seconds": round(measured.seconds, 6),
        "certificate": measured.certificate,
        "settings": protocol.settings(),
        "transductive_by_protocol": protocol.transductive,
        "dataset_info": dataset_info,
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "featstore": version("featstore"),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
