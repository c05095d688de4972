"""Which cheap protocol ranks models as an expensive one does, and what it costs."""

from __future__ import annotations

import numpy as np
import xarray as xr

from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.resampling import STATISTICS
from featstore.analysis.selection import ENDS, Models, existing
from featstore.results import check_results


def predictors(
    results: xr.Dataset,
    target: str,
    *,
    models: Models = "independent",
    bn_mode: str = "eval",
    correlations: xr.Dataset | None = None,
) -> xr.Dataset:
    """All other protocols by how well they rank models as `target` does, the best first.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    target : protocol that is to be predicted, such as a fine-tuning
    models, bn_mode : as in `correlate_protocols`
    correlations : an answer of `correlate_protocols`, made with other settings than its own; else
        it is made

    Returns
    -------
    Dataset with the dim protocol
        `spearman`, `spearman_low`, `spearman_high` over models, mean over datasets, the same of
        `pearson` and `kendall`, `n` models, `n_datasets`, and `seconds`, the median cell's in this
        BN mode. Sorted by `spearman`, protocols without any last. The coordinate `transductive`
        says which see scored images in this BN mode. The attribute `seconds` is the target's.

    Raises
    ------
    ValueError
        The target, the BN mode or the choice of models does not exist, or these are no results.
    """
    check_results(results, "seconds")
    existing("target", target, [str(name) for name in results["protocol"].values])
    if correlations is None:
        correlations = correlate_protocols(
            results, models=models, bn_mode=bn_mode, by_dataset=False
        )
    names = [f"{name}{end}" for name in STATISTICS for end in ENDS] + ["n", "n_datasets"]
    found = correlations[names].sel(other=target, drop=True)
    cells = results[["seconds", "score"]].sel(bn_mode=bn_mode, drop=True)
    seconds = cells["seconds"].where(cells["score"].notnull()).median(["model", "dataset"])
    found["seconds"] = seconds
    order = np.argsort(-found["spearman"].values, kind="stable")  # NaN comes last
    found = found.isel(protocol=order[found["protocol"].values[order] != target])
    told = {"target": target, "seconds": float(seconds.sel(protocol=target))}
    return found.assign_attrs(correlations.attrs | told)


def expensive(results: xr.Dataset, reference: str, bn_mode: str) -> list[str]:
    """Protocols worth predicting: fine-tunings that have cells, the dearest first, or else the
    reference.
    """
    cells = results[["seconds", "score"]].sel(bn_mode=bn_mode)
    cost = cells["seconds"].where(cells["score"].notnull()).median(["model", "dataset"])
    tuned = cost.isel(protocol=np.flatnonzero(results["kind"].values == "finetune"))
    tuned = tuned.dropna("protocol").sortby(-tuned.dropna("protocol"))
    return [str(name) for name in tuned["protocol"].values] or [reference]
