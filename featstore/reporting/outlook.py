"""Sections beyond scores: families against backbones, forecasts, and published numbers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from featstore.analysis.beside import compare_published
from featstore.analysis.families import family_gap
from featstore.analysis.forecast import forecast
from featstore.analysis.published import NAMES
from featstore.analysis.resampling import FEWEST_MODELS
from featstore.analysis.selection import of_models
from featstore.analysis.study_plots import (
    family_gaps,
    predicted_against_true,
)
from featstore.errors import FeatStoreError
from featstore.reporting.figures import MOST, canvas
from featstore.reporting.study import Study
from featstore.reporting.svg import inline_svg
from featstore.reporting.tables import ends_of

Content = dict[str, Any]
_Over = Literal["datasets", "labels", "images"]

_MOST_PAIRS = 20  # that hang most on one model
_GROUPS = ("discriminative", "generative")


def gap(study: Study) -> Content | None:
    """How families of models differ, and how much of that their backbones explain."""
    known = of_models(study.results, "independent").coords.get("paradigm")
    if known is None or not set(_GROUPS) <= {str(one) for one in known.values}:
        return None
    found = family_gap(study.results, groups=_GROUPS, **study.how)
    names = ("p", "p_smallest", "n_arrangements", "exact", "n", "n_within")
    columns = {name: found[name].values.tolist() for name in names}
    for name in ("pooled", "within", "explained"):
        columns[name] = ends_of(found, name).tolist()
    rows = [
        dict(zip(columns, row, strict=True)) | {"protocol": str(protocol)}
        for protocol, *row in zip(found["protocol"].values, *columns.values(), strict=True)
    ]
    rows = [row for row in rows if row["n"] >= FEWEST_MODELS]
    if not rows:
        return None
    some = [row["protocol"] for row in rows][:MOST]
    drawn = found.sel(protocol=some)
    drawn = drawn.assign_coords(protocol=[study.labels[name] for name in some])
    ax = family_gaps(drawn, ax=canvas(5.6, 0.4 * len(some)))
    alt = f"Gap between {_GROUPS[0]} and {_GROUPS[1]} models, pooled and within backbones"
    count = found["n_cell"].max("protocol").transpose("group", "held")
    taught = found["n_clip"].max("protocol").transpose("group", "held")
    return {
        "rows": rows,
        "groups": _GROUPS,
        "held": found["held"].values.tolist(),
        "counts": count.values.astype(int).tolist(),
        "taught": taught.values.astype(int).tolist(),
        "taught_names": [str(one) for one in study.results["model"].values[_taught(study.results)]],
        "picture": inline_svg(ax, "gap", alt),
        "drawn": len(some),
    }


def _taught(results: xr.Dataset) -> Any:
    """(model,) whether it was taught by CLIP."""
    if "teacher" not in results.coords:
        return np.zeros(results.sizes["model"], bool)
    return np.array([str(one) == "clip" for one in results["teacher"].values])


def forecasts(study: Study) -> Content | None:
    """Whether scores elsewhere can be foretold from cheap ones in-domain."""
    if not study.homes or study.results.sizes["dataset"] < 2:
        return None
    target = str(study.targets[0].attrs["target"])
    found, reasons = {}, []
    for leave in ("model", "dataset"):
        try:
            found[leave] = forecast(
                study.results, target=target, leave=leave, in_domain=study.homes[0], **study.how
            )
        except ValueError as error:
            reasons.append(str(error))
    found = {leave: one for leave, one in found.items() if one["mae_mean"].notnull()}
    if not found:
        return {"rows": [], "reasons": list(dict.fromkeys(reasons)), "target": target}
    rows = [
        {
            "leave": leave,
            "baseline": str(baseline),
            "mae": float(one["mae_mean"]),
            "mae_naive": float(one["mae_naive_mean"].sel(baseline=baseline)),
            "skill": ends_of(one.sel(baseline=baseline), "skill").tolist(),
            "spearman": float(one["spearman_mean"]),
            "n": int(one["n"].sum()),
        }
        for leave, one in found.items()
        for baseline in one["baseline"].values
    ]
    pictures = {}
    for leave, one in found.items():
        alt = f"True against foretold scores by {study.labels[target]}, each {leave} left out"
        ax = predicted_against_true(one, ax=canvas(2.8, 2.55))
        pictures[leave] = inline_svg(ax, f"foretold-{leave}", alt)
    used = next(iter(found.values()))["predictor"].values.tolist()
    return {
        "rows": rows,
        "pictures": pictures,
        "target": target,
        "home": study.homes[0],
        "naive_in_domain": next(iter(found.values())).attrs["naive_in_domain"],
        "predictors": [study.labels[str(name)] for name in used],
        "reasons": reasons,
    }


def beside(study: Study) -> Content | None:
    """Own numbers beside published ones, where any cell is shared."""
    tables = []
    for name in NAMES:
        try:
            found = compare_published(study.results, name, **study.how)
        except FeatStoreError:  # nothing is shared
            continue
        table = found[["ours", "ours_low", "ours_high", "theirs", "difference", "inside"]]
        frame = table.drop_vars(
            [one for one in table.coords if one not in ("model", "dataset", "protocol")]
        ).to_dataframe()
        frame = frame[frame["difference"].notna()].reset_index()
        rows = frame.to_dict("records")
        texts = found["differences"].values.ravel().tolist()
        tables.append(
            {
                "study": name,
                "rows": rows,
                "n_inside": int(np.nansum(frame["inside"])),
                "n_with": int(frame["inside"].notna().sum()),
                "mean": float(frame["difference"].abs().mean()),
                "differences": list(dict.fromkeys(str(one) for one in texts if one)),
            }
        )
    return {"tables": tables} if tables else None
