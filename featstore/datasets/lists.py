"""What readers of published layouts share: finding and fetching a folder, reading its lists."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torchvision.datasets.utils import download_url, extract_archive

from featstore.datasets import fetching
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, CatalogueError, MissingDatasetError

log = logging.getLogger(__name__)

_DAMAGED = (EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def option(entry: Entry, name: str, known: Collection[str], default: str = "") -> str:
    """Value of an entry's option; raises CatalogueError for one that the reader does not know."""
    value = entry.options.get(name, default)
    if value not in known:
        raise CatalogueError(
            f"{entry.name} has {name} = {value!r}; its reader knows {', '.join(known)}"
        )
    return str(value)


def find_place(
    entry: Entry, root: Path, places: Sequence[str], holds: Callable[[Path], bool]
) -> Path | None:
    """First folder that holds what is wanted, or None.

    Looked for in `root/PLACE` and `root/NAME/PLACE`, and in `X/X` for each such folder X, since
    archives are often unpacked into a folder of their own name.
    """
    for place in places:
        for base in (root / entry.name / place, root / place):
            for folder in (base, base / base.name):
                if holds(folder):
                    return folder
    return None


def unnested(folder: Path) -> Path:
    """`X/X` where there is one, else X."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder by code point, without hidden ones and `__MACOSX`."""
    return sorted(
        child.name
        for child in folder.iterdir()
        if not child.name.startswith((".", "__MACOSX")) and child.is_dir()
    )


def fetch(
    entry: Entry, folder: Path, checksums: Mapping[str, str], urls: Iterable[str] | None = None
) -> None:
    """Download files into a folder, and unpack there those that are archives.

    Parameters
    ----------
    checksums : by file name, `md5:HEX` or `sha256:HEX`
    urls : by default all of the entry

    Raises
    ------
    MissingDatasetError
        A file could not be fetched, is not the published one, or cannot be unpacked.
    """

    def get() -> None:
        for url in entry.urls if urls is None else urls:
            name = url.rpartition("/")[2]
            kind, _, digest = checksums.get(name, "").partition(":")
            download_url(url, str(folder), name, digest if kind == "md5" else None)
            if kind == "sha256" and _sha256(folder / name) != digest:
                (folder / name).unlink()  # else it would pass for fetched the next time
                raise RuntimeError(f"{name} is not the published file")
            if Path(name).suffix == ".txt":
                continue
            try:
                extract_archive(str(folder / name), str(folder))
            except _DAMAGED as error:
                raise RuntimeError(f"{folder / name} cannot be unpacked: {error}") from error

    fetching.fetch(entry.name, folder, get)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def absent(entry: Entry, root: Path, wanted: str) -> MissingDatasetError:
    """Error for a dataset whose folder is nowhere; says how to get it, where a program can."""
    return fetching.absent(entry.name, root, f"no {wanted}", by_program=bool(entry.urls))


def read_lines(dataset: str, path: Path) -> list[str]:
    """Lines of a list that hold something, without spaces and line ends around them.

    Raises
    ------
    MissingDatasetError
        There is no such list.
    BadImageError
        It is no text.
    """
    try:
        return fetching.read_list(dataset, path.parent, path)
    except UnicodeDecodeError as error:
        raise BadImageError(f"{path} is no list in UTF-8 ({error}). Fetch it again") from error


def read_labelled(dataset: str, path: Path, n_categories: int) -> list[tuple[str, int]]:
    """Pairs (path, label) of a list with lines `some path.jpg 0`; a path may hold spaces.

    Raises
    ------
    MissingDatasetError
        There is no such list.
    BadImageError
        A line has no label, or one that is not in 0..n_categories-1.
    """
    pairs = []
    for line in read_lines(dataset, path):
        name, _, label = line.replace("\t", " ").rpartition(" ")
        if not name or not label.isdecimal():
            raise BadImageError(f"{path} has the line {line!r}; expected PATH LABEL")
        if int(label) >= n_categories:
            raise BadImageError(
                f"{path} gives {name.strip()} the label {label}; labels lie in "
                f"0..{n_categories - 1}. Take the published list"
            )
        pairs.append((name.strip(), int(label)))
    return pairs


def read_table(dataset: str, path: Path) -> dict[str, str]:
    """What stands behind the first word of each line `id some name`, by that word.

    Raises
    ------
    MissingDatasetError
        There is no such list.
    BadImageError
        A line is one word, or a word comes twice.
    """
    table: dict[str, str] = {}
    for line in read_lines(dataset, path):
        words = line.split(maxsplit=1)
        if len(words) < 2 or words[0] in table:
            fault = "says nothing" if len(words) < 2 else "comes twice"
            raise BadImageError(f"{path}: {words[0]!r} {fault}. Fetch the dataset again")
        table[words[0]] = words[1]
    return table


def check_count(entry: Entry, split: str, found: int) -> None:
    """Say in the log where a split holds another number of images than was published.

    Raises
    ------
    MissingDatasetError
        It holds none.
    """
    if not found:
        raise MissingDatasetError(f"{entry.name} {split} has no image. Fetch the dataset again")
    published = entry.n_images.get(split)
    if published and found != published:
        log.warning(
            "%s %s has %d images here, %d were published: scores on it are not comparable with "
            "others' until that is understood",
            entry.name,
            split,
            found,
            published,
        )


def check_categories(entry: Entry, found: int, where: Path) -> None:
    """Refuse another number of categories than was published, since labels would shift."""
    if entry.categories and found != entry.categories:
        raise BadImageError(
            f"{where} has {found} categories, {entry.name} has {entry.categories}: labels would "
            f"shift. Fetch the dataset again"
        )
