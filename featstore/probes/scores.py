"""Scores that train nothing: transferability, spectra, retrieval, clustering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featstore.backend import to_host
from featstore.errors import NotApplicableError
from featstore.kernels import transferability
from featstore.kernels.resample import wilson_interval
from featstore.probes.base import Measured, Metrics, Protocol
from featstore.probes.data import Task
from featstore.probes.neighbour_lists import Search
from featstore.probes.ridge import gram_sums
from featstore.probes.rows import prepared


@dataclass(frozen=True, kw_only=True)
class TrainStatistic(Protocol):
    """One number that the train split's features give, with their labels or without.

    Attributes
    ----------
    statistic : a name in `STATISTICS`, which is also the metric's
    most_rows : of these, where more would take too long: the first of a seeded permutation; 0 for
        all
    """

    statistic: str
    most_rows: int = 0
    scale: str = "real"
    kind: str = "statistic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_rows < 0 or (self.most_rows and self.statistic not in _OF_ROWS):
            raise ValueError(
                f"most_rows must be 0 or more, and 0 but for {', '.join(_OF_ROWS)}, "
                f"got {self.most_rows}"
            )

    def check(self, task: Task) -> None:
        """As for every protocol; some ask for rows that differ."""
        super().check(task)
        if self.statistic in _OF_SPREAD and not task.train.variance.any():
            raise NotApplicableError(
                f"{self.name} needs features that vary, and all train rows are equal"
            )

    def measure(self, task: Task) -> Measured:
        """The statistic, without an interval.

        Raises
        ------
        NotApplicableError
            It is no finite number.
        """
        value = STATISTICS[self.statistic](self, task)
        if not np.isfinite(value):
            raise NotApplicableError(
                f"{self.name} is {value} for these features, whose squares are too large or small"
            )
        return Measured({self.statistic: {"value": value, "low": None, "high": None}}, {}, {})

    def rows(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of the train rows that are looked at, normalised."""
        blocks = prepared(task, task.train, self.normalisation)
        read = [(to_host(x), to_host(y)) for x, y in (block.read() for block in blocks)]
        x, y = (np.concatenate(parts) for parts in zip(*read, strict=True))
        if self.most_rows and len(x) > self.most_rows:
            chosen = np.random.default_rng(task.seed).permutation(len(x))[: self.most_rows]
            return x[chosen], y[chosen]
        return x, y


@dataclass(frozen=True, kw_only=True)
class Retrieval(Protocol):
    """How well train images of the same category are found by cosine similarity to a test image.

    `map` is the mean over test images of average precision among the k nearest, where the share of
    hits is of min(k, train images of the category); `recall1`, `recall5`, `recall10` the share with
    a hit among so many.

    Attributes
    ----------
    k : length of the lists; all train rows where there are fewer
    """

    k: int = 100
    headline: str = "map"
    kind: str = "retrieval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 10:
            raise ValueError(f"k must be at least 10, got {self.k}")

    def measure(self, task: Task) -> Measured:
        """Off the neighbour lists that kNN made, if it did."""
        k = min(self.k, len(task.train))
        search = Search(task, "cosine", self.normalisation)
        found = []
        for number in range(len(task.test.blocks)):
            _, near = search.nearest(number, k)
            labels = task.test.labels[search.edges[number] : search.edges[number + 1]]
            found.append(task.train.labels[to_host(near)] == labels[:, None])
        hits = np.concatenate(found)
        precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
        there = np.bincount(task.train.labels, minlength=task.n_categories)[task.test.labels]
        average = (precision * hits).sum(axis=1) / np.minimum(there, k)
        half = 1.96 * average.std() / np.sqrt(len(average))
        mean = float(average.mean())
        metrics: Metrics = {"map": {"value": mean, "low": mean - half, "high": mean + half}}
        for depth in (1, 5, 10):
            right = hits[:, :depth].any(axis=1)
            low, high = wilson_interval(int(right.sum()), len(hits))
            metrics[f"recall{depth}"] = {"value": float(right.mean()), "low": low, "high": high}
        kept = {"index": task.test.index, "average_precision": average.astype(np.float32)}
        return Measured(metrics, kept, {"list_length": k})


@dataclass(frozen=True, kw_only=True)
class KMeans(Protocol):
    """Agreement of k-means clusters of the test rows with their categories.

    Attributes
    ----------
    starts : random starts, of which the tightest counts
    """

    starts: int = 10
    headline: str = "ami"
    kind: str = "clustering"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.starts < 1:
            raise ValueError(f"starts must be at least 1, got {self.starts}")

    def measure(self, task: Task) -> Measured:
        """Adjusted mutual information; at most 1, about 0 by chance."""
        from sklearn.cluster import KMeans as Clusters  # slow to import
        from sklearn.metrics import adjusted_mutual_info_score

        blocks = prepared(task, task.test, self.normalisation)
        rows = np.concatenate([to_host(block.read()[0]).astype(np.float32) for block in blocks])
        count = len(np.unique(task.test.labels))
        clusters = Clusters(count, n_init=self.starts, random_state=task.seed).fit_predict(rows)
        value = float(adjusted_mutual_info_score(task.test.labels, clusters))
        kept = {"index": task.test.index, "label": task.test.labels, "cluster": clusters}
        return Measured({"ami": {"value": value, "low": None, "high": None}}, kept, {})


def _from_sums(function: Callable[..., float], **options: int) -> Callable[..., float]:
    """Statistic of the sums over rows, which all such share."""

    def statistic(protocol: TrainStatistic, task: Task) -> float:
        return function(gram_sums(task, protocol.normalisation), xp=task.xp, **options)

    return statistic


def _coding(protocol: TrainStatistic, task: Task) -> float:
    return transferability.coding_gain(*protocol.rows(task))


def _overlap(protocol: TrainStatistic, task: Task) -> float:
    x, y = protocol.rows(task)
    if np.unique(y, return_counts=True)[1].min() < 2:  # no spread, so no overlap: the best score
        raise NotApplicableError(f"{protocol.name} needs two train images of each category or more")
    return transferability.bhattacharyya_overlap(x, y)


def _mixture(protocol: TrainStatistic, task: Task) -> float:
    x, y = protocol.rows(task)
    components = transferability.PER_CATEGORY * task.n_categories
    if len(x) <= components:  # a component for each row explains it all: the best score
        raise NotApplicableError(
            f"{protocol.name} needs more train images than its {components} components, "
            f"there are {len(x)}"
        )
    return transferability.mixture_leep(x, y, n_categories=task.n_categories, seed=task.seed)


_OF_ROWS = ("transrate", "gbc", "nleep")  # the others are of sums over all rows
_OF_SPREAD = ("gbc", "nleep", "label_cka", "participation_ratio")  # nothing over nothing, of none

STATISTICS: dict[str, Callable[[TrainStatistic, Task], float]] = {
    "logme": _from_sums(transferability.log_evidence),
    "hscore": _from_sums(transferability.h_score),
    "transrate": _coding,
    "gbc": _overlap,
    "nleep": _mixture,
    "label_cka": _from_sums(transferability.label_alignment),
    "rankme": _from_sums(transferability.rank_me),
    "alpha_req": _from_sums(transferability.spectral_decay, first=11, last=100),
    "participation_ratio": _from_sums(transferability.participation_ratio),
}

_PAPERS = {
    "logme": "LogME: You et al., ICML 2021",
    "hscore": "H-score: Bao et al., ICIP 2019",
    "transrate": "TransRate: Huang et al., ICML 2022",
    "gbc": "Gaussian Bhattacharyya coefficient, spherical, 64 components: Pandy et al., CVPR 2022",
    "nleep": "N-LEEP, diagonal mixture: Li et al., CVPR 2021",
    "label_cka": "linear CKA with the labels: Kornblith et al., ICML 2019",
    "rankme": "RankMe, no labels: Garrido et al., ICML 2023",
    "alpha_req": "alpha-ReQ, no labels: Agrawal et al., NeurIPS 2022; best near 1",
    "participation_ratio": "participation ratio, no labels: Gao et al., 2017",
}

PROTOCOLS: list[Protocol] = [
    *(
        TrainStatistic(
            name=statistic.replace("_", "-"),
            statistic=statistic,
            headline=statistic,
            most_rows=10_000 if statistic in _OF_ROWS else 0,
            sets=("free",),
            source=paper,
        )
        for statistic, paper in _PAPERS.items()
    ),
    Retrieval(
        name="retrieval",
        normalisation="l2",
        sets=("free",),
        source="mean average precision: Philbin et al., CVPR 2007; recall at k: Jegou, Douze, "
        "Schmid, TPAMI 33 (2011); in the 100 nearest train images by cosine",
    ),
    KMeans(
        name="kmeans",
        normalisation="l2",
        sets=("free",),
        source="scikit-learn's KMeans, as many clusters as categories; adjusted mutual information "
        "by Vinh, Epps, Bailey, JMLR 11 (2010)",
    ),
]
