"""From a model's name to its backbone with weights, its input transform and its description."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from torch import nn

from featstore.errors import BadCheckpointError, CatalogueError
from featstore.fetch import Progress
from featstore.home import expanded, user_catalogue
from featstore.models import own, tiny
from featstore.models.backbone import check_timm_name, classifiers, create_backbone
from featstore.models.checkpoints import (
    fill,
    is_counter,
    listed,
    read_file,
    tensors_in,
    weights_sha256,
)
from featstore.models.encoder import batch_norms
from featstore.models.fetch import forget, keep, weights_file
from featstore.models.hub import from_hub
from featstore.models.names import Entry, ModelName, catalogue
from featstore.models.remap import PLAIN, fresh, remap
from featstore.models.twins import warn_of_twins
from featstore.names import unknown

_RANDOM = re.compile(r"random(\d+)(-.*)?")  # the rest is a variant of the user's

_PACKAGED = Path(__file__).parents[1] / "_data"
DATA = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "data"
"""Files that ship with featstore: inside the package once installed, `data/` in a clone."""


@dataclass(frozen=True)
class Model:
    """A backbone without classifier, in eval mode, with its weights loaded.

    Attributes
    ----------
    name : as in the store, without site
    module : timm model
    weights : SHA-256 over its parameters and buffers, in hex
    data_config : timm's: input_size, interpolation, mean, std, crop_pct, crop_mode
    info : backbone, family, method, teacher, stage, lineage, pretraining: for analysis
    """

    name: str
    arch: str
    module: nn.Module
    weights: str
    data_config: dict[str, Any]
    info: dict[str, Any]

    @property
    def bn_free(self) -> bool:
        """Whether no layer is a BatchNorm, so that all BN modes are one."""
        return not batch_norms(self.module)


def load_model(
    name: str, *, weights: str = "pretrained", seed: int = 0, progress: Progress | None = None
) -> Model:
    """Model of a name, with its weights.

    Parameters
    ----------
    name : catalogue name, `timm:NAME`, `file:PATH#arch=NAME` or `py:MODULE:FACTORY`; a site or
        variant plays no part
    weights : `pretrained`, `random` (initialised from `seed`; the name then ends in `~randomSEED`)
        or the path of a weights file (the name then ends in `~` and the file's stem), in its
        authors' form or in that of the module
    progress : called while a file is fetched, with its name, bytes done and bytes in all

    Raises
    ------
    UnknownNameError
        No such model; says which come near.
    BadCheckpointError
        The weights are not to be had, unsafe, or do not fit.
    """
    parsed = ModelName.parse(name)
    drawn = _RANDOM.fullmatch(parsed.variant)  # a name that was made by `random` says so itself
    if drawn:
        weights, seed = "random", int(drawn[1])
    entry = entry_of(parsed.base)
    if weights == "pretrained":
        module = _pretrained(entry, progress)
    elif weights == "random":
        module = create_module(entry, seed=seed)
    else:
        module = _from_file(entry, expanded(weights), users=True)
    module.eval()
    info = {
        "backbone": entry.backbone,
        "family": entry.family,
        "paradigm": entry.paradigm,
        "method": entry.method,
        "teacher": entry.teacher,
        "stage": entry.stage,
        "lineage": entry.lineage,
        "pretraining": entry.pretraining,
    }
    if weights == "random":  # else it would pass for what it is not
        if not drawn:
            parsed = replace(parsed, variant=f"random{seed}").with_variant(parsed.variant)
        info |= dict.fromkeys(("family", "paradigm", "method", "stage"), "random")
        info |= {"lineage": f"{parsed.base} random{seed}", "pretraining": [], "teacher": ""}
    elif weights != "pretrained":  # nor is a file of the user's what the catalogue describes
        stem = Path(weights).stem
        if parsed.variant.partition("-")[0] != stem:
            parsed = replace(parsed, variant=stem).with_variant(parsed.variant)
        info |= dict.fromkeys(("family", "paradigm", "method", "teacher", "stage"), "")
        info |= {"lineage": f"{parsed.base} {stem}", "pretraining": []}
    digest = weights_sha256(module)
    if weights == "pretrained" and entry.weights in ("", "hub"):
        warn_of_twins(entry, digest)
    return Model(
        name=str(replace(parsed, site="")),
        arch=entry.arch,
        module=module,
        weights=digest,
        data_config=data_config_of(module, entry),
        info=info,
    )


def entry_of(base: str) -> Entry:
    """Catalogue entry of a name, or one made up for `timm:`, `file:` and `py:`.

    Raises
    ------
    UnknownNameError
        No such model; says which come near.
    """
    if base in catalogue():
        return catalogue()[base]
    if base.startswith("timm:"):
        arch = base.removeprefix("timm:")
        check_timm_name(arch)
        return Entry(base, arch, "hub", backbone=arch.partition(".")[0], lineage=base)
    if base.startswith("file:"):
        path, _, arch = base.removeprefix("file:").rpartition("#arch=")
        if arch not in tiny.ARCHITECTURES:
            check_timm_name(arch)
        # Files of a folder whose names differ in numbers alone are checkpoints of one run.
        run = f"file:{Path(path).with_name(re.sub(r'[0-9]+', '#', Path(path).name))}#arch={arch}"
        return Entry(base, arch, path, backbone=arch.partition(".")[0], lineage=run)
    if base.startswith("py:"):
        return Entry(base, base, base, backbone=base, lineage=base)
    listing = (
        "featstore models lists them; timm:NAME, file:PATH#arch=NAME and py:MODULE:FACTORY work "
        "as well"
    )
    known = [*catalogue(), *(f"timm:{name}" for name in timm.list_models())]
    if f"timm:{base.partition('.')[0]}" in known:  # the name that is near is this one
        known = [f"timm:{base}"]
    raise unknown("model", base, known, listing)


def create_module(entry: Entry, *, seed: int | None = None) -> nn.Module:
    """Backbone of an entry before its weights; `py:` has none but its own.

    Raises
    ------
    UnknownNameError
        No architecture has that name.
    BadCheckpointError
        Random weights are asked of `py:`.
    CatalogueError
        The architecture has no such option.
    """
    if not _is_factory(entry):
        try:
            return create_backbone(entry.arch, seed=seed, options=entry.options)
        except TypeError as error:
            if not entry.options:
                raise
            raise CatalogueError(
                f"{entry.name}: {entry.arch} has no such option ({error})"
            ) from error
    if seed is not None:
        raise BadCheckpointError(
            f"{entry.name} comes with the weights that its factory gives it, and cannot be had at "
            f"random. Write a factory that draws them"
        )
    return own.make(entry.weights)


def data_config_of(module: nn.Module, entry: Entry) -> dict[str, Any]:
    """Description of the input in timm's words, where the entry says nothing by timm itself."""
    config = dict(resolve_model_data_config(module))
    stated = {
        "mean": tuple(entry.mean),
        "std": tuple(entry.std),
        "interpolation": entry.interpolation,
        "crop_pct": entry.crop_pct,
        "input_size": (3, entry.image_size, entry.image_size) if entry.image_size else (),
    }
    return config | {field: value for field, value in stated.items() if value}


def _is_factory(entry: Entry) -> bool:
    return entry.weights.startswith("py:") and not entry.name.startswith("file:")


def _pretrained(entry: Entry, progress: Progress | None) -> nn.Module:
    """Backbone with the weights that its entry leads to."""
    if _is_factory(entry):
        return create_module(entry)
    if entry.name.startswith("file:"):  # whatever its path looks like
        return _from_file(entry, expanded(entry.weights))
    if entry.weights.startswith("random:"):
        seed = entry.weights.removeprefix("random:")
        if not seed.isdecimal():
            raise CatalogueError(f"{entry.name}: weights = {entry.weights!r} is not random:SEED")
        return create_module(entry, seed=int(seed))
    if entry.weights == "hub":
        return from_hub(entry.arch, entry.options)
    if entry.weights:
        return _from_file(entry, Path(entry.folder or DATA, expanded(entry.weights)))
    path = weights_file(entry, progress=progress)
    try:
        module = _from_file(entry, path, published=True)
    except BadCheckpointError:
        forget(path)
        raise
    keep(path)
    return module


def _from_file(
    entry: Entry, path: Path, *, users: bool = False, published: bool = False
) -> nn.Module:
    """Backbone filled from a weights file by the entry's nest and rules.

    A file of the user's may have the names of the module instead, and is then taken as it is; the
    published one is converted by the entry's name.
    """
    module = create_module(entry)
    content = read_file(path, name=entry.name if published else "")
    heads = classifiers(module)
    plain = not (entry.rules or entry.nest) or (users and _fits(module, content, path, heads))
    nest, rules = ("", PLAIN) if plain else (entry.nest, entry.rules or PLAIN)
    state = tensors_in(content, path, nest=nest)
    sources = remap(state, rules, path)
    if state and not sources:
        raise BadCheckpointError(
            f"{path} has none of the weights of {entry.name}; there is {listed(state)}. Check that "
            f"it is the file of {entry.name}"
        )
    known = entry.name in catalogue()
    check = f"that it is the file of {entry.name}, or the rules of its entry"
    advice = "" if known and not entry.folder else _rules_for(entry, module, state)
    fill(
        module,
        {name: state[source] for name, source in sources.items()},
        path,
        heads=heads if plain else (),
        fresh=fresh(module.state_dict(), rules),
        check=advice or (check if known else "the architecture after #arch="),
    )
    return module


def _rules_for(entry: Entry, module: nn.Module, state: Mapping[str, Any]) -> str:
    """Rules by which a file fits that has most of a module below a prefix, or more than all of it.

    As what to check; nothing where no such rules are to be seen.
    """
    every = {*module.state_dict()}
    own = {name for name in every if not is_counter(name)}
    prefixes = Counter(name.removesuffix(end) for name in state for end in _ends(name) & own)
    prefix, count = max(prefixes.items(), key=lambda pair: pair[1], default=("", 0))
    below = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    parts = {part for name in every for part in _starts(name)}
    others = {next((p for p in _starts(name) if p not in parts), name) for name in below - every}
    if 2 * count < len(own) or not (prefix or count == len(own)):
        return ""
    at = re.escape(prefix)
    rules = [rf"drop ^{at}{re.escape(other)}\b" for other in sorted(others)]
    if prefix:
        rules = [f"keep ^{at}", *rules, f"sub ^{at} ->"]
    table = f"[models.{entry.name if entry.folder else 'NAME'}]"
    there = f"there below {prefix!r}" if prefix else "there, and others"
    return (
        f"the names: {count} of its {len(own)} weights are {there}. Write in {user_catalogue()}, "
        f"at {table}: rules = {json.dumps(rules)}"
    )


def _starts(name: str) -> list[str]:
    """What a name begins with, up to each of its dots, and the whole."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _ends(name: str) -> set[str]:
    """What a name ends with, from each of its dots on, and the whole."""
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def _fits(module: nn.Module, content: Any, path: Path, heads: Sequence[str]) -> bool:
    """Whether a file holds the names of the module, of its classifiers, and no others."""
    try:
        names = remap(tensors_in(content, path), PLAIN, path)
    except BadCheckpointError:
        return False  # nested in another way, as its authors do
    above = tuple(f"{head}." for head in heads)
    found, own_names = (
        {name for name in all_of_them if not is_counter(name) and not name.startswith(above)}
        for all_of_them in (names, module.state_dict())
    )
    return found == own_names
