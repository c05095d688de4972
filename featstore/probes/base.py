"""What a protocol is, and what it is run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from featstore.backend import Array, to_device
from featstore.blocks import ArrayBlock, Block, Rows, stored_blocks
from featstore.errors import ProbeError
from featstore.kernels.scale import block_moments, l2_normalise, zscore
from featstore.store import Split

_BLOCK_ROWS = 2048  # of arrays in memory

NORMALISATIONS = ("none", "l2", "zscore", "zscore-own")

HOLD_BYTES = 2 * 2**30
"""A probe that reads its rows many times keeps them in memory up to this size."""


@dataclass(frozen=True)
class Data:
    """One split as a probe sees it: valid rows only.

    Attributes
    ----------
    blocks : the rows, in order ; sizes : rows in each block
    index : (n,) int64 position of each row in the dataset
    labels : (n,) int64 of all rows, in order
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
        """A stored split, a block per chunk.

        Raises
        ------
        ProbeError
            Its samples have several labels each.
        """
        if split.multi_label:
            raise ProbeError(f"{split} is multi-label; no protocol for it yet. Leave it out")
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
    def of_arrays(cls, features: np.ndarray, labels: np.ndarray) -> Data:
        """(n, d) finite features and (n,) labels in memory.

        Raises
        ------
        ValueError
            Shapes do not fit, or a feature is not finite.
        """
        features, labels = np.asarray(features), np.asarray(labels)
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features must be (n, d) and labels (n,), got {features.shape} and {labels.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, and some are NaN or infinite")
        labels = labels.astype(np.int64)
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


@dataclass(frozen=True)
class Task:
    """Train and test features of one cell, and where to compute.

    Attributes
    ----------
    n_categories : c ; labels are in 0..c-1
    seed : of draws, splits and initialisations
    xp : array namespace ; device : `cpu` or `cuda:N`, for what torch computes
    parallel : map kernels over blocks in threads
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

    def check(self) -> None:
        """Refuse what no protocol can score.

        Raises
        ------
        ProbeError
            No rows, one category only, or one in test that train lacks.
        """
        if not len(self.train) or not len(self.test):
            raise ProbeError("train or test has no valid rows; extract again without skipping")
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
        if self.train.width != self.test.width:
            raise ProbeError(
                f"train has {self.train.width} features and test {self.test.width}; extract again"
            )


@dataclass(frozen=True)
class Prepared:
    """A block whose rows come normalised, in float64, on the device.

    Attributes
    ----------
    mean, variance : (d,) of the normalisation, or None for none
    rows : positions to take, or None for all
    unit : divide rows by their norm
    """

    block: Block
    xp: Any
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    rows: np.ndarray | None = None
    unit: bool = False

    def read(self) -> Rows:
        """Features (n, d) float64 and labels (n,), both on the device."""
        features, labels = self.block.read()
        if self.rows is not None:
            features, labels = features[self.rows], labels[self.rows]
        x = self.xp.astype(to_device(features, self.xp), self.xp.float64)
        if self.mean is not None and self.variance is not None:
            mean, variance = to_device(self.mean, self.xp), to_device(self.variance, self.xp)
            x = zscore(x, mean, variance, xp=self.xp)
        if self.unit:
            x = l2_normalise(x, xp=self.xp)
        return x, to_device(labels, self.xp)


def prepared(
    task: Task, data: Data, normalisation: str, keep: np.ndarray | None = None
) -> list[Prepared]:
    """Blocks of a split, normalised; `keep` is an (n,) mask of rows to take.

    `zscore` is by the train split's moments, `zscore-own` by the split's own (transductive).
    """
    own = {"none": None, "l2": None, "zscore": task.train, "zscore-own": data}[normalisation]
    mean, variance = (own.mean, own.variance) if own else (None, None)
    edges = np.cumsum([0, *data.sizes])
    return [
        Prepared(
            block,
            task.xp,
            mean,
            variance,
            None if keep is None else np.flatnonzero(keep[edges[i] : edges[i + 1]]),
            unit=normalisation == "l2",
        )
        for i, block in enumerate(data.blocks)
    ]


def held(blocks: Sequence[Prepared], data: Data) -> Sequence[Block]:
    """The blocks in memory if they fit, for probes that pass over them many times."""
    if len(data) * data.width * 8 > HOLD_BYTES:
        return blocks
    return [ArrayBlock(*block.read()) for block in blocks]


@dataclass(frozen=True)
class Fitted:
    """What a protocol comes to: scores for test rows, and how far its fit can be trusted.

    Attributes
    ----------
    blocks : of the test split, prepared
    score : features (m, d) of a block and its number -> (m, c) scores, the highest wins
    certificate : JSON values about selection and convergence
    """

    blocks: Sequence[Block]
    score: Callable[[Array, int], Array]
    certificate: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A complete, frozen instruction for one score.

    Attributes
    ----------
    name : never means anything else later
    normalisation : `none`, `zscore`, `zscore-own`, `l2`, or `bn` for a trained one in the head
    probabilities : whether scores are log-probabilities, so that calibration can be measured
    sets : studies that it belongs to
    source : where it is from
    """

    name: str
    normalisation: str = "none"
    sets: tuple[str, ...] = ()
    source: str = ""
    probabilities: bool = True
    kind: str = ""

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation must be one of {', '.join(NORMALISATIONS)}, "
                f"got {self.normalisation!r}"
            )

    @property
    def transductive(self) -> bool:
        """Whether the test split's own statistics are used."""
        return self.normalisation == "zscore-own"

    def settings(self) -> dict[str, Any]:
        """Every setting by name, as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def fit(self, task: Task) -> Fitted:
        """Scorer from the task's train split."""
        raise NotImplementedError(f"{type(self).__name__} must say how it is fitted")
