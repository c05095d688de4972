"""What share of an expensive protocol's ranking a cheap one has, for what share of its seconds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import xarray as xr

from featstore.analysis.compare import mean
from featstore.analysis.predict import predictors
from featstore.analysis.resampling import FEWEST_MODELS, Bools, Floats
from featstore.analysis.selection import ENDS, Models, existing, scores_of
from featstore.kernels.correlate import spearman
from featstore.results import check_results


def pareto(
    results: xr.Dataset,
    target: str,
    *,
    models: Models = "independent",
    bn_mode: str = "eval",
    reliability: float = 1.0,
    correlations: xr.Dataset | None = None,
) -> xr.Dataset:
    """All other protocols by what they cost and how well they rank models as the target does.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    target : protocol that is to be predicted, such as a fine-tuning
    reliability : Spearman's correlation of the target with itself measured anew, by another seed
        or on other test images, in 0..1. No more than about its square root is to be had of
        anything that errs by itself (Spearman 1904)
    models, bn_mode, correlations : as in `predictors`

    Returns
    -------
    Dataset with the dim protocol, in order of cost; those of unknown cost last
        What `predictors` gives; `share_ranking`, the coefficient over `reliability`, with `_low`
        and `_high`: 1 is to go with the target as well as its own repetition does;
        `share_seconds`, the median cell's seconds over the target's; and `efficient`: no other
        protocol costs no more and has as large a coefficient or a larger one, but for one that is
        equal in both.

    Raises
    ------
    ValueError
        The target, BN mode or choice of models does not exist; `reliability` is not in 0..1.
    """
    if not 0 < reliability <= 1:
        raise ValueError(f"reliability must lie above 0 and not above 1, got {reliability}")
    found = predictors(results, target, models=models, bn_mode=bn_mode, correlations=correlations)
    for end in ENDS:
        found[f"share_ranking{end}"] = found[f"spearman{end}"] / reliability
    found["share_seconds"] = found["seconds"] / found.attrs["seconds"]
    found["efficient"] = ("protocol", front(found["seconds"].values, found["spearman"].values))
    order = np.lexsort((-found["spearman"].values, found["seconds"].values))  # NaN comes last
    return found.isel(protocol=order).assign_attrs(reliability=reliability)


def seed_reliability(
    results: xr.Dataset, protocol: str, *, models: Models = "independent", bn_mode: str = "eval"
) -> float:
    """Spearman's correlation over models of a protocol with itself under another seed.

    The mean over pairs of seeds and over datasets; NaN if no two seeds have four models in common.

    Parameters
    ----------
    results : of `open_results(seeds=True)`
    protocol : such as a fine-tuning
    models, bn_mode : as in `correlate_protocols`

    Raises
    ------
    ValueError
        The protocol, BN mode or choice of models does not exist, these are no results, or they have
        no seeds.
    """
    check_results(results, seeds=True)
    existing("protocol", protocol, [str(name) for name in results["protocol"].values])
    if "seed" not in results["score"].dims:
        raise ValueError("results must have their seeds, as of open_results(seeds=True)")
    scores = scores_of(results, models=models, bn_mode=bn_mode, seeds=True)
    scores = scores.sel(protocol=protocol)
    found = []
    for cells in scores.transpose("dataset", "seed", "model").values:
        for one, other in combinations(cells, 2):
            both = np.isfinite(one) & np.isfinite(other)
            if np.count_nonzero(both) >= FEWEST_MODELS:
                found.append(spearman(one[both], other[both]))
    return float(mean(np.array(found, dtype=float), 0))


def front(cost: Floats, gain: Floats) -> Bools:
    """Which points (n,) no other beats: none is cheaper and as good, nor better at the same cost.

    A point of which either is NaN is beaten.
    """
    known = np.isfinite(cost) & np.isfinite(gain)
    order = np.lexsort((-gain, cost))
    order = order[known[order]]
    on_front = np.zeros(len(cost), dtype=bool)
    best, at = -np.inf, np.nan
    for one in order:
        if gain[one] > best:
            best, at = gain[one], cost[one]
        on_front[one] = gain[one] == best and cost[one] == at
    return on_front
