"""Which cells an analysis is about, and on what scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from featstore.errors import FeatStoreError
from featstore.kernels.correlate import rank_data

IN_DOMAIN = "in-domain"
"""Value of the coordinate `shift` of the dataset that the models were pretrained on."""

ENDS = ("", "_low", "_high")
"""Suffixes of a number and the limits of its interval."""

Models = Literal["independent", "all"]
Scale = Literal["raw", "logit", "rank"]

_IMAGES = 10_000  # taken to be in a test split of which the number is not told


def is_independent(results: xr.Dataset) -> xr.DataArray:
    """Whether each model counts as one of its own: early checkpoints and random weights do not.

    Raises
    ------
    ValueError
        Results do not say so.
    """
    if "stage" not in results.coords:
        raise ValueError(
            "results lack the coordinate stage (late, early or random), by which early checkpoints "
            "and random weights are told from independent models. Take models='all', or assign it"
        )
    # Strings come as fixed-width ones, objects or StringDType, which not all of NumPy takes.
    own = [str(one) in ("late", "") for one in results["stage"].values]
    return xr.DataArray(np.array(own, bool), dims="model")


def of_models(results: xr.Dataset, models: Models) -> xr.Dataset:
    """Results of all models, or of the independent ones.

    Raises
    ------
    ValueError
        `models` is neither, or results do not say which models are independent.
    """
    existing("models", models, ["independent", "all"])
    return results.isel(model=is_independent(results)) if models == "independent" else results


def reference_of(results: xr.Dataset, name: str | None, bn_mode: str) -> str:
    """The protocol others are held against: the one named, else the first linear, else the first.

    One without a cell comes last, since nothing goes with it, and before it those whose scores are
    no shares.

    Raises
    ------
    ValueError
        There is no protocol of that name.
    """
    protocols = [str(one) for one in results["protocol"].values]
    if name is not None:
        return existing("reference", name, protocols)
    filled = results["score"].sel(bn_mode=bn_mode).notnull().any(["model", "dataset"]).values
    share = np.isin(protocols, [str(one) for one in shares(results)["protocol"].values])
    linear = results["kind"].values == "linear"
    return min(zip(~filled, ~share, ~linear, range(len(protocols)), protocols, strict=True))[4]


def in_domain_datasets(results: xr.Dataset) -> list[str]:
    """Names of the datasets that the models were pretrained on; often one, sometimes none."""
    if "shift" not in results.coords:
        return []
    return [str(name) for name in results["dataset"].values[results["shift"].values == IN_DOMAIN]]


def shares(results: xr.Dataset) -> xr.Dataset:
    """Results of those protocols whose scores are shares in 0..1, which can be averaged."""
    if "scale" not in results.coords:
        return results
    return results.isel(protocol=np.flatnonzero(results["scale"].values == "share"))


def transductive(results: xr.Dataset, bn_mode: str) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
    """The coordinate of that name: protocols whose scored images take part in a statistic.

    None if the results do not say so.
    """
    if "transductive" not in results:
        return {}
    marks = results["transductive"].sel(bn_mode=bn_mode).values.astype(bool)
    return {"transductive": ("protocol", marks)}


def metrics_of(results: xr.Dataset) -> list[str]:
    """Names of what has one value a cell."""
    dims = set(results["score"].dims)
    return [str(name) for name, one in results.data_vars.items() if set(one.dims) == dims]


def metric_of_images(outcomes: xr.Dataset) -> str:
    """The metric of `open_outcomes`, which tells by images alone: `top1` or `mean_per_class`.

    Raises
    ------
    FeatStoreError
        It is another, such as a mean over episodes, of which images do not tell the score.
    """
    metric = str(outcomes.attrs.get("metric", "top1"))
    if metric not in ("top1", "mean_per_class"):
        raise FeatStoreError(
            f"scores on {outcomes.attrs.get('dataset', 'it')} are {metric}, and only top1 and "
            f"mean_per_class follow from which test images were told right. Take another protocol"
        )
    return metric


def existing(what: str, name: str, known: Sequence[str] | npt.NDArray[np.str_]) -> str:
    """The name, if it is a known one; raises ValueError with those that are."""
    if not len(known):
        raise ValueError(f"{what} cannot be {name!r}: what was chosen of the results has none")
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(str, known))}, got {name!r}")
    return name


def scores_of(
    results: xr.Dataset,
    *,
    metric: str = "score",
    scale: Scale = "raw",
    models: Models = "all",
    bn_mode: str = "eval",
    dataset: str | None = None,
    seeds: bool = False,
) -> xr.DataArray:
    """One metric of the models asked for in one BN mode: (model, dataset, protocol).

    Parameters
    ----------
    dataset : a single one, whose dim is kept
    seeds : keep the dim of results opened with their seeds; else their means
    scale : `logit` takes the logarithm of the odds of what is a share, first kept half a test image
        away from 0 and 1, and leaves the rest as it is; `rank` the rank among the models of each
        dataset and protocol, 1 for the lowest

    Raises
    ------
    ValueError
        The metric, the scale, the BN mode, the dataset or the choice of models does not exist.
    """
    existing("metric", metric, metrics_of(results))
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    existing("scale", scale, ["raw", "logit", "rank"])
    cells = of_models(results, models).sel(bn_mode=bn_mode)
    if dataset is not None:
        cells = cells.sel(dataset=[existing("dataset", dataset, cells["dataset"].values)])
    scores = cells[metric]
    if scale == "rank":
        axis = scores.get_axis_num("model")
        ranks = rank_known(np.moveaxis(scores.values, axis, -1))
        scores = scores.copy(data=np.moveaxis(ranks, -1, axis))
    if scale == "logit":
        images = cells["n_test"].fillna(_IMAGES) if "n_test" in cells else _IMAGES
        least = 0.5 / images
        odds = scores.clip(least, 1 - least)
        logit = xr.DataArray(np.log(odds / (1 - odds)))
        scores = logit.where(_is_share(cells, metric), scores)
    return scores if seeds or "seed" not in scores.dims else scores.mean("seed")


def rank_known(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks over the last axis of what is no NaN, 1 for the lowest, equals at their mean rank."""
    # Last come those that are missing, so that they change no other's rank.
    ranks = rank_data(np.where(np.isfinite(values), values, np.inf))
    return np.where(np.isfinite(values), ranks, np.nan)


def _is_share(cells: xr.Dataset, metric: str) -> xr.DataArray:
    """Whether a metric is a share in 0..1, for each protocol if that is told of it."""
    if metric == "score" and "scale" in cells.coords:
        return xr.DataArray(cells["scale"].values == "share", dims="protocol")
    told = cells[metric].attrs.get("scale")
    scores = cells[metric]
    return xr.DataArray(
        told == "share" if told else bool(((scores >= 0) & (scores <= 1) | scores.isnull()).all())
    )
