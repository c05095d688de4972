"""Two backbones small enough to pretrain on a laptop, built of timm's own classes."""

from __future__ import annotations

from collections.abc import Callable

from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

_INPUT = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def tiny_resnet() -> nn.Module:
    """ResNet of four basic blocks for 32 x 32 pixels, 0.31 million parameters, with BatchNorm.

    Embeds into 128 features.
    """
    model = ResNet(
        BasicBlock,  # type: ignore[arg-type]  # timm annotates an instance and means the class
        layers=(1, 1, 1, 1),
        channels=(16, 32, 64, 128),
        num_classes=0,
    )
    # timm's stem (7 x 7 with stride 2, then pooling) leaves 1 x 1 of 32 pixels after four stages;
    # this one, as usual for small images, leaves 2 x 2.
    model.add_module("conv1", nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False))
    model.add_module("maxpool", nn.Identity())
    model.init_weights(zero_init_last=False)
    return _configured(model)


def tiny_vit() -> nn.Module:
    """Vision transformer of four blocks over 4 x 4 pixel patches of 32 x 32 pixels, no BatchNorm.

    Has 0.21 million parameters and embeds into 64 features, those of the class token.
    """
    model = VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=4.0,
        class_token=True,
        global_pool="token",
        num_classes=0,
        weight_init="jax",  # scaled by the width; timm's default suits far wider layers
    )
    return _configured(model)


def _configured(model: nn.Module) -> nn.Module:
    model.pretrained_cfg = dict(_INPUT)  # type: ignore[assignment]  # no tensor, as timm's own
    return model


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "tiny-resnet": tiny_resnet,
    "tiny-vit": tiny_vit,
}
"""Architectures by the name that checkpoints and the catalogue use; weights are drawn afresh."""
