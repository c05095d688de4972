"""Whether a Dataset is one of results, so that analyses need not ask again."""

from __future__ import annotations

import numpy as np
import xarray as xr

DIMS = ("model", "dataset", "bn_mode", "protocol")

_OPEN = "Open them by featstore.open_results() or xr.open_zarr('data/results.zarr')"
_ROUNDING = 1e-6  # scores stored in single precision may leave 0..1 by less


def check_results(results: xr.Dataset, *variables: str, seeds: bool = False) -> None:
    """Refuse what is no Dataset of results, or holds scores that cannot be.

    Results without the coordinates `scale` or `headline`, as of before there were any, are not
    judged by them.

    Parameters
    ----------
    results : of `open_results()`
    variables : variables and coordinates that are needed beside `score`
    seeds : let there be a dim `seed`

    Raises
    ------
    ValueError
        A dim or a variable is missing, or there is a dim `seed` and must not be; a model, dataset,
        BN mode or protocol is there twice, or none is; a score that is a share lies outside of
        0..1; cells of one dataset and protocol are of different metrics.
    """
    lacking = [name for name in ("score", *variables) if name not in results]
    if lacking:
        raise ValueError(f"these are no results: they lack {', '.join(lacking)}. {_OPEN}")
    dims = results["score"].dims
    if "seed" in dims and not seeds:
        raise ValueError(
            "results have a dim seed: open them without seeds=True, or take results.sel(seed=0)"
        )
    if {*dims} - {"seed"} != {*DIMS}:
        raise ValueError(
            f"score must have the dims {', '.join(DIMS)}, got {', '.join(map(str, dims))}. Choose "
            f"by lists, as results.sel(bn_mode=['eval']), to keep a dim of one"
        )
    for dim in DIMS:
        index = results.indexes.get(dim)
        if index is None:
            raise ValueError(f"the dim {dim} has no names: results lack its coordinate. {_OPEN}")
        if not len(index):
            raise ValueError(f"results hold no {dim}: nothing is left of them to look at")
        if index.has_duplicates:
            twice = ", ".join(map(str, index[index.duplicated()].unique()))
            raise ValueError(
                f"{dim} {twice} is there twice, as after xr.concat: its cells would count twice. "
                f"Keep one by results.drop_duplicates({dim!r}), or rename the other"
            )
    _check_shares(results)
    _check_metrics(results)


def _check_shares(results: xr.Dataset) -> None:
    """Every score of a protocol whose scale is `share` lies in 0..1, or -1..0 if it is adjusted.

    Those that chance is taken out of, as of k-means, fall somewhat below 0.
    """
    if "scale" not in results:
        return
    scores = results["score"].transpose(..., *DIMS)
    beyond = np.abs(scores.values) > 1 + _ROUNDING  # never true of NaN
    places = np.argwhere(beyond & (results["scale"].values == "share"))
    if len(places):
        at = dict(zip(scores.dims, places[0], strict=True))
        where = " ".join(str(scores[dim].values[place]) for dim, place in at.items())
        raise ValueError(
            f"scores are shares in 0..1, but that of {where} is {scores.isel(at).item():g} "
            f"({len(places)} cells do not lie there). Divide percent by 100"
        )


def _check_metrics(results: xr.Dataset) -> None:
    """Cells of one dataset and protocol, which are compared over models, are of one metric."""
    if "headline" not in results:
        return
    headline = results["headline"].transpose("dataset", "protocol")
    for (dataset, protocol), metric in np.ndenumerate(headline.values):
        if ", " in str(metric):
            names = headline["dataset"].values[dataset], headline["protocol"].values[protocol]
            raise ValueError(
                f"cells of {names[1]} on {names[0]} are of several metrics ({metric}), and cannot "
                f"be compared over models. Probe all models again, or leave it out"
            )


def same_metric(results: xr.Dataset, protocol: str, other: str) -> xr.DataArray:
    """Whether the scores of two protocols are of one metric on each dataset, (dataset,) bool.

    True where nothing is known: a score without `headline`, or a protocol without a cell.
    """
    if "headline" not in results:
        return xr.ones_like(results["dataset"], dtype=bool).drop_vars("dataset")
    one, two = (results["headline"].sel(protocol=name, drop=True) for name in (protocol, other))
    return (one == two) | (one == "") | (two == "")
