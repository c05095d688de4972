"""Two models beside each other, cell by cell."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import xarray as xr

from featstore.analysis.differences import compare_outcomes
from featstore.analysis.selection import existing, shares
from featstore.errors import CorruptStoreError, FeatStoreError
from featstore.kernels.testing import holm
from featstore.results import check_results, open_outcomes

logger = logging.getLogger(__name__)

_DIMS = ("dataset", "protocol")


def compare_two_models(
    results: xr.Dataset,
    model: str,
    other: str,
    *,
    bn_mode: str = "eval",
    root: str | Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """How much one model scores above another on each dataset and by each protocol.

    With the predictions kept beside the records, both models are compared on the same test images,
    as `compare_models` does. Without, or for scores that are no share of images told right, the
    limits follow from those of both scores as if their test images were different ones (Newcombe,
    *Interval estimation for the difference between independent proportions*, 1998, method 10);
    mostly they are too wide then, since both models find the same images hard.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    model, other : the two ; bn_mode : of both
    root : folder of the records, if they are there
    resamples, seed : bootstrap draws of test images, and seed of the cells they are drawn of

    Returns
    -------
    Dataset with dims (dataset, protocol)
        `difference` of the score, the model's minus the other's, `low` and `high` of its 95 %
        interval, `paired`, whether by the same test images, and of these `p`, two-sided, of no
        difference (McNemar's for top-1), and `p_holm`, adjusted for being one of all these cells,
        as many as the attribute `n_tests`: choose the protocols that are asked about beforehand,
        since the more there are, the less any shows. NaN where a cell is missing. Only protocols
        whose scores are shares.

    Raises
    ------
    ValueError
        A name does not exist, both models are the same, or these are no results.
    """
    check_results(results, "low", "high")
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    for name in (model, other):
        existing("model", name, [str(one) for one in results["model"].values])
    if model == other:
        raise ValueError(f"two models are compared, got {model} twice")
    cells = shares(results)[["score", "low", "high"]].sel(bn_mode=bn_mode, drop=True)
    cells = cells.transpose("model", "dataset", "protocol").load()  # of a file, it is lazy
    a, b = (cells.sel(model=name, drop=True) for name in (model, other))
    out = xr.Dataset({"difference": a["score"] - b["score"]})
    reach = np.hypot(a["score"] - a["low"], b["high"] - b["score"])
    out["low"] = out["difference"] - reach
    reach = np.hypot(a["high"] - a["score"], b["score"] - b["low"])
    out["high"] = out["difference"] + reach
    out["paired"] = xr.zeros_like(out["difference"], dtype=bool)
    out["p"] = xr.full_like(out["difference"], np.nan)
    if root is not None:
        for at in np.argwhere(out["difference"].notnull().values):
            dataset, protocol = (str(out[d].values[i]) for d, i in zip(_DIMS, at, strict=True))
            found = _paired(
                root, (model, other), dataset, protocol, bn_mode, resamples=resamples, seed=seed
            )
            out["paired"].values[*at] = bool(found)
            for name, value in found.items():
                out[name].values[*at] = value
    p = out["p"].values
    out["p_holm"] = (out["p"].dims, holm(p.ravel()).reshape(p.shape))
    told = {
        "model": model,
        "other": other,
        "bn_mode": bn_mode,
        "n_tests": int(np.isfinite(p).sum()),
    }
    return out.assign_attrs(told, resamples=resamples, seed=seed)


def _paired(
    root: str | Path, models: tuple[str, str], dataset: str, protocol: str, bn_mode: str,
    *, resamples: int, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Numbers of one cell by its test images; none where records do not tell of each image."""
    try:
        outcomes = open_outcomes(
            root, dataset=dataset, protocols=[protocol], models=models, bn_mode=bn_mode, seed=seed
        )
        found = compare_outcomes([outcomes], protocol=protocol, models="all", resamples=resamples)
    except CorruptStoreError as error:
        logger.warning("not paired: %s", error)
        return {}
    except (FeatStoreError, ValueError):  # no such cell, another metric, other images, ...
        return {}
    cell = found.sel(model=models[0], other=models[1])
    p = cell["p_mcnemar" if "p_mcnemar" in cell else "p_normal"]
    return {name: cell[name].item() for name in ("difference", "low", "high")} | {"p": p.item()}
