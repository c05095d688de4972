"""Class means: as a classifier, with a shared covariance (LDA), and over few-shot episodes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.backend import Array, to_host
from featstore.errors import NotApplicableError
from featstore.kernels.prototypes import episode_accuracies
from featstore.kernels.ridge import Gram
from featstore.kernels.scale import sum_last
from featstore.probes.base import Classifier, Fitted, Measured, Protocol, as_float32
from featstore.probes.data import SHOTS, Task
from featstore.probes.ridge import gram_sums
from featstore.probes.rows import prepared


@dataclass(frozen=True, kw_only=True)
class NearestMean(Classifier):
    """The category whose mean train row is nearest by squared Euclidean distance."""

    probabilities: bool = False
    kind: str = "prototype"

    def fit(self, task: Task) -> Fitted:
        """Scorer by the negated squared distance to each category's mean."""
        gram = gram_sums(task, self.normalisation)
        means = _class_means(gram, task.xp)
        square = sum_last(means * means)
        known = gram.counts > 0

        def score(x: Array, number: int) -> Array:
            # |x|^2 is the same for all categories, and so changes no order
            near = 2.0 * (x @ means.T) - square
            return task.xp.where(known, near, -task.xp.inf)

        return Fitted(prepared(task, task.test, self.normalisation), score, {})


@dataclass(frozen=True, kw_only=True)
class LDA(Classifier):
    """Linear discriminant analysis: Gaussian categories with one covariance, shrunk to a sphere.

    Attributes
    ----------
    shrinkage : weight in 0..1 of the mean variance times the identity, beside the pooled
        covariance; as in scikit-learn's solver `lsqr`
    """

    shrinkage: float = 0.1
    rescaled: bool = True
    kind: str = "lda"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage must lie in 0..1, got {self.shrinkage}")

    def splits(self, stored: Collection[str]) -> tuple[str, ...]:
        """Train and test, and val where it is stored, to calibrate by."""
        return ("train", "val", "test") if "val" in stored else ("train", "test")

    def fit(self, task: Task) -> Fitted:
        """Scorer by log-probabilities."""
        counted = len(np.unique(task.train.labels))
        if len(task.train) <= counted:
            raise NotApplicableError(
                f"{self.name} needs more train images than categories, for the spread within them; "
                f"there are {len(task.train)} of {counted}"
            )
        xp, gram = task.xp, gram_sums(task, self.normalisation)
        means = _class_means(gram, xp)
        apart = means - gram.mean
        # Spread within categories: the whole less that between them.
        within = (gram.xx - (apart.T * gram.counts) @ apart) / gram.n
        width = within.shape[0]
        ball = xp.sum(xp.linalg.diagonal(within)) / width
        identity = xp.eye(width, dtype=within.dtype)
        shrunk = (1 - self.shrinkage) * within + self.shrinkage * ball * identity
        weight = xp.linalg.pinv(shrunk) @ means.T
        share = gram.counts / gram.n
        known = share > 0
        some = xp.where(known, share, xp.ones_like(share))
        prior = xp.where(known, xp.log(some), xp.full_like(share, -xp.inf))
        offset = prior - 0.5 * sum_last(means * weight.T)

        def score(x: Array, number: int) -> Array:
            odds = x @ weight + offset
            odds = odds - xp.max(odds, axis=1, keepdims=True)
            return odds - xp.log(xp.sum(xp.exp(odds), axis=1, keepdims=True))

        unseen = None
        if task.val is not None:
            blocks = prepared(task, task.val, self.normalisation)
            found = np.concatenate([to_host(score(b.read()[0], i)) for i, b in enumerate(blocks)])
            labels = task.val.labels
            told = to_host(known)[labels]  # no temperature fits one that train lacks
            if told.any():
                unseen = as_float32(found[told]), labels[told]
        return Fitted(prepared(task, task.test, self.normalisation), score, {}, unseen)


@dataclass(frozen=True, kw_only=True)
class Episodes(Protocol):
    """Prototypical classification in random episodes of a few categories and a few images.

    Images are those of all splits together. Each episode draws `ways` categories and, of each,
    `support` images to make its mean and `queries` others to be classified.

    Attributes
    ----------
    ways, support, queries, episodes : how many of each
    """

    support: int
    ways: int = 5
    queries: int = 15
    episodes: int = 600
    headline: str = "episodes"
    kind: str = "fewshot"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.ways, self.support, self.queries, self.episodes) < 1 or self.ways < 2:
            raise ValueError(
                "ways must be at least 2, and support, queries and episodes at least 1"
            )
        if self.shots or self.fraction < 1:
            raise ValueError("episodes draw images of their own, so leave out shots and fraction")

    def splits(self, stored: Collection[str]) -> tuple[str, ...]:
        """All of train, val and test that are stored."""
        return tuple(name for name in ("train", "val", "test") if name in stored)

    def check(self, task: Task) -> None:
        """Refuse what has too few categories or images for an episode.

        Raises
        ------
        ProbeError
            As `Task.check_rows`; too few categories have as many images as are drawn.
        """
        if task.multi_label:
            raise NotApplicableError(f"{self.name} is for one label an image")
        task.check_rows()
        enough = int((np.bincount(_labels(task)) >= self.support + self.queries).sum())
        if enough < self.ways:
            raise NotApplicableError(
                f"{self.name} takes {self.ways} categories of {self.support + self.queries} images "
                f"or more, and {enough} have as many"
            )

    def measure(self, task: Task) -> Measured:
        """Mean accuracy over the episodes, +- 1.96 standard errors (population form)."""
        labels = _labels(task)
        members = [np.flatnonzero(labels == c) for c in range(task.n_categories)]
        usable = [m for m in members if len(m) >= self.support + self.queries]
        rows, drawn = np.unique(self._draw(usable, task.seed), return_inverse=True)
        x = self._rows(task, np.isin(np.arange(len(labels)), rows))
        accuracy = episode_accuracies(x, drawn, support=self.support, xp=np)
        mean = float(accuracy.mean())
        half = 1.96 * float(accuracy.std()) / np.sqrt(self.episodes)
        ends = {"value": mean, "low": mean - half, "high": mean + half}
        kept = {"accuracy": accuracy.astype(np.float32)}
        return Measured({"episodes": ends}, kept, {"categories": len(usable)})

    def _draw(self, members: list[np.ndarray], seed: int) -> np.ndarray:
        """Rows (episodes, ways, support + queries), drawn one episode after the other."""
        rng = np.random.default_rng(seed)
        size = self.support + self.queries
        return np.array(
            [
                [
                    rng.choice(members[c], size, replace=False)
                    for c in rng.choice(len(members), self.ways, replace=False)
                ]
                for _ in range(self.episodes)
            ]
        )

    def _rows(self, task: Task, keep: np.ndarray) -> np.ndarray:
        """Rows (m, d) float32 of all splits where `keep` (n,), normalised: all that is drawn."""
        parts = [part for part in (task.train, task.val, task.test) if part is not None]
        masks = np.split(keep, np.cumsum([len(part) for part in parts])[:-1])
        blocks = [
            block
            for part, mask in zip(parts, masks, strict=True)
            for block in prepared(task, part, self.normalisation, mask)
        ]
        return np.concatenate([to_host(block.read()[0]).astype(np.float32) for block in blocks])


def _labels(task: Task) -> np.ndarray:
    return np.concatenate(
        [part.labels for part in (task.train, task.val, task.test) if part is not None]
    )


def _class_means(gram: Gram, xp: Any) -> Array:
    """(c, d) mean of each category; of one without rows, that of all."""
    counts = xp.where(gram.counts > 0, gram.counts, xp.ones_like(gram.counts))
    # xy sums x - mean over a category's rows
    return gram.mean + gram.xy.T / counts[:, None]


_SOURCE = "Ericsson et al., arXiv:2011.13377: 5-way, 15 queries, 600 episodes"

PROTOCOLS: list[Protocol] = [
    NearestMean(
        name="ncm",
        sets=("core",),
        source="nearest class mean: Mensink et al., TPAMI 35 (2013)",
    ),
    LDA(
        name="lda",
        sets=("core",),
        source="linear discriminant analysis, Fisher (1936); scikit-learn's "
        "LinearDiscriminantAnalysis(solver='lsqr', shrinkage=0.1)",
    ),
    *(
        Episodes(
            name=f"fewshot-{support}shot-ericsson",
            support=support,
            sets=("ericsson2021",),
            source=_SOURCE,
        )
        for support in (5, 20, 50)
    ),
    *(
        NearestMean(
            name=f"ncm-{shots}shot",
            shots=shots,
            sets=("kshot",),
            source="as ncm, of few train images of each category",
        )
        for shots in SHOTS
    ),
]
