"""How far families of models lie apart, before and after their backbones are accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from featstore.analysis.compare import mean
from featstore.analysis.resampling import FEWEST_MODELS, Bools, Floats, Indices
from featstore.analysis.selection import ENDS, Models, existing, of_models, scores_of, shares
from featstore.kernels.strata import difference_within, permute_within, t_interval
from featstore.results import check_results

_NUMBERS = (
    *(f"{name}{end}" for name in ("pooled", "within", "explained") for end in ENDS),
    *("p", "p_smallest", "n_arrangements", "exact", "n", "n_within"),
)


def family_gap(
    results: xr.Dataset,
    *,
    attribute: str = "paradigm",
    groups: tuple[str, str] = ("discriminative", "generative"),
    hold: str = "backbone",
    metric: str = "score",
    scale: Literal["raw", "logit"] = "raw",
    by_dataset: bool = False,
    bn_mode: str = "eval",
    models: Models = "independent",
    without_clip: bool = False,
    arrangements: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """Difference of two groups of models, pooled and within what is held fixed.

    The pooled gap is the difference of the groups' means. The one within is the coefficient of
    the group in ordinary least squares with a dummy for each backbone: backbones whose models are
    all of one group say nothing of it. If every generative model is a ViT, only the ViTs tell.
    Intervals use HC3 (MacKinnon & White 1985) and Student's t, whose degrees of freedom count the
    models of backbones with both groups alone.

    Models of one lineage, group and backbone count once, by their mean; one method in two
    backbones counts twice. Models of neither group (supervised and random ones have no paradigm of
    these two) play no part.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    attribute : coordinate of models that holds the groups
    groups : two of its values; a gap is the first's mean minus the second's
    hold : coordinate of models that is held fixed
    metric : variable that is compared; of protocols whose scores are shares
    scale : "logit" compares logarithms of the odds instead of shares
    by_dataset : a gap on each dataset, instead of that of means over datasets. Into these only
        models come that have all datasets that any has under the protocol
    bn_mode, models : as in `correlate_protocols`
    without_clip : leave out models whose `teacher` is CLIP
    arrangements : of the permutation test, the most that are all looked at; else as many are drawn
    seed : of these draws

    Returns
    -------
    Dataset with the dim protocol, and dataset with `by_dataset`
        `pooled`, `within` and `explained`, the part of the pooled gap that goes with the backbone
        (pooled - within), each with the limits `_low` and `_high` of its 95 % interval. `p` of the
        two-sided permutation test within backbones, `p_smallest`, below which no arrangement of
        these scores gets (2 / 84 where three of one group stand against six in the one backbone
        that has both; each p by itself, see `holm`), `n_arrangements`, and `exact`, 1 if all were
        looked at. `n` models, and `n_within` in backbones with both groups; below four there is no
        number. `n_cell` and `n_clip` (group, held) count models, and those taught by CLIP, and so
        show the confounding.

    Raises
    ------
    ValueError
        A coordinate, group, metric, BN mode, scale or choice of models does not exist, or these are
        no results.
    """
    check_results(results)
    existing("scale", scale, ["raw", "logit"])
    results = shares(of_models(results, models))
    values = scores_of(results, metric=metric, scale=scale, bn_mode=bn_mode)
    coordinates = [str(name) for name in results.coords if results[name].dims == ("model",)]
    existing("attribute", attribute, coordinates)
    existing("hold", hold, coordinates)
    if len({*groups}) != 2:
        raise ValueError(f"groups must be two different values of {attribute}, got {groups}")
    group, taught = (_told(results, name) for name in (attribute, "teacher"))
    stays = (taught != "clip") | (not without_clip)
    for one in groups:
        existing("groups", one, sorted({*group[stays].tolist()}))
    chosen = stays & np.isin(group, groups)
    cells = values.isel(model=chosen)
    facts = [_told(cells, name) for name in (attribute, hold, "teacher")]
    scores, place = _by_run(
        cells.transpose("protocol", "dataset", "model").values,
        np.stack([*facts, _told(cells, "lineage", _told(cells, "model"))], axis=1),
    )
    first = place[:, 0] == groups[0]
    names, stratum = np.unique(place[:, 1], return_inverse=True)
    if not by_dataset:
        scores = _mean_of_whole(scores)[:, None]

    rng = np.random.default_rng(seed)
    shape = scores.shape[:2]
    found = {name: np.full(shape, np.nan) for name in _NUMBERS}
    counts = np.zeros((2, *shape, 2, len(names)), dtype=int)
    for at in np.ndindex(shape):
        known = np.isfinite(scores[at])
        row = _gap(scores[at][known], first[known], stratum[known], arrangements, rng)
        for name, number in row.items():
            found[name][at] = number
        where = (~first[known]).astype(int), stratum[known]
        np.add.at(counts[0][at], where, 1)
        np.add.at(counts[1][at], where, place[known, 2] == "clip")
    dims: Sequence[str] = ("protocol", "dataset") if by_dataset else ("protocol",)
    cut = (slice(None),) if by_dataset else (slice(None), 0)
    variables = {name: (dims, column[cut]) for name, column in found.items()}
    for name, count in zip(("n_cell", "n_clip"), counts, strict=True):
        variables[name] = ((*dims, "group", "held"), count[cut])
    coords = {"protocol": cells["protocol"].values, "group": list(groups), "held": names}
    if by_dataset:
        coords["dataset"] = cells["dataset"].values
    return xr.Dataset(variables, coords).assign_attrs(
        attribute=attribute, hold=hold, metric=metric, scale=scale, bn_mode=bn_mode, models=models,
        without_clip=int(without_clip), n_left_out=int(np.sum(~chosen)), seed=seed,
    )  # fmt: skip


def _told(
    results: xr.Dataset | xr.DataArray, name: str, otherwise: npt.ArrayLike = ""
) -> npt.NDArray[np.str_]:
    """What a coordinate says of each model (model,), or something else where it says nothing."""
    values = results[name].values if name in results.coords else [""] * results.sizes["model"]
    told = np.array([str(one) for one in values])
    return np.where(told == "", otherwise, told)


def _by_run(scores: Floats, facts: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[Any]]:
    """Scores (..., model) as means of models whose facts (model, fact) are the same."""
    runs, which = np.unique(facts, axis=0, return_inverse=True)
    alike = [scores[..., which.ravel() == run] for run in range(len(runs))]
    return np.stack([mean(one, -1) for one in alike], axis=-1), runs


def _mean_of_whole(scores: Floats) -> Floats:
    """Means (protocol, run) over datasets, of runs that lack none that any has."""
    there = np.isfinite(scores)
    whole = (there | ~there.any(axis=2, keepdims=True)).all(axis=1)
    return np.where(whole, mean(scores, 1), np.nan)


def _gap(
    y: Floats, first: Bools, stratum: Indices, arrangements: int, rng: np.random.Generator
) -> dict[str, float]:
    """All numbers of one series (run,)."""
    pooled, change, freedom = difference_within(y, first, np.zeros_like(stratum))
    within, inner, less = difference_within(y, first, stratum)
    mixed = [one for one in {*stratum.tolist()} if 0 < first[stratum == one].mean() < 1]
    row: dict[str, float] = {"n": len(y), "n_within": int(np.isin(stratum, mixed).sum())}
    if row["n"] >= FEWEST_MODELS:
        row["pooled"] = pooled
        row["pooled_low"], row["pooled_high"] = t_interval(pooled, change, freedom)
    if row["n_within"] >= FEWEST_MODELS:
        row["within"], row["explained"] = within, pooled - within
        row["within_low"], row["within_high"] = t_interval(within, inner, less)
        both = t_interval(pooled - within, change - inner, less)
        row["explained_low"], row["explained_high"] = both
        told = permute_within(y, first, stratum, most=arrangements, rng=rng)
        row |= zip(("p", "p_smallest", "n_arrangements", "exact"), map(float, told), strict=True)
    return row
