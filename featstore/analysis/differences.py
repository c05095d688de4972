"""Which models differ, on the same test images, and what of their ranking that leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from featstore.analysis.resampling import Bools, Floats
from featstore.analysis.selection import Models, existing, metric_of_images, of_models
from featstore.errors import FeatStoreError
from featstore.kernels.metrics import mean_per_class
from featstore.kernels.resample import bootstrap_accuracies, paired_differences
from featstore.kernels.testing import holm, mcnemar
from featstore.results import open_outcomes


def compare_models(
    root: str | Path = "data/results",
    *,
    dataset: str | Sequence[str],
    protocol: str,
    bn_mode: str = "eval",
    seed: int = 0,
    models: Models = "independent",
    resamples: int = 2000,
    seed_of_draws: int = 0,
    confidence: float = 0.95,
    skip_errors: bool = False,
) -> xr.Dataset:
    """All pairs of models on the same test images, and rankings that these pairs allow.

    `difference` has an interval by the paired bootstrap, of each pair by itself: images are drawn
    again, the same for all models, within each dataset, and within each category where the
    dataset's metric is `mean_per_class` (one less than it has, see `bootstrap_accuracies`).
    Datasets with the same index and label of every image are taken to be one set of images changed
    in several ways, as by blur, and drawn together.

    What is said of many pairs holds for all at once with probability `confidence`: `p_holm` is
    adjusted for being one of all pairs (Holm 1979), and a model's rank lies between `rank_low`, one
    more than the number of models that are significantly better, and `rank_high`, the number of
    models less those that are significantly worse. Sources: Klein, Wright, Wieczorek, *A Joint
    Confidence Region for an Overall Ranking of Populations* (2020); Mogstad, Romano, Shaikh,
    Wilhelm, *Inference for Ranks* (2024), which shows that the ranks of resamples give no such
    interval where models are close.

    What Holm adjusts is McNemar's exact p-value where there is one, of a single dataset by top-1.
    Else it is that of a normal distribution with the spread of the resamples, `p_normal`, since a
    share of resamples, `p`, is no smaller than 2 / (resamples + 1).

    Parameters
    ----------
    root : folder of the records
    dataset : one, or several, of which the score is the mean of their own
    protocol, bn_mode, seed : of the cells
    models : "independent" leaves out early checkpoints and random weights
    resamples, seed_of_draws : bootstrap draws of test images
    confidence : of intervals; 1 less it is the level of tests
    skip_errors : leave out records that are damaged, and say which

    Returns
    -------
    Dataset with dims (model, other), the best model first in both
        `difference` of the score, that of `model` less that of `other`, `low`, `high`, `p`,
        `p_normal` or `p_mcnemar`, `p_holm`. Of each model, `score`, `score_low`, `score_high`,
        `rank` (1 is best, equals share theirs), `rank_low`, `rank_high`, and
        `separable_from_best`: whether the best model is significantly better, as one of all
        pairs. The attribute `left_out` names models that lack one of the datasets.

    Raises
    ------
    FeatStoreError
        A dataset has no such cell, or cells of other test images, or of a metric other than `top1`
        and `mean_per_class`; fewer than two models have all; a record is damaged.
    ValueError
        A choice does not exist or lies outside its range, or most categories of a dataset whose
        metric is their mean have a single test image.
    """
    names = [dataset] if isinstance(dataset, str) else list(dict.fromkeys(dataset))
    if not names:
        raise ValueError("dataset must name at least one")
    which: dict[str, Any] = {"protocols": [protocol], "bn_mode": bn_mode, "seed": seed}
    outcomes = [
        open_outcomes(root, dataset=name, skip_errors=skip_errors, **which) for name in names
    ]
    return compare_outcomes(
        outcomes, protocol=protocol, models=models, resamples=resamples,
        seed_of_draws=seed_of_draws, confidence=confidence,
    )  # fmt: skip


def compare_outcomes(
    outcomes: Sequence[xr.Dataset],
    *,
    protocol: str,
    models: Models = "independent",
    resamples: int = 2000,
    seed_of_draws: int = 0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """`compare_models` of what `open_outcomes` gave for each dataset, at least one."""
    cells = [of_models(one, models) for one in outcomes]
    for one in cells:
        existing("protocol", protocol, one["protocol"].values)
        metric_of_images(one)
    held = [one["model"][one["there"].sel(protocol=protocol).values] for one in cells]
    there = [{str(name) for name in one.values} for one in held]
    common = sorted(set.intersection(*there))
    left_out = sorted(set.union(*there) - set(common))
    datasets = [str(one.attrs["dataset"]) for one in cells]
    if len(common) < 2:
        raise FeatStoreError(
            f"{len(common)} models have {protocol} on {', '.join(datasets)}, and it takes two to "
            f"compare. Run: featstore probe, leave a dataset out, or take models='all'"
        )
    own = [one.sel(model=common, protocol=protocol) for one in cells]
    score, draws = _redrawn(own, resamples=resamples, rng=np.random.default_rng(seed_of_draws))
    order = np.argsort(-score, kind="stable")
    score, draws = score[order], draws[:, order]
    pairs = paired_differences(score, draws, confidence=confidence)
    exact = len(own) == 1 and own[0].attrs["metric"] == "top1"
    right = _correct(own[0])[:, order]
    p = mcnemar(right, right).p if exact else pairs.p_normal
    adjusted = _adjusted(p)
    better = (adjusted < 1 - confidence) & (pairs.value > 0)
    ends = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    square, single = ("model", "other"), "model"
    named = own[0].isel(model=order)
    return xr.Dataset(
        {
            "difference": (square, pairs.value),
            "low": (square, pairs.low),
            "high": (square, pairs.high),
            "p": (square, pairs.p),
            "p_mcnemar" if exact else "p_normal": (square, p),
            "p_holm": (square, adjusted),
            "score": (single, score),
            "score_low": (single, ends[0]),
            "score_high": (single, ends[1]),
            "rank": (single, rankdata(-score)),
            "rank_low": (single, 1 + better.sum(axis=0)),
            "rank_high": (single, len(common) - better.sum(axis=1)),
            "separable_from_best": (single, better[0]),
        },
        {name: coord for name, coord in named.coords.items() if coord.dims == ("model",)}
        | {"other": named["model"].values},
        {
            "dataset": datasets,
            "protocol": protocol,
            "bn_mode": cells[0].attrs["bn_mode"],
            "seed": cells[0].attrs["seed"],
            "metric": [str(one.attrs["metric"]) for one in cells],
            "n_test": [one.sizes["image"] for one in cells],
            "models": models,
            "left_out": left_out,
            "resamples": resamples,
            "seed_of_draws": seed_of_draws,
            "confidence": confidence,
        },
    )


def _redrawn(
    cells: Sequence[xr.Dataset], *, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Mean score over datasets (model,), and in each resample of their images (resample, model)."""
    together: dict[tuple[str, bytes, bytes], list[xr.Dataset]] = {}
    for one in cells:
        images = (one[name].values.tobytes() for name in ("index", "label"))
        together.setdefault((one.attrs["metric"], *images), []).append(one)
    models = cells[0].sizes["model"]
    score, draws = np.zeros(models), np.zeros((resamples, models))
    for (metric, *_), group in together.items():
        correct = np.concatenate([_correct(one) for one in group], axis=1)
        labels = group[0]["label"].values if metric == "mean_per_class" else None
        scores = _scores(correct, labels, str(group[0].attrs["dataset"]))
        again = bootstrap_accuracies(correct, resamples=resamples, rng=rng, strata=labels)
        score += scores.reshape(-1, models).sum(axis=0) / len(cells)
        draws += again.reshape(resamples, -1, models).sum(axis=1) / len(cells)
    return score, draws


def _correct(cell: xr.Dataset) -> Bools:
    """Whether each image was told right, (image, model)."""
    return np.asarray(cell["correct"].transpose("image", "model").values == 1)


def _scores(correct: Bools, labels: np.ndarray | None, dataset: str) -> Floats:
    """Score (model,) of correct (image, model): the mean over images, or over their categories."""
    if labels is None:
        return np.asarray(correct.mean(axis=0))
    counts = np.unique(labels, return_counts=True)[1]
    if np.mean(counts == 1) > 0.5:
        raise ValueError(
            f"most categories of {dataset} have a single test image, and drawing it again says "
            f"nothing of chance. Leave the dataset out"
        )
    size = int(labels.max()) + 1
    return np.array([mean_per_class(one, labels, size) for one in correct.T])


def _adjusted(p: Floats) -> Floats:
    """P-values (model, other), each pair once in a family of all; 1 of a model with itself."""
    first, second = np.triu_indices(len(p), 1)
    out = np.ones_like(p)
    out[first, second] = out[second, first] = holm(p[first, second])
    return out
