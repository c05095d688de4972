"""Decoded batches of a split, in the stored order, without a batch crossing a chunk's edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featstore.datasets import ImageSplit, Transform
from featstore.errors import BadImageError

_Sample = tuple[Tensor | None, str]


def row_order(fingerprint: str, n: int) -> np.ndarray:
    """(n,) int64 permutation seeded by a split's fingerprint: position in the dataset of each row.

    From the raw stream of PCG64, which NumPy promises to keep, unlike `permutation`.
    """
    draws = np.random.PCG64(int(fingerprint[:32], 16)).random_raw(n)
    return np.argsort(draws, kind="stable").astype(np.int64)


def batches_of(rows: range, batch_size: int) -> list[range]:
    """Rows cut into the fewest batches of at most `batch_size`, as even as can be.

    Even, since in BN mode `batch` a short last batch would have poor statistics, and one of a
    single row none at all.
    """
    n_batches = -(-len(rows) // batch_size)
    edges = [rows.start + len(rows) * i // n_batches for i in range(n_batches + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


@dataclass(frozen=True)
class _Decoder(Dataset[_Sample]):
    """Images by row, as pixels or as the reason why there are none."""

    images: ImageSplit
    order: np.ndarray
    transform: Callable[..., Tensor]

    def __getitem__(self, row: int) -> _Sample:
        position = int(self.order[row])
        try:
            return self.transform(self.images.read(position)), ""
        except BadImageError as error:  # raised by whoever waits for the batch, if at all
            return None, str(error)


def _collate(samples: Sequence[_Sample]) -> tuple[Tensor | None, np.ndarray, list[str]]:
    pixels = [image for image, _ in samples if image is not None]
    valid = np.array([image is not None for image, _ in samples])
    return (torch.stack(pixels) if pixels else None), valid, [e for _, e in samples if e]


def decode(
    images: ImageSplit,
    order: np.ndarray,
    transform: Transform,
    batches: Iterable[Sequence[int]],
    *,
    num_workers: int,
    skip_errors: bool,
    pin: bool = False,
) -> Iterator[tuple[Tensor | None, np.ndarray, list[str]]]:
    """For each batch of rows: (m, 3, h, w) uint8 of those that decode, which do, why others do not.

    `batches` is read ahead, in order.

    Raises
    ------
    BadImageError
        An image cannot be decoded and `skip_errors` is false; names it.
    """
    loader = DataLoader(
        _Decoder(images, order, transform.build()),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of row lists will do
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin,
    )
    for pixels, valid, errors in loader:
        if errors and not skip_errors:
            raise BadImageError(errors[0])
        yield pixels, valid, errors
