"""DomainNet: 345 categories in six domains, with the official lists of the cleaned release."""

from __future__ import annotations

from pathlib import Path

from featstore.datasets import lists
from featstore.datasets.files import file_split
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, MissingDatasetError

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

_FOLDER = "domainnet"
_LIST_FOLDERS = (".", "splits", "txt", "domainnet/txt")


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split `train` or `test` of a domain, in the order of its list, with the list's labels.

    All six domains have the same 345 categories, whichever of them a list shows. The folders
    alone would give other labels: they sort by code point, the lists do not.

    Raises
    ------
    MissingDatasetError
        The folder, the list, or a listed image is absent.
    CatalogueError
        The entry's option `domain` is none of the six.
    BadImageError
        A line of the list is of another domain, or its label is not that of its folder.
    """
    domain = lists.option(entry, "domain", DOMAINS)
    name = f"{domain}_{split}.txt"
    place = _find(entry, root, domain, name)
    if place is None:
        raise lists.absent(entry, root, f"no {_FOLDER}/{domain} and no {_FOLDER}/{name}")
    categories = read_categories()
    listing = _list(place, name) or place / name
    pairs = lists.read_labelled(entry.name, listing, len(categories))
    for path, label in pairs:
        parts = path.split("/")
        if len(parts) != 3 or parts[0] != domain:
            raise BadImageError(f"{listing} lists {path}; expected {domain}/CATEGORY/IMAGE")
        if _key(parts[1]) != _key(categories[label]):
            raise BadImageError(
                f"{listing} gives {path} the label {label}, which is {categories[label]}. Take "
                f"the official list"
            )
    absent = [path for path, _ in pairs if not (place / path).exists()]
    if absent:
        raise MissingDatasetError(
            f"{listing} lists {absent[0]}, which is not below {place} ({len(absent)} of "
            f"{len(pairs)} are absent): the download is partial, or images and lists are of two "
            f"releases. Fetch both from one, the cleaned one"
        )
    lists.check_count(entry, split, len(pairs))
    paths = [place / path for path, _ in pairs]
    return file_split(entry.name, split, place, paths, [one for _, one in pairs], categories)


def read_categories() -> tuple[str, ...]:
    """The 345 names in the order of their labels."""
    path = Path(__file__).with_name("catalogue") / "domainnet.txt"
    return tuple(path.read_text(encoding="utf-8").split())


def _key(name: str) -> str:
    """What the names are sorted by; copies of the data differ in nothing else."""
    return name.lower().replace("_", "").replace("-", "")


def _list(place: Path, name: str) -> Path | None:
    found = (place / folder / name for folder in _LIST_FOLDERS)
    return next((path for path in found if path.is_file()), None)


def _complete(place: Path, domain: str, name: str) -> bool:
    return (place / domain).is_dir() and _list(place, name) is not None


def _find(entry: Entry, root: Path, domain: str, name: str) -> Path | None:
    """Folder with images and list, else with one of them."""
    places = (_FOLDER, "DomainNet", ".")

    def has_part(folder: Path) -> bool:
        return (folder / domain).is_dir() or _list(folder, name) is not None

    whole = lists.find_place(entry, root, places, lambda one: _complete(one, domain, name))
    return whole or lists.find_place(entry, root, places, has_part)
