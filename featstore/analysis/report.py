"""One HTML file that shows results whole: it loads nothing and can be mailed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featstore.analysis import facts, plots, style
from featstore.analysis.correlate import (
    FEWEST_MODELS,
    correlate_domains,
    correlate_protocols,
    in_domain_datasets,
    is_independent,
)
from featstore.analysis.rank import rank_models
from featstore.analysis.svg import inline_svg, marker_svg

_MOST_GAPS = 200  # rows of the table of missing cells; more than that, nobody reads


def report(
    results: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    reference: str | None = None,
    resamples: int = 1000,
) -> Path:
    """Path of a self-contained HTML report, written whole or not at all.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    path : where to write; an existing file is replaced
    reference : protocol that the others are drawn against; by default the first linear one
    resamples : bootstrap draws of every interval of a correlation

    Raises
    ------
    ValueError
        There is no result at all, or no protocol of the name `reference`.
    """
    if not results["score"].notnull().any():
        raise ValueError("results hold no cell; there is nothing to report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featstore.analysis", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "r": coefficient,
        "time": duration,
    }
    page = environment.get_template("report.html").render(_content(results, reference, resamples))

    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
    return final


def percent(value: float) -> str:
    """A score as a percentage without its sign: 0.8421 -> 84.2."""
    return f"{100 * value:.1f}" if np.isfinite(value) else "–"


def signed(value: float) -> str:
    """A difference of scores in points: -0.012 -> −1.2."""
    return f"{round(100 * value, 1) + 0:+.1f}".replace("-", "−") if np.isfinite(value) else "–"


def coefficient(value: float) -> str:
    """A coefficient of correlation with two decimals."""
    return f"{round(value, 2) + 0:.2f}".replace("-", "−") if np.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if not np.isfinite(seconds):
        return "–"
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"


def _content(results: xr.Dataset, reference: str | None, resamples: int) -> dict[str, Any]:
    """All that the template prints."""
    modes = [str(mode) for mode in results["bn_mode"].values]
    baseline = "eval" if "eval" in modes else modes[0]
    reference = _reference(results, reference, baseline)
    how: dict[str, Any] = {"bn_mode": baseline, "resamples": resamples}
    both = {
        models: correlate_protocols(results, models=models, by_dataset=False, **how)
        for models in ("independent", "all")
    }
    homes = in_domain_datasets(results)
    domains = None
    if homes and results.sizes["dataset"] > 1:
        domains = {
            models: correlate_domains(results, in_domain=homes[0], models=models, **how)
            for models in ("independent", "all")
        }
    ranking = rank_models(results, bn_mode=baseline)
    ordered = results.sel(model=ranking["model"].values)
    protocols = [str(name) for name in results["protocol"].values]
    labels = {name: plots.protocol_label(results, name, baseline) for name in protocols}
    shift = facts.bn_shift(results, baseline)
    counted = facts.counted(results, baseline)
    best = (
        facts.extreme(both["independent"], largest=True),
        facts.extreme(both["independent"], largest=False),
    )
    return {
        "results": results,
        "title": results.attrs.get("title", "featstore results"),
        "baseline": baseline,
        "reference": reference,
        "labels": labels,
        "dagger": plots.DAGGER,
        "any_transductive": bool(results["transductive"].sel(bn_mode=baseline).any()),
        "fewest": FEWEST_MODELS,
        "n_independent": int(is_independent(results).sum()),
        "n_measured": int((results["score"].notnull() & counted).sum()),
        "n_expected": int((xr.ones_like(results["score"], dtype=bool) & counted).sum()),
        "n_skipped": int(((results["n_skipped"] > 0) & counted).sum()),
        "ranking": ranking,
        "first": next(
            (m for m in ranking["model"].values if ranking.place.sel(model=m) == 1), None
        ),
        "floor": ranking.isel(model=ranking["stage"].values == "random"),
        "correlations": both,
        "pairs": [(a, b) for i, a in enumerate(protocols) for b in protocols[i + 1 :]],
        "strongest": best[0],
        "weakest": best[1],
        "home": homes[0] if homes else None,
        "homes": homes,
        "domains": domains,
        "predictor": facts.best_predictor(domains),
        "shift": shift,
        "gaps": facts.gaps(results, baseline),
        "most_gaps": _MOST_GAPS,
        "costs": facts.costs(results, baseline),
        "figures": _figures(ordered, both, domains is not None, reference, baseline, labels),
        "legend": _legend(results),
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "xarray", "matplotlib")},
    }


def _reference(results: xr.Dataset, name: str | None, bn_mode: str) -> str:
    """The protocol others are drawn against: the one named, else the first linear, else the first.

    One without a cell would make every picture empty, so those come last.
    """
    protocols = [str(one) for one in results["protocol"].values]
    if name is not None:
        if name not in protocols:
            raise ValueError(f"reference must be one of {', '.join(protocols)}, got {name!r}")
        return name
    filled = results["score"].sel(bn_mode=bn_mode).notnull().any(["model", "dataset"]).values
    linear = results["kind"].values == "linear"
    return min(zip(~filled, ~linear, range(len(protocols)), protocols, strict=True))[3]


def _figures(
    results: xr.Dataset,
    correlations: dict[str, xr.Dataset],
    with_domains: bool,
    reference: str,
    bn_mode: str,
    labels: dict[str, str],
) -> dict[str, Any]:
    """Every picture as inline SVG."""
    protocols = [str(name) for name in results["protocol"].values]
    cells = results["score"].sel(bn_mode=bn_mode).notnull()
    shown = [p for p in protocols if cells.sel(protocol=p).any()]
    figures: dict[str, Any] = {"heat": {}, "maps": {}, "pairs": {}, "domains": {}}
    for name in shown:
        canvas = _canvas(0.62 * results.sizes["dataset"], 0.27 * results.sizes["model"])
        ax = plots.heat_map(results, protocol=name, bn_mode=bn_mode, ax=canvas)
        alt = f"Heat map of scores in percent by {name}: models by datasets"
        figures["heat"][name] = inline_svg(ax, f"heat-{name}", alt)
    for statistic in ("pearson", "spearman"):
        lowest = style.colour_floor(np.stack([t[statistic].values for t in correlations.values()]))
        for models, table in correlations.items():
            if not table[statistic].notnull().any():
                continue
            canvas = _canvas(0.4 * len(protocols), 0.33 * len(protocols))
            ax = plots.correlation_map(
                table, statistic=statistic, lowest=lowest, labels=labels, ax=canvas
            )
            alt = f"{statistic.title()} correlation of protocols, over {models} models"
            figures["maps"][statistic, models] = inline_svg(ax, f"{statistic}-{models}", alt)
    for name in [p for p in shown if p != reference]:
        ax = plots.scatter(results, name, reference, bn_mode=bn_mode, ax=_canvas(2.8, 2.55))
        alt = f"Models by mean score: {name} across, {reference} upward. {ax.get_title()}"
        figures["pairs"][name] = inline_svg(ax, f"pair-{name}", alt)
    homes = in_domain_datasets(results)
    for name in [str(d) for d in results["dataset"].values if with_domains and d != homes[0]]:
        ax = plots.scatter_domain(
            results,
            name,
            protocol=reference,
            in_domain=homes[0],
            bn_mode=bn_mode,
            ax=_canvas(2.8, 2.55),
        )
        alt = f"Models by {reference}: {homes[0]} across, {name} upward. {ax.get_title()}"
        figures["domains"][name] = inline_svg(ax, f"domain-{name}", alt)
    figures["shift"] = None
    if facts.bn_shift(results, bn_mode):
        alt = "Change of the score by BN mode, for each protocol and model with BatchNorm"
        canvas = _canvas(5.6, 0.6 + 0.42 * len(protocols))
        ax = plots.bn_shift(results, baseline=bn_mode, ax=canvas)
        figures["shift"] = inline_svg(ax, "bn-shift", alt)
    return figures


def _canvas(width: float, height: float) -> Axes:
    """Axes of exactly this size in inches: labels lie outside, and the page has room for them."""
    return Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))


def _legend(results: xr.Dataset) -> dict[str, Any]:
    markers = style.backbone_markers(results)
    return {
        "families": style.family_colours(results),
        "backbones": {name: marker_svg(marker) for name, marker in markers.items()},
    }
