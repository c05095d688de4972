"""Coefficients of correlation of many pairs of series over models, in every draw of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from featstore.analysis.resampling import (
    FEWEST_MODELS,
    STATISTICS,
    Bools,
    Floats,
    Indices,
    Statistic,
)

_AT_ONCE = 2**16  # ranks of models in draws, which then stay in the processor's cache
_PAIRS_AT_ONCE = 64  # of series, whose products over pairs of models are in memory at a time


def mean_correlations(
    values: Floats,
    first: Indices,
    second: Indices,
    weights: Floats,
    given: Bools,
    *,
    groups: Indices | None = None,
    statistics: Sequence[Statistic] = STATISTICS,
) -> dict[Statistic, Floats]:
    """Coefficients of pairs of series over models, averaged over datasets, in every draw.

    Parameters
    ----------
    values : (series, dataset, model) ; a coefficient is over the models that both have
    first, second : (pair,) the two series of each
    weights : (draw, model) of `draws_of`. A weight of two is a model drawn twice
    given : (pair, dataset) which datasets are averaged
    groups : (model,) ; if given, coefficients are those within groups: values, or their ranks, less
        the mean of their group (partial correlation given the group), and for Kendall's tau pairs
        of one group alone
    statistics : which coefficients

    Returns
    -------
    `pearson`, `spearman`, `kendall` : (pair, draw) ; NaN where one dataset has no spread in the
        draw, or no dataset is given
    """
    found = {name: np.zeros((len(first), len(weights))) for name in statistics}
    finite = np.isfinite(values)
    both = finite[first] & finite[second]
    alike = defaultdict(list)  # datasets in which the same models have the same pairs
    for dataset in range(values.shape[1]):
        alike[given[:, dataset].tobytes(), both[:, dataset].tobytes()].append(dataset)
    for datasets in alike.values():
        pairs = np.flatnonzero(given[:, datasets[0]])
        for rows, models in rows_alike(both[pairs, datasets[0]]):
            at = pairs[rows]
            series, place = np.unique([first[at], second[at]], return_inverse=True)
            i, j = place.reshape(2, -1)
            side = values[np.ix_(series, np.array(datasets), models)].transpose(1, 0, 2)
            inside = _one_hot(None if groups is None else groups[models], len(models))
            for name, total in found.items():
                total[at] += _summed(name, side, i, j, weights[:, models], inside)
    count = np.count_nonzero(given, axis=1)[:, None]
    with np.errstate(invalid="ignore"):  # 0 / 0 where no dataset is given
        # Clipped, since rounding may put a perfect correlation beside 1.
        return {name: np.clip(total / count, -1.0, 1.0) for name, total in found.items()}


def rows_alike(mask: Bools) -> Iterator[tuple[Indices, Indices]]:
    """Rows of a mask (row, column) that are the same, and the columns that they hold."""
    kinds, kind = np.unique(mask, axis=0, return_inverse=True)
    for number, one in enumerate(kinds):
        yield np.flatnonzero(kind.ravel() == number), np.flatnonzero(one)


def _one_hot(groups: Indices | None, n_models: int) -> Floats:
    """(model, group)."""
    if groups is None:
        return np.ones((n_models, 1))
    return np.asarray(groups[:, None] == np.unique(groups), dtype=float)


def _summed(
    statistic: Statistic, values: Floats, i: Indices, j: Indices, weights: Floats, inside: Floats
) -> Floats:
    """Coefficients (pair, draw) of series i with series j, summed over datasets.

    `values` are (dataset, series, model); `inside` (model, group) says which models a mean is
    taken over.
    """
    if statistic == "kendall":
        return _tau(values, i, j, weights, inside)
    found = np.zeros((len(i), len(weights)))
    cells, models = values[0].size, len(weights[0])
    for part in _slices(len(values), _AT_ONCE // (cells * models)):
        of_part = values[part]
        order = _order(of_part) if statistic == "spearman" else None
        for some in _slices(len(weights), _AT_ONCE // of_part.size):
            drawn = weights[some]
            rows = _deviations(of_part)[None] if order is None else _midranks(order, drawn)
            unit = _unit(rows, drawn, inside)
            square = (unit @ unit.transpose(0, 1, 3, 2)).sum(axis=1)
            found[:, some] += square[:, i, j].T
    return found


def _slices(count: int, size: int) -> Iterator[slice]:
    """0..count-1 in parts of a size, which is at least 1."""
    for start in range(0, count, max(1, size)):
        yield slice(start, start + max(1, size))


def _deviations(values: Floats) -> Floats:
    """Values (..., model) less their mean, in units of their own spread."""
    spread = np.ptp(values, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # no spread, no coefficient
        return np.asarray((values - values.mean(axis=-1, keepdims=True)) / spread)


def _order(values: Floats) -> Floats:
    """(..., model, model) whether a model is above another one, 1/2 where they are equal."""
    above = values[..., :, None] > values[..., None, :]
    return np.asarray(above + 0.5 * (values[..., :, None] == values[..., None, :]))


def _midranks(order: Floats, weights: Floats) -> Floats:
    """Ranks (draw, ..., model) among the models drawn."""
    rows = weights @ order.reshape(-1, order.shape[-1]).T
    return np.asarray(rows.reshape(len(weights), *order.shape[:-1]))


def _unit(values: Floats, weights: Floats, inside: Floats) -> Floats:
    """Values (draw, dataset, series, model) such that the product of two series of a dataset is
    their correlation.
    """
    share = weights[:, :, None] * inside
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold none of the models
        means = (values @ share[:, None]) / share.sum(axis=1)[:, None, None]
        # A group that is not drawn has no mean, and no weight either.
        apart = values - np.where(np.isfinite(means), means, 0.0) @ inside.T
        apart *= np.sqrt(weights)[:, None, None]
        square = np.einsum("...m,...m->...", apart, apart)[..., None]
        apart /= np.sqrt(np.where(square > 1e-20, square, np.nan))
    return np.asarray(apart)


def _tau(values: Floats, i: Indices, j: Indices, weights: Floats, inside: Floats) -> Floats:
    """Kendall's tau-b, as `_summed`.

    Two models of a draw count as often as one was drawn times the other; a model drawn twice is a
    tie of both series with itself, which tau-b leaves out.
    """
    one, other = np.nonzero(np.triu(inside @ inside.T, 1))
    drawn = (weights[:, one] * weights[:, other]).T  # (pair of models, draw)
    sign = np.sign(values[..., one] - values[..., other])
    untied = np.abs(sign) @ drawn
    found = np.empty((len(i), len(weights)))
    for some in _slices(len(i), _PAIRS_AT_ONCE // len(values)):
        a, b = i[some], j[some]
        rise = sign[:, a] * sign[:, b]
        both = (rise.reshape(-1, len(one)) @ drawn).reshape(*rise.shape[:2], -1)
        with np.errstate(invalid="ignore"):  # all tied: no coefficient
            found[some] = (both / np.sqrt(untied[:, a] * untied[:, b])).sum(axis=0)
    return found


def coefficients(
    values: Floats, first: Indices, second: Indices, groups: Indices | None = None
) -> dict[str, Floats]:
    """`pearson`, `spearman`, `kendall` and `n`, each (pair, dataset), as of `correlate_pairs`."""
    count = np.count_nonzero(np.isfinite(values[first]) & np.isfinite(values[second]), axis=2)
    datasets, models = values.shape[1:]
    a, b = ((side[:, None] * datasets + np.arange(datasets)).ravel() for side in (first, second))
    found = mean_correlations(  # each series on each dataset as a series of its own
        values.reshape(len(values) * datasets, 1, models), a, b, np.ones((1, models)),
        count.reshape(-1, 1) >= FEWEST_MODELS, groups=groups,
    )  # fmt: skip
    out: dict[str, Floats] = {str(name): one.reshape(count.shape) for name, one in found.items()}
    out["n"] = count.astype(float)
    return out
