"""How far protocols lie from one of them: in score, in the ranking of models, in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from featstore.analysis.pairs import correlate_pairs
from featstore.analysis.resampling import (
    STATISTICS,
    Bools,
    Floats,
    Resampling,
    mean_interval,
    units_of,
)
from featstore.analysis.selection import (
    ENDS,
    Models,
    existing,
    of_models,
    shares,
    transductive,
)
from featstore.results import check_results, same_metric


def compare_protocols(
    results: xr.Dataset,
    reference: str,
    others: Sequence[str],
    *,
    bn_mode: str = "eval",
    models: Models = "independent",
) -> xr.Dataset:
    """What it changes to take another protocol instead of the reference.

    Of each protocol only cells count that the reference has as well.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    reference : protocol that the others stand for, such as `linear-marks`
    others : protocols, such as `linear-marks-1view`
    bn_mode : of the backbone, the one looked at; what is trained on images has cells of models with
        BatchNorm in `eval` only
    models : "independent" leaves out early checkpoints and random weights

    Returns
    -------
    Dataset with the dim protocol, in the order of `others`
        Each of the following, and the limits `_low` and `_high` of its 95 % interval over models:
        `difference` of the score, the protocol's minus the reference's, mean over models of their
        means over those datasets where both have the same metric, NaN where scores are no shares;
        `places` that a model moves in the
        ranking, up or down, mean as of `difference`; `spearman`, `pearson` and `kendall` with the
        reference, mean over datasets. Fewer than four models have no interval and no coefficient.
        Besides, `seconds` and `reference_seconds` of the median cell, `n_models`, `n_datasets`. The
        coordinate `transductive` says which see scored images in this BN mode. The attribute
        `reference` names it, and `not_subtracted` the cells left out of `difference` since the
        reference's are of another metric.

    Raises
    ------
    ValueError
        A protocol, the BN mode or the choice of models does not exist, or these are no results.
    """
    check_results(results, "seconds")
    results = of_models(results, models)
    protocols = [str(name) for name in results["protocol"].values]
    existing("reference", reference, protocols)
    others = [existing("others", name, protocols) for name in others]
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    cells = results[["score", "seconds"]].sel(bn_mode=bn_mode, drop=True)
    after, before = cells.sel(protocol=others), cells.sel(protocol=reference, drop=True)
    there = after["score"].notnull() & before["score"].notnull()
    sides = [one.where(there).transpose("protocol", "dataset", "model") for one in (before, after)]
    seconds = [one["seconds"].median(["model", "dataset"]).values for one in sides]
    everyone = np.ones(results.sizes["model"], dtype=bool)
    scheme = Resampling(units_of(results))
    can_average = {str(name) for name in shares(results)["protocol"].values}
    both = np.array([{name, reference} <= can_average for name in others], bool)[:, None]
    alike = np.array([same_metric(results, name, reference).values for name in others], bool)
    alike = alike.reshape(len(others), results.sizes["dataset"])
    columns = moves(
        sides[0]["score"].values, sides[1]["score"].values, everyone, scheme, subtract=both & alike
    )
    odd = both & ~alike & there.any("model").transpose("protocol", "dataset").values
    datasets = results["dataset"].values
    columns |= {"reference_seconds": seconds[0], "seconds": seconds[1]}
    del columns["n_ranked"]  # all that there are
    return xr.Dataset(
        {name: ("protocol", column) for name, column in columns.items()},
        {"protocol": others} | transductive(results.sel(protocol=others), bn_mode),
        {
            "reference": reference,
            "bn_mode": bn_mode,
            "models": models,
            "not_subtracted": [f"{others[i]} on {datasets[j]}" for i, j in np.argwhere(odd)],
        },
    )


def moves(
    before: Floats, after: Floats, changed: Bools, scheme: Resampling,
    subtract: Bools | bool = True,
) -> dict[str, Floats]:  # fmt: skip
    """What became of scores and ranks, as columns (protocol,).

    Parameters
    ----------
    before, after : (protocol, dataset, model) ; NaN in both where either is missing
    changed : (model,) whose mean difference is wanted; ranks are among all
    scheme : how intervals over models are made
    subtract : (protocol, dataset) whose scores are of the same kind; of others there is no
        difference

    Returns
    -------
    `difference`, `places`, `pearson`, `spearman` and `kendall`, each with `_low` and `_high`;
    `n_models`, `n_ranked` and `n_datasets`
    """
    count = len(before)
    there = np.isfinite(before)
    same = np.asarray(subtract)[..., None]
    out: dict[str, Floats] = {
        "n_models": np.count_nonzero((there & changed).any(axis=1), axis=1),
        "n_ranked": np.count_nonzero(there.any(axis=1), axis=1),
        "n_datasets": np.count_nonzero(there.any(axis=2), axis=1),
    }
    by_model = {
        "difference": mean(only(there & changed & same, after - before), 1),
        "places": mean(np.abs(_ranks(after) - _ranks(before)), 1),
    }
    for name, rows in by_model.items():
        found = np.array([mean_interval(row, scheme.units) for row in rows], dtype=float)
        for end, column in zip(ENDS, found.reshape(count, len(ENDS)).T, strict=True):
            out[f"{name}{end}"] = column
    places = np.arange(count)
    _, averaged = correlate_pairs(
        np.concatenate([before, after]), places, count + places, scheme=scheme, by_dataset=False
    )
    return out | {f"{name}{end}": averaged[f"{name}{end}"] for name in STATISTICS for end in ENDS}


def only(mask: Bools, values: Floats) -> Floats:
    """Values where the mask holds, else NaN."""
    return np.where(mask, values, np.nan)


def mean(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """Mean of what is there; NaN of nothing."""
    some = np.isfinite(values)
    total = np.where(some, values, 0.0).sum(axis=axis)
    count = np.count_nonzero(some, axis=axis)
    return np.asarray(total / np.where(count > 0, count, np.nan))


def _ranks(scores: Floats) -> Floats:
    """Ranks over the last axis, the highest is 1, equals share theirs; NaN has none."""
    above = scores[..., None, :] > scores[..., :, None]
    equal = scores[..., None, :] == scores[..., :, None]
    return only(np.isfinite(scores), above.sum(axis=-1) + (equal.sum(axis=-1) + 1) / 2)
