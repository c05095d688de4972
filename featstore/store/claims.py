"""Claims by which processes that fill one store divide its chunks among them.

A claim is an object made by exclusive create (on an object store: put-if-absent) that names its
owner. A claim whose owner is dead is not deleted, which two could do at once, but outbid: the next
owner creates `<work>.<turn + 1>`, and of two who try, one succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

LEASE = 900.0
"""Seconds without renewal after which a claim made on another machine counts as abandoned."""


@dataclass
class Claim:
    """A claim that this process holds."""

    path: Path
    renewed: float

    def renew(self) -> None:
        """Tell other machines that the owner still works, at most every tenth of the lease."""
        if time.time() - self.renewed > LEASE / 10:
            self.renewed = time.time()
            self.path.write_text(json.dumps(_owner() | {"time": self.renewed}))


def acquire(folder: Path, work: str) -> Claim | None:
    """Claim on a piece of work, or None while a living process holds it."""
    now = time.time()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        turns = _turns(folder, work)
        if turns and _is_held(turns[max(turns)]):
            return None
        path = folder / f"{work}.{max(turns, default=-1) + 1}"
        with path.open("x") as file:
            json.dump(_owner() | {"time": now}, file)
    except (FileExistsError, FileNotFoundError):  # another process was faster, or cleared up
        return None
    return Claim(path, now)


def _turns(folder: Path, work: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(work) + r"\.(\d+)")
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _is_held(path: Path) -> bool:
    """Whether the owner of a claim is alive, as far as can be told from here."""
    try:
        owner = json.loads(path.read_text())
    except FileNotFoundError:  # the work was finished and its claims were cleared
        return False
    except json.JSONDecodeError:  # killed, or about to write: decide by age
        return time.time() - path.stat().st_mtime < 5
    if owner["host"] == socket.gethostname():
        return bool(owner["started"] == _process_start(owner["pid"]))
    return bool(time.time() - owner["time"] < LEASE)


def _owner() -> dict[str, str | int | float]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _process_start(pid)}


def _process_start(pid: int) -> str:
    """Start of a process in the kernel's own count, so that a reused pid is told apart; "" if dead.

    Where there is no /proc, only "alive" or "".
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] == "Z" else fields[19]  # a zombie does no more work
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # alive, and another user's
        return "alive"
    return "alive"


def clear(folder: Path, work: str | None = None) -> None:
    """Forget all claims in a folder, or those on one piece of work, once it is done."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()) if work is None else _turns(folder, work).values():
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process has a claim there, and will clear it
        folder.rmdir()
