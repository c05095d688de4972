"""SHA-256 of weights files: recorded at first sight, and held to from then on."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featstore.errors import BadCheckpointError
from featstore.fetch import sha256
from featstore.home import home

log = logging.getLogger(__name__)

RECORDS = "sha256.json"


def folder() -> Path:
    """Where weights files lie, and what is recorded of them."""
    return home() / "weights"


def expected(key: str, stated: str = "") -> str:
    """SHA-256 that a file must have, or begin with, in hex; "" if nothing is known of it.

    Parameters
    ----------
    key : what the file is called in the record
    stated : what its source says of it, of which the record has the whole
    """
    found: str = recorded(key).get("sha256", "")
    return found if found.startswith(stated) else stated


def hold(path: Path, key: str, stated: str = "") -> None:
    """Hold a file to its SHA-256, and record that of one seen for the first time.

    Raises
    ------
    BadCheckpointError
        It is not the file that it should be.
    """
    must = expected(key, stated)
    known = recorded(key)
    status = path.stat()
    if (known.get("size"), known.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        found = known.get("sha256", "")  # hashing takes a second for each GB, so not for each load
    else:
        now = seen(path)
        found = now["sha256"]
        if found.startswith(must):
            record(key, known | now)
            if not must:
                log.warning(
                    "%s: nobody states its SHA-256; that of now is recorded, and any other will "
                    "be refused: %s",
                    path,
                    found,
                )
    if not found.startswith(must):
        first = must != stated
        why = f"recorded in {folder() / RECORDS} at its first sight" if first else "stated"
        remedy = f", or if it was changed on purpose, remove {key} from {RECORDS}" if first else ""
        raise BadCheckpointError(
            f"{path} is not the file that it should be: its SHA-256 is {found}, and {must} is "
            f"{why}. Delete it and get it again{remedy}"
        )


def seen(path: Path) -> dict[str, Any]:
    """Hash of a file, with what tells cheaply that it has not changed since."""
    before = path.stat()
    found = sha256(path)
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadCheckpointError(f"{path} is being written to. Run the same command again later")
    return {"sha256": found, "size": after.st_size, "mtime_ns": after.st_mtime_ns}


def recorded(key: str) -> dict[str, Any]:
    """What is recorded of a file, nothing if it was never seen."""
    return _records().get(key, {})


def record(key: str, facts: dict[str, Any] | None) -> None:
    """Record facts of a file in place of those that were; None for none."""
    records = folder() / RECORDS
    partial = records.with_name(f"{RECORDS}.{os.getpid()}.partial")
    try:
        records.parent.mkdir(parents=True, exist_ok=True)
        with _locked(records.with_name(f"{RECORDS}.lock")):
            changed = {name: one for name, one in _records().items() if name != key}
            if facts is not None:
                changed[key] = facts
            partial.write_text(json.dumps(changed, indent=1, sort_keys=True), encoding="utf-8")
            partial.replace(records)
    except OSError as error:  # weights that others keep may be read-only
        log.warning("%s: its SHA-256 could not be recorded (%s)", key, error)


def _records() -> dict[str, dict[str, Any]]:
    path = folder() / RECORDS
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
