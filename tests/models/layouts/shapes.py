"""Names and shapes of two architectures, written from their papers, and values to fill them."""

from collections import OrderedDict
from itertools import count

import torch

COUNTERS = ("num_batches_tracked", "queue_ptr", "queue2_ptr", "alias", "relative_position_index")


def batch_norm(name, width, *, affine=True):
    shapes = {f"{name}.weight": (width,), f"{name}.bias": (width,)} if affine else {}
    shapes |= {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return shapes | {f"{name}.num_batches_tracked": ()}


def affine(name, *shape):
    """A linear layer, a convolution or, of one number, a LayerNorm."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet50(*, shortcut_first=False):
    """He et al. 2016, 3, 4, 6 and 3 bottlenecks: 53 convolutions, each with its BatchNorm."""
    shapes = {"conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    into = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        width = 32 * 2**stage
        for number in range(blocks):
            block = f"layer{stage}.{number}"
            main, shortcut = {}, {}
            kernels = ((width, into, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for place, kernel in enumerate(kernels, 1):
                main |= {f"{block}.conv{place}.weight": kernel}
                main |= batch_norm(f"{block}.bn{place}", kernel[0])
            if number == 0:
                shortcut = {f"{block}.downsample.0.weight": (4 * width, into, 1, 1)}
                shortcut |= batch_norm(f"{block}.downsample.1", 4 * width)
            shapes |= shortcut | main if shortcut_first else main | shortcut
            into = 4 * width
    return shapes


def block(name, width, *, norms=("norm1", "norm2"), layers=("mlp.fc1", "mlp.fc2")):
    """A transformer block with one projection to query, key and value."""
    return {
        **affine(f"{name}.{norms[0]}", width),
        **affine(f"{name}.attn.qkv", 3 * width, width),
        **affine(f"{name}.attn.proj", width, width),
        **affine(f"{name}.{norms[1]}", width),
        **affine(f"{name}.{layers[0]}", 4 * width, width),
        **affine(f"{name}.{layers[1]}", width, 4 * width),
    }


def vit_b16():
    """Dosovitskiy et al. 2021, base width, patches of 16 out of 224 pixels."""
    shapes = {"cls_token": (1, 1, 768), "pos_embed": (1, 197, 768)}
    shapes |= affine("patch_embed.proj", 768, 3, 16, 16)
    for number in range(12):
        shapes |= block(f"blocks.{number}", 768)
    return shapes | affine("norm", 768)


def beit_block(name):
    """A block of Bao et al. 2022: scaled residuals, and no bias of the keys."""
    return {
        f"{name}.gamma_1": (768,),
        f"{name}.gamma_2": (768,),
        **affine(f"{name}.norm1", 768),
        f"{name}.attn.q_bias": (768,),
        f"{name}.attn.v_bias": (768,),
        f"{name}.attn.qkv.weight": (2304, 768),
        **affine(f"{name}.attn.proj", 768, 768),
        **affine(f"{name}.norm2", 768),
        **affine(f"{name}.mlp.fc1", 3072, 768),
        **affine(f"{name}.mlp.fc2", 768, 3072),
    }


def beit_b16():
    """The encoder of Peng et al. 2022 while pretrained: one table of positions for all blocks."""
    shapes = {"cls_token": (1, 1, 768)} | affine("patch_embed.proj", 768, 3, 16, 16)
    shapes |= {"rel_pos_bias.relative_position_bias_table": (27 * 27 + 3, 12)}
    for number in range(12):
        shapes |= beit_block(f"blocks.{number}")
    return shapes | affine("norm", 768)


class Draw:
    """Tensors of one value each, all different; a tensor takes a few bytes of a file."""

    def __init__(self):
        self._values = count(1)

    def __call__(self, shapes, prefix=""):
        return OrderedDict(
            (
                prefix + name,
                torch.full(
                    (),
                    next(self._values),
                    dtype=torch.int64 if name.endswith(COUNTERS) else torch.float32,
                ).expand(shape),
            )
            for name, shape in shapes.items()
        )

    def one(self, *shape):
        return self({"": shape})[""]

    def optimizer(self, *shape):
        """State of stochastic gradient descent with momentum."""
        group = {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "params": [0]}
        return {"state": {0: {"momentum_buffer": self.one(*shape)}}, "param_groups": [group]}

    def adam(self, *shape):
        group = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "params": [0]}
        moments = {"step": torch.tensor(9.0), "exp_avg": self.one(*shape)}
        return {"state": {0: moments | {"exp_avg_sq": self.one(*shape)}}, "param_groups": [group]}


def noise(shapes, seed=2):
    """Random tensors, all different, in a range where a network of them neither dies nor explodes.

    Each is a window that slides over few numbers, so that it takes little of a file.
    """
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for number, (name, shape) in enumerate(shapes.items()):
        if name.endswith(COUNTERS):
            tensors[name] = torch.tensor(-number)
            continue
        strides = (1, 3, 7, 11)[: len(shape)]
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if len(shape) == 1:  # biases, scales and variances, of which the last two are positive
            values = 0.5 + 0.5 * torch.rand(span, generator=draw)
        else:
            inputs = torch.Size(shape[1:]).numel() if shape[0] > 1 else 1  # 1: no layer, but tokens
            values = torch.randn(span, generator=draw) * inputs**-0.5
        tensors[name] = values.as_strided(shape, strides)
    return tensors


SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 7,
}
"""State of a `GradScaler`."""
