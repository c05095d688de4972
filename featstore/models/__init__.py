"""Models: a name leads to a backbone with its weights, its input transform and its description.

Names and catalogue are loaded at once; what needs PyTorch, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featstore.models.names import SITES, Entry, ModelName, catalogue, expand

if TYPE_CHECKING:
    from featstore.models.backbone import create_backbone
    from featstore.models.encoder import Encoder, batch_norms, embed
    from featstore.models.load import DATA, Model, load_model

_HOMES = {
    "DATA": "load",
    "Encoder": "encoder",
    "Model": "load",
    "batch_norms": "encoder",
    "create_backbone": "backbone",
    "embed": "encoder",
    "load_model": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featstore.models' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


__all__ = [
    "DATA",
    "SITES",
    "Encoder",
    "Entry",
    "Model",
    "ModelName",
    "batch_norms",
    "catalogue",
    "create_backbone",
    "embed",
    "expand",
    "load_model",
]
