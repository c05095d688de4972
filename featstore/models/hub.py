"""Weights that timm finds by itself: on its hub, or where their authors put them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants
from torch import nn

from featstore.errors import BadCheckpointError
from featstore.home import offline
from featstore.models.fetch import in_hub_cache
from featstore.models.hashes import hold
from featstore.web import BrokenError, RefusedError, ask

log = logging.getLogger(__name__)

_SWITCH = threading.Lock()
_PATIENCE = 5.0  # seconds that the hub has to answer


def from_hub(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """Backbone with the weights that timm finds for a tag, in its cache or over the network.

    The SHA-256 of their file is recorded when they are first loaded, and held to from then on.

    Raises
    ------
    BadCheckpointError
        There are none, they cannot be had, or they are not those that they were.
    """
    closed = _closed(arch)
    try:
        with _cache_alone() if closed else nullcontext():
            if closed:
                _check_cached(arch)
            # Without a classifier timm would take files that lack any other tensor as well.
            module = timm.create_model(arch, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        # OSError: no network, nothing cached; RuntimeError: timm knows no weights of that name, or
        # they are not the model's.
        reason = shorten(str(error), 200, placeholder=" ...") or type(error).__name__
        if closed and isinstance(error, OSError):
            reason = f"not in the cache, and {closed}"
        raise BadCheckpointError(
            f"no pretrained weights for timm:{arch} ({reason}). Give a file with --weights PATH, "
            f"or ask for --weights random by name"
        ) from error
    if module.num_classes:
        module.reset_classifier(0)  # type: ignore[operator]  # timm's
    found = origin(arch)
    path, key = found.path, found.url or arch
    if found.repository:
        key = f"hub:{found.repository}/{path.name if path else ''}"
    if path is None:
        log.warning("%s: where timm keeps its file is not known, so it is held to no SHA-256", key)
    else:
        hold(path.resolve(), key)  # the hub's cache has links; what is amiss is where they lead
    return module


@dataclass(frozen=True)
class Origin:
    """Where timm has the weights of a tag from, and keeps them.

    Attributes
    ----------
    repository : on the hub, or "" ; url : elsewhere, or ""; neither where none were published
    folder : of all that timm keeps of the kind ; path : of the file, None where it is not there
    licence : as timm has it
    """

    repository: str
    url: str
    folder: Path
    path: Path | None
    licence: str

    @property
    def source(self) -> str:
        """Address, or "" where nobody published any."""
        return f"https://huggingface.co/{self.repository}" if self.repository else self.url


def origin(arch: str) -> Origin:
    """Origin of the weights of a timm name; looks at the disk alone."""
    known = timm.get_pretrained_cfg(arch)
    repository, url = (known.hf_hub_id or "", known.url or "") if known else ("", "")
    licence = str(known.license or "") if known else ""
    if repository:
        path = in_hub_cache(repository)
        return Origin(repository, "", Path(constants.HF_HUB_CACHE), path, licence)
    kept = _from_url(str(url)) if url else None
    folder = Path(torch.hub.get_dir(), "checkpoints")
    return Origin("", str(url), folder, kept if kept and kept.is_file() else None, licence)


def _from_url(url: str) -> Path:
    """Where PyTorch keeps what it downloads from an address."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def _closed(arch: str) -> str:
    """Why the hub is not to be asked for weights; nothing if it is.

    timm takes 45 s and thirty lines to find out that it does not answer.
    """
    if offline() or constants.HF_HUB_OFFLINE:
        return "nothing may be fetched"
    if not origin(arch).repository:
        return ""
    try:
        ask(constants.ENDPOINT, 0, timeout=_PATIENCE).close()
    except (RefusedError, BrokenError) as error:
        if not isinstance(error.__cause__, HTTPError):  # else it does answer
            return f"{constants.ENDPOINT} {error}"
    return ""


@contextmanager
def _cache_alone() -> Iterator[None]:
    """No attempt at the hub meanwhile."""
    # huggingface_hub reads its variable when imported, and timm passes no such argument on.
    with _SWITCH:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _check_cached(arch: str) -> None:
    """Refuse a download that is not the hub's, of which offline mode would know nothing."""
    found = origin(arch)
    if found.url and found.path is None:
        raise OSError(f"no {_from_url(found.url)}")
