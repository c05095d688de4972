"""Datasets in Hugging Face's form: a folder of Parquet files, or a name on the hub.

`hf:./FOLDER` reads Parquet files; `hf:OWNER/NAME` and `hf:OWNER/NAME/CONFIG` read what the package
`datasets` has in its cache, or fetches. Streams are not read: images are asked for in any order.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from featstore.datasets.arrow_images import (
    columns_of,
    labels_of,
    open_images,
    schema_of,
    unpacked,
)
from featstore.datasets.files import check_labels
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.lists import HUB_NAME, first_line
from featstore.datasets.names import Entry
from featstore.datasets.webdataset import SPLIT_NAMES, natural
from featstore.errors import BadImageError, MissingDatasetError, UnknownNameError
from featstore.home import expanded, offline

log = logging.getLogger(__name__)

_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


@dataclass(frozen=True)
class _Found:
    """Shards by split, and the folders that images named by a path must lie in."""

    shards: Mapping[str, tuple[Path, ...]]
    roots: tuple[Path, ...]


def splits_of(path: str, *, download: bool) -> list[str]:
    """Names of the splits of a folder, or of a dataset on the hub.

    Raises
    ------
    UnknownNameError
        It is neither a folder nor a name that the hub can have.
    MissingDatasetError
        It is not there, or the package `datasets` is not.
    BadImageError
        The folder holds no Parquet files.
    """
    return list(_find("", path, download).shards)


def read(entry: Entry, split: str, root: Path, *, download: bool) -> ImageSplit:
    """Split of an entry whose `path` is a folder or a name on the hub.

    The entry's options may name the columns, `image` and `label`, the split to take for ours, as in
    `test = "validation"`, and set `exif`, by which images are turned as their cameras say. It is
    off, so that results equal those from image files.

    Raises
    ------
    MissingDatasetError
        It is not there.
    BadImageError
        A shard is damaged, a label unknown, an image missing or outside the dataset, or it has no
        image.
    """
    found = _find(entry.folder, entry.path, download)
    asked = str(entry.options.get(split, split))
    source = SPLIT_NAMES.get(asked, asked)
    if source not in found.shards:
        raise MissingDatasetError(
            f"{entry.name} has no split {asked}; it has {', '.join(found.shards)}"
        )
    files = found.shards[source]
    columns = columns_of(schema_of(files[0]), entry.options, str(files[0]))
    labels = labels_of(files, columns.label)
    if not len(labels):
        raise BadImageError(
            f"{entry.name} {asked} is empty: {files[0]} holds no rows, nor does any other of its "
            f"{len(files)} files. Fetch it again, or leave this split out"
        )
    names = columns.names
    if names is None:
        all_labels = [labels_of(shards, columns.label) for shards in found.shards.values()]
        names = tuple(map(str, range(int(np.concatenate(all_labels).max()) + 1)))
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        raise BadImageError(
            f"{entry.name} {asked}: row {unknown[0]} has no label, like {len(unknown)} of "
            f"{len(labels)}: they are withheld. Score another split, in a catalogue of your own: "
            f'options = {{{split} = "validation"}}'
        )
    tables = files
    if files[0].suffix == ".parquet":
        tables = tuple(unpacked(files, columns.image, root / "unpacked"))
    images, ids, content = open_images(
        split, tables, columns.image, [file.parent for file in files], found.roots,
        upright=bool(entry.options.get("exif", False)),
    )  # fmt: skip
    check_labels(entry.name, ids, labels, names)
    return ImageSplit(entry.name, split, ids, labels, names, images, content)


def _find(folder: str, path: str, download: bool) -> _Found:
    place = Path(folder, expanded(path))
    if path and place.is_dir():
        return _Found(_parquet_shards(place), (place,))
    if not HUB_NAME.match(path):
        if path.startswith(("/", ".", "~")):
            raise MissingDatasetError(f"hf:{path}: there is no folder {place}. Check the path")
        raise UnknownNameError(
            f"hf:{path} is neither a folder nor a name of the hub. Write hf:./FOLDER, "
            f"hf:OWNER/NAME or hf:OWNER/NAME/CONFIG"
        )
    return _hub_shards(path, download and not offline())


def _parquet_shards(place: Path) -> dict[str, tuple[Path, ...]]:
    """Parquet files of a folder or of its `data`, by split, in the order of their numbers."""
    files = [file for one in (place, place / "data") for file in one.glob("*.parquet")]
    if not files:
        inner = sorted({file.parent for file in place.glob("*/*.parquet")})
        hint = f"give hf:{inner[0]}" if inner else "for image files give folder:PATH"
        raise BadImageError(f"{place} holds no Parquet files; {hint}")
    groups: dict[str, list[Path]] = {}
    for file in sorted(files, key=natural):
        word = file.stem.partition("-")[0]
        groups.setdefault(SPLIT_NAMES.get(word, word), []).append(file)
    for members in groups.values():
        _refuse_gaps(members)
    return _ordered(groups, str(place))


def _refuse_gaps(files: Sequence[Path]) -> None:
    numbered = [match for file in files if (match := _SHARD.search(file.stem))]
    if not numbered:
        return
    wanted = range(int(numbered[0][2]))
    missing = sorted(set(wanted) - {int(match[1]) for match in numbered})
    if missing:
        raise MissingDatasetError(
            f"{files[0].parent} has {len(numbered)} of {len(wanted)} shards like {files[0].name}; "
            f"number {missing[0]} is missing. Fetch it again"
        )


def _ordered(groups: Mapping[str, Sequence[Path]], where: str) -> dict[str, tuple[Path, ...]]:
    """Splits in our order, with `val` for `test` where there is no test."""
    names = [name for name in ("train", "val", "test") if name in groups]
    found = {name: tuple(groups[name]) for name in [*names, *sorted(set(groups) - set(names))]}
    if "test" not in found and "val" in found:
        log.warning("%s has no split test: its validation is scored as test", where)
        found["test"] = found.pop("val")
    return found


@lru_cache(maxsize=16)
def _hub_shards(name: str, download: bool) -> _Found:
    """Arrow files that the package `datasets` keeps of a dataset, which it fetches if it may."""
    try:
        library = import_module("datasets")
    except ImportError as error:
        raise MissingDatasetError(
            f"hf:{name} is on the Hugging Face hub, and the package datasets, which reads it, is "
            f"not installed: pip install '.[hf]' in featstore's folder"
        ) from error
    repository, config = name, None
    if name.count("/") == 2:
        repository, _, config = name.rpartition("/")
    try:
        loaded = _load(library, repository, config, download)
    # The package raises what its many parts raise: of the network, of the disk, of the formats.
    except Exception as error:
        reason = first_line(error)
        how = f"Fetch it: featstore datasets hf:{name} --download"
        if download:
            how = "Check the name and the network"
        elif offline():
            how = "Nothing is fetched while FEATSTORE_OFFLINE or HF_HUB_OFFLINE is set: unset it"
        raise MissingDatasetError(f"hf:{name} could not be read ({reason}). {how}") from error
    groups: dict[str, list[Path]] = {}
    for split, one in loaded.items():
        groups[SPLIT_NAMES.get(split, split)] = [Path(f["filename"]) for f in one.cache_files]
    downloads = import_module("huggingface_hub.constants").HF_HUB_CACHE
    roots = (library.config.HF_DATASETS_CACHE, downloads)
    return _Found(_ordered(groups, f"hf:{name}"), tuple(Path(root) for root in roots))


def _load(library: Any, repository: str, config: str | None, download: bool) -> Any:
    if download:
        return library.load_dataset(repository, config, keep_in_memory=False, streaming=False)
    cache = import_module("datasets.packaged_modules.cache.cache").Cache(
        repo_id=repository, dataset_name=repository.rpartition("/")[2], config_name=config,
        version="auto", hash="auto",
    )  # fmt: skip
    return cache.as_dataset(in_memory=False)
