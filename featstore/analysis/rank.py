"""Models in order of how well they do, with what is no model of its own marked as such."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from featstore.analysis.selection import (
    existing,
    is_independent,
    metrics_of,
    shares,
    transductive,
)
from featstore.results import check_results


def rank_models(results: xr.Dataset, *, metric: str = "score", bn_mode: str = "eval") -> xr.Dataset:
    """Mean score and mean rank of every model, best model first.

    Means are over the cells that exist, and the number of cells stands beside them. A model that
    lacks a hard dataset has too good a mean score; its mean rank is not lifted that way, since
    ranks are taken within one dataset and protocol. Therefore models are ordered by mean rank. Of
    protocols, only those count whose scores are shares in 0..1.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    metric : variable that is ranked; the highest value has rank 1, ties share their mean rank
    bn_mode : the one BN mode looked at

    Returns
    -------
    Dataset with dims (model, protocol)
        `score`, its 95 % interval `low` and `high` (for the metric "score" only), `rank`, and
        `n_datasets`, over datasets. Over datasets and protocols, with the one dim model:
        `mean_score`, `mean_rank`, `n_cells`, `independent` (no early checkpoint, no random
        weights), and `place`: 1, 2, ... among independent models, NaN for the others. The
        coordinate `transductive` (protocol) says which see scored images in this BN mode.

    Raises
    ------
    ValueError
        The metric or the BN mode does not exist, or these are no results.
    """
    check_results(results, "low", "high")
    existing("metric", metric, metrics_of(results))
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    cells = shares(results).sel(bn_mode=bn_mode)
    scores = cells[metric].transpose("model", "dataset", "protocol")
    ranks = scores.copy(data=rankdata(-scores.values, axis=0, nan_policy="omit"))

    out = mean_over_datasets(cells, metric)
    out["rank"] = ranks.mean("dataset")
    out["mean_score"] = scores.mean(["dataset", "protocol"])
    out["mean_rank"] = ranks.mean(["dataset", "protocol"])
    out["n_cells"] = scores.notnull().sum(["dataset", "protocol"])
    out["independent"] = is_independent(results)

    # Stable, so that equal models keep their order; without a cell, last.
    order = np.lexsort((-out["mean_score"].values, out["mean_rank"].values))
    out = out.isel(model=order)
    placed = (out["independent"] & out["mean_rank"].notnull()).values
    out["place"] = ("model", np.where(placed, np.cumsum(placed), np.nan))
    keep = [name for name in results.coords if results[name].dims in (("model",), ("protocol",))]
    out = out.drop_vars([name for name in out.coords if name not in keep])
    return out.assign_coords(transductive(shares(results), bn_mode)).assign_attrs(
        metric=metric, bn_mode=bn_mode, n_datasets=results.sizes["dataset"]
    )


def mean_over_datasets(cells: xr.Dataset, metric: str = "score") -> xr.Dataset:
    """Mean of a metric over the dataset dim, `score`, with `low`, `high` and `n_datasets`.

    The interval of the mean is made of those of the datasets, whose test images are taken to be
    distinct: distances to the limits add up as squares (MOVER; Zou & Donner 2008). Where some are
    the same images changed, as by blur, it is too narrow; `compare_models` knows. It tells how sure
    the mean over just these datasets is, not what a model would do on others.
    """
    scores = cells[metric]
    present = scores.notnull()
    count = present.sum("dataset")
    mean = scores.mean("dataset")
    if metric == "score":
        some = count.where(count > 0)
        below = np.sqrt(((scores - cells["low"]) ** 2).sum("dataset")) / some
        above = np.sqrt(((cells["high"] - scores) ** 2).sum("dataset")) / some
        # Of cells without an interval, as published ones, nothing is sure, rather than everything.
        sure = (cells["low"].notnull() & cells["high"].notnull() | ~present).all("dataset")
        limits = {"low": (mean - below).where(sure), "high": (mean + above).where(sure)}
    else:
        limits = {name: xr.full_like(mean, np.nan) for name in ("low", "high")}
    return xr.Dataset({"score": mean, **limits, "n_datasets": count})
