"""Old weights files: their tensors are taken out as they were saved, and no code in them runs."""

import argparse
import copyreg
import io
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from featstore import cli
from featstore.errors import BadCheckpointError
from featstore.models import create_backbone, load_model
from featstore.models.convert import convert, convert_entry
from featstore.models.fetch import status, weights_file
from featstore.models.names import catalogue


def zipped(content, path):
    torch.save(content, path)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(content, path, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))


BOTH = pytest.mark.parametrize("save", [zipped, legacy])
ALL = pytest.mark.parametrize(
    "save", [zipped, legacy, plain, partial(plain, protocol=0), partial(plain, protocol=5)]
)


@pytest.fixture
def source(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "weights.safetensors"


def same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [
            t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)
        ]
        assert torch.equal(*bits), name


def state():
    draw = torch.Generator().manual_seed(3)
    whole = torch.randn(24, generator=draw)
    of_dtypes = {
        str(dtype): (torch.randn(3, 2, generator=draw) * 9).abs().to(dtype)
        for dtype in (
            *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
            *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
            *(torch.uint16, torch.complex64),
        )
    }
    return of_dtypes | {
        "shared.1": whole[4:10],
        "shared.2": whole[:8],
        "tied": whole[4:10],
        "strided": whole.view(4, 6)[:, 1:3],
        "transposed": whole.view(4, 6).T,
        "expanded": torch.full((), 2.5).expand(30, 40),
        "parameter": nn.Parameter(torch.randn(2, generator=draw)),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "bn.num_batches_tracked": torch.tensor(5),
    }


@BOTH
def test_tensors_are_as_they_were_saved_each_with_memory_of_its_own(save, source, target):
    save(OrderedDict(state()), source)
    done = convert(source, target)
    found = load_file(target)
    same(found, state())
    assert (done.tensors, done.foreign, done.left_out) == (len(found), (), ())
    assert target.stat().st_size > 30 * 40 * 4  # expanded in full
    assert list(target.parent.iterdir()) == [target]


@BOTH
@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict"])
def test_the_usual_nests_are_found_without_being_named(save, nest, source, target):
    save({nest: state(), "epoch": 3}, source)
    convert(source, target)
    same(load_file(target), state())


def test_a_nest_without_tensors_does_not_hide_those_that_lie_bare(source, target):
    zipped({"a": torch.ones(2), "model": {"depth": 50}}, source)
    assert convert(source, target).left_out == ("model",)
    same(load_file(target), {"a": torch.ones(2)})


@BOTH
def test_a_nest_leads_to_its_own_tensors_and_no_others(save, source, target):
    twins = {"ema": {"net": state()}, "model": {"net": {"a": torch.ones(2)}}}
    save({"state": twins}, source)
    convert(source, target, nest="state/ema/net")
    same(load_file(target), state())


@pytest.mark.parametrize(
    "nest", ["", "state", "state/emma", "state/ema/net/a", "state/ema/net/a/b"]
)
def test_where_tensors_lie_is_told_if_not_where_they_should(nest, source, target):
    zipped({"state": {"ema": {"net": state()}, "n": {"a": torch.ones(2)}}}, source)
    with pytest.raises(BadCheckpointError) as caught:
        convert(source, target, nest=nest)
    assert f"state/ema/net ({len(state())}), state/n (1): give that with --nest" in str(
        caught.value
    )
    assert not target.parent.exists()


def test_counters_become_integers_and_what_is_no_tensor_is_left_out_by_name(source, target):
    content = {
        "a": torch.ones(2),
        "bn.num_batches_tracked": torch.tensor(7.0),
        "bn2.num_batches_tracked": np.int32(8),
        "epoch": 3,
        "nested": {"b": torch.ones(1)},
        5: torch.ones(1),
        "words": np.array(["x"]),
    }
    zipped(content, source)
    done = convert(source, target)
    expected = {
        "a": torch.ones(2),
        "bn.num_batches_tracked": torch.tensor(7),
        "bn2.num_batches_tracked": torch.tensor(8),
    }
    same(load_file(target), expected)
    assert done.left_out == ("epoch", "nested", "5", "words")


def renamed(source, old, new):
    """The same file, from a program that called its modules otherwise."""
    assert len(pickle.dumps(old)) > 0
    if not zipfile.is_zipfile(source):
        data = source.read_bytes()
        assert old in data
        source.write_bytes(data.replace(old, new))
        return
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    assert old in parts[pickled]
    parts[pickled] = parts[pickled].replace(old, new)
    with zipfile.ZipFile(source, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


ARRAYS = {
    "f4": np.arange(6, dtype="f4").reshape(2, 3),
    "f8": np.linspace(0, 1, 5),
    "big": np.arange(4, dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::-1],
    "half": np.arange(3, dtype="f2"),
    "int": np.arange(3, dtype="i8"),
    "bool": np.array([True, False]),
    "0d": np.array(2.5),
    "scalar": np.float32(1.5),
    "empty": np.zeros((0, 3), "f4"),
    "fc.num_batches_tracked": np.array(9),
}


def test_numpy_names_are_as_this_test_expects():
    assert b"cnumpy._core.multiarray\n" in pickle.dumps(ARRAYS["f4"], 2)


@ALL
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core", b"numpy._core._multiarray_umath"])
def test_numpy_arrays_become_tensors_under_whichever_name_numpy_had(save, core, source, target):
    save({"model_state_dict": ARRAYS, "loss": np.float64(0.3)}, source)
    protocol_5 = save is ALL.args[1][-1]
    if core == b"numpy.core" and not protocol_5:
        renamed(source, b"numpy._core", core)
    elif core.endswith(b"umath") and not protocol_5:
        renamed(source, b"numpy._core.multiarray", core)
    done = convert(source, target)
    expected = {
        name: torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
        for name, array in ARRAYS.items()
    }
    same(load_file(target), expected)
    assert done.foreign == ()


class HistoryBuffer:
    """As openmmlab keeps its losses: numpy arrays, and a table of functions."""

    def __init__(self):
        self._log_history = np.arange(5.0)
        self._statistics_methods = OrderedDict(mean=HistoryBuffer.mean)

    def mean(self):
        raise AssertionError("called")

    def __setstate__(self, state):
        raise AssertionError("called")


class Listing(list):
    def append(self, value):
        raise AssertionError("called")

    extend = append


class Table(dict):
    def __setitem__(self, key, value):
        raise AssertionError("called")


class Keywords:
    def __new__(cls, *, a):
        return object.__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"a": 1}


@pytest.fixture
def foreign(monkeypatch):
    """Puts a class into a module of another project, which is gone once the file is written."""

    def give(thing, module):
        parts = module.split(".")
        for i in range(len(parts)):
            name = ".".join(parts[: i + 1])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[module], thing.__name__, thing)
        monkeypatch.setattr(thing, "__module__", module)
        return thing

    return give


def forget(monkeypatch, *projects):
    """No such project is installed where the file is read."""
    for name in [n for n in sys.modules if n.partition(".")[0] in projects]:
        monkeypatch.delitem(sys.modules, name)


@ALL
def test_classes_of_other_projects_are_stood_in_for_and_named(
    save, source, target, foreign, monkeypatch
):
    values = {"a": torch.ones(3)} if save in (zipped, legacy) else {"a": np.ones(3, "f4")}
    others = [
        foreign(c, "mmengine.logging.buffers") for c in (HistoryBuffer, Listing, Table, Keywords)
    ]
    content = {
        "meta": {"seed": 1, "path": PurePosixPath("a/b")},
        "state_dict": OrderedDict(values),
        "message_hub": {
            "log_scalars": OrderedDict(loss=others[0]()),
            "more": [Listing([1]), Listing([1, 2]), Keywords(a=1)],
            "tables": [dict.__new__(Table), dict.__new__(Table)],
        },
        "args": argparse.Namespace(lr=0.1, sizes={1, 2}, frozen=frozenset({3})),
        "counts": defaultdict(list, a=[1]),
        "shape": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
    }
    for table, keys in zip(content["message_hub"]["tables"], ("k", "kl"), strict=True):
        dict.update(table, dict.fromkeys(keys, 1))
    if save in (zipped, legacy):
        save(content, source)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(source, weights_only=True)
    else:
        save(content | {"dtype": 0}, source)
    forget(monkeypatch, "mmengine")
    with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):
        pickle.loads(source.read_bytes()) if save not in (zipped, legacy) else torch.load(
            source, weights_only=False
        )
    done = convert(source, target)
    same(load_file(target), {"a": torch.ones(3)})
    ours = {
        f"mmengine.logging.buffers.{n}" for n in ("HistoryBuffer", "Listing", "Table", "Keywords")
    }
    assert ours <= set(done.foreign)
    rest = {name.rpartition(".")[2] for name in set(done.foreign) - ours}
    assert rest <= {
        "PurePosixPath",
        "getattr",
        "HistoryBuffer.mean",
        "mean",
        "list",
        "dict",
        "partial",
    }


def test_a_pickle_of_python_2_is_read(source, target):
    values = np.array([-1.5, 3], "<f4")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\nU\x08" + values.tobytes() + b"tb"
    )
    others = b"U\x01b(I1\ninets\nOld\n}U\x01kI1\nsbU\x01c(cnets\nNew\nI1\no"
    source.write_bytes(b"\x80\x02}(U\x01a" + array + others + b"u.")
    done = convert(source, target)
    same(load_file(target), {"a": torch.from_numpy(values)})
    assert done.foreign == ("nets.New", "nets.Old")


# Code in files


class Runs:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Holds:
    """Pickled with a state, which is given to it when it is loaded."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return Holds, (), self.state

    def __new__(cls, *_):
        return object.__new__(cls)


def payloads(marker):
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(eval, write),
        "exec": Runs(exec, write),
        "popen": Runs(subprocess.Popen, ["touch", str(marker)]),
        "path": Runs(Path.touch, Path(marker)),
        "open": Runs(open, str(marker), "w"),
        "torch": Runs(torch.save, [1], str(marker)),
        "numpy": Runs(np.savetxt, str(marker), [1.0]),
        "partial": Runs(partial(os.system, f"touch {marker}")),
        "map": Runs(list, Runs(map, os.system, [f"touch {marker}"])),
    }


PAYLOADS = sorted(payloads("x"))
PLACES = {
    "bare": lambda evil: evil,
    "list": lambda evil: [1, (evil, {"k": evil})],
    "key": lambda evil: {(1, evil): 2},
    "ordered": lambda evil: OrderedDict(a=evil),
    "default": lambda evil: defaultdict(list, a=evil),
    "state": lambda evil: argparse.Namespace(a=evil),
    "foreign state": lambda evil: Holds({"a": evil}),
    "set": lambda evil: {evil},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
@ALL
def test_code_in_a_file_does_not_run(save, payload, place, source, target, tmp_path):
    marker = tmp_path / "marker"
    tensors = {"a": np.ones(2, "f4")}
    evil = PLACES[place](payloads(marker)[payload])
    save({"state_dict": {**tensors, "evil": evil}, "more": evil}, source)
    done = convert(source, target, trust=True)  # not even then, for it can be read as data
    same(load_file(target), {"a": torch.ones(2)})
    assert not marker.exists()
    assert done.left_out == ("evil",)
    assert not done.trusted
    assert done.foreign


@pytest.mark.parametrize("payload", ["system", "eval", "exec", "map"])
@BOTH
def test_these_files_would_run_their_code_otherwise(save, payload, source, tmp_path):
    marker = tmp_path / "marker"
    save({"state_dict": {"evil": payloads(marker)[payload]}}, source)
    torch.load(source, weights_only=False)
    assert marker.exists()


@BOTH
def test_code_in_a_file_does_not_run_for_a_file_that_has_nothing_else(
    save, source, target, tmp_path
):
    save(payloads(tmp_path / "marker")["system"], source)
    with pytest.raises(BadCheckpointError, match="there are none at all"):
        convert(source, target)
    assert not (tmp_path / "marker").exists()


STREAMS = {
    "python 2": b"c__builtin__\neval\n(S'{}'\ntR.",
    "instance": b"(S'{}'\niposix\nsystem\n.",
    "object": b"(cposix\nsystem\nS'{}'\no.",
    "new": b"\x80\x02cposix\nsystem\n(S'{}'\nt\x81.",
    "new with keywords": b"\x80\x04cposix\nsystem\n(S'{}'\nt}\x92.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93(S'{}'\ntR.",
    "dotted": b"\x80\x04\x8c\x02os\x8c\x0bpath.os.open\x93(S'{}'\ntR.",
    "build a class": b"ccollections\nOrderedDict\n}S'make'\ncposix\nsystem\nsb(S'{}'\ntR.",
    "build with slots": b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'make'\ncposix\nsystem\nstb.",
    "append": b"cposix\nsystem\nS'{}'\na.",
    "item": b"cposix\nsystem\nS'{}'\nS'{}'\ns.",
    "call of a call": b"cbuiltins\ngetattr\n(cposix\nsystem\nS'__call__'\ntR(S'{}'\ntR.",
    "extension": b"\x80\x02\x82\xf1(S'{}'\ntR.",
    "reference": b"\x80\x02(S'storage'\ncposix\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
    "encode": b"c_codecs\nencode\n(V{}\nS'zip'\ntR.",
}


@pytest.mark.parametrize("kind", STREAMS)
def test_no_opcode_gets_at_code(kind, source, target, tmp_path, monkeypatch):
    monkeypatch.setattr(copyreg, "_inverted_registry", {0xF1: ("posix", "system")})
    monkeypatch.setattr(copyreg, "_extension_cache", {0xF1: os.system})
    source.write_bytes(STREAMS[kind].replace(b"{}", f"touch {tmp_path / 'marker'}".encode()))
    with pytest.raises(BadCheckpointError):
        convert(source, target)
    assert not (tmp_path / "marker").exists()
    zipped(state(), source)  # and what is listed is as it was
    convert(source, target)
    same(load_file(target), state())


def test_a_program_of_torchscript_is_refused(source, target):
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("net/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(BadCheckpointError, match="TorchScript"):
        convert(source, target)


# Damage


def rebuilt(shape, strides, offset, size=4, data=16):
    """A zip file with one tensor that says this of itself."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if thing is Storage else None

    class Tensor:
        def __reduce__(self):
            arguments = (Storage, offset, shape, strides, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Tensor()})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/data/0", np.arange(data / 4, dtype="<f4").tobytes())
        archive.writestr("archive/byteorder", b"little")
    return packed.getvalue()


def test_a_tensor_made_by_hand_is_read(source, target):
    source.write_bytes(rebuilt((2, 2), (1, 2), 0))
    convert(source, target)
    assert load_file(target)["a"].tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "false",
    [
        {"shape": (5,), "strides": (1,), "offset": 0},
        {"shape": (4,), "strides": (1,), "offset": 1},
        {"shape": (4,), "strides": (1,), "offset": -1},
        {"shape": (2,), "strides": (-1,), "offset": 3},
        {"shape": (2,), "strides": (4,), "offset": 0},
        {"shape": (-4,), "strides": (1,), "offset": 0},
        {"shape": (4,), "strides": (), "offset": 0},
        {"shape": ("4",), "strides": (1,), "offset": 0},
        {"shape": (4,), "strides": (1,), "offset": 0, "size": 5},
        {"shape": (4,), "strides": (1,), "offset": 0, "data": 20},
        {"shape": (4,), "strides": (1,), "offset": 0, "size": 2**60},
    ],
)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(false, source, target):
    source.write_bytes(rebuilt(**false))
    with pytest.raises(BadCheckpointError, match="is damaged"):
        convert(source, target)


def test_a_legacy_storage_of_another_size_than_its_tensors_say_is_refused(source, target):
    numbers = np.array([1.5, 2.5, 3.5, 4.5], "<f4")
    legacy({"a": torch.from_numpy(numbers)}, source)
    data = source.read_bytes()
    count = (4).to_bytes(8, "little")
    assert count + numbers.tobytes() in data
    source.write_bytes(
        data.replace(count + numbers.tobytes(), b"\3" + count[1:] + numbers.tobytes())
    )
    with pytest.raises(BadCheckpointError, match="storage .* is not what its tensors say"):
        convert(source, target)


@ALL
def test_bytes_cut_or_changed_are_refused_or_harmless(save, source, target):
    rng = np.random.default_rng(5)
    save({"state_dict": dict(ARRAYS), "args": argparse.Namespace(a=[1, 2.5, None])}, source)
    whole = source.read_bytes()
    refused = 0
    for i in range(150):
        data = bytearray(whole)
        if i % 3 == 0:
            del data[rng.integers(len(data)) :]
        else:
            for place in rng.integers(len(data), size=i % 4 + 1):
                data[place] = rng.integers(256)
        source.write_bytes(data)
        try:
            convert(source, target)
            target.unlink()
        except BadCheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle", b"\x80\x02.", b"<html>"])
def test_what_is_no_weights_file_is_refused(content, source, target):
    source.write_bytes(content)
    with pytest.raises(BadCheckpointError, match=f"{source} is damaged, or neither"):
        convert(source, target)


def test_a_big_endian_file_is_refused(source, target):
    with (
        zipfile.ZipFile(io.BytesIO(rebuilt((4,), (1,), 0))) as old,
        zipfile.ZipFile(source, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    with pytest.raises(BadCheckpointError, match="big-endian"):
        convert(source, target)


def test_nothing_is_overwritten_and_nothing_left_half_done(source, target):
    zipped(state(), source)
    with pytest.raises(BadCheckpointError, match=f"no weights file at {target}"):
        convert(target, target)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        convert(source, source)
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(BadCheckpointError, match=r"exists\. Delete it"):
        convert(source, target)
    assert target.read_bytes() == b"mine"


FULL = """
import resource, signal, sys
from pathlib import Path
from featstore.models.convert import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_where_no_more_fits_nothing_is_left(source, target):
    zipped(state(), source)
    arguments = [sys.executable, "-c", FULL, str(source), str(target)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert f"BadCheckpointError: {target} could not be written" in done.stderr
    assert list(target.parent.iterdir()) == []


# Trust


def test_a_whole_module_is_loaded_only_when_told(source, target, caplog):
    module = nn.Linear(2, 3)
    zipped({"model": module, "epoch": 1}, source)
    with pytest.raises(BadCheckpointError, match="has no named tensors"):
        convert(source, target)
    done = convert(source, target, trust=True)
    same(load_file(target), module.state_dict())
    assert done.trusted
    assert "all code in it, which can do anything" in caplog.text
    target.unlink()
    zipped(module, source)
    convert(source, target, trust=True)
    same(load_file(target), module.state_dict())


def test_what_cannot_be_loaded_even_with_trust_is_told(source, target):
    source.write_bytes(b"not a pickle")
    with pytest.raises(BadCheckpointError, match="cannot be loaded even so"):
        convert(source, target, trust=True)


# Haiku


class frozendict:  # noqa: N801  # its name in Haiku
    def __init__(self, storage):
        self._storage = storage

    def __reduce__(self):
        return frozendict, (self._storage,)


class FlatMapping:
    def __init__(self, mapping):
        self._mapping = mapping


def _create_array(function, args, state, attributes=None):
    raise AssertionError("called")


class Dilled:
    """An array as dill pickles it."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return _create_array, (*self.array.__reduce__(), None)


class _ByolExperimentState(NamedTuple):
    online_params: object
    target_params: object
    online_state: object
    target_state: object
    opt_state: object


def haiku_network(seed):
    """Parameters and state of a narrow ResNet-50 under Haiku's names, and the same as torch's."""
    rng = np.random.default_rng(seed)
    parameters, statistics, expected = {}, {}, {}

    def convolution(path, name, out, inner, size):
        w = rng.normal(size=(size, size, inner, out)).astype("f4")
        parameters[f"res_net50/~/{path}"] = {"w": w}
        expected[f"{name}.weight"] = torch.from_numpy(np.einsum("hwio->oihw", w).copy())

    def batch_norm(path, name, width):
        def vector():
            return rng.normal(size=(1, 1, 1, width)).astype("f4")

        scale, offset, mean, var = (vector() for _ in range(4))
        parameters[f"res_net50/~/{path}"] = {"scale": scale, "offset": offset}
        for which, average in (("mean", mean), ("var", var)):
            leaves = {"hidden": vector(), "average": average, "counter": np.array(7)}
            statistics[f"res_net50/~/{path}/~/{which}_ema"] = leaves
        names = ("weight", "bias", "running_mean", "running_var")
        for leaf, values in zip(names, (scale, offset, mean, var), strict=True):
            expected[f"{name}.{leaf}"] = torch.from_numpy(values.ravel().copy())

    convolution("initial_conv", "conv1", 4, 3, 7)
    batch_norm("initial_batchnorm", "bn1", 4)
    inner = 4
    for group, blocks in enumerate((3, 4, 6, 3)):
        width = 2 << group
        for block in range(blocks):
            path, name = f"block_group_{group}/~/block_{block}/~/", f"layer{group + 1}.{block}"
            widths = [inner, width, width, 4 * width]
            for i, size in enumerate((1, 3, 1)):
                convolution(
                    f"{path}conv_{i}", f"{name}.conv{i + 1}", widths[i + 1], widths[i], size
                )
                batch_norm(f"{path}batchnorm_{i}", f"{name}.bn{i + 1}", widths[i + 1])
            if block == 0:
                convolution(f"{path}shortcut_conv", f"{name}.downsample.0", 4 * width, inner, 1)
                batch_norm(f"{path}shortcut_batchnorm", f"{name}.downsample.1", 4 * width)
            inner = 4 * width
    for junk in ("projector/linear_1", "predictor/linear", "classifier"):
        parameters[junk] = {"w": np.ones((3, 2), "f4"), "b": np.ones(2, "f4")}
    parameters["projector/batch_norm"] = {"scale": np.ones((1, 2), "f4")}
    return parameters, statistics, expected


@pytest.fixture
def byol(source, foreign, monkeypatch):
    """Writes DeepMind's layout with one of Haiku's mappings; gives what torch should see."""

    def write(wrap=frozendict, drop="", module=""):
        for thing in (frozendict, FlatMapping):
            foreign(thing, "haiku._src.data_structures")
        foreign(_ByolExperimentState, "byol.byol_experiment")
        parameters, statistics, expected = haiku_network(1)
        parameters.pop(drop, None)
        target_parameters, target_statistics, _ = haiku_network(2)
        if module:
            foreign(_create_array, module)
            for leaves in (*parameters.values(), *statistics.values()):
                leaves.update({leaf: Dilled(array) for leaf, array in leaves.items()})
        whole = [
            wrap({path: wrap(leaves) for path, leaves in part.items()})
            for part in (parameters, target_parameters, statistics, target_statistics)
        ]
        experiment = _ByolExperimentState(*whole, opt_state=(wrap({}), np.ones(2)))
        rng = np.array([1, 2], "u4")
        plain({"experiment_state": experiment, "step": 9, "rng": rng}, source)
        forget(monkeypatch, "haiku", "byol", "dill")
        return expected

    return write


@pytest.mark.parametrize("wrap", [frozendict, FlatMapping, dict])
def test_byol_of_haiku_becomes_a_resnet50_of_torchvision(wrap, byol, source, target):
    torchvision = pytest.importorskip("torchvision")
    expected = byol(wrap)
    done = convert(source, target, nest="haiku")
    found = load_file(target)
    assert done.tensors == len(found) == 265
    same(found, expected)
    own = torchvision.models.resnet50().state_dict()
    names = {n for n in own if "num_batches" not in n and not n.startswith("fc.")}
    assert set(found) == names
    assert all(found[name].ndim == own[name].ndim for name in names)


@pytest.mark.parametrize("module", ["dill._dill", "dill.dill"])
def test_byol_pickled_by_dill_is_the_same(module, byol, source, target):
    expected = byol(module=module)
    done = convert(source, target, nest="haiku")
    same(load_file(target), expected)
    assert not any("dill" in name for name in done.foreign)


def test_byol_with_a_part_missing_is_refused(byol, source, target):
    byol(drop="res_net50/~/block_group_2/~/block_5/~/conv_1")
    with pytest.raises(BadCheckpointError, match="264 tensors of a Haiku ResNet-50, not 265"):
        convert(source, target, nest="haiku")


@pytest.mark.parametrize(
    "content", [{"a": 1}, [1], {"experiment_state": 3}, {"experiment_state": {}}]
)
def test_what_is_no_checkpoint_of_byol_is_refused(content, source, target):
    plain(content, source)
    with pytest.raises(BadCheckpointError, match="is damaged, or neither"):
        convert(source, target, nest="haiku")


# The command


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's catalogue with two models, and the file of one."""
    folder = tmp_path / "home"
    (folder / "weights").mkdir(parents=True)
    (folder / "catalogue.toml").write_text(
        '[models.mine]\narch = "resnet18"\nfile = "mine.pth.tar"\nconverts = true\nnest = "net"\n'
        '[models.bare]\narch = "resnet18"\nfile = "bare.pth"\n'
    )
    monkeypatch.setenv("FEATSTORE_HOME", str(folder))
    content = {"net": state(), "ema": {"b": torch.ones(1)}}
    content["more"] = payloads(tmp_path / "marker")["system"]
    zipped(content, folder / "weights" / "mine.pth.tar")
    return folder / "weights"


def run(*arguments):
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)], catch_exceptions=True)


def test_the_command_converts_a_model_of_the_catalogue_for_loading(home, tmp_path):
    found = run("mine")
    assert found.exit_code == 0, found.exception
    path = home / "mine.pth.safetensors"
    assert f"wrote {path}: {len(state())} tensors" in found.output
    assert "nothing was run, nor kept: posix.system" in found.output
    assert not (tmp_path / "marker").exists()
    same(load_file(path), state())
    assert weights_file(catalogue()["mine"]) == path
    before = path.stat()
    assert "is there already" in run("mine").output
    assert path.stat() == before


def test_the_command_writes_elsewhere_and_follows_another_nest(home, tmp_path):
    out = tmp_path / "b.safetensors"
    found = run("mine", "--nest", "ema", "--out", out, "--json")
    facts = json.loads(found.output)
    assert (facts["path"], facts["tensors"], facts["trusted"]) == (str(out), 1, False)
    same(load_file(out), {"b": torch.ones(1)})
    assert not (home / "mine.pth.safetensors").exists()


def test_the_command_converts_a_file(source):
    zipped({"state_dict": state(), "epoch": 1, **dict.fromkeys("abcdefg", 1)}, source)
    found = run(source)
    assert f"wrote {source.with_suffix('.safetensors')}" in found.output
    assert "left out" not in found.output
    same(load_file(source.with_suffix(".safetensors")), state())
    assert isinstance(run(source).exception, BadCheckpointError)  # exists


def test_the_command_refuses_what_it_does_not_know_or_need(home):
    assert "unknown model or file 'mone'" in str(run("mone").exception)
    with pytest.raises(ValueError, match="tiny-vit-mae has no published file to convert"):
        convert_entry(catalogue()["tiny-vit-mae"])


def test_a_file_that_holds_more_than_its_entry_says_is_converted_by_the_entrys_name(home):
    weights = create_backbone("resnet18", seed=4).state_dict()
    held = {"state_dict": weights, "args": argparse.Namespace(lr=0.1)}
    zipped(held, home / "bare.pth")
    with pytest.raises(BadCheckpointError, match=r"argparse\.Namespace.*featstore convert bare$"):
        load_model("bare")
    assert "tensors" in run("bare").output
    assert status(catalogue()["bare"]) == "ready"
    same(load_model("bare").module.state_dict(), weights)


def test_the_help_says_what_is_risked():
    text = " ".join(run("--help").output.split())
    assert "runs none of it" in text
    assert "can then do all that you can" in text
