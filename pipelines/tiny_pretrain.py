"""Pretrain the tiny study's checkpoints, five ways, on the training images of `digits` alone.

    python pipelines/tiny_pretrain.py [--out DIR] [--only NAME] [--epochs-scale F] [--workers N]

Each run keeps its last weights and, where `RUNS` says so, those of an early epoch, as float16
safetensors. A run has a process and one thread to itself, so that the number of cores changes how
long all of them take and not one byte of what comes out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from tiny_methods import METHODS
from torch import Tensor, nn

from featstore import create_backbone, load_dataset

SEED = 0
BATCH = 50  # divides the 1000 images: every image counts once per epoch
RATE = 2e-3  # the highest of the schedule
WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class Run:
    """One pretraining run: `early` is the epoch of the early checkpoint, 0 for none."""

    backbone: str
    method: str
    epochs: int
    early: int = 0

    @property
    def name(self) -> str:
        """File name of the last weights, without suffix."""
        return f"{self.backbone}-{self.method}"

    @property
    def checkpoints(self) -> dict[int, str]:
        """File names by the epoch whose weights they hold."""
        early = {self.early: f"{self.name}-early.safetensors"} if self.early else {}
        return early | {self.epochs: f"{self.name}.safetensors"}

    def scaled(self, factor: float) -> Run:
        """The same with another number of epochs, at least one before and one after `early`."""
        early = max(1, round(self.early * factor)) if self.early else 0
        return replace(self, early=early, epochs=max(early + 1, round(self.epochs * factor)))


# The longest first, so that no worker is left alone with one of them at the end.
RUNS = (
    Run("vit", "simclr", 50, early=15),
    Run("vit", "barlow", 50),
    Run("vit", "mae", 120, early=30),
    Run("resnet", "simclr", 60, early=12),
    Run("resnet", "barlow", 60),
    Run("vit", "supervised", 40),
    Run("vit", "rotation", 40),
    Run("resnet", "rotation", 40),
    Run("resnet", "supervised", 30, early=4),
)


def digit_images() -> tuple[Tensor, Tensor, str]:
    """Training images as (n, 1, 32, 32) in [0, 1], their labels, and the split's fingerprint."""
    split = load_dataset("digits").split("train")
    assert split.name == "train", "test images must stay unseen"
    pixels = np.stack([np.asarray(split.read(row).convert("L")) for row in range(len(split))])
    images = torch.from_numpy(pixels).float()[:, None] / 255
    return images, torch.from_numpy(split.labels.copy()), split.fingerprint


def pretrain(run: Run, images: Tensor, labels: Tensor) -> Iterator[tuple[int, float, nn.Module]]:
    """After each epoch its number from 1, its mean loss, and the backbone as it is then."""
    rng = torch.Generator().manual_seed(SEED)
    backbone = create_backbone(f"tiny-{run.backbone}", seed=SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)  # not the numbers that the backbone got
        method = METHODS[run.method](backbone)
    parameters = [*backbone.parameters(), *method.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    steps = run.epochs * len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        RATE,
        total_steps=steps + 1,
        pct_start=WARM_UP,
        cycle_momentum=False,
    )
    backbone.train()
    for epoch in range(1, run.epochs + 1):
        losses = []
        for rows in torch.randperm(len(images), generator=rng).split(BATCH):
            loss = method(backbone, images[rows], labels[rows], rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        yield epoch, float(np.mean(losses)), backbone


def save(backbone: nn.Module, path: Path, facts: dict[str, object]) -> None:
    """Write the weights as float16, with the facts as JSON in the file's metadata."""
    state = backbone.state_dict()
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    # One entry of metadata only: safetensors writes several in no fixed order.
    path.write_bytes(to_bytes(half, metadata={"pretraining": json.dumps(facts, sort_keys=True)}))


def facts_of(path: Path) -> dict[str, object]:
    """What `save` noted in the file."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, object] = json.loads(file.metadata()["pretraining"])
    return facts


def run_and_save(run: Run, folder: Path) -> None:
    """Pretrain one run and write its checkpoints; the process is this run's own."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    images, labels, fingerprint = digit_images()
    for epoch, loss, backbone in pretrain(run, images, labels):
        if epoch in run.checkpoints:
            facts = {
                "arch": f"tiny-{run.backbone}",
                "method": run.method,
                "epoch": epoch,
                "epochs": run.epochs,
                "seed": SEED,
                "images": fingerprint,
            }
            save(backbone, folder / run.checkpoints[epoch], facts)
        if epoch % 10 == 0 or epoch == run.epochs:
            seconds = time.perf_counter() - start
            line = f"{run.name:18} epoch {epoch:3}/{run.epochs}  loss {loss:8.4f}  {seconds:4.0f} s"
            print(line, file=sys.stderr, flush=True)


README = """\
# Checkpoints of the tiny study

Weights of two small backbones, pretrained in five ways by
`python pipelines/tiny_pretrain.py`, which makes this folder anew, byte for byte with the same
versions of the libraries on the same kind of processor.

- Images: the 1000 training images of `digits`, and nothing else. They are the handwritten digits
  that ship with scikit-learn: the test part of "Optical Recognition of Handwritten Digits", E.
  Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0
  (doi:10.24432/C50P49), here enlarged from 8 x 8 to 32 x 32 pixels. Each file's metadata holds
  the fingerprint of the images it saw.
- Weights: under the licence of featstore, Apache-2.0. Stored as float16, to be cast to float32
  before use; `SHA256SUMS` has their checksums.
- Training: AdamW, weight decay 0.05, batches of {batch}, one-cycle schedule with cosine decay,
  seed {seed}. All runs of a backbone start from the same weights, those of its random floor
  (`tiny-resnet-random`, `tiny-vit-random`), which therefore need no file.
- supervised, rotation and mae see lightly turned, zoomed and moved images; simclr and barlow
  compare two views each, turned, zoomed, moved, blurred, lit anew and partly erased.
- Only `supervised` sees labels.

| file | backbone | method | epoch | of |
|---|---|---|--:|--:|
{rows}
"""


def describe(folder: Path) -> None:
    """Write README.md and SHA256SUMS for the checkpoints in the folder."""
    paths = sorted(folder.glob("*.safetensors"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(sums))
    facts = [{"file": path.name, **facts_of(path)} for path in paths]
    row = "| {file} | {arch} | {method} | {epoch} | {epochs} |"
    rows = "\n".join(row.format(**each) for each in facts)
    (folder / "README.md").write_text(README.format(batch=BATCH, seed=SEED, rows=rows))


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "data" / "tiny")
    parser.add_argument("--only", metavar="NAME", choices=[run.name for run in RUNS])
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="1 is the real thing")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args(arguments)

    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [run for run in RUNS if options.only in (None, run.name)]
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang on its threads
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(run_and_save, run.scaled(options.epochs_scale), options.out) for run in runs
        ]
        for job in jobs:
            job.result()
    describe(options.out)
    print(f"{options.out} done in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
