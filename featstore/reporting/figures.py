"""The report's plots as inline SVG, at the size that the page has for them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featstore.analysis import plots, style
from featstore.analysis.cost import pareto
from featstore.analysis.selection import shares
from featstore.analysis.similarity import similarity_map
from featstore.analysis.study_plots import pareto_front
from featstore.reporting.study import Study
from featstore.reporting.svg import inline_svg, marker_svg
from featstore.reporting.text import on_lines

MOST = 24  # of one kind; more of them take long to draw and nobody looks at them

_SQUARE = (2.8, 2.55)
_POINTS = ["score", "low", "high", "transductive"]  # to choose of these alone is much faster
_LONGEST = 32  # characters of a label on such a square


def pairs(study: Study) -> dict[str, Markup]:
    """A scatter of models by each protocol and the reference, at most `MOST`.

    Of more protocols, these are the ones that go best with the reference.
    """
    others = [name for name in _shown(study) if name != study.reference]
    if study.reference not in _in_percent(study.results):
        return {}
    if len(others) > MOST:
        r = study.correlations["independent"]["pearson"].sel(other=study.reference)
        best = sorted(others, key=lambda name: -np.nan_to_num(r.sel(protocol=name).item(), nan=-2))
        others = [name for name in others if name in best[:MOST]]
    cells = study.ordered[[name for name in _POINTS if name in study.ordered]]
    drawn = {}
    for name in others:
        ax = plots.scatter(
            cells, name, study.reference, bn_mode=study.baseline, ax=canvas(*_SQUARE)
        )
        _fit_labels(ax)
        alt = (
            f"Models by mean score: {study.labels[name]} across, "
            f"{study.labels[study.reference]} upward. {ax.get_title()}"
        )
        drawn[name] = inline_svg(ax, f"pair-{name}", alt)
    return drawn


def domains(study: Study) -> dict[str, Markup]:
    """A scatter of models, in-domain against each other dataset, by the reference; of the first
    `MOST`.
    """
    if study.domains is None or study.reference not in _in_percent(study.results):
        return {}
    home = study.homes[0]
    others = [str(name) for name in study.results["dataset"].values if name != home]
    cells = study.ordered[[name for name in _POINTS if name in study.ordered]]
    drawn = {}
    for name in others[:MOST]:
        ax = plots.scatter_domain(
            cells,
            name,
            protocol=study.reference,
            in_domain=home,
            bn_mode=study.baseline,
            ax=canvas(*_SQUARE),
        )
        _fit_labels(ax)
        alt = (
            f"Models by {study.labels[study.reference]}: {home} across, {name} upward. "
            f"{ax.get_title()}"
        )
        drawn[name] = inline_svg(ax, f"domain-{name}", alt)
    return drawn


def reliability(study: Study) -> dict[str, Markup]:
    """Accuracy over confidence of each protocol that has both, of the first `MOST`."""
    if "reliability_count" not in study.results:
        return {}
    count = study.results["reliability_count"].sel(bn_mode=study.baseline)
    there = count.notnull().any(["model", "dataset", "bin"]).values
    drawn = {}
    for name in [str(name) for name in study.results["protocol"].values[there]][:MOST]:
        ax = plots.reliability(
            study.ordered, protocol=name, bn_mode=study.baseline, ax=canvas(1.9, 1.9)
        )
        ax.set_title("")  # a caption says it, and can be as long as it likes
        alt = f"Accuracy over confidence by {study.labels[name]}, a line a model and their mean"
        drawn[name] = inline_svg(ax, f"reliability-{name}", alt)
    return drawn


def front(study: Study) -> Markup | None:
    """Seconds of each protocol against how well it goes with the most expensive one."""
    found = pareto(
        study.results,
        study.targets[0].attrs["target"],
        bn_mode=study.baseline,
        correlations=study.correlations["independent"],
    )
    if not (found["spearman"].notnull() & (found["seconds"] > 0)).any():
        return None
    ax = pareto_front(found, ax=canvas(5.6, 3.0))
    alt = (
        f"Spearman's correlation with {study.labels[found.attrs['target']]} upward, seconds a "
        f"cell across; the protocols that no cheaper one beats are named"
    )
    return inline_svg(ax, "front", alt)


def bn_shift(study: Study) -> Markup:
    """What each BN mode changes, of a study in which one does."""
    moved = [one["change"].notnull().any(["model", "dataset"]).values for one in study.shift]
    height = 0.6 + 0.42 * np.count_nonzero(np.any(moved, axis=0))
    ax = plots.bn_shift(study.ordered, baseline=study.baseline, ax=canvas(5.6, height))
    alt = "Change of the score by BN mode, for each protocol and model with BatchNorm"
    return inline_svg(ax, "bn-shift", alt)


def alike(found: xr.Dataset, bn_mode: str) -> Markup:
    """The answer of `open_similarity` as a map."""
    side = 0.31 * found.sizes["model"]
    ax = similarity_map(found, bn_mode=bn_mode, ax=canvas(side, side))
    alt = "Linear CKA of the features of every two models, mean over datasets"
    return inline_svg(ax, "alike", alt)


def legend(results: xr.Dataset) -> dict[str, dict[str, str]]:
    """Colour of each family, and marker of each backbone as SVG."""
    markers = style.backbone_markers(results)
    return {
        "families": style.family_colours(results),
        "backbones": {name: marker_svg(marker) for name, marker in markers.items()},
    }


def _in_percent(results: xr.Dataset) -> list[str]:
    """Protocols whose scores are shares, which alone are drawn."""
    return [str(name) for name in shares(results)["protocol"].values]


def _shown(study: Study) -> list[str]:
    """Of these, protocols with a score."""
    scores = study.results["score"].sel(bn_mode=study.baseline)
    there = scores.notnull().any(["model", "dataset"]).values
    drawn = _in_percent(study.results)
    return [str(name) for name in study.results["protocol"].values[there] if name in drawn]


def _fit_labels(ax: Axes) -> None:
    """Long names on more lines: a plot that is wider than its neighbours would be drawn smaller."""
    ax.set_xlabel(on_lines(ax.get_xlabel(), _LONGEST))
    ax.set_ylabel(on_lines(ax.get_ylabel(), _LONGEST))


def canvas(width: float, height: float) -> Axes:
    """Axes of exactly this size in inches: labels lie outside, and the page has room for them."""
    return Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
