"""Weights that timm finds by itself: on its hub, or where their authors put them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants
from torch import nn

from featstore.errors import BadCheckpointError
from featstore.home import offline

_SWITCH = threading.Lock()


def from_hub(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """Backbone with the weights that timm finds for a tag, in its cache or over the network.

    Raises
    ------
    BadCheckpointError
        There are none, or they cannot be had.
    """
    try:
        with _offline_if_told():
            _check_cached(arch)
            return timm.create_model(arch, pretrained=True, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        # OSError: no network, nothing cached; RuntimeError: timm knows no weights of that name.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadCheckpointError(
            f"no pretrained weights for timm:{arch} ({reason}). Give a file with --weights PATH, "
            f"or ask for --weights random by name"
        ) from error


@contextmanager
def _offline_if_told() -> Iterator[None]:
    """No attempt at the hub, which takes 45 s to fail, where nothing may be fetched."""
    if not offline():
        yield
        return
    # huggingface_hub reads its variable when imported, and timm passes no such argument on.
    with _SWITCH:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _check_cached(arch: str) -> None:
    """Refuse a download that is not the hub's, of which offline mode would know nothing."""
    known = timm.get_pretrained_cfg(arch)
    if not offline() or known is None or known.hf_hub_id or not known.url:
        return
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(str(known.url)).path).name)
    if not cached.is_file():
        raise OSError(f"offline, and no {cached}")
