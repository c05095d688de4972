"""Images to train on: which, in what order, cut how; the same whoever loads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featstore.datasets import ImageSplit, Transform
from featstore.datasets.transforms import View
from featstore.errors import NotApplicableError
from featstore.extraction.loader import say_nothing_when_cut_off
from featstore.finetuning.presets import Finetune
from featstore.keys import canonical_json
from featstore.probes.data import drawn_rows as draw
from featstore.probes.data import smallest_fraction

Place = tuple[int, int]
"""An epoch, and a row of the samples."""


@dataclass(frozen=True)
class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Some images of splits laid end to end, by (epoch, row) as uint8 pixels and label.

    Attributes
    ----------
    rows : ascending positions in all splits together
    transform : augmented, then drawn anew in each epoch; or plain
    """

    splits: tuple[ImageSplit, ...]
    rows: np.ndarray
    transform: Transform
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> Tensor:
        """(n,) int64, or (n, c) int8."""
        return torch.from_numpy(np.concatenate([s.labels for s in self.splits])[self.rows])

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        epoch, row = place
        position = within = int(self.rows[row])
        for split in self.splits:
            if within < len(split):
                break
            within -= len(split)
        image = split.read(within)
        if dict(self.transform.spec).get("crop") == "random":
            return self._view(epoch).build()(image, position), self.labels[row]
        return self._plain(image), self.labels[row]

    @cached_property
    def _plain(self):  # type: ignore[no-untyped-def]  # as Transform.build says
        return self.transform.build()

    def _view(self, epoch: int) -> View:
        fingerprints = [split.fingerprint for split in self.splits]
        key = canonical_json([fingerprints, "finetune", self.seed, epoch])
        return View(self.transform, epoch, hashlib.sha256(key).hexdigest()[:32])


@dataclass(frozen=True)
class Plan:
    """Which rows make the batch of each step, and which of them are whose.

    A batch is cut over processes, and what one process has of it into parts of two rows or more,
    where a BatchNorm takes its statistics. An epoch's last batch, if of one row, joins another.
    """

    rows: int
    batch_size: int
    seed: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        whole, rest = divmod(self.rows, self.batch_size)
        return max(1, whole + (rest > 1))

    def batch(self, step: int) -> np.ndarray:
        """Rows of all processes."""
        epoch, number = divmod(step, self.per_epoch)
        order = _order(self.rows, self.seed, epoch)
        last = number == self.per_epoch - 1
        return order[number * self.batch_size : None if last else (number + 1) * self.batch_size]

    def parts(self, step: int) -> list[list[Place]]:
        """Rows of this process, in the parts that go through the model one after the other."""
        own = batch = self.batch(step)
        if len(batch) >= 2 * self.world:
            own = batch[self.rank :: self.world]
        elif self.rank:  # a last one of so few rows is all the first process's
            return []
        epoch = step // self.per_epoch
        count = max(1, min(self.accumulate, len(own) // 2))
        return [[(epoch, int(row)) for row in part] for part in np.array_split(own, count)]


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def load(
    samples: Samples, plan: Plan, steps: range, *, num_workers: int, pin: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every part of some steps in order, pixels (m, 3, h, w) uint8 and labels, read ahead.

    Raises
    ------
    BadImageError
        An image cannot be decoded; names it.
    """
    loader = DataLoader(
        samples,
        batch_sampler=(part for step in steps for part in plan.parts(step)),
        num_workers=num_workers,
        worker_init_fn=say_nothing_when_cut_off,
        pin_memory=pin,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    return iter(loader)


def drawn_rows(split: ImageSplit, protocol: Finetune, seed: int) -> np.ndarray:
    """Ascending rows that a protocol shows: all, or as many of each category by its true label.

    int(fraction * n / categories) of each, by `featstore.probes.data.drawn_rows` with the seed
    `subset_seed + seed`, as published for 42; a smaller category gives all it has.

    Raises
    ------
    NotApplicableError
        None of each; says the smallest fraction. Or an image has several labels.
    """
    if protocol.fraction == 1 and not protocol.shots:
        return np.arange(len(split))
    if split.labels.ndim == 2:
        raise NotApplicableError(
            f"{protocol.name} draws images by their label; those of {split.dataset} have several"
        )
    count = per_category(split, protocol)
    if not count:
        raise NotApplicableError(
            f"{protocol.name}: a fraction of {protocol.fraction:g} of {len(split)} images of "
            f"{split.dataset} is none for each of {len(split.categories)} categories; "
            + smallest_fraction(len(split), len(split.categories), flag="--fraction ")
        )
    fewest = np.unique(split.labels, return_counts=True)[1].min()
    if protocol.shots > fewest:
        raise NotApplicableError(
            f"{protocol.name}: {protocol.shots} train images of each category are asked for, and "
            f"one of {split.dataset} has {fewest}"
        )
    return draw(split.labels, count, protocol.subset_seed + seed)


def per_category(split: ImageSplit, protocol: Finetune) -> int:
    """Images of each category that a protocol draws."""
    share = protocol.fraction * len(split) / len(split.categories)
    return protocol.shots or int(share)


def rows_digest(rows: Sequence[int] | np.ndarray) -> str:
    """SHA-256 of row numbers as little-endian int64, in hex."""
    return hashlib.sha256(np.asarray(rows).astype("<i8").tobytes()).hexdigest()
