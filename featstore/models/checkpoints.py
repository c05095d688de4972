"""Weights files: read safely, fitted strictly, identified by what they hold."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featstore.errors import BadCheckpointError
from featstore.home import user_catalogue
from featstore.models.containers import DAMAGE, opened
from featstore.models.unpickle import ArrayRecord, StandIn, TensorRecord

_NESTS = ("state_dict", "model")
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


def read_file(path: Path, *, name: str = "") -> Any:
    """All that a weights file holds: tensors, and plain values and containers of them.

    A safetensors file gives tensors by name; of a PyTorch file no code is run.

    Parameters
    ----------
    name : what `featstore convert` is to be told, by default the path

    Raises
    ------
    BadCheckpointError
        The file is absent, damaged, or wants code to be run.
    """
    if not path.is_file():
        raise BadCheckpointError(f"no weights at {path}. Check the path after file: or --weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # What is warned of is refused just after.
            warnings.filterwarnings("ignore", "Detected pickle protocol|.*TorchScript archive")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if whole := _module_in(path):
            raise BadCheckpointError(
                f"{path} holds a whole {whole}, which is code and not only weights. Where that "
                f"code is, save model.state_dict() in place of the model"
            ) from error
        raise BadCheckpointError(
            f"{path} is not safe to load: besides tensors it holds {wanted[1]}, and loading that "
            f"may run code. Take out the tensors first, which runs none: "
            f"featstore convert {name or path}"
            if wanted
            else f"{path} is damaged, or no weights file that loads without running code in it. "
            f"Delete it, and fetch it again; or, if it is whole, take out the tensors: "
            f"featstore convert {name or path}"
        ) from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "TorchScript" in reason:
            raise BadCheckpointError(
                f"{path} is a TorchScript program, which is code. Save its state_dict() instead"
            ) from error
        raise BadCheckpointError(
            f"{path} is damaged, or no weights file ({reason}). Delete it, and fetch it again"
        ) from error


def _module_in(path: Path) -> str:
    """Class of the module that a file holds as a whole, as `torch.save(model)` makes it, or ""."""
    try:
        with opened(path) as (content, _, _):
            for one in [content, *(content.values() if isinstance(content, dict) else ())]:
                if isinstance(one, StandIn) and "_modules" in (one.state or ()):
                    return one.name
    except DAMAGE:  # of which the caller has more to say
        return ""
    return ""


def tensors_in(content: Any, path: Path, *, nest: str = "") -> dict[str, Tensor]:
    """Tensors by name from what a file holds.

    Parameters
    ----------
    content : as `read_file` gives it ; path : of the file, for messages
    nest : keys that lead to the tensors, joined by /; with "" they lie bare, or below `state_dict`
        or `model`. A safetensors file has no nests: what made it has followed them.

    Raises
    ------
    BadCheckpointError
        There is no such nest, or something else than tensors in it; says what there is.
    """
    steps = nest.split("/") if nest and path.suffix != ".safetensors" else []
    whole = content
    for depth, step in enumerate(steps):
        if not isinstance(content, Mapping) or step not in content:
            above = f"below {'/'.join(steps[:depth])}" if depth else "at its top"
            raise BadCheckpointError(
                f"{path} has no {step!r} {above}, where its tensors should be under {nest}; there "
                f"is {listed(content)}. Check that it is the file meant.{_nest_hint(whole)}"
            )
        content = content[step]
    if not nest and isinstance(content, Mapping):
        content = next((content[n] for n in _NESTS if isinstance(content.get(n), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        where = f"under {nest}" if steps else f"bare or under {' or '.join(_NESTS)}"
        remedy = _nest_hint(whole) or " Save the model's state_dict() to it"
        raise BadCheckpointError(
            f"{path} does not hold a state_dict (named tensors, {where}); there is "
            f"{listed(content)}.{remedy}"
        )
    return {str(name): tensor for name, tensor in content.items()}


def nests(content: Any) -> list[tuple[int, str]]:
    """How many tensors lie under which keys, joined by /, in a file's content; the most first."""
    found, waiting, seen = [], [("", content)], set()
    while waiting:
        path, one = waiting.pop()
        if not isinstance(one, Mapping) or id(one) in seen:
            continue
        seen.add(id(one))
        if count := sum(isinstance(v, TensorRecord | ArrayRecord | Tensor) for v in one.values()):
            found.append((count, path))
        waiting += [(f"{path}/{key}" if path else str(key), v) for key, v in one.items()]
    return sorted(found, key=lambda pair: -pair[0])


def _nest_hint(content: Any) -> str:
    """Sentence on what to write for tensors of a file that are nested, if there are any."""
    places = [(count, place) for count, place in nests(content) if place]
    if not places:
        return ""
    there = ", ".join(f"{place} ({count})" for count, place in places[:4])
    return (
        f" Tensors are below {there}: write nest = {json.dumps(places[0][1])} in a [models.NAME] "
        f"of {user_catalogue()}"
    )


def listed(content: Any) -> str:
    """The first few names that a file holds, or what it holds instead, for messages."""
    if not isinstance(content, Mapping):
        return f"one {type(content).__name__}"
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    heads: Sequence[str] = (),
    fresh: Collection[str] = (),
    check: str = "the architecture after #arch=",
) -> None:
    """Put a file's tensors into a module, all of them, less the classifiers named in `heads`.

    Floating tensors are cast to the module's dtype: a file may hold half precision to save room.
    What is named in `fresh` may keep its initial value; so may counters of training steps.

    Raises
    ------
    BadCheckpointError
        Names or shapes differ; says the first few, and to `check` what may be wrong.
    """
    own = module.state_dict()
    above = tuple(f"{head}." for head in heads)
    body = {name: t for name, t in state.items() if name in own or not name.startswith(above)}
    missing = [n for n in own if n not in body and n not in fresh and not is_counter(n)]
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
            f"Check {check}"
        )
    module.load_state_dict({**own, **body}, strict=True)


def is_counter(name: str) -> bool:
    """Whether a tensor counts training steps, which old files lack and no embedding depends on."""
    return name.endswith("num_batches_tracked")


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over all parameters and buffers by name, in hex: the same from whatever file."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if is_counter(name):
            continue
        values = tensor.detach().cpu().contiguous()
        hasher.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        hasher.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
