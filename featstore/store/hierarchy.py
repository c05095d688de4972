"""What is stored under a folder: splits, and the finished features of a key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zarr

from featstore.errors import CorruptStoreError, MissingFeaturesError, StoreMismatchError
from featstore.keys import FORMAT_VERSION, FeatureKey, Recipe
from featstore.store.layout import view_number
from featstore.store.reader import Split


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
            if imported and view is not None:
                raise MissingFeaturesError(
                    f"no augmented views of {self.key}: its features were imported, and views come "
                    f"of images alone. Take a protocol without views, such as linear-marks-1view"
                )
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
