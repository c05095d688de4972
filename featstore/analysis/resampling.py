"""How far a number would move with another choice of models, datasets or seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.special import ndtri

from featstore.kernels import intervals

FEWEST_MODELS = 4
"""With fewer, a coefficient of correlation says next to nothing, and nothing has an interval."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

Statistic = Literal["pearson", "spearman", "kendall"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

Interval = Literal["jackknife", "fisher", "bca", "percentile"]
INTERVALS: tuple[Interval, ...] = get_args(Interval)


@dataclass(frozen=True)
class Resampling:
    """What is drawn together, and how an interval is made of the draws.

    Attributes
    ----------
    units : (model,) number of the unit that each model belongs to: models that are no independent
        draws, such as one method in two backbones, are drawn and left out together
    interval : `jackknife` leaves out one unit at a time, `bca` and `percentile` draw units with
        replacement, `fisher` goes by the number of units alone
    resamples, seed : of the bootstrap
    held : values less one of what coefficients hold fixed, which `fisher` takes off the units
    """

    units: Indices
    interval: Interval = "jackknife"
    resamples: int = 1000
    seed: int = 0
    held: int = 0

    @cached_property
    def weights(self) -> Floats:
        """(draw, model): how often each is drawn; the last rows each leave one unit out."""
        return draws_of(
            self.units,
            resamples=self.resamples if self.interval in ("bca", "percentile") else 0,
            seed=self.seed,
        )

    @property
    def n_units(self) -> int:
        """How many are drawn."""
        return len(np.unique(self.units))

    def present(self, mask: Bools) -> Bools:
        """(..., unit) whether a unit has a model, of a mask (..., model)."""
        _, unit = np.unique(self.units, return_inverse=True)
        return np.asarray(mask @ np.eye(self.n_units, dtype=bool)[unit])

    def limits(
        self,
        estimate: Floats,
        again: Floats,
        present: Bools,
        *,
        statistic: Statistic | None = None,
    ) -> tuple[Floats, Floats]:
        """Limits of estimates (...) by what they are in each draw (..., draw).

        NaN of fewer than four units.

        Parameters
        ----------
        present : (..., unit) which of them an estimate is of
        statistic : whose limits these are; None for what is no coefficient, such as a difference
            of two, which has no interval by `fisher` and gets that of the jackknife
        """
        drawn, without_one = np.split(again, [again.shape[-1] - self.n_units], axis=-1)
        without_one = np.where(present, without_one, np.nan)  # without no one it is the estimate
        count = np.count_nonzero(present, axis=-1)
        if self.interval == "bca":
            low, high = intervals.bca(estimate, drawn, without_one)
        elif self.interval == "percentile":
            low, high = intervals.percentile(drawn)
        elif self.interval == "fisher" and statistic is not None:
            low, high = intervals.fisher(estimate, count - self.held, statistic=statistic)
        else:
            low, high = intervals.jackknife(estimate, without_one, statistic=statistic)
        few = (count < FEWEST_MODELS) | ~np.isfinite(estimate)
        return np.where(few, np.nan, low), np.where(few, np.nan, high)


def units_of(results: xr.Dataset) -> Indices:
    """Number (model,) of what each model counts as one draw with.

    Checkpoints of one run share their `lineage`, one method in two backbones its `method`; a model
    of which neither is known is a unit by itself.
    """
    names = [str(name) for name in results["model"].values]
    told = {
        coord: [str(one) for one in results[coord].values]
        for coord in ("method", "lineage")
        if coord in results.coords
    }
    keys = [
        next((f"{coord} {column[i]}" for coord, column in told.items() if column[i]), f" {name}")
        for i, name in enumerate(names)
    ]
    return _numbered(keys)


def clusters_of(results: xr.Dataset) -> Indices:
    """Number (dataset,) of the cluster that each dataset belongs to, itself where none is told."""
    names = [str(name) for name in results["dataset"].values]
    if "cluster" not in results.coords:
        return np.arange(len(names))
    clusters = [str(one) for one in results["cluster"].values]
    return _numbered([one or f" {name}" for one, name in zip(clusters, names, strict=True)])


def _numbered(keys: list[str]) -> Indices:
    places = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([places[key] for key in keys], dtype=np.intp)


def draws_of(units: Indices, *, resamples: int, seed: int) -> Floats:
    """(resamples + units, member): how often each member is drawn.

    The first rows are draws of units with replacement, the last ones each leave one unit out, for
    the jackknife and for `bca`.
    """
    _, unit = np.unique(units, return_inverse=True)
    count = int(unit.max(initial=-1)) + 1
    draws = np.random.default_rng(seed).integers(0, max(count, 1), (resamples, count))
    places = draws + count * np.arange(resamples)[:, None]
    drawn = np.bincount(places.ravel(), minlength=draws.size).reshape(draws.shape)
    return np.concatenate([drawn, 1 - np.eye(count)]).astype(float)[:, unit]


def mean_interval(values: Floats, units: Indices) -> tuple[float, float, float]:
    """Mean over models (model,) and its interval by the jackknife; a NaN is no model.

    Where each model is a unit by itself, that is Student's t interval.

    Returns
    -------
    mean, low, high : the limits are NaN of fewer than four units, the mean of no model
    """
    known = np.isfinite(values)
    if not known.any():
        return np.nan, np.nan, np.nan
    scheme = Resampling(units[known])
    weights = scheme.weights
    with np.errstate(invalid="ignore"):  # without the one unit there is nothing is left
        again = weights @ values[known] / weights.sum(axis=1)
    mean = np.asarray(values[known].mean())
    low, high = scheme.limits(mean, again, np.ones(scheme.n_units, dtype=bool))
    return float(mean), float(low), float(high)


def mean_of_seeds(values: Floats) -> Floats:
    """Means over the last axis of what is there; NaN of nothing."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    return np.asarray(np.where(known, values, 0.0).sum(axis=-1) / np.where(count, count, np.nan))


def redrawn_seeds(values: Floats, draws: int, seed: int) -> Iterator[Floats]:
    """Means of values (..., seed) over the last axis, each time of seeds drawn anew in each cell.

    With few seeds c, means of draws vary too little by (c - 1) / c, for which their deviations are
    made up. A cell of one seed stays as it is.
    """
    rng = np.random.default_rng(seed)
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    ordered = np.take_along_axis(values, np.argsort(~known, axis=-1, kind="stable"), axis=-1)
    mean = mean_of_seeds(values)
    growth = np.sqrt(count / np.maximum(count - 1, 1))
    for _ in range(draws):
        place = np.floor(rng.random(values.shape) * count[..., None]).astype(np.intp)
        taken = np.arange(values.shape[-1]) < count[..., None]
        drawn = np.where(taken, np.take_along_axis(ordered, place, axis=-1), np.nan)
        yield mean + growth * (mean_of_seeds(drawn) - mean)


def spread_limits(estimate: Floats, draws: Floats) -> tuple[Floats, Floats]:
    """Normal limits of estimates (...) by the standard deviation of draws (draw, ...)."""
    half = ndtri(0.975) * draws.std(axis=0)
    return np.maximum(estimate - half, -1.0), np.minimum(estimate + half, 1.0)


def combined(estimate: Floats, limits: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Limits by several independent sources at once, each with limits of its own.

    Distances from the estimate add up as squares (MOVER; Zou, *Toward Using Confidence Intervals
    to Compare Correlations*, 2007).
    """
    if len(limits) == 1:
        return limits[0]
    below = np.sqrt(sum((estimate - low) ** 2 for low, _ in limits))
    above = np.sqrt(sum((high - estimate) ** 2 for _, high in limits))
    return np.maximum(estimate - below, -1.0), np.minimum(estimate + above, 1.0)
