"""Linear heads trained by SGD side by side: each batch is read, and multiplied, once for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import array_api_compat.torch
import torch
from torch import Tensor

from featstore.kernels.metrics import check_labels

_EPS = 1e-5  # of BatchNorm, as in torch


@dataclass(frozen=True)
class Head:
    """What one head is trained with.

    Attributes
    ----------
    start : (c, d) floating, weight before the first step; the bias starts at 0
    lr : learning rate, before the factor of a step
    weight_decay : added to the gradient, times each parameter, after clipping, as torch's SGD does
    bn : an affine BatchNorm of the features comes first
    """

    start: Tensor
    lr: float
    weight_decay: float = 0.0
    bn: bool = False


@dataclass(frozen=True)
class TrainedHead:
    """An affine map of features, after one of each feature by itself if it has a BatchNorm.

    Attributes
    ----------
    weight : (c, d) ; bias : (c,)
    mean, variance : (d,) running statistics of the batches, or None for no BatchNorm
    scale, shift : (d,) of the BatchNorm, or None
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (m, c) of features (m, d)."""
        if self.mean is not None:
            x = torch.nn.functional.batch_norm(
                x, self.mean, self.variance, self.scale, self.shift, eps=_EPS
            )
        return torch.nn.functional.linear(x, self.weight, self.bias)


@torch.no_grad()
def train_heads(
    batches: Iterable[tuple[Tensor, Tensor, float]],
    heads: Sequence[Head],
    *,
    momentum: float = 0.9,
    clip: float = math.inf,
) -> tuple[list[TrainedHead], Tensor]:
    """Heads after a step of SGD by cross-entropy for each batch, and their losses before it.

    Each comes out as if it were trained by itself with `torch.optim.SGD`, `clip_grad_norm_` and
    `BatchNorm1d`, up to rounding. With x^ the normalised batch, which is the same for all heads,
    and r the softmax less the target, all gradients follow from r'x^ and r's sum over rows: those
    of BatchNorm's scale and shift are sums over categories of these, times the weight.

    Parameters
    ----------
    batches : features (m, d) in the dtype of the starts and finite, labels (m,) int64 in 0..c-1,
        and the factor of all learning rates in this step, finite; two rows or more for BatchNorm
    heads : at least one, all of as many features d and categories c and of one dtype
    momentum : in 0..1, not 1
    clip : largest norm of a head's gradient

    Returns
    -------
    trained : a head for each of `heads`
    losses : (steps, heads), mean over the batch

    Raises
    ------
    ValueError
        No heads or batches; shapes or dtypes do not fit; a number, label or feature outside its
        range. A head that diverges is no error: its loss and weights are then not finite.
    """
    _check(heads, momentum, clip)
    order = sorted(range(len(heads)), key=lambda i: heads[i].bn)  # stable
    plain = sum(not head.bn for head in heads)
    parts = [part for part in (order[:plain], order[plain:]) if part]
    groups = [_Group([heads[i] for i in part], momentum, clip) for part in parts]
    losses = []
    for x, y, factor in batches:
        _check_batch(x, y, factor, heads[0].start, need=2 if groups[-1].bn else 1)
        step = torch.cat([group.step(x, y, factor) for group in groups])
        if not step.isfinite().all() and not x.isfinite().all():
            raise ValueError("features of a batch must be finite, and some are not")
        losses.append(step)
    if not losses:
        raise ValueError("batches must hold at least one batch, got none")
    trained = [head for group in groups for head in group.trained()]
    back = sorted(range(len(heads)), key=order.__getitem__)
    return [trained[i] for i in back], torch.stack(losses)[:, back]


class _Group:
    """Heads that all begin with BatchNorm, or none of them; parameters have heads first."""

    def __init__(self, heads: Sequence[Head], momentum: float, clip: float) -> None:
        self.bn, self.momentum, self.clip = heads[0].bn, momentum, clip
        self.weight = torch.stack([head.start for head in heads])  # (h, c, d)
        h, c, d = self.weight.shape
        self.bias = self.weight.new_zeros(h, c, 1)
        self.lr = self.weight.new_tensor([head.lr for head in heads])[:, None, None]
        decay = [head.weight_decay for head in heads]
        self.decay = self.weight.new_tensor(decay)[:, None, None] if any(decay) else None
        self.parameters = [self.weight, self.bias]
        if self.bn:
            self.scale, self.shift = self.weight.new_ones(h, 1, d), self.weight.new_zeros(h, 1, d)
            self.parameters += [self.scale, self.shift]
            self.mean, self.variance = self.weight.new_zeros(d), self.weight.new_ones(d)
        self.velocity = [torch.zeros_like(one) for one in self.parameters]

    def step(self, x: Tensor, y: Tensor, factor: float) -> Tensor:
        """Losses (h,) of a batch, before the step that it makes."""
        h, c, d = self.weight.shape
        weight, bias = self.weight, self.bias
        if self.bn:
            x = torch.nn.functional.batch_norm(
                x, self.mean, self.variance, training=True, momentum=0.1, eps=_EPS
            )
            weight, bias = self.scale * weight, bias + weight @ self.shift.transpose(1, 2)
        # Rows of the batch come last, so that a softmax of few categories runs along many of them.
        logits = torch.addmm(bias.view(-1, 1), weight.view(-1, d), x.T).view(h, c, -1)
        excess = torch.log_softmax(logits, dim=1)
        own = y.expand(h, 1, -1)
        losses = -excess.gather(1, own).mean(dim=2)[:, 0]
        excess.exp_().scatter_add_(1, own, excess.new_tensor(-1.0).expand_as(own))
        excess /= len(y)
        self._move(x, excess, factor)
        return losses

    def _move(self, x: Tensor, excess: Tensor, factor: float) -> None:
        total, flat = excess.sum(dim=2, keepdim=True), excess.view(-1, len(x))
        if not self.bn and self.clip == math.inf and self.decay is None:
            memory = self.velocity[0].view(-1, x.shape[1])  # takes the gradient as it is made
            torch.addmm(memory, flat, x, beta=self.momentum, out=memory)
            self.velocity[1].mul_(self.momentum).add_(total)
        else:
            slopes = self._slopes((flat @ x).view_as(self.weight), total)
            norms = [torch.linalg.vector_norm(slope, dim=(1, 2)) for slope in slopes]
            norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
            kept = (self.clip / (norm + 1e-6)).clamp(max=1.0)[:, None, None]
            for memory, slope, one in zip(self.velocity, slopes, self.parameters, strict=True):
                memory.mul_(self.momentum).addcmul_(slope, kept)
                if self.decay is not None:
                    memory.addcmul_(one, self.decay)
        for one, memory in zip(self.parameters, self.velocity, strict=True):
            one.addcmul_(memory, self.lr, value=-factor)

    def _slopes(self, product: Tensor, total: Tensor) -> list[Tensor]:
        """Gradients of all parameters from r'x (h, c, d) and the sum of r (h, c, 1)."""
        if not self.bn:
            return [product, total]
        return [
            torch.addcmul(self.scale * product, total, self.shift),
            total,
            (self.weight * product).sum(dim=1, keepdim=True),
            total.transpose(1, 2) @ self.weight,
        ]

    def trained(self) -> list[TrainedHead]:
        """Its heads, in order."""
        found = []
        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            head = TrainedHead(weight.clone(), bias[:, 0].clone())
            if self.bn:
                scale, shift = self.scale[i, 0].clone(), self.shift[i, 0].clone()
                head = replace(
                    head, mean=self.mean, variance=self.variance, scale=scale, shift=shift
                )
            found.append(head)
        return found


def _check(heads: Sequence[Head], momentum: float, clip: float) -> None:
    if not heads:
        raise ValueError("heads must hold at least one head, got none")
    shapes = {tuple(head.start.shape) for head in heads}
    first = heads[0].start
    if len(shapes) > 1 or first.ndim != 2 or len(first) < 2 or not first.shape[1]:
        raise ValueError(
            f"starts of heads must all be of one shape (c, d), c at least 2, got {sorted(shapes)}"
        )
    dtypes = {head.start.dtype for head in heads}
    if len(dtypes) > 1 or not first.is_floating_point():
        raise ValueError(
            f"starts of heads must all be of one floating dtype, got "
            f"{', '.join(sorted(map(str, dtypes)))}"
        )
    for i, head in enumerate(heads):
        if not head.start.isfinite().all():
            raise ValueError(f"starts of heads must be finite, and that of head {i} is not")
        if not (0 < head.lr < math.inf and 0 <= head.weight_decay < math.inf):
            raise ValueError(
                f"lr must be above 0 and weight_decay at least 0, both finite, got {head.lr:g} and "
                f"{head.weight_decay:g}"
            )
    if not 0 <= momentum < 1 or not clip > 0:
        raise ValueError(
            f"momentum must lie in 0..1 and not be 1, clip be above 0, got {momentum:g} and "
            f"{clip:g}"
        )


def _check_batch(x: Tensor, y: Tensor, factor: float, start: Tensor, *, need: int) -> None:
    categories, width = start.shape
    if x.ndim != 2 or x.shape[1] != width or y.shape != x.shape[:1]:
        raise ValueError(
            f"features of a batch must be (m, {width}), as wide as the heads, and labels (m,), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if len(x) < need:
        raise ValueError(f"a batch must hold at least {need} rows, got {len(x)}")
    if x.dtype != start.dtype or y.dtype != torch.int64:
        raise ValueError(
            f"features of a batch must be {start.dtype} (that of the starts) and labels "
            f"torch.int64, got {x.dtype} and {y.dtype}"
        )
    if not math.isfinite(factor):
        raise ValueError(f"the factor of learning rates must be finite, got {factor}")
    check_labels(y, categories, xp=array_api_compat.torch)
