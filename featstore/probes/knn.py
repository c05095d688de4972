"""Nearest neighbours off the store: one search for the largest k, and every k is a read of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from featstore.backend import Array, to_device
from featstore.errors import NotApplicableError
from featstore.kernels.search import METRICS
from featstore.kernels.votes import inverse_distance_weights, softmax_weights, votes
from featstore.probes.base import Classifier, Fitted
from featstore.probes.data import SHOTS, Task
from featstore.probes.neighbour_lists import Search
from featstore.probes.rows import prepared


@dataclass(frozen=True, kw_only=True)
class KNN(Classifier):
    """Vote of the k nearest train rows.

    Attributes
    ----------
    metric : `euclidean`, `cosine` or `inner`
    weighting : `uniform`; `distance` (1 / distance, where an exact hit takes the vote), of
        `euclidean` alone; or `softmax` (exp(similarity / temperature)), of `cosine` or `inner`
    """

    k: int
    metric: str = "euclidean"
    weighting: str = "distance"
    temperature: float = 0.07
    kind: str = "knn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.weighting not in ("distance", "softmax", "uniform"):
            raise ValueError(
                f"weighting must be distance, softmax or uniform, got {self.weighting!r}"
            )
        # One divided by a similarity, or the exponential of a distance, would favour the farthest.
        metrics = {"distance": ("euclidean",), "softmax": ("cosine", "inner"), "uniform": METRICS}
        if self.metric not in metrics[self.weighting]:
            allowed = [name for name, of in metrics.items() if self.metric in of]
            raise ValueError(
                f"weighting must be {' or '.join(allowed)} with metric {self.metric} "
                f"({self.weighting} is for {' or '.join(metrics[self.weighting])}), "
                f"got {self.weighting!r}"
            )
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature:g}")

    def fit(self, task: Task) -> Fitted:
        """Scorer by neighbour lists; log of each category's share of the vote."""
        if self.k > len(task.train):
            raise NotApplicableError(
                f"k must lie in 1..{len(task.train)} (rows of the train split), got {self.k} of "
                f"{self.name}; use a protocol of smaller k, or -p {self.name.partition('+')[0]}+k=N"
            )
        labels = to_device(task.train.labels, task.xp)
        search = Search(task, self.metric, self.normalisation)

        def score(queries: Array, number: int) -> Array:
            value, index = search.nearest(number, self.k)
            voters = task.xp.take(labels, task.xp.reshape(index, (-1,)))
            total = votes(
                task.xp.reshape(voters, index.shape),
                self._weights(value, task.xp),
                n_categories=task.n_categories,
                xp=task.xp,
            )
            share = total / task.xp.sum(total, axis=1, keepdims=True)
            some = task.xp.where(share > 0, share, task.xp.ones_like(share))
            return task.xp.where(share > 0, task.xp.log(some), -task.xp.inf)

        return Fitted(prepared(task, task.test, "none"), score, {})

    def _weights(self, value: Array, xp: Any) -> Array:
        if self.weighting == "distance":
            return inverse_distance_weights(value, xp=xp)
        if self.weighting == "uniform":
            return xp.ones_like(value)
        return softmax_weights(value, temperature=self.temperature, xp=xp)


PROTOCOLS = [
    *(
        KNN(
            name=f"knn-marks{suffix}",
            k=20,
            normalisation=normalisation,
            sets=("core", "marks2024"),
            source="Marks et al., arXiv:2407.12210: KNeighborsClassifier(20, weights='distance')",
        )
        for suffix, normalisation in (
            ("", "none"),
            ("-zscore", "zscore"),
            ("-zscore-own", "zscore-own"),
        )
    ),
    *(
        KNN(
            name=f"knn-dino-k{k}",
            k=k,
            metric="cosine",
            weighting="softmax",
            normalisation="l2",
            sets=("core", "dino"),
            source="Caron et al., arXiv:2104.14294: weight exp(cosine / 0.07)",
        )
        for k in (10, 20, 100, 200)
    ),
    *(
        KNN(
            name=f"knn-{shots}shot",
            k=shots,
            metric="cosine",
            weighting="softmax",
            normalisation="l2",
            shots=shots,
            sets=("kshot",),
            source="as knn-dino, among few train images of each category, with k of as many",
        )
        for shots in SHOTS
    ),
]
