"""Reading the store: every chunk is checked against its digest before it is given out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from featstore.errors import CorruptStoreError, MissingFeaturesError, StoreMismatchError
from featstore.keys import FORMAT_VERSION, FeatureKey, Recipe, encode_part
from featstore.store.layout import digest_files, digest_metadata, digest_rows, view_number


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
        found = self.group[name]
        if not isinstance(found, zarr.Array):
            raise CorruptStoreError(f"{self} in {self.root}: {name} is no array")
        return found

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
        """(rows, d) embeddings of a chunk, in the stored dtype.

        Raises
        ------
        CorruptStoreError
            The bytes are not those that were written.
        """
        span = self.span(number)
        try:
            rows = np.asarray(self.embedding[span.start : span.stop])
        except (ValueError, RuntimeError) as error:  # a file cut short, or one that zstd refuses
            raise self._corrupt(number, str(error)) from error
        valid = self.valid[span.start : span.stop]
        if digest_rows(rows, valid) != self.chunk_digest[number]:
            raise self._corrupt(number, "its checksum differs")
        return rows

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


@dataclass(frozen=True)
class Features:
    """Finished features under one key."""

    key: FeatureKey
    splits: Mapping[str, Split]
    unfinished: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Split:
        if name not in self.splits:
            view = view_number(name)
            wanted = f"--split {name}" if view is None else f"--views {view + 1}"
            imported = any("imported" in one.recipe.fields for one in self.splits.values())
            verb = "import FILES" if imported else "extract"
            raise MissingFeaturesError(
                f"no finished features for {self.key} {name} "
                f"({self.unfinished.get(name, 'nothing there')}). "
                f"Run: featstore {verb} -m {self.key.model} -d {self.key.dataset} "
                f"--bn-mode {self.key.bn_mode} {wanted}"
            )
        return self.splits[name]

    def digest(self, *names: str) -> str:
        """Digest over those splits' recipes."""
        for lacking in [name for name in names if name not in self.splits][-1:]:
            self[lacking]  # of views the last, so that the error asks for as many as are wanted
        return Recipe({name: self[name].digest for name in names}).digest


class Store:
    """Embeddings by (model, dataset, BN mode) under one folder.

    Raises
    ------
    StoreMismatchError
        The folder was written by another format version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise StoreMismatchError(
                f"{self.path} is a file, not a store. Give a folder for --store"
            )
        if (self.path / "zarr.json").exists():
            try:
                found = zarr.open_group(self.path, mode="r").attrs.get("featstore_format")
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptStoreError(
                    f"{self.path / 'zarr.json'} cannot be read ({error}). Take a copy of it from "
                    f"another store of featstore's; all stores have the same"
                ) from error
            if found != FORMAT_VERSION:
                raise StoreMismatchError(
                    f"{self.path} has format version {found}, this featstore reads "
                    f"{FORMAT_VERSION}. Use another --store, or the featstore that wrote it"
                )

    def splits(self, key: FeatureKey | None = None) -> Iterator[Split]:
        """Every split in the store, finished or not, or those of one key, sorted by place."""
        place = key.path if key else "*/*/*"
        for file in sorted(self.path.glob(f"{place}/*/zarr.json")):
            model, dataset, bn_mode, name = file.parent.relative_to(self.path).parts
            split = Split(
                str(self.path), FeatureKey.from_path(f"{model}/{dataset}/{bn_mode}"), name
            )
            if split.damaged or "recipe" in split.attrs:  # else its creation was cut off
                yield split

    def keys(self) -> list[FeatureKey]:
        """Keys under which anything is stored, sorted."""
        return sorted({split.key for split in self.splits()})

    def open(self, key: FeatureKey) -> Features:
        """Finished features under a key.

        Raises
        ------
        MissingFeaturesError
            There are none; says how far the extraction came.
        """
        found = {split.name: split for split in self.splits(key)}
        finished = {name: split for name, split in found.items() if split.complete}
        unfinished = {
            name: f"stopped at row {split.rows_done} of {split.shape[0]}"
            for name, split in found.items()
            if not split.complete
        }
        if not finished:
            state = ", ".join(f"{n} {how}" for n, how in unfinished.items()) or "nothing there"
            nothing = f"featstore extract -m {key.model} -d {key.dataset} --bn-mode {key.bn_mode}"
            command = next((split.origin for split in found.values()), nothing)
            raise MissingFeaturesError(
                f"no finished features for {key} in {self.path} ({state}). Run: {command}"
            )
        return Features(key, finished, unfinished)

    def remove(self, key: FeatureKey, split: str | None = None) -> None:
        """Delete a key's features, or one split of them."""
        for document in sorted((self.path / key.path).glob("*/zarr.json")):
            if split in (None, document.parent.name):
                # Metadata first: cut off here, what is left is seen as never created.
                document.unlink()
                shutil.rmtree(document.parent)
        for parent in (self.path / key.path, *Path(self.path / key.path).parents[:2]):
            if parent.is_dir() and not any(child.is_dir() for child in parent.iterdir()):
                shutil.rmtree(parent)
