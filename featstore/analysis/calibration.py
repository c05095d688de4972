"""How far confidences can be believed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from featstore.analysis.resampling import mean_interval, units_of
from featstore.analysis.selection import ENDS, Models, existing, of_models, transductive
from featstore.results import check_results

SCALED = ("ece_scaled", "ece_scaled_val")
"""Errors after temperature scaling: one on test images (transductive), one on held-out images."""


def calibration_errors(
    results: xr.Dataset,
    *,
    bn_mode: str = "eval",
    models: Models = "independent",
) -> xr.Dataset:
    """Calibration error of every protocol with probabilities, before and after temperature scaling.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    bn_mode : the one looked at
    models : "independent" leaves out early checkpoints and random weights

    Returns
    -------
    Dataset with the dim protocol
        Each of the following is a mean over models of their means over datasets, and has its 95 %
        interval over models `_low` and `_high`, NaN of fewer than four. `ece` as it is, over all
        cells, `n_cells` of `n_models`. `ece_scaled`, the temperature fitted on folds of the test
        images themselves (transductive), and `ece_scaled_val`, on held-out ones: over the cells
        that have it, `ece_scaled_cells` many, with `ece_scaled_before`, the error of the same cells
        as it is, and so of the other. The coordinate `transductive` says which protocols see scored
        images in this BN mode.

    Raises
    ------
    ValueError
        The BN mode or the choice of models does not exist, or these are no results.
    """
    check_results(results)
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    cells = of_models(results, models).sel(bn_mode=bn_mode)
    units = units_of(cells)
    missing = xr.full_like(cells["score"], np.nan)
    ece, *scaled = (cells.get(name, missing) for name in ("ece", *SCALED))
    found, counts = {"ece": ece}, {"n_cells": ece}
    for name, error in zip(SCALED, scaled, strict=True):  # cells of one row must be alike
        found[name] = counts[f"{name}_cells"] = error.where(ece.notnull())
        found[f"{name}_before"] = ece.where(error.notnull())
    coords = {"protocol": results["protocol"].values} | transductive(results, bn_mode)
    out = xr.Dataset(coords=coords)
    for name, error in found.items():
        by_model = error.mean("dataset").transpose("protocol", "model").values
        rows = [mean_interval(row, units) for row in by_model]
        for end, column in zip(ENDS, np.reshape(rows, (-1, 3)).T, strict=True):
            out[f"{name}{end}"] = ("protocol", column)
            if name == "ece_scaled":
                out[f"{name}{end}"].attrs["transductive"] = 1
    for name, error in counts.items():
        out[name] = ("protocol", error.count(["model", "dataset"]).values)
    out["n_models"] = ("protocol", ece.notnull().any("dataset").sum("model").values)
    out = out.isel(protocol=np.flatnonzero(out["n_models"].values))
    return out.assign_attrs(bn_mode=bn_mode, models=models)


def pooled_reliability(
    results: xr.Dataset, *, protocol: str, dataset: str | None = None, bn_mode: str = "eval"
) -> tuple[xr.Dataset, xr.Dataset]:
    """What confidence is worth in each bin: over models, and of each of them.

    Of models the independent ones, or all if none is. A model counts as much as another, and of a
    model each dataset, whatever its number of test images.

    Parameters
    ----------
    results : Dataset of `open_results()`, with `reliability_count` and its like
    protocol, dataset, bn_mode : whose cells; of no `dataset`, all

    Returns
    -------
    pooled : `share` of test images, mean `confidence` and `accuracy`, with the dim bin
    by_model : the same with the dims (model, bin), only of models that have a cell

    Raises
    ------
    ValueError
        A name does not exist, or no cell of it says what its confidence is worth.
    """
    existing("protocol", protocol, results["protocol"].values)
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    names = {name: f"reliability_{name}" for name in ("count", "confidence", "accuracy")}
    nothing = ValueError(
        f"{protocol} has no reliability here: it gives no probabilities, or was recorded before "
        f"that was kept (then probe again with --overwrite)"
    )
    if not set(names.values()) <= set(results.data_vars):
        raise nothing
    cells = xr.Dataset({name: results[found] for name, found in names.items()})
    cells = cells.sel(protocol=protocol, bn_mode=bn_mode)
    if dataset is not None:
        cells = cells.sel(dataset=[existing("dataset", dataset, results["dataset"].values)])
    cells = cells.compute()  # as xarray.open_zarr gives it, it is on disk yet
    there = cells["count"].notnull().any(["dataset", "bin"])
    if not there.any():
        raise nothing
    cells = cells.isel(model=there)
    own = of_models(cells, "independent")
    cells = own if own.sizes["model"] else cells
    share = cells["count"] / cells["count"].sum("bin")
    by_model = _pool(cells, share, "dataset")
    return _pool(by_model, by_model["share"], "model"), by_model


def _pool(cells: xr.Dataset, share: xr.DataArray, dim: str) -> xr.Dataset:
    """Shares averaged over a dim, confidence and accuracy weighted by them."""
    total = share.sum(dim)
    means = {
        name: (cells[name] * share).sum(dim) / total.where(total > 0)
        for name in ("confidence", "accuracy")
    }
    return xr.Dataset({"share": share.mean(dim), **means})
