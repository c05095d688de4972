"""DeepMind's BYOL ResNet-50 (arXiv:2006.07733): parameters of Haiku under torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from featstore.models.unpickle import StandIn

TENSORS = 265
"""Of a ResNet-50 without classifier: 53 convolutions and four of each of 53 batch norms."""

_FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")
_PATH = re.compile(
    r"res_net50/~/"
    r"(?:initial|block_group_(?P<group>[0-3])/~/block_(?P<block>[0-5])/~)[_/]"
    r"(?P<shortcut>shortcut_)?(?P<kind>conv|batchnorm)(?:_(?P<index>[0-2]))?"
    r"(?:/~/(?P<statistic>mean|var)_ema)?"
)
_CONVOLUTION = re.compile(r"(conv\d|downsample\.0)\.weight$")
_LEAVES = {
    ("conv", None, "w"): "weight",
    ("batchnorm", None, "scale"): "weight",
    ("batchnorm", None, "offset"): "bias",
    ("batchnorm", "mean", "average"): "running_mean",
    ("batchnorm", "var", "average"): "running_var",
}


def backbone_in(content: Any) -> dict[str, Any]:
    """Arrays of the online network's ResNet-50 by torchvision's names, in Haiku's shapes.

    Projector, predictor, classifier, target network and optimizer are left out.

    Raises
    ------
    LookupError
        The content is no such checkpoint.
    """
    state = _mapping(content)["experiment_state"]
    if isinstance(state, StandIn) and len(state.args or ()) == len(_FIELDS):
        state = dict(zip(_FIELDS, state.args or (), strict=True))  # a named tuple
    modules = _mapping(state)
    return {
        name: array
        for field in ("online_params", "online_state")
        for path, leaves in _mapping(modules[field]).items()
        for name, array in _named(str(path), _mapping(leaves))
    }


def in_torch_shape(name: str, tensor: Tensor) -> Tensor:
    """Haiku's (h, w, in, out) convolution or (1, 1, 1, c) vector in the shape that PyTorch has."""
    if _CONVOLUTION.search(name):
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.reshape(-1)


def _named(path: str, leaves: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    place = _PATH.fullmatch(path)
    if place is None:
        return
    group, block, index = place["group"], place["block"], place["index"]
    kind = "conv" if place["kind"] == "conv" else "bn"
    if group is None:
        module = f"{kind}1"
    elif place["shortcut"]:
        module = f"layer{int(group) + 1}.{block}.downsample.{0 if kind == 'conv' else 1}"
    else:
        module = f"layer{int(group) + 1}.{block}.{kind}{int(index or 0) + 1}"
    for leaf, array in leaves.items():
        name = _LEAVES.get((place["kind"], place["statistic"], leaf))
        if name:
            yield f"{module}.{name}", array


def _mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or that which Haiku's own kind of mapping was made of."""
    candidates = [value]
    if isinstance(value, StandIn):
        states = value.state if isinstance(value.state, tuple) else (value.state,)  # with slots
        candidates = [*(value.args or ()), *states]
    for found in candidates:
        if isinstance(found, Mapping):
            return next((found[n] for n in ("_mapping", "_storage") if found.get(n)), found)
    raise LookupError(f"a mapping of Haiku's was expected, found {type(value).__name__}")
