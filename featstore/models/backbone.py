"""Backbones without weights: timm's and the tiny study's architectures by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from featstore.models import tiny
from featstore.names import unknown

_GENERATOR = threading.Lock()  # PyTorch's global generator is one for all threads


def create_backbone(
    arch: str, *, seed: int | None = None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A backbone without classifier, randomly initialised; the same bytes for the same seed.

    Parameters
    ----------
    options : further arguments of `timm.create_model`

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
        check_timm_name(arch)
        return timm.create_model(arch, pretrained=False, num_classes=0, **(options or {}))


def check_timm_name(arch: str) -> None:
    """Refuse a name that timm has no architecture for, or no weights of that tag.

    Raises
    ------
    UnknownNameError
        Says which come near.
    """
    base, dot, _ = arch.partition(".")
    if not timm.models.is_model(base):
        known = [*tiny.ARCHITECTURES, *timm.list_models()]
        raise unknown("architecture", arch, known, "timm.list_models() lists all")
    if dot and not timm.models.is_model_pretrained(arch):
        known = timm.list_pretrained(f"{base}.*")
        raise unknown("weights", arch, known, f"timm.list_pretrained('{base}.*') lists them")


def classifiers(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers that classify, of which distilled models have two."""
    names = getattr(module, "default_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
