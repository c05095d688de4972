"""Weights files: read safely, fitted strictly, identified by what they hold."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featstore.errors import BadCheckpointError

_NESTS = ("state_dict", "model")
_PREFIX = "module."  # left by DataParallel
# What the two readers raise on bytes that are cut or changed, PyTorch's pickle machine above all.
_DAMAGE = (
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AssertionError,
    TypeError,
    struct.error,
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, or from a PyTorch file without running code in it.

    Raises
    ------
    BadCheckpointError
        The file is absent, damaged, holds anything but tensors, or wants code to be run.
    """
    if not path.is_file():
        raise BadCheckpointError(f"no weights at {path}. Check the path after file: or --weights")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol")  # refused just after
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise BadCheckpointError(
            f"{path} is not safe to load: besides tensors it holds {wanted[1]}, and loading that "
            f"may run code. Save its state_dict alone, best as safetensors"
            if wanted
            else f"{path} is damaged, or no weights file that loads without running code in it. "
            f"Fetch it again, or save its state_dict alone, best as safetensors"
        ) from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadCheckpointError(
            f"{path} is damaged, or no weights file ({reason}). Fetch it again"
        ) from error
    for nest in _NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise BadCheckpointError(
            f"{path} does not hold a state_dict (named tensors, bare or under "
            f"{' or '.join(_NESTS)}). Save the model's state_dict() to it"
        )
    return {str(name).removeprefix(_PREFIX): tensor for name, tensor in loaded.items()}


def fill(
    module: nn.Module, state: Mapping[str, Tensor], path: Path, *, heads: Sequence[str]
) -> None:
    """Put a file's tensors into a module, all of them, less the classifiers named in `heads`.

    Floating tensors are cast to the module's dtype: a file may hold half precision to save room.

    Raises
    ------
    BadCheckpointError
        Names or shapes differ; says the first few.
    """
    own = module.state_dict()
    above = tuple(f"{head}." for head in heads)
    body = {name: t for name, t in state.items() if name in own or not name.startswith(above)}
    missing = [name for name in own if name not in body and not name.endswith("_batches_tracked")]
    unexpected = [name for name in body if name not in own]
    reshaped = [
        f"{name} {tuple(body[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in body and body[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    if faults:
        raise BadCheckpointError(
            f"the weights in {path} do not fit {type(module).__name__} ({'; '.join(faults)}). "
            f"Check the architecture after #arch="
        )
    module.load_state_dict({**own, **body}, strict=True)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over all parameters and buffers by name, in hex: the same from whatever file."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # counts training steps; changes no embedding
            continue
        values = tensor.detach().cpu().contiguous()
        hasher.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        hasher.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
