"""Which of the arrays in a file, or in two, are the features, the labels and the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featstore.errors import BadArrayError
from featstore.transfer.lazy import Source, of_array
from featstore.transfer.sources import combine_columns, open_arrays, pickled

_FEATURES = ("x", "features", "embeddings", "embedding", "feats")
_LABELS = ("y", "labels", "label", "targets", "target")
_IDS = ("sample_id", "sample_ids", "ids", "id")
_CATEGORIES = ("categories", "class_names")
_POSITIONS = ("index", "__index_level_0__")  # what pandas and our own export number rows by


@dataclass(frozen=True)
class Found:
    """What was given, not yet read.

    Attributes
    ----------
    features, labels : sources ; ids, categories : sources, where the file holds them
    """

    features: Source
    labels: Source
    ids: Source | None
    categories: Source | None


def choose(
    features: str | Path | np.ndarray,
    labels: str | Path | np.ndarray | Sequence[int | str] | None,
    *,
    x_key: str = "",
    y_key: str = "",
) -> Found:
    """Sources of features and labels: in one file, in two, or in memory.

    Raises
    ------
    BadArrayError
        A file cannot be read, or it is not clear which array is meant; lists what there is.
    """
    if isinstance(features, str | Path):
        path = Path(features)
        held = open_arrays(path)
        x = _features(path, held, x_key, y_key)
    else:
        path, held, x = Path("features"), {}, of_array("features", features)
    if isinstance(labels, str | Path):
        held = {**held, **(others := open_arrays(Path(labels)))}
        y = _pick(others, y_key, _LABELS, 1, Path(labels), "labels", "--y-key")
    elif labels is not None:
        y = of_array("labels", labels)
    else:
        rest = {name: one for name, one in held.items() if one is not x}
        if not rest:
            raise BadArrayError(f"{path} holds one array only. Give a second file with the labels")
        y = _pick(rest, y_key, _LABELS, 1, path, "labels", "--y-key")
    rest = {name: one for name, one in held.items() if one is not x and one is not y}
    return Found(x, y, _named(rest, _IDS), _named(rest, _CATEGORIES))


def _features(path: Path, held: Mapping[str, Source], key: str, y_key: str) -> Source:
    by_rows = [one for one in held.values() if len(one.shape) == 2]
    if path.suffix == ".parquet" and not key and not by_rows and not _named(held, _FEATURES):
        apart = (*_LABELS, *_IDS, *_POSITIONS)
        columns = [
            name
            for name, one in held.items()
            if one.dtype not in ("str", "bool") and name.lower() not in apart and name != y_key
        ]
        if columns:
            return combine_columns(path, columns)
    return _pick(held, key, _FEATURES, 2, path, "features", "--x-key")


def _named(held: Mapping[str, Source], names: Sequence[str]) -> Source | None:
    """The first of these names that is there, in whatever case."""
    lower = {name.lower(): one for name, one in [*held.items()][::-1]}
    return next((lower[name] for name in names if name in lower), None)


def _pick(
    held: Mapping[str, Source],
    key: str,
    names: Sequence[str],
    ndim: int,
    path: Path,
    what: str,
    flag: str,
) -> Source:
    if key in held:
        return _plain(held[key])
    listed = ", ".join(f"{name} ({one})" for name, one in held.items()) or "no array"
    if key:
        raise BadArrayError(f"{path} has no array {key!r}; it holds {listed}")
    found = _named(held, names)
    fitting = [one for one in held.values() if len(one.shape) == ndim]
    if found is None and (len(held) == 1 or len(fitting) == 1):
        found = [*fitting, *held.values()][0]
    if found is None:
        raise BadArrayError(f"{path} holds {listed}. Say with {flag} which are the {what}")
    return _plain(found)


def _plain(source: Source) -> Source:
    if source.dtype == "object":
        raise pickled(source.where)
    return source
