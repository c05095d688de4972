"""Writing one split: data before its digest, digests before `complete`.

Whatever a crash leaves behind is thereby known to be unfinished, and nothing needs a rename.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.dtype import VariableLengthUTF8
from zarr.errors import ContainsGroupError

from featstore.errors import BadEmbeddingError, StoreMismatchError
from featstore.kernels.scale import block_moments, merge_moments
from featstore.keys import FORMAT_VERSION, FeatureKey, Recipe, encode_part
from featstore.store.claims import Claim, acquire, clear
from featstore.store.layout import (
    ARRAYS,
    compressors,
    digest_files,
    digest_metadata,
    digest_rows,
    open_array,
    round_rows,
)
from featstore.store.reader import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What is known of a split's rows before any image is read, in the stored order.

    Attributes
    ----------
    sample_id : n names
    index : (n,) int64 positions in the dataset
    label : (n,) int64, or (n, c) int8 of a multi-label split
    categories : names of the categories
    """

    sample_id: Sequence[str]
    index: np.ndarray
    label: np.ndarray
    categories: Sequence[str]


@dataclass
class SplitWriter:
    """Fills one split chunk by chunk, beside other processes that fill the same one."""

    split: Split
    codec: str
    _claims: dict[str, Claim] = field(default_factory=dict)

    @property
    def _claim_folder(self) -> Path:
        return self.split.path / "claims"

    @cached_property
    def _group(self) -> Any:  # zarr's own type says that an item may be a group as well
        return zarr.open_group(self.split.path, mode="r+", use_consolidated=False)

    @cached_property
    def _embedding(self) -> Any:
        return open_array(self.split.path / "embedding", mode="r+")

    @cached_property
    def _valid(self) -> Any:
        return open_array(self.split.path / "valid")

    def missing(self) -> list[int]:
        """Chunks that nobody has written yet."""
        return [int(i) for i in np.flatnonzero(self._group["chunk_digest"][...] == 0)]

    def claim(self, chunk: int) -> bool:
        """Whether this process may write the chunk: no other living one is at it."""
        claim = acquire(self._claim_folder, str(chunk))
        if claim and self._group["chunk_digest"][chunk]:
            claim.path.unlink(missing_ok=True)  # another wrote it meanwhile
            return False
        if claim:
            self._claims[str(chunk)] = claim
        return claim is not None

    def renew(self) -> None:
        """Keep the claims held here from expiring."""
        for claim in list(self._claims.values()):  # the writing thread takes some away
            claim.renew()

    def release(self) -> None:
        """Give up what was claimed and not written, so that the next run need not wait for us."""
        while self._claims:
            self._claims.popitem()[1].path.unlink(missing_ok=True)

    def write(self, chunk: int, rows: np.ndarray, valid: np.ndarray) -> None:
        """Commit a chunk, or on all cores those from it on that the rows fill.

        Parameters
        ----------
        rows : (m, d) embeddings already checked to be finite ; valid : (m,) bool
        """
        first = self.split.span(chunk).start
        stop = first + len(rows)
        chunks = range(chunk, self.split.chunk_at(stop - 1) + 1)
        stored = round_rows(rows, dtype=str(self.split.embedding.dtype), codec=self.codec)
        if stored is not rows and not np.isfinite(stored).all():
            raise BadEmbeddingError(
                f"{self.split} chunk {chunk}: rounding by {self.codec} overflows {stored.dtype}. "
                f"Use --dtype float32 or another --codec"
            )
        self._embedding[first:stop] = stored
        group = self._group
        if not np.array_equal(self._valid[first:stop], valid):  # as of a chunk with none skipped
            group["valid"][first:stop] = valid
        spans = [self.split.span(number) for number in chunks]
        parts = [slice(span.start - first, span.stop - first) for span in spans]
        # Last: from here on the chunks count as written, and a crash before repeats them.
        group["chunk_digest"][chunk : chunks.stop] = [
            digest_rows(stored[part], valid[part]) for part in parts
        ]
        for number in chunks:
            claim = self._claims.pop(str(number), None)
            if claim:
                claim.path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Read all back, check it, and mark the split complete.

        Raises
        ------
        CorruptStoreError
            A chunk does not read as it was written.
        """
        split = Split(self.split.root, self.split.key, self.split.name)  # sees what others wrote
        if split.complete:
            return
        claim = acquire(self._claim_folder, "finish")
        if claim is None:  # another process is finishing the same bytes
            return
        mean, variance = split_moments(split)
        self._group["mean"][...] = mean
        self._group["variance"][...] = variance
        clear(self._claim_folder)
        for partial in split.path.rglob("*.partial"):  # left by writes that were cut off
            partial.unlink(missing_ok=True)
        with warnings.catch_warnings():
            # One file then opens the split; readers that do not know the extension ignore it.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            zarr.consolidate_metadata(split.path)
        zarr.open_group(split.path, mode="r+").attrs["complete"] = {
            "files": {name: digest_files(split.path / name) for name in ARRAYS},
            "metadata": digest_metadata(split.path),
        }


def resume(
    root: Path, key: FeatureKey, name: str, recipe: Recipe, codec: str
) -> SplitWriter | None:
    """Writer of a split that is there, or None if it is not.

    Raises
    ------
    StoreMismatchError
        Features of another recipe are stored under the key; names the fields that differ.
    """
    split = Split(str(root), key, encode_part(name))
    if not (split.path / "zarr.json").exists() or "recipe" not in split.attrs:
        return None
    differences = split.recipe.differences(recipe)
    if differences:
        listed = "; ".join(f"{k}: stored {a!r}, now {b!r}" for k, (a, b) in differences.items())
        raise StoreMismatchError(
            f"{split} in {root} was made by another recipe ({listed}). Keep both with "
            f"--variant NAME, or replace it with --overwrite"
        )
    return SplitWriter(split, codec)


def create(
    root: Path,
    key: FeatureKey,
    name: str,
    recipe: Recipe,
    rows: Rows,
    *,
    width: int,
    dtype: str,
    codec: str,
    chunk_rows: int,
    notes: Mapping[str, Any],
) -> SplitWriter:
    """Writer of a split: a new one, or the one there if its recipe is the same.

    Raises
    ------
    StoreMismatchError
        Features of another recipe are stored under the key; names the fields that differ.
    """
    path = Split(str(root), key, encode_part(name)).path
    _create_parents(root, path)
    while (writer := resume(root, key, name, recipe, codec)) is None:
        if acquire(path.parent / ".claims", name) is None:
            time.sleep(0.1)  # another process is creating it: a matter of milliseconds
            continue
        if resume(root, key, name, recipe, codec) is None:  # else it was finished just before
            _create_arrays(path, rows, width, dtype, codec, chunk_rows)
            attributes = {
                "recipe": dict(recipe.fields),
                "digest": recipe.digest,
                "categories": list(rows.categories),
                **notes,
            }
            # In one write, since a split with a recipe counts as created, with all that belongs to
            # it; `attrs.update` would write each by itself, the recipe first.
            zarr.open_group(path, mode="r+").update_attributes(attributes)
            log.debug("created %s", path)
        clear(path.parent / ".claims", name)
    return writer


def _create_parents(root: Path, split: Path) -> None:
    # Another process may create the same group between the look and the write: the same bytes.
    with contextlib.suppress(ContainsGroupError):
        if not (root / "zarr.json").exists():
            zarr.open_group(root, mode="a", attributes={"featstore_format": FORMAT_VERSION})
    for parent in split.parents[:3]:
        with contextlib.suppress(ContainsGroupError):
            if not (parent / "zarr.json").exists():
                zarr.open_group(parent, mode="a")


def _create_arrays(
    path: Path, rows: Rows, width: int, dtype: str, codec: str, chunk_rows: int
) -> None:
    group: Any = zarr.open_group(
        path, mode="w"
    )  # whatever a crash left here has no recipe: start anew
    n = len(rows.sample_id)
    n_chunks = -(-n // chunk_rows)
    group.create_array(
        "embedding",
        shape=(n, width),
        chunks=(chunk_rows, width),
        dtype=dtype,
        compressors=compressors(codec),
        dimension_names=("sample", "feature"),
    )
    # Chunks of length one let several writers record theirs without reading the others'.
    group.create_array(
        "chunk_digest",
        shape=(n_chunks,),
        chunks=(1,),
        dtype="uint64",
        compressors=None,
        fill_value=0,
        dimension_names=("chunk",),
    )
    more = rows.label.shape[1:]  # the categories of a multi-label split
    group.create_array(
        "label",
        shape=(n, *more),
        chunks=(chunk_rows, *more),
        dtype="int8" if more else "int64",
        dimension_names=("sample", "category")[: rows.label.ndim],
    )
    for name, dtype_, fill in (("index", "int64", 0), ("valid", "bool", True)):
        group.create_array(
            name,
            shape=(n,),
            chunks=(chunk_rows,),
            dtype=dtype_,
            fill_value=fill,  # not stored where a chunk holds nothing else: most skip no sample
            dimension_names=("sample",),
        )
    group["label"][...] = rows.label
    group["index"][...] = rows.index
    names = group.create_array(
        "sample_id",
        shape=(n,),
        chunks=(chunk_rows,),
        dtype=VariableLengthUTF8(),
        dimension_names=("sample",),
    )
    names[...] = np.array([str(name) for name in rows.sample_id], dtype=object)
    for name in ("mean", "variance"):
        group.create_array(
            name, shape=(width,), chunks=(width,), dtype="float64", dimension_names=("feature",)
        )


def split_moments(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof 0), (d,) float64, over valid rows, merged in chunk order.

    Raises
    ------
    CorruptStoreError
        A chunk does not read as it was written.
    """
    d = split.shape[1]
    total: tuple[Any, Any, Any] = (0, np.zeros(d), np.zeros(d))
    for number in range(len(split.chunk_digest)):
        span = split.span(number)
        rows = split.chunk(number)[split.valid[span.start : span.stop]]
        if len(rows):
            total = merge_moments(total, block_moments(rows.astype(np.float64), xp=np))
    n, mean, m2 = total
    return mean, m2 / max(n, 1)
