"""Columns of a Parquet file as arrays: lists as rows, scalars alone or side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featstore.transfer.spool import block_rows

Column = tuple[tuple[int, ...], str, Callable[[], Iterator[np.ndarray]]]
"""Shape, dtype in words, and what starts reading it block by block."""


def columns(path: Path) -> dict[str, Column]:
    """Columns that are numbers, names, or lists of numbers."""
    with pq.ParquetFile(path) as file:
        n = file.metadata.num_rows
        found: dict[str, Column] = {}
        for field in file.schema_arrow:
            read = partial(_blocks, path, field.name)
            if _is_list(field.type) and _is_number(field.type.value_type):
                found[field.name] = ((n, _length(file, field)), str(field.type.value_type), read)
            elif _is_number(field.type) or pa.types.is_boolean(field.type):
                found[field.name] = ((n,), str(field.type), read)
            elif _is_text(field.type):
                found[field.name] = ((n,), "str", read)
    return found


def names(path: Path) -> dict[str, list[str]]:
    """Category names, where the file's metadata hold a JSON list of them."""
    with pq.ParquetFile(path) as file:
        held = (file.schema_arrow.metadata or {}).get(b"categories")
    return {} if held is None else {"categories": [str(name) for name in json.loads(held)]}


def matrix(path: Path, wanted: Sequence[str]) -> Column:
    """Scalar columns side by side as one (n, columns) array."""
    with pq.ParquetFile(path) as file:
        n = file.metadata.num_rows
        types = [file.schema_arrow.field(name).type.to_pandas_dtype() for name in wanted]
    dtype = np.result_type(*types)

    def blocks() -> Iterator[np.ndarray]:
        for batch in _batches(path, wanted, len(wanted)):
            parts = [_values(batch.column(name), name).astype(dtype) for name in wanted]
            yield np.stack(parts, axis=1)

    return (n, len(wanted)), str(dtype), blocks


def _blocks(path: Path, name: str) -> Iterator[np.ndarray]:
    width = columns(path)[name][0][1:]
    for batch in _batches(path, [name], *width):
        column = batch.column(name)
        if not width:
            yield _values(column, name)
            continue
        lengths = set(column.value_lengths().to_pylist())
        if column.null_count or lengths != {*width}:
            raise ValueError(f"column {name} holds lists of unlike lengths, {sorted(lengths)[:3]}")
        yield _values(column.flatten(), name).reshape(len(batch), *width)


def _batches(path: Path, wanted: Sequence[str], width: int = 1) -> Iterator[Any]:
    # Buffered ahead, all that was read would be held until the end.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=block_rows(width, 8), columns=list(wanted))


def _values(column: Any, name: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"column {name} has {column.null_count} nulls")
    if _is_text(column.type):
        return np.array(column.to_pylist(), dtype=str)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _length(file: pq.ParquetFile, field: pa.Field) -> int:
    """Length of the lists in a column: of all by its type, or of the first."""
    if pa.types.is_fixed_size_list(field.type):
        return int(field.type.list_size)
    for batch in file.iter_batches(batch_size=1, columns=[field.name]):
        return len(batch.column(0)[0].as_py() or ())
    return 0


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
