"""What a model is like before its weights are there: widths, BatchNorm or none, input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from featstore.models.encoder import batch_norms
from featstore.models.load import create_module, data_config_of, entry_of


@dataclass(frozen=True)
class Blueprint:
    """A model without weights.

    Attributes
    ----------
    name : as written, without site and variant ; bn_free : whether no layer is a BatchNorm
    data_config : of its input, as `Model` has it
    """

    name: str
    bn_free: bool
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
    return Blueprint(
        name, not batch_norms(module), data_config_of(module, entry), entry.width or own, tokens
    )
