"""Arrays in files of several kinds, listed before they are read, and read row block by row block.

No code in a file is ever run: pickled objects are refused, whatever they are packed in.
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.lib import format as npy_format
from safetensors import SafetensorError, safe_open

from featstore.errors import BadArrayError
from featstore.transfer import parquet
from featstore.transfer.lazy import Blocks, Source, of_array
from featstore.transfer.spool import block_rows

_RAW = {
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?"},
    **{f"{sign}{8 * size}": f"<{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)},
}
"""NumPy's name for each of safetensors' kinds of numbers."""


def pickled(where: str) -> BadArrayError:
    """Error for what cannot be read without running code."""
    return BadArrayError(
        f"{where} holds pickled Python objects, and reading them may run code. Save plain arrays "
        f"of numbers or names instead"
    )


def open_arrays(path: Path) -> dict[str, Source]:
    """Arrays of a file by name.

    Raises
    ------
    BadArrayError
        The file is absent, damaged, of a kind that is not read, or would have code run.
    """
    if not path.is_file():
        raise BadArrayError(f"no file at {path}. Check the path")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise BadArrayError(f"{path} is of no kind that is read; there are {', '.join(_KINDS)}")
    with _reading(path):
        found = kind(path)
    return {
        name: Source(one.where, one.shape, one.dtype, partial(_guarded, path, one.blocks))
        for name, one in found.items()
    }


def combine_columns(path: Path, names: Sequence[str]) -> Source:
    """The scalar columns of a table as one array, in the order of the table."""
    shape, dtype, blocks = parquet.matrix(path, names)
    return Source(f"{path}", shape, dtype, partial(_guarded, path, blocks))


def _guarded(path: Path, blocks: Blocks) -> Iterator[np.ndarray]:
    with _reading(path):
        yield from blocks()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the many readers raise on bytes that are cut, changed or unsafe, as one error."""
    try:
        yield
    except (ValueError, RuntimeError, LookupError, TypeError, EOFError, OSError, zlib.error,
            zipfile.BadZipFile, SafetensorError, pickle.UnpicklingError) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno:  # a disk that fails, not a file
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError) or "pickle" in reason or "Python o" in reason:
            raise pickled(str(path)) from error
        raise BadArrayError(f"{path} is damaged, or not what its name says ({reason})") from error


def _npy(path: Path) -> dict[str, Source]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # reads the header alone
    if not isinstance(array, np.memmap) or not array.ndim:
        raise ValueError("it holds no array")
    shape, dtype, offset = array.shape, array.dtype, array.offset
    read: Blocks = partial(_scattered, path)
    if array.flags.c_contiguous:
        read = partial(_file_blocks, path, dtype, shape, offset)
    return {"array": Source(str(path), shape, str(dtype), read)}


def _scattered(path: Path) -> Iterator[np.ndarray]:
    """Rows of an array in Fortran's order."""
    shape = np.load(path, mmap_mode="r").shape
    step = block_rows(int(np.prod(shape[1:])), 8)
    for start in range(0, shape[0], step):
        yield np.array(np.load(path, mmap_mode="r")[start : start + step])


def _file_blocks(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
) -> Iterator[np.ndarray]:
    """Rows that lie in a file as they are: read, since mapped pages would count as memory."""
    row = int(np.prod(shape[1:]))
    step = block_rows(row, dtype.itemsize)
    for start in range(0, shape[0], step):
        n = min(step, shape[0] - start)
        flat = np.fromfile(path, dtype, n * row, offset=offset + start * row * dtype.itemsize)
        yield flat.reshape(n, *shape[1:])


def _npz(path: Path) -> dict[str, Source]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, _, dtype = _header(file)
            name = member.removesuffix(".npy")
            found[name] = Source(
                f"{path}:{name}", shape, str(dtype), partial(_member_blocks, path, member)
            )
    return found


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype."""
    version = npy_format.read_magic(file)
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is of npy version {version}")
    return readers[version](file)


def _member_blocks(path: Path, member: str) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        if dtype.hasobject:
            raise ValueError(f"{member} is pickled")
        row = int(np.prod(shape[1:]))
        step = shape[0] if fortran else block_rows(row, dtype.itemsize)  # its rows lie scattered
        for start in range(0, shape[0], max(1, step)):
            n = min(step, shape[0] - start)
            flat = np.frombuffer(file.read(n * row * dtype.itemsize), dtype)
            if fortran:
                yield flat.reshape(shape, order="F")
            else:
                yield flat.reshape(n, *shape[1:])
        file.read()  # to the end, where the checksum is compared


def _torch(path: Path) -> dict[str, Source]:
    import torch  # here and below, since it takes longer to load than most files

    found = {}
    for name, value in _tensors(path).items():
        where = f"{path}:{name}"
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.ndim:
            shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
            found[name] = Source(where, shape, dtype, partial(_tensor_blocks, path, name, shape))
        elif isinstance(value, list | tuple) and all(isinstance(v, str | int) for v in value):
            found[name] = of_array(where, value)
    return found


def _tensors(path: Path) -> dict[str, Any]:
    """What a PyTorch file holds by name, mapped into memory where its format allows that."""
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the old format cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        loaded = {"tensor": loaded}
    if isinstance(loaded, tuple | list):
        loaded = dict(enumerate(loaded))
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, not named tensors")
    return {str(name): value for name, value in loaded.items()}


def _tensor_blocks(path: Path, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    import torch

    tensor = _tensors(path)[name]
    mapped = zipfile.is_zipfile(path)
    step = block_rows(int(np.prod(shape[1:])), tensor.element_size())
    for start in range(0, shape[0], step):
        if mapped:  # anew for each block, since pages that were read count as memory
            tensor = _tensors(path)[name]
        part = tensor[start : start + step].detach().clone()
        known = (torch.float16, torch.float32, torch.float64)
        if part.is_floating_point() and part.dtype not in known:
            part = part.float()  # NumPy has no bfloat16
        yield part.numpy()


def _safetensors(path: Path) -> dict[str, Source]:
    with safe_open(path, framework="np") as file:  # checks the whole header
        about = file.metadata() or {}
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        head = json.loads(raw.read(size))
    found = {}
    for name, facts in head.items():
        if name != "__metadata__" and facts["shape"]:
            shape, place = tuple(facts["shape"]), 8 + size + facts["data_offsets"][0]
            read = partial(_raw_blocks, path, facts["dtype"], shape, place)
            found[name] = Source(f"{path}:{name}", shape, facts["dtype"], read)
    for name in ("sample_id", "categories"):  # names have no tensor of their own
        if name in about:
            values = [str(one) for one in json.loads(about[name])]
            found.setdefault(name, of_array(f"{path}:{name}", values))
    return found


def _raw_blocks(path: Path, kind: str, shape: tuple[int, ...], offset: int) -> Iterator[np.ndarray]:
    if kind not in (*_RAW, "BF16"):
        raise ValueError(f"it holds {kind}")
    for rows in _file_blocks(path, np.dtype(_RAW.get(kind, "<u2")), shape, offset):
        # NumPy has no bfloat16, which is the upper half of a float32
        yield rows if kind in _RAW else (rows.astype("<u4") << 16).view("<f4")


def _h5(path: Path) -> dict[str, Source]:
    found: dict[str, Source] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            text = h5py.check_string_dtype(item.dtype)
            found[name] = Source(
                f"{path}:{name}", item.shape, "str" if text else str(item.dtype),
                partial(_dataset_blocks, path, name),
            )  # fmt: skip

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def _dataset_blocks(path: Path, name: str) -> Iterator[np.ndarray]:
    with h5py.File(path, "r") as file:
        dataset = file[name]
        shape = dataset.shape
        text = h5py.check_string_dtype(dataset.dtype)
        values = dataset.asstr() if text else dataset
        step = block_rows(int(np.prod(shape[1:])), dataset.dtype.itemsize)
        for start in range(0, shape[0], step):
            part = np.asarray(values[start : start + step])
            yield part.astype(str) if text else part


def _parquet(path: Path) -> dict[str, Source]:
    found = {
        name: Source(f"{path}:{name}", shape, dtype, blocks)
        for name, (shape, dtype, blocks) in parquet.columns(path).items()
    }
    for name, values in parquet.names(path).items():
        found.setdefault(name, of_array(f"{path}:{name}", values))
    return found


_KINDS: dict[str, Callable[[Path], dict[str, Source]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".h5": _h5,
    ".hdf5": _h5,
    ".parquet": _parquet,
}
