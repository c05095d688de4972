"""One store's finished features into another, byte for byte."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from featstore.errors import CorruptStoreError, MissingFeaturesError
from featstore.store import Split, Store
from featstore.store.claims import Claim, acquire, clear
from featstore.store.layout import ARRAYS, digest_files, digest_metadata

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the split that was looked at, splits done and splits in all."""


@dataclass
class Merged:
    """What a merge did, by split.

    Attributes
    ----------
    copied : those that were not here ; up_to_date : those that were, made by the same recipe
    unfinished : those of the other store that are not complete, and were left
    refused : those left for another reason, and why
    """

    copied: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def merge_store(
    other: str | Path,
    *,
    store: str | Path = "data/features.zarr",
    progress: Progress = lambda what, done, total: None,
) -> Merged:
    """Copy every finished split of another store that is not here; nothing here is changed.

    What is copied is checked against its checksums. Interrupted, the same call goes on.

    Raises
    ------
    MissingFeaturesError
        The other store is not there, or holds nothing.
    StoreMismatchError
        One of the two is of another format version.
    ValueError
        Both are the same store.
    """
    there, here = Store(other), Store(store)
    if there.path.resolve() == here.path.resolve():
        raise ValueError(f"{other} is the store itself; give another one")
    splits = list(there.splits())
    if not splits:
        raise MissingFeaturesError(f"no features in {other}. Give the place of a store")
    merged = Merged()
    for number, split in enumerate(splits):
        try:
            _merge(split, here, merged)
        except CorruptStoreError as error:
            merged.refused[str(split)] = str(error)
        progress(str(split), number + 1, len(splits))
    return merged


def _merge(split: Split, here: Store, merged: Merged) -> None:
    if not split.complete:  # raises CorruptStoreError if its metadata cannot be read
        merged.unfinished.append(f"{split}: {split.verify()[0]}")
        return
    place = split.path.relative_to(split.root)
    while True:
        mine = Split(str(here.path), split.key, split.name)  # anew, to see what others wrote
        if _is_there(mine):
            _compare(split, mine, merged)
            return
        claims = mine.path.parent / ".claims"
        _copy_parents(Path(split.root), here.path, place)
        claim = acquire(claims, split.name)
        if claim is None:
            time.sleep(0.1)  # another process copies or creates it
            continue
        try:
            if not _is_there(Split(mine.root, mine.key, mine.name)):
                _copy(split, mine, claim)
                merged.copied.append(str(split))
                return
        finally:
            clear(claims, split.name)


def _is_there(split: Split) -> bool:
    return (split.path / "zarr.json").exists() and (split.damaged or "recipe" in split.attrs)


def _compare(split: Split, mine: Split, merged: Merged) -> None:
    """File a split whose place is taken under what was found there."""
    name = str(split)
    if mine.damaged:
        merged.refused[name] = f"is damaged here. Remove it: featstore rm '{mine.key}'"
        return
    differences = mine.recipe.differences(split.recipe)
    if differences:
        fields = "; ".join(f"{k}: here {a!r}, there {b!r}" for k, (a, b) in differences.items())
        merged.refused[name] = f"was made by another recipe ({fields}); what is here was left alone"
    elif not mine.complete:
        merged.refused[name] = (
            f"is {mine.verify()[0]} here. Finish it, or remove it with featstore rm '{mine.key}', "
            f"and import again"
        )
    else:
        merged.up_to_date.append(name)


def _copy(split: Split, mine: Split, claim: Claim) -> None:
    """Copy and check the arrays, then the metadata, by which alone the split is seen."""
    files = _checked_files(split)
    if mine.path.exists():
        shutil.rmtree(mine.path)  # of a copy that was cut off
    try:
        for name, expected in files.items():
            _copy_files(split.path / name, mine.path / name, claim)
            if digest_files(mine.path / name) != expected:
                raise CorruptStoreError(f"{name}: a file is not what was written, so not copied")
    except BaseException:
        shutil.rmtree(mine.path, ignore_errors=True)
        raise
    _copy_whole(split.path / "zarr.json", mine.path / "zarr.json")
    log.debug("copied %s", split)


def _checked_files(split: Split) -> dict[str, str]:
    """Digest of each array's files, by the split's metadata, which are checked as well."""
    try:
        complete = split.attrs["complete"]
        files = dict(complete["files"])
        sound = (
            split.recipe.digest == split.digest
            and digest_metadata(split.path) == complete["metadata"]
            and set(ARRAYS) <= set(files)
            and all(name.isidentifier() for name in files)  # never a way out of the folder
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CorruptStoreError("its zarr.json is not what was written; it was not copied")
    return files


def _copy_files(source: Path, target: Path, claim: Claim) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        claim.renew()


def _copy_parents(source: Path, target: Path, place: Path) -> None:
    """Groups above a split, where they are not there yet."""
    for folder in (Path(), *reversed(place.parents[:-1])):
        (target / folder).mkdir(parents=True, exist_ok=True)
        document = target / folder / "zarr.json"
        if not document.exists():
            _copy_whole(source / folder / "zarr.json", document)


def _copy_whole(source: Path, target: Path) -> None:
    """A file that is there whole or not at all."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
