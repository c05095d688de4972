"""What readers of published datasets share: fetching, lists, and saying what is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from featstore.errors import MissingDatasetError
from featstore.home import offline

T = TypeVar("T")


def fetch(name: str, root: Path, get: Callable[[], T]) -> T:
    """What `get` returns, which downloads to `root`.

    Raises
    ------
    MissingDatasetError
        There is no network, the host is gone, or what came is not what was published.
    """
    if offline():
        raise MissingDatasetError(
            f"{name} is not below {root}, and nothing is fetched since FEATSTORE_OFFLINE or "
            f"HF_HUB_OFFLINE is set. Unset it, or place the files there by hand"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        return get()
    except (RuntimeError, OSError, ValueError) as error:
        raise MissingDatasetError(
            f"{name} could not be fetched to {root} ({first_line(error)}). Try again, or place it "
            f"there by hand"
        ) from error


def absent(
    name: str, root: Path, reason: object, *, by_program: bool = True
) -> MissingDatasetError:
    """Error for a dataset that is not below `root`, with the command that fetches it, if any."""
    how = (
        f"Fetch it: featstore datasets {name} --download --data-root {root}"
        if by_program
        else "No program can fetch it: place its files there by hand"
    )
    return MissingDatasetError(f"{name} is not below {root} ({reason}). {how}")


def incomplete(name: str, base: Path, missing: Path) -> MissingDatasetError:
    """Error for a dataset whose folder `base` lacks a file or a folder."""
    nested = base / base.name
    if missing.is_relative_to(base) and (nested / missing.relative_to(base)).exists():
        return MissingDatasetError(
            f"{name} lies one folder too deep: {missing} is missing and {nested} has it. Move the "
            f"content of {nested} up to {base}"
        )
    return MissingDatasetError(
        f"{name} is not whole: {missing} is missing. Unpack it there, or remove {base} and fetch "
        f"the dataset again"
    )


def read_list(name: str, base: Path, path: Path) -> list[str]:
    """Lines of a list file that hold something, without the spaces and line ends around it.

    Raises
    ------
    MissingDatasetError
        It is not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise incomplete(name, base, path) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def first_line(error: Exception) -> str:
    """First line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
