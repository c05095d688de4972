"""A dataset's files: fetched, checked, unpacked; each is whole in its place or not there at all."""

from __future__ import annotations

import fcntl
import gzip
import shutil
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from featstore.datasets.names import Entry
from featstore.errors import FetchError, MissingDatasetError
from featstore.fetch import Progress, fetch, inside

_TARS = (".tar", ".tar.gz", ".tgz")
_ARCHIVES = (*_TARS, ".zip", ".gz")
# What reading a damaged archive raises; ValueError of a name that leads out of the folder.
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError),
    *(ValueError, LookupError, RuntimeError),
)


def fetch_files(
    entry: Entry, split: str, root: Path, progress: Progress | None = None
) -> Iterator[Path]:
    """Fetch and unpack what a split of an entry needs, one file after the other; yields each.

    Raises
    ------
    MissingDatasetError
        A file could not be fetched, is not the published one, or cannot be unpacked.
    """
    for url, path, known in _files(entry, split, root):
        hashes = {name: known[name] for name in ("md5", "sha256") if name in known}
        try:
            fetch([url], path, progress=progress, **hashes)
        except FetchError as error:
            raise MissingDatasetError(f"{entry.name}: {error}") from error
        unpack(path, path.parent, progress)
        yield path


def unfinished(entry: Entry, split: str, root: Path) -> bool:
    """Whether unpacking was broken off, which may have left files where no list misses others."""
    return any(_partial(path, path.parent).exists() for _, path, _ in _files(entry, split, root))


def _files(entry: Entry, split: str, root: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Address of each file that a split needs, where it is put, and what is known of it."""
    for url in entry.urls:
        known = _known().get(url, {})
        if split in known.get("splits", [split]):
            name = PurePosixPath(unquote(urlsplit(url).path)).name
            yield url, inside(root / known.get("into", entry.name), name), known


@cache
def _known() -> dict[str, dict[str, Any]]:
    path = Path(__file__).with_name("catalogue") / "files.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> None:
    """Unpack an archive into a folder, unless its files all lie there; other files are left alone.

    They gather in a folder `.partial`, and are moved to their place once they are whole. Links and
    devices are never made, nor anything outside that folder.

    Raises
    ------
    MissingDatasetError
        It is damaged, has a name that leads out of the folder, or there is no room.
    """
    if not archive.name.endswith(_ARCHIVES):
        return
    gathered = _partial(archive, folder)
    try:
        with archive.open("r+b") as file:  # some network disks lock only what may be written to
            fcntl.flock(file, fcntl.LOCK_EX)  # a second process finds all of it there
            if gathered.exists():
                shutil.rmtree(gathered)
            if all(_lies(inside(folder, name), size) for name, size, _ in _members(file, archive)):
                return
            total = archive.stat().st_size
            for name, _, open_ in _members(file, archive):
                target = inside(gathered, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_() as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if progress:
                    progress(f"unpacking {archive.name}", file.tell(), total)
            for inner in list(gathered.rglob("*.tar.gz")):
                unpack(inner, inner.parent)
            _move(gathered, folder)
    except _DAMAGED as error:
        raise MissingDatasetError(
            f"{archive} cannot be unpacked ({' '.join(str(error).split()) or 'it is cut off'}). "
            f"Delete it, and fetch it again"
        ) from error
    except OSError as error:
        raise MissingDatasetError(
            f"{archive} could not be unpacked to {folder} ({error.strerror or error}). Make room "
            f"or choose another place, and run the same command again"
        ) from error


def _partial(archive: Path, folder: Path) -> Path:
    return folder / f"{archive.name.partition('.')[0]}.partial"


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Files in an archive: name, size or -1 where that is unknown, and what opens it for reading.

    A link is the file that it leads to in the archive.
    """
    file.seek(0)
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(file) as zipped:
            for one in zipped.infolist():
                if not one.is_dir() and not one.filename.startswith("__MACOSX/"):
                    yield one.filename, one.file_size, partial(zipped.open, one)
    elif path.name.endswith(_TARS):
        with tarfile.open(fileobj=file) as tar:
            for member in tar:
                if not member.isdir():
                    yield member.name, member.size, partial(_extract, tar, member)
    else:
        yield path.stem, -1, partial(gzip.open, file)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(member)
    if found is None:
        raise ValueError(f"{member.name} is no file")
    return found


def _lies(path: Path, size: int) -> bool:
    """Whether a file of an archive is in its place; of one that is an archive, none can tell."""
    return (
        path.is_file() and size in (-1, path.stat().st_size) and not path.name.endswith(".tar.gz")
    )


def _move(source: Path, target: Path) -> None:
    """Move a tree to its place, in one step where nothing is there yet, else file by file."""
    if source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            _move(child, target / child.name)
        source.rmdir()
    else:
        source.replace(target)
