"""Benchmark of fine-tuning: its steps beside those of a bare loop, in one run.

    python pipelines/benchmarks/finetune.py [--arch resnet50] [--batch 64] [--steps 4]

Both train the same network on the same kind of images, cropped at random by the same law, and take
turns, so that what else the machine does falls on both. An epoch is one batch. Prints the ratio of
the medians, bare over ours; asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import featstore


def write_images(root: Path, batch: int) -> None:
    """A folder of smooth noise, 300 x 260 pixels, a batch to train on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", batch), ("test", 8)):
        for i in range(count):
            small = rng.integers(0, 256, (26, 30, 3), dtype=np.uint8)
            place = root / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((300, 260)).save(place / f"{i}.jpg")


class Bare:
    """The loop as one writes it: torchvision's transforms, autograd, SGD, the same clipping."""

    def __init__(self, root: Path, arch: str, batch: int, device: torch.device) -> None:
        transform = v2.Compose([
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ])  # fmt: skip
        images = ImageFolder(str(root / "train"), transform)
        self.loader = torch.utils.data.DataLoader(images, batch, shuffle=True)
        self.device = device
        self.net = timm.create_model(arch, num_classes=2).to(device).train()
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)

    def epoch(self) -> float:
        """Train one epoch; the loss."""
        for images, labels in self.loader:
            logits = self.net(images.to(self.device))
            loss = torch.nn.functional.cross_entropy(logits, labels.to(self.device))
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
            self.optimiser.step()
        return float(loss.detach())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, arguments.batch)
        bare = Bare(root, arguments.arch, arguments.batch, torch.device(arguments.device))
        bare.epoch()
        marks = [time.perf_counter()]

        def turn(record: dict[str, object]) -> None:
            ours.append(time.perf_counter() - marks[-1])
            begun = time.perf_counter()
            bare.epoch()
            marks.append(time.perf_counter())
            theirs.append(marks[-1] - begun)

        done = featstore.finetune(
            [f"timm:{arguments.arch}~random0"],
            [f"folder:{root}"],
            protocols=[f"finetune-marks+epochs={arguments.steps + 1}"
                       f"+batch_size={arguments.batch}"],
            results=root / "results",
            device=arguments.device,
            num_workers=0,
            callbacks=[turn],
        )  # fmt: skip
    if done.failed:
        raise SystemExit(done.failed[0].error)
    one, other = (statistics.median(times[1:]) for times in (ours, theirs))  # the first warms up
    print(f"{arguments.arch}, batch {arguments.batch}, {arguments.device}, "
          f"{torch.get_num_threads()} threads, {arguments.steps} steps each: "
          f"ours {one:.2f} s, bare {other:.2f} s a step, ratio {other / one:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
