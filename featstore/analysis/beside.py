"""One's own results beside published ones, cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from featstore.analysis.published import Published, PublishedProtocol, published, published_study
from featstore.analysis.resampling import FEWEST_MODELS, Floats
from featstore.analysis.selection import existing
from featstore.errors import FeatStoreError
from featstore.kernels.correlate import spearman
from featstore.kernels.intervals import fisher
from featstore.results import check_results

_DIMS = ("model", "dataset", "protocol")
_COLUMNS = ("ours", "ours_low", "ours_high", "theirs", "theirs_low", "theirs_high")
_MOST_NAMES = 3  # of what results hold, in a message


def compare_published(
    results: xr.Dataset, study: str = "ericsson2021", *, bn_mode: str = "eval"
) -> xr.Dataset:
    """Ours and theirs of every cell that results and published tables share.

    A cell is shared if model and dataset have the same name (whatever the dataset's transform),
    one of our protocols answers to theirs, and both have the metric that was published.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    study : of `published`
    bn_mode : of our results, the one looked at; published numbers are of `eval`

    Returns
    -------
    Dataset with dims (model, dataset, protocol), names as in `results`
        `ours` and `theirs`, each with its 95 % interval `_low` and `_high` (NaN where there is
        none), `difference` (ours - theirs) and `inside`: 1 where theirs lies in our interval, else
        0, NaN without one. Over models, with dims (dataset, protocol): `n`,
        `mean_absolute_difference`, `n_inside` of `n_with_interval`, and Spearman's `spearman` of
        ours and theirs with `spearman_low` and `spearman_high` by Fisher's z, NaN of fewer than
        four models. Coordinates (dataset, protocol): `metric` compared, and `differences` known
        between the two ways of measuring, "" where none is. The attribute `left_out` lists, in
        words, what they published that is not compared and why.

    Raises
    ------
    UnknownNameError
        No tables of that name are held.
    ValueError
        The BN mode does not exist, or `results` are none, or have their seeds.
    FeatStoreError
        Nothing is shared.
    """
    known = published_study(study)
    check_results(results)
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    mine, theirs = results.sel(bn_mode=bn_mode), published(study).sel(bn_mode="eval")
    answers = _answers(known)
    axes = {
        "model": [m for m in _names(mine, "model") if m in theirs["model"].values],
        "dataset": [d for d in _names(mine, "dataset") if _base(d) in theirs["dataset"].values],
        "protocol": [p for p in _names(mine, "protocol") if p in answers],
    }
    shape = tuple(len(axes[dim]) for dim in _DIMS)
    values = {key: np.full(shape, np.nan) for key in _COLUMNS}
    metrics, differences = (np.full(shape[1:], "", dtype=object) for _ in range(2))
    without = []
    for d, dataset in enumerate(axes["dataset"]):
        for p, protocol in enumerate(axes["protocol"]):
            here = mine.sel(dataset=dataset, protocol=protocol, model=axes["model"])
            for answered, text in answers[protocol]:
                there = theirs.sel(dataset=_base(dataset), protocol=answered.name)
                there = there.sel(model=axes["model"])
                metric = str(there["headline"].item())
                columns = _side(here, metric, "ours") | _side(there, metric, "theirs")
                both = np.isfinite(columns["ours"]) & np.isfinite(columns["theirs"])
                scored = here["score"].notnull().values & np.isfinite(columns["theirs"])
                if lacking := np.count_nonzero(scored & ~both):
                    without.append(
                        f"{protocol} on {dataset}: published is {metric}, which ours lacks "
                        f"({lacking} of {len(axes['model'])} models)"
                    )
                if both.any():
                    for key, column in columns.items():
                        values[key][both, d, p] = column[both]
                    metrics[d, p] = metric
                    parts = (
                        text,
                        known.differences.get(_base(dataset), ""),
                        _transforms(dataset, answered),
                    )
                    known_to = [differences[d, p], *parts]  # two of theirs may answer to ours
                    differences[d, p] = "; ".join(dict.fromkeys(one for one in known_to if one))
    if not np.isfinite(values["ours"]).any():
        raise FeatStoreError(
            f"results share no cell with {study}: {_held(mine, bn_mode, without)}. What can be "
            f"compared is filled by: {known.takes}"
        )
    coords: dict[str, Any] = {
        **axes,
        "metric": (_DIMS[1:], metrics.astype(str)),
        "differences": (_DIMS[1:], differences.astype(str)),
    }
    found = xr.Dataset({key: (_DIMS, array) for key, array in values.items()}, coords)
    for dim in _DIMS:
        found = found.dropna(dim, how="all", subset=["ours"])
    nothing = [f"{one.name}: {one.nothing}" for one in known.protocols.values() if not one.ours]
    told = {"study": study, "title": known.title, "bn_mode": bn_mode}
    return _with_agreement(found).assign_attrs(told, left_out=without + nothing)


def _with_agreement(found: xr.Dataset) -> xr.Dataset:
    """The same with differences, and what they come to over models."""
    ours, low, high, theirs = (found[key] for key in _COLUMNS[:4])
    known = low.notnull() & high.notnull()
    found["difference"] = ours - theirs
    found["inside"] = ((low <= theirs) & (theirs <= high)).astype(float).where(known)
    n = ours.notnull().sum("model")
    found["n"] = n
    found["mean_absolute_difference"] = abs(found["difference"]).mean("model")
    found["n_with_interval"] = known.sum("model")
    found["n_inside"] = (found["inside"] == 1).sum("model")
    sides = [one.transpose("dataset", "protocol", "model").values for one in (ours, theirs)]
    rho = np.array(
        [[_spearman(x, y) for x, y in zip(*rows, strict=True)] for rows in zip(*sides, strict=True)]
    ).reshape(n.shape)
    ends = fisher(rho, n.values, statistic="spearman")
    for key, column in zip(("", "_low", "_high"), (rho, *ends), strict=True):
        found[f"spearman{key}"] = (_DIMS[1:], column)
    return found


def _spearman(x: Floats, y: Floats) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    return float(spearman(x[both], y[both])) if both.sum() >= FEWEST_MODELS else np.nan


def _answers(study: Published) -> dict[str, list[tuple[PublishedProtocol, str]]]:
    """What each of our protocols answers to, with what is known to differ."""
    found: dict[str, list[tuple[PublishedProtocol, str]]] = {}
    for theirs in study.protocols.values():
        for ours, text in theirs.ours.items():
            found.setdefault(ours, []).append((theirs, text))
    return found


def _side(cells: xr.Dataset, metric: str, side: str) -> dict[str, Floats]:
    """A metric (model,) and its limits; NaN of what is not there."""
    missing = np.full(cells.sizes["model"], np.nan)
    keys = {"": metric, "_low": f"{metric}_low", "_high": f"{metric}_high"}
    return {
        f"{side}{end}": np.asarray(cells[key].values, dtype=float) if key in cells else missing
        for end, key in keys.items()
    }


def _transforms(dataset: str, answered: PublishedProtocol) -> str:
    """What is to be said of the transforms of a dataset's images, if they differ."""
    own = dataset.partition("@")[2] or "own"
    if own == answered.transform:
        return ""
    return f"images through @{own}, theirs through @{answered.transform}"


def _base(dataset: str) -> str:
    """A catalogue dataset's name without its transform."""
    return dataset.partition("@")[0]


def _names(results: xr.Dataset, dim: str) -> list[str]:
    return [str(name) for name in results[dim].values]


def _held(mine: xr.Dataset, bn_mode: str, without: list[str]) -> str:
    """What results hold instead of what was published."""
    if without:
        return "; ".join(without)
    cells = mine["score"].notnull()
    holds = []
    for dim in _DIMS:
        some = cells.any([one for one in _DIMS if one != dim]).values
        names = [name for name, there in zip(_names(mine, dim), some, strict=True) if there]
        more = f", ... ({len(names)})" if len(names) > _MOST_NAMES else ""
        holds.append(f"{dim}s {', '.join(names[:_MOST_NAMES])}{more}")
    return f"in BN mode {bn_mode} they hold {'; '.join(holds)}"
