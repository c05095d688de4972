"""Pickles read as data: what they name is not imported, and nothing but what is listed is called.

Arrays and tensors come as records of where their numbers lie; every other object as a stand-in.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch


class StandIn:
    """What a pickle has in place of a class, a function or an object that is not listed here.

    Attributes
    ----------
    name : module and name of the class or function
    args : what it would have been called with, None for the class or function itself
    state : what its object would have been given
    """

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: Any = None


@dataclass(frozen=True)
class Storage:
    """Numbers of one tensor or several, which lie elsewhere in the file.

    Attributes
    ----------
    key : its name in the file ; size : how many numbers it has
    dtype : of its numbers, None where PyTorch has no such dtype
    first : where those that are meant begin
    """

    key: str
    dtype: torch.dtype | None
    size: int
    first: int = 0


@dataclass(frozen=True)
class TensorRecord:
    """A view on a storage: offset, shape and strides, counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype | None


class DtypeRecord:
    """A numpy dtype; `found` is None unless it is of plain numbers."""

    def __init__(self, text: Any) -> None:
        plain = isinstance(text, str) and re.fullmatch(
            r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)", text
        )
        self.found = np.dtype(text) if plain else None


class ArrayRecord:
    """A numpy array or scalar: its bytes, and how to read them."""

    def __init__(
        self, shape: Any = (), dtype: Any = None, data: Any = b"", *, fortran: bool = False
    ) -> None:
        self.shape, self.dtype, self.data, self.fortran = shape, dtype, data, fortran

    def numbers(self) -> np.ndarray | None:
        """The array in this machine's byte order, or None if it is not of plain numbers."""
        found = self.dtype.found if isinstance(self.dtype, DtypeRecord) else None
        if found is None:
            return None
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        flat = np.frombuffer(data, found)
        array = flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)
        return np.array(array, found.newbyteorder("="), order="C")


@dataclass(frozen=True)
class _Known:
    """A listed class or function, and what is done in its place."""

    name: str
    make: Callable[..., Any]


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype | None


class Reader(pickle._Unpickler):
    """Unpickler that gives plain values, records and stand-ins.

    Attributes
    ----------
    foreign : names of classes and functions that stand-ins took the place of
    storages : those of the tensors, by key
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: io.BytesIO | mmap.mmap) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 wrote the bytes of arrays as text
        self.foreign: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global; it is never imported."""
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _Known(full, _KNOWN[full])
        if name.endswith("Storage") and module in ("torch", "torch.cuda", "torch.storage"):
            return _StorageType(_STORAGES.get(name))
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full not in _HARMLESS:
            self.foreign.add(full)
        return StandIn(full)

    def persistent_load(self, pid: Any) -> Storage:
        """Storage that a tensor points to, by PyTorch's convention."""
        kind, storage_type, key, _, size, *rest = pid
        if kind != "storage" or type(storage_type) is not _StorageType:
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        view = rest[0] if rest else None  # of another storage: its own key, offset, size
        whole = Storage(str(key), storage_type.dtype, int(size))
        self.storages.setdefault(whole.key, whole)
        return Storage(whole.key, whole.dtype, whole.size, int(view[1])) if view else whole

    def get_extension(self, code: int) -> None:
        """Nothing: extensions name classes that other code of this process registered."""
        raise pickle.UnpicklingError(f"extension {code}")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(_call(klass, tuple(args)))

    # One method for each opcode that calls or fills an object; the others make plain values.

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def _new_with_keywords(self) -> None:
        keywords = self.stack.pop()
        self._reduce()
        if type(self.stack[-1]) is StandIn:
            self.stack[-1].state = keywords

    def _build(self) -> None:
        state = self.stack.pop()
        _give(self.stack[-1], state)

    def _append(self) -> None:
        value = self.stack.pop()
        _fill(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self.pop_mark()
        _fill(self.stack[-1], values)

    def _bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # not as many zeros as it claims to hold

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _new_with_keywords,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _appends,
        pickle.ADDITEMS[0]: _appends,
        pickle.BYTEARRAY8[0]: _bytearray,
    }


def _call(function: Any, args: Any) -> Any:
    if type(function) is _Known:
        return function.make(*args)
    name = function.name if type(function) is StandIn else type(function).__name__
    return StandIn(name, tuple(args))


def _give(target: Any, state: Any) -> None:
    """What BUILD does; the attributes of dicts and tensors are of no interest."""
    if type(target) is StandIn:
        target.state = state
    elif type(target) is ArrayRecord:
        _, target.shape, target.dtype, target.fortran, target.data = state
    elif type(target) is DtypeRecord and target.found is not None and state[1] in ("<", ">"):
        target.found = target.found.newbyteorder(state[1])


def _fill(target: Any, items: list[Any]) -> None:
    """What the opcodes that fill a container do; a stand-in for one stays as it is."""
    if type(target) is dict:
        target.update(zip(items[::2], items[1::2], strict=True))
    elif type(target) is list:
        target.extend(items)
    elif type(target) is set:
        target.update(items)


def _dict(items: Any = ()) -> dict[Any, Any]:
    return dict(items if type(items) in (dict, list, tuple) else ())


def _set(items: Any = ()) -> set[Any]:
    return set(items if type(items) in (list, tuple, set) else ())


def _tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    return _view(storage, offset, shape, strides, storage.dtype)


def _tensor_v3(
    storage: Storage, offset: int, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any,
    *_: Any,
) -> TensorRecord:  # fmt: skip
    return _view(storage, offset, shape, strides, dtype)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> TensorRecord:
    whole = type(storage) is Storage and all(type(n) is int for n in (offset, *shape, *strides))
    if not whole or (dtype is not None and type(dtype) is not torch.dtype):
        raise pickle.UnpicklingError("a tensor without numbers")
    return TensorRecord(storage, offset + storage.first, tuple(shape), tuple(strides), dtype)


def _latin1(text: Any, encoding: Any = "") -> bytes:
    """What `_codecs.encode` gives, as which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _dill_array(function: Any, args: Any, state: Any, _attributes: Any = None) -> Any:
    """What dill writes for an array: numpy's own function, its arguments and the state."""
    array = _call(function, args)
    _give(array, state)
    return array


def _old_object(kind: Any, *_: Any) -> StandIn:
    return StandIn(str(getattr(kind, "name", "")), ())


_KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda _factory=None, items=(): _dict(items),
    "_codecs.encode": _latin1,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "dill._dill._create_array": _dill_array,
    "dill.dill._create_array": _dill_array,  # before 0.2.9
    "numpy.dtype": lambda text, *_: DtypeRecord(text),
}
for _module in ("builtins", "__builtin__"):  # as Python 3 and 2 call it
    _KNOWN[f"{_module}.bytes"] = lambda: b""  # as protocol 2 writes those of an empty array
    _KNOWN[f"{_module}.set"] = _set
    _KNOWN[f"{_module}.frozenset"] = lambda items=(): frozenset(_set(items))
for _module in ("copyreg", "copy_reg"):
    _KNOWN[f"{_module}._reconstructor"] = _old_object
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    for _module in ("multiarray", "_multiarray_umath"):
        _KNOWN[f"{_core}.{_module}._reconstruct"] = lambda *_: ArrayRecord()
        _KNOWN[f"{_core}.{_module}.scalar"] = lambda dtype, data=b"": ArrayRecord((), dtype, data)
    _KNOWN[f"{_core}.numeric._frombuffer"] = lambda data, dtype, shape, order="C": ArrayRecord(
        shape, dtype, data, fortran=order == "F"
    )

_HARMLESS = {
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.object",
    "__builtin__.object",
    "numpy.ndarray",
    "torch.device",
}
"""Stood in for like all others, but not worth a word."""

_STORAGES: dict[str, torch.dtype] = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
