"""Files over HTTP: resumed where they broke off, checked, there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from featstore.errors import FetchError
from featstore.home import offline
from featstore.web import BrokenError, RefusedError, ask, first_byte, read, version

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the file's name, the bytes that are there and the bytes in all (0: unknown)."""

_PAUSES = (1.0, 2.0, 4.0)  # seconds before each new attempt; counted anew once bytes were gained
_LONGEST_PAUSE = 60.0  # of those that a server asks for
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def inside(folder: Path, name: str) -> Path:
    """Path of a file in a folder.

    Raises
    ------
    ValueError
        The name is empty or would lead out of the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0] or "\0" in name:
        raise ValueError(f"{name!r} must be the name of a file in {folder}")
    return folder.joinpath(*parts)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    urls: Sequence[str],
    to: Path,
    *,
    sha256: str = "",
    md5: str = "",
    progress: Progress | None = None,
) -> Path:
    """Place of a file, which is fetched unless it is there already.

    Bytes gather in `to` + `.partial`, which the next call goes on with, whether this one was killed
    or broke off. Of two processes one fetches and the other waits.

    Parameters
    ----------
    urls : addresses of the same file, http or https, tried in order
    to : where it is put, once it is whole
    sha256, md5 : of the file, in hex; checked where given, each time

    Raises
    ------
    FetchError
        No address gave the file, or there is no room for it, or featstore is offline, or what lies
        there is another file.
    """
    if isinstance(urls, str):
        raise ValueError("urls must be a list of addresses, got one string")
    job = _Job(to, {"sha256": sha256.lower(), "md5": md5.lower()}, progress)
    if to.exists():
        return job.existing()
    if offline():
        raise FetchError(
            f"{to} is not there, and nothing may be fetched while FEATSTORE_OFFLINE or "
            f"HF_HUB_OFFLINE is set. {job.by_hand(urls)}, or unset it"
        )
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with _locked(job.partial) as file:
            if to.exists():  # another process was faster
                job.partial.unlink()
                return job.existing()
            failures = []
            for url in urls:
                try:
                    job.download(url, file)
                    os.fsync(file.fileno())
                    job.partial.replace(to)
                    job.origin.unlink(missing_ok=True)
                    return to
                except RefusedError as error:
                    failures.append(f"{url}: {error}")
                    log.info("%s", failures[-1])
            if not os.fstat(file.fileno()).st_size:
                job.partial.unlink()
                job.origin.unlink(missing_ok=True)
    except OSError as error:  # of the disk: those of the network were caught
        reason = "no room for more" if error.errno in _FULL else error.strerror or str(error)
        raise FetchError(
            f"{to} could not be written ({reason}). What came is kept; make room or choose another "
            f"place, and run the same command again"
        ) from error
    raise FetchError(
        f"{to.name} could not be fetched ({'; '.join(failures) or 'no address is known'}). "
        f"Try again later. Or: {job.by_hand(urls)}"
    )


@dataclass(frozen=True)
class _Job:
    """One file to be fetched.

    Attributes
    ----------
    hashes : its expected hash in hex by algorithm, "" where unknown
    """

    to: Path
    hashes: dict[str, str]
    progress: Progress | None

    @property
    def partial(self) -> Path:
        return self.to.with_name(f"{self.to.name}.partial")

    @property
    def origin(self) -> Path:
        """Says of which version of the file at which address the partial is the beginning."""
        return self.to.with_name(f"{self.to.name}.partial.json")

    def existing(self) -> Path:
        """The file that is there already, checked."""
        with self.to.open("rb") as file:
            fault = self.fault(file)
        if fault:
            raise FetchError(
                f"{self.to} is not the file asked for: {fault}. Delete it, to fetch it"
            )
        return self.to

    def by_hand(self, urls: Sequence[str]) -> str:
        known = f" (SHA-256 {self.hashes['sha256']})" if self.hashes["sha256"] else ""
        source = f"Fetch {urls[0]} elsewhere and place it" if urls else "Place it"
        return f"{source} at {self.to} by hand{known}"

    def fault(self, file: Any) -> str:
        """How the content of a binary file differs from what was expected, or ""."""
        for algorithm, expected in self.hashes.items():
            if expected:
                file.seek(0)
                found = hashlib.file_digest(file, algorithm).hexdigest()
                if found != expected:
                    name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
                    return f"its {name} is {found}, not {expected}"
        return ""

    def download(self, url: str, file: BinaryIO) -> None:
        """Fill the partial file from an address; raises RefusedError."""
        while True:
            joined = self._attempts(url, file)
            fault = self.fault(file)
            if not fault:
                return
            file.truncate(0)
            if not joined:  # else the pieces may have been those of two versions
                raise RefusedError(fault)

    def _attempts(self, url: str, file: BinaryIO) -> bool:
        """Fill the file in as many attempts as it takes; whether it was joined from pieces."""
        furthest, pauses = 0, iter(_PAUSES)
        while True:
            try:
                return self._attempt(url, file)
            except BrokenError as error:
                size = os.fstat(file.fileno()).st_size
                if size > furthest:
                    furthest, pauses = size, iter(_PAUSES)
                pause = next(pauses, None)
                if pause is None:
                    raise RefusedError(str(error)) from error
                log.info("%s: %s; tries again", url, error)
                time.sleep(max(pause, min(error.pause, _LONGEST_PAUSE)))

    def _attempt(self, url: str, file: BinaryIO) -> bool:
        start = os.fstat(file.fileno()).st_size
        known = _read_json(self.origin) if start else {}
        certain = known.get("etag") or known.get("modified") or any(self.hashes.values())
        if known.get("url") != url or not certain:
            start = 0
        with ask(url, start) as answer:
            now = version(url, answer)
            if start and (answer.status == 416 or not (answer.status == 200 or now == known)):
                file.truncate(0)
                raise BrokenError("the file has changed at its source")
            start = first_byte(answer, start)
            block = read(answer, first=not start)
            if not start:
                file.truncate(0)
                self.origin.write_text(json.dumps(now))
            done, total = start, int(now["total"])
            while block:
                file.write(block)
                file.flush()  # so that its size counts all, and a kill loses nothing
                done += len(block)
                if self.progress:
                    self.progress(self.to.name, done, total)
                block = read(answer)
        if total and done != total:
            raise BrokenError(f"broke off after {done} of {total} bytes")
        if not done:
            raise RefusedError("sends an empty file")
        return start > 0


def _read_json(path: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


@contextmanager
def _locked(partial: Path) -> Iterator[BinaryIO]:
    """A partial file that no other process writes to meanwhile."""
    while True:
        with partial.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: waits for another process that fetches it", partial.stem)
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                own = os.path.samestat(os.fstat(file.fileno()), partial.stat())
            except FileNotFoundError:  # the other has moved it to its place, or removed it
                own = False
            if own:
                yield file
                return
