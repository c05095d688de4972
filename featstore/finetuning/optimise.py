"""What is trained at which rate, and when."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.models import group_parameters
from torch import Tensor, nn

from featstore.finetuning.presets import Candidate, Finetune
from featstore.probes.linear import schedule_factor


def is_transformer(module: nn.Module) -> bool:
    """Whether a module is one of timm's vision transformers, of patches through equal blocks."""
    return all(hasattr(module, name) for name in ("blocks", "patch_embed", "group_matcher"))


def layer_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """Learning rate of each parameter of a vision transformer, relative to that of the head.

    Of n blocks, block k has decay**(n - k), what is before them decay**(n + 1), and what follows
    them that of the last: published so by Marks et al., after iBOT. timm's own scales are the same,
    but for a norm after the pooling and for a model that has no head yet.
    """
    matcher = module.group_matcher(coarse=False)  # type: ignore[operator]  # timm's
    layers = group_parameters(module, matcher, reverse=True)
    last = len(module.blocks) + 1  # type: ignore[arg-type]  # a Sequential
    return {name: decay ** max(1, last - layer) for name, layer in layers.items()}


def drop_paths(module: nn.Module, rate: float) -> None:
    """Give the blocks of a vision transformer stochastic depth, from 0 in the first to the rate.

    As timm does when it makes one; here it is made already, with its weights.
    """
    blocks: list[nn.Module] = list(module.blocks)  # type: ignore[arg-type]  # a Sequential
    for block, own in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name, _ in list(block.named_children()):
            if name.startswith("drop_path") and own:
                setattr(block, name, DropPath(own))


def make_optimiser(
    backbone: nn.Module, head: nn.Module, candidate: Candidate, protocol: Finetune
) -> torch.optim.SGD:
    """SGD over what is trained, in groups of one rate, their `peak`."""
    scales: dict[str, float] = {}
    if protocol.layer_decay < 1 and is_transformer(backbone):
        scales = layer_scales(backbone, protocol.layer_decay)
    by_rate: dict[float, list[Tensor]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            by_rate.setdefault(candidate.lr * scales.get(name, 1.0), []).append(parameter)
    by_rate.setdefault(candidate.lr_head, []).extend(head.parameters())
    groups: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "peak": rate} for rate, members in by_rate.items()
    ]
    return torch.optim.SGD(
        groups,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=candidate.weight_decay,
    )


def length(protocol: Finetune, per_epoch: int) -> int:
    """Steps in all."""
    return protocol.steps or protocol.epochs * per_epoch


def rate_factor(protocol: Finetune, step: int, per_epoch: int) -> float:
    """Learning rate at a step, relative to its peak."""
    if protocol.steps:
        return schedule_factor(step, protocol.steps, protocol.warmup)
    return schedule_factor(step // per_epoch, protocol.epochs, protocol.warmup)
