"""Published sets by their own lists and folders.

Torchvision orders the classes of some otherwise than the archive does, or takes them from whatever
one split lists.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from featstore.datasets.files import file_split, flatten, read_classes, split_by_class
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.lists import (
    check_categories,
    check_count,
    find_any,
    first_line,
    incomplete,
    read_lines,
    subfolders,
)
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, CatalogueError, FeatStoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """Files of a split with their labels, and the names of all categories."""

    paths: Sequence[Path]
    labels: Sequence[int]
    categories: Sequence[str]


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of a catalogue entry.

    Raises
    ------
    MissingDatasetError
        The dataset, one of its lists or an image is not there.
    BadImageError
        A list names a class that does not exist, or cannot be understood.
    """
    name = entry.name
    if name not in SOURCES:
        raise CatalogueError(f"{name}: the reader {entry.reader!r} reads {', '.join(SOURCES)}")
    base = find_any(entry, root)
    try:
        listing = SOURCES[name](name, base, split)
    except FeatStoreError:
        raise
    except (ValueError, LookupError, TypeError, OSError, MatReadError) as error:
        raise BadImageError(
            f"{name}: the lists below {base} cannot be understood ({first_line(error)}). Remove "
            f"them and fetch the dataset again"
        ) from error
    check_categories(entry, len(listing.categories), base)
    check_count(entry, split, len(listing.paths))
    return file_split(name, split, root, listing.paths, listing.labels, listing.categories)


def _label(name: str, positions: dict[str, int], category: str, place: Path) -> int:
    if category not in positions:
        raise BadImageError(
            f"{name}: {place} has the class {category!r}, which is none of its "
            f"{len(positions)}. Fetch the dataset again"
        )
    return positions[category]


def _by_name(
    name: str, place: Path, pairs: Sequence[tuple[Path, str]], categories: Sequence[str]
) -> Listing:
    """Listing of files with the names of their classes."""
    positions = {category: i for i, category in enumerate(categories)}
    labels = [_label(name, positions, category, place) for _, category in pairs]
    return Listing([path for path, _ in pairs], labels, categories)


def _food101(name: str, base: Path, split: str) -> Listing:
    """Labels by the archive's classes.txt: sorted, cheese_plate would come before cheesecake."""
    listing, keyed = base / "meta" / f"{split}.txt", base / "meta" / f"{split}.json"
    if listing.exists() or not keyed.exists():
        files = read_lines(name, listing)
    else:
        files = [file for members in json.loads(keyed.read_text()).values() for file in members]
    pairs = [(base / "images" / f"{file}.jpg", file.split("/")[0]) for file in files]
    categories = read_lines(name, base / "meta" / "classes.txt")
    return _by_name(name, listing, pairs, categories)


def _dtd(name: str, base: Path, split: str) -> Listing:
    """Split 1 of ten; the classes are the folders, whichever of them a list happens to name."""
    if not (base / "images").is_dir():
        raise incomplete(name, base / "images")
    listing = base / "labels" / f"{split}1.txt"
    pairs = [(base / "images" / line, line.split("/")[0]) for line in read_lines(name, listing)]
    return _by_name(name, listing, pairs, subfolders(base / "images"))


def _aircraft(name: str, base: Path, split: str) -> Listing:
    """Variants: lines of variants.txt, with spaces and slashes."""
    categories = read_lines(name, base / "variants.txt")
    listing = base / f"images_variant_{split}.txt"
    lines = [line.split(maxsplit=1) for line in read_lines(name, listing)]
    pairs = [(base / "images" / f"{image}.jpg", variant) for image, variant in lines]
    return _by_name(name, listing, pairs, categories)


def _pets(name: str, base: Path, split: str) -> Listing:
    """Class ids from 1, alphabetical whatever the case."""
    lines = {
        part: [line.split() for line in read_lines(name, base / "annotations" / f"{part}.txt")]
        for part in ("trainval", "test")
    }
    names = {
        int(words[1]): words[0].rpartition("_")[0] for rows in lines.values() for words in rows
    }
    strange = set(range(1, len(names) + 1)) - set(names)
    if strange:
        raise ValueError(f"no image has the class id {min(strange)}")
    rows = lines["trainval" if split == "train" else "test"]
    return Listing(
        [base / "images" / f"{words[0]}.jpg" for words in rows],
        [int(words[1]) - 1 for words in rows],
        [names[i].replace("_", " ").title() for i in sorted(names)],
    )


def _cars(name: str, base: Path, split: str) -> Listing:
    """MATLAB struct arrays; `class` counts from 1, in the order of cars_meta.mat."""
    devkit = base / "devkit"
    places = {
        "train": [devkit / "cars_train_annos.mat"],
        "test": [folder / "cars_test_annos_withlabels.mat" for folder in (base, devkit)],
    }[split]
    place = next((path for path in places if path.exists()), places[0])
    for path in (devkit / "cars_meta.mat", place):
        if not path.exists():
            raise incomplete(name, path)
    rows = np.atleast_1d(loadmat(place, squeeze_me=True)["annotations"])
    if "class" not in (rows.dtype.names or ()):
        raise BadImageError(
            f"{name}: {place} holds no classes. It is the list for submissions; take "
            f"cars_test_annos_withlabels.mat"
        )
    names = loadmat(devkit / "cars_meta.mat", squeeze_me=True)["class_names"]
    return Listing(
        [base / f"cars_{split}" / str(row["fname"]) for row in rows],
        [int(row["class"]) - 1 for row in rows],  # int first: it may be uint8
        [str(one) for one in np.atleast_1d(names)],
    )


def _eurosat(name: str, base: Path, split: str) -> Listing:
    """No official split: a seeded fifth of each class is for testing."""
    members = read_classes(base)
    categories = sorted(members)
    paths, labels = flatten(members, categories)
    rows = split_by_class(np.array(labels))[split == "test"]
    return Listing([paths[i] for i in rows], [labels[i] for i in rows], categories)


def _sun397(name: str, base: Path, split: str) -> Listing:
    """First official partition; the class is what stands between the letter and the file."""
    listing = _sun397_list(base, "Training_01.txt" if split == "train" else "Testing_01.txt")
    lines = [line.lstrip("/") for line in read_lines(name, listing)]
    names = read_lines(name, _sun397_list(base, "ClassName.txt"))
    categories = [line.lstrip("/").split("/", 1)[1] for line in names]
    pairs = [(base / line, "/".join(line.split("/")[1:-1])) for line in lines]
    return _by_name(name, listing, pairs, categories)


def _sun397_list(base: Path, file: str) -> Path:
    """Its list beside the images or in a folder of lists; beside the images if it is nowhere."""
    folders = (base, base / "Partitions", base.parent / "Partitions")
    return next((path for path in (f / file for f in folders) if path.exists()), base / file)


SOURCES: dict[str, Callable[[str, Path, str], Listing]] = {
    "dtd": _dtd,
    "eurosat": _eurosat,
    "fgvc_aircraft": _aircraft,
    "food101": _food101,
    "oxford_pets": _pets,
    "stanford_cars": _cars,
    "sun397": _sun397,
}
"""Readers of the sets' lists, called as (set, folder, split)."""
