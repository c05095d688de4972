"""How a split lies on disk: chunk sizes, codecs, checksums."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numcodecs
import numpy as np
import xxhash
import zarr
from zarr.codecs import ZstdCodec

from featstore.keys import canonical_json

CHUNK_ROWS = 2048
"""Most rows in a chunk: 8 MiB of 2048 float16 features. The same for every width, so that models
and sites of one decoding pass share batches and units of work."""

ARRAYS = (
    *("chunk_digest", "embedding", "index", "label"),
    *("mean", "sample_id", "valid", "variance"),
)
"""All arrays of a split."""

SPLITS = ("train", "val", "test")

_VIEW = re.compile(r"train\+aug(\d+)")


def view_name(number: int) -> str:
    """Name that a random view of the train split is stored under."""
    return f"train+aug{number}"


def view_number(name: str) -> int | None:
    """Number of the random view that a split's name stands for, None for a plain split."""
    found = _VIEW.fullmatch(name)
    return int(found[1]) if found else None


def row_order(fingerprint: str, n: int) -> np.ndarray:
    """(n,) int64 permutation seeded by a split's fingerprint: position in the dataset of each row.

    From the raw stream of PCG64, which NumPy promises to keep, unlike `permutation`.
    """
    draws = np.random.PCG64(int(fingerprint[:32], 16)).random_raw(n)
    return np.argsort(draws, kind="stable").astype(np.int64)


def chunk_rows_for(n_rows: int, most: int = CHUNK_ROWS) -> int:
    """Rows per chunk that fill the fewest chunks evenly, so that no chunk is a stub of one row."""
    n_chunks = max(1, -(-n_rows // most))
    return max(1, -(-n_rows // n_chunks))


def parse_codec(codec: str, dtype: str) -> int | None:
    """Mantissa bits that `bitround:N` keeps, or None for the lossless `none` and `zstd`.

    Raises
    ------
    ValueError
        The codec is none of these, or N is not within the dtype's mantissa.
    """
    if codec in ("none", "zstd"):
        return None
    most = {"float16": 10, "float32": 23}[dtype]
    name, _, bits = codec.partition(":")
    if name != "bitround" or not bits.isdigit() or not 1 <= int(bits) <= most:
        raise ValueError(f"codec must be none, zstd or bitround:1..{most} ({dtype}), got {codec!r}")
    return int(bits)


_OPENING = Lock()


def open_array(path: Path, *, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """A numeric array whose chunks go through the zarrs pipeline.

    It moves bytes at two to five times the rate of zarr-python's own, those of several chunks asked
    for at once on all cores. It writes a chunk in place: only for arrays whose half-written chunks
    are known by another sign.
    """
    # An array keeps the pipeline it was opened with: what the process has set otherwise stays so.
    with _OPENING, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(path, mode=mode, zarr_format=3)


def digest_rows(rows: np.ndarray, valid: np.ndarray) -> int:
    """xxh3_64 over a chunk's rows as stored and its validity; 0 means "not written", so it is 1."""
    hasher = xxhash.xxh3_64(np.ascontiguousarray(rows).data)
    hasher.update(np.ascontiguousarray(valid).data)
    return hasher.intdigest() or 1


def digest_files(folder: Path) -> str:
    """xxh3_64, in hex, over names and bytes of all files below a folder: nothing goes unnoticed.

    Not even in what no reader sees, such as the padding of a last chunk.
    """
    hasher = xxhash.xxh3_64()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        hasher.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode())
        hasher.update(data)
    return hasher.hexdigest()


def round_rows(rows: np.ndarray, *, dtype: str, codec: str) -> np.ndarray:
    """Rows as they will be read back: cast, and rounded if the codec is lossy."""
    cast = np.ascontiguousarray(rows, dtype=dtype)
    bits = parse_codec(codec, dtype)
    if bits is None:
        return cast
    rounder = numcodecs.BitRound(keepbits=bits)
    rounded = np.frombuffer(rounder.encode(cast.copy()), dtype=dtype)
    return np.asarray(rounded).reshape(cast.shape)


def compressors(codec: str) -> list[ZstdCodec] | None:
    """Zarr's compressors for a codec: none by default, since dense embeddings do not compress."""
    return None if codec == "none" else [ZstdCodec(level=3)]


def digest_metadata(path: Path) -> str:
    """xxh3_64, in hex, over a split's group metadata but `complete`, whatever its spacing."""
    document = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    document["attributes"].pop("complete", None)
    return xxhash.xxh3_64(canonical_json(document)).hexdigest()
