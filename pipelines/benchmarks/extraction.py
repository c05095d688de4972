"""Extraction beside its limits: a bare forward loop, the decoder alone, and four runs for one.

python pipelines/benchmarks/extraction.py [--small] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from common import Row, compare, run
from PIL import Image
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

import featstore

BATCH = 64


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Limited by the model; limited by decoding; models that share a decoding pass."""
    small = arguments.small
    repeats = 1 if small else 3
    arch = "test_resnet.r160_in1k" if small else "resnet18"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        light = write_images(place / "light", 8 if small else 512, (224, 224), "bmp")
        heavy = write_images(place / "heavy", 8 if small else 1024, (500, 375), "jpg")
        model = timm.create_model(arch, num_classes=0).eval()
        each = [{name: one} for name, one in tiny(4).items()]
        by_models = [
            ("one convolution", partial(extract, place, "heavy", tiny(1)), "decoder alone",
             partial(decode, heavy), 1 / 0.95),
            ("four such models", partial(extract, place, "heavy", tiny(4)), "each by itself",
             lambda: [extract(place, "heavy", one) for one in each], 0.3),
        ]  # fmt: skip
        return [
            compare(
                f"extract, {arch} at 224, {len(light)} small images",
                partial(extract, place, "light", {"m": model}),
                "bare forward loop", partial(forward, model, tensors(light)),
                goal=1 / 0.95, repeats=repeats,
            ),
            *(
                compare(
                    f"extract, {what}, {len(heavy)} JPEG of 500 x 375", ours, baseline, theirs,
                    goal=goal, repeats=repeats,
                )
                for what, ours, baseline, theirs, goal in by_models
            ),
        ]  # fmt: skip


def write_images(folder: Path, n: int, size: tuple[int, int], kind: str) -> list[Path]:
    """Images with the noise of photographs, of one category."""
    rng = np.random.default_rng(0)
    (folder / "train" / "some").mkdir(parents=True)
    paths = [folder / "train" / "some" / f"{i:04}.{kind}" for i in range(n)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = pixels + rng.integers(-12, 13, pixels.shape, dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return paths


def tiny(count: int) -> dict[str, nn.Module]:
    """Models that cost next to nothing beside decoding."""
    torch.manual_seed(0)
    return {
        f"tiny{i}": nn.Sequential(nn.Conv2d(3, 16, 32, stride=32), nn.AdaptiveAvgPool2d(1)).eval()
        for i in range(count)
    }


def extract(place: Path, images: str, models: dict[str, nn.Module]) -> None:
    """All of an extraction, into a store of its own."""
    with tempfile.TemporaryDirectory(dir=place) as store:
        featstore.extract(
            models, [f"folder:{place / images}"], store=f"{store}/s.zarr", batch_size=BATCH,
            device="cpu",
        )  # fmt: skip


def tensors(paths: list[Path]) -> list[torch.Tensor]:
    """Normalised batches in memory."""
    images = Decoded(paths)
    stacked = torch.stack([images[i] for i in range(len(paths))]).float() / 255 - 0.5
    return list(stacked.split(BATCH))


@torch.inference_mode()
def forward(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """The bare loop."""
    for batch in batches:
        model(batch)


class Decoded(Dataset[torch.Tensor]):
    """Images as timm's own transform leaves them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = create_transform(
            (3, 224, 224), is_training=False, normalize=False, interpolation="bicubic"
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> torch.Tensor:
        pixels: torch.Tensor = self.transform(Image.open(self.paths[position]).convert("RGB"))
        return pixels


def decode(paths: list[Path]) -> None:
    """The decoder alone, by as many processes as extraction has."""
    loader = DataLoader(Decoded(paths), batch_size=BATCH, num_workers=torch.get_num_threads())
    for _ in loader:
        pass


if __name__ == "__main__":
    run(measure, __doc__)
