"""Pictures of results, each drawn on the `ax` it is given or on one of a new Figure.

Nothing here touches pyplot: no window opens, and no figure stays behind in its list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from featstore.analysis.calibration import pooled_reliability
from featstore.analysis.rank import mean_over_datasets
from featstore.analysis.resampling import FEWEST_MODELS
from featstore.analysis.selection import in_domain_datasets, is_independent, shares
from featstore.analysis.style import (
    FAINT,
    INK,
    OKABE_ITO,
    PAPER,
    backbone_markers,
    calm,
    colour_floor,
    draw_cells,
    family_colours,
    label_cells,
    literal,
    new_axes,
    without_frame,
)
from featstore.kernels.correlate import pearson, spearman

DAGGER = "†"
_LEAST_SHARE = 0.01  # of test images; what fewer say of a bin is mostly noise


def protocol_label(results: xr.Dataset, protocol: str, bn_mode: str = "eval") -> str:
    """The protocol's name, with a dagger if it sees all test images at once."""
    marked = bool(results["transductive"].sel(protocol=protocol, bn_mode=bn_mode))
    return f"{protocol} {DAGGER}" if marked else protocol


def mode_label(bn_mode: str) -> str:
    """The BN mode's name, with a dagger if test images are normalised by one another."""
    return f"{bn_mode} {DAGGER}" if bn_mode == "batch" else bn_mode


def heat_map(
    results: xr.Dataset,
    *,
    protocol: str,
    metric: str = "score",
    bn_mode: str = "eval",
    ax: Axes | None = None,
) -> Axes:
    """Scores in percent of every model on every dataset, with a dash where a cell is missing."""
    cells = results[metric].sel(protocol=protocol, bn_mode=bn_mode)
    values = cells.transpose("model", "dataset").values
    rows, columns = values.shape
    if ax is None:
        ax = new_axes(2.2 + 0.78 * columns, 0.9 + 0.3 * rows)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    draw_cells(ax, values, "YlGnBu", (low, max(high, low + 0.01)), lambda v: f"{100 * v:.1f}")
    names = [
        str(name) if independent else f"{name}  ({stage})"
        for name, stage, independent in zip(
            cells["model"].values, results["stage"].values, is_independent(results), strict=True
        )
    ]
    label_cells(ax, names, [str(name) for name in cells["dataset"].values])
    return ax


def correlation_map(
    correlations: xr.Dataset,
    *,
    statistic: str = "pearson",
    lowest: float | None = None,
    labels: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The answer of `correlate_protocols` as a square, with a dash where there is no coefficient.

    Colours run from `lowest` (by default the tenth below the smallest coefficient) to 1, or from
    -1 to 1 if any is negative. `labels` replaces names of protocols; by default those that see all
    test images at once have a dagger.
    """
    values = correlations[statistic].transpose("protocol", "other").values
    if ax is None:
        ax = new_axes(2.0 + 0.46 * len(values), 1.6 + 0.36 * len(values))
    lowest = colour_floor(values) if lowest is None else lowest
    colours, limits = ("RdBu", (-1.0, 1.0)) if lowest < 0 else ("Blues", (lowest, 1.0))
    draw_cells(
        ax, values, colours, limits, lambda v: f"{v:.2f}".replace("-", "−").replace("0.", ".")
    )
    names = [str(name) for name in correlations["protocol"].values]
    if labels is None and "transductive" in correlations.coords:
        marks = correlations["transductive"].values
        labels = {name: f"{name} {DAGGER}" for name, mark in zip(names, marks, strict=True) if mark}
    names = [(labels or {}).get(name, name) for name in names]
    label_cells(ax, names, names)
    return ax


def scatter(
    results: xr.Dataset,
    protocol_a: str,
    protocol_b: str,
    *,
    dataset: str | None = None,
    bn_mode: str = "eval",
    ax: Axes | None = None,
) -> Axes:
    """Models by two protocols, on one dataset or by their means over the datasets both have.

    A mean is drawn only for models that have all of these cells, since one that lacks a hard
    dataset would sit too far up on both axes. The coefficients are of independent models.
    """
    cells = results.sel(bn_mode=bn_mode)
    sides = [cells.sel(protocol=name) for name in (protocol_a, protocol_b)]
    if dataset is not None:
        points = [side[["score", "low", "high"]].sel(dataset=dataset) for side in sides]
    else:
        both = sides[0]["score"].notnull() & sides[1]["score"].notnull()
        used = both.any("model")
        whole = (both | ~used).all("dataset")
        points = [mean_over_datasets(side.sel(dataset=used)).where(whole) for side in sides]
    ax = _points(results, points[0], points[1], ax)
    ax.axline((50, 50), slope=1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ax.set_xlabel(literal(f"{protocol_label(results, protocol_a, bn_mode)} (%)"))
    ax.set_ylabel(literal(f"{protocol_label(results, protocol_b, bn_mode)} (%)"))
    return ax


def scatter_domain(
    results: xr.Dataset,
    dataset: str,
    *,
    protocol: str,
    in_domain: str | None = None,
    bn_mode: str = "eval",
    ax: Axes | None = None,
) -> Axes:
    """Models by one protocol, in-domain against another dataset."""
    home = in_domain if in_domain is not None else in_domain_datasets(results)[0]
    cells = results.sel(bn_mode=bn_mode, protocol=protocol)[["score", "low", "high"]]
    ax = _points(results, cells.sel(dataset=home), cells.sel(dataset=dataset), ax)
    ax.set_xlabel(literal(f"{home} (%)"))
    ax.set_ylabel(literal(f"{dataset} (%)"))
    return ax


def scatter_grid(
    results: xr.Dataset,
    *,
    protocol: str,
    in_domain: str | None = None,
    bn_mode: str = "eval",
    columns: int = 3,
) -> Figure:
    """`scatter_domain` for every dataset but the in-domain one, in one Figure."""
    home = in_domain if in_domain is not None else in_domain_datasets(results)[0]
    others = [str(name) for name in results["dataset"].values if name != home]
    rows = -(-len(others) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.1 * max(rows, 1)), layout="constrained")
    for number, name in enumerate(others):
        ax = figure.add_subplot(rows, columns, number + 1)
        scatter_domain(results, name, protocol=protocol, in_domain=home, bn_mode=bn_mode, ax=ax)
    return figure


def bn_shift(results: xr.Dataset, *, baseline: str = "eval", ax: Axes | None = None) -> Axes:
    """Percentage points that each BN mode adds over `baseline`: a dot a model, a bar the mean.

    Dots are means over datasets, of models that have BatchNorm; protocols that no other mode has
    are left out.
    """
    results = shares(results)
    scores = results["score"].sel(model=~results["bn_free"].astype(bool))
    modes = [str(mode) for mode in scores["bn_mode"].values if mode != baseline]
    change = scores.sel(bn_mode=modes) - scores.sel(bn_mode=baseline)
    change = change.mean("dataset").dropna("protocol", how="all")
    protocols = [str(name) for name in change["protocol"].values]
    if ax is None:
        ax = new_axes(7.2, 0.9 + 0.34 * len(protocols) * max(1, len(modes)) ** 0.5)
    ax.axvline(0, color=FAINT, linewidth=0.8)
    for number, mode in enumerate(modes):
        gain = 100 * change.sel(bn_mode=mode)
        height = np.arange(len(protocols)) + 0.36 * (number - (len(modes) - 1) / 2)
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        dots = gain.transpose("protocol", "model").values
        where = np.broadcast_to(height[:, None], dots.shape)
        ax.scatter(dots, where, s=14, color=colour, alpha=0.45, linewidths=0)
        mean = gain.mean("model").values
        ax.scatter(
            mean, height, s=130, marker="|", color=colour, linewidths=2.4, label=mode_label(mode)
        )
    names = [protocol_label(results, name, baseline) for name in protocols]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(f"change against {baseline} (points)", fontsize=9.5, color=INK)
    ax.legend(
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=4,
        fontsize=9.5,
        handlelength=1,
    )
    without_frame(ax)
    ax.grid(axis="x", color=PAPER)
    return ax


def reliability(
    results: xr.Dataset,
    *,
    protocol: str,
    dataset: str | None = None,
    bn_mode: str = "eval",
    ax: Axes | None = None,
) -> Axes:
    """Accuracy over confidence in 15 bins: a thin line a model, a thick one all, bars their images.

    On the diagonal confidence is what it says; below it is too high. A model counts as much as
    another, and each dataset too unless one is chosen. Bars are the share of test images in a bin;
    a line leaves out bins with less than a hundredth of its images.
    """
    pooled, by_model = pooled_reliability(
        results, protocol=protocol, dataset=dataset, bn_mode=bn_mode
    )
    if ax is None:
        ax = new_axes(3.3, 3.2)
    edges = 100 * np.linspace(0, 1, pooled.sizes["bin"] + 1)
    ax.bar(
        edges[:-1], 100 * pooled["share"].values, np.diff(edges), align="edge",
        color=PAPER, edgecolor="white", linewidth=0.8,
    )  # fmt: skip
    ax.axline((0, 0), slope=1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    colour = OKABE_ITO[0]
    for name in by_model["model"].values:
        (line,) = _reliability_line(ax, by_model.sel(model=name), color=colour, linewidth=0.7)
        line.set(alpha=0.35, gid=f"tip:{name}")
    _reliability_line(ax, pooled, color=colour, linewidth=2, marker="o", markersize=3.5)
    ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    ax.set_xlabel("confidence (%)", fontsize=9.5, color=INK)
    ax.set_ylabel("accuracy (%)", fontsize=9.5, color=INK)
    ax.set_title(literal(protocol_label(results, protocol, bn_mode)), fontsize=9.5, color=INK)
    calm(ax)
    return ax


def _reliability_line(ax: Axes, side: xr.Dataset, **style: Any) -> list[Line2D]:
    shown = side.isel(bin=np.flatnonzero(side["share"].values >= _LEAST_SHARE))
    return ax.plot(100 * shown["confidence"].values, 100 * shown["accuracy"].values, **style)


def _points(results: xr.Dataset, x: xr.Dataset, y: xr.Dataset, ax: Axes | None) -> Axes:
    """One marker a model with its intervals, and the coefficients on top."""
    if ax is None:
        ax = new_axes(3.3, 3.2)
    colours, markers = family_colours(results), backbone_markers(results)
    independent = is_independent(results).values
    shown = (x["score"].notnull() & y["score"].notnull()).values
    names, families, backbones = (results[c].values for c in ("model", "family", "backbone"))
    (across, reach_x), (upward, reach_y) = _bars(x), _bars(y)
    ax.errorbar(
        across[shown],
        upward[shown],
        xerr=reach_x[:, shown],
        yerr=reach_y[:, shown],
        fmt="none",
        ecolor=[colours[str(one)] for one in families[shown]],  # type: ignore[arg-type]  # a list of colours is taken
        elinewidth=0.7,
        alpha=0.9,
    )
    for number in np.flatnonzero(shown):
        colour = colours[str(families[number])]
        (mark,) = ax.plot(
            across[number],
            upward[number],
            markers[str(backbones[number])],
            color=colour,
            markerfacecolor=colour if independent[number] else "white",
            markersize=5.5,
            alpha=0.9,
        )
        mark.set_gid(f"tip:{names[number]}")  # the report turns it into a tooltip
    _fit_limits(ax, across[shown], upward[shown])
    ax.set_title(_coefficients(x, y, shown & independent), fontsize=9.5, color=INK)
    calm(ax)
    ax.xaxis.label.set(fontsize=9.5, color=INK)
    ax.yaxis.label.set(fontsize=9.5, color=INK)
    return ax


def _fit_limits(ax: Axes, x: Any, y: Any) -> None:
    """Limits of each axis around its own points, with room for the intervals."""
    for values, set_limits in ((x, ax.set_xlim), (y, ax.set_ylim)):
        low, high = (values.min(), values.max()) if values.size else (0.0, 100.0)
        room = max(0.12 * (high - low), 2.0)
        set_limits(low - room, high + room)


def _bars(side: xr.Dataset) -> tuple[Any, Any]:
    """Scores (model,) and the lengths of both halves of their error bars (2, model), in percent."""
    score, low, high = (100 * side[name].values for name in ("score", "low", "high"))
    return score, np.nan_to_num(np.maximum([score - low, high - score], 0))


def _coefficients(x: xr.Dataset, y: xr.Dataset, used: Any) -> str:
    """r, rho and the number of independent models, or why there is no r."""
    n = int(np.count_nonzero(used))
    if n < FEWEST_MODELS:
        return f"no r: {n} independent models, it takes {FEWEST_MODELS}"
    a, b = x["score"].values[used], y["score"].values[used]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return "no r: all scores on one axis are equal"
    r, rho = (f"{float(f(a, b)):.2f}".replace("-", "−") for f in (pearson, spearman))
    return f"r = {r},  ρ = {rho}  (n = {n})"
