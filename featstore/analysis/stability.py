"""How much it takes until the best models are settled: datasets, test images, labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.special import comb as combs

from featstore.analysis.compare import mean
from featstore.analysis.resampling import FEWEST_MODELS, Floats
from featstore.analysis.selection import (
    Models,
    existing,
    metric_of_images,
    metrics_of,
    of_models,
)
from featstore.kernels.correlate import kendall, rank_data, spearman
from featstore.results import check_results

SETTLED = 0.95
"""Share of draws with the same best models from which these count as settled."""

_ALIKE = 9  # decimals; means of the same ranks in another order differ by less
Draws = tuple[int, Floats, Floats]  # size, merit (draw, model), that of the whole, which broadcasts


def ranking_stability(
    results: xr.Dataset,
    *,
    protocol: str,
    top: int = 3,
    over: Literal["datasets", "images", "labels"] = "datasets",
    metric: str = "score",
    models: Models = "independent",
    bn_mode: str = "eval",
    draws: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How often less data gives the same best models, and the same order, as all data do.

    `datasets`: 1, 2, ... of them, drawn without replacement; those of a `cluster` (six are one in
    DomainNet) are drawn together and count as one, by their mean. Models are ordered by mean
    rank, as in `rank_models`. All subsets are looked at where there are at most `draws`.

    `images`: of `open_outcomes()`, 50, 100, 200, 500, ... test images of the one dataset.

    `labels`: so many train images of each category. On each dataset (and seed, if there is that
    dim) the few-shot protocols `NAME-5shot` are held against `protocol` on all labels, where NAME
    is `protocol` or what comes before its first hyphen; `PROTOCOL+shots=5` is found as well.

    Draws share data with the whole that they are held against: this tells how soon the answer of
    these data is reached, not how near it is to that of others. Only models count that lack no
    cell that any has. Equal models share places: a draw in which two are equal for the last place
    of the top counts by half.

    Parameters
    ----------
    results : Dataset of `open_results()`; for images, of `open_outcomes()`
    protocol : by which models are ranked
    top : number of best models
    metric, models, bn_mode : as in `correlate_protocols`; images are told right or not, and in the
        BN mode of `open_outcomes()`
    draws : of each size, at most ; seed : of these

    Returns
    -------
    Dataset with the dim size
        `same_top`, the share of draws with the same best models; `overlap`, the mean share of
        them; `kendall` (tau-b) and `spearman` with the whole ranking, mean over draws, and `_low`
        and `_high`, between which 95 % of draws lie; `n_draws`. `settled_at` is the smallest size
        from which on `same_top` is at least .95, NaN if no size short of all does. The dim place
        has the best models of all data, `best`. Below four models there is no number.

    Raises
    ------
    ValueError
        A protocol, metric, BN mode or choice of models does not exist; the protocol has no cell, or
        none with fewer labels; `results` has no images; `top` is not below the number of models.
    """
    existing("over", over, ["datasets", "images", "labels"])
    if ("image" in results.dims) != (over == "images"):
        raise ValueError(
            f"over = {over!r} needs a Dataset of "
            f"{'open_outcomes' if over == 'images' else 'open_results'}(), got one with dims "
            f"{', '.join(map(str, results.sizes))}"
        )
    if over == "images":
        metric_of_images(results)
    else:
        check_results(results, seeds=over == "labels")
    protocols = [str(name) for name in results["protocol"].values]
    existing("protocol", protocol, protocols)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    cells = of_models(results, models).compute()  # as xarray.open_zarr gives it, it is on disk yet
    if over != "images":
        existing("metric", metric, metrics_of(results))
        existing("bn_mode", bn_mode, results["bn_mode"].values)
        cells = cells.sel(bn_mode=bn_mode, drop=True)
    rng = np.random.default_rng(seed)
    if over == "labels":
        few = fewer_labels(protocols, protocol)
        scores = _whole(cells[metric].sel(protocol=[protocol, *few.values()]))
        found = list(_labels(scores, protocol, few))
    elif over == "images":
        scores = _whole(cells["correct"].sel(protocol=protocol))
        by_class = metric_of_images(results) == "mean_per_class"
        found = list(_images(scores, by_class, draws, rng))
    else:
        scores = _whole(cells[metric].sel(protocol=protocol))
        found = list(_datasets(scores, draws, rng))
    n_models = scores.sizes["model"]
    if n_models >= FEWEST_MODELS and not 1 <= top < n_models:
        raise ValueError(f"top must lie in 1..{n_models - 1} ({n_models} models), got {top}")
    return _summary(found, _strings(scores["model"]), top, over).assign_attrs(
        protocol=protocol, over=over, top=top, metric=metric, models=models, bn_mode=bn_mode,
        n_models=n_models, seed=seed,
    )  # fmt: skip


def fewer_labels(protocols: list[str], protocol: str) -> dict[int, str]:
    """Protocols that are the named one on fewer labels, by train images of each category.

    Raises
    ------
    ValueError
        There is none.
    """
    for stem in (protocol, protocol.partition("-")[0]):
        form = re.compile(rf"{re.escape(stem)}(?:-(\d+)shot|\+shots=(\d+))")
        found = [(form.fullmatch(name), name) for name in protocols]
        few = {int(match[1] or match[2]): name for match, name in found if match}
        if few:
            return dict(sorted(few.items()))
    raise ValueError(
        f"protocol must have others with fewer labels beside it, such as {protocol}-5shot, got "
        f"{protocol!r} among {', '.join(protocols)}"
    )


def _strings(values: xr.DataArray) -> npt.NDArray[np.str_]:
    return np.array([str(one) for one in values.values])


def _whole(scores: xr.DataArray) -> xr.DataArray:
    """Without models that lack what any has, and without what none has.

    Raises
    ------
    ValueError
        There is nothing at all.
    """
    there = scores.notnull()
    used = there.any("model")
    if not used.any():
        raise ValueError("protocol must have cells of these models in this BN mode, and has none")
    rest = [dim for dim in scores.dims if dim != "model"]
    whole = np.flatnonzero((there | ~used).all(rest).values)
    return scores.where(used, drop=True).isel(model=whole)


def _datasets(scores: xr.DataArray, draws: int, rng: np.random.Generator) -> Iterator[Draws]:
    """Negative mean ranks on some clusters of datasets."""
    scores = scores.transpose("dataset", "model")
    ranks = rank_data(-scores.values)
    names = _strings(scores["dataset"])
    told = _strings(scores["cluster"]) if "cluster" in scores.coords else names
    _, which = np.unique(np.where(told == "", names, told), return_inverse=True)
    units = np.array([ranks[which == one].mean(axis=0) for one in range(which.max(initial=-1) + 1)])
    count = len(units)
    for size in range(1, count + 1):
        if comb(count, size) <= draws:
            chosen = np.array(list(combinations(range(count), size)))
        else:
            chosen = rng.permuted(np.tile(np.arange(count), (draws, 1)), axis=1)[:, :size]
        merit = -units[chosen].mean(axis=1)
        yield size, np.round(merit, _ALIKE), np.round(-units.mean(axis=0), _ALIKE)


def _images(
    right: xr.DataArray, by_class: bool, draws: int, rng: np.random.Generator
) -> Iterator[Draws]:
    """How many of some test images are told right; `by_class`, each class counts the same."""
    values = right.transpose("image", "model").values.astype(float)
    weight = np.ones(len(values))
    if by_class:
        _, which = np.unique(right["label"].values, return_inverse=True)
        weight = 1 / np.bincount(which)[which]
    values = values * weight[:, None]
    steps = [unit * 10**power for power in range(8) for unit in (50, 100, 200)]
    sizes = [*sorted({size for size in steps if size < len(values)}), len(values)]
    sums = np.empty((draws, len(sizes), values.shape[1]))
    starts = [0, *sizes[:-2]]
    for draw in sums[:, :-1] if len(sizes) > 1 else ():
        order = rng.permutation(len(values))[: sizes[-2]]
        draw[:] = np.add.reduceat(values[order], starts, axis=0).cumsum(axis=0)
    whole = np.round(values.sum(axis=0), _ALIKE)
    for at, size in enumerate(sizes[:-1]):
        yield size, np.round(sums[:, at], _ALIKE), whole
    yield sizes[-1], whole[None], whole


def _labels(scores: xr.DataArray, protocol: str, few: dict[int, str]) -> Iterator[Draws]:
    """Scores on each dataset and seed by protocols of fewer labels."""
    scores = scores if "seed" in scores.dims else scores.expand_dims("seed")
    scores = scores.transpose("protocol", "dataset", "seed", "model")
    whole = mean(scores.sel(protocol=protocol).values, 1)
    for size, name in few.items():
        if name not in scores["protocol"].values:  # it has no cell
            continue
        merit = scores.sel(protocol=name).values
        against = np.broadcast_to(whole[:, None], merit.shape)
        there = np.isfinite(merit).all(axis=-1) & np.isfinite(against).all(axis=-1)
        yield size, merit[there], against[there]


def _summary(found: list[Draws], names: npt.NDArray[np.str_], top: int, over: str) -> xr.Dataset:
    """What `ranking_stability` gives, of the draws of each size."""
    rows: dict[str, list[float]] = {}
    enough = len(names) >= FEWEST_MODELS
    for _, merit, whole in found:
        row = agreement(merit, whole, top) if enough and len(merit) else {}
        for name in ("same_top", "overlap", "kendall", "spearman"):
            one = row.get(name, np.empty(0))
            one = one[np.isfinite(one)]
            rows.setdefault(name, []).append(float(mean(one, 0)))
            if name in ("kendall", "spearman"):
                ends = np.quantile(one, [0.025, 0.975]) if len(one) else (np.nan, np.nan)
                for end, limit in zip(("low", "high"), ends, strict=True):
                    rows.setdefault(f"{name}_{end}", []).append(float(limit))
        rows.setdefault("n_draws", []).append(len(merit))
    sizes = [size for size, _, _ in found]
    # All data agree with themselves; all labels are not among those of `few`.
    short = len(sizes) if over == "labels" else len(sizes) - 1
    loose = np.flatnonzero(~(np.array(rows.get("same_top", []))[:short] >= SETTLED))
    start = int(loose[-1]) + 1 if len(loose) else 0
    settled = float(sizes[start]) if start < short else np.nan
    out = xr.Dataset({name: ("size", column) for name, column in rows.items()}, {"size": sizes})
    out["settled_at"] = settled
    if found and enough:
        whole = found[-1][2] if found[-1][2].ndim == 1 else -rank_data(-found[-1][2]).mean(axis=0)
        order = np.argsort(-whole, kind="stable")[:top]
        out = out.assign_coords(place=np.arange(1, len(order) + 1))
        out["best"] = ("place", names[order])
    return out


def agreement(merit: Floats, whole: Floats, top: int) -> dict[str, Floats]:
    """How each draw's order of models agrees with that of the whole.

    Parameters
    ----------
    merit : (draw, model) the higher the better; equal ones are in either order as likely
    whole : (model,) or (draw, model) ; of equal ones the first come first
    top : number of best models

    Returns
    -------
    `same_top` (the chance that the best are the same), `overlap` (the share of them expected),
    `kendall`, `spearman`, each (draw,)
    """
    whole = np.broadcast_to(whole, merit.shape)
    best = np.zeros(merit.shape, dtype=bool)
    np.put_along_axis(best, np.argsort(-whole, axis=1, kind="stable")[:, :top], True, axis=1)
    last = -np.sort(-merit, axis=1)[:, [top - 1]]
    above, level = merit > last, merit == last
    places = top - above.sum(axis=1)  # for those that are level
    rivals, wanted = level.sum(axis=1), (level & best).sum(axis=1)
    fits = ~(above & ~best).any(axis=1) & (wanted == places)
    return {
        "same_top": fits / combs(rivals, places),
        "overlap": ((above & best).sum(axis=1) + places * wanted / rivals) / top,
        "kendall": kendall(merit, whole),
        "spearman": spearman(merit, whole),
    }
