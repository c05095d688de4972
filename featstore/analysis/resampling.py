"""Bootstrap over models: how far a number would move with another choice of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

FEWEST_MODELS = 4
"""With fewer, a coefficient of correlation says next to nothing, and nothing has an interval."""

CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]


def draws_of_models(n_models: int, *, resamples: int, seed: int) -> Floats:
    """(resamples + n_models, n_models): how often each model is drawn.

    The first rows are draws with replacement, the last ones each leave one model out, for `bca`.
    """
    draws = np.random.default_rng(seed).integers(0, max(n_models, 1), (resamples, n_models))
    places = draws + n_models * np.arange(resamples)[:, None]
    drawn = np.bincount(places.ravel(), minlength=draws.size).reshape(draws.shape)
    return np.concatenate([drawn, 1 - np.eye(n_models)]).astype(float)


def mean_interval(values: Floats, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean over models (model,) and its interval; a NaN is no model.

    Returns
    -------
    mean, low, high : the limits are NaN of fewer than four models, the mean of none
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan, np.nan
    mean = float(values.mean())
    if len(values) < FEWEST_MODELS:
        return mean, np.nan, np.nan
    weights = draws_of_models(len(values), resamples=resamples, seed=seed)
    again = weights @ values / weights.sum(axis=1)
    return mean, *bca(mean, again[:resamples], again[resamples:])


def mean_correlations(
    values: Floats, first: Indices, second: Indices, weights: Floats, given: Bools
) -> tuple[Floats, Floats]:  # fmt: skip
    """Pearson and Spearman of pairs of series over models, averaged over datasets, in every draw.

    Parameters
    ----------
    values : (series, dataset, model) ; a coefficient is over the models that both have
    first, second : (pair,) the two series of each
    weights : (draw, model) of `draws_of_models`. A weight of two is a model drawn twice
    given : (pair, dataset) which datasets are averaged

    Returns
    -------
    pearson, spearman : (pair, draw) ; NaN where one dataset has no spread in the draw
    """
    found = np.zeros((2, len(first), len(weights)))
    finite = np.isfinite(values)
    for dataset in range(values.shape[1]):
        pairs = np.flatnonzero(given[:, dataset])
        both = finite[first[pairs], dataset] & finite[second[pairs], dataset]
        for rows, models in rows_alike(both):
            drawn = weights[:, models]
            a, i = np.unique(first[pairs[rows]], return_inverse=True)
            b, j = np.unique(second[pairs[rows]], return_inverse=True)
            sides = [values[side, dataset][:, models] for side in (a, b)]
            for kind, prepare in enumerate((_deviations, _midranks)):
                x, y = (_unit(prepare(side, drawn), drawn) for side in sides)
                found[kind][pairs[rows]] += (x @ y.transpose(0, 2, 1))[:, i, j].T
    count = np.count_nonzero(given, axis=1)[:, None]
    with np.errstate(invalid="ignore"):  # 0 / 0 where no dataset is given
        return found[0] / count, found[1] / count


def rows_alike(mask: Bools) -> Iterator[tuple[Indices, Indices]]:
    """Rows of a mask (row, column) that are the same, and the columns that they hold."""
    kinds, kind = np.unique(mask, axis=0, return_inverse=True)
    for number, one in enumerate(kinds):
        yield np.flatnonzero(kind.ravel() == number), np.flatnonzero(one)


def _deviations(values: Floats, weights: Floats) -> Floats:
    """Values (series, model) as (1, series, model), in units of their own spread."""
    spread = np.ptp(values, axis=1, keepdims=True)
    return np.asarray((values - values.mean(axis=1, keepdims=True)) / spread)[None]


def _midranks(values: Floats, weights: Floats) -> Floats:
    """Ranks (draw, series, model) of values (series, model) among the models drawn."""
    above = values[:, :, None] > values[:, None, :]
    order = above + 0.5 * (values[:, :, None] == values[:, None, :])
    return np.asarray(np.einsum("smo,do->dsm", order, weights, optimize=True))


def _unit(values: Floats, weights: Floats) -> Floats:
    """Values (draw, series, model) such that the product of two series is their correlation."""
    weights = weights[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold none of the models
        apart = values - (weights * values).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
        square = (weights * apart * apart).sum(-1, keepdims=True)
        return np.asarray(
            np.sqrt(weights) * apart / np.sqrt(np.where(square > 1e-20, square, np.nan))
        )


def limits(estimates: Floats, draws: Floats, resamples: int) -> Floats:
    """Lower and upper limits (2, row) of estimates (row,) by draws (row, draw of models)."""
    pairs = zip(estimates, draws, strict=True)
    found = [bca(one, row[:resamples], row[resamples:]) for one, row in pairs]
    return np.reshape(np.array(found, dtype=float), (len(estimates), 2)).T


def bca(estimate: float, draws: Floats, without_one: Floats) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987).

    Parameters
    ----------
    estimate : of all models
    draws : (resamples,) of models drawn with replacement; NaN where there was no estimate
    without_one : (n_models,) of all but one model, for the acceleration
    """
    draws = np.round(draws[np.isfinite(draws)], 12)  # what is equal shall not differ by rounding
    if not draws.size:
        return np.nan, np.nan
    estimate = np.round(estimate, 12)
    below = (np.mean(draws < estimate) + np.mean(draws <= estimate)) / 2
    without_one = np.round(without_one[np.isfinite(without_one)], 12)
    pull = without_one.mean() - without_one if without_one.size else np.zeros(1)
    size = np.sum(pull**2) ** 1.5
    acceleration = np.sum(pull**3) / (6 * size) if size > 0 else 0.0
    bias = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    shifted = bias + ndtri(np.array([1 - CONFIDENCE, 1 + CONFIDENCE]) / 2)
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)
