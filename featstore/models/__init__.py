"""Models: a name leads to a backbone with its weights, its input transform and its description."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from featstore.errors import BadCheckpointError
from featstore.models import tiny
from featstore.models.checkpoints import fill, read_state, weights_sha256
from featstore.models.encoder import Encoder, batch_norms, embed
from featstore.models.names import SITES, Entry, ModelName, catalogue, expand
from featstore.names import unknown

_RANDOM = re.compile(r"random(\d+)(-.*)?")  # the rest is a variant of the user's

_GENERATOR = threading.Lock()  # PyTorch's global generator is one for all threads

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
    info : backbone, family, method, stage, lineage, pretraining: what analysis wants to know
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


def create_backbone(arch: str, *, seed: int | None = None) -> nn.Module:
    """A backbone without classifier, randomly initialised; the same bytes for the same seed.

    Raises
    ------
    UnknownNameError
        No architecture has that name.
    """
    with _GENERATOR, torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            # timm initialises by the global generator; forked, so restored. Not torch.manual_seed,
            # which would seed those of the GPUs as well.
            torch.default_generator.manual_seed(seed)
        if arch in tiny.ARCHITECTURES:
            return tiny.ARCHITECTURES[arch]()
        _check_timm_name(arch)
        return timm.create_model(arch, pretrained=False, num_classes=0)


def load_model(name: str, *, weights: str = "pretrained", seed: int = 0) -> Model:
    """Model of a name, with its weights.

    Parameters
    ----------
    name : catalogue name, `timm:NAME` or `file:PATH#arch=NAME`; a site or variant plays no part
    weights : `pretrained`, `random` (initialised from `seed`; the name then ends in `~randomSEED`)
        or the path of a weights file (the name then ends in `~` and the file's stem)

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
    entry = _entry(parsed.base)
    packaged = weights == "pretrained" and parsed.base in catalogue()
    if weights == "random":
        module = create_backbone(entry.arch, seed=seed)
    elif packaged and entry.weights.startswith("random:"):
        module = create_backbone(entry.arch, seed=int(entry.weights.removeprefix("random:")))
    elif weights == "pretrained" and parsed.base.startswith("timm:"):
        module = _from_hub(entry.arch)
    else:
        source = entry.weights if weights == "pretrained" else weights
        path = DATA / source if packaged else Path(source).expanduser()
        state = read_state(path)
        module = create_backbone(entry.arch)
        fill(module, state, path, heads=_classifiers(module))
    module.eval()
    info = {
        "backbone": entry.backbone,
        "family": entry.family,
        "method": entry.method,
        "stage": entry.stage,
        "lineage": entry.lineage,
        "pretraining": entry.pretraining,
    }
    if weights == "random":  # else it would pass for what it is not
        if not drawn:
            parsed = replace(parsed, variant=f"random{seed}").with_variant(parsed.variant)
        info |= dict.fromkeys(("family", "method", "stage"), "random")
        info |= {"lineage": f"{parsed.base} random{seed}", "pretraining": []}
    elif weights != "pretrained":  # nor is a file of the user's what the catalogue describes
        stem = Path(weights).stem
        if parsed.variant.partition("-")[0] != stem:
            parsed = replace(parsed, variant=stem).with_variant(parsed.variant)
        info |= dict.fromkeys(("family", "method", "stage"), "")
        info |= {"lineage": f"{parsed.base} {stem}", "pretraining": []}
    return Model(
        name=str(replace(parsed, site="")),
        arch=entry.arch,
        module=module,
        weights=weights_sha256(module),
        data_config=dict(resolve_model_data_config(module)),
        info=info,
    )


def _entry(base: str) -> Entry:
    """Catalogue entry of a name, or one made up for `timm:` and `file:`."""
    if base in catalogue():
        return catalogue()[base]
    if base.startswith("timm:"):
        arch = base.removeprefix("timm:")
        _check_timm_name(arch)
        return Entry(base, arch, weights="", backbone=arch.partition(".")[0], lineage=base)
    if base.startswith("file:"):
        path, _, arch = base.removeprefix("file:").rpartition("#arch=")
        if arch not in tiny.ARCHITECTURES:
            _check_timm_name(arch)
        return Entry(base, arch, path, backbone=arch.partition(".")[0], lineage=base)
    listing = "featstore models lists them; timm:NAME and file:PATH#arch=NAME work as well"
    known = [*catalogue(), *(f"timm:{name}" for name in timm.list_models())]
    raise unknown("model", base, known, listing)


def _check_timm_name(arch: str) -> None:
    base, dot, _ = arch.partition(".")
    if not timm.models.is_model(base):
        known = [*tiny.ARCHITECTURES, *timm.list_models()]
        raise unknown("architecture", arch, known, "timm.list_models() lists all")
    if dot and not timm.models.is_model_pretrained(arch):
        known = timm.list_pretrained(f"{base}.*")
        raise unknown("weights", arch, known, f"timm.list_pretrained('{base}.*') lists them")


def _classifiers(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers that classify, of which distilled models have two."""
    names = getattr(module, "default_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _from_hub(arch: str) -> nn.Module:
    """Backbone with the weights that timm's hub code finds, in its cache or over the network."""
    try:
        return timm.create_model(arch, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        # OSError: no network, nothing cached; RuntimeError: timm knows no weights of that name.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadCheckpointError(
            f"no pretrained weights for timm:{arch} ({reason}). Give a file with --weights PATH, "
            f"or ask for --weights random by name"
        ) from error


__all__ = [
    "DATA",
    "SITES",
    "Encoder",
    "Model",
    "ModelName",
    "batch_norms",
    "catalogue",
    "create_backbone",
    "embed",
    "expand",
    "load_model",
]
