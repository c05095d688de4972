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
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featstore.analysis import plots, style
from featstore.analysis.batchnorm import backbone_bn, head_bn
from featstore.analysis.calibration import calibration_errors
from featstore.analysis.compare import compare_protocols
from featstore.analysis.correlate import (
    STATISTICS,
    correlate_domains,
    correlate_protocols,
    in_domain_datasets,
    is_independent,
    reference_of,
    shares,
)
from featstore.analysis.predict import expensive, predictors
from featstore.analysis.rank import rank_models
from featstore.analysis.resampling import FEWEST_MODELS
from featstore.analysis.similarity import bn_displacement, similarity_map
from featstore.reporting import facts, tables
from featstore.reporting.svg import inline_svg, marker_svg

_KINDS = {"knn": "kNN", "linear": "linear probe", "fewshot": "few-shot", "finetune": "fine-tuning"}
_MOST_GAPS = 200  # rows of the table of missing cells; more than that, nobody reads


def report(
    results: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    reference: str | None = None,
    resamples: int = 1000,
    similarity: xr.Dataset | None = None,
) -> Path:
    """Path of a self-contained HTML report, written whole or not at all.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    path : where to write; an existing file is replaced
    reference : protocol that the others are drawn against; by default the first linear one
    resamples : bootstrap draws of models, of every interval over them
    similarity : of `open_similarity()`; with it, the report says how alike
        models' features are, and how far BN modes move them

    Raises
    ------
    ValueError
        There is no result at all, or no protocol of the name `reference`.
    """
    if not results["score"].notnull().any():
        raise ValueError("results hold no cell; there is nothing to report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featstore.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "r": coefficient,
        "signed_r": signed_coefficient,
        "tenths": tenths,
        "time": duration,
    }
    content = _content(results, reference, resamples)
    content |= _similarity(similarity, content["baseline"], resamples)
    page = environment.get_template("page.html").render(content)

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


def signed_coefficient(value: float) -> str:
    """A difference of coefficients: -0.5 -> −0.50."""
    return f"{round(value, 2) + 0:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


def tenths(value: float) -> str:
    """A number with one decimal."""
    return f"{value:.1f}" if np.isfinite(value) else "–"


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
    reference = reference_of(results, reference, baseline)
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
    counted = facts.counted(results, baseline)
    independent = both["independent"]
    n_independent = int(is_independent(results).sum())
    targets = [
        predictors(results, name, correlations=independent, bn_mode=baseline)
        for name in expensive(results, reference, baseline)
    ]
    head, pairs = tables.head_rows(head_bn(results, reference=reference, **how))
    linear = [
        row
        for name, others in facts.linear_forms(protocols).items()
        for row in tables.compared_rows(compare_protocols(results, name, others, **how))
    ]
    return {
        "results": results,
        "title": results.attrs.get("title", "featstore results"),
        "baseline": baseline,
        "reference": reference,
        "labels": labels,
        "mode_label": plots.mode_label,
        "dagger": plots.DAGGER,
        "any_transductive": bool(results["transductive"].sel(bn_mode=baseline).any()),
        "fewest": FEWEST_MODELS,
        "n_independent": n_independent,
        "n_measured": int((results["score"].notnull() & counted).sum()),
        "n_expected": int((xr.ones_like(results["score"], dtype=bool) & counted).sum()),
        "n_skipped": int(((results["n_skipped"] > 0) & counted).sum()),
        "ranking": ranking,
        "ranked": tables.ranking_rows(ranking),
        "first": next(
            (m for m in ranking["model"].values if ranking.place.sel(model=m) == 1), None
        ),
        "floor": ranking.isel(model=ranking["stage"].values == "random"),
        "resampled": {"draws": resamples, "seed": independent.attrs["seed"]},
        "pairs": tables.pair_rows(
            [both[models] for models in _shown(n_independent, results.sizes["model"])]
        ),
        "strongest": facts.extreme(independent, largest=True),
        "weakest": facts.extreme(independent, largest=False),
        "targets": [(one, tables.predictor_rows(one)) for one in targets],
        "tuned": targets[0].attrs["target"] != reference,
        "cheapest": facts.cheap_predictor(targets[0]),
        "home": homes[0] if homes else None,
        "homes": homes,
        "domains": domains,
        "predictor": facts.best_predictor(domains),
        "calibrated": tables.calibration_rows(calibration_errors(results, **how)),
        "shift": facts.bn_shift(results, baseline),
        "backbone": tables.backbone_rows(
            backbone_bn(results, reference=reference, resamples=resamples)
        ),
        "head": head,
        "head_pairs": pairs,
        "linear": linear,
        "linear_forms": {
            form: words
            for form, words in facts.LINEAR_FORMS.items()
            if any(row["protocol"].startswith(f"linear-marks{form}") for row in linear)
        },
        "kinds": _KINDS,
        "gaps": facts.gaps(results, baseline),
        "most_gaps": _MOST_GAPS,
        "costs": facts.costs(results, baseline),
        "heat": _heat(ordered, baseline),
        "maps": _maps(both, n_independent),
        "shades": Markup(style.shades_css()),
        "figures": _figures(ordered, domains is not None, reference, baseline),
        "legend": _legend(results),
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "xarray", "matplotlib")},
    }


def _similarity(found: xr.Dataset | None, baseline: str, resamples: int) -> dict[str, Any]:
    """How alike models' features are, and how far each BN mode moves them, if that was compared."""
    if found is None or baseline not in found["bn_mode"].values:
        return {"moved": {}, "alike": None, "n_alike": 0}
    count = found.sizes["model"]
    ax = similarity_map(found, bn_mode=baseline, ax=_canvas(0.31 * count, 0.31 * count))
    alt = "Linear CKA of the features of every two models, mean over datasets"
    return {
        "moved": tables.moved_rows(bn_displacement(found, baseline=baseline, resamples=resamples)),
        "alike": inline_svg(ax, "alike", alt),
        "n_alike": int(found["rows"].max()),
    }


def _shown(n_independent: int, n_models: int) -> list[str]:
    """Choices of models that differ."""
    return ["independent", "all"] if n_independent < n_models else ["independent"]


def _heat(results: xr.Dataset, bn_mode: str) -> dict[str, Any]:
    """Scores of each protocol that has any, as rows of a table."""
    cells = results["score"].sel(bn_mode=bn_mode).notnull().any(["model", "dataset"])
    in_percent = set(shares(results)["protocol"].values)
    return {
        str(name): tables.heat_rows(results, str(name), bn_mode)
        for name in results["protocol"].values[cells.values]
        if name in in_percent
    }


def _maps(correlations: dict[str, xr.Dataset], n_independent: int) -> dict[tuple[str, str], Any]:
    """Coefficients of every two protocols as rows of a table, by statistic and models."""
    found: dict[tuple[str, str], Any] = {}
    for statistic in STATISTICS:
        lowest = style.colour_floor(np.stack([t[statistic].values for t in correlations.values()]))
        for models in _shown(n_independent, correlations["all"].attrs["n_models"]):
            table = correlations[models]
            if table[statistic].notnull().any():
                found[statistic, models] = tables.map_rows(table, statistic, lowest)
    return found


def _figures(
    results: xr.Dataset, with_domains: bool, reference: str, bn_mode: str
) -> dict[str, Any]:
    """Every picture as inline SVG."""
    cells = results["score"].sel(bn_mode=bn_mode).notnull().any(["model", "dataset"]).values
    in_percent = [str(name) for name in shares(results)["protocol"].values]
    shown = [str(p) for p in results["protocol"].values[cells] if p in in_percent]
    comparable = reference in in_percent
    marked = {
        str(name): plots.protocol_label(results, str(name), bn_mode)
        for name in results["protocol"].values
    }
    figures: dict[str, Any] = {"pairs": {}, "domains": {}, "reliability": {}, "shift": None}
    home = marked[reference]
    for name in [p for p in shown if p != reference and comparable]:
        ax = plots.scatter(results, name, reference, bn_mode=bn_mode, ax=_canvas(2.8, 2.55))
        alt = f"Models by mean score: {marked[name]} across, {home} upward. {ax.get_title()}"
        figures["pairs"][name] = inline_svg(ax, f"pair-{name}", alt)
    homes = in_domain_datasets(results)
    others = [str(d) for d in results["dataset"].values if homes and d != homes[0]]
    for name in others if with_domains and comparable else ():
        ax = plots.scatter_domain(
            results,
            name,
            protocol=reference,
            in_domain=homes[0],
            bn_mode=bn_mode,
            ax=_canvas(2.8, 2.55),
        )
        alt = f"Models by {home}: {homes[0]} across, {name} upward. {ax.get_title()}"
        figures["domains"][name] = inline_svg(ax, f"domain-{name}", alt)
    for name in _with_reliability(results, bn_mode):
        ax = plots.reliability(results, protocol=name, bn_mode=bn_mode, ax=_canvas(1.9, 1.9))
        ax.set_title("")  # a caption says it, and can be as long as it likes
        alt = f"Accuracy over confidence by {marked[name]}, a line a model and their mean"
        figures["reliability"][name] = inline_svg(ax, f"reliability-{name}", alt)
    shift = facts.bn_shift(results, bn_mode)
    if shift:
        alt = "Change of the score by BN mode, for each protocol and model with BatchNorm"
        moved = [one["change"].notnull().any(["model", "dataset"]).values for one in shift]
        canvas = _canvas(5.6, 0.6 + 0.42 * np.count_nonzero(np.any(moved, axis=0)))
        ax = plots.bn_shift(results, baseline=bn_mode, ax=canvas)
        figures["shift"] = inline_svg(ax, "bn-shift", alt)
    return figures


def _with_reliability(results: xr.Dataset, bn_mode: str) -> list[str]:
    if "reliability_count" not in results:
        return []
    count = results["reliability_count"].sel(bn_mode=bn_mode)
    there = count.notnull().any(["model", "dataset", "bin"]).values
    return [str(name) for name in results["protocol"].values[there]]


def _canvas(width: float, height: float) -> Axes:
    """Axes of exactly this size in inches: labels lie outside, and the page has room for them."""
    return Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))


def _legend(results: xr.Dataset) -> dict[str, Any]:
    markers = style.backbone_markers(results)
    return {
        "families": style.family_colours(results),
        "backbones": {name: marker_svg(marker) for name, marker in markers.items()},
    }
