"""Stored features out of the store, as files that other programs read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy_format

from featstore.errors import FeatStoreError, UnknownNameError
from featstore.keys import FeatureKey
from featstore.store import Split, Store
from featstore.transfer.spool import Spool

ORDERS = ("original", "stored")


@dataclass(frozen=True)
class _Table:
    """Valid rows of a split, in the order they go out.

    Attributes
    ----------
    shape : of the features ; dtype : as stored ; blocks : starts reading them
    columns : y (n,), or (n, c) if multi-label; sample_id and index (n,)
    categories : names by label ; about : what it was made of
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[np.ndarray]]
    columns: dict[str, np.ndarray]
    categories: list[str]
    about: dict[str, str]


def export_features(
    key: FeatureKey | str,
    out: str | Path,
    *,
    split: str = "",
    form: str = "",
    order: str = "original",
    store: str | Path = "data/features.zarr",
    overwrite: bool = False,
) -> int:
    """Write one split as a file, and return how many samples without features were left out.

    The file holds X (n, d) as stored, y, sample_id, index (position in the dataset) and categories;
    a .npy holds X alone, and its neighbours `NAME.y.npy`, `NAME.sample_id.npy`, ... the others.

    Parameters
    ----------
    key : what is stored, or `MODEL DATASET BN_MODE`
    split : its name; not needed where there is one only
    form : npy, npz, parquet (X in float32, since few readers know half floats), h5 or safetensors;
        by the file's name if empty
    order : `original`, as in the dataset, or `stored`

    Raises
    ------
    MissingFeaturesError, CorruptStoreError
        Nothing finished is stored there; a chunk is not what was written.
    FeatStoreError
        The file exists, and `overwrite` is false.
    ValueError
        An option is none of those named.
    """
    out = Path(out)
    form = form or {"hdf5": "h5"}.get(out.suffix[1:], out.suffix[1:])
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    features = Store(store).open(key if isinstance(key, FeatureKey) else FeatureKey.parse(key))
    if not split and len(features.splits) > 1:
        raise UnknownNameError(
            f"{features.key} has the splits {', '.join(features.splits)}; say with --split which"
        )
    chosen = features[split or next(iter(features.splits))]
    beside = _beside(out) if form == "npy" else {}
    for path in (out, *beside.values()):
        if path.exists() and not overwrite:
            raise FeatStoreError(f"{path} exists. Use --overwrite, or another --out")
    n, width = int(chosen.valid.sum()), chosen.shape[1]
    with Spool(out.absolute().parent, width, str(chosen.embedding.dtype)) as spool:
        table = _table(chosen, (n, width), order, spool)
        if form == "npy":
            for name, path in beside.items():
                values = {**table.columns, "categories": np.array(table.categories)}[name]
                with _aside(path) as partial, partial.open("wb") as file:
                    np.save(file, values, allow_pickle=False)
        with _aside(out) as partial:
            FORMATS[form](partial, table)
    return len(chosen.valid) - n


def _beside(out: Path) -> dict[str, Path]:
    """Files of what is no feature, where a format holds one array only."""
    names = ("y", "sample_id", "index", "categories")
    return {name: out.with_name(f"{out.stem}.{name}.npy") for name in names}


def _table(split: Split, shape: tuple[int, int], order: str, spool: Spool) -> _Table:
    valid = split.valid
    columns = {
        "y": split.label[valid],
        "sample_id": np.array(split.array("sample_id")[valid].tolist(), dtype=str),
        "index": split.array("index")[valid],
    }

    def stored() -> Iterator[np.ndarray]:
        for number in range(len(split.chunk_digest)):
            span = split.span(number)
            yield split.chunk(number)[valid[span.start : span.stop]]

    def original() -> Iterator[np.ndarray]:
        return spool.blocks(shape[0])

    if order == "original":
        sequence = np.argsort(columns["index"], kind="stable")
        place = np.argsort(sequence, kind="stable")  # where each stored row goes
        done = 0
        for rows in stored():
            spool.put(place[done : done + len(rows)], rows)
            done += len(rows)
        columns = {name: values[sequence] for name, values in columns.items()}
    about = {"features": str(split), "recipe": split.digest}
    blocks = original if order == "original" else stored
    return _Table(shape, split.embedding.dtype, blocks, columns, split.categories, about)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Place of a file that becomes `path` once it is whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_array(file: IO[bytes], table: _Table) -> None:
    head = {"descr": table.dtype.str, "fortran_order": False, "shape": table.shape}
    npy_format.write_array_header_1_0(file, head)
    for rows in table.blocks():
        file.write(np.ascontiguousarray(rows).tobytes())


def _npy(path: Path, table: _Table) -> None:
    with path.open("wb") as file:
        _write_array(file, table)


def _npz(path: Path, table: _Table) -> None:
    with ZipFile(path, "w") as archive:
        with archive.open("X.npy", "w", force_zip64=True) as file:
            _write_array(file, table)
        for name, values in {**table.columns, "categories": np.array(table.categories)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy_format.write_array(file, np.asarray(values), allow_pickle=False)


def _h5(path: Path, table: _Table) -> None:
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update(table.about)
        features = file.create_dataset("X", table.shape, table.dtype)
        done = 0
        for rows in table.blocks():
            features[done : done + len(rows)] = rows
            done += len(rows)
        for name, values in table.columns.items():
            if values.dtype.kind == "U":
                file.create_dataset(name, data=values.astype(object), dtype=text)
            else:
                file.create_dataset(name, data=values)
        file.create_dataset("categories", data=table.categories, dtype=text)


def _parquet(path: Path, table: _Table) -> None:
    width = table.shape[1]
    about = {**table.about, "categories": json.dumps(table.categories)}
    labels = table.columns["y"]  # (n, c) where a sample may have several
    kind = pa.int64() if labels.ndim == 1 else pa.list_(pa.int8(), labels.shape[1])
    kinds = {"y": kind, "sample_id": pa.string(), "index": pa.int64()}
    fields = [pa.field(name, kind) for name, kind in kinds.items()]
    schema = pa.schema([*fields, pa.field("X", pa.list_(pa.float32(), width))], metadata=about)
    with pq.ParquetWriter(path, schema) as writer:
        done = 0
        for rows in table.blocks():
            values = pa.array(rows.astype(np.float32).ravel())
            X = pa.FixedSizeListArray.from_arrays(values, width)
            span = slice(done, done + len(rows))
            cut = {name: list(table.columns[name][span]) for name in kinds}
            parts = [pa.array(cut[name], kind) for name, kind in kinds.items()]
            writer.write_batch(pa.record_batch([*parts, X], schema=schema))
            done += len(rows)


def _safetensors(path: Path, table: _Table) -> None:
    """Written by hand, as the format asks for sizes first, not for all tensors in memory."""
    kinds = {"float16": "F16", "float32": "F32", "int64": "I64", "int8": "I8"}
    numbers = {name: v for name, v in table.columns.items() if v.dtype.kind != "U"}
    about = {
        **table.about,
        "categories": json.dumps(table.categories),
        "sample_id": json.dumps(table.columns["sample_id"].tolist()),
    }
    head: dict[str, Any] = {"__metadata__": about}
    offset = 0
    sizes = {name: (values.shape, values.dtype) for name, values in numbers.items()}
    for name, (shape, dtype) in {**sizes, "X": (table.shape, table.dtype)}.items():
        end = offset + int(np.prod(shape)) * dtype.itemsize
        place = [offset, end]
        head[name] = {"dtype": kinds[dtype.name], "shape": shape, "data_offsets": place}
        offset = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > 100_000_000:  # more than readers of the format accept
        raise FeatStoreError("the sample ids are too long for safetensors. Use another --format")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in numbers.values():
            file.write(np.ascontiguousarray(values).tobytes())
        for rows in table.blocks():
            file.write(np.ascontiguousarray(rows).tobytes())


FORMATS: dict[str, Callable[[Path, _Table], None]] = {
    "npy": _npy,
    "npz": _npz,
    "parquet": _parquet,
    "h5": _h5,
    "safetensors": _safetensors,
}
