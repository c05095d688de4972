"""DomainNet: 345 categories in six domains, with the official lists of the cleaned release."""

from __future__ import annotations

from pathlib import Path

from featstore.datasets import lists
from featstore.datasets.files import file_split
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, MissingDatasetError

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

_CHECKSUMS = {
    "clipart.zip": "md5:cd0d8f2d77a4e181449b78ed62bccf1e",
    "infograph.zip": "md5:720380b86f9e6ab4805bb38b6bd135f8",
    "painting.zip": "md5:1ae32cdb4f98fe7ab5eb0a351768abfd",
    "quickdraw.zip": "md5:bdc1b6f09f277da1a263389efe0c7a66",
    "real.zip": "md5:dcc47055e8935767784b7162e7c7cca6",
    "sketch.zip": "md5:658d8009644040ff7ce30bb2e820850f",
    "clipart_train.txt": "md5:b4349693a7f9c05c53955725c47ed6cb",
    "infograph_train.txt": "md5:379b50054f4ac2018dca4f89421b92d9",
    "painting_train.txt": "md5:7db0e7ca73ad9982f6e1f7f3ef372c0a",
    "quickdraw_train.txt": "md5:b732ced3939ac8efdd8c0a889dca56cc",
    "real_train.txt": "md5:8ebf02c2075fadd564705f0dc7cd6291",
    "sketch_train.txt": "md5:1233bd18aa9a8a200bf4cecf1c34ef3e",
    "clipart_test.txt": "md5:f5ddbcfd657a3acf9d0f7da10db22565",
    "infograph_test.txt": "md5:779626b50869edffe8ea6941c3755c71",
    "painting_test.txt": "md5:232b35dc53f26d414686ae579e38d9b5",
    "quickdraw_test.txt": "md5:c1a828fdfe216fb109f1c0083a252c6f",
    "real_test.txt": "md5:6098816791c3ebed543c71ffa11b9054",
    "sketch_test.txt": "md5:d8a222e4672cfd585298aa14d02ea441",
}
_FOLDER = "domainnet"
_LIST_FOLDERS = (".", "splits", "txt", "domainnet/txt")


def read(entry: Entry, split: str, root: Path, *, download: bool) -> ImageSplit:
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
    if download and (place is None or not _complete(place, domain, name)):
        lists.fetch(entry, root / _FOLDER, _CHECKSUMS)
        place = _find(entry, root, domain, name)
    if place is None:
        raise lists.absent(entry, root, f"{_FOLDER}/{domain} and no {_FOLDER}/{name}")
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
