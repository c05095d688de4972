"""How protocols, and domains, predict each other over models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.special import ndtr, ndtri

from featstore.kernels.correlate import bootstrap_correlation, pearson, spearman

FEWEST_MODELS = 4
"""With fewer, a coefficient of correlation says next to nothing, and none is given."""

IN_DOMAIN = "in-domain"
"""Value of the coordinate `shift` of the dataset that the models were pretrained on."""

STATISTICS: tuple[Literal["pearson"], Literal["spearman"]] = ("pearson", "spearman")
_ENDS = ("", "_low", "_high")
CONFIDENCE = 0.95

Models = Literal["independent", "all"]
Floats = npt.NDArray[np.float64]


def is_independent(results: xr.Dataset) -> xr.DataArray:
    """Whether each model counts as one of its own: early checkpoints and random weights do not."""
    # Strings come as fixed-width ones, objects or StringDType, which not all of NumPy takes.
    return xr.DataArray([str(one) in ("late", "") for one in results["stage"].values], dims="model")


def in_domain_datasets(results: xr.Dataset) -> list[str]:
    """Names of the datasets that the models were pretrained on; often one, sometimes none."""
    return [str(name) for name in results["dataset"].values[results["shift"].values == IN_DOMAIN]]


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
        coefficient, and `n` is the most any dataset has). With `by_dataset` and without
        `dataset`, also `pearson_by_dataset`, ..., `n_by_dataset` (dataset, protocol, other).

    Raises
    ------
    ValueError
        The metric, BN mode, dataset or choice of models does not exist.
    """
    scores = _scores(results, metric, models, bn_mode)
    if dataset is not None:
        scores = scores.sel(dataset=[_existing("dataset", dataset, scores["dataset"].values)])
    protocols = scores["protocol"].values
    values = scores.transpose("protocol", "dataset", "model").values
    pairs = [*combinations(range(len(protocols)), 2), *((i, i) for i in range(len(protocols)))]
    first, second = (np.array(side, dtype=int) for side in zip(*pairs, strict=True))
    x, y = values[first], values[second]
    by_dataset = by_dataset and dataset is None
    shown = by_dataset or scores.sizes["dataset"] == 1
    single = _correlate_rows(x, y, resamples=resamples, seed=seed, intervals=shown)
    mean = _average(x, y, single, resamples=resamples, seed=seed)

    def square(column: Floats) -> Floats:
        full = np.empty((len(protocols), len(protocols), *column.shape[1:]))
        full[first, second] = full[second, first] = column
        return full

    variables = {name: (("protocol", "other"), square(column)) for name, column in mean.items()}
    out = xr.Dataset(variables, {"protocol": protocols, "other": protocols})
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
        `pearson_mean_low`, ..., `n_mean` without the dim dataset. `protocol` is the predictor.

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
    _existing("in_domain", in_domain, scores["dataset"].values)
    scores = scores.transpose("protocol", "dataset", "model")
    targets = scores.drop_sel(dataset=in_domain)
    protocols, datasets = scores["protocol"].values, targets["dataset"].values
    count = len(protocols)
    first = np.repeat(np.arange(count), count) if across else np.arange(count)
    second = np.tile(np.arange(count), count) if across else first
    y = targets.values[second]
    x = np.broadcast_to(scores.sel(dataset=in_domain).values[first][:, None, :], y.shape)
    single = _correlate_rows(x, y, resamples=resamples, seed=seed)
    mean = _average(x, y, single, resamples=resamples, seed=seed)

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


def _existing(what: str, name: str, known: Sequence[str] | npt.NDArray[np.str_]) -> str:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(str, known))}, got {name!r}")
    return name


def _scores(results: xr.Dataset, metric: str, models: Models, bn_mode: str) -> xr.DataArray:
    """One metric of the models asked for in one BN mode: (model, dataset, protocol)."""
    _existing("metric", metric, [str(name) for name in results.data_vars])
    _existing("models", models, ["independent", "all"])
    _existing("bn_mode", bn_mode, results["bn_mode"].values)
    scores = results[metric].sel(bn_mode=bn_mode)
    return scores[is_independent(results).values] if models == "independent" else scores


def _correlate_rows(
    x: Floats, y: Floats, *, resamples: int, seed: int, intervals: bool = True
) -> dict[str, Floats]:
    """Both coefficients of x (..., model) and y alike, each over the models that have both."""
    *lead, n_models = x.shape
    x, y = x.reshape(math.prod(lead), n_models), y.reshape(math.prod(lead), n_models)
    both = np.isfinite(x) & np.isfinite(y)
    out = {f"{name}{end}": np.full(len(x), np.nan) for name in STATISTICS for end in _ENDS}
    for row in np.flatnonzero(np.count_nonzero(both, axis=1) >= FEWEST_MODELS):
        pair = x[row, both[row]], y[row, both[row]]
        out["pearson"][row], out["spearman"][row] = pearson(*pair), spearman(*pair)
        for name in STATISTICS if intervals else ():
            rng = np.random.default_rng(seed)  # anew: no row depends on the rows before
            _, out[f"{name}_low"][row], out[f"{name}_high"][row] = bootstrap_correlation(
                *pair, statistic=name, resamples=resamples, rng=rng, confidence=CONFIDENCE
            )
    out["n"] = np.count_nonzero(both, axis=1).astype(float)
    return {name: column.reshape(lead) for name, column in out.items()}


def _average(
    x: Floats, y: Floats, single: dict[str, Floats], *, resamples: int, seed: int
) -> dict[str, Floats]:
    """Coefficients of rows (row, dataset, model) averaged over datasets, with their intervals."""
    given = np.isfinite(single["pearson"])
    if given.shape[1] == 1:  # nothing to average
        out = {name: column[:, 0] for name, column in single.items()}
        return out | {"n_datasets": given[:, 0].astype(float)}
    n_models = x.shape[-1]
    draws = np.random.default_rng(seed).integers(0, n_models, (resamples, n_models))
    drawn = (draws[:, :, None] == np.arange(n_models)).sum(axis=1)  # how often each model is
    weights = np.concatenate([drawn, 1 - np.eye(n_models)])  # the last rows: all but one model

    out = {f"{name}{end}": np.full(len(x), np.nan) for name in STATISTICS for end in _ENDS}
    for row in np.flatnonzero(given.any(axis=1)):
        datasets = np.flatnonzero(given[row])
        again = [_reweighted(x[row, one], y[row, one], weights) for one in datasets]
        for index, name in enumerate(STATISTICS):
            mean = np.mean(single[name][row, datasets])
            values = np.mean([pair[index] for pair in again], axis=0)
            low, high = _bca(mean, values[:resamples], values[resamples:])
            out[name][row], out[f"{name}_low"][row], out[f"{name}_high"][row] = mean, low, high
    out["n_datasets"] = np.count_nonzero(given, axis=1).astype(float)
    fewest = np.where(given, single["n"], np.inf).min(axis=1, initial=np.inf)
    most = single["n"].max(axis=1, initial=0)
    out["n"] = np.where(given.any(axis=1), fewest, most)
    return out


def _reweighted(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Pearson and Spearman of x, y (model,) with each model counted as weights (draw, model) say.

    A weight of two is a model drawn twice, so midranks are sums of weights.
    """
    both = np.isfinite(x) & np.isfinite(y)
    x, y, weights = x[both], y[both], weights[:, both]

    def midranks(values: Floats) -> Floats:
        below = (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])
        return np.asarray(weights @ below.T)

    def moment(values: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold none of the models
            mean = (weights * values).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(mean[:, None])

    def correlation(a: Floats, b: Floats) -> Floats:
        a, b = a - moment(a), b - moment(b)
        spread = np.sqrt(moment(a * a) * moment(b * b))
        with np.errstate(invalid="ignore", divide="ignore"):  # one model many times: no spread
            return np.where(spread > 1e-12, moment(a * b) / spread, np.nan)[:, 0]

    return correlation(x, y), correlation(midranks(x), midranks(y))


def _bca(estimate: float, draws: Floats, without_one: Floats) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987).

    Parameters
    ----------
    estimate : of all models
    draws : (resamples,) of models drawn with replacement; NaN where there was no estimate
    without_one : (n_models,) of all but one model, for the acceleration
    """
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return np.nan, np.nan
    below = (np.mean(draws < estimate) + np.mean(draws <= estimate)) / 2
    pull = np.nanmean(without_one) - without_one[np.isfinite(without_one)]
    size = np.sum(pull**2) ** 1.5
    acceleration = np.sum(pull**3) / (6 * size) if size > 0 else 0.0
    bias = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    shifted = bias + ndtri(np.array([1 - CONFIDENCE, 1 + CONFIDENCE]) / 2)
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)
