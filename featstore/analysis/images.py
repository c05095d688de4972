"""What other test images would make of correlations over models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore.analysis.coefficients import rows_alike
from featstore.analysis.resampling import Bools, Floats
from featstore.analysis.selection import Models, metric_of_images, of_models
from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.kernels.correlate import kendall, pearson, rank_data
from featstore.kernels.intervals import FEWEST_UNITS, Statistic, bca
from featstore.kernels.resample import bootstrap_accuracies
from featstore.results import open_outcomes, records

FOLDS = 50  # of test images, each left out once for the acceleration of `bca`
BLOCK = 32  # accuracies of as many draws are correlated at a time

logger = logging.getLogger(__name__)


def correlate_images(
    root: str | Path = "data/results",
    *,
    datasets: Sequence[str] = (),
    protocols: Sequence[str] = (),
    bn_mode: str = "eval",
    seed: int = 0,
    models: Models = "independent",
    statistics: Sequence[Statistic] = ("pearson", "spearman"),
    resamples: int = 1000,
    splits: int = 50,
    seed_of_draws: int = 0,
    skip_errors: bool = False,
) -> xr.Dataset:
    """Correlation of every two protocols over models, as far as test images decide it.

    Scores of two protocols come of the same test images, whose luck they share: it makes them
    agree more than their accuracies on all images would. So one protocol is also scored on a
    random half of the images and the other on the rest, where no luck is shared. Half as many
    images make more noise, which takes away from agreement; how much, a protocol shows by its
    agreement with itself across halves, its reliability. Divided by the root of both reliabilities
    the noise is gone as well. Source: Spearman, *The proof and measurement of association between
    two things* (1904); it is exact for Pearson.

    Intervals are of images drawn anew, the same for all models and protocols, with the models as
    they are; those over models, of `correlate_protocols`, say something else.

    Parameters
    ----------
    root : folder of the records
    datasets : by default all with such cells
    protocols : by default all that keep what each image of one label was told to be
    bn_mode, seed : of the cells
    models : "independent" leaves out early checkpoints and random weights
    statistics : which of `pearson`, `spearman` and `kendall`
    resamples : bootstrap draws of test images; where scores are means per class, within classes
    splits : random halves, which the coefficients are averaged over
    seed_of_draws : of draws and halves
    skip_errors : leave out records that are damaged, and say which

    Returns
    -------
    Dataset with dims (dataset, protocol, other)
        `pearson` of the whole test set, its 95 % interval `pearson_low` and `pearson_high` (BCa);
        `pearson_split`, mean over halves, on the diagonal the reliability; `pearson_same_half`, of
        both on one half, so that the difference of these two is what shared images make;
        `pearson_disattenuated`, above 1 at times and NaN where a reliability is not above 0; the
        same of other statistics.
        `n`, models that both have: with fewer than four there is no number. `n_images` and
        `n_cells`, those with a single label, by dataset.

    Raises
    ------
    FeatStoreError
        As of `open_outcomes`; a dataset that was asked for is of another metric than `top1` and
        `mean_per_class`; or no dataset has such cells.
    ValueError
        A statistic, BN mode or choice of models does not exist; there are no draws or halves.
    """
    for one in statistics:
        if one not in _KERNELS:
            raise ValueError(f"statistics must be of {', '.join(_KERNELS)}, got {one!r}")
    if min(resamples, splits) < 1:
        raise ValueError(f"resamples and splits must be at least 1, got {resamples} and {splits}")
    cells: dict[str, Any] = {"protocols": protocols, "bn_mode": bn_mode, "seed": seed}
    found = []
    damaged: list[FeatStoreError] | None = [] if skip_errors else None
    known = records(root, seed=seed, damaged=damaged)
    for name in datasets or sorted({str(one["dataset"]) for one in known}):
        try:
            outcomes = open_outcomes(root, dataset=name, skip_errors=skip_errors, **cells)
            metric_of_images(outcomes)
        except (CorruptStoreError, StoreMismatchError):
            raise
        except FeatStoreError:  # none, of several labels, or of another metric
            if datasets:
                raise
            continue
        chosen = of_models(outcomes, models)
        if not chosen["there"].any():
            continue
        rng = np.random.default_rng(seed_of_draws)
        found.append(
            _correlate(chosen, statistics, resamples, splits, rng).assign_coords(dataset=name)
        )
    for fault in damaged or ():
        logger.warning("left out: %s", fault)
    if not found:
        raise FeatStoreError(
            f"no dataset in {root} has cells of {models} models in BN mode {bn_mode} with seed "
            f"{seed} that keep which test images were told right. Run: featstore probe -p logreg"
        )
    out = xr.concat(
        found, "dataset", join="outer", fill_value={"n": 0}, coords="minimal", compat="override"
    )
    how = {"resamples": resamples, "splits": splits, "seed_of_draws": seed_of_draws}
    return out.assign_attrs(bn_mode=bn_mode, seed=seed, models=models, **how)


def _correlate(
    outcomes: xr.Dataset, statistics: Sequence[Statistic], resamples: int, splits: int,
    rng: np.random.Generator,
) -> xr.Dataset:  # fmt: skip
    """The Dataset of one dataset."""
    there = outcomes["there"].transpose("model", "protocol").values.astype(bool)
    correct = outcomes["correct"].transpose("image", "model", "protocol").values[:, there] == 1
    strata = outcomes["label"].values if outcomes.attrs["metric"] == "mean_per_class" else None
    n_images, n_cells = correct.shape

    fold = rng.permutation(n_images) % min(FOLDS, n_images)
    kept = np.concatenate(
        [np.ones((1, n_images), bool), fold != np.arange(fold.max() + 1)[:, None]]
    )
    half = _halves(n_images, strata, splits, rng)
    scores = {
        "whole": _accuracies(correct, kept, strata),
        "draws": bootstrap_accuracies(correct, resamples=resamples, rng=rng, strata=strata),
        "half": _accuracies(correct, half, strata),
        "rest": _accuracies(correct, ~half, strata),
    }
    cube = {name: _by_model(values, there) for name, values in scores.items()}
    dims = ("protocol", "other")
    shared = there.T.astype(float) @ there
    out = xr.Dataset(
        {"n": (dims, shared.astype(int)), "n_images": n_images, "n_cells": n_cells},
        {"protocol": outcomes["protocol"].values, "other": outcomes["protocol"].values},
    )
    for name in statistics:
        whole = _over_models(cube["whole"], cube["whole"], there, name)
        draws = _over_models(cube["draws"], cube["draws"], there, name)
        low, high = bca(whole[..., 0], draws, whole[..., 1:])
        split = _mean(_over_models(cube["half"], cube["rest"], there, name))
        split = (split + split.T) / 2  # each of the two on either half
        same = [_mean(_over_models(cube[one], cube[one], there, name)) for one in ("half", "rest")]
        own = np.where(np.diag(split) > 0, np.diag(split), np.nan)
        columns = {"": whole[..., 0], "_low": low, "_high": high, "_split": split}
        columns["_same_half"] = (same[0] + same[1]) / 2
        columns["_disattenuated"] = split / np.sqrt(own[:, None] * own)
        out = out.assign({f"{name}{end}": (dims, column) for end, column in columns.items()})
    return out


def _halves(
    n_images: int, strata: np.ndarray | None, splits: int, rng: np.random.Generator
) -> Bools:
    """Random halves (splits, image) of images, or of those of each stratum."""
    strata = np.zeros(n_images) if strata is None else strata
    half = np.empty((splits, n_images), dtype=bool)
    for one in half:
        one[np.lexsort((rng.random(n_images), strata))] = np.arange(n_images) % 2
    return half


def _accuracies(correct: Bools, kept: Bools, strata: np.ndarray | None) -> Floats:
    """Accuracy (choice, cell) over the images (choice, image) that are kept of all.

    With strata it is the mean over those of which an image is kept.
    """
    weights = kept.astype(float)
    if strata is not None:
        member = np.unique(strata, return_inverse=True)[1]
        size = np.stack([np.bincount(member, one, member.max() + 1) for one in weights])
        weights /= np.maximum(size, 1)[:, member]
    weights /= weights.sum(axis=1, keepdims=True)
    total = np.zeros((len(kept), correct.shape[1]))
    for first in range(0, len(correct), 4096):  # float64 of a few images at a time
        rows = slice(first, first + 4096)
        total += weights[:, rows] @ correct[rows].astype(float)
    return np.round(total, 12)  # what ties shall not differ by rounding


def _by_model(values: Floats, there: Bools) -> Floats:
    """Values (choice, cell) as (choice, model, protocol), NaN where there is no cell."""
    full = np.full((len(values), *there.shape), np.nan)
    full[:, there] = values
    return full


def _over_models(x: Floats, y: Floats, there: Bools, statistic: Statistic) -> Floats:
    """Correlations (protocol, other, choice) over the models that both have."""
    n_protocols = there.shape[1]
    out = np.full((n_protocols, n_protocols, len(x)), np.nan)
    groups = list(rows_alike(there.T))
    prepare, correlate = _KERNELS[statistic]
    for first in range(0, len(x), BLOCK):
        choices = slice(first, first + BLOCK)
        for protocols, some in groups:
            for others, more in groups:
                both = np.intersect1d(some, more)
                if len(both) < FEWEST_UNITS:
                    continue
                a, b = (
                    prepare(one[choices][:, both][:, :, columns].transpose(2, 0, 1))
                    for one, columns in ((x, protocols), (y, others))
                )
                out[protocols[:, None], others, choices] = correlate(a[:, None], b[None])
    return out


def _mean(values: Floats) -> Floats:
    """Mean over the last axis of what is there; NaN of nothing."""
    count = np.count_nonzero(np.isfinite(values), axis=-1)
    return np.asarray(np.nansum(values, axis=-1) / np.where(count > 0, count, np.nan))


_KERNELS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "pearson": (np.asarray, pearson),
    "spearman": (rank_data, pearson),
    "kendall": (np.asarray, kendall),
}
