"""What a correlation owes to each model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from featstore.analysis.coefficients import coefficients, mean_correlations
from featstore.analysis.correlate import groups_of
from featstore.analysis.resampling import FEWEST_MODELS, STATISTICS, draws_of
from featstore.analysis.selection import Models, Scale, of_models, scores_of
from featstore.results import check_results


def influence(
    results: xr.Dataset,
    *,
    metric: str = "score",
    scale: Scale = "raw",
    models: Models = "independent",
    bn_mode: str = "eval",
    dataset: str | None = None,
    partial: str = "",
) -> xr.Dataset:
    """What each correlation of `correlate_protocols` becomes without each model.

    Parameters
    ----------
    results, metric, scale, models, bn_mode, dataset, partial : as there

    Returns
    -------
    Dataset with dims (protocol, other, model)
        `pearson`, `spearman` and `kendall` without the model, mean over datasets, and
        `pearson_change`, ..., what it has become less what it is with all. NaN where fewer than
        four others are left, or the model has no part in the pair.

    Raises
    ------
    ValueError
        As `correlate_protocols`.
    """
    check_results(results, seeds=True)
    scores = scores_of(
        results, metric=metric, scale=scale, models=models, bn_mode=bn_mode, dataset=dataset
    )
    values = scores.transpose("protocol", "dataset", "model").values
    groups = groups_of(of_models(results, models), partial)
    count, n_models = len(values), values.shape[2]
    first, second = (side.ravel() for side in np.indices((count, count)))
    single = coefficients(values, first, second, groups)
    given = np.isfinite(single["pearson"])
    without = draws_of(np.arange(n_models), resamples=0, seed=0)
    again = mean_correlations(values, first, second, without, given, groups=groups)
    whole = mean_correlations(values, first, second, np.ones((1, n_models)), given, groups=groups)
    both = np.isfinite(values[first]) & np.isfinite(values[second]) & given[:, :, None]
    thin = (both.sum(axis=2) <= FEWEST_MODELS)[:, :, None]  # without one of four there is no r
    enough = both.any(axis=1) & ~(both & thin).any(axis=1)
    names = scores["protocol"].values
    out = xr.Dataset(coords={"protocol": names, "other": names, "model": scores["model"].values})
    for name in STATISTICS:
        cube = np.where(enough, again[name], np.nan)
        for key, column in ((name, cube), (f"{name}_change", cube - whole[name])):
            out[key] = (("protocol", "other", "model"), column.reshape(count, count, n_models))
    told = {"metric": metric, "scale": scale, "models": models, "bn_mode": bn_mode}
    return out.assign_attrs(told, partial=partial)
