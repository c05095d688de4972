"""Fine-tuning: images in, cells out; no store is involved."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

from featstore import datasets as datasets_
from featstore.datasets import Dataset, load_dataset
from featstore.errors import DivergedError, FeatStoreError, NotApplicableError, ProbeError
from featstore.extraction import choose_device, in_mib, workers
from featstore.extraction.asked import Asked, by_transform, load_asked
from featstore.extraction.targets import device_name
from featstore.finetuning.measure import Callback, Run, Work, splits_of
from featstore.finetuning.net import Machine
from featstore.finetuning.presets import PROTOCOLS, Finetune, expand, get
from featstore.models.encoder import DTYPES
from featstore.probes import Measured
from featstore.probes.base import Metrics
from featstore.results import Cell, check_target, record, target_of
from featstore.sweep import Failure, Summary, refresh_results
from featstore.sweep.filling import told, versions

Progress = Callable[[str, int, int], None]
"""Called with a cell, images trained on so far and in all."""

CHECKPOINTS = ".finetune"  # in the folder of results


def finetune(
    models: Sequence[str],
    datasets: Sequence[str],
    *,
    protocols: Sequence[str],
    seeds: Sequence[int] = (0,),
    fraction: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    results: str | Path = "data/results",
    data_root: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    num_workers: int | None = None,
    accumulate: int = 1,
    channels_last: bool = False,
    compile: bool = False,
    strict: bool = True,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Train every model on every dataset by every protocol, and record the cells that are missing.

    Interrupted at any moment, the same call goes on from the last checkpoint, which lies in
    `.finetune` in the folder of results until the cell is recorded. An error in one cell is
    reported at the end; the others are filled. A training that diverges is recorded without a
    score, so that it is not trained again. Started by torchrun, its processes share each
    batch, which stays the protocol's; a BatchNorm takes its statistics from what one process has
    at once. Cells stand under BN mode `eval`, since what the backbone's BatchNorm does here is a
    setting of the protocol.

    Parameters
    ----------
    models, datasets, protocols : names, or names of sets
    seeds : of heads, draws, order and augmentation; a cell each
    fraction, epochs, steps : changed settings, as by NAME+epochs=5
    precision : fp32, or autocast to bf16 or fp16
    num_workers : processes that decode; by default as many as cores, none for images in memory
    accumulate : parts in which each batch goes through the model, for want of memory
    strict : whether a protocol asked for by its own name that a dataset is not fit for, such as a
        fraction that is no image of each category, is a failure; else it is left out as one of a
        set is
    callbacks : called where an epoch ends with a dict: cell, training, epoch, step, loss, ...
    overwrite : fill cells that are there again, from the start

    Raises
    ------
    UnknownNameError, BadCheckpointError
        There is no such model, dataset, protocol or setting; no model's weights can be had.
    ValueError
        An option is out of its range.
    """
    plans = [get(name) for name in expand(protocols, fraction=fraction, epochs=epochs, steps=steps)]
    if precision not in DTYPES or accumulate < 1 or min(seeds, default=0) < 0:
        raise ValueError(
            f"precision must be one of {', '.join(DTYPES)}, accumulate at least 1, seeds at least "
            f"0; got {precision!r}, {accumulate}, {min(seeds, default=0)}"
        )
    root = Path(results)
    if root.exists() and not root.is_dir():
        raise FeatStoreError(f"{root} is a file. Give a folder for --results")
    check_target(target_of(root))
    begun = time.perf_counter()
    summary = Summary()
    bases = {name.split("+")[0] for name in protocols if strict}
    fetching = partial(in_mib, progress)
    # Lists and sizes of files are read once for all models.
    loaded = [
        replace(one, split=cache(one.split))
        for one in (load_dataset(name, data_root=data_root) for name in datasets_.expand(datasets))
    ]
    lost: list[FeatStoreError] = []
    with _processes(device) as (place, rank, world):
        machine = Machine(
            place, precision, accumulate=accumulate, channels_last=channels_last,
            compile=compile, rank=rank, world=world,
        )  # fmt: skip
        try:
            for asked in load_asked(models, "pretrained", 0, "", lost, fetching):
                for dataset in loaded:
                    for cell, work in _cells(
                        asked, dataset, plans, seeds, machine, num_workers, summary
                    ):
                        if machine.agreed(cell.path(root).exists) and not overwrite:
                            summary.up_to_date += 1
                            continue
                        if overwrite and rank == 0:
                            shutil.rmtree(_folder(root, cell), ignore_errors=True)
                        named = work.protocol.name.split("+")[0] in bases
                        _fill(cell, work, root, named, callbacks, progress, summary)
        finally:  # after Ctrl-C as well: what is done shall be seen
            if rank == 0 and any(root.glob("*/*/*/*/*.json")):
                refresh_results(root, summary)
    summary.failed += [Failure("model left out", str(error)) for error in lost]
    summary.seconds = time.perf_counter() - begun
    return summary


@contextmanager
def _processes(device: str) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and number of processes, joined as torchrun's environment says."""
    rank, world = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world > 1 and device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
    place = choose_device(device)
    joins = world > 1 and not dist.is_initialized()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if joins:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield place, rank, world
    finally:
        if joins:
            dist.destroy_process_group()


def _cells(
    asked: Asked,
    dataset: Dataset,
    protocols: Sequence[Finetune],
    seeds: Sequence[int],
    machine: Machine,
    num_workers: int | None,
    summary: Summary,
) -> Iterator[tuple[Cell, Work]]:
    """Cells of a model at all its sites on a dataset, if both can be had."""
    for protocol in protocols:
        try:
            ((transform, fitted),) = by_transform([asked], dataset)
            splits = splits_of(dataset, dataset.split, protocol, transform)
        except FeatStoreError as error:
            what = f"{asked.model.name} {dataset.name} {protocol.name}"
            summary.failed.append(Failure(what, str(error)))
            continue
        here = replace(machine, num_workers=workers(num_workers, splits["train"]))
        for site, name in fitted[0].names.items():
            for seed in seeds:
                work = Work(fitted[0], site, dataset, splits, transform, protocol, seed, here)
                yield Cell(name, dataset.name, "eval", protocol.name, seed, work.digest), work


def _fill(
    cell: Cell,
    work: Work,
    root: Path,
    named: bool,
    callbacks: Sequence[Callback],
    progress: Progress,
    summary: Summary,
) -> None:
    """Measure a cell and record it, or what it failed by."""
    begun = time.perf_counter()
    folder = _folder(root, cell)
    run = Run(work, folder, str(cell), lambda *done: progress(str(cell), *done), callbacks)
    try:
        measured = _measured(run)
    except FeatStoreError as error:
        same_in_all = isinstance(error, DivergedError | NotApplicableError)
        if work.machine.world > 1 and not same_in_all:
            raise  # the other processes wait for this one: all must end
        kind = summary.failed
        if isinstance(error, NotApplicableError) and not named:
            kind = summary.not_applicable
        kind.append(Failure(str(cell), str(error)))
        if not isinstance(error, DivergedError):
            return
        nothing: Metrics = {
            str(work.dataset.info["metric"]): {"value": None, "low": None, "high": None}
        }
        why = {"diverged": str(error), "images": len(work.rows)}
        measured = Measured(nothing, {}, why, time.perf_counter() - begun)
    else:
        summary.filled += 1
    if work.machine.rank == 0:
        record(root, cell, _facts(work, measured), measured.outcomes)
        shutil.rmtree(folder, ignore_errors=True)


def _folder(root: Path, cell: Cell) -> Path:
    """Of a cell's checkpoints."""
    name = hashlib.sha256(f"{cell} {cell.digest}".encode()).hexdigest()[:16]
    return root / CHECKPOINTS / name


def _measured(run: Run) -> Measured:
    """What came of a cell; raises FeatStoreError where memory did not suffice."""
    try:
        return run.measure()
    except (RuntimeError, MemoryError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not memory and "can't allocate memory" not in str(error):  # so PyTorch says of a CPU's
            raise
        machine, protocol = run.work.machine, run.work.protocol
        raise ProbeError(
            f"out of memory on {device_name(machine.device)}: a batch of {protocol.batch_size} in "
            f"{machine.accumulate * machine.world} parts. Give --accumulate "
            f"{machine.accumulate * 2}, and it goes on from the last checkpoint"
        ) from error


def _facts(work: Work, measured: Measured) -> dict[str, Any]:
    """What a record says beside where it is and what was found for each sample."""
    model, info = work.asked.model, work.dataset.info
    return {
        **told(work.protocol, measured, info),
        "n_train": measured.certificate["images"],
        "n_test": len(work.splits["test"]),
        "n_skipped": 0,
        "n_categories": len(work.splits["train"].categories),
        "transductive": False,
        "model_info": {**model.info, "bn_free": model.bn_free, "arch": model.arch},
        "splits": {},  # of no store
        "versions": versions() | {"timm": timm.__version__},
        "device": device_name(work.machine.device),
    }


__all__ = [
    "PROTOCOLS",
    "Failure",
    "Finetune",
    "Summary",
    "expand",
    "finetune",
    "get",
]
