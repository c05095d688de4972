"""How well accuracy elsewhere is foretold from cheap scores in-domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from scipy.special import expit

from featstore.analysis.coefficients import rows_alike
from featstore.analysis.compare import mean, only
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
from featstore.results import check_results

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
        itself, of the target where every model has it, else of the first predictor that is a share
        (attribute `naive_in_domain`). `mae` (dataset), the mean absolute error in
        shares, `mae_naive` (baseline, dataset), `spearman` (dataset) of foretold with true over
        models, and `n` (dataset); over all cells `mae_mean` and `mae_naive_mean` (baseline), over
        datasets `spearman_mean`. `skill` (baseline), 1 - mae_mean / mae_naive_mean, is 1 of perfect
        foresight and 0 of what is no better than the baseline. `skill_low` and `skill_high` are
        its 95 % limits, of a jackknife of the logarithm of the ratio over what is left out
        together, models of one method or clusters, with regressions made anew. What would be
        learnt from fewer than four models is not foretold. The dim predictor has the protocols
        that were used.

    Raises
    ------
    ValueError
        A name does not exist; the target is no share; there is no predictor, or the target is
        foretold from itself; the penalty is negative; no dataset, or more than one, is in-domain;
        or these are no results.
    """
    check_results(results)
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
    by_model = leave == "model"
    groups = unit if by_model else cluster
    predicted, average = _foretold(x, y, scores, groups, penalty, by_model)
    told = np.isfinite(predicted)
    known = [name for name in (target, *predictors) if name in shares(cells)["protocol"].values]
    known = [name for name in known if raw.sel(protocol=name, dataset=home).notnull().all()]
    itself = raw.sel(protocol=known[0], dataset=home).values if known else np.nan
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
    without_one = []
    for one in np.unique(groups[told.any(axis=1 if by_model else 0)]):
        gone = groups == one
        rest = only(~(gone[:, None] if by_model else gone), y)
        again = _foretold(x, rest, scores, groups, penalty, by_model)
        without_one.append(_log_ratios(scores, again[0], np.stack([again[1], itself])))
    return _scored(out, np.reshape(without_one, (-1, 2))).assign_attrs(
        target=target,
        leave=leave,
        in_domain=home,
        naive_in_domain=known[0] if known else "",
        penalty=penalty,
        models=models,
        bn_mode=bn_mode,
    )


def ridge(x: Floats, y: Floats, at: Floats, penalty: float) -> Floats:
    """What ridge regression with an intercept says (m, k) of other rows.

    Parameters
    ----------
    x : (n, p) predictors, which are standardised ; y : (n, k), each column by itself
    at : (m, p) the other rows
    penalty : on the sum of squared coefficients, beside the sum of squared residuals
    """
    centre, spread, width = x.mean(axis=0), x.std(axis=0), x.shape[1]
    spread = np.where(spread > 0, spread, 1.0)
    rows = np.concatenate([(x - centre) / spread, np.sqrt(penalty) * np.eye(width)])
    middle = y.mean(axis=0)
    apart = np.concatenate([y - middle, np.zeros((width, y.shape[1]))])
    weight = np.linalg.lstsq(rows, apart, rcond=None)[0]
    return np.asarray(middle + (at - centre) / spread @ weight)


def _foretold(
    x: Floats, y: Floats, scores: Floats, groups: Indices, penalty: float, by_model: bool
) -> tuple[Floats, Floats]:
    """Scores (model, dataset) foretold without each group, and the mean of those learnt from.

    Parameters
    ----------
    x : (model, predictor) ; y : (model, dataset), NaN of what plays no part
    groups : (model,) or, unless `by_model`, (dataset,) what is left out together
    """
    predicted, average = np.full((2, *y.shape), np.nan)
    known = np.isfinite(y)
    for group in np.unique(groups):
        out = groups == group
        if by_model:  # datasets with the same models share their regression
            for columns, rows in rows_alike((known & ~out[:, None]).T):
                if len(rows) >= FEWEST_MODELS:
                    cells = np.ix_(out, columns)
                    learnt = np.ix_(rows, columns)
                    predicted[cells] = expit(ridge(x[rows], y[learnt], x[out], penalty))
                    average[cells] = scores[learnt].mean(axis=0)
        else:
            rows, columns = np.nonzero(known & ~out)
            if len(np.unique(rows)) >= FEWEST_MODELS:
                one = ridge(x[rows], y[rows, columns][:, None], x, penalty)
                predicted[:, out] = expit(one)
                average[:, out] = scores[rows, columns].mean()
    return only(known, predicted), only(known, average)


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
    if "seconds" not in cells:
        raise ValueError("predictors must be named: results do not say what takes how many seconds")
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


def _scored(found: xr.Dataset, without_one: Floats) -> xr.Dataset:
    """Forecasts with their errors, and the skill with limits by what it is without each group."""
    true = found["true"]
    error, naive = abs(found["predicted"] - true), abs(found["naive"] - true)
    pairs = zip(found["predicted"].values.T, true.values.T, strict=True)
    found["spearman"] = ("dataset", [_spearman(*pair) for pair in pairs])
    found["spearman_mean"] = found["spearman"].mean()
    found["mae"], found["mae_naive"] = error.mean("model"), naive.mean("model")
    found["mae_mean"] = error.mean()
    found["mae_naive_mean"] = naive.mean(["model", "dataset"])
    # The logarithm of the ratio of errors is nearer to normal, and no skill exceeds 1.
    ratio = _log_ratios(true.values, found["predicted"].values, found["naive"].values)
    ends = jackknife(ratio, without_one.T, statistic=None)
    for name, one in zip(("skill", "skill_high", "skill_low"), (ratio, *ends), strict=True):
        found[name] = ("baseline", 1 - np.exp(one))
    return found


def _log_ratios(true: Floats, predicted: Floats, naive: Floats) -> Floats:
    """Logarithm (baseline,) of the mean error over each baseline's; NaN where either is 0.

    Parameters
    ----------
    true, predicted : (model, dataset) ; naive : (baseline, model, dataset)
    """
    told = np.isfinite(predicted)
    errors = [mean(only(told, np.abs(one - true)), (0, 1)) for one in (predicted, *naive)]
    some = np.where(np.array(errors) > 0, errors, np.nan)
    return np.asarray(np.log(some[0] / some[1:]))


def _spearman(predicted: Floats, true: Floats) -> float:
    """Rank correlation of models that have both; NaN of fewer than four."""
    both = np.isfinite(predicted) & np.isfinite(true)
    if np.count_nonzero(both) < FEWEST_MODELS:
        return np.nan
    return float(spearman(predicted[both], true[both]))
