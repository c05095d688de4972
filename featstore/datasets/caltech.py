"""Caltech101 and Caltech256: folders of categories, and the divisions that two studies made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from featstore.datasets import lists
from featstore.datasets.files import file_split, image_files
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, MissingDatasetError

_CATEGORY_256 = re.compile(r"(\d{3})\.(.+)")
_IMAGE_256 = re.compile(r"(\d{3})_(\d{4})\.jpg")
_SHARE_OF_TRAIN_256 = 0.8
_TRAIN_101 = 30
_SEED = 0


def read_256(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of Caltech256 as Marks et al. drew it; label = number of the folder - 1.

    There is no official division. All images, in the order of their numbers, category by
    category, are permuted by NumPy's `RandomState(0)`; the first four fifths are train, the rest
    is test, each put back in order. One image less would give another division altogether.

    Raises
    ------
    MissingDatasetError
        The folder, or an image in the midst of a category or by the published number, is absent.
    BadImageError
        The folders are not those of 001 to 257.
    """
    places = ("caltech256", "Caltech256", ".")
    folder = _folder(entry, root, places, "256_ObjectCategories")
    if folder is None:
        raise lists.absent(entry, root, "no 256_ObjectCategories")
    matches = map(_CATEGORY_256.fullmatch, lists.subfolders(folder))
    found = {match[0]: match for match in matches if match}
    lists.check_categories(entry, len(found), folder)
    paths: list[Path] = []
    labels: list[int] = []
    for label, (name, match) in enumerate(found.items()):
        if int(match[1]) != label + 1:
            raise BadImageError(f"{folder} has {name} where {label + 1:03d} should be")
        images = _images_256(folder / name, label + 1)
        paths += images
        labels += [label] * len(images)
    published = sum(entry.n_images.values())
    if published and len(paths) != published:
        raise MissingDatasetError(
            f"{folder} has {len(paths)} images, {published} were published: another number makes "
            f"another division into train and test. Fetch the dataset again"
        )
    order = np.random.RandomState(_SEED).permutation(len(paths))
    n_train = int(_SHARE_OF_TRAIN_256 * len(paths))
    rows = np.sort(order[:n_train] if split == "train" else order[n_train:])
    lists.check_count(entry, split, len(rows))
    return file_split(
        entry.name,
        split,
        folder.parent,
        [paths[row] for row in rows],
        [labels[row] for row in rows],
        [match[2] for match in found.values()],
    )


def _images_256(folder: Path, number: int) -> list[Path]:
    """Images of a category in the order of their numbers, which have no gap."""
    indices = sorted(
        int(match[2])
        for match in map(_IMAGE_256.fullmatch, (path.name for path in folder.iterdir()))
        if match and int(match[1]) == number
    )
    gap = next((want for want, have in enumerate(indices, 1) if want != have), None)
    if gap or not indices:
        missing = folder / f"{number:03d}_{gap or 1:04d}.jpg"
        raise MissingDatasetError(f"{missing} is not there. Fetch the dataset again")
    return [folder / f"{number:03d}_{index:04d}.jpg" for index in indices]


def read_101(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of Caltech101 by the lists `train.txt` and `test.txt` of Ericsson et al.

    All 102 folders are categories, BACKGROUND_Google the first. A line that comes twice is a
    sample twice: the list of 2021 was drawn with replacement, that of 2023 has each image once;
    names and labels make the two different datasets to the store. An entry with `split = "drawn"`
    needs no lists: 30 images of each category are drawn for train, and the others are test.

    Raises
    ------
    MissingDatasetError
        The folder, one list of two, or a listed image is absent.
    BadImageError
        There are not 102 folders, or a list gives an image the label of another folder.
    """
    places = ("caltech101", "Caltech101/caltech101", "Caltech101", "caltech-101", ".")
    folder = _folder(entry, root, places, "101_ObjectCategories")
    if folder is None:
        raise lists.absent(entry, root, "no 101_ObjectCategories")
    categories = lists.subfolders(folder)
    lists.check_categories(entry, len(categories), folder)
    if lists.option(entry, "split", ("published", "drawn"), "published") == "drawn":
        pairs = _draw_101(folder, categories, split)
    else:
        listing = _lists_101(entry, root, folder)
        if listing is None:
            raise MissingDatasetError(
                f"{entry.name}: the study's lists train.txt and test.txt are not at "
                f"{folder.parent}. Place them there (caltech101-splits of "
                f"github.com/linusericsson/ssl-transfer), or take caltech101_drawn, whose scores "
                f"are not comparable with the study's"
            )
        path = listing / f"{split}.txt"
        pairs = lists.read_labelled(entry.name, path, len(categories))
        for name, label in pairs:
            if name.partition("/")[0] != categories[label]:
                raise BadImageError(
                    f"{path} gives {name} the label {label}, which is {categories[label]}. Take "
                    f"the published list"
                )
    lists.check_count(entry, split, len(pairs))
    paths = [folder / name for name, _ in pairs]
    labels = [label for _, label in pairs]
    return file_split(entry.name, split, folder.parent, paths, labels, categories)


def _folder(entry: Entry, root: Path, places: tuple[str, ...], name: str) -> Path | None:
    place = lists.find_place(entry, root, places, lambda folder: (folder / name).is_dir())
    return place and lists.unnested(place / name)


def _lists_101(entry: Entry, root: Path, folder: Path) -> Path | None:
    """Folder with the two lists, at or above the images, but not among other datasets."""
    homes = [home for home in folder.parents if root in home.parents]
    for home in (*homes, root / entry.name):
        for listing in (home, home / "caltech101-splits"):
            if any((listing / f"{name}.txt").is_file() for name in ("train", "test")):
                return listing
    return None


def _draw_101(folder: Path, categories: list[str], split: str) -> list[tuple[str, int]]:
    """Pairs (path, label), drawn from the raw stream of PCG64, which NumPy promises to keep."""
    stream = np.random.PCG64(_SEED)
    pairs = []
    for label, category in enumerate(categories):
        images = image_files(folder / category)
        order = np.argsort(stream.random_raw(len(images)), kind="stable")
        rows = order[:_TRAIN_101] if split == "train" else order[_TRAIN_101:]
        pairs += [(images[row].relative_to(folder).as_posix(), label) for row in np.sort(rows)]
    return pairs
