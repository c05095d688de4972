"""Datasets in WebDataset form: tar shards of samples, read at their places without unpacking.

`wds:PATTERN` is a folder of shards, one shard, or a pattern: `{000..146}` counts, `{train,test}`
lists, `*` and `?` match. A shard's split is the first word of its file name that is a split's, as
in `train-000000.tar` or `birds-val-3.tar`, else the name of its folder.
"""

from __future__ import annotations

import glob
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from featstore.datasets.files import check_labels, split_by_class
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.datasets.slices import SliceImages
from featstore.errors import BadImageError, MissingDatasetError, UnknownNameError
from featstore.home import expanded

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Words that name a split, with our name for it."""

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
_UNSAFE = ("pkl", "pickle", "pyd", "pth")
_LONGEST_LABEL = 6  # digits: fewer than a million categories
_CLASS_FILES = ("classes.txt", "classnames.txt")
_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_BRACE = re.compile(r"\{([^{}]*)\}")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class _Sample:
    """An image's place in a shard, and its label."""

    key: str
    shard: str
    offset: int
    size: int
    label: int


def splits_of(path: str) -> list[str]:
    """Names of the splits that the shards of a pattern make.

    Raises
    ------
    UnknownNameError
        The pattern is empty.
    MissingDatasetError
        A shard, or the folder, is not there.
    BadImageError
        Some shards name a split and others do not.
    """
    if not path:
        raise UnknownNameError("wds: names no shards. Write wds:PATTERN")
    return list(_our_splits(str(expanded(path))))


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of an entry whose `path` is the pattern.

    Raises
    ------
    MissingDatasetError
        A shard or the split is not there.
    BadImageError
        A shard is compressed or broken, or a sample has no image, no label, or a field that only
        unpickling would read.
    """
    pattern = str(Path(entry.folder, expanded(entry.path)))
    shards = _our_splits(pattern)
    if split not in shards:
        raise MissingDatasetError(
            f"{entry.name} has no shards of {split}; it has {', '.join(shards)}"
        )
    used = {path for paths in shards.values() for path in paths}
    indexed = {path: _index(path, _state(path)) for path in sorted(used)}
    samples = [one for path in shards[split] for one in indexed[path]]
    _refuse_repeated(samples)
    labels = np.array([one.label for one in samples], np.int64)
    highest = max(one.label for found in indexed.values() for one in found)
    categories = _categories(next(iter(used)).parent, highest)
    if len(shards) > 1 and len(set(map(tuple, shards.values()))) == 1:  # one group, divided
        rows = split_by_class(labels)[split == "test"]
        samples, labels = [samples[i] for i in rows], labels[rows]
    ids = tuple(one.key for one in samples)
    check_labels(entry.name, ids, labels, categories)
    images = SliceImages.of([(one.shard, one.offset, one.size, one.key) for one in samples])
    return ImageSplit(entry.name, split, ids, labels, categories, images, images.content)


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts shard 10 after shard 9, however many zeros their names have."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts], str(path)


def _our_splits(pattern: str) -> dict[str, tuple[Path, ...]]:
    """Shards by split; those that name none stand for train and test, to be divided."""
    groups: dict[str, list[Path]] = {}
    for path in _shards(pattern):
        words = [*re.split(r"[^a-z]+", path.name.lower()), path.parent.name.lower()]
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")
        groups.setdefault(split, []).append(path)
    found: dict[str, tuple[Path, ...]]
    found = {name: tuple(groups[name]) for name in ("train", "val", "test", "") if name in groups}
    unnamed = found.pop("", ())
    if unnamed and found:
        raise BadImageError(
            f"{unnamed[0]} names no split and {next(iter(found.values()))[0]} does. Name them all "
            f"train-*.tar, val-*.tar or test-*.tar, or none"
        )
    if unnamed:
        log.warning(
            "%s: no shard names a split, so a seeded 80/20 split is made, class by class", pattern
        )
        return {"train": unnamed, "test": unnamed}
    if "test" not in found and "val" in found:
        log.warning("%s has no shards of test: those of val are scored as test", pattern)
        found["test"] = found.pop("val")
    return found


def _shards(pattern: str) -> list[Path]:
    """Shards of a pattern, by number."""
    if re.match(r"\w+:", pattern):
        raise MissingDatasetError(
            f"wds:{pattern}: shards are read from this machine's disk alone. Fetch them first"
        )
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/*.tar"
    found: list[Path] = []
    for one in _alternatives(pattern):
        if any(sign in one for sign in "*?["):
            found += sorted(map(Path, glob.glob(one)), key=natural)  # noqa: PTH207 - of any root
        elif Path(one).is_file():
            found.append(Path(one))
        else:
            raise MissingDatasetError(f"wds:{pattern}: there is no shard {one}. Check the path")
    if not found:
        raise MissingDatasetError(f"wds:{pattern}: no shard is there. Check the path")
    return sorted(dict.fromkeys(found), key=natural)


def _alternatives(pattern: str) -> Iterator[str]:
    """The paths that the braces of a pattern stand for."""
    brace = _BRACE.search(pattern)
    if not brace:
        yield pattern
        return
    counted = _RANGE.match(brace[1])
    if counted:
        first, last = counted.groups()
        values = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    else:
        values = brace[1].split(",")
    for value in values:
        yield from _alternatives(pattern[: brace.start()] + value + pattern[brace.end() :])


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _index(path: Path, _changed: tuple[int, int]) -> tuple[_Sample, ...]:
    """Samples of a shard: consecutive members with one key."""
    with path.open("rb") as stream:
        kind = _COMPRESSED.get(stream.read(2))
    if kind:
        raise BadImageError(
            f"{path} is compressed ({kind}), and images are read at their places. Unpack it to a "
            f"plain tar"
        )
    samples: list[_Sample] = []
    fields: dict[str, tarfile.TarInfo] = {}
    current = ""
    try:
        with path.open("rb") as stream, tarfile.open(path, "r:") as tar:
            for member in tar:
                key, field = _key_and_field(member, path)
                if not field:
                    continue
                if key != current:
                    samples += _finish(current, fields, path, stream)
                    current, fields = key, {}
                if field in fields:
                    raise BadImageError(f"{path}: {key} has the field {field} twice")
                fields[field] = member
            stream.seek(tar.offset)  # tarfile stops without a word at a header that is damaged
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"its end is not marked at byte {tar.offset}")
            samples += _finish(current, fields, path, stream)
    except tarfile.TarError as error:
        raise BadImageError(f"{path} is no tar, or is cut off ({error}). Fetch it again") from error
    if not samples:
        raise BadImageError(f"{path} holds no samples. Expected members KEY.jpg and KEY.cls")
    return tuple(samples)


def _key_and_field(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """Key and lower-case field of a member, both empty where it belongs to no sample."""
    match = _MEMBER.match(member.name)
    hidden = member.name.rpartition("/")[2].startswith(".")
    if not member.isreg() or member.sparse is not None or hidden or not match:
        return "", ""
    key, field = match[1], match[2].lower()
    if field.rpartition(".")[2] in _UNSAFE:
        raise BadImageError(
            f"{path}: {member.name} is a pickle, which may run code when it is read. Write its "
            f"shards again without it"
        )
    return key, field


def _finish(
    key: str, fields: Mapping[str, tarfile.TarInfo], path: Path, stream: BinaryIO
) -> list[_Sample]:
    """The sample of a key, none where there is no key yet."""
    if not key:
        return []
    images = [field for field in IMAGE_FIELDS if field in fields]
    if len(images) != 1:
        count = "no image" if not images else f"several images ({', '.join(images)})"
        raise BadImageError(
            f"{path}: {key} has {count}; its fields, after the first dot of the name, are "
            f"{', '.join(fields)}"
        )
    image = fields[images[0]]
    label = _label(key, fields, path, stream)
    return [_Sample(key, str(path), image.offset_data, image.size, label)]


def _label(key: str, fields: Mapping[str, tarfile.TarInfo], path: Path, stream: BinaryIO) -> int:
    """Label of a sample: decimal text in `cls`, else `label` or `cls` of its `json`."""
    text = ""
    if "cls" in fields:
        text = _text(fields["cls"], stream).strip()
    elif "json" in fields:
        try:
            table = json.loads(_text(fields["json"], stream))
            text = str(next((table[one] for one in ("label", "cls") if one in table), ""))
        except (ValueError, TypeError) as error:
            raise BadImageError(f"{path}: {key}.json is no JSON table ({error})") from error
    if not (text.isascii() and text.isdecimal()):
        found = f"{text!r}" if text else f"none among {', '.join(fields)}"
        raise BadImageError(
            f"{path}: {key} has no label: found {found}; expected KEY.cls with a number from 0, or "
            f"KEY.json with a `label`"
        )
    if len(text) > _LONGEST_LABEL:  # an id, not a label: a category would be made of each number
        raise BadImageError(
            f"{path}: {key} has the label {text[:20]}; labels number the categories from 0. Write "
            f"their positions"
        )
    return int(text)


def _text(member: tarfile.TarInfo, stream: BinaryIO) -> str:
    stream.seek(member.offset_data)
    return stream.read(member.size).decode("utf-8", "replace")


def _refuse_repeated(samples: Sequence[_Sample]) -> None:
    first: dict[str, str] = {}
    for one in samples:
        if one.key in first:
            raise BadImageError(
                f"{one.shard}: the key {one.key} was seen before, in {first[one.key]}. A sample's "
                f"members must follow each other in one shard: sort them and write it again"
            )
        first[one.key] = one.shard


def _categories(folder: Path, highest: int) -> tuple[str, ...]:
    """Lines of the file of class names beside the shards, or numbers."""
    for file in _CLASS_FILES:
        if (folder / file).is_file():
            try:
                lines = (folder / file).read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise BadImageError(f"{folder / file} is not UTF-8 text ({error})") from error
            return tuple(line.strip() for line in lines if line.strip())
    return tuple(str(i) for i in range(highest + 1))
