"""How protocols, and domains, predict each other over models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from featstore.analysis.resampling import (
    FEWEST_MODELS,
    Floats,
    Indices,
    draws_of_models,
    limits,
    mean_correlations,
    rows_alike,
)
from featstore.kernels.correlate import pearson, spearman

IN_DOMAIN = "in-domain"
"""Value of the coordinate `shift` of the dataset that the models were pretrained on."""

STATISTICS: tuple[Literal["pearson"], Literal["spearman"]] = ("pearson", "spearman")
ENDS = ("", "_low", "_high")
"""Suffixes of a number and the limits of its interval."""

Models = Literal["independent", "all"]


def is_independent(results: xr.Dataset) -> xr.DataArray:
    """Whether each model counts as one of its own: early checkpoints and random weights do not."""
    # Strings come as fixed-width ones, objects or StringDType, which not all of NumPy takes.
    return xr.DataArray([str(one) in ("late", "") for one in results["stage"].values], dims="model")


def of_models(results: xr.Dataset, models: Models) -> xr.Dataset:
    """Results of all models, or of the independent ones.

    Raises
    ------
    ValueError
        `models` is neither.
    """
    existing("models", models, ["independent", "all"])
    return results.isel(model=is_independent(results)) if models == "independent" else results


def reference_of(results: xr.Dataset, name: str | None, bn_mode: str) -> str:
    """The protocol others are held against: the one named, else the first linear, else the first.

    One without a cell comes last, since nothing goes with it, and before it those whose scores are
    no shares.

    Raises
    ------
    ValueError
        There is no protocol of that name.
    """
    protocols = [str(one) for one in results["protocol"].values]
    if name is not None:
        return existing("reference", name, protocols)
    filled = results["score"].sel(bn_mode=bn_mode).notnull().any(["model", "dataset"]).values
    share = np.isin(protocols, [str(one) for one in shares(results)["protocol"].values])
    linear = results["kind"].values == "linear"
    return min(zip(~filled, ~share, ~linear, range(len(protocols)), protocols, strict=True))[4]


def in_domain_datasets(results: xr.Dataset) -> list[str]:
    """Names of the datasets that the models were pretrained on; often one, sometimes none."""
    return [str(name) for name in results["dataset"].values[results["shift"].values == IN_DOMAIN]]


def shares(results: xr.Dataset) -> xr.Dataset:
    """Results of those protocols whose scores are shares in 0..1, which can be averaged."""
    if "scale" not in results.coords:
        return results
    return results.isel(protocol=np.flatnonzero(results["scale"].values == "share"))


def transductive(results: xr.Dataset, bn_mode: str) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
    """The coordinate of that name: protocols whose scored images take part in a statistic.

    None if the results do not say so.
    """
    if "transductive" not in results:
        return {}
    marks = results["transductive"].sel(bn_mode=bn_mode).values.astype(bool)
    return {"transductive": ("protocol", marks)}


def correlate_protocols(
    results: xr.Dataset,
    *,
    metric: str = "score",
    models: Models = "independent",
    bn_mode: str = "eval",
    dataset: str | None = None,
    by_dataset: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Pearson and Spearman correlation of every two protocols over models, with 95 % intervals.

    Without `dataset`, coefficients are computed on each dataset by itself and then averaged
    over datasets, so that a difference in difficulty between datasets is no agreement between
    protocols. The average is the arithmetic mean of r: with few models a Spearman coefficient
    of exactly 1 is common, and its Fisher z is infinite. The average's interval comes from
    drawing the same models for all datasets, since a model good on one is good on the next.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    metric : variable that is correlated
    models : "independent" leaves out early checkpoints and random weights
    bn_mode : the one BN mode looked at
    dataset : a single dataset instead of the average over all
    by_dataset : also return what is averaged, which takes several times as long
    resamples : bootstrap draws of models
    seed : of these draws

    Returns
    -------
    Dataset with dims (protocol, other)
        `pearson`, `pearson_low`, `pearson_high`, the same of `spearman`, `n_datasets` (those
        averaged) and `n` (models of the smallest of them; with fewer than four there is no
        coefficient, and `n` is the most any dataset has). The coordinate `transductive` (protocol)
        says which see scored images in this BN mode. With `by_dataset` and without
        `dataset`, also `pearson_by_dataset`, ..., `n_by_dataset` (dataset, protocol, other).

    Raises
    ------
    ValueError
        The metric, BN mode, dataset or choice of models does not exist.
    """
    scores = _scores(results, metric, models, bn_mode)
    if dataset is not None:
        scores = scores.sel(dataset=[existing("dataset", dataset, scores["dataset"].values)])
    protocols = scores["protocol"].values
    values = scores.transpose("protocol", "dataset", "model").values
    pairs = [*combinations(range(len(protocols)), 2), *((i, i) for i in range(len(protocols)))]
    first, second = (np.array(side, dtype=int) for side in zip(*pairs, strict=True))
    by_dataset = by_dataset and dataset is None
    single, mean = correlate_pairs(
        values, first, second, resamples=resamples, seed=seed, intervals=by_dataset
    )

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
    return out.assign_attrs(_how(metric, models, bn_mode, resamples, seed, scores))


def correlate_domains(
    results: xr.Dataset,
    *,
    in_domain: str | None = None,
    across: bool = False,
    metric: str = "score",
    models: Models = "independent",
    bn_mode: str = "eval",
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How well scores on the in-domain dataset predict those on every other dataset, over models.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    in_domain : the predicting dataset; by default the one whose `shift` is "in-domain"
    across : also let every protocol in-domain predict every `other` protocol elsewhere
    metric, models, bn_mode, resamples, seed : as in `correlate_protocols`

    Returns
    -------
    Dataset with dims (protocol, dataset), or (protocol, other, dataset) with `across`
        `pearson`, `pearson_low`, `pearson_high`, the same of `spearman`, and `n`. Their averages
        over datasets, by the rule of `correlate_protocols`, are `pearson_mean`,
        `pearson_mean_low`, ..., `n_mean` without the dim dataset. `protocol` is the predictor, and
        the coordinate `transductive` (protocol) says which see scored images in this BN mode.

    Raises
    ------
    ValueError
        No dataset, or more than one, is in-domain and none is named; or a name does not exist.
    """
    scores = _scores(results, metric, models, bn_mode)
    if in_domain is None:
        found = in_domain_datasets(results)
        if len(found) != 1:
            raise ValueError(f"in_domain must name a dataset: {len(found)} have {IN_DOMAIN!r}")
        in_domain = found[0]
    existing("in_domain", in_domain, scores["dataset"].values)
    scores = scores.transpose("protocol", "dataset", "model")
    targets = scores.drop_sel(dataset=in_domain)
    protocols, datasets = scores["protocol"].values, targets["dataset"].values
    count = len(protocols)
    first = np.repeat(np.arange(count), count) if across else np.arange(count)
    second = np.tile(np.arange(count), count) if across else first
    home = scores.sel(dataset=[in_domain]).values
    values = np.concatenate([np.broadcast_to(home, targets.shape), targets.values])
    single, mean = correlate_pairs(values, first, count + second, resamples=resamples, seed=seed)

    dims = ("protocol", "other") if across else ("protocol",)
    shape = (count,) * len(dims)
    out = xr.Dataset(coords=dict.fromkeys(dims, protocols) | {"dataset": datasets})
    for name, column in single.items():
        out[name] = ((*dims, "dataset"), column.reshape(*shape, len(datasets)))
    for name, column in mean.items():
        statistic, *end = name.split("_")  # pearson_low -> pearson_mean_low
        key = name if name == "n_datasets" else "_".join([statistic, "mean", *end])
        out[key] = (dims, column.reshape(shape))
    how = _how(metric, models, bn_mode, resamples, seed, scores)
    out = out.assign_coords(transductive(results, bn_mode))
    return out.assign_attrs(how, in_domain=in_domain)


def _how(
    metric: str, models: str, bn_mode: str, resamples: int, seed: int, scores: xr.DataArray
) -> dict[str, str | int]:
    """Attributes that say how a table of correlations was made."""
    return {
        "metric": metric,
        "models": models,
        "bn_mode": bn_mode,
        "n_models": scores.sizes["model"],
        "resamples": resamples,
        "seed": seed,
    }


def metrics_of(results: xr.Dataset) -> list[str]:
    """Names of what has one value a cell."""
    dims = set(results["score"].dims)
    return [str(name) for name, one in results.data_vars.items() if set(one.dims) == dims]


def existing(what: str, name: str, known: Sequence[str] | npt.NDArray[np.str_]) -> str:
    """The name, if it is a known one; raises ValueError with those that are."""
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(str, known))}, got {name!r}")
    return name


def _scores(results: xr.Dataset, metric: str, models: Models, bn_mode: str) -> xr.DataArray:
    """One metric of the models asked for in one BN mode: (model, dataset, protocol)."""
    existing("metric", metric, metrics_of(results))
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    return of_models(results, models)[metric].sel(bn_mode=bn_mode)


def coefficients(values: Floats, first: Indices, second: Indices) -> dict[str, Floats]:
    """`pearson`, `spearman` and `n`, each (pair, dataset), as of `correlate_pairs`."""
    shape = len(first), values.shape[1]
    x, y = (values[side].reshape(shape[0] * shape[1], values.shape[2]) for side in (first, second))
    both = np.isfinite(x) & np.isfinite(y)
    out: dict[str, Floats] = {name: np.full(len(x), np.nan) for name in STATISTICS}
    for rows, models in rows_alike(both):
        if len(models) >= FEWEST_MODELS:
            pair = x[rows][:, models], y[rows][:, models]
            out["pearson"][rows], out["spearman"][rows] = pearson(*pair), spearman(*pair)
    out["n"] = np.count_nonzero(both, axis=1).astype(float)
    return {name: column.reshape(shape) for name, column in out.items()}


def correlate_pairs(
    values: Floats, first: Indices, second: Indices, *, resamples: int, seed: int,
    intervals: bool = True,
) -> tuple[dict[str, Floats], dict[str, Floats]]:  # fmt: skip
    """Both coefficients of pairs of series over models: on each dataset, and averaged over all.

    Parameters
    ----------
    values : (series, dataset, model) ; a coefficient is over the models that both series have
    first, second : (pair,) the two series of each
    intervals : also those of single datasets, which take their time

    Returns
    -------
    single : `pearson`, `pearson_low`, ..., `n`, each (pair, dataset)
    mean : the same and `n_datasets`, each (pair,)
    """
    single = coefficients(values, first, second)
    how = {"resamples": resamples, "seed": seed}
    one_dataset = values.shape[1] == 1
    if intervals or one_dataset:
        single |= _single_intervals(values, first, second, single, **how)
    given = np.isfinite(single["pearson"])
    n_datasets = {"n_datasets": np.count_nonzero(given, axis=1).astype(float)}
    if one_dataset:  # nothing to average
        return single, {name: column[:, 0] for name, column in single.items()} | n_datasets
    weights = draws_of_models(values.shape[2], **how)
    again = mean_correlations(values, first, second, weights, given)
    mean = {}
    for name, draws in zip(STATISTICS, again, strict=True):
        total = np.where(given, single[name], 0.0).sum(axis=1)
        mean[name] = total / np.where(given.any(axis=1), given.sum(axis=1), np.nan)
        mean[f"{name}_low"], mean[f"{name}_high"] = limits(mean[name], draws, resamples)
    fewest = np.where(given, single["n"], np.inf).min(axis=1, initial=np.inf)
    most = single["n"].max(axis=1, initial=0)
    mean["n"] = np.where(given.any(axis=1), fewest, most)
    return single, mean | n_datasets


def _single_intervals(
    values: Floats, first: Indices, second: Indices, single: dict[str, Floats], *,
    resamples: int, seed: int,
) -> dict[str, Floats]:  # fmt: skip
    """Limits (pair, dataset) of each coefficient, by draws of the models that it is over."""
    given = np.isfinite(single["pearson"])
    out = {f"{name}{end}": np.full(given.shape, np.nan) for name in STATISTICS for end in ENDS[1:]}
    finite = np.isfinite(values)
    for at in range(values.shape[1]):
        pairs = np.flatnonzero(given[:, at])
        for rows, models in rows_alike(finite[first[pairs], at] & finite[second[pairs], at]):
            which = pairs[rows]
            weights = draws_of_models(len(models), resamples=resamples, seed=seed)
            again = mean_correlations(
                values[:, [at]][:, :, models], first[which], second[which], weights,
                given[which][:, [at]],
            )  # fmt: skip
            for name, draws in zip(STATISTICS, again, strict=True):
                low, high = limits(single[name][which, at], draws, resamples)
                out[f"{name}_low"][which, at], out[f"{name}_high"][which, at] = low, high
    return out
