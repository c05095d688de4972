"""Labels, sample ids and category names from whatever a file holds them as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featstore.errors import BadArrayError
from featstore.transfer.sources import open_arrays

_MOST_CATEGORIES = 1_000_000  # of numbered ones; more are ids of something else, not labels


def read_names(path: Path) -> list[str]:
    """Names from a file: one a line in text, or a .npy of strings.

    Raises
    ------
    BadArrayError
        The file is absent, or holds no names.
    """
    if path.suffix == ".npy":
        return as_names(open_arrays(path)["array"].read(), str(path))
    if not path.is_file():
        raise BadArrayError(f"no file at {path}. Check the path")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadArrayError(f"{path} is no UTF-8 text with a name on each line") from error


def as_names(values: np.ndarray, where: str) -> list[str]:
    """One-dimensional strings or whole numbers as strings.

    Raises
    ------
    BadArrayError
        They are neither.
    """
    if values.ndim != 1 or values.dtype.kind not in "UOSiu":
        raise BadArrayError(f"{where} must be a list of names, found {values.dtype} {values.shape}")
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]


def unique(names: Sequence[str], what: str) -> list[str]:
    """The names themselves.

    Raises
    ------
    BadArrayError
        One of them is there twice; it is named.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise BadArrayError(f"{what} must be unique, and {twice!r} is there more than once")
    return list(names)


def number_labels(
    labels: np.ndarray, categories: Sequence[str], where: str
) -> tuple[np.ndarray, list[str]]:
    """Labels as (n,) int64 in 0..c-1, with the c names of their categories.

    Without `categories`, labels that are strings give them, sorted; numbers 0..c-1 name themselves.

    Raises
    ------
    BadArrayError
        A label is neither a whole number nor a string, or none of the categories.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise BadArrayError(f"{where} must be (n,), a label for each row, found {labels.shape}")
    if labels.dtype.kind in "UOS":
        return _named(as_names(labels, where), categories, where)
    numbers = _whole(labels, where)
    c = len(categories) or min(int(numbers.max(initial=0)) + 1, _MOST_CATEGORIES)
    bad = np.flatnonzero((numbers < 0) | (numbers >= c))
    if len(bad):
        raise BadArrayError(
            f"{where}: the label in row {bad[0]} is {numbers[bad[0]]}; it must lie in 0..{c - 1}"
        )
    return numbers, list(categories) or [str(i) for i in range(c)]


def _whole(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.dtype.kind not in "biuf":
        raise BadArrayError(f"{where} holds {labels.dtype}; labels are whole numbers or names")
    with np.errstate(invalid="ignore"):  # NaN is no whole number, as is seen below
        numbers = labels.astype(np.int64)
    bad = np.flatnonzero(numbers != labels)
    if len(bad):
        raise BadArrayError(
            f"{where}: the label in row {bad[0]} is {labels[bad[0]]}; labels are whole numbers, "
            f"or names"
        )
    return numbers


def _named(
    labels: list[str], categories: Sequence[str], where: str
) -> tuple[np.ndarray, list[str]]:
    known = list(categories) or sorted(set(labels))
    place = {name: i for i, name in enumerate(known)}
    stranger = next((row for row, label in enumerate(labels) if label not in place), None)
    if stranger is not None:
        few = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        raise BadArrayError(
            f"{where}: the label in row {stranger} is {labels[stranger]!r}, which is none of the "
            f"categories {few}"
        )
    return np.array([place[label] for label in labels], np.int64), known
