"""One decoding pass: images of a split, through several encoders, into the store."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch

from featstore.datasets import ImageSplit, Transform
from featstore.datasets.transforms import View
from featstore.errors import BadEmbeddingError, FeatStoreError
from featstore.extraction.loader import batches_of, decode
from featstore.models import Encoder
from featstore.store import SplitWriter, row_order

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, images done and images in all."""

_QUEUED_WRITES = 4  # chunks held in memory while the disk is slower than the model


@dataclass
class Station:
    """An encoder, the writer of each of its sites, and what the images go through before."""

    encoder: Encoder
    writers: Mapping[str, SplitWriter]
    transform: Transform | View
    adapts: bool = False


Taker = tuple[Station, str, SplitWriter]
"""A station, one of its sites, and that site's writer."""

OpenChunks = dict[tuple[int, int], list[Taker]]
"""Who lacks the rows from a first one to one before the last."""


@dataclass
class Work:
    """Rows to embed: a chunk of every writer that takes them, and what has come of it so far."""

    rows: range
    takers: list[Taker]
    parts: dict[int, list[np.ndarray]] = field(default_factory=dict)
    valid: list[np.ndarray] = field(default_factory=list)


def fill(
    stations: Sequence[Station],
    images: ImageSplit,
    train: ImageSplit | None,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int,
    skip_errors: bool,
    progress: Progress,
) -> int:
    """Compute every chunk that is missing, and finish the splits; returns images decoded.

    `transform` is the plain one, by which models adapt, whatever their station's. Processes that
    fill the same split share its chunks; this returns when all are written.

    Raises
    ------
    BadImageError, BadEmbeddingError, FeatStoreError
        What was committed until then stays.
    """
    order = row_order(images.fingerprint, len(images))
    decoded = 0
    while True:
        open_chunks = _missing(stations)
        if not open_chunks:
            break
        _adapt(stations, train, transform, batch_size, num_workers, skip_errors, progress)
        try:
            done = _one_round(
                stations, images, order, open_chunks,
                batch_size=batch_size, num_workers=num_workers, skip_errors=skip_errors,
                progress=progress,
            )  # fmt: skip
        finally:
            for station in stations:
                for writer in station.writers.values():
                    writer.release()
        decoded += done
        if not done:
            time.sleep(0.5)  # other processes hold all that is left
    for station in stations:
        for writer in station.writers.values():
            writer.finish()
    return decoded


def _missing(stations: Sequence[Station]) -> OpenChunks:
    """Who still lacks which rows; stored splits may be cut into chunks of unlike sizes."""
    chunks: OpenChunks = {}
    for station in stations:
        for site, writer in station.writers.items():
            for chunk in writer.missing():
                span = writer.split.span(chunk)
                chunks.setdefault((span.start, span.stop), []).append((station, site, writer))
    return dict(sorted(chunks.items()))


def _adapt(
    stations: Sequence[Station],
    train: ImageSplit | None,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    skip_errors: bool,
    progress: Progress,
) -> None:
    waiting = [s.encoder for s in stations if s.adapts and not s.encoder.adapted]
    adapting = list({id(encoder): encoder for encoder in waiting}.values())  # views share theirs
    if not adapting or train is None:
        return
    rows = range(len(train))
    order = row_order(train.fingerprint, len(train))
    batches = batches_of(rows, batch_size)
    with ExitStack() as stack:
        for encoder in adapting:
            stack.enter_context(encoder.adapting())
        done = 0
        for pixels, valid, _ in decode(
            train, order, [transform], batches, num_workers=num_workers, skip_errors=skip_errors
        ):
            if pixels is not None:
                for encoder in adapting:
                    encoder(pixels[0])
            done += len(valid)
            progress(f"adapting to {train.dataset}", done, len(train))


def _one_round(
    stations: Sequence[Station],
    images: ImageSplit,
    order: np.ndarray,
    open_chunks: OpenChunks,
    *,
    batch_size: int,
    num_workers: int,
    skip_errors: bool,
    progress: Progress,
) -> int:
    """Make the chunks that no other process holds; returns images decoded."""
    expected = sum(stop - start for start, stop in open_chunks)
    plan: deque[tuple[Work, range]] = deque()

    def claim_and_list() -> Iterator[range]:
        # Runs a little ahead of the loop below, so that a chunk is claimed when it is about to be
        # decoded and not before: another process may join at any time.
        for (start, stop), wanting in open_chunks.items():
            takers = [t for t in wanting if t[2].claim(t[2].split.chunk_at(start))]
            if takers:
                work = Work(range(start, stop), takers)
                for batch in batches_of(work.rows, batch_size):
                    plan.append((work, batch))
                    yield batch

    takers = [taker for wanting in open_chunks.values() for taker in wanting]
    transforms = list(dict.fromkeys(station.transform for station, _, _ in takers))
    done = 0
    label = f"{images.dataset} {images.name}"
    pin = any(station.encoder.device.type == "cuda" for station in stations)
    with _Writing() as writing:
        for pixels, valid, errors in decode(
            images, order, transforms, _Once(claim_and_list()),
            num_workers=num_workers, skip_errors=skip_errors, pin=pin,
        ):  # fmt: skip
            work, batch = plan.popleft()
            by_transform = dict(zip(transforms, pixels, strict=True)) if pixels else {}
            _embed(work, by_transform, valid)
            for error in errors:
                log.warning("skipped: %s", error)
            if batch.stop == work.rows.stop:
                _check(work, images, order)
                writing.submit(work)
            done += len(valid)
            progress(label, done, expected)
    return done


class _Once:
    """An iterable over an iterator, as a loader wants it."""

    def __init__(self, batches: Iterator[range]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[range]:
        return self._batches


def _embed(work: Work, pixels: Mapping[Transform | View, torch.Tensor], valid: np.ndarray) -> None:
    """Run each station that takes the chunk once, and keep the rows of each of its writers.

    `pixels` is empty where no image of the batch could be read.
    """
    work.valid.append(valid)
    embedded: dict[int, dict[str, torch.Tensor]] = {}
    for number, (station, site, writer) in enumerate(work.takers):
        writer.renew()
        if pixels and id(station) not in embedded:
            embedded[id(station)] = station.encoder(pixels[station.transform])
        rows = np.zeros((len(valid), writer.split.shape[1]), np.float32)
        if pixels:
            rows[valid] = embedded[id(station)][site].cpu().numpy()
        work.parts.setdefault(number, []).append(rows)


def _check(work: Work, images: ImageSplit, order: np.ndarray) -> None:
    """Refuse embeddings that cannot be stored as they are."""
    for number, (_, _, writer) in enumerate(work.takers):
        rows = np.concatenate(work.parts[number])
        dtype = writer.split.embedding.dtype
        limit = np.finfo(dtype).max
        # NaN compares false; beyond the largest number of the stored dtype lies infinity
        bad = np.flatnonzero(~(np.abs(rows) <= limit).all(axis=1))
        if len(bad):
            worst = np.abs(rows[bad[0]]).max()
            row = work.rows[int(bad[0])]
            reason = (
                f"reaches {worst:.4g}, beyond {dtype}: use --dtype float32"
                if np.isfinite(worst)
                else "holds NaN or infinity: try --precision fp32, or look at the weights"
            )
            raise BadEmbeddingError(
                f"{writer.split.key.model}: the embedding of {images.dataset} {writer.split.name} "
                f"{images.sample_ids[int(order[row])]} {reason}. Its chunk was not stored"
            )


class _Writing:
    """Writes chunks in the background, one after another; waits for all of them at the end."""

    def __enter__(self) -> _Writing:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="featstore-write")
        self._pending: deque[Future[None]] = deque()
        return self

    def submit(self, work: Work) -> None:
        """Queue a chunk that is whole; waits while the queue is full."""
        while len(self._pending) >= _QUEUED_WRITES:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(_write, work))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Chunks that are whole are worth keeping even when the run ends in an error or Ctrl-C.
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._pending:
                future.result()


def _write(work: Work) -> None:
    valid = np.concatenate(work.valid)
    for number, (_, _, writer) in enumerate(work.takers):
        chunk = writer.split.chunk_at(work.rows.start)
        try:
            writer.write(chunk, np.concatenate(work.parts[number]), valid)
        except OSError as error:
            raise FeatStoreError(
                f"{writer.split}: chunk {chunk} could not be written to {writer.split.root} "
                f"({error.strerror or error}). All chunks before it are kept; make room, and the "
                f"same command goes on from there"
            ) from error
