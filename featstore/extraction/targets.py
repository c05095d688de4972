"""What an extraction is to fill: for each model, BN mode, site and split, its recipe."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch

from featstore.datasets import Dataset, ImageSplit, Transform
from featstore.datasets.transforms import View
from featstore.keys import FORMAT_VERSION, BNMode, Recipe
from featstore.models import Model
from featstore.store import row_order, view_name


@dataclass(frozen=True)
class Options:
    """Flags of an extraction that bear on what is computed or stored.

    Attributes
    ----------
    batch_size : most images in a forward pass
    precision : fp32, or autocast to bf16 or fp16 ; dtype : float16 or float32, as stored
    codec : none, zstd or bitround:N ; chunk_rows : most rows in a chunk
    fingerprint : of the images, by `names`, sizes and labels, or `full`, by every byte as well
    """

    batch_size: int = 64
    precision: str = "fp32"
    dtype: str = "float16"
    codec: str = "none"
    chunk_rows: int = 2048
    fingerprint: str = "names"


@dataclass(frozen=True)
class Target:
    """A split as it is to be stored: its images, and the transform that they go through.

    `transform` is the plain one; a random view has one of its own besides.
    """

    images: ImageSplit
    transform: Transform
    view: View | None = None

    @classmethod
    def of(cls, images: ImageSplit, transform: Transform, view: int | None = None) -> Target:
        """Target of a split as it is, or of a random view of it."""
        if view is None:
            return cls(images, transform)
        return cls(images, transform, View.of(transform, images.fingerprint, view))

    @property
    def name(self) -> str:
        """Of the split in the store."""
        return view_name(self.view.number) if self.view else self.images.name


def transform_of(dataset: Dataset, data_config: Mapping[str, Any]) -> Transform:
    """Transform by which a dataset wants its images embedded: a model's own, or its study's."""
    if dataset.transform == "own":
        return Transform.own(data_config)
    square = dataset.square if dataset.transform == "marks" else ""
    return Transform.study(dataset.transform, square=square)


def recipe_of(
    model: Model,
    site: str,
    bn_mode: BNMode,
    target: Target,
    train: ImageSplit | None,
    options: Options,
) -> Recipe:
    """All that changes the embeddings of one split.

    `train` is the train split in BN mode `adapt`, whose statistics depend on its images and on how
    they are batched; the batches matter in `batch` as well, and chunks, at whose edges they
    restart. Elsewhere the batch size changes no more than the last digit.
    """
    images = target.images
    seen = target.view.transform if target.view else target.transform
    order = row_order(images.fingerprint, len(images))
    fields: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "weights": model.weights,
        "arch": model.arch,
        "site": site or "pre-logits",
        "bn_mode": bn_mode.value,
        "transform": {k: list(v) if isinstance(v, tuple) else v for k, v in seen.spec},
        "mean": list(model.data_config["mean"]),
        "std": list(model.data_config["std"]),
        "augmentation": target.view.facts if target.view else "none",
        "precision": options.precision,
        "dtype": options.dtype,
        "codec": options.codec,
        "images": images.fingerprint,
        "row_order": hashlib.sha256(order.astype("<i8").tobytes()).hexdigest(),
    }
    if bn_mode is not BNMode.EVAL:
        fields["batch_size"] = options.batch_size
        fields["chunk_rows"] = options.chunk_rows
    if train is not None:
        fields["adapted_to"] = train.fingerprint
    if options.fingerprint == "full":
        fields["bytes"] = images.bytes_digest
        if train is not None:
            fields["adapted_to_bytes"] = train.bytes_digest
    return Recipe(fields)


def notes_of(
    model: Model, dataset_info: Mapping[str, Any], device: torch.device, options: Options
) -> dict[str, Any]:
    """What is recorded beside the recipe without being part of it."""
    return {
        "model": {**model.info, "bn_free": model.bn_free, "arch": model.arch},
        "dataset": dict(dataset_info),
        "recorded": {
            "device": device_name(device),
            "batch_size": options.batch_size,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
    }


def device_name(device: torch.device) -> str:
    """Name of the hardware that a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def choose_device(device: str) -> torch.device:
    """Device from `auto`, `cpu` or `cuda:N`.

    Raises
    ------
    ValueError
        A GPU is asked for that is not there.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if available else "cpu")
    if device.startswith("cuda") and not available:
        raise ValueError(f"device {device} is not there: PyTorch sees no GPU. Use --device cpu")
    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not (number or "0").isdecimal()):
        raise ValueError(f"device must be auto, cpu or cuda:N, got {device!r}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not there: PyTorch sees {torch.cuda.device_count()}")
    return torch.device(device)
