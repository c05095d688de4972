"""What a study's results say, in the terminal and as a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from asked import Study
from scipy.stats import t

import featstore


def conclude(study: Study, results_root: Path, page: Path) -> None:
    """Say what the results say, and write the report."""
    results = featstore.open_results(results_root)
    results.attrs["title"] = study.title
    reference = reference_of(study, results)
    tell(results, reference)
    study.answer(results)
    compared = results_root.with_name(f"{results_root.name}.similarity.zarr").exists()
    similarity = featstore.open_similarity(results_root) if compared else None
    featstore.report(
        results, page, reference=reference, similarity=similarity, records=results_root
    )
    print(f"\nresults   {results_root}.zarr\nreport    {page}")


def reference_of(study: Study, results: xr.Dataset) -> str | None:
    """The study's reference, or with other settings if that is all there is."""
    names = [str(one) for one in results["protocol"].values]
    versions = [one for one in names if one.partition("+")[0] == study.reference]
    return study.reference if study.reference in names else next(iter(versions), None)


def tell(results: xr.Dataset, reference: str | None) -> None:
    """Print which protocol goes how well with the reference, over models."""
    if reference is None:
        return
    modes = [str(one) for one in results["bn_mode"].values]
    known = featstore.predictors(
        results, reference, bn_mode="eval" if "eval" in modes else modes[0]
    ).dropna("protocol", subset=["spearman"])
    if not known.sizes["protocol"]:
        return
    print(f"Spearman's correlation with {reference} over models, mean over datasets [95 %]:")
    for name in known["protocol"].values:
        row = known.sel(protocol=name)
        value, low, high = (float(row[f"spearman{end}"]) for end in ("", "_low", "_high"))
        print(f"  {marked(row):44} {value:5.2f}  [{low:5.2f}, {high:5.2f}]")
    if np.any(known.get("transductive", False)):
        print("  † transductive: sees all test images at once")


def marked(row: xr.Dataset) -> str:
    """A protocol's name, with a dagger if scored images take part in a statistic."""
    return f"{row['protocol'].item()}{' †' if row.get('transductive', False) else ''}"


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float, int]:
    """Mean of what is no NaN, its 95 % interval by Student's t, and how many there are.

    The interval is NaN of fewer than two.
    """
    known = values[np.isfinite(values)]
    n = len(known)
    if n < 2:
        return (float(known.mean()) if n else np.nan), np.nan, np.nan, n
    half = float(t.ppf(0.975, n - 1) * known.std(ddof=1) / np.sqrt(n))
    mean = float(known.mean())
    return mean, mean - half, mean + half, n
