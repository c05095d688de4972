"""A sweep: which cells are missing, and filling them off the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from featstore import probes
from featstore.backend import gpu_available, namespace
from featstore.blocks import check_scheduler, cpu_count, limit_threads, map_tasks
from featstore.errors import FeatStoreError
from featstore.keys import BNMode
from featstore.results import check_target, refresh, target_of
from featstore.sweep.filling import fill
from featstore.sweep.finding import Failure, Summary, Sweep, find_jobs

Progress = Callable[[str, int, int], None]
"""Called with the cells' features, cells done and cells in all."""


def probe(
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    *,
    protocols: Sequence[str] = ("core",),
    bn_modes: Iterable[str] = (),
    seeds: Sequence[int] = (0,),
    store: str | Path = "data/features.zarr",
    results: str | Path = "data/results",
    device: str = "auto",
    device_memory: int | None = None,
    scheduler: str = "threads",
    strict: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Fill every cell that is missing, off the store, and refresh `results.zarr`.

    An error in one cell is reported at the end; the others are filled. So is a damaged record of
    earlier, for which `results.zarr` stays as it was. A protocol that was asked
    for by a set's name may be left out where the features are too few for it.

    Parameters
    ----------
    models, datasets, bn_modes : as extracted; all that the store holds where empty
    protocols : names, or names of sets; by default those that cost seconds
    seeds : of draws, splits and initialisations; a cell each
    device : `cpu`, `cuda:N`, or `auto` for a GPU if cupy finds one
    device_memory : most bytes of a GPU for nearest neighbours and logistic regression, whose rows
        else take four fifths of what is free; a block of rows of other protocols takes far less,
        but `linear` heads keep the stored train rows there
    scheduler : `threads`, `processes` (faster for many small cells; a script that asks for them
        must guard its work by `if __name__ == "__main__"`), `sync`, `local:N` (N processes) or the
        address of a Dask scheduler. On a GPU of this machine all of them but the last are `sync`:
        cells take turns, so that one has its memory
    strict : whether a protocol asked for by its own name that the features are too few for is a
        failure; else it is left out as one of a set is
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
    _check(device, device_memory, scheduler, seeds, Path(results))
    asked = Sweep(
        models, datasets, names, frozenset(protocols if strict else ()),
        [BNMode(m) for m in bn_modes],
        list(dict.fromkeys(seeds)),
        Path(store).absolute(), Path(results).absolute(), device, overwrite,
        device_memory,
    )  # fmt: skip
    jobs = list(find_jobs(asked, summary))
    # The same on every scheduler, since the number of threads changes the last digit of a sum.
    threads = max(1, cpu_count() // max(1, len(jobs)))
    if device != "cpu" and "://" not in scheduler:
        threads, scheduler = cpu_count(), "sync"
    elif len(jobs) == 1:  # a lone job has all cores to itself: its blocks are mapped, not the jobs
        # Not on a GPU, where one thread keeps it busy and others would not know which it is.
        jobs = [replace(jobs[0], parallel=device == "cpu")]
        scheduler = "sync"
    total = sum(len(job.cells) for job in jobs)
    done = 0
    here = scheduler in ("sync", "threads")  # then BLAS is limited once for all
    work = partial(fill, threads=threads, shared=here)
    try:
        with limit_threads(threads if here else None):
            for filled, failed, left, what in map_tasks(work, jobs, scheduler=scheduler):
                summary.filled += filled
                summary.failed += failed
                summary.not_applicable += left
                done += filled + len(failed) + len(left)
                progress(what, done, total)
    finally:  # after Ctrl-C as well: what is done shall be seen
        if any(Path(results).glob("*/*/*/*/*.json")):
            refresh_results(results, summary)
    summary.seconds = time.perf_counter() - begun
    return summary


def refresh_results(results: str | Path, summary: Summary) -> None:
    """Refresh `results.zarr`, or say in the summary why it is as it was.

    A record of earlier that is damaged must not hide what was filled now.
    """
    try:
        summary.results = str(refresh(results))
    except FeatStoreError as error:
        what = f"{target_of(results)} was not refreshed, and what is recorded is kept"
        summary.failed.append(Failure(what, str(error)))


def _check(
    device: str, device_memory: int | None, scheduler: str, seeds: Sequence[int], results: Path
) -> None:
    """Refuse what cannot be before any work is done."""
    try:
        namespace(device)
    except RuntimeError as error:  # a device that is not there
        raise ValueError(str(error)) from error
    check_scheduler(scheduler)
    if device_memory is not None and device_memory <= 0:
        raise ValueError(f"device_memory must be above 0 bytes, got {device_memory}")
    if min(seeds, default=0) < 0:
        raise ValueError(f"seeds must be 0 or more, got {min(seeds)}")
    if results.exists() and not results.is_dir():
        raise FeatStoreError(f"{results} is a file. Give a folder for --results")
    check_target(target_of(results))


__all__ = ["Failure", "Summary", "probe", "refresh_results"]
