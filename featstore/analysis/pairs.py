"""Correlations of pairs of series: on each dataset, averaged over all, and with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from featstore.analysis.coefficients import coefficients, mean_correlations
from featstore.analysis.resampling import (
    STATISTICS,
    Bools,
    Floats,
    Indices,
    Interval,
    Resampling,
    Statistic,
    combined,
    mean_of_seeds,
    redrawn_seeds,
    spread_limits,
)

Over = Literal["models", "datasets", "seeds"]

_SEED_DRAWS = 200


def correlate_pairs(
    values: Floats, first: Indices, second: Indices, *, scheme: Resampling,
    clusters: Indices | None = None, groups: Indices | None = None,
    over: Sequence[Over] = ("models",), by_dataset: bool = True,
) -> tuple[dict[str, Floats], dict[str, Floats]]:  # fmt: skip
    """Coefficients of pairs of series over models: on each dataset, and averaged over all.

    Parameters
    ----------
    values : (series, dataset, model), or with a last axis of seeds, of which means count; a
        coefficient is over the models that both series have
    first, second : (pair,) the two series of each
    clusters, groups, over : as of `clusters_of`, `groups_of`, `correlate_protocols`
    by_dataset : also the intervals of single datasets

    Returns
    -------
    single : `pearson`, `pearson_low`, ..., `n`, each (pair, dataset)
    mean : the same and `n_datasets`, each (pair,)
    """
    redraws = [*redrawn_seeds(values, _SEED_DRAWS, scheme.seed)] if "seeds" in over else []
    if values.ndim == 4:
        values = mean_of_seeds(values)
    single = coefficients(values, first, second, groups)
    given = np.isfinite(single["pearson"])
    mean: dict[str, Floats] = {name: _mean_over(given, single[name]) for name in STATISTICS}
    both = np.isfinite(values[first]) & np.isfinite(values[second]) & given[:, :, None]
    seeded = [coefficients(one, first, second, groups) for one in redraws]
    count = np.maximum(np.count_nonzero(given, axis=1), 1)[:, None]
    if by_dataset:
        again = {name: np.zeros((len(first), len(scheme.weights))) for name in STATISTICS}
    else:
        again = mean_correlations(values, first, second, scheme.weights, given, groups=groups)
    for at in range(values.shape[1] if by_dataset else 0):
        drawn = mean_correlations(
            values[:, [at]], first, second, scheme.weights, given[:, [at]], groups=groups
        )
        for name in STATISTICS:
            again[name] += np.where(given[:, [at]], drawn[name], 0.0) / count
            sources = {}
            if "models" in over:
                there = scheme.present(both[:, at])
                sources["models"] = scheme.limits(
                    single[name][:, at], drawn[name], there, statistic=name
                )
            if seeded:
                found = np.stack([one[name][:, at] for one in seeded])
                sources["seeds"] = spread_limits(single[name][:, at], found)
            low, high = combined(single[name][:, at], [*sources.values()])
            for end, column in (("_low", low), ("_high", high)):
                single.setdefault(f"{name}{end}", np.full(given.shape, np.nan))[:, at] = column

    for name in STATISTICS:
        limits = []
        if "models" in over:
            there = scheme.present(np.asarray(both.any(axis=1)))
            limits.append(scheme.limits(mean[name], again[name], there, statistic=name))
        if "datasets" in over:
            limits.append(_over_datasets(mean[name], single[name], given, clusters, scheme, name))
        if seeded:
            found = np.stack([_mean_over(given, one[name]) for one in seeded])
            limits.append(spread_limits(mean[name], found))
        mean[f"{name}_low"], mean[f"{name}_high"] = combined(mean[name], limits)
    fewest = np.where(given, single["n"], np.inf).min(axis=1, initial=np.inf)
    most = single["n"].max(axis=1, initial=0)
    mean["n"] = np.where(given.any(axis=1), fewest, most)
    mean["n_datasets"] = np.count_nonzero(given, axis=1).astype(float)
    return single, mean


def _mean_over(given: Bools, column: Floats) -> Floats:
    """Mean (pair,) over the datasets given, of a column (pair, dataset)."""
    total = np.where(given, column, 0.0).sum(axis=1)
    return np.asarray(total / np.where(given.any(axis=1), given.sum(axis=1), np.nan))


def _over_datasets(
    mean: Floats, single: Floats, given: Bools, clusters: Indices | None, scheme: Resampling,
    statistic: Statistic,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Limits (pair,) of means over datasets, had others been chosen: clusters of them are drawn.

    The spread is that of the mean of clusters' means: by clusters as large as they are, one of
    many datasets would be taken for as sure as all the others together.
    """
    units = np.arange(given.shape[1]) if clusters is None else clusters
    interval: Interval = "jackknife" if scheme.interval == "fisher" else scheme.interval
    scheme = Resampling(units, interval, scheme.resamples, scheme.seed)
    member = (units[:, None] == np.unique(units)).astype(float)
    size = given @ member  # (pair, cluster)
    with np.errstate(invalid="ignore"):  # a cluster, or a draw, may hold none of the datasets
        means = np.nan_to_num(np.where(given, single, 0.0) @ member / size)
        drawn = scheme.weights @ (member / member.sum(axis=0))  # how often each cluster is
        there = (size > 0).astype(float)
        whole = means.sum(axis=1) / there.sum(axis=1)
        again = (means * there) @ drawn.T / (there @ drawn.T)
    again = mean[:, None] + again - whole[:, None]
    return scheme.limits(mean, again, scheme.present(given), statistic=statistic)
