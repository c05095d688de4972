"""The network that is trained, and the machine it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from featstore.finetuning.presets import Finetune
from featstore.models import batch_norms, embed
from featstore.models.encoder import DTYPES
from featstore.probes.linear import stacked

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """Where and how it is computed, none of which is the protocol's.

    Attributes
    ----------
    precision : fp32, or autocast to bf16 or fp16 ; accumulate : parts of a process's batch
    num_workers : processes that decode
    rank, world : this process among all that share each batch
    """

    device: torch.device
    precision: str = "fp32"
    num_workers: int = 0
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False
    rank: int = 0
    world: int = 1

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights."""
        return torch.channels_last if self.channels_last else torch.preserve_format

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def agreed(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all; the others, whose disk may be another, look not."""
        if self.world == 1:
            return find()
        box = [find() if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, in all."""
        if self.world == 1:
            return [value]
        box = [None] * self.world
        dist.all_gather_object(box, value)
        return box


class Net(nn.Module):
    """Scores (n, c) of (n, 3, h, w) uint8 images: a backbone at a site, and a head."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        protocol: Finetune,
        *,
        site: str,
        data_config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(protocol.trained)
        self.head = head
        self.protocol, self.site = protocol, site
        for name in ("mean", "std"):
            value = torch.tensor(data_config[name]).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        pixels = images.float().div_(255).sub_(self.mean).div_(self.std)
        logits: Tensor = self.head(embed(self.backbone, pixels, (self.site,))[self.site])
        return logits

    def train(self, mode: bool = True) -> Self:
        """Train mode, but for what is to stay as shipped."""
        super().train(mode)
        if self.protocol.backbone_bn == "frozen":
            still = batch_norms(self.backbone) if self.protocol.trained else [self.backbone]
            for layer in still:
                layer.eval()
        return self


def make_head(width: int, n_categories: int, protocol: Finetune, seed: int) -> nn.Module:
    """The layers after the backbone, drawn by a seed."""

    def layer(width: int, out: int) -> nn.Linear:
        linear = nn.Linear(width, out)
        if protocol.head_std:
            nn.init.normal_(linear.weight, std=protocol.head_std)
            nn.init.zeros_(linear.bias)
        return linear

    inner = [protocol.hidden, protocol.hidden] if protocol.head == "mlp" else []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return stacked([width, *inner, n_categories], layer, bn=protocol.normalisation == "bn")


def loss_of(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy; of several labels a row, binary, and what is difficult is absent."""
    if labels.ndim == 2:
        return nn.functional.binary_cross_entropy_with_logits(logits, (labels == 1).float())
    return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def hits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of rows that are right; of several labels a row, the share that is right counts."""
    if labels.ndim == 2:
        return ((logits >= 0) == (labels == 1)).float().mean(dim=1).sum()
    return (logits.argmax(dim=1) == labels).sum()
