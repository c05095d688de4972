"""Which models differ over datasets, by their ranks on each."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from featstore.analysis.resampling import Bools, Floats, clusters_of
from featstore.analysis.selection import Models, existing, scores_of
from featstore.results import check_results


def critical_difference(
    results: xr.Dataset,
    *,
    protocol: str,
    metric: str = "score",
    bn_mode: str = "eval",
    models: Models = "independent",
    alpha: float = 0.05,
    by_cluster: bool = True,
) -> xr.Dataset:
    """Mean ranks over datasets, and how far apart two must be to differ (Nemenyi).

    Datasets are the sample here, so that it asks what other datasets would say; `compare_models`
    asks what other images of the same ones would. Sources: Demsar, *Statistical Comparisons of
    Classifiers over Multiple Data Sets* (JMLR 2006), section 3.2; Friedman (1937);
    Iman, Davenport (1980); Nemenyi (1963).

    Every model is ranked on the same datasets. Where cells are missing, what has most of its
    cells missing is left out, model or dataset, until none is.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    protocol, metric, bn_mode : whose scores are ranked, the highest has rank 1
    models : "independent" leaves out early checkpoints and random weights
    alpha : level of the tests
    by_cluster : rank the mean score over datasets of one `cluster`, such as the six of DomainNet,
        which are no independent blocks

    Returns
    -------
    Dataset with dims (model, block, group), the best model first
        `rank` (model, block), `mean_rank` (model), `separable_from_best` (model), and `member`
        (group, model): models of which no two differ, as many as there are of such; blocks are
        datasets or clusters. Attributes are `critical_difference`, `friedman` (chi square) with
        `p_friedman`, `iman_davenport` (F) with `p`, which is less cautious with few blocks,
        `n_blocks`, `alpha`, and what was left out: `left_out_models`, `left_out_datasets`.

    Raises
    ------
    ValueError
        These are no results; a choice does not exist or lies outside its range; fewer than three
        models or two blocks have all cells.
    """
    check_results(results, seeds=True)
    existing("protocol", protocol, results["protocol"].values)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in 0..1 and be neither, got {alpha:g}")
    scores = scores_of(results, metric=metric, models=models, bn_mode=bn_mode)
    scores = scores.sel(protocol=protocol).transpose("model", "dataset")
    rows, columns = _without_holes(np.isfinite(scores.values))
    whole = scores.isel(model=rows, dataset=columns)
    blocks, values = _blocks(whole, by_cluster)
    k, n = values.shape
    if k < 3 or n < 2:
        raise ValueError(
            f"it takes 3 models and 2 independent datasets without a missing cell, got {k} and {n} "
            f"of {protocol} in BN mode {bn_mode}. Fill cells, or compare images by compare_models"
        )
    ranks = stats.rankdata(-values, axis=0)
    order = np.argsort(ranks.mean(axis=1), kind="stable")
    ranks = ranks[order]
    mean = ranks.mean(axis=1)
    distance = float(
        stats.studentized_range.isf(alpha, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))
    )
    chi, p_friedman, f, p = _friedman(ranks)
    of_model = {n: c for n, c in whole.coords.items() if c.dims == ("model",)}
    described = xr.Dataset(coords=of_model).isel(model=order)
    return xr.Dataset(
        {
            "rank": (("model", "block"), ranks),
            "mean_rank": ("model", mean),
            "separable_from_best": ("model", mean - mean[0] > distance),
            "member": (("group", "model"), _groups(mean, distance)),
        },
        dict(described.coords) | {"block": blocks},
        {
            "protocol": protocol,
            "metric": metric,
            "bn_mode": bn_mode,
            "models": models,
            "alpha": alpha,
            "critical_difference": distance,
            "friedman": chi,
            "p_friedman": p_friedman,
            "iman_davenport": f,
            "p": p,
            "n_blocks": n,
            "left_out_models": _lacking(scores["model"], rows),
            "left_out_datasets": _lacking(scores["dataset"], columns),
        },
    )


def _without_holes(there: Bools) -> tuple[Bools, Bools]:
    """Rows and columns of a mask (row, column) between which all is there."""
    rows, columns = (np.ones(size, bool) for size in there.shape)
    while not there[rows][:, columns].all():
        gaps = ~there & rows[:, None] & columns
        of_row, of_column = gaps.sum(axis=1) / columns.sum(), gaps.sum(axis=0) / rows.sum()
        if of_row.max() >= of_column.max():
            rows[of_row.argmax()] = False
        else:
            columns[of_column.argmax()] = False
    return rows, columns


def _blocks(scores: xr.DataArray, by_cluster: bool) -> tuple[list[str], Floats]:
    """Names of independent datasets, and their scores (model, block)."""
    datasets = [str(name) for name in scores["dataset"].values]
    units = clusters_of(scores.to_dataset(name="score")) if by_cluster else np.arange(len(datasets))
    names, values = [], []
    for unit in range(units.max(initial=-1) + 1):
        own = np.flatnonzero(units == unit)
        names.append(datasets[own[0]] if len(own) == 1 else str(scores["cluster"].values[own[0]]))
        values.append(scores.values[:, own].mean(axis=1))
    return names, np.reshape(values, (len(names), scores.sizes["model"])).T


def _friedman(ranks: Floats) -> tuple[float, float, float, float]:
    """Friedman's chi square of ranks (model, block), Iman and Davenport's F, and their p-values."""
    k, n = ranks.shape
    apart = ((ranks.mean(axis=1) - (k + 1) / 2) ** 2).sum()
    spread = ((ranks - (k + 1) / 2) ** 2).sum() / (n * (k - 1))  # k (k + 1) / 12 without ties
    chi = n * apart / spread if spread else 0.0
    rest = n * (k - 1) - chi
    f = (n - 1) * chi / rest if rest > 1e-9 else np.inf
    p = stats.f.sf(f, k - 1, (k - 1) * (n - 1))
    return float(chi), float(stats.chi2.sf(chi, k - 1)), float(f), float(p)


def _groups(mean: Floats, distance: float) -> Bools:
    """Largest sets (group, model) of two or more models, sorted by rank, no two of which differ."""
    last = np.searchsorted(mean, mean + distance, side="right")
    found, before = [], 0
    for first, end in enumerate(last):
        if end > max(before, first + 1):
            found.append((first, end))
        before = max(before, end)
    places = np.arange(len(mean))
    members = [(places >= first) & (places < end) for first, end in found]
    return np.reshape(np.array(members, bool), (len(found), len(mean)))


def _lacking(names: xr.DataArray, kept: Bools) -> list[str]:
    return [str(name) for name in names.values[~kept]]
