"""Which train rows are held out to choose a setting by, where a dataset has no val split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from featstore.errors import NotApplicableError
from featstore.probes.data import Data, Task


def folds(labels: np.ndarray, share: float, seed: int) -> list[np.ndarray]:
    """Masks (n,) of rows to choose by: one share of them, spread evenly over the categories.

    Where that is less than one row of each category, up to five folds instead, by which each row
    is asked once; a category of one row is in no fold. None if all are.
    """
    if _spares_each(labels, share):
        return [held_out_rows(labels, share, seed)]
    counts = np.bincount(labels)
    more = counts[counts > 1]
    if not len(more):
        return []
    by_category = _shuffled_by_category(labels, seed)
    place = np.empty(len(labels), np.int64)  # of a row within its category
    place[by_category] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    number = min(5, int(more.min()))
    return [(counts[labels] > 1) & (place % number == fold) for fold in range(number)]


def _spares_each(labels: np.ndarray, share: float) -> bool:
    """Whether a share of the rows is one of each category or more."""
    return int(share * len(labels)) >= len(np.unique(labels))


def _shuffled_by_category(labels: np.ndarray, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return np.asarray(shuffled[np.argsort(labels[shuffled], kind="stable")])


def held_out_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) mask of a seeded share of the rows, spread evenly over the categories.

    A category of one row stays whole.

    Raises
    ------
    NotApplicableError
        All are of one row.
    """
    by_category = _shuffled_by_category(labels, seed)
    step = round(1 / share)
    mask = np.zeros(len(labels), bool)
    mask[by_category[step - 1 :: step]] = True
    counts = np.bincount(labels)
    lonely = counts[labels] == 1
    if lonely.all():
        raise NotApplicableError("each category has one train image, none of which can be spared")
    mask[lonely] = False
    if not mask.any():  # fewer rows than a share: one of the largest category
        mask[by_category[labels[by_category] == counts.argmax()][0]] = True
    return mask


def permuted_folds(task: Task, share: float) -> list[np.ndarray]:
    """Masks (n,) of train rows to choose by, as Ericsson et al. draw them: `permuted_rows`.

    Of train cut to a draw, the permutation is of the rows drawn; where a share of these is less
    than one of each category, the masks are those of `folds`.
    """
    data = task.train
    if not task.drawn:
        return [permuted_rows(data, share, task.seed)]
    if not _spares_each(data.labels, share):
        return folds(data.labels, share, task.seed)
    places = np.argsort(np.argsort(data.index))  # in the dataset's order, so of every model alike
    return [permuted_rows(replace(data, index=places, n_skipped=0), share, task.seed)]


def permuted_rows(data: Data, share: float, seed: int) -> np.ndarray:
    """(n,) mask of the first share of NumPy's seeded permutation of the dataset's own order.

    As Ericsson et al. draw their validation rows, so that these are theirs for seed 0.

    Raises
    ------
    NotApplicableError
        None of the rows is among them, or each is.
    """
    size = max(len(data) + data.n_skipped, int(data.index.max()) + 1)
    mask = np.isin(data.index, permuted_share(size, share, seed))
    if not mask.any() or mask.all():
        raise NotApplicableError(
            f"{len(data)} train rows are too few to hold {share:g} of them out"
        )
    return mask


def permuted_share(size: int, share: float, seed: int) -> np.ndarray:
    """The first int(share * size) of NumPy's seeded permutation of so many rows."""
    return np.random.RandomState(seed).permutation(size)[: int(share * size)]
