"""Decoded batches of a split, in the stored order, without a batch crossing a chunk's edge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featstore.datasets import ImageSplit, Transform
from featstore.datasets.transforms import View
from featstore.errors import BadImageError

_Sample = tuple[list[Tensor] | None, str]
Decoded = tuple[list[Tensor] | None, np.ndarray, list[str]]
"""Pixels of a batch by transform, none if no image decodes; which do; why others do not."""


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
    """Images by row, as pixels by each transform or as the reason why there are none."""

    images: ImageSplit
    order: np.ndarray
    transforms: Sequence[Callable[[Image.Image, int], Tensor]]

    def __getitem__(self, row: int) -> _Sample:
        position = int(self.order[row])
        try:
            image = self.images.read(position)
            return [transform(image, position) for transform in self.transforms], ""
        except BadImageError as error:  # raised by whoever waits for the batch, if at all
            return None, str(error)


@dataclass(frozen=True)
class _Plain:
    """A transform that is the same for every image."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image, position: int) -> Tensor:
        return self.transform(image)


def _collate(samples: Sequence[_Sample]) -> Decoded:
    pixels = [one for one, _ in samples if one is not None]
    valid = np.array([one is not None for one, _ in samples])
    stacked = [torch.stack(of_one) for of_one in zip(*pixels, strict=True)]
    return stacked or None, valid, [error for _, error in samples if error]


def say_nothing_when_cut_off(_worker: int) -> None:
    """In a loader process: no traceback for a batch that an interrupted parent no longer takes."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionResetError | BrokenPipeError):
            usual(kind, error, trace)

    sys.excepthook = hook


def decode(
    images: ImageSplit,
    order: np.ndarray,
    transforms: Sequence[Transform | View],
    batches: Iterable[Sequence[int]],
    *,
    num_workers: int,
    skip_errors: bool,
    pin: bool = False,
) -> Iterator[Decoded]:
    """For each batch of rows: (m, 3, h, w) uint8 by each transform, of those that decode.

    An image is decoded once for all transforms. `batches` is read in order, and by processes ahead.

    Parameters
    ----------
    num_workers : processes that decode while the caller computes, or 0 for as many threads of this
        one as torch has, which rest while it does

    Raises
    ------
    BadImageError
        An image cannot be decoded and `skip_errors` is false; names it.
    """
    built = [one.build() if isinstance(one, View) else _Plain(one.build()) for one in transforms]
    decoder = _Decoder(images, order, built)
    decoded: Iterable[Decoded] = (
        DataLoader(
            decoder,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of row lists will do
            num_workers=num_workers,
            worker_init_fn=say_nothing_when_cut_off,
            collate_fn=_collate,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        if num_workers
        else _in_threads(decoder, batches, pin=pin)
    )
    for pixels, valid, errors in decoded:
        if errors and not skip_errors:
            raise BadImageError(errors[0])
        yield pixels, valid, errors


def _in_threads(
    decoder: _Decoder, batches: Iterable[Sequence[int]], *, pin: bool
) -> Iterator[Decoded]:
    """Batches decoded when they are asked for, so that cores decode or compute, never both."""
    threads = torch.get_num_threads()
    one_each = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(threads, "featstore-decode", initializer=one_each) as pool:
        for batch in batches:
            pixels, valid, errors = _collate(list(pool.map(decoder.__getitem__, batch)))
            torch.set_num_threads(threads)  # what a thread of the pool set may count for all
            yield [one.pin_memory() for one in pixels] if pin and pixels else pixels, valid, errors
