"""How well accuracy elsewhere is foretold from cheap scores in-domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from scipy.special import expit

from featstore.analysis.compare import only
from featstore.analysis.resampling import FEWEST_MODELS, Floats, Indices, clusters_of, units_of
from featstore.analysis.selection import (
    Models,
    existing,
    in_domain_datasets,
    of_models,
    scores_of,
    shares,
)
from featstore.kernels.correlate import spearman
from featstore.kernels.intervals import jackknife

CHEAP = 0.1
"""Share of the target's seconds that a predictor takes at most, where none is named."""


def forecast(
    results: xr.Dataset,
    *,
    target: str,
    datasets: Sequence[str] = (),
    predictors: Sequence[str] = (),
    leave: Literal["model", "dataset"] = "model",
    in_domain: str | None = None,
    penalty: float = 1.0,
    models: Models = "independent",
    bn_mode: str = "eval",
) -> xr.Dataset:
    """Scores on datasets foretold from in-domain scores, by what was learnt on others.

    Ridge regression of the logit of the target's scores on the predictors' in-domain scores (their
    logits where they are shares), each standardised; with one predictor and a penalty of 0 it is a
    straight line. A model's score on a dataset is foretold

    * `leave="model"`: from those of other models on the same dataset. What counts as one draw with
      it (see `units_of`: its method in another backbone, its lineage) is not among these.
    * `leave="dataset"`: from those of all models on other datasets. Datasets of its cluster are
      not among these.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    target : protocol whose scores are foretold; they must be shares
    datasets : on which; by default all but the in-domain one
    predictors : protocols whose in-domain scores are looked at; by default all that have them of
        every model, and whose median cell takes a tenth of the target's seconds at most
    leave : what is left out and foretold
    in_domain : the predicting dataset; by default the one whose `shift` is "in-domain"
    penalty : on the sum of squared coefficients, beside the sum of squared residuals
    models, bn_mode : as in `correlate_protocols`

    Returns
    -------
    Dataset with dims (model, dataset, baseline)
        `predicted` and `true` (model, dataset); `naive` (baseline, model, dataset), what is said
        without regression: the `mean` of the scores it is learnt from, and the `in-domain` score
        itself, of the first predictor that is a share. `mae` (dataset), the mean absolute error in
        shares, `mae_naive` (baseline, dataset), `spearman` (dataset) of foretold with true over
        models, and `n` (dataset); over all cells `mae_mean` and `mae_naive_mean` (baseline), over
        datasets `spearman_mean`. `skill` (baseline), 1 - mae_mean / mae_naive_mean, is 1 of perfect
        foresight and 0 of what is no better than the baseline. `skill_low` and `skill_high` are
        its 95 % limits, of a jackknife of the logarithm of the ratio over what is left out
        together: models of one method, or clusters, with the forecasts as they are. What would
        be learnt from fewer than four models is not foretold. The dim predictor has the protocols
        that were used.

    Raises
    ------
    ValueError
        A name does not exist; the target is no share; there is no predictor, or the target is
        foretold from itself; the penalty is negative; no dataset, or more than one, is in-domain.
    """
    existing("leave", leave, ["model", "dataset"])
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    existing("target", target, [str(name) for name in shares(results)["protocol"].values])
    if not penalty >= 0:
        raise ValueError(f"penalty must be 0 or more, got {penalty}")
    home, chosen = _places(results, in_domain, datasets)
    cells = of_models(results, models).sel(bn_mode=[bn_mode])
    predictors = _predictors(cells, target, home, predictors)
    if home in chosen and target in predictors:
        raise ValueError(f"predictors must not have the target, {target}, where it is on {home}")

    elsewhere = {"protocol": target, "dataset": chosen}
    raw, odds = (scores_of(cells, scale=one, bn_mode=bn_mode) for one in ("raw", "logit"))
    scores, y = (one.sel(elsewhere).transpose("model", "dataset").values for one in (raw, odds))
    x = odds.sel(protocol=predictors, dataset=home).transpose("model", "protocol").values
    unit, cluster = units_of(cells), clusters_of(cells.sel(dataset=chosen))
    y = only(np.isfinite(x.sum(axis=1, keepdims=True)), y)
    predicted, average = np.full((2, *y.shape), np.nan)
    for model, dataset in np.ndindex(y.shape):
        learnt = np.isfinite(y)
        if leave == "model":
            learnt &= (unit != unit[model])[:, None] & (np.arange(len(chosen)) == dataset)
        else:
            learnt &= cluster != cluster[dataset]
        rows = np.nonzero(learnt)[0]
        if np.isfinite(y[model, dataset]) and len(np.unique(rows)) >= FEWEST_MODELS:
            predicted[model, dataset] = expit(ridge(x[rows], y[learnt], x[model], penalty))
            average[model, dataset] = scores[learnt].mean()
    told = np.isfinite(predicted)
    share = [name for name in predictors if name in shares(cells)["protocol"].values]
    itself = raw.sel(protocol=share[0], dataset=home).values if share else np.nan
    itself = np.broadcast_to(np.reshape(itself, (-1, 1)), y.shape)
    naive = np.stack([average, only(told, itself)])
    out = xr.Dataset(
        {
            "predicted": (("model", "dataset"), predicted),
            "true": (("model", "dataset"), only(told, scores)),
            "naive": (("baseline", "model", "dataset"), naive),
            "n": ("dataset", told.sum(axis=0)),
        },
        {name: cells[name] for name in cells.coords if cells[name].dims == ("model",)}
        | {"dataset": chosen, "baseline": ["mean", "in-domain"], "predictor": list(predictors)},
    )
    return _scored(out, unit if leave == "model" else cluster, leave).assign_attrs(
        target=target, leave=leave, in_domain=home, penalty=penalty, models=models, bn_mode=bn_mode
    )


def ridge(x: Floats, y: Floats, at: Floats, penalty: float) -> float:
    """What ridge regression with an intercept says of one more row.

    Parameters
    ----------
    x : (n, p) predictors, which are standardised ; y : (n,)
    at : (p,) the row
    penalty : on the sum of squared coefficients, beside the sum of squared residuals
    """
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    width = x.shape[1]
    rows = np.concatenate([(x - centre) / spread, np.sqrt(penalty) * np.eye(width)])
    weight = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(width)]), rcond=None)[0]
    return float(y.mean() + (at - centre) / spread @ weight)


def _places(
    results: xr.Dataset, in_domain: str | None, datasets: Sequence[str]
) -> tuple[str, list[str]]:
    """The predicting dataset and those that are foretold."""
    names = [str(name) for name in results["dataset"].values]
    homes = in_domain_datasets(results)
    if in_domain is None and len(homes) != 1:
        raise ValueError(f"in_domain must name a dataset: {len(homes)} are in-domain")
    home = existing("in_domain", homes[0] if in_domain is None else in_domain, names)
    chosen = [existing("datasets", name, names) for name in dict.fromkeys(datasets)]
    return home, chosen or [name for name in names if name != home]


def _predictors(cells: xr.Dataset, target: str, home: str, asked: Sequence[str]) -> list[str]:
    """Protocols asked for, or those that are cheap and have an in-domain score of every model."""
    names = [str(name) for name in cells["protocol"].values]
    if asked:
        return [existing("predictors", name, names) for name in dict.fromkeys(asked)]
    cells = cells.squeeze("bn_mode")
    seconds = cells["seconds"].where(cells["score"].notnull()).median(["model", "dataset"])
    cheap = seconds <= CHEAP * seconds.sel(protocol=target, drop=True)
    whole = cells["score"].sel(dataset=home).notnull().all("model")
    found = [name for name, fit in zip(names, (cheap & whole).values, strict=True) if fit]
    if not found:
        raise ValueError(
            f"predictors must be named: no protocol with all scores on {home} takes a tenth of the "
            f"seconds of {target} at most"
        )
    return found


def _scored(found: xr.Dataset, unit: Indices, leave: str) -> xr.Dataset:
    """Forecasts with their errors; those of one unit are left out together."""
    true = found["true"]
    error, naive = abs(found["predicted"] - true), abs(found["naive"] - true)
    pairs = zip(found["predicted"].values.T, true.values.T, strict=True)
    found["spearman"] = ("dataset", [_spearman(*pair) for pair in pairs])
    found["spearman_mean"] = found["spearman"].mean()
    found["mae"], found["mae_naive"] = error.mean("model"), naive.mean("model")
    found["mae_mean"] = error.mean()
    found["mae_naive_mean"] = naive.mean(["model", "dataset"])
    # The logarithm of the ratio of errors is nearer to normal, and no skill exceeds 1.
    ratio = _log_ratio(error, naive)
    kept = unit != np.arange(unit.max(initial=-1) + 1)[:, None]
    rest = [
        _log_ratio(error.isel({leave: one}), naive.isel({leave: one}))
        for one in kept
        if error.isel({leave: ~one}).notnull().any()
    ]
    ends = jackknife(ratio, np.reshape(rest, (len(rest), len(ratio))).T, statistic=None)
    for name, one in zip(("skill", "skill_high", "skill_low"), (ratio, *ends), strict=True):
        found[name] = ("baseline", 1 - np.exp(one))
    return found


def _log_ratio(error: xr.DataArray, naive: xr.DataArray) -> Floats:
    """Logarithm (baseline,) of the mean error over that of each baseline; NaN where either is 0."""
    ratio = (error.mean() / naive.mean(["model", "dataset"])).values
    return np.asarray(np.log(np.where(ratio > 0, ratio, np.nan)))


def _spearman(predicted: Floats, true: Floats) -> float:
    """Rank correlation of models that have both; NaN of fewer than four."""
    both = np.isfinite(predicted) & np.isfinite(true)
    if np.count_nonzero(both) < FEWEST_MODELS:
        return np.nan
    return float(spearman(predicted[both], true[both]))
