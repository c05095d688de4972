"""Reading a split: every chunk is checked against its digest before it is given out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import NDBuffer

from featstore.errors import CorruptStoreError
from featstore.keys import FeatureKey, Recipe, encode_part
from featstore.store.layout import (
    digest_files,
    digest_metadata,
    digest_rows,
    open_array,
)


@dataclass(frozen=True)
class Split:
    """One split's features. Holds its place only, so that it travels to workers as a path.

    Reading is by chunk, and a chunk whose bytes are not those that were written is refused.
    """

    root: str
    key: FeatureKey
    name: str

    @property
    def path(self) -> Path:
        """Folder of the split; `xr.open_zarr` opens it."""
        return Path(self.root, self.key.path, encode_part(self.name))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "key": self.key, "name": self.name}

    def __str__(self) -> str:
        return f"{self.key} {self.name}"

    @cached_property
    def group(self) -> zarr.Group:
        """The split's Zarr group, opened to read."""
        try:
            # Never the consolidated copy: while a split is being written it would be stale.
            return zarr.open_group(self.path, mode="r", use_consolidated=False)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise CorruptStoreError(
                f"{self} in {self.root}: its zarr.json cannot be read ({error}). Remove it with "
                f"featstore rm '{self.key}' and extract again"
            ) from error

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Recipe, digest, categories and, once finished, `complete`."""
        return dict(self.group.attrs)

    def array(self, name: str) -> np.ndarray:
        """All of one of the small arrays."""
        return np.asarray(self._zarr_array(name)[...])

    def _zarr_array(self, name: str) -> zarr.Array[Any]:
        return open_array(self.path / name)

    @cached_property
    def embedding(self) -> zarr.Array[Any]:
        """The (n, d) embeddings as Zarr holds them; read them by `chunk`, which checks."""
        return self._zarr_array("embedding")

    @cached_property
    def label(self) -> np.ndarray:
        """(n,) int64, or (n, c) int8 of a multi-label split: 1 present, 0 absent, -1 ignored."""
        return self.array("label")

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several labels."""
        return self._zarr_array("label").ndim == 2

    @cached_property
    def valid(self) -> np.ndarray:
        """(n,) bool, false for a skipped sample."""
        return self.array("valid")

    @cached_property
    def chunk_digest(self) -> np.ndarray:
        """(chunks,) uint64, 0 for a chunk not written."""
        return self.array("chunk_digest")

    @property
    def recipe(self) -> Recipe:
        """What the features were made by."""
        return Recipe(self.attrs["recipe"])

    @property
    def digest(self) -> str:
        """The recipe's digest."""
        return str(self.attrs["digest"])

    @property
    def categories(self) -> list[str]:
        """Names of the categories in the order of their labels."""
        return list(self.attrs["categories"])

    @property
    def origin(self) -> str:
        """Command that made the split, as far as it is known."""
        key = self.key
        place = f"-m {key.model} -d {key.dataset} --bn-mode {key.bn_mode}"
        if "imported" not in self.recipe.fields:
            return f"featstore extract {place}"
        files = self.attrs.get("recorded", {}).get("files") or ["FILES"]
        return f"featstore import {' '.join(files)} {place} --split {self.name}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, those skipped included, and features."""
        n, d = self.embedding.shape
        return n, d

    @property
    def damaged(self) -> bool:
        """Whether its metadata cannot even be read."""
        try:
            return not isinstance(self.attrs, dict)
        except CorruptStoreError:
            return True

    @property
    def complete(self) -> bool:
        """Whether every chunk was written and checked."""
        return "complete" in self.attrs

    @property
    def rows_done(self) -> int:
        """Rows in chunks that are written."""
        return sum(len(self.span(int(i))) for i in np.flatnonzero(self.chunk_digest))

    def span(self, chunk: int) -> range:
        """Rows of a chunk."""
        n, step = self.shape[0], self.embedding.chunks[0]
        return range(chunk * step, min(n, (chunk + 1) * step))

    def chunk_at(self, row: int) -> int:
        """Number of the chunk that a row lies in."""
        return row // int(self.embedding.chunks[0])

    def chunk(self, number: int) -> np.ndarray:
        """(rows, d) embeddings of a chunk, in the stored dtype, those of skipped samples included.

        Raises
        ------
        CorruptStoreError
            The bytes are not those that were written.
        """
        span = self.span(number)
        rows = np.empty((len(span), self.shape[1]), self.embedding.dtype)
        self._read(range(number, number + 1), rows)
        return rows

    def rows(
        self,
        chunks: range | None = None,
        *,
        out: np.ndarray | None = None,
        threads: int = 1,
    ) -> np.ndarray:
        """(m, d) valid rows of all chunks, or of some, in the stored dtype.

        Parameters
        ----------
        chunks : consecutive ones
        out : (at least as many rows as those chunks have, d) to read into; the result is a view of
            it unless a sample was skipped
        threads : that read at once

        Raises
        ------
        CorruptStoreError
            The bytes of a chunk are not those that were written.
        """
        chunks = range(len(self.chunk_digest)) if chunks is None else chunks
        span = self._span(chunks)
        n = span.stop - span.start
        rows = np.empty((n, self.shape[1]), self.embedding.dtype) if out is None else out[:n]
        # Of several chunks asked for at once zarrs reads one on each core, whatever it is told.
        step = len(chunks) if threads >= (os.cpu_count() or 1) else threads
        for start in range(chunks.start, chunks.stop, step):
            part = range(start, min(start + step, chunks.stop))
            own = self._span(part)
            self._read(part, rows[own.start - span.start : own.stop - span.start])
        valid = self.valid[span]
        return rows if valid.all() else rows[valid]

    def tiles(self, rows: int = 8192, *, threads: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Valid rows (m, d), a few whole chunks at a time in order, and how many came before.

        The next tile is read meanwhile, and memory holds those two. A tile is overwritten once
        another is asked for.

        Parameters
        ----------
        rows : of a tile, at most, but for a chunk that has more ; threads : that read at once

        Raises
        ------
        CorruptStoreError
            The bytes of a chunk are not those that were written.
        """
        n_chunks, height = len(self.chunk_digest), int(self.embedding.chunks[0])
        step = max(1, min(n_chunks, rows // height))
        spans = [range(i, min(n_chunks, i + step)) for i in range(0, n_chunks, step)]
        buffers = np.empty((2, step * height, self.shape[1]), self.embedding.dtype)
        before = 0
        with ThreadPoolExecutor(1, thread_name_prefix="featstore-read") as ahead:
            coming = ahead.submit(self.rows, spans[0], out=buffers[0], threads=threads)
            for number in range(len(spans)):
                tile = coming.result()
                if number + 1 < len(spans):
                    into = buffers[(number + 1) % 2]
                    coming = ahead.submit(self.rows, spans[number + 1], out=into, threads=threads)
                yield before, tile
                before += len(tile)

    def _span(self, chunks: range) -> slice:
        """Rows of consecutive chunks."""
        return slice(self.span(chunks.start).start, self.span(chunks.stop - 1).stop)

    def _read(self, chunks: range, rows: np.ndarray) -> None:
        """Read consecutive chunks into their (m, d) rows, and check each."""
        span = self._span(chunks)
        try:
            self.embedding.get_basic_selection(span, out=NDBuffer.from_numpy_array(rows))
        except (ValueError, RuntimeError, OSError) as error:  # cut short, or refused by zstd
            for number in chunks if len(chunks) > 1 else ():
                self.chunk(number)  # says which
            raise self._corrupt(chunks.start, str(error)) from error
        for number in chunks:
            own = self.span(number)
            part = rows[own.start - span.start : own.stop - span.start]
            if digest_rows(part, self.valid[own.start : own.stop]) != self.chunk_digest[number]:
                raise self._corrupt(number, "its checksum differs")

    def _corrupt(self, number: int, found: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{self} in {self.root}: chunk {number} is not what was written ({found}). Make it "
            f"again: {self.origin} --overwrite"
        )

    def verify(self) -> list[str]:
        """What is wrong with the split, a line each: every byte that was written is read again."""
        try:
            complete = self.attrs.get("complete")
            if complete is None:
                return [f"unfinished: {self.rows_done} of {self.shape[0]} rows"]
            return self._faults(complete)
        except (ValueError, KeyError, OSError, RuntimeError, CorruptStoreError) as error:
            return [str(error)]

    def _faults(self, complete: Mapping[str, Any]) -> list[str]:
        faults = []
        if self.recipe.digest != self.digest:
            faults.append("the recipe does not give its digest")
        if digest_metadata(self.path) != complete["metadata"]:
            faults.append("zarr.json is not what was written")
        for name, expected in complete["files"].items():
            if digest_files(self.path / name) != expected:
                faults.append(f"{name}: a file is not what was written, or is gone")
        for number in range(len(self.chunk_digest)):
            try:
                self.chunk(number)
            except CorruptStoreError as error:
                faults.append(str(error))
        return faults
