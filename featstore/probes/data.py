"""What a protocol is run on: rows of the store or of memory, and where to compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featstore.blocks import ArrayBlock, Block, read_rows, stored_blocks
from featstore.errors import NotApplicableError, ProbeError
from featstore.kernels.metrics import own_score
from featstore.kernels.scale import block_moments, merge_moments
from featstore.store import Split

_BLOCK_ROWS = 2048  # of arrays in memory

SHOTS = (1, 2, 5, 10)
"""Train images of each category that protocols of the set `kshot` are shown."""

SUBSET_SEED = 42
"""The published seed of a draw of train images, to which the cell's is added."""

MOST_CATEGORIES = 2**20
"""Of labels in memory: a larger one is no category but an id, and would ask for much memory."""


@dataclass(frozen=True)
class Data:
    """One split as a probe sees it: valid rows only.

    Attributes
    ----------
    blocks : the rows, in order ; sizes : rows in each block
    index : (n,) int64 position of each row in the dataset
    labels : (n,) int64 of all rows, in order; or (n, c) int8 of several labels a row: 1 present,
        0 absent, -1 neither
    mean, variance : (d,) float64, ddof 0
    n_skipped : samples of the split that have no features
    """

    blocks: Sequence[Block]
    sizes: Sequence[int]
    index: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    n_skipped: int = 0

    @classmethod
    def of_split(cls, split: Split) -> Data:
        """A stored split, a block per chunk."""
        spans = [split.span(i) for i in range(len(split.chunk_digest))]
        return cls(
            stored_blocks(split),
            [int(split.valid[s.start : s.stop].sum()) for s in spans],
            split.array("index")[split.valid],
            split.label[split.valid],
            split.array("mean"),
            split.array("variance"),
            int((~split.valid).sum()),
        )

    @classmethod
    def of_arrays(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        names: tuple[str, str] = ("features", "labels"),
    ) -> Data:
        """Rows in memory.

        Parameters
        ----------
        features : (n, d) finite numbers, neither 0
        labels : (n,) whole numbers in 0..2**20-1, whatever their dtype
        names : what to call the two in errors

        Raises
        ------
        ValueError
            Shapes do not fit, a feature is not finite, or a label is none.
        """
        features, labels = np.asarray(features), np.asarray(labels)
        x, y = names
        if features.ndim != 2 or 0 in features.shape or labels.shape != features.shape[:1]:
            raise ValueError(
                f"{x} must be (n, d), neither 0, and {y} (n,), got {features.shape} and "
                f"{labels.shape}"
            )
        if features.dtype.kind not in "fiub":
            raise ValueError(f"{x} must be real numbers, got {features.dtype}")
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(f"{x} must be finite, and row {int(finite.argmin())} is not")
        labels = _whole(labels, y)
        n, mean, m2 = block_moments(features.astype(np.float64), xp=np)
        spans = [slice(i, min(i + _BLOCK_ROWS, n)) for i in range(0, n, _BLOCK_ROWS)]
        return cls(
            [ArrayBlock(features[span], labels[span]) for span in spans],
            [span.stop - span.start for span in spans],
            np.arange(n),
            labels,
            mean,
            m2 / max(n, 1),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Features d."""
        return len(self.mean)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the features are stored as."""
        return self.blocks[0].dtype if self.blocks else np.dtype(np.float64)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All features (n, d) in the stored dtype, and all labels."""
        return read_rows(self.blocks)

    def take(self, rows: np.ndarray) -> Data:
        """Some rows, by their ascending positions, in memory."""
        edges = np.cumsum([0, *self.sizes])
        parts = []
        for i, block in enumerate(self.blocks):
            within = rows[(rows >= edges[i]) & (rows < edges[i + 1])] - edges[i]
            if len(within):
                parts.append(block.read()[0][within])
        taken = Data.of_arrays(np.concatenate(parts), self.labels[rows])
        return replace(taken, index=self.index[rows], n_skipped=self.n_skipped)

    def joined(self, other: Data) -> Data:
        """These rows and then those of another split."""
        n = len(self), len(other)
        _, mean, m2 = merge_moments(
            (n[0], self.mean, self.variance * n[0]), (n[1], other.mean, other.variance * n[1])
        )
        return Data(
            [*self.blocks, *other.blocks],
            [*self.sizes, *other.sizes],
            np.concatenate([self.index, other.index]),
            np.concatenate([self.labels, other.labels]),
            mean,
            m2 / max(sum(n), 1),
            self.n_skipped + other.n_skipped,
        )


@dataclass(frozen=True)
class Task:
    """Features of one cell, and where to compute.

    Attributes
    ----------
    val : the official validation split, if there is one and the protocol reads it
    views : the train split's augmented views, of a protocol that reads them
    metric : the dataset's own, by which a protocol chooses its settings
    model, dataset : their names
    n_categories : c ; labels are in 0..c-1
    seed : of draws, splits and initialisations
    xp : array namespace ; device : `cpu` or `cuda:N`, for what torch computes
    parallel : map kernels over blocks in threads
    drawn : whether train is a draw of the stored rows
    lists : where to keep neighbour lists: a folder, and in place of a name what they are named by
    memory : bytes of a GPU's memory that kernels may use, or None for most of what is free
    cache : results that protocols of one task share, such as neighbour lists
    """

    train: Data
    test: Data
    n_categories: int
    seed: int
    xp: Any
    device: str = "cpu"
    parallel: bool = False
    cache: dict[Any, Any] = field(default_factory=dict)
    val: Data | None = None
    views: Sequence[Data] = ()
    metric: str = "top1"
    model: str = ""
    dataset: str = ""
    drawn: bool = False
    lists: Path | None = None
    memory: int | None = None

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels."""
        return self.train.labels.ndim == 2

    def score(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """The dataset's own metric of scores (n, c), by which settings are chosen."""
        return own_score(scores, labels, self.metric)

    def few(self, shots: int, fraction: float = 1.0) -> Task:
        """The same task with so many train rows of each category, drawn by its seed.

        They are those that fine-tuning on as many shows (`drawn_rows` of all labels in the
        dataset's order), so the same for every model, and the draw of fewer lies within that of
        more. There is no val split then: it would be more labels than are asked for.

        Parameters
        ----------
        shots : rows of each category, or 0
        fraction : instead, int(fraction * rows / categories) of each; a smaller one gives all

        Raises
        ------
        NotApplicableError
            A category has not as many as `shots`; a fraction is none of each.
        """
        if self.multi_label:
            raise NotApplicableError("no draw of rows by category where a row has several labels")
        labels = self.train.labels
        counts = np.bincount(labels, minlength=self.n_categories)
        known = counts[counts > 0]
        count = shots or int(fraction * len(labels) / self.n_categories)
        if shots and known.min() < shots:
            raise NotApplicableError(
                f"{shots} train images of each category are asked for, and one has {known.min()}"
            )
        if not count:
            raise NotApplicableError(
                f"a fraction of {fraction:g} of {len(labels)} train images is none for each of "
                f"{self.n_categories} categories; "
                f"{smallest_fraction(len(labels), self.n_categories)}"
            )
        order = np.argsort(self.train.index)
        chosen = order[drawn_rows(labels[order], count, SUBSET_SEED + self.seed)]
        train = self.train.take(np.sort(chosen))
        return replace(self, train=train, cache={}, val=None, views=(), drawn=True, lists=None)

    def check_rows(self) -> None:
        """Refuse splits that do not fit together, whatever is done with their rows.

        Kernels that read many blocks leave the labels' range to this one look at them.

        Raises
        ------
        ProbeError
            A split has no rows, or no or other features than train; a label is out of range.
        """
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for name, part in parts.items():
            if part is None:
                continue
            if not len(part) or not part.width:
                raise ProbeError(
                    f"{name} has {len(part)} valid rows of {part.width} features; a score needs "
                    f"one or more of both"
                )
            if part.width != self.train.width:
                raise ProbeError(
                    f"train has {self.train.width} features and {name} {part.width}; they must be "
                    f"of one model"
                )
            low, high = int(part.labels.min()), int(part.labels.max())
            if part.labels.ndim == 1 and not 0 <= low <= high < self.n_categories:
                raise ProbeError(
                    f"labels of {name} must lie in 0..{self.n_categories - 1} (categories), "
                    f"got {low}..{high}"
                )

    def check(self) -> None:
        """Refuse what no protocol can score.

        Raises
        ------
        ProbeError
            As `check_rows`; one category only, or one in test that train lacks.
        """
        self.check_rows()
        if self.multi_label:
            return
        known = np.unique(self.train.labels)
        if len(known) < 2:
            raise ProbeError(
                f"train holds one category only (label {known[0]}); a score needs two or more"
            )
        strangers = np.setdiff1d(self.test.labels, known)
        if len(strangers):
            raise ProbeError(
                f"test holds label {strangers[0]}, which train lacks ({len(strangers)} such); give "
                f"train images of it, or leave it out of test"
            )


def _whole(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels (n,), n at least 1, as int64; refused where one is no whole number or out of range."""
    if labels.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be whole numbers 0..c-1, got {labels.dtype}")
    if labels.dtype.kind == "f":
        whole = np.isfinite(labels) & (labels == np.trunc(labels))
        if not whole.all():
            row = int(whole.argmin())
            raise ValueError(f"{name} must be whole numbers 0..c-1, and row {row} is {labels[row]}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CATEGORIES:
        raise ValueError(
            f"{name} must lie in 0..{MOST_CATEGORIES - 1} (at most 2**20 categories), got "
            f"{low}..{high}"
        )
    return labels.astype(np.int64)


def drawn_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Ascending rows of a seeded draw of so many of each category; a smaller one gives all it has.

    Without replacement, category by category from NumPy's `RandomState(seed)`, as Marks et al.
    (arXiv:2407.12210) draw theirs with seed 42. The draw of fewer lies within that of more.

    Parameters
    ----------
    labels : (n,) integer, in the dataset's order
    """
    counts = np.unique(labels, return_counts=True)[1]
    by_category = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    rng = np.random.RandomState(seed)  # each category takes as much of it, however few are drawn
    chosen = [rng.choice(rows, min(count, len(rows)), replace=False) for rows in by_category]
    return np.sort(np.concatenate(chosen))


def smallest_fraction(rows: int, categories: int, *, flag: str = "") -> str:
    """Says the least decimal of six digits by which int(fraction * rows / categories) is one."""
    if rows < categories:
        return "there are fewer images than categories"
    least = math.ceil(categories / rows * 1e6)
    while int(float(f"{least / 1e6:.6f}") * rows / categories) < 1:  # for rounding
        least += 1
    return "the smallest is " + flag + f"{least / 1e6:.6f}".rstrip("0").rstrip(".")
