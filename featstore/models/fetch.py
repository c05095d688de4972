"""From a catalogue entry to its weights file here: found, fetched, and the same as it ever was."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from featstore.errors import BadCheckpointError, CatalogueError, FetchError
from featstore.fetch import Progress, fetch, inside, sha256
from featstore.home import expanded
from featstore.models.hashes import RECORDS, expected, folder, hold, record, recorded, seen
from featstore.models.names import Entry

_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")


def weights_file(entry: Entry, *, progress: Progress | None = None) -> Path:
    """File that the weights of an entry can be read from without running code in it.

    It lies in the folder `weights` of featstore's home, and is fetched there if its entry says
    whence. Its SHA-256 must be, or begin with, that of the entry; and the whole of it that of its
    first sight, which is recorded in `sha256.json` beside it.

    Raises
    ------
    BadCheckpointError
        It is not there and cannot be fetched, is not the file that it was, or must be converted
        first; says how.
    CatalogueError
        The entry's `file` is no name of a file, or its `sha256` no such thing.
    """
    if not entry.converts and not is_converted(entry):
        return original_file(entry, progress=progress)
    converted = converted_path(entry)
    if converted.exists():
        _check_converted(entry, converted)
        return converted
    path = original_file(entry, progress=progress)
    raise BadCheckpointError(
        f"{path} holds more than tensors, and loading that could run code. Take out the tensors "
        f"first, which runs none: featstore convert {entry.name}"
    )


def original_file(entry: Entry, *, progress: Progress | None = None) -> Path:
    """Weights file of an entry as its authors published it; else as `weights_file`."""
    path, stated = original_path(entry), _stated(entry)
    known = expected(_key(path), stated)
    if not path.exists():
        if not entry.urls:
            raise BadCheckpointError(f"no weights of {entry.name} at {path}. {_by_hand(entry)}")
        try:
            fetch(entry.urls, path, sha256=known if len(known) == 64 else "", progress=progress)
            if known and not (found := sha256(path)).startswith(known):
                path.unlink()
                raise FetchError(
                    f"{path.name} was fetched, and its SHA-256 is {found}, which does not begin "
                    f"with {known}"
                )
        except FetchError as error:
            hint = f" By hand: {entry.by_hand}." if entry.by_hand else ""
            if known != stated:
                hint += f" {known} is the SHA-256 of the first fetch, kept in {folder() / RECORDS}"
            raise BadCheckpointError(f"no weights of {entry.name}: {error}.{hint}") from error
    hold(path, _key(path), stated)
    return path


def _stated(entry: Entry) -> str:
    """SHA-256 of the published file, or how it begins, as its entry has it."""
    stated = entry.sha256.lower()
    if not re.fullmatch(r"([0-9a-f]{8,64})?", stated):
        raise CatalogueError(
            f"{entry.name}: sha256 = {entry.sha256!r} must be its first 8 to 64 hexadecimal digits"
        )
    return stated


def original_path(entry: Entry) -> Path:
    """Where the published file of an entry lies, or would."""
    name = entry.file
    if not name and entry.urls:
        name = PurePosixPath(unquote(urlsplit(entry.urls[0]).path)).name
    if not name or name.startswith(RECORDS):
        raise CatalogueError(f"{entry.name}: its entry needs file = NAME, that of its weights file")
    try:
        return inside(folder(), name)
    except ValueError as error:
        raise CatalogueError(f"{entry.name}: file = {error}") from error


def converted_path(entry: Entry) -> Path:
    """Where the tensors taken out of the published file lie, or would."""
    path = original_path(entry).with_suffix(".safetensors")
    if path == original_path(entry):
        raise CatalogueError(f"{entry.name}: a safetensors file needs no conversion")
    return path


def record_converted(entry: Entry, converted: Path) -> None:
    """Remember that a file was converted from the published one, by the SHA-256 of both."""
    path = original_path(entry)
    source = recorded(_key(path)) or seen(path)
    facts = {"source": _key(path), "source_sha256": source["sha256"]}
    record(_key(converted), seen(converted) | facts)


def is_converted(entry: Entry) -> bool:
    """Whether the file of `converted_path` is there, and was made by `featstore convert`."""
    if original_path(entry).suffix == ".safetensors":
        return False
    path = converted_path(entry)
    source = recorded(_key(path)).get("source")
    return path.exists() and source == _key(original_path(entry))


def keep(path: Path) -> None:
    """Remember that a file's tensors were the model's, so that its SHA-256 stays recorded."""
    known = recorded(_key(path))
    if known and not known.get("proven"):
        record(_key(path), known | {"proven": True})


def forget(path: Path) -> None:
    """Take back what was recorded of a file that turned out to be no weights of the model.

    A page saved in place of a file, or a wrong file, would else be what the right one is held to.
    """
    known = recorded(_key(path))
    if known and not known.get("proven") and "source" not in known:
        record(_key(path), None)


def status(entry: Entry) -> str:
    """`ready`, `fetchable`, `convert` or `by hand`: the next step to the weights of an entry.

    Found out without network, and without checking what the files hold. `incomplete` is an entry of
    the user's that says of no weights.
    """
    try:
        return _status(entry)
    except CatalogueError:
        return "incomplete"


def _status(entry: Entry) -> str:
    if entry.weights == "hub":
        return "ready" if _in_hub_cache(entry.arch) else "fetchable"
    if entry.weights:
        users = entry.folder and not entry.weights.startswith(("random:", "py:"))
        there = not users or Path(entry.folder, expanded(entry.weights)).exists()
        return "ready" if there else "by hand"
    if is_converted(entry):
        return "ready"
    if original_path(entry).exists():
        return "convert" if entry.converts else "ready"
    if not entry.urls:
        return "by hand"
    return "convert" if entry.converts else "fetchable"


def _in_hub_cache(arch: str) -> bool:
    """Whether the hub's cache holds the weights of a timm tag, which are in timm/TAG by custom."""
    repos = {f"timm/{arch}", f"timm/{arch.replace('_quickgelu', '')}"}
    return any(in_hub_cache(repo) for repo in repos)


def in_hub_cache(repo: str) -> Path | None:
    """Weights of a repository in the hub's cache; of several the one that timm prefers."""
    from huggingface_hub import try_to_load_from_cache  # 0.2 s, needed for listings alone

    found = (try_to_load_from_cache(repo, name) for name in _HUB_FILES)
    return next((Path(one) for one in found if isinstance(one, str)), None)


def _by_hand(entry: Entry) -> str:
    begins = "" if len(entry.sha256) == 64 else "begins with "
    known = f"{begins}{entry.sha256}" if entry.sha256 else "not known, will be recorded"
    whence = entry.by_hand or "get it from its authors"
    return f"By hand: {whence}, and place it there (SHA-256: {known})"


def _key(path: Path) -> str:
    return path.relative_to(folder()).as_posix()


def _check_converted(entry: Entry, path: Path) -> None:
    known = recorded(_key(path))
    original = original_path(entry)
    again = f"Delete it, and run: featstore convert {entry.name}"
    if known.get("source") != _key(original):
        raise BadCheckpointError(f"{path} was not converted here from {original}. {again}")
    source, now = known["source_sha256"], expected(_key(original), _stated(entry))
    if not source.startswith(now):
        raise BadCheckpointError(
            f"{path} was converted from a file of SHA-256 {source}, and {original.name} should "
            f"have {now}. {again}"
        )
    hold(path, _key(path))
