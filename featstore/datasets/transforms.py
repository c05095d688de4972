"""From an image to the (3, h, w) uint8 pixels that a model takes, before normalisation.

Normalisation is the encoder's, on its device: models that differ only in mean and std thereby
share a decoding pass, and a batch travels in a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from featstore.errors import UnknownNameError

NAMES = ("own",)
"""Transforms that a dataset's name may carry after @; a bare name means `own`."""

_GEOMETRY = ("input_size", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Transform:
    """Evaluation transform of the weights' own configuration (`own`), as timm builds it.

    `spec` says all of it and is part of the recipe; two models whose specs are equal share a
    decoding pass.
    """

    spec: tuple[tuple[str, Any], ...]

    @classmethod
    def own(cls, data_config: Mapping[str, Any]) -> Transform:
        """Transform from timm's data configuration of some weights."""
        values = {name: data_config[name] for name in _GEOMETRY}
        values["input_size"] = tuple(values["input_size"])
        if values["crop_mode"] == "border":  # the only mode whose pixels depend on the mean
            values["mean"] = tuple(data_config["mean"])
        return cls(tuple(sorted(values.items())))

    def build(self) -> Callable[[Image.Image], torch.Tensor]:
        """The transform itself, picklable for loader processes."""
        pipeline: Callable[[Image.Image], torch.Tensor] = create_transform(
            **dict(self.spec), is_training=False, normalize=False
        )
        return pipeline


def check_name(name: str) -> None:
    """Refuse a transform that does not exist.

    Raises
    ------
    UnknownNameError
        `name` is none of `NAMES`.
    """
    if name not in NAMES:
        raise UnknownNameError(f"unknown transform @{name}; there are {', '.join(NAMES)}")
