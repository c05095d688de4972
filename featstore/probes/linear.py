"""Heads trained by SGD on stored features: as Marks et al. train theirs, and as DINOv2 does."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from featstore.backend import Array, free_unused, to_device, to_host
from featstore.errors import NotApplicableError, ProbeError
from featstore.kernels.heads import Head, TrainedHead, train_heads
from featstore.probes.base import Classifier, Fitted, check_ascending
from featstore.probes.data import Task
from featstore.probes.held_out import held_out_rows
from featstore.probes.rows import prepared

HEADS = ("linear", "mlp")


@dataclass(frozen=True, kw_only=True)
class LinearSGD(Classifier):
    """One linear layer, or a small network, trained on stored features; the last epoch counts.

    Attributes
    ----------
    views : 0 to train on the centre view; N to draw, for each image and epoch, one of N augmented
        views that are stored (`featstore extract --views N`)
    lr_per_256 : learning rate per 256 images of a batch
    warmup : epochs of linear warm-up, before cosine decay
    clip : largest norm of the gradient
    head : `linear`, or `mlp` of three layers with `hidden` units and ReLU between
    head_bn : BatchNorm (affine, eps 1e-5, momentum 0.1) before the head
    """

    allowed: ClassVar[tuple[str, ...]] = ("none", "bn")

    views: int = 0
    epochs: int = 100
    batch_size: int = 1024
    lr_per_256: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: int = 5
    clip: float = 0.5
    head: str = "linear"
    hidden: int = 1000
    head_bn: bool = False
    rescaled: bool = True
    kind: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalisation != ("bn" if self.head_bn else "none"):
            raise ValueError("normalisation is `bn` with head_bn, else `none`")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")
        if min(self.epochs, self.batch_size, self.hidden) < 1 or min(self.warmup, self.views) < 0:
            raise ValueError(
                "epochs, batch_size and hidden must be at least 1, warmup and views at least 0"
            )
        if not (0 < self.lr_per_256 < math.inf and self.clip > 0):
            raise ValueError(
                f"lr_per_256 and clip must be above 0, got {self.lr_per_256:g} and {self.clip:g}"
            )
        if not (0 <= self.weight_decay < math.inf and 0 <= self.momentum < 1):
            raise ValueError(
                f"weight_decay must be 0 or more and momentum lie in 0..1 and not be 1, got "
                f"{self.weight_decay:g} and {self.momentum:g}"
            )

    def splits(self, stored: Collection[str]) -> tuple[str, ...]:
        """Train and test, the augmented views, and val where it is stored, to calibrate by."""
        views = (f"train+aug{view}" for view in range(self.views))
        return ("train", *views, *(("val",) if "val" in stored else ()), "test")

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities."""
        device = torch.device(task.device)
        generator = torch.Generator().manual_seed(task.seed)
        x, y = _views(task, device, augmented=bool(self.views))
        train = self._train_mlp if self.head == "mlp" else self._train_linear
        head, loss = train(x, y, task.n_categories, generator)
        unseen = None
        if task.val is not None:
            features, labels = task.val.rows()
            unseen = _apply(head, torch.from_numpy(features).to(device)), labels
        return _scored(task, head, {"last_epoch_train_loss": loss}, unseen)

    def _train_linear(
        self, x: Tensor, y: Tensor, n_categories: int, generator: torch.Generator
    ) -> tuple[Callable[[Tensor], Tensor], float]:
        """The head, and its mean loss in the last epoch."""
        start = _layer(x.shape[2], n_categories, generator).weight.detach().to(x.device)
        head = Head(start, self._peak, self.weight_decay, bn=self.head_bn)
        batches = (
            batch for epoch in range(self.epochs) for batch in self._epoch(x, y, epoch, generator)
        )
        (trained,), losses = train_heads(batches, [head], momentum=self.momentum, clip=self.clip)
        sizes = [len(rows) for rows in _batches(torch.arange(len(y)), self.batch_size)]
        last = losses[-len(sizes) :, 0].cpu()
        return trained, float(last @ torch.tensor(sizes, dtype=last.dtype)) / len(y)

    def _train_mlp(
        self, x: Tensor, y: Tensor, n_categories: int, generator: torch.Generator
    ) -> tuple[Callable[[Tensor], Tensor], float]:
        """The network, and its mean loss in the last epoch."""
        sizes = [x.shape[2], self.hidden, self.hidden, n_categories]
        head = stacked(sizes, lambda a, b: _layer(a, b, generator), bn=self.head_bn).to(x.device)
        optimiser = torch.optim.SGD(
            head.parameters(),
            lr=self._peak,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        total = math.nan
        for epoch in range(self.epochs):
            total = 0.0
            for batch, labels, factor in self._epoch(x, y, epoch, generator):
                for group in optimiser.param_groups:
                    group["lr"] = self._peak * factor
                loss = nn.functional.cross_entropy(head(batch), labels)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), self.clip)
                optimiser.step()
                total += float(loss.detach()) * len(labels)
        return head.eval(), total / len(y)

    @property
    def _peak(self) -> float:
        return self.lr_per_256 * self.batch_size / 256

    def _epoch(
        self, x: Tensor, y: Tensor, epoch: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Batches of an epoch, each with the factor of the learning rate."""
        views, n, width = x.shape
        order = torch.randperm(n, generator=generator)
        view = torch.zeros(n, dtype=torch.int64)
        if self.views:
            view = torch.randint(views, (n,), generator=generator)
        factor = schedule_factor(epoch, self.epochs, self.warmup)
        flat = x.view(-1, width)  # one index for view and row: many times as fast as two
        for rows in _batches(order, self.batch_size):
            taken = flat.index_select(0, (view[rows] * n + rows).to(x.device))
            yield taken.float(), y[rows.to(y.device)], factor


@dataclass(frozen=True, kw_only=True)
class LinearGrid(Classifier):
    """A linear layer for each learning rate, trained at once; the best on held-out rows wins.

    The winner is trained again on all of train.

    Attributes
    ----------
    lrs_per_256 : ascending learning rates per 256 images of a batch, decayed by a cosine to 0
    iterations : steps of SGD, each on `batch_size` rows
    held_out : share of train on which the rate is chosen where the dataset has no val split
    """

    lrs_per_256: tuple[float, ...]
    iterations: int = 12_500
    batch_size: int = 128
    momentum: float = 0.9
    held_out: float = 0.1
    rescaled: bool = True
    kind: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lrs_per_256 or not all(0 < rate < math.inf for rate in self.lrs_per_256):
            raise ValueError(
                f"lrs_per_256 must be above 0, at least one, got {list(self.lrs_per_256)}"
            )
        check_ascending("lrs_per_256", self.lrs_per_256)
        if min(self.iterations, self.batch_size) < 1:
            raise ValueError(
                f"iterations and batch_size must be at least 1, got {self.iterations} and "
                f"{self.batch_size}"
            )
        if not (0 < self.held_out <= 0.5 and 0 <= self.momentum < 1):
            raise ValueError(
                f"held_out must lie in 0..0.5 and not be 0, momentum in 0..1 and not be 1, got "
                f"{self.held_out:g} and {self.momentum:g}"
            )

    def splits(self, stored: Collection[str]) -> tuple[str, ...]:
        """Train and test, and val where it is stored."""
        return ("train", "val", "test") if "val" in stored else ("train", "test")

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities."""
        device = torch.device(task.device)
        views, y = _views(task, device, augmented=False)
        x = views[0]
        if task.val is not None:
            features, labels = task.val.rows()
            val, truth = torch.from_numpy(features).to(device), labels
            kept, known = x, y
        else:
            out = torch.from_numpy(held_out_rows(task.train.labels, self.held_out, task.seed))
            val, truth = x[out.to(device)], task.train.labels[out.numpy()]
            kept, known = x[~out.to(device)], y[~out.to(device)]
        heads = self._train(kept, known, self.lrs_per_256, task)
        scores = [task.score(_apply(head, val), truth) for head in heads]
        best = int(np.argmax(scores))
        (head,) = self._train(x, y, self.lrs_per_256[best : best + 1], task)
        return _scored(
            task,
            head,
            {
                "lr_per_256": self.lrs_per_256[best],
                "lr_at_edge": best in (0, len(scores) - 1),
                "held_out_rows": len(truth),
                f"held_out_{task.metric}": scores,
            },
            (_apply(heads[best], val), truth),
        )

    def _train(
        self, x: Tensor, y: Tensor, rates: tuple[float, ...], task: Task
    ) -> list[TrainedHead]:
        """A trained layer for each rate; every one sees the same batches from the same start."""
        generator = torch.Generator().manual_seed(task.seed)
        start = _layer(x.shape[1], task.n_categories, generator).weight.detach().to(x.device)
        orders = _endless(len(x), self.batch_size, generator)

        def batches() -> Iterator[tuple[Tensor, Tensor, float]]:
            for step in range(self.iterations):
                rows = next(orders).to(x.device)
                factor = (1 + math.cos(math.pi * step / self.iterations)) / 2
                yield x.index_select(0, rows).float(), y[rows], factor

        heads = [Head(start, rate * self.batch_size / 256) for rate in rates]
        return train_heads(batches(), heads, momentum=self.momentum)[0]


def schedule_factor(epoch: int, epochs: int, warmup: int) -> float:
    """Learning rate at an epoch, relative to its peak: linear warm-up, then cosine to 0.

    As published: (e+1)/6 for e < 5, then (1 + cos(pi (e-5)/95))/2, for 100 epochs.
    """
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


def stacked(
    sizes: Sequence[int], layer: Callable[[int, int], nn.Linear], *, bn: bool
) -> nn.Sequential:
    """Layers from each size to the next with ReLU between, after a BatchNorm if asked for."""
    layers: list[nn.Module] = [nn.BatchNorm1d(sizes[0], eps=1e-5, momentum=0.1)] * bn
    for i, (width, out) in enumerate(pairwise(sizes)):
        if i:
            layers.append(nn.ReLU())
        layers.append(layer(width, out))
    return nn.Sequential(*layers)


def _layer(width: int, out: int, generator: torch.Generator) -> nn.Linear:
    """A layer with weight N(0, .01) and bias 0."""
    layer = nn.Linear(width, out, device="meta").to_empty(device="cpu")
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _views(task: Task, device: torch.device, *, augmented: bool) -> tuple[Tensor, Tensor]:
    """Train rows (views, n, d) in the stored dtype, and their labels (n,)."""
    parts = task.views if augmented else [task.train]
    if not parts:
        raise NotApplicableError(
            "it trains on augmented views, and there are none here: featstore extract --views N "
            "keeps N of train, and a draw of few images has none"
        )
    if not all(np.array_equal(part.index, task.train.index) for part in parts):
        raise ProbeError("the stored views are not of the same train images; extract them anew")
    rows = [part.rows()[0] for part in parts]
    stacked = rows[0][None] if len(rows) == 1 else np.stack(rows)  # the one is not copied
    labels = torch.from_numpy(task.train.labels)
    free_unused(task.xp)
    return torch.from_numpy(stacked).to(device), labels.to(device)


def _scored(
    task: Task,
    head: Callable[[Tensor], Tensor],
    certificate: dict[str, Any],
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> Fitted:
    """A trained head as a scorer of the test rows."""

    @torch.inference_mode()
    def score(rows: Array, number: int) -> Array:
        embedded = torch.from_numpy(to_host(rows)).float().to(task.device)
        log_proba = torch.log_softmax(head(embedded).double(), dim=1)
        return to_device(log_proba.cpu().numpy(), task.xp)

    return Fitted(prepared(task, task.test, "none"), score, certificate, held_out)


@torch.inference_mode()
def _apply(head: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """Logits (n, c) of stored rows."""
    return torch.cat([head(rows.float()) for rows in x.split(65_536)]).cpu().numpy()


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Batches of an epoch; a last one of a single row has no variance, so it joins another."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _endless(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of one permutation of the rows after the other."""
    while True:
        yield from torch.randperm(n, generator=generator).split(size)


_SOURCE = "Marks et al., arXiv:2407.12210, on stored features of "

PROTOCOLS = [
    *(
        LinearSGD(
            name=f"linear-marks-{max(views, 1)}view{'-mlp' * mlp}{'-bn' * bn}",
            views=views,
            normalisation="bn" if bn else "none",
            head="mlp" if mlp else "linear",
            head_bn=bn,
            sets=("marks2024",) if views or mlp else ("core", "marks2024"),
            source=_SOURCE
            + (
                f"{views} augmented views, one drawn an epoch"
                if views
                else "one centre view in place of a fresh augmentation per epoch"
            ),
        )
        for views in (0, 8)
        for mlp in (False, True)
        for bn in (False, True)
    ),
    LinearGrid(
        name="linear-dinov2",
        lrs_per_256=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        source="Oquab et al., arXiv:2304.07193: 13 learning rates, here on stored features of one "
        "view and chosen on held-out rows; meant for @cls-last4 and @cls+avg",
    ),
]
