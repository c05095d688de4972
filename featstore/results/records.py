"""Records of cells, each written once.

A record is an npz with what was found for each test sample, and beside it a JSON, written last,
that commits it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.keys import encode_part
from featstore.results.schema import fault

FORMAT_VERSION = 2

CURRENT = "features.json"  # beside the protocols' folders: digest of each split last probed

_NEXT = "Delete it and probe again, or leave it out by skip_errors (--skip-errors)"


@dataclass(frozen=True, order=True)
class Cell:
    """One score's place: what was measured, how, and on which features."""

    model: str
    dataset: str
    bn_mode: str
    protocol: str
    seed: int
    digest: str

    def path(self, root: Path) -> Path:
        """Where its JSON lies: there or not, it says whether the cell is done."""
        parts = (self.model, self.dataset, self.bn_mode, self.protocol)
        name = f"{self.seed}-{self.digest[:12]}.json"
        return root.joinpath(*(encode_part(part) for part in parts), name)

    def __str__(self) -> str:
        return f"{self.model} {self.dataset} {self.bn_mode} {self.protocol} seed {self.seed}"


def target_of(root: str | Path) -> Path:
    """Where the Dataset of a folder of records is written."""
    root = Path(root) if Path(root).name else Path(root).absolute()  # `.` has no name of its own
    return root.with_name(f"{root.name}.zarr")


def record(
    root: Path, cell: Cell, facts: Mapping[str, Any], outcomes: Mapping[str, np.ndarray]
) -> None:
    """Commit a cell: what was found for each sample first, then the facts.

    Raises
    ------
    FeatStoreError
        It could not be written, as on a full disk; then it is not there at all.
    """
    path = cell.path(root)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(outcomes))  # type: ignore[arg-type]  # all are arrays
    data = buffer.getvalue()
    document = {
        "format": FORMAT_VERSION,
        "model": cell.model,
        "dataset": cell.dataset,
        "bn_mode": cell.bn_mode,
        "protocol": cell.protocol,
        "seed": cell.seed,
        "features": cell.digest,
        **facts,
        "outcomes_sha256": hashlib.sha256(data).hexdigest(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path.with_suffix(".npz"), data)
        _write(path, json.dumps(document, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise FeatStoreError(
            f"{cell} could not be written below {root} ({error.strerror}). All cells recorded "
            f"before are kept; make room and run the same command again"
        ) from error


def mark_current(
    root: Path, model: str, dataset: str, bn_mode: str, digests: Mapping[str, str]
) -> None:
    """Say which features' cells count from now on, for one model, dataset and BN mode.

    Parameters
    ----------
    digests : of the recipe of each split that is stored
    """
    path = root.joinpath(*(encode_part(part) for part in (model, dataset, bn_mode)), CURRENT)
    content = json.dumps(dict(digests), indent=1, sort_keys=True).encode()
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def records(
    root: str | Path,
    *,
    dataset: str = "",
    protocol: str = "",
    seed: int | None = None,
    damaged: list[FeatStoreError] | None = None,
) -> Iterator[dict[str, Any]]:
    """Every record below a results folder, in the order of their places.

    Beside what was recorded, `path` says where it lies, and `current` whether the splits that it
    was made from are those last probed; None if nothing was said of that.

    Parameters
    ----------
    dataset, protocol, seed : only those of it, if given
    damaged : if given, files that cannot be read are left out, and what is wrong is added here

    Raises
    ------
    CorruptStoreError
        A record cannot be read, or does not say what one must.
    StoreMismatchError
        A record is of another format version.
    """
    of_dataset, of_protocol = (encode_part(one) if one else "*" for one in (dataset, protocol))
    of_seed = "[0-9]*-*" if seed is None else f"{seed}-*"  # so is no other JSON named
    for folder in sorted(Path(root).glob(f"*/{of_dataset}/*")):
        marked: dict[str, str] | None = None  # read where there is a record to judge by it
        for number, path in enumerate(sorted(folder.glob(f"{of_protocol}/{of_seed}.json"))):
            try:
                if not number:
                    marked = _marked(folder / CURRENT)
            except CorruptStoreError as error:
                _leave_out(error, damaged)
            try:
                document = _read(path)
            except CorruptStoreError as error:
                _leave_out(error, damaged)
                continue
            document["path"], document["current"] = str(path), None
            if marked is not None:
                made_of = document["splits"].items()
                document["current"] = all(marked.get(name) == digest for name, digest in made_of)
            yield document


def _leave_out(error: FeatStoreError, damaged: list[FeatStoreError] | None) -> None:
    if damaged is None:
        raise error
    damaged.append(error)


def _read(path: Path) -> dict[str, Any]:
    """The record in a file, as it was written."""
    document = _parsed(path)
    version = document.get("format")
    if type(version) is int and version != FORMAT_VERSION:
        how = (
            "A newer featstore is needed: pip install --upgrade featstore"
            if version > FORMAT_VERSION
            else "Use the featstore that wrote it, or probe again into another folder (--results)"
        )
        raise StoreMismatchError(
            f"{path} has format version {version}, this featstore reads {FORMAT_VERSION}. {how}"
        )
    wrong = f"its 'format' is {version!r}" if type(version) is not int else fault(document, path)
    if wrong:
        raise CorruptStoreError(f"{path} is no record of a cell ({wrong}). {_NEXT}")
    return document


def _marked(path: Path) -> dict[str, str] | None:
    """Digest of each split last probed, None if it was never said."""
    return _parsed(path) if path.exists() else None


def _parsed(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path} cannot be read ({error}). {_NEXT}") from error
    if not isinstance(found, dict):
        raise CorruptStoreError(f"{path} holds no JSON object. {_NEXT}")
    return found


def outcomes_of(document: Mapping[str, Any], *names: str) -> dict[str, np.ndarray]:
    """What a record keeps for each test sample, checked against its checksum.

    Parameters
    ----------
    names : of the arrays that are looked at, where it keeps them; of none all

    Raises
    ------
    CorruptStoreError
        The file is gone, or not what was written.
    """
    path = Path(document["path"]).with_suffix(".npz")
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != document["outcomes_sha256"]:
        raise CorruptStoreError(
            f"{path} is not what was written. Delete the JSON beside it and probe again, or "
            f"leave it out by skip_errors (--skip-errors)"
        )
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name] for name in arrays.files if not names or name in names}
