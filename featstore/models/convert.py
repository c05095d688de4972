"""Weights files that hold more than tensors: the tensors taken out, and no code in them run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from featstore.errors import BadCheckpointError
from featstore.fetch import Progress, sha256
from featstore.models.containers import DAMAGE, opened, tensor_of
from featstore.models.fetch import converted_path, forget, original_file, record_converted
from featstore.models.haiku import TENSORS, backbone_in, in_torch_shape
from featstore.models.names import Entry
from featstore.models.unpickle import ArrayRecord, TensorRecord

log = logging.getLogger(__name__)

_NESTS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class Converted:
    """What was made of a weights file.

    Attributes
    ----------
    path : of the safetensors file ; tensors : how many it holds ; sha256 : its own, in hex
    source_sha256 : of the file that it was made from
    foreign : classes and functions that the file names, which stand-ins took the place of
    left_out : names beside the tensors that are of something else
    trusted : whether the file's own code was run
    """

    path: Path
    tensors: int
    sha256: str
    source_sha256: str
    foreign: tuple[str, ...]
    left_out: tuple[str, ...]
    trusted: bool


def convert(source: Path, target: Path, *, nest: str = "", trust: bool = False) -> Converted:
    """Take the tensors out of a file of `torch.save` or a pickle, into a safetensors file.

    The file is read as data: no class that it names is imported, and no function called. Numpy
    arrays become tensors, counters int64; each tensor has memory of its own.

    Parameters
    ----------
    nest : keys that lead to the tensors, joined by /, or `haiku` for a ResNet-50 of that library;
        with "" they lie below `state_dict`, `model` or `model_state_dict`, or bare
    trust : if the file cannot be read so, load it as PyTorch does, which runs any code in it

    Raises
    ------
    BadCheckpointError
        The source is absent, damaged or has no tensors there; or the target exists already.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, got {target}")
    if not source.is_file():
        raise BadCheckpointError(f"no weights file at {source}. Check the path")
    if target.exists():
        raise BadCheckpointError(f"{target} exists. Delete it, or write to another file")
    trusted = False
    try:
        tensors, left_out, foreign = _read(source, nest)
    except BadCheckpointError as error:
        if not trust:
            raise
        log.warning("%s. As told, it is loaded with all code in it, which can do anything", error)
        tensors, left_out = _trusted(source, nest)
        foreign, trusted = set(), True
    _write(tensors, target)
    return Converted(
        target, len(tensors), sha256(target), sha256(source), tuple(sorted(foreign)),
        tuple(left_out), trusted,
    )  # fmt: skip


def convert_entry(
    entry: Entry,
    *,
    out: Path | None = None,
    nest: str | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert the published file of a catalogue entry, fetched if need be, for `weights_file`.

    Parameters
    ----------
    out : write here instead, for another use ; nest : instead of the entry's

    Raises
    ------
    BadCheckpointError
        As `convert` and `original_file`.
    """
    if entry.weights:
        raise ValueError(f"{entry.name} has no published file to convert; give the file's path")
    source = original_file(entry, progress=progress)
    target = out or converted_path(entry)
    try:
        done = convert(source, target, nest=entry.nest if nest is None else nest, trust=trust)
    except BadCheckpointError:
        if not target.exists():  # else that is what is wrong, not the source
            forget(source)
        raise
    if out is None:
        record_converted(entry, target)
    return done


def _read(source: Path, nest: str) -> tuple[dict[str, Tensor], list[str], set[str]]:
    """Tensors by name, names of what else is there, and foreign names."""
    try:
        with opened(source) as (content, reader, load):
            found = backbone_in(content) if nest == "haiku" else _descend(content, nest, source)
            raw: dict[str, bytearray] = {}
            made = {name: tensor_of(value, load, raw) for name, value in found.items()}
            tensors = _tensors(made)
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadCheckpointError(
            f"{source} is damaged, or neither a file of torch.save nor a pickle ({reason}). Fetch "
            f"it again, and check --nest"
        ) from error
    if nest == "haiku":
        tensors = {name: in_torch_shape(name, tensor) for name, tensor in tensors.items()}
        if len(tensors) != TENSORS:
            raise BadCheckpointError(
                f"{source} has {len(tensors)} tensors of a Haiku ResNet-50, not {TENSORS}"
            )
    if not tensors:
        raise BadCheckpointError(_no_tensors(source, nest, content))
    return tensors, [str(name) for name in found if name not in tensors], reader.foreign


def _trusted(source: Path, nest: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name and names of what else is there, from a file whose code is run."""
    try:
        content = torch.load(source, map_location="cpu", weights_only=False)
    except Exception as error:  # code of the file's runs, and may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadCheckpointError(f"{source} cannot be loaded even so ({reason})") from error
    if isinstance(content, nn.Module):
        content = content.state_dict()
    found = {
        name: value.state_dict() if isinstance(value, nn.Module) else value
        for name, value in (content.items() if isinstance(content, Mapping) else ())
    }
    found = dict(_descend(found, nest, source))
    made = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in found.items()
    }
    tensors = _tensors({n: v.detach().clone() for n, v in made.items() if isinstance(v, Tensor)})
    if not tensors:
        raise BadCheckpointError(_no_tensors(source, nest, found))
    return tensors, [str(name) for name in found if name not in tensors]


def _tensors(values: Mapping[Any, Tensor | None]) -> dict[str, Tensor]:
    """Those with a name, contiguous; counters, which some files have as floats, as int64."""
    return {
        name: tensor.long() if name.endswith("num_batches_tracked") else tensor.contiguous()
        for name, tensor in values.items()
        if tensor is not None and isinstance(name, str)
    }


def _write(tensors: dict[str, Tensor], target: Path) -> None:
    """A safetensors file that is there whole or not at all."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"format": "pt"})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BadCheckpointError(f"{target} could not be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _descend(content: Any, nest: str, source: Path) -> Mapping[Any, Any]:
    """Mapping that a nest leads to."""
    found = content
    for step in nest.split("/") if nest else ():
        found = found.get(step) if isinstance(found, Mapping) else None
    if not nest and isinstance(found, Mapping):
        usual = (found[name] for name in _NESTS if isinstance(found.get(name), Mapping))
        found = next((below for below in usual if _count(below)), found)
    if not isinstance(found, Mapping):
        raise BadCheckpointError(_no_tensors(source, nest, content))
    return found


def _no_tensors(source: Path, nest: str, content: Any) -> str:
    counts = sorted(_places(content), key=lambda pair: -pair[0])[:4]
    there = ", ".join(f"{place or 'the top'} ({count})" for count, place in counts)
    where = f"under {nest}" if nest else f"at its top, nor under {', '.join(_NESTS)}"
    hint = f"they are under {there}: give that with --nest" if there else "there are none at all"
    return f"{source} has no named tensors {where}; {hint}"


def _places(content: Any) -> Iterator[tuple[int, str]]:
    """How many tensors lie where."""
    waiting, seen = [("", content)], set()
    while waiting:
        path, found = waiting.pop()
        if not isinstance(found, Mapping) or id(found) in seen:
            continue
        seen.add(id(found))
        if count := _count(found):
            yield count, path
        waiting += [(f"{path}/{key}" if path else str(key), v) for key, v in found.items()]


def _count(content: Mapping[Any, Any]) -> int:
    return sum(isinstance(v, TensorRecord | ArrayRecord | Tensor) for v in content.values())
