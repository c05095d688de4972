"""Linear heads trained by SGD on stored features, as Marks et al. train theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from featstore.backend import Array, to_device, to_host
from featstore.probes.base import Data, Fitted, Protocol, Task, prepared


@dataclass(frozen=True, kw_only=True)
class LinearSGD(Protocol):
    """One linear layer, trained on stored features of the centre view; the last epoch counts.

    Attributes
    ----------
    lr_per_256 : learning rate per 256 images of a batch
    warmup : epochs of linear warm-up, before cosine decay
    clip : largest norm of the gradient
    head_bn : BatchNorm (affine, eps 1e-5, momentum 0.1) before the layer
    """

    epochs: int = 100
    batch_size: int = 1024
    lr_per_256: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: int = 5
    clip: float = 0.5
    head_bn: bool = False
    kind: str = "linear"

    def __post_init__(self) -> None:
        if self.normalisation != ("bn" if self.head_bn else "none"):
            raise ValueError("normalisation is `bn` with head_bn, else `none`")
        if min(self.epochs, self.batch_size) < 1 or self.warmup < 0:
            raise ValueError("epochs and batch_size must be at least 1, warmup at least 0")

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities."""
        device = torch.device(task.device)
        generator = torch.Generator().manual_seed(task.seed)
        head = self._head(task.train.width, task.n_categories, generator).to(device)
        features, labels = _stored_rows(task.train)
        x, y = torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)
        loss = self._train(head, x, y, generator)
        head.eval()

        @torch.inference_mode()
        def score(rows: Array, number: int) -> Array:
            embedded = torch.from_numpy(to_host(rows)).float().to(device)
            log_proba = torch.log_softmax(head(embedded).double(), dim=1)
            return to_device(log_proba.cpu().numpy(), task.xp)

        return Fitted(prepared(task, task.test, "none"), score, {"last_epoch_train_loss": loss})

    def _head(self, width: int, n_categories: int, generator: torch.Generator) -> nn.Module:
        layer = nn.Linear(width, n_categories, device="meta").to_empty(device="cpu")
        nn.init.normal_(layer.weight, std=0.01, generator=generator)
        nn.init.zeros_(layer.bias)
        if not self.head_bn:
            return layer
        return nn.Sequential(nn.BatchNorm1d(width, eps=1e-5, momentum=0.1), layer)

    def _train(self, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> float:
        base = self.lr_per_256 * self.batch_size / 256
        optimiser = torch.optim.SGD(
            head.parameters(), lr=base, momentum=self.momentum, weight_decay=self.weight_decay
        )
        total = math.nan
        for epoch in range(self.epochs):
            for group in optimiser.param_groups:
                group["lr"] = base * schedule_factor(epoch, self.epochs, self.warmup)
            total = 0.0
            order = torch.randperm(len(x), generator=generator)
            for rows in _batches(order, self.batch_size):
                rows = rows.to(x.device)
                loss = nn.functional.cross_entropy(head(x[rows].float()), y[rows])
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), self.clip)
                optimiser.step()
                total += float(loss.detach()) * len(rows)
        return total / len(x)


def schedule_factor(epoch: int, epochs: int, warmup: int) -> float:
    """Learning rate at an epoch, relative to its peak: linear warm-up, then cosine to 0.

    As published: (e+1)/6 for e < 5, then (1 + cos(pi (e-5)/95))/2, for 100 epochs.
    """
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Batches of an epoch; a last one of a single row has no variance, so it joins another."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _stored_rows(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """All rows in the stored dtype, half the room of what is computed with."""
    parts = [block.read() for block in data.blocks]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


PROTOCOLS = [
    LinearSGD(
        name=f"linear-marks-1view{suffix}",
        normalisation=normalisation,
        head_bn=bool(suffix),
        sets=("marks2024",),
        source="Marks et al., arXiv:2407.12210, on features of one centre view in place of a fresh "
        "augmentation per epoch",
    )
    for suffix, normalisation in (("", "none"), ("-bn", "bn"))
]
