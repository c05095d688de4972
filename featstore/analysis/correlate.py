"""How protocols, and domains, predict each other over models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from featstore.analysis.pairs import Over, correlate_pairs
from featstore.analysis.resampling import (
    INTERVALS,
    Floats,
    Indices,
    Interval,
    Resampling,
    clusters_of,
    units_of,
)
from featstore.analysis.selection import (
    IN_DOMAIN,
    Models,
    Scale,
    existing,
    in_domain_datasets,
    of_models,
    scores_of,
    transductive,
)
from featstore.results import check_results


def correlate_protocols(
    results: xr.Dataset,
    *,
    metric: str = "score",
    scale: Scale = "raw",
    models: Models = "independent",
    bn_mode: str = "eval",
    dataset: str | None = None,
    by_dataset: bool = True,
    partial: str = "",
    over: Over | Sequence[Over] = "models",
    interval: Interval = "jackknife",
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Correlations of every two protocols over models, with 95 % intervals.

    Without `dataset`, coefficients are computed on each dataset by itself and then averaged
    over datasets, so that a difference in difficulty between datasets is no agreement between
    protocols. The average is the arithmetic mean of r: with few models a Spearman coefficient
    of exactly 1 is common, and its Fisher z is infinite. For the average's interval the same models
    are left out, or drawn, for all datasets, since a model good on one is good on the next; and
    models of one lineage, or of one method in two backbones, together, as no independent draws.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    metric : variable that is correlated
    scale : of the metric: `raw`, `logit` for shares, or `rank` among models
    models : "independent" leaves out early checkpoints and random weights
    bn_mode : the one BN mode looked at
    dataset : a single dataset instead of the average over all
    by_dataset : also return what is averaged
    partial : coordinate of models, such as `backbone`, that is held fixed: correlation of what
        remains of both sides once the mean of each of its values is taken away (for Spearman of
        their ranks; for Kendall, pairs of models that share the value)
    over : what the interval is over: the choice of `models`, of `datasets` by cluster (of the
        average alone), of `seeds` (of results opened with them), or several of them together, which
        errs on the wide side: scores of other models have noise of their own seeds already
    interval : `jackknife` (Student's t on a scale that suits the coefficient; its coverage was
        found best: 94 to 97 %, 92 to 93 for Pearson of accuracies near saturation, where the logit
        scale is the better one),
        `fisher` (by the number of models alone), `bca` or `percentile` (bootstrap)
    resamples, seed : of the bootstrap

    Returns
    -------
    Dataset with dims (protocol, other)
        `pearson`, `pearson_low`, `pearson_high`, the same of `spearman` and `kendall` (tau-b),
        `n_datasets` (those averaged) and `n` (models of the smallest of them; with fewer than four
        there is no coefficient, and `n` is the most any dataset has). The coordinate `transductive`
        (protocol) says which see scored images in this BN mode. With `by_dataset` and without
        `dataset`, also `pearson_by_dataset`, ..., `n_by_dataset` (dataset, protocol, other); their
        intervals are over models and seeds only.

    Raises
    ------
    ValueError
        These are no results; the metric, scale, BN mode, dataset, coordinate, interval or choice of
        models does not exist; there are no seeds.
    """
    check_results(results, seeds=True)
    scores = scores_of(
        results, metric=metric, scale=scale, models=models, bn_mode=bn_mode, dataset=dataset,
        seeds=True,
    )  # fmt: skip
    how = _how(of_models(results, models), scores, partial, over, interval, resamples, seed)
    protocols = scores["protocol"].values
    pairs = [*combinations(range(len(protocols)), 2), *((i, i) for i in range(len(protocols)))]
    first, second = (np.array(side, dtype=int) for side in zip(*pairs, strict=True))
    by_dataset = by_dataset and dataset is None
    values = scores.transpose("protocol", "dataset", "model", ...).values
    single, mean = correlate_pairs(values, first, second, by_dataset=by_dataset, **how)
    itself = first == second
    for columns in (single, mean):
        for name in set(columns) - {"n", "n_datasets"}:  # with any models
            columns[name][itself] = np.where(np.isfinite(columns[name][itself]), 1.0, np.nan)

    def square(column: Floats) -> Floats:
        full = np.empty((len(protocols), len(protocols), *column.shape[1:]))
        full[first, second] = full[second, first] = column
        return full

    variables = {name: (("protocol", "other"), square(column)) for name, column in mean.items()}
    out = xr.Dataset(
        variables,
        {"protocol": protocols, "other": protocols} | transductive(results, bn_mode),
    )
    if by_dataset:
        for name, column in single.items():
            dims = ("protocol", "other", "dataset")
            out[f"{name}_by_dataset"] = (dims, square(column))
        out = out.assign_coords(dataset=scores["dataset"].values)
        out = out.transpose("dataset", "protocol", "other")
    told = {"metric": metric, "scale": scale, "models": models, "bn_mode": bn_mode}
    return out.assign_attrs(told | _told(how, partial))


def correlate_domains(
    results: xr.Dataset,
    *,
    in_domain: str | None = None,
    across: bool = False,
    metric: str = "score",
    target_metric: str = "",
    scale: Scale = "raw",
    models: Models = "independent",
    bn_mode: str = "eval",
    partial: str = "",
    over: Over | Sequence[Over] = "models",
    interval: Interval = "jackknife",
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How well scores on the in-domain dataset predict those on every other dataset, over models.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    in_domain : the predicting dataset; by default the one whose `shift` is "in-domain"
    across : also let every protocol in-domain predict every `other` protocol elsewhere
    metric : variable on the predicting dataset
    target_metric : variable on the others, if it is another one
    scale, models, bn_mode, partial, over, interval, resamples, seed : as in `correlate_protocols`

    Returns
    -------
    Dataset with dims (protocol, dataset), or (protocol, other, dataset) with `across`
        `pearson`, `pearson_low`, `pearson_high`, the same of `spearman` and `kendall`, and `n`.
        Their averages over datasets, by the rule of `correlate_protocols`, are `pearson_mean`,
        `pearson_mean_low`, ..., `n_mean` without the dim dataset. `protocol` is the predictor, and
        the coordinate `transductive` (protocol) says which see scored images in this BN mode.

    Raises
    ------
    ValueError
        No dataset, or more than one, is in-domain and none is named; a name does not exist; or
        these are no results.
    """
    check_results(results, seeds=True)
    cells: dict[str, Any] = {"scale": scale, "models": models, "bn_mode": bn_mode}
    scores = scores_of(results, metric=metric, seeds=True, **cells)
    targets = scores_of(results, metric=target_metric or metric, seeds=True, **cells)
    if in_domain is None:
        found = in_domain_datasets(results)
        if len(found) != 1:
            raise ValueError(f"in_domain must name a dataset: {len(found)} have {IN_DOMAIN!r}")
        in_domain = found[0]
    existing("in_domain", in_domain, scores["dataset"].values)
    order = ("protocol", "dataset", "model", ...)
    targets = targets.drop_sel(dataset=in_domain).transpose(*order)
    home = scores.sel(dataset=[in_domain]).transpose(*order)
    of_cells = of_models(results, models).drop_sel(dataset=in_domain)
    how = _how(of_cells, targets, partial, over, interval, resamples, seed)
    protocols, datasets = targets["protocol"].values, targets["dataset"].values
    count = len(protocols)
    first = np.repeat(np.arange(count), count) if across else np.arange(count)
    second = np.tile(np.arange(count), count) if across else first
    values = np.concatenate([np.broadcast_to(home, targets.shape), targets.values])
    single, mean = correlate_pairs(values, first, count + second, **how)

    dims = ("protocol", "other") if across else ("protocol",)
    shape = (count,) * len(dims)
    coords = {"protocol": protocols, "dataset": datasets} | ({"other": protocols} if across else {})
    out = xr.Dataset(coords=coords)
    for name, column in single.items():
        out[name] = ((*dims, "dataset"), column.reshape(*shape, len(datasets)))
    for name, column in mean.items():
        statistic, *end = name.split("_")  # pearson_low -> pearson_mean_low
        key = name if name == "n_datasets" else "_".join([statistic, "mean", *end])
        out[key] = (dims, column.reshape(shape))
    out = out.assign_coords(transductive(results, bn_mode))
    told = {"metric": metric, "target_metric": target_metric or metric, "in_domain": in_domain}
    return out.assign_attrs(told | cells | _told(how, partial))


def groups_of(results: xr.Dataset, partial: str) -> Indices | None:
    """Number (model,) of each model's value of a coordinate; None of no coordinate.

    Raises
    ------
    ValueError
        There is no such coordinate of models.
    """
    if not partial:
        return None
    known = [str(name) for name, one in results.coords.items() if one.dims == ("model",)]
    existing("partial", partial, [name for name in known if name != "model"])
    values = [str(one) for one in results[partial].values]
    return np.unique(values, return_inverse=True)[1]


def _how(
    results: xr.Dataset, scores: xr.DataArray, partial: str, over: Over | Sequence[Over],
    interval: Interval, resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """What `correlate_pairs` wants to know beside values."""
    existing("interval", interval, INTERVALS)
    sources = (over,) if isinstance(over, str) else tuple(over)
    for source in sources:
        existing("over", source, ["models", "datasets", "seeds"])
    if not sources:
        raise ValueError("over must name what the interval is over, got nothing")
    if "seeds" in sources and "seed" not in scores.dims:
        raise ValueError(
            "over names seeds, and these results are means over them: open them with "
            "open_results(..., seeds=True)"
        )
    chosen = results.sel(dataset=scores["dataset"].values)
    groups = groups_of(results, partial)
    held = 0 if groups is None else len(np.unique(groups)) - 1
    return {
        "scheme": Resampling(units_of(results), interval, resamples, seed, held),
        "clusters": clusters_of(chosen),
        "groups": groups,
        "over": sources,
    }


def _told(how: dict[str, Any], partial: str) -> dict[str, str | int]:
    """Attributes that say how intervals were made."""
    scheme: Resampling = how["scheme"]
    return {
        "n_models": len(scheme.units),
        "n_units": scheme.n_units,
        "n_clusters": len(np.unique(how["clusters"])),
        "partial": partial,
        "over": "+".join(how["over"]),
        "interval": scheme.interval,
        "resamples": scheme.resamples,
        "seed": scheme.seed,
    }
