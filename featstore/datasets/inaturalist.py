"""iNaturalist 2021, the mini release: families, and two subsets of vertebrates and their kin."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featstore.datasets import lists
from featstore.datasets.files import file_split, image_files
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError

log = logging.getLogger(__name__)

_PLACES = ("inaturalist", "inat2021", "iNaturalist", ".")
# The archives' own folder, and what torchvision renames it to.
_FOLDERS = {"train": ("train_mini", "2021_train_mini"), "test": ("val", "2021_valid")}
_RANKS = ("family", "genus", "species")
_PHYLUM = ("Animalia", "Chordata")


class Species(NamedTuple):
    """A species as its folder's name tells it; `number` counts from 0 without gaps."""

    number: int
    folder: str
    kingdom: str
    phylum: str
    family: str
    genus: str
    epithet: str


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split `train` (train_mini) or `test` (the official val), labelled by `options.rank`.

    Categories are the names of the rank in the order in which the sorted folders show them, so
    genera of one name in two families are one. With the option `subset`, only some species are
    in: those in the study's list of folder numbers, `inat_RANK_ids.npy`, beside the images; else
    those that the study's rule gives (`choose`), which the log says. Where `train_mini.json` or
    `val.json` lies beside the images, it says which there are.

    Raises
    ------
    MissingDatasetError
        The folder, or an image that the json lists, is absent.
    BadImageError
        Folders are not named as published, or are not as many; a list does not fit them.
    """
    place = lists.find_place(entry, root, _PLACES, lambda folder: _holds(folder, split))
    if place is None:
        raise lists.absent(entry, root, f"no {_PLACES[0]}/{_FOLDERS[split][0]}")
    folder = _images(place, split)
    listing = place / f"{_FOLDERS[split][0]}.json"
    records = _read_json(listing) if listing.is_file() else None
    species = _parse(folder, lists.subfolders(folder) if records is None else sorted(records))
    rank = lists.option(entry, "rank", _RANKS)
    chosen = species
    if entry.options.get("subset"):
        numbers = _study_ids(place, rank) or _say_chosen(entry, place, species, rank)
        chosen = [one for one in species if one.number in numbers]
        if len(chosen) < len(numbers):
            raise BadImageError(
                f"{place / _id_list(rank)} has numbers that no folder of {folder} has"
            )
    categories, labels = _categories(species, chosen, rank)
    lists.check_categories(entry, len(categories), folder)
    paths: list[Path] = []
    targets: list[int] = []
    for one, label in zip(chosen, labels, strict=True):
        home = folder / one.folder
        files = image_files(home) if records is None else [home / n for n in records[one.folder]]
        paths += files
        targets += [label] * len(files)
    lists.check_count(entry, split, len(paths))
    # One name for an image, whichever name its folder has.
    ids = [f"{_FOLDERS[split][0]}/{path.relative_to(folder).as_posix()}" for path in paths]
    return file_split(entry.name, split, place, paths, targets, categories, ids=ids)


def choose(species: Sequence[Species], rank: str, wanted: int) -> list[int]:
    """Folder numbers of the study's subset of so many genera or species, all of them Chordata.

    The study's rule: of the 265 families with most species, one species of each genus; and of
    these families' 277 genera with most species, one species of each epithet: 1,103 either way.
    It took the first in the order in which a disk listed the folders, and left ties to a sort
    that does not keep their order. Ours where it says nothing: the first is that of the lowest
    number, so is the family or genus that goes first of those with as many species, and what
    ends both lists is their length, `wanted`, instead of 265 and 277.
    """
    members = [one for one in species if (one.kingdom, one.phylum) == _PHYLUM]
    genera: dict[str, Species] = {}
    for family in _largest_first(members, "family"):
        for one in family:
            if len(genera) < wanted:
                genera.setdefault(one.genus, one)
    if rank == "genus":
        return sorted(one.number for one in genera.values())
    epithets: dict[str, int] = {}
    for genus in _largest_first([one for one in members if one.genus in genera], "genus"):
        for one in genus:
            if len(epithets) < wanted:
                epithets.setdefault(one.epithet, one.number)
    return sorted(epithets.values())


def _largest_first(species: Sequence[Species], rank: str) -> list[list[Species]]:
    """Species by the name of a rank, the name with most first, of equal ones that seen first."""
    groups: dict[str, list[Species]] = {}
    for one in species:
        groups.setdefault(getattr(one, rank), []).append(one)
    return sorted(groups.values(), key=lambda group: -len(group))


def _say_chosen(entry: Entry, place: Path, species: Sequence[Species], rank: str) -> set[int]:
    chosen = set(choose(species, rank, entry.categories))
    log.warning(
        "%s: the study's list %s is not in %s: %d species are taken by its rule, which leaves "
        "some of them open, so scores are not quite comparable with the study's",
        entry.name,
        _id_list(rank),
        place,
        len(chosen),
    )
    return chosen


def _id_list(rank: str) -> str:
    return f"inat_{rank}_ids.npy"


def _study_ids(place: Path, rank: str) -> set[int] | None:
    """Folder numbers of the study's own list, or None where it is absent."""
    path = place / _id_list(rank)
    if not path.is_file():
        return None
    try:
        numbers = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadImageError(f"{path} is no array of numbers ({error}). Fetch it again") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise BadImageError(
            f"{path} is a {numbers.ndim}-d array of {numbers.dtype}; expected a row of integers"
        )
    return {int(number) for number in numbers}


def _categories(
    species: Sequence[Species], chosen: Sequence[Species], rank: str
) -> tuple[list[str], list[int]]:
    """Names of the categories, in the order in which all folders show them, and a label each."""

    def name(one: Species) -> str:
        if rank == "species":  # an epithet alone, even a binomial, may come twice
            return f"{one.number:05d} {one.genus} {one.epithet}"
        return str(getattr(one, rank))

    present = {name(one) for one in chosen}
    categories = [one for one in dict.fromkeys(map(name, species)) if one in present]
    positions = {category: label for label, category in enumerate(categories)}
    return categories, [positions[name(one)] for one in chosen]


def _parse(folder: Path, names: Sequence[str]) -> list[Species]:
    """Species of sorted folder names, which are numbered from 0 without gaps."""
    species = []
    for position, name in enumerate(names):
        pieces = name.split("_")
        if len(pieces) != 8 or pieces[0] != f"{position:05d}":
            raise BadImageError(
                f"{folder} has {name} where {position:05d}_KINGDOM_PHYLUM_CLASS_ORDER_FAMILY_GENUS"
                f"_EPITHET should be: a folder is missing or is none of the published ones"
            )
        species.append(Species(position, name, *pieces[1:3], *pieces[5:]))
    return species


def _read_json(path: Path) -> dict[str, list[str]]:
    """Sorted file names of each folder, from the release's own json."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        folders = {int(one["id"]): str(one["image_dir_name"]) for one in content["categories"]}
        shown = {int(one["image_id"]): int(one["category_id"]) for one in content["annotations"]}
        found: dict[str, list[str]] = {name: [] for name in folders.values()}
        for image in content["images"]:
            home, name = str(image["file_name"]).split("/")[-2:]
            if home != folders[shown[int(image["id"])]]:
                raise ValueError(f"{image['file_name']} is annotated as another species")
            found[home].append(name)
    except (LookupError, TypeError, ValueError) as error:
        raise BadImageError(
            f"{path} is not the release's json ({error!r}). Fetch it again"
        ) from error
    return {name: sorted(files) for name, files in found.items()}


def _images(place: Path, split: str) -> Path:
    """Folder of a split's species, by either name."""
    found = (place / name for name in _FOLDERS[split] if (place / name).is_dir())
    return lists.unnested(next(found, place / _FOLDERS[split][0]))


def _holds(folder: Path, split: str) -> bool:
    """Whether a folder holds species; other datasets have folders called `val` as well."""
    images = _images(folder, split)
    return images.is_dir() and any(name.count("_") == 7 for name in lists.subfolders(images))
