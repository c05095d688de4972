"""Row blocks, and kernels mapped over them: the only door to dask.

A probe is a kernel mapped over row blocks and an associative merge. A block knows where its rows
lie and reads them where it is used, so that rows never travel through a scheduler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from dask.delayed import delayed
from dask.distributed import Client, as_completed
from dask.system import CPU_COUNT

from featstore.errors import FeatStoreError
from featstore.store import Split

T = TypeVar("T")
Rows = tuple[np.ndarray, np.ndarray]
"""Features (n, d) floating and labels (n,) int64."""


class Block(Protocol):
    """Some rows of a split."""

    def read(self) -> Rows:
        """The rows: features as stored, and labels."""


@dataclass(frozen=True)
class StoredBlock:
    """One chunk of a stored split, less the samples that were skipped."""

    split: Split
    chunk: int

    def read(self) -> Rows:
        """Valid rows of the chunk.

        Raises
        ------
        CorruptStoreError
            The chunk is not what was written.
        """
        span = self.split.span(self.chunk)
        valid = self.split.valid[span.start : span.stop]
        rows = self.split.rows(range(self.chunk, self.chunk + 1))
        return rows, self.split.label[span.start : span.stop][valid]


@dataclass(frozen=True)
class ArrayBlock:
    """Rows held in memory."""

    features: np.ndarray
    labels: np.ndarray

    def read(self) -> Rows:
        """The rows themselves."""
        return self.features, self.labels


def stored_blocks(split: Split) -> list[StoredBlock]:
    """A stored split as one block per chunk."""
    return [StoredBlock(split, chunk) for chunk in range(len(split.chunk_digest))]


def reduce_blocks(
    kernel: Callable[[Any], T],
    blocks: Sequence[Any],
    merge: Callable[[T, T], T],
    *,
    parallel: bool = False,
) -> T:
    """`kernel` of each block, merged pairwise in the order of the blocks.

    The tree of merges depends on the number of blocks alone, so the result is the same however many
    threads work on it. A block is in memory only while its kernel runs.

    Parameters
    ----------
    kernel : of one block ; merge : of two neighbouring results, associative
    blocks : at least one
    parallel : over threads, which pays where the kernel releases Python's lock

    Raises
    ------
    ValueError
        There are no blocks.
    """
    if not blocks:
        raise ValueError("blocks must hold at least one block")
    if not parallel:
        return _merge_tree([partial(kernel, block) for block in blocks], merge)()
    parts: list[Any] = [delayed(kernel, pure=False)(block) for block in blocks]
    join = delayed(merge, pure=False)
    while len(parts) > 1:
        pairs = [join(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    result: T = parts[0].compute(scheduler="threads")
    return result


def _merge_tree(parts: Sequence[Callable[[], T]], merge: Callable[[T, T], T]) -> Callable[[], T]:
    """The same tree as a dask graph would have, evaluated depth first to hold few results."""
    while len(parts) > 1:
        pairs = [
            partial(_merge_two, merge, a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)
        ]
        parts = [*pairs, *parts[len(pairs) * 2 :]]
    return parts[0]


def _merge_two(merge: Callable[[T, T], T], a: Callable[[], T], b: Callable[[], T]) -> T:
    return merge(a(), b())


def check_scheduler(scheduler: str) -> None:
    """Refuse what is no scheduler.

    Raises
    ------
    ValueError
        It is none of `sync`, `threads`, `processes`, `local:N` and an address.
    """
    count = scheduler.removeprefix("local:")
    is_local = count != scheduler and count.isdecimal() and int(count) > 0
    known = scheduler in ("sync", "threads", "processes") or "://" in scheduler
    if not known and not is_local:
        raise ValueError(
            f"scheduler must be sync, threads, processes, local:N or tcp://HOST:PORT, "
            f"got {scheduler!r}"
        )


def map_tasks(function: Callable[[Any], T], tasks: Sequence[Any], *, scheduler: str) -> Iterator[T]:
    """`function` of each task, in the order in which they finish.

    Parameters
    ----------
    scheduler : `sync` (here, one after another), `threads`, `processes` (as many as cores, each
        with one thread of its own), `local:N` (N processes), or the address of a Dask scheduler

    Raises
    ------
    FeatStoreError
        The scheduler cannot be reached.
    """
    if scheduler == "sync" or len(tasks) < 2:
        yield from map(function, tasks)
        return
    with _client(scheduler) as client:
        futures = client.map(function, tasks, pure=False)
        try:
            for future in as_completed(futures, loop=client.loop):
                yield future.result()
        finally:
            client.cancel(futures)


@contextmanager
def _client(scheduler: str) -> Iterator[Client]:
    if "://" in scheduler:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise FeatStoreError(
                f"no Dask scheduler answers at {scheduler} ({error}). Start one with "
                f"dask scheduler, or use --scheduler processes"
            ) from error
        with client:
            yield client
        return
    processes = scheduler != "threads"
    count = int(scheduler[6:]) if scheduler.startswith("local:") else cpu_count()
    sizes: dict[str, Any] = {"n_workers": 1, "threads_per_worker": count, "processes": False}
    if processes:  # bound to loopback: nobody else on the network is to send work here
        sizes = {"n_workers": count, "threads_per_worker": 1, "host": "127.0.0.1"}
    # Any free port will do for their status pages, but not one that the network sees.
    loopback = {"dashboard_address": "127.0.0.1:0"}
    chatter = logging.getLogger("distributed")
    before = chatter.level
    chatter.setLevel(logging.ERROR)  # how its own processes come and go is of no interest
    try:
        with Client(
            **sizes, **loopback, set_as_default=False, silence_logs=logging.ERROR
        ) as client:
            yield client
    finally:
        chatter.setLevel(before)


def cpu_count() -> int:
    """Cores that this process may use."""
    return int(CPU_COUNT)
