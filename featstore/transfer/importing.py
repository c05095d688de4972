"""Embeddings that others made: arrays on disk into the store, with no model and no image."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featstore.errors import BadArrayError, BadEmbeddingError, StoreMismatchError
from featstore.keys import FORMAT_VERSION, FeatureKey, Recipe, canonical_json
from featstore.store import (
    SPLITS,
    Rows,
    Split,
    SplitWriter,
    Store,
    chunk_rows_for,
    create,
    parse_codec,
    resume,
    row_order,
)
from featstore.store.layout import round_rows
from featstore.transfer.choosing import Found, choose
from featstore.transfer.labels import as_names, number_labels, read_names, unique
from featstore.transfer.lazy import Source
from featstore.transfer.naming import check_counts, notes_of, own_key
from featstore.transfer.spool import Spool

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, rows done and rows in all."""


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes
    ----------
    key, split : where the features are ; filled : false if they were there already
    rows, features, categories : how many
    """

    key: str
    split: str
    filled: bool
    rows: int
    features: int
    categories: int


def import_features(
    features: str | Path | np.ndarray,
    labels: str | Path | np.ndarray | Sequence[int | str] | None = None,
    *,
    model: str,
    dataset: str,
    split: str = "train",
    bn_mode: str = "eval",
    ids: str | Path | Sequence[str] | None = None,
    categories: str | Path | Sequence[str] = (),
    x_key: str = "",
    y_key: str = "",
    dtype: str = "float16",
    codec: str = "none",
    chunk_rows: int = 2048,
    variant: str = "",
    overwrite: bool = False,
    store: str | Path = "data/features.zarr",
    progress: Progress = lambda what, done, total: None,
) -> Imported:
    """Put one split's features and labels into the store, from where every protocol runs on them.

    Rows are stored in an order seeded by their content, so that a file sorted by class leaks
    nothing; `index` keeps the position in the file. Interrupted, the same call goes on.

    Parameters
    ----------
    features : (n, d) finite numbers: an array, or a .npy, .npz, .pt, .pth, .safetensors, .h5, .hdf5
        or .parquet file, which is never held in memory as a whole (but for Fortran order in .npz)
    labels : (n,) numbers 0..c-1, or names; None if the file of the features holds them
    model : any name that is not in the catalogue, or NAME~VARIANT
    dataset : any name; one of the catalogue without a variant for whole published splits only
    ids : n unique names, or a file of them; positions if there are none
    categories : their names in the order of the labels, or a file of them
    x_key, y_key : names of the arrays in the files, where they are not plain
    variant : keeps features of another recipe apart, as MODEL~VARIANT

    Raises
    ------
    BadArrayError, BadEmbeddingError
        A file cannot be read; shapes, labels or ids are not as they must be; a feature is not
        finite or does not fit the dtype.
    StoreMismatchError
        Other features are stored there, or other splits there have other categories.
    ValueError
        An option is out of its range, the name is taken, or the dataset is published with other
        counts and no variant is given.
    """
    key = own_key(model, dataset, bn_mode, variant)
    _check_options(split, dtype, codec, chunk_rows)
    root = Path(store)
    others = [other for other in Store(root).splits(key) if other.name != split]
    found = choose(features, labels, x_key=x_key, y_key=y_key)
    x = found.features
    if len(x.shape) != 2 or 0 in x.shape:
        raise BadArrayError(f"{x.where} must be (n, d), a row for each sample, found {x.shape}")
    n, width = x.shape
    given = _categories(found, categories, others)
    y, names = number_labels(found.labels.read(), given, found.labels.where)
    if len(y) != n:
        raise BadArrayError(f"{x.where} has {n} rows, and {found.labels.where} {len(y)} labels")
    if not given:
        _tell_of_empty(y, len(names), found.labels.where)
    check_counts(key, split, n, len(names))
    sample_ids = _ids(found, ids, n)
    _check_others(key, width, names, others)
    with Spool(root.absolute(), width, dtype) as spool:
        content = _read_features(x, spool, dtype, codec, progress)
        images = _fingerprint(content, sample_ids, names, y)
        order = row_order(images, n)
        recipe = Recipe(
            {
                "format": FORMAT_VERSION,
                "imported": content,
                "bn_mode": key.bn_mode.value,
                "dtype": dtype,
                "codec": codec,
                "images": images,
                "row_order": hashlib.sha256(order.astype("<i8").tobytes()).hexdigest(),
            }
        )
        if overwrite:
            Store(root).remove(key, split)
        rows = Rows([sample_ids[int(i)] for i in order], order, y[order], names)
        writer = resume(root, key, split, recipe, codec) or create(
            root, key, split, recipe, rows, width=width, dtype=dtype, codec=codec,
            chunk_rows=chunk_rows_for(n, chunk_rows), notes=notes_of(key, features, labels),
        )  # fmt: skip
        filled = not writer.split.complete
        if filled:
            _fill(writer, spool, order, progress)
    return Imported(str(key), split, filled, n, width, len(names))


def _check_options(split: str, dtype: str, codec: str, chunk_rows: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    parse_codec(codec, dtype)


def _categories(
    found: Found, given: str | Path | Sequence[str], others: Sequence[Split]
) -> list[str]:
    """Names as given, as the file holds them, or as the splits stored before have them."""
    if isinstance(given, str | Path):
        given = read_names(Path(given))
    if not given and found.categories is not None:
        given = as_names(found.categories.read(), found.categories.where)
    if not given and others:
        given = others[0].categories
    return unique([str(name) for name in given], "categories")


def _tell_of_empty(labels: np.ndarray, n_categories: int, where: str) -> None:
    """Warn of numbers that no row has, up to the largest that one has."""
    empty = np.setdiff1d(np.arange(n_categories), labels)
    if len(empty):
        first = int(labels.min())
        hint = (
            f"Labels count from 0; if these count from {first}, subtract {first}"
            if first
            else "Given as names, labels that no row has would not count"
        )
        log.warning(
            "%s: no row has the label %s: empty are %d of %d categories. %s",
            where, _few([str(one) for one in empty]), len(empty), n_categories, hint,
        )  # fmt: skip


def _ids(found: Found, given: str | Path | Sequence[str] | None, n: int) -> list[str]:
    where = "sample ids"
    if isinstance(given, str | Path):
        where, given = str(given), read_names(Path(given))
    if given is None and found.ids is not None:
        where, given = found.ids.where, as_names(found.ids.read(), found.ids.where)
    if given is None:
        return [str(i) for i in range(n)]
    if len(given) != n:
        raise BadArrayError(f"{found.features.where} has {n} rows, and {where} {len(given)} ids")
    return unique([str(name) for name in given], where)


def _check_others(
    key: FeatureKey, width: int, categories: Sequence[str], others: Sequence[Split]
) -> None:
    """Splits of one key must fit together."""
    for other in others:
        remedy = f"Use --variant NAME, or first featstore rm '{key}'"
        if "imported" not in other.recipe.fields:
            raise StoreMismatchError(f"{other} was extracted, not imported. {remedy}")
        if other.shape[1] != width:
            raise StoreMismatchError(
                f"{other} has {other.shape[1]} features, and these are {width}. {remedy}"
            )
        if other.categories != list(categories):
            raise StoreMismatchError(
                f"{other} has {len(other.categories)} categories ({_few(other.categories)}), and "
                f"these are {len(categories)} ({_few(categories)}). Say with --categories which "
                f"both have. {remedy}"
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_features(source: Source, spool: Spool, dtype: str, codec: str, progress: Progress) -> str:
    """Check and spool all rows as they will be stored; SHA-256 over what was given, in hex."""
    hasher = None
    limit = np.finfo(dtype).max
    n, done = source.shape[0], 0
    for block in source.blocks():
        if block.dtype.kind not in "fiu":
            raise BadArrayError(f"{source.where} holds {block.dtype}; features are numbers")
        if hasher is None:
            head = f"{block.dtype.name} {source.shape[0]} {source.shape[1]}\n"
            hasher = hashlib.sha256(head.encode())
        block = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<"))
        hasher.update(block.data)
        # NaN compares false; beyond the largest number of the stored dtype lies infinity
        size = np.abs(block if block.dtype.kind == "f" else block.astype(np.float64))
        bad = np.flatnonzero(~(size <= limit).all(axis=1))
        if len(bad):
            worst = size[bad[0]].max()
            reason = (
                f"reaches {worst:.4g}, beyond {dtype}: use --dtype float32"
                if np.isfinite(worst) and dtype == "float16"
                else "holds NaN or infinity, or is beyond float32"
            )
            raise BadEmbeddingError(f"{source.where}: row {done + int(bad[0])} {reason}")
        stored = round_rows(block, dtype=dtype, codec=codec)
        if not np.isfinite(stored).all():
            raise BadEmbeddingError(
                f"{source.where}: rounding by {codec} overflows {dtype}. Use --dtype float32 or "
                f"another --codec"
            )
        spool.append(stored)
        done += len(block)
        progress("reading", done, n)
    if hasher is None or done != n:
        raise BadArrayError(f"{source.where} ended after {done} of {n} rows")
    return hasher.hexdigest()


def _fingerprint(
    content: str, ids: Sequence[str], categories: Sequence[str], labels: np.ndarray
) -> str:
    """SHA-256 over features, names and labels, in hex."""
    parts = canonical_json([content, list(ids), list(categories)])
    return hashlib.sha256(parts + labels.astype("<i8").tobytes()).hexdigest()


def _fill(writer: SplitWriter, spool: Spool, order: np.ndarray, progress: Progress) -> None:
    """Write every chunk that is missing, beside other processes that fill the same split."""
    n = len(order)
    try:
        while missing := writer.missing():
            wrote = False
            for chunk in missing:
                if not writer.claim(chunk):
                    continue
                span = writer.split.span(chunk)
                rows = spool.take(order[span.start : span.stop])
                writer.write(chunk, rows, np.ones(len(span), bool))
                wrote = True
                progress("storing", span.stop, n)
            if not wrote:
                time.sleep(0.5)  # other processes hold all that is left
    finally:
        writer.release()
    writer.finish()
