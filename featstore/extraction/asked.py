"""The models of an extraction: by name or as modules, each once, with all sites asked for."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from featstore import models as models_
from featstore.datasets import Dataset, Transform
from featstore.errors import BadCheckpointError, FeatStoreError
from featstore.extraction.targets import Options, transform_of
from featstore.fetch import Progress
from featstore.keys import BNMode
from featstore.models import Encoder, Model, ModelName, load_model
from featstore.models.checkpoints import weights_sha256
from featstore.names import expand_sets

log = logging.getLogger(__name__)

_SAID = ("input_size", "interpolation", "mean", "std", "crop_pct")
_ENTRY = ("family", "paradigm", "method", "stage")


@dataclass(frozen=True)
class Asked:
    """A model with all sites and variants asked for, as they are named in the store.

    Attributes
    ----------
    names : site -> name in the store
    size : height and width of the images that the module is given
    """

    model: Model
    names: dict[str, str]
    size: tuple[int, int]
    _at: dict[tuple[int, int], Asked] = field(default_factory=dict, repr=False)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Features at each site, found by embedding two black images.

        Raises
        ------
        FeatStoreError
            The model takes images of another size only.
        """
        cpu = torch.device("cpu")
        encoder = encoder_of(self.model, list(self.names), BNMode.EVAL, cpu, Options())
        try:
            embedded = encoder(torch.zeros(2, 3, *self.size, dtype=torch.uint8))
        except (RuntimeError, AssertionError) as error:
            if self.size == _own_size(self.model):
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise FeatStoreError(
                    f"{self.model.name} failed on two black images of {self.size[0]} x "
                    f"{self.size[1]} pixels ({reason}). It must embed (n, 3, h, w) images"
                ) from error
            raise _wrong_size(self.model, self.size) from error
        return {site: rows.shape[1] for site, rows in embedded.items()}

    def at(self, size: tuple[int, int]) -> Asked:
        """The same, for images of a size: itself if the module takes them, else by a copy.

        Weights keep their digest: what is resampled, such as position embeddings, follows from
        them and from the size, which the transform in a recipe tells.

        Raises
        ------
        FeatStoreError
            The module cannot be made to take that size.
        """
        if size not in self._at:
            module = _fitted(self.model, size)
            same = module is self.model.module and size == self.size
            model = replace(self.model, module=module)
            self._at[size] = self if same else replace(self, model=model, size=size, _at={})
        return self._at[size]


def load_asked(
    models: Sequence[str] | Mapping[str, nn.Module],
    weights: str,
    seed: int,
    variant: str,
    failed: list[FeatStoreError],
    progress: Progress | None = None,
) -> Iterator[Asked]:
    """Each model once, with all of its sites that are asked for.

    One whose weights cannot be had is left out, for the reason added to `failed`.

    Raises
    ------
    BadCheckpointError
        None can be had.
    UnknownNameError
        There is no model of a name.
    ValueError
        A module's name is one of the catalogue, or it is given with weights.
    """
    by_base: dict[str, dict[str, ModelName]] = {}
    for name in models if isinstance(models, Mapping) else models_.expand(models):
        parsed = ModelName.parse(name)
        by_base.setdefault(f"{parsed.base}~{parsed.variant}", {})[name] = parsed
    if isinstance(models, Mapping) and weights != "pretrained":
        raise ValueError(f"modules come with their weights, so leave out weights {weights!r}")
    for members in by_base.values():
        try:
            model = (
                _of_modules({name: models[name] for name in members})
                if isinstance(models, Mapping)
                else load_model(next(iter(members)), weights=weights, seed=seed, progress=progress)
            )
        except BadCheckpointError as error:
            failed.append(error)
            if len(failed) == len(by_base):
                raise
            log.warning("left out: %s", error)
            continue
        own = ModelName.parse(model.name)
        names = {
            one.site: str(
                ModelName(own.base, one.site, own.variant or one.variant).with_variant(variant)
            )
            for one in members.values()
        }
        yield Asked(model, names, _own_size(model))


def by_transform(asked: Sequence[Asked], dataset: Dataset) -> list[tuple[Transform, list[Asked]]]:
    """Models that share an input transform on a dataset, each made to take its size."""
    groups: dict[Transform, list[Asked]] = {}
    for one in asked:
        transform = transform_of(dataset, one.model.data_config)
        groups.setdefault(transform, []).append(one.at(transform.size))
    return list(groups.items())


def encoder_of(
    model: Model, sites: Sequence[str], mode: BNMode, device: torch.device, options: Options
) -> Encoder:
    """Encoder of a model in a BN mode, before it is adapted."""
    # Modes other than `eval` change the module, which belongs to all of them.
    module = model.module if mode is BNMode.EVAL else copy.deepcopy(model.module)
    encoder = Encoder(
        module,
        sites,
        mean=model.data_config["mean"],
        std=model.data_config["std"],
        device=device,
        precision=options.precision,
    )
    if mode is BNMode.BATCH:
        encoder.use_batch_statistics()
    return encoder


def _of_modules(modules: Mapping[str, nn.Module]) -> Model:
    """Model of a user's module, named once for each of its sites."""
    name, module = next(iter(modules.items()))
    parsed = ModelName.parse(name)
    if any(other is not module for other in modules.values()):
        raise ValueError(f"{' and '.join(modules)} must be one module at several sites")
    if not isinstance(module, nn.Module):
        raise ValueError(f"model {name!r} must be an nn.Module, got {type(module).__name__}")
    known = expand_sets([parsed.base], models_.catalogue(), str) != [parsed.base]
    if known or parsed.base in models_.catalogue() or ":" in parsed.base:
        raise ValueError(f"{name!r} means another model already; give the module a name of its own")
    if parsed.variant or not parsed.base:
        raise ValueError(f"{name!r} must be a plain name; a variant is given by `variant`")
    module = copy.deepcopy(module).eval()  # the caller's own stays where and as it is
    data_config = dict(resolve_model_data_config(module))
    said = getattr(module, "pretrained_cfg", None) or {}
    if not said.get("input_size") and _built_size(module):
        data_config["input_size"] = (3, *(_built_size(module) or ()))
    if any(said.get(one) is None for one in _SAID):
        facts = ", ".join(f"{one} {data_config[one]}" for one in _SAID)
        log.info("%s does not say all of its input; taken are %s", name, facts)
    arch = type(module).__name__
    info: dict[str, Any] = {"backbone": arch, "lineage": parsed.base, "pretraining": []}
    return Model(
        name=parsed.base,
        arch=arch,
        module=module,
        weights=weights_sha256(module),
        data_config=data_config,
        info=dict.fromkeys(_ENTRY, "") | info,
    )


def _own_size(model: Model) -> tuple[int, int]:
    _, height, width = model.data_config["input_size"]
    return height, width


def _built_size(module: nn.Module) -> tuple[int, int] | None:
    """Height and width that a module was built for, if it is one that cares."""
    for name in ("patch_embed", "stem"):  # where timm's models cut the image into patches
        size = getattr(getattr(module, name, None), "img_size", None)
        if isinstance(size, tuple | list) and len(size) == 2:
            return size[0], size[1]
    return None


def _fitted(model: Model, size: tuple[int, int]) -> nn.Module:
    """The model's module where it takes images of a size as it is, else a copy that does."""
    module = model.module
    if (_built_size(module) or _own_size(model)) == size or not hasattr(module, "set_input_size"):
        return module
    if getattr(module, "dynamic_img_size", False):  # fits itself at each pass
        return module
    module = copy.deepcopy(module)
    try:
        module.set_input_size(img_size=size)  # type: ignore[operator]  # timm's
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise _wrong_size(model, size) from error
    return module


def _wrong_size(model: Model, size: tuple[int, int]) -> FeatStoreError:
    taken = _built_size(model.module) or _own_size(model)
    return FeatStoreError(
        f"{model.name} ({model.arch}) takes images of {taken[0]} x {taken[1]} pixels, and the "
        f"transform gives {size[0]} x {size[1]}. Embed the dataset without its @TRANSFORM, or "
        f"leave the model out"
    )
