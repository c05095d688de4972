"""What a model is like before its weights are there: widths, BatchNorm or none, input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from featstore.home import expanded
from featstore.models.encoder import batch_norms
from featstore.models.hub import origin
from featstore.models.load import create_module, data_config_of, entry_of
from featstore.models.names import ModelName


@dataclass(frozen=True)
class Blueprint:
    """A model without weights.

    Attributes
    ----------
    name : as written, without site and variant ; bn_free : whether no layer is a BatchNorm
    parameters : how many there are, all but a classifier's
    data_config : of its input, as `Model` has it
    """

    name: str
    bn_free: bool
    parameters: int
    data_config: dict[str, Any]
    _own: int
    _tokens: int

    def width(self, site: str) -> int:
        """Features at an embedding site."""
        many = {"": self._own, "cls+avg": 2 * self._tokens, "cls-last4": 4 * self._tokens}
        return many.get(site, self._tokens)


@lru_cache
def blueprint(name: str) -> Blueprint:
    """Blueprint of a catalogue name, `timm:NAME` or `file:PATH#arch=NAME`; no memory for weights.

    Raises
    ------
    UnknownNameError
        No such model.
    """
    entry = entry_of(name)
    with torch.device("meta"):
        module = create_module(entry)
    tokens = int(getattr(module, "num_features", 0))
    own = int(getattr(module, "head_hidden_size", 0) or tokens)
    parameters = sum(one.numel() for one in module.parameters())
    config = data_config_of(module, entry)
    return Blueprint(name, not batch_norms(module), parameters, config, entry.width or own, tokens)


def described(name: str) -> dict[str, Any]:
    """What there is to say of `timm:NAME`, `file:PATH#arch=NAME` or `py:MODULE:FACTORY`.

    Raises
    ------
    UnknownNameError
        No such model.
    """
    parsed = ModelName.parse(name)
    entry, built = entry_of(parsed.base), blueprint(parsed.base)
    found = {"name": str(parsed), "arch": entry.arch, "width": built.width(parsed.site)}
    found |= {"parameters": built.parameters, "bn_free": built.bn_free, **built.data_config}
    if entry.weights != "hub":
        there = entry.weights.startswith("py:") or expanded(entry.weights).is_file()
        return found | {"weights": entry.weights, "status": "ready" if there else "absent"}
    known = origin(entry.arch)
    if not known.source:
        return found | {"weights": "none published", "status": "random only"}
    found |= {"weights": known.repository or known.url, "licence": known.licence}
    return found | {"status": "ready" if known.path else "fetchable"}
