"""Containers of weights: files of `torch.save`, new and old, and plain pickles, read as data."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featstore.models.unpickle import ArrayRecord, Reader, Storage, TensorRecord

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file of torch.save before 1.6
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    TypeError,
    MemoryError,
    OverflowError,
    OSError,
)
"""What reading raises on bytes that are cut, changed or made up."""

Load = Callable[[Storage], bytes]
"""From a storage to its bytes, as many as it says."""


@contextmanager
def opened(source: Path) -> Iterator[tuple[Any, Reader, Load]]:
    """What a file holds, the reader that read it, and how to get the bytes of a storage.

    The file is of `torch.save`, in its form of today (zip) or before 1.6 (legacy), or a pickle.

    Raises
    ------
    pickle.UnpicklingError
        It is none of these, as far as that can be told. Damage may raise anything in `DAMAGE`.
    """
    with source.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                yield _from_zip(archive)
            return
        # Mapped, since a file would set aside as many bytes as a pickle claims to hold.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            reader = Reader(whole)
            content = reader.load()
            if type(content) is not int or content != _MAGIC:
                yield content, reader, _no_storage
                return
            for _ in ("protocol", "system"):
                Reader(whole).load()
            reader = Reader(whole)
            content = reader.load()
            yield content, reader, _legacy_storages(whole, reader.storages)


def _from_zip(archive: zipfile.ZipFile) -> tuple[Any, Reader, Load]:
    names = archive.namelist()
    root = names[0].partition("/")[0]
    if f"{root}/constants.pkl" in names:
        raise pickle.UnpicklingError("it is a TorchScript program; save its state_dict() instead")
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise pickle.UnpicklingError("its numbers are in big-endian order")
    reader = Reader(io.BytesIO(archive.read(f"{root}/data.pkl")))
    content = reader.load()

    def load(storage: Storage) -> bytes:
        info = archive.getinfo(f"{root}/data/{storage.key}")
        _check_size(storage, info.file_size)  # before it is unpacked
        return archive.read(info)

    return content, reader, load


def _legacy_storages(file: mmap.mmap, storages: Mapping[str, Storage]) -> Load:
    """Storages behind the pickles: a list of their keys, then size and numbers of each."""
    places = {}
    for key in Reader(file).load():
        size = struct.unpack("<q", file.read(8))[0]
        places[key] = file.tell()
        dtype = storages[key].dtype
        if dtype is None or size != storages[key].size:
            raise pickle.UnpicklingError(f"storage {key} is not what its tensors say")
        file.seek(size * dtype.itemsize, os.SEEK_CUR)

    def load(storage: Storage) -> bytes:
        file.seek(places[storage.key])
        whole = storages[storage.key]
        data = file.read(whole.size * (whole.dtype.itemsize if whole.dtype else 0))
        _check_size(storage, len(data))
        return data

    return load


def _no_storage(storage: Storage) -> bytes:
    raise pickle.UnpicklingError(f"no storage {storage.key} in a plain pickle")


def _check_size(storage: Storage, found: int) -> None:
    if storage.dtype is None or found != storage.size * storage.dtype.itemsize:
        raise pickle.UnpicklingError(f"storage {storage.key} has {found} bytes, not what it says")


def tensor_of(value: Any, load: Load, raw: dict[str, bytearray]) -> Tensor | None:
    """A tensor with contiguous memory of its own, or None for what is no tensor or array.

    `raw` keeps the storages that were loaded, for the other tensors that share them.
    """
    if isinstance(value, ArrayRecord):
        array = value.numbers()
        return None if array is None else torch.from_numpy(array)
    if not isinstance(value, TensorRecord) or value.dtype is None:
        return None
    key = value.storage.key
    if key not in raw:
        raw[key] = bytearray(load(value.storage))
    data = torch.frombuffer(raw[key], dtype=value.dtype) if raw[key] else torch.empty(0)
    view = data.to(value.dtype).as_strided(value.shape, value.strides, value.offset)
    return view.clone(memory_format=torch.contiguous_format)
