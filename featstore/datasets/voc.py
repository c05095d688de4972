"""PASCAL VOC: one label for each image of the 2012 segmentation set, and the labels of 2007."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from featstore.datasets import lists
from featstore.datasets.files import file_split
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, MissingDatasetError

CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The 20 categories in the order of their labels, in every year."""

_VOID = 255
_DIFFICULT = {"negative": 0, "ignore": -1}


def read_segmentation(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split `train` or `test` (the official val) of VOC2012's segmentation set.

    The label is the category with most pixels in the mask, the lowest one where two have as many;
    background and void do not count. This is how Marks et al. make a single-label set of it.

    Raises
    ------
    MissingDatasetError
        The folder, its list, a listed image or its mask is absent.
    BadImageError
        A mask is no palette image of VOC's, or shows nothing but background and void.
    """
    official = {"train": "train", "test": "val"}[split]
    wanted = f"ImageSets/Segmentation/{official}.txt"
    place = _find(entry, root, "VOC2012", wanted)
    ids = lists.read_lines(entry.name, place / wanted)
    labels = [_largest(place / "SegmentationClass" / f"{one}.png") for one in ids]
    lists.check_count(entry, split, len(ids))
    paths = [place / "JPEGImages" / f"{one}.jpg" for one in ids]
    return file_split(entry.name, split, place, paths, labels, CATEGORIES)


def _largest(path: Path) -> int:
    """Label of the category that has most pixels in a mask."""
    try:
        with Image.open(path) as mask:
            mode, pixels = mask.mode, np.asarray(mask)
    except FileNotFoundError as error:
        raise MissingDatasetError(
            f"the mask {path} is not there. Fetch the dataset again"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise BadImageError(f"{path} is no mask that can be read ({error})") from error
    if mode not in ("P", "L"):
        raise BadImageError(f"{path} has {mode} pixels; a mask of VOC's holds palette indices")
    counts = np.bincount(pixels.ravel(), minlength=_VOID + 1)
    counts[[0, _VOID]] = 0
    strange = np.flatnonzero(counts[len(CATEGORIES) + 1 :])
    if strange.size:
        value = strange[0] + len(CATEGORIES) + 1
        raise BadImageError(f"{path} has the value {value}; a mask of VOC's has 0..20 and 255")
    if not counts.any():
        raise BadImageError(f"{path} shows no category: all of it is background or void")
    return int(counts.argmax()) - 1


def read_classification(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split `train`, `val` or `test` of VOC2007 with labels (n, 20): 1 present, 0 absent.

    An image that shows a category only in `difficult` instances counts as without it, or has -1
    there with the option `difficult = "ignore"`, as the official evaluation has it.

    Raises
    ------
    MissingDatasetError
        The folder, one of the 21 lists of the split, or a listed image is absent.
    BadImageError
        A category's list lacks an image of the split, or says neither -1, 0 nor 1 of it.
    CatalogueError
        The option `difficult` is neither `negative` nor `ignore`.
    """
    option = lists.option(entry, "difficult", _DIFFICULT, "negative")
    values = {"1": 1, "-1": 0, "0": _DIFFICULT[option]}
    place = _find(entry, root, "VOC2007", f"ImageSets/Main/{split}.txt")
    folder = place / "ImageSets" / "Main"
    ids = lists.read_lines(entry.name, folder / f"{split}.txt")
    labels = np.zeros((len(ids), len(CATEGORIES)), np.int8)
    for column, category in enumerate(CATEGORIES):
        path = folder / f"{category}_{split}.txt"
        table = lists.read_table(entry.name, path)
        for row, one in enumerate(ids):
            found = table.get(one)
            if found not in values:
                raise BadImageError(f"{path} says {found} of the image {one}; expected -1, 0 or 1")
            labels[row, column] = values[found]
    lists.check_count(entry, split, len(ids))
    paths = [place / "JPEGImages" / f"{one}.jpg" for one in ids]
    return file_split(entry.name, split, place, paths, labels, CATEGORIES)


def _find(entry: Entry, root: Path, year: str, wanted: str) -> Path:
    """Folder of a year that has a split's list; train/val and test come in separate archives."""
    places = [
        *(f"VOCdevkit/{year}", f"VOC/VOCdevkit/{year}", f"{year}/VOCdevkit/{year}"),
        *(f"TrainVal/VOCdevkit/{year}", year),
    ]
    place = lists.find_place(
        entry, root, places, lambda one: (one / wanted).is_file()
    ) or lists.find_place(entry, root, places, lambda one: (one / "JPEGImages").is_dir())
    if place is None:
        raise lists.absent(entry, root, f"no VOCdevkit/{year}/{wanted}")
    return place
