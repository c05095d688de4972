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
import torch
from dask.delayed import delayed
from dask.distributed import Client, as_completed
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits

from featstore.errors import FeatStoreError
from featstore.store import Split

T = TypeVar("T")
Rows = tuple[np.ndarray, np.ndarray]
"""Features (n, d) floating and labels (n,) int64."""


class Block(Protocol):
    """Some rows of a split."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the features are stored as."""

    def read(self) -> Rows:
        """The rows: features as stored, and labels."""


@dataclass(frozen=True)
class StoredBlock:
    """One chunk of a stored split, less the samples that were skipped."""

    split: Split
    chunk: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the features are stored as."""
        return np.dtype(self.split.embedding.dtype)

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

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the features are."""
        return self.features.dtype

    def read(self) -> Rows:
        """The rows themselves."""
        return self.features, self.labels


def stored_blocks(split: Split) -> list[StoredBlock]:
    """A stored split as one block per chunk."""
    return [StoredBlock(split, chunk) for chunk in range(len(split.chunk_digest))]


def read_rows(blocks: Sequence[Block]) -> Rows:
    """All rows of the blocks, in order; those of chunks that follow each other are read at once."""
    parts = []
    for blocks_ in _runs(blocks):
        first, last = blocks_[0], blocks_[-1]
        if isinstance(first, StoredBlock) and isinstance(last, StoredBlock):
            split, chunks = first.split, range(first.chunk, last.chunk + 1)
            span = slice(split.span(first.chunk).start, split.span(last.chunk).stop)
            rows = split.rows(chunks, threads=torch.get_num_threads())
            parts.append((rows, split.label[span][split.valid[span]]))
        else:
            parts.append(first.read())
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _runs(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks, chunks of one split that follow each other together."""
    runs: list[list[Block]] = []
    for block in blocks:
        before = runs[-1][-1] if runs else None
        if (
            isinstance(block, StoredBlock)
            and isinstance(before, StoredBlock)
            and (before.split, before.chunk + 1) == (block.split, block.chunk)
        ):
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


@contextmanager
def limit_threads(threads: int | None) -> Iterator[None]:
    """So many threads in BLAS and in torch within, if any number is given.

    BLAS is limited for the whole process, torch and OpenMP for the calling thread and those that
    first use them within; `torch.get_num_threads()` says how many a piece of work may use.
    """
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


@contextmanager
def limit_own_threads(threads: int) -> Iterator[None]:
    """So many threads in torch and OpenMP for what the calling thread does, beside others' BLAS.

    OpenMP counts by thread, and BLAS by process: of two that set it, one would end the other's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads, user_api="openmp"):
            yield
    finally:
        torch.set_num_threads(before)


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
    parallel : over as many threads as BLAS and torch have here, each with one of its own; pays
        where the kernel releases Python's lock

    Raises
    ------
    ValueError
        There are no blocks.
    """
    if not blocks:
        raise ValueError("blocks must hold at least one block")
    threads = torch.get_num_threads()
    if not parallel or threads == 1:
        return _merge_tree([partial(kernel, block) for block in blocks], merge)()
    alone = partial(_on_one_thread, kernel)
    parts: list[Any] = [delayed(alone, pure=False)(block) for block in blocks]
    join = delayed(merge, pure=False)
    while len(parts) > 1:
        pairs = [join(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    with limit_threads(1):
        result: T = parts[0].compute(scheduler="threads", num_workers=threads)
    return result


def _on_one_thread(kernel: Callable[[Any], T], block: Any) -> T:
    """The kernel in a thread of dask's, which counts torch's threads by itself."""
    torch.set_num_threads(1)
    return kernel(block)


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
        with one thread of its own), `local:N` (N processes, but no more than cores), or the
        address of a Dask scheduler

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
    count = cpu_count()
    if scheduler.startswith("local:"):
        count = min(count, int(scheduler[6:]))
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
