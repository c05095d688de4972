"""Images in Arrow tables and Parquet files, as Hugging Face's datasets keep them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from featstore.datasets.files import decode, digest_encoded, read_encoded
from featstore.datasets.lists import first_line
from featstore.errors import BadImageError
from featstore.keys import canonical_json

log = logging.getLogger(__name__)

_LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Columns that hold the image and the label; `names` of the categories if the schema has them.

    Attributes
    ----------
    image, label : names of columns
    names : of the categories, or None
    """

    image: str
    label: str
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class ArrowImages:
    """Reader of an image column of Arrow files in stream form, mapped into memory.

    Attributes
    ----------
    files : paths ; starts : position of the first image of each
    column : its name
    names : n names, for messages
    folders : by file, what relative paths of images are relative to
    roots : folders that an image named by a path must lie in
    upright : turn images as their EXIF orientation says
    """

    files: tuple[str, ...]
    starts: tuple[int, ...]
    column: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    roots: tuple[str, ...]
    upright: bool

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position; raises BadImageError, naming it."""
        content, path = self._cell(position)
        if content is None:
            return decode(str(path), str(path), upright=self.upright)
        return decode(io.BytesIO(content), self.names[position], upright=self.upright)

    def _cell(self, position: int) -> tuple[bytes | None, Path | None]:
        """An image's bytes, or the path of its file."""
        file = bisect_right(self.starts, position) - 1
        table = _mapped(self.files[file])
        cell = table.column(self.column)[position - self.starts[file]].as_py()
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is not None:
            return content, None
        return None, image_path(cell["path"], self.folders[file], self.roots)

    def bytes_digest(self) -> str:
        """SHA-256 over the encoded images, in hex; raises BadImageError, naming a file."""
        cells = (self._cell(i) for i in range(len(self.names)))
        return digest_encoded(
            read_encoded(path) if path else content or b"" for content, path in cells
        )


def columns_of(schema: pa.Schema, options: Mapping[str, Any], where: str) -> Columns:
    """Columns of a table, by its features or, without them, by type and name.

    Parameters
    ----------
    options : `image` and `label` name columns where there are several

    Raises
    ------
    BadImageError
        There is no such column, or more than one.
    """
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = dict(json.loads(metadata).get("info", {}).get("features", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise BadImageError(
            f"{where}: the description of its columns cannot be read ({error}). Write it again"
        ) from error
    kinds = {k: v.get("_type", "") for k, v in features.items() if isinstance(v, dict)}
    images = [name for name, kind in kinds.items() if kind == "Image"] or [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and {part.name for part in field.type.fields} == {"bytes", "path"}
    ]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"] or [
        field.name
        for field in schema
        if field.name in _LABEL_COLUMNS and pa.types.is_integer(field.type)
    ]
    if len(labels) > 1:
        labels = [name for name in _LABEL_COLUMNS if name in labels] or labels
        labels = labels[:1] if labels[0] in _LABEL_COLUMNS else labels
    image = _one("image", options.get("image"), images, schema, where)
    label = _one("label", options.get("label"), labels, schema, where)
    names = features.get(label, {}).get("names")
    return Columns(image, label, tuple(map(str, names)) if names else None)


def _one(kind: str, asked: str | None, found: list[str], schema: pa.Schema, where: str) -> str:
    if asked is not None:
        found = [asked] if asked in schema.names else []
    if len(found) != 1:
        count = f"several {kind} columns" if found else f"no {kind} column"
        raise BadImageError(
            f"{where} has {count}; its columns are {', '.join(schema.names)}. Name it in a "
            f'catalogue of your own: options = {{{kind} = "COLUMN"}}'
        )
    return found[0]


def schema_of(file: Path) -> pa.Schema:
    """Schema of a Parquet file or an Arrow stream; raises BadImageError."""
    return _open(file).schema if file.suffix != ".parquet" else _parquet(file).schema_arrow


def column_of(file: Path, name: str) -> pa.ChunkedArray:
    """One column of a Parquet file or an Arrow stream; raises BadImageError."""
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file, columns=[name]).column(name)
        return _open(file).column(name)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise BadImageError(
            f"{file} has no column {name!r} that can be read ({first_line(error)}). All shards "
            f"must have the same columns: fetch it again"
        ) from error


def unpacked(files: Sequence[Path], column: str, folder: Path) -> list[Path]:
    """Arrow stream of the column of each Parquet file, written to `folder` unless it is there.

    A Parquet file has no place for each row: reading one image would unpack hundreds.

    Raises
    ------
    BadImageError
        A Parquet file is damaged.
    """
    targets = []
    for file in files:
        status = file.stat()
        state = [str(file.resolve()), status.st_size, status.st_mtime_ns, column]
        digest = hashlib.sha256(canonical_json(state)).hexdigest()[:16]
        target = folder / f"{file.stem}-{digest}.arrow"
        if not target.exists():
            log.info(
                "%s is unpacked to %s, so that its images can be read in any order", file, target
            )
            _unpack(file, column, target)
        targets.append(target)
    return targets


def _unpack(file: Path, column: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        source = _parquet(file)
        schema = pa.schema([source.schema_arrow.field(column)])
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in source.iter_batches(batch_size=64, columns=[column]):
                writer.write_batch(batch.cast(schema))
        partial.replace(target)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise BadImageError(
            f"{file} cannot be unpacked to {target} ({first_line(error)})"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise BadImageError(
            f"{file} is no Parquet file, or is cut off ({first_line(error)})"
        ) from error


def _open(file: Path) -> pa.Table:
    try:
        return _mapped(str(file))
    except (pa.ArrowException, OSError) as error:
        raise BadImageError(
            f"{file} is no Arrow file, or is cut off ({first_line(error)})"
        ) from error


@lru_cache(maxsize=1024)
def _mapped(file: str) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(file)).read_all()


def open_images(
    split: str,
    files: Sequence[Path],
    column: str,
    folders: Sequence[Path],
    roots: Sequence[Path],
    *,
    upright: bool,
) -> tuple[ArrowImages, tuple[str, ...], str]:
    """Reader of a split's images, their sample ids, and a digest over their sizes in hex.

    Parameters
    ----------
    files : Arrow streams in their order ; column : the images'
    folders : by file, what relative paths are relative to ; roots : where they may lead

    Raises
    ------
    BadImageError
        An image is missing, or lies where it may not.
    """
    allowed = tuple(str(root.resolve()) for root in roots)
    sizes: list[int] = []
    paths: list[str | None] = []
    starts = [0]
    for file, folder in zip(files, folders, strict=True):
        cells = column_of(file, column)
        content, named = cells, pa.chunked_array([pa.nulls(len(cells), pa.string())])
        if pa.types.is_struct(cells.type):
            content, named = pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path")
        content = content.cast(pa.large_binary())  # a column of nulls alone has no such type
        for size, path in zip(
            pc.binary_length(content).to_pylist(), named.to_pylist(), strict=True
        ):
            if size is None and path is None:
                raise BadImageError(f"{file}: row {len(sizes) - starts[-1]} of {column!r} is empty")
            if size is None:
                size = image_path(path, str(folder), allowed).stat().st_size
            sizes.append(size)
            paths.append(path)
        starts.append(len(sizes))
    ids = tuple(_ids(split, paths))
    digest = hashlib.sha256(canonical_json(sizes)).hexdigest()
    images = ArrowImages(
        tuple(map(str, files)), tuple(starts[:-1]), column, ids, tuple(map(str, folders)),
        allowed, upright,
    )  # fmt: skip
    return images, ids, digest


def _ids(split: str, paths: Sequence[str | None]) -> list[str]:
    """Paths as the table has them, where they tell images apart on any machine; else numbers."""
    kept = [path for path in paths if path and not Path(path).is_absolute()]
    if len(set(kept)) == len(paths):
        return kept
    return [f"{split}/{i}" for i in range(len(paths))]


def image_path(path: str, folder: str, roots: Sequence[str]) -> Path:
    """File that a table names instead of holding it.

    Raises
    ------
    BadImageError
        It is not there, on another machine, or outside `roots`.
    """
    if "://" in path:
        raise BadImageError(f"the table names {path}, which is not on this machine. Fetch it first")
    full = Path(folder, path).resolve()
    if not any(full.is_relative_to(root) for root in roots):
        raise BadImageError(
            f"the table names {path}, which lies outside {roots[0]}. A dataset may only name files "
            f"of its own"
        )
    if not full.is_file():
        raise BadImageError(f"the table names {path}, and there is no {full}")
    return full


def labels_of(files: Sequence[Path], column: str) -> np.ndarray:
    """(n,) int64 labels of shards in their order; -1 where one is unknown."""
    parts = [pc.fill_null(column_of(file, column).cast(pa.int64()), -1) for file in files]
    return np.concatenate([part.to_numpy() for part in parts])
