"""What readers of published layouts share: where a dataset lies, and its lists."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import BadImageError, CatalogueError, MissingDatasetError
from featstore.home import expanded

if TYPE_CHECKING:  # names asks here whether a dataset is there
    from featstore.datasets.names import Entry

log = logging.getLogger(__name__)

HUB_NAME = re.compile(r"^(?!\.)[\w.-]+(/[\w.-]+){0,2}$")
"""What can be the name of a dataset on the Hugging Face hub, with a configuration or without."""

_OWN_FILES = {
    "folder": ("*/*",),
    "webdataset": ("*.tar",),
    "huggingface": ("*.parquet", "data/*.parquet"),
}


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
    candidates = (one for place in places for one in _candidates(entry.name, root, place))
    return next((folder for folder in candidates if holds(folder)), None)


def _candidates(name: str, root: Path, place: str) -> Iterator[Path]:
    for base in (root / name / place, root / place):
        yield from (base, base / base.name)


def find_whole(entry: Entry, root: Path) -> Path | None:
    """First folder that holds what an entry is `found_by`, or None."""
    for place, marks in _marks(entry):
        for folder in _candidates(entry.name, root, place):
            if all(any((folder / one).exists() for one in mark) for mark in marks):
                return folder
    return None


def find_any(entry: Entry, root: Path) -> Path:
    """As `find_whole`, else the first folder that exists of those that would hold it.

    Raises
    ------
    MissingDatasetError
        None does.
    """
    places = [place for place, _ in _marks(entry)]
    found = find_whole(entry, root) or find_place(entry, root, places, Path.is_dir)
    if found is None:
        raise absent(entry, root, f"no folder {root / places[0]}")
    return found


def _marks(entry: Entry) -> Iterator[tuple[str, list[list[str]]]]:
    """Places of an entry, each with the marks that all must be in it, in one form or another."""
    for one in entry.found_by:
        place, _, marks = one.rpartition("//")
        yield place, [[form.strip() for form in mark.split("|")] for mark in marks.split(",")]


def is_there(entry: Entry, root: Path) -> bool:
    """Whether an entry's files lie where its reader looks; a look at a folder or two."""
    if entry.reader not in _OWN_FILES:
        return find_whole(entry, root) is not None
    place = str(Path(entry.folder, expanded(entry.path)))
    if entry.reader == "webdataset" and not Path(place).is_dir():
        return bool(glob.glob(re.sub(r"\{[^{}]*\}", "*", place)))  # noqa: PTH207 - of any root
    patterns = _OWN_FILES[entry.reader]
    if any(next(Path(place).glob(pattern), None) for pattern in patterns):
        return True
    return is_on_hub(entry) and _in_hub_cache(entry.path)


def is_on_hub(entry: Entry) -> bool:
    """Whether an entry is named by its place on the Hugging Face hub."""
    there = Path(entry.folder, expanded(entry.path)).is_dir()
    return entry.reader == "huggingface" and not there and bool(HUB_NAME.match(entry.path))


def _in_hub_cache(name: str) -> bool:
    """Whether the package `datasets` keeps a dataset, in OWNER___NAME/CONFIG; not imported."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = expanded(os.environ.get("HF_DATASETS_CACHE") or f"{home}/datasets")
    parts = name.split("/")
    wanted = "".join(parts[:2]).replace("_", "").lower()  # it turns CamelCase into snake_case
    return any(
        folder.name.replace("_", "").lower() == wanted
        for folder in cache.glob("*")
        if any(folder.glob(parts[2] if len(parts) > 2 else "*"))
    )


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


def absent(entry: Entry, root: Path, reason: object) -> MissingDatasetError:
    """Error for a dataset that is not below `root`, with the command that fetches it, if any."""
    how = (
        f"Fetch it: featstore datasets {entry.name} --download --data-root {root}"
        if entry.urls
        else "No program can fetch it: place its files there by hand"
    )
    return MissingDatasetError(f"{entry.name} is not below {root} ({reason}). {how}")


def incomplete(name: str, missing: Path) -> MissingDatasetError:
    """Error for a dataset that lacks a file or a folder."""
    return MissingDatasetError(
        f"{name} is not whole: {missing} is missing. Put it there, or fetch the dataset again"
    )


def first_line(error: Exception) -> str:
    """First line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


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
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise incomplete(dataset, path) from error
    except UnicodeDecodeError as error:
        raise BadImageError(f"{path} is no list in UTF-8 ({error}). Fetch it again") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


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
