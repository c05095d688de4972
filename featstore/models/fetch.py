"""From a catalogue entry to its weights file here: found, fetched, and the same as it ever was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from featstore.errors import BadCheckpointError, CatalogueError, FetchError
from featstore.fetch import Progress, fetch, inside
from featstore.home import expanded, home
from featstore.models.names import Entry

log = logging.getLogger(__name__)

_RECORDS = "sha256.json"
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")


def weights_file(entry: Entry, *, progress: Progress | None = None) -> Path:
    """File that the weights of an entry can be read from without running code in it.

    It lies in the folder `weights` of featstore's home, and is fetched there if its entry says
    whence. Its SHA-256 must be that of the entry; where that has none, that of its first sight,
    which is recorded in `sha256.json` beside it.

    Raises
    ------
    BadCheckpointError
        It is not there and cannot be fetched, is not the file that it was, or must be converted
        first; says how.
    CatalogueError
        The entry's `file` is no name of a file.
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
    path = original_path(entry)
    known = entry.sha256.lower() or _records().get(_key(path), {}).get("sha256", "")
    if not path.exists():
        if not entry.urls:
            raise BadCheckpointError(f"no weights of {entry.name} at {path}. {_by_hand(entry)}")
        try:
            fetch(entry.urls, path, sha256=known, progress=progress)
        except FetchError as error:
            hint = f" By hand: {entry.by_hand}." if entry.by_hand else ""
            if known and not entry.sha256:
                hint += (
                    f" {known} is the SHA-256 of the first fetch, kept in {_folder() / _RECORDS}"
                )
            raise BadCheckpointError(f"no weights of {entry.name}: {error}.{hint}") from error
    _check(path, known, recorded=not entry.sha256)
    return path


def original_path(entry: Entry) -> Path:
    """Where the published file of an entry lies, or would."""
    name = entry.file
    if not name and entry.urls:
        name = PurePosixPath(unquote(urlsplit(entry.urls[0]).path)).name
    if not name or name.startswith(_RECORDS):
        raise CatalogueError(f"{entry.name}: its entry needs file = NAME, that of its weights file")
    try:
        return inside(_folder(), name)
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
    source = _records().get(_key(path)) or _seen(path)
    facts = {"source": _key(path), "source_sha256": source["sha256"]}
    _record(converted, _seen(converted) | facts)


def is_converted(entry: Entry) -> bool:
    """Whether the file of `converted_path` is there, and was made by `featstore convert`."""
    if original_path(entry).suffix == ".safetensors":
        return False
    path = converted_path(entry)
    source = _records().get(_key(path), {}).get("source")
    return path.exists() and source == _key(original_path(entry))


def keep(path: Path) -> None:
    """Remember that a file's tensors were the model's, so that its SHA-256 stays recorded."""
    record = _records().get(_key(path), {})
    if record and not record.get("proven"):
        _record(path, record | {"proven": True})


def forget(path: Path) -> None:
    """Take back what was recorded of a file that turned out to be no weights of the model.

    A page saved in place of a file, or a wrong file, would else be what the right one is held to.
    """
    record = _records().get(_key(path), {})
    if record and not record.get("proven") and "source" not in record:
        _record(path, None)


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
    from huggingface_hub import try_to_load_from_cache  # 0.2 s, needed for listings alone

    repos = {f"timm/{arch}", f"timm/{arch.replace('_quickgelu', '')}"}
    return any(
        isinstance(try_to_load_from_cache(repo, name), str) for repo in repos for name in _HUB_FILES
    )


def _by_hand(entry: Entry) -> str:
    known = entry.sha256 or "not known, will be recorded"
    whence = entry.by_hand or "get it from its authors"
    return f"By hand: {whence}, and place it there (SHA-256: {known})"


def _folder() -> Path:
    return home() / "weights"


def _key(path: Path) -> str:
    return path.relative_to(_folder()).as_posix()


def _check_converted(entry: Entry, path: Path) -> None:
    record = _records().get(_key(path), {})
    original = original_path(entry)
    again = f"Delete it, and run: featstore convert {entry.name}"
    if record.get("source") != _key(original):
        raise BadCheckpointError(f"{path} was not converted here from {original}. {again}")
    source = record.get("source_sha256")
    now = entry.sha256.lower() or _records().get(_key(original), {}).get("sha256", source)
    if source != now:
        raise BadCheckpointError(
            f"{path} was converted from a file of SHA-256 {source}, and {original.name} should "
            f"have {now}. {again}"
        )
    _check(path, record["sha256"], recorded=True)


def _check(path: Path, expected: str, *, recorded: bool) -> None:
    """Hold a file to its hash, or record that of one seen for the first time.

    Parameters
    ----------
    expected : SHA-256 in hex, "" if unknown
    recorded : whether that is one recorded here, and none of the catalogue
    """
    record = _records().get(_key(path), {})
    status = path.stat()
    if (record.get("size"), record.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        found = record.get("sha256", "")  # hashing takes a second for each GB, so not for each load
    else:
        seen = _seen(path)
        found = seen["sha256"]
        if found == (expected or found):
            _record(path, record | seen)
            if not expected:
                log.warning(
                    "%s: nobody states its SHA-256; that of now is recorded, and any other will "
                    "be refused: %s",
                    path,
                    found,
                )
    if expected and found != expected:
        why = f"recorded in {_folder() / _RECORDS} at its first sight" if recorded else "stated"
        remedy = f", or if it was changed on purpose, remove it from {_RECORDS}" if recorded else ""
        raise BadCheckpointError(
            f"{path} is not the file that it should be: its SHA-256 is {found}, and {expected} is "
            f"{why}. Delete it and get it again{remedy}"
        )


def _seen(path: Path) -> dict[str, Any]:
    """Hash of a file, with what tells cheaply that it has not changed since."""
    before = path.stat()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadCheckpointError(f"{path} is being written to. Run the same command again later")
    return {"sha256": found, "size": after.st_size, "mtime_ns": after.st_mtime_ns}


def _records() -> dict[str, dict[str, Any]]:
    path = _folder() / _RECORDS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        found = error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise BadCheckpointError(
            f"{path} cannot be read, so weights cannot be held to the SHA-256 of their first "
            f"sight. Delete it, to have them recorded anew"
        )
    return found


def _record(path: Path, record: dict[str, Any] | None) -> None:
    records = _folder() / _RECORDS
    partial = records.with_name(f"{_RECORDS}.{os.getpid()}.partial")
    try:
        with _locked(records.with_name(f"{_RECORDS}.lock")):
            changed = {name: one for name, one in _records().items() if name != _key(path)}
            if record is not None:
                changed[_key(path)] = record
            partial.write_text(json.dumps(changed, indent=1, sort_keys=True), encoding="utf-8")
            partial.replace(records)
    except OSError as error:  # weights that others keep may be read-only
        log.warning("%s: its SHA-256 could not be recorded (%s)", path, error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
