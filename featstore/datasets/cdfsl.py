"""Target sets of cross-domain few-shot learning: CropDiseases, ISIC 2018 and ChestX.

None has a split. A seeded fifth of each class is for testing; what draws episodes from a pool takes
both splits together.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from featstore.datasets.files import file_split, flatten, image_files, read_classes, split_by_class
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.lists import check_categories, find_any, incomplete
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, CatalogueError

log = logging.getLogger(__name__)

Pool = tuple[Sequence[Path], Sequence[int], Sequence[str]]

_LESIONS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
_FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax",
)  # fmt: skip
_ISIC = "ISIC2018_Task3_Training"


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split of a catalogue entry; none can be fetched by program.

    Raises
    ------
    MissingDatasetError
        The dataset, its table or an image is not there.
    BadImageError
        A row of its table is not as it should be; names the image.
    """
    name = entry.name
    if name not in _POOLS:
        raise CatalogueError(f"{name}: the reader {entry.reader!r} reads {', '.join(_POOLS)}")
    base = find_any(entry, root)
    paths, labels, categories = _POOLS[name](name, base)
    check_categories(entry, len(categories), base)
    expected = sum(entry.n_images.values())
    if expected and len(paths) != expected:
        log.warning("%s has %d images here, %d were expected", name, len(paths), expected)
    rows = split_by_class(np.array(labels))[split == "test"]
    return file_split(
        name, split, root, [paths[i] for i in rows], [labels[i] for i in rows], categories
    )


def _crop_diseases(name: str, base: Path) -> Pool:
    """Class folders of `dataset/train`; `dataset/test` is left out."""
    folder = base / "dataset" / "train"
    if not folder.is_dir():
        raise incomplete(name, folder)
    members = read_classes(folder)
    categories = sorted(members)
    return *flatten(members, categories), categories


def _isic2018(name: str, base: Path) -> Pool:
    """One-hot columns of a table, found by their names: copies differ in their order."""
    table = base / f"{_ISIC}_GroundTruth" / f"{_ISIC}_GroundTruth.csv"
    rows = _table(name, table)
    header = next(rows, [])
    absent_columns = [one for one in ("image", *_LESIONS) if one not in header]
    if absent_columns:
        raise BadImageError(
            f"{name}: {table} has no column {absent_columns[0]}; its header is {','.join(header)}. "
            f"Take the table of task 3"
        )
    at = [header.index(one) for one in _LESIONS]
    image = header.index("image")
    paths, labels = [], []
    for row in rows:
        try:
            values = [float(row[i]) for i in at]
        except (ValueError, IndexError):
            values = []
        if sorted(values) != [0.0] * (len(_LESIONS) - 1) + [1.0]:
            raise BadImageError(
                f"{name}: {table} gives {row[image] if image < len(row) else row} no class or "
                f"several: {','.join(row)}. Fetch the table again"
            )
        paths.append(base / f"{_ISIC}_Input" / f"{row[image]}.jpg")
        labels.append(values.index(1.0))
    return paths, labels, _LESIONS


def _chestx(name: str, base: Path) -> Pool:
    """Images of exactly one of seven findings; of a table's columns only the first two are used.

    Images lie flat in `images`, or in the parts that the archives unpack to.
    """
    table = base / "Data_Entry_2017.csv"
    rows = _table(name, table)
    header = next(rows, [])
    if header[:2] != ["Image Index", "Finding Labels"]:
        raise BadImageError(
            f"{name}: {table} starts with {','.join(header[:2])!r}, not with 'Image Index,Finding "
            f"Labels'. Take the published Data_Entry_2017.csv"
        )
    places = {path.name: path for path in reversed(image_files(base))}
    paths, labels = [], []
    for row in rows:
        if len(row) < 2:
            raise BadImageError(f"{name}: {table} has the row {','.join(row)!r} without a finding")
        if row[1] in _FINDINGS:
            paths.append(places.get(row[0], base / "images" / row[0]))
            labels.append(_FINDINGS.index(row[1]))
    return paths, labels, _FINDINGS


def _table(name: str, path: Path) -> Iterator[list[str]]:
    """Rows of a CSV as text, without empty ones."""
    if not path.exists():
        raise incomplete(name, path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    return (row for row in rows if any(row))


_POOLS: dict[str, Callable[[str, Path], Pool]] = {
    "chestx": _chestx,
    "crop_diseases": _crop_diseases,
    "isic2018": _isic2018,
}
