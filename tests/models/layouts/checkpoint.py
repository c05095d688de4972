"""A checkpoint as its authors wrote it, with what is known of where each tensor must end."""

import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes
    ----------
    content : all of it
    tensors : within `content`, the named tensors that hold the encoder
    sources : for each name in the module, the name in `tensors`
    constants : for each name in the module that the file has no part in, its one value
    container : of `torch.save`, `zip` or before 1.6 `legacy`; or a `pickle` without PyTorch
    """

    content: Any
    tensors: dict[str, Any]
    sources: dict[str, str]
    constants: dict[str, float] = field(default_factory=dict)
    container: str = "zip"

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = BytesIO()
        with foreign_classes():
            if self.container == "pickle":
                pickle.dump(self.content, file, protocol=2)
            else:
                zipped = self.container == "zip"
                torch.save(self.content, file, _use_new_zipfile_serialization=zipped)
        written = file.getvalue()
        if self.container != "zip":  # and so before numpy 2, which moved what its arrays name
            written = written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        path.write_bytes(written)
        return path

    def expected(self):
        """Tensors that the module must hold, by their names there."""
        return {name: torch.as_tensor(self.tensors[key]) for name, key in self.sources.items()}

    def check(self, module):
        """Hold every tensor of a module to the file; counters that the file lacks are 0."""
        expected, found = self.expected(), module.state_dict()
        counters = {name for name in found if name.endswith("num_batches_tracked")}
        named = expected.keys() | self.constants.keys() | counters
        assert named == found.keys(), sorted(named ^ found.keys())
        for name, tensor in found.items():
            if name in expected:
                wanted = expected[name]
                assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype), name
            else:
                wanted = torch.tensor(self.constants.get(name, 0))
            assert bool((tensor == wanted).all()), name


def named(body, rename):
    """The encoder under its authors' names, and where each module name is found in it."""
    sources = {name: rename(name) for name in body}
    assert len({*sources.values()}) == len(sources)
    return OrderedDict((sources[name], body[name]) for name in body), sources


class HistoryBuffer:
    """As a logger of a training framework keeps it: featstore does not have that framework."""

    def __init__(self):
        self._max_length = 1000000
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])
        self._statistics_methods = {}


class FrozenDict(dict):
    """A mapping that is pickled as Haiku's."""

    def __reduce__(self):
        return type(self), (dict(self),)


class ByolState(NamedTuple):
    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


FOREIGN = {
    "mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer,
    "haiku._src.data_structures.frozendict": FrozenDict,
    "byol.byol_experiment._ByolExperimentState": ByolState,
}
for name, kind in FOREIGN.items():
    kind.__module__, _, kind.__qualname__ = name.rpartition(".")
    kind.__name__ = kind.__qualname__


@contextmanager
def foreign_classes():
    """While a file is written its classes can be imported, and afterwards no longer."""
    parts = [kind.__module__.split(".") for kind in FOREIGN.values()]
    modules = {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}
    assert not modules & sys.modules.keys()
    for name in modules:
        sys.modules[name] = ModuleType(name)
    for kind in FOREIGN.values():
        setattr(sys.modules[kind.__module__], kind.__name__, kind)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def run_arguments():
    """What a training script was called with, as it saves it."""
    return Namespace(model="vit_base_patch16", epochs=300, output_dir="out", mask_ratio=0.75)
