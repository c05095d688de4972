"""Pictures of what a study concludes, of families, rankings, cost and forecasts.

Each is drawn on the `ax` it is given or on one of a new Figure, and returns it, as in `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from featstore.analysis.plots import DAGGER
from featstore.analysis.style import (
    FAINT,
    GREY,
    INK,
    OKABE_ITO,
    PAPER,
    backbone_markers,
    calm,
    family_colours,
    literal,
    new_axes,
    without_frame,
)

_GAPS = {"pooled": "before", "within": "after"}
_ROOM = 0.05  # of the width, for a name that is written aslant
_COEFFICIENTS = {"same_top": "same top", "overlap": "shared of the top", "kendall": "Kendall's τ"}


def family_gaps(gaps: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """The answer of `family_gap`: each protocol's gap before and after, with intervals.

    In points, or in logits if these were compared. A gap without an interval, which hangs on one
    model, has a hollow marker.
    """
    points = gaps.attrs["scale"] != "logit"
    factor = 100 if points else 1
    names = [str(name) for name in gaps["protocol"].values]
    if ax is None:
        ax = new_axes(6.4, 1.3 + 0.42 * len(names))
    ax.axvline(0, color=FAINT, linewidth=0.8)
    held = gaps.attrs["hold"]
    for number, (name, when) in enumerate(_GAPS.items()):
        colour = (GREY, OKABE_ITO[0])[number]
        middle, low, high = (factor * gaps[f"{name}{end}"].values for end in ("", "_low", "_high"))
        height = np.arange(len(names)) + 0.26 * (number - 0.5)
        ax.hlines(height, low, high, color=colour, linewidth=1.6)
        ax.scatter(
            middle, height, s=30, edgecolors=colour, zorder=3,
            facecolors=[colour if sure else "white" for sure in np.isfinite(low)],
        )  # fmt: skip
        ax.scatter([], [], s=30, color=colour, label=f"{when} accounting for the {held}")
    ax.set_yticks(range(len(names)), [literal(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    first, second = (str(name) for name in gaps["group"].values)
    unit = "points" if points else "logits"
    ax.set_xlabel(f"{literal(first)} − {literal(second)} ({unit})", fontsize=9.5, color=INK)
    _legend_above(ax)
    without_frame(ax)
    ax.grid(axis="x", color=PAPER)
    return ax


def stability_curves(
    stability: xr.Dataset | Mapping[str, xr.Dataset], *, ax: Axes | None = None
) -> Axes:
    """Answers of `ranking_stability` over what was drawn.

    Of one: the share of draws with the same best models, what is shared of these, and Kendall's
    tau with the band that holds 95 % of draws. Of several by name: the share of draws with the
    same best models of each. A ring marks where they are settled.
    """
    ax = ax if ax is not None else new_axes(4.6, 3.2)
    one = isinstance(stability, xr.Dataset)
    curves = (
        {label: (stability, name) for name, label in _COEFFICIENTS.items()}
        if isinstance(stability, xr.Dataset)
        else {label: (found, "same_top") for label, found in stability.items()}
    )
    ax.axhline(0.95, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    for number, (label, (found, name)) in enumerate(curves.items()):
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        sizes = found["size"].values
        ax.plot(sizes, found[name].values, "o-", markersize=4, color=colour, label=literal(label))
        if name == "kendall":
            low, high = (found[f"kendall{end}"].values for end in ("_low", "_high"))
            ax.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        settled = found["settled_at"].values
        if name == "same_top" and np.isfinite(settled):
            at = float(found["same_top"].sel(size=settled))
            ax.plot(settled, at, "o", color=colour, markersize=11, markerfacecolor="none")
    told = stability if isinstance(stability, xr.Dataset) else next(iter(stability.values()))
    over, top = told.attrs["over"], told.attrs["top"]
    if over != "datasets":
        ax.set_xscale("log")
        sizes = told["size"].values
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    what = {"datasets": "datasets", "images": "test images", "labels": "labels a category"}[over]
    calm(ax)
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.03)
    ax.set_xlabel(what, fontsize=9.5, color=INK)
    label = "agreement with all" if one else f"share with the same top {top}"
    ax.set_ylabel(label, fontsize=9.5, color=INK)
    if one:
        ax.set_title(literal(f"{told.attrs['protocol']}, top {top}"), fontsize=9.5, color=INK)
    legend = ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    if not one:  # many cross it
        legend.set_loc("center left")
        legend.set_bbox_to_anchor((1, 0.5))
    return ax


def pareto_front(costs: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """The answer of `pareto`: seconds, on a logarithmic scale, against Spearman's ρ.

    Efficient protocols are joined by a line and named above, with a dagger if they see all test
    images at once. A dotted line marks the seconds of the target.
    """
    ax = ax if ax is not None else new_axes(6.4, 4.2)
    known = (costs["seconds"] > 0) & costs["spearman"].notnull()
    costs = costs.isel(protocol=np.flatnonzero(known.values))
    seconds, rho = costs["seconds"].values, costs["spearman"].values
    reach = np.abs([costs[f"spearman_{end}"].values - rho for end in ("low", "high")])
    efficient = costs["efficient"].values
    for which, colour in ((~efficient, GREY), (efficient, OKABE_ITO[0])):
        ax.errorbar(
            seconds[which], rho[which], yerr=np.nan_to_num(reach[:, which]), fmt="none",
            ecolor=colour, elinewidth=0.8, alpha=0.6,
        )  # fmt: skip
    names = [str(name) for name in costs["protocol"].values]
    marks = costs["transductive"].values if "transductive" in costs.coords else [False] * len(names)
    names = [f"{name} {DAGGER}" if mark else name for name, mark in zip(names, marks, strict=True)]
    for number, name in enumerate(names):
        colour = OKABE_ITO[0] if efficient[number] else GREY
        (mark,) = ax.plot(seconds[number], rho[number], "o", color=colour, markersize=5.5)
        mark.set_gid(f"tip:{name}")
    ax.set_xscale("log")
    front = np.flatnonzero(efficient)[np.argsort(seconds[efficient], kind="stable")]
    ax.plot(
        seconds[front], rho[front], color=OKABE_ITO[0], linewidth=1.2, drawstyle="steps-post",
        zorder=1,
    )  # fmt: skip
    ax.axvline(costs.attrs["seconds"], color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    target = literal(str(costs.attrs["target"]))
    ax.set_xlabel("seconds of the median cell", fontsize=9.5, color=INK)
    ax.set_ylabel(f"Spearman's ρ with {target}", fontsize=9.5, color=INK)
    calm(ax)
    ax.set_ylim(max(-1.0, rho.min(initial=1.0) - 0.1), 1.04)
    _name_above(ax, seconds[front], rho[front], [names[at] for at in front])
    return ax


def predicted_against_true(forecasts: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """The answer of `forecast` in percent: foretold against true scores, a marker a cell.

    Colours are families, markers backbones. The title has skill over the training mean.
    """
    ax = ax if ax is not None else new_axes(3.6, 3.5)
    colours, markers = family_colours(forecasts), backbone_markers(forecasts)
    across, upward = (
        100 * forecasts[name].transpose("model", "dataset").values for name in ("predicted", "true")
    )
    families, backbones = (
        [str(one) for one in forecasts[name].values] for name in ("family", "backbone")
    )
    for number, (family, backbone) in enumerate(zip(families, backbones, strict=True)):
        ax.scatter(
            across[number], upward[number], s=16, marker=markers[backbone], color=colours[family],
            alpha=0.7, linewidths=0,
        )  # fmt: skip
    ax.axline((50, 50), slope=1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    known = np.concatenate([across[np.isfinite(across)], upward[np.isfinite(upward)]])
    low, high = (known.min(), known.max()) if known.size else (0.0, 100.0)
    room = max(0.05 * (high - low), 1.0)
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
    ax.set_xlabel("foretold (%)", fontsize=9.5, color=INK)
    target = literal(str(forecasts.attrs["target"]))
    ax.set_ylabel(f"{target} (%)", fontsize=9.5, color=INK)
    ax.set_title(_skill(forecasts), fontsize=9.5, color=INK)
    calm(ax)
    return ax


def _skill(forecasts: xr.Dataset) -> str:
    """Skill over the training mean with its interval, and the mean error."""
    over = forecasts.sel(baseline="mean")
    skill, low, high = (float(over[f"skill{end}"]) for end in ("", "_low", "_high"))
    if np.isnan(skill):
        return "nothing foretold: too few models to learn from"
    limits = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    words = f"skill {skill:.2f}{limits}, error {100 * float(over['mae_mean']):.1f} points"
    return words.replace("-", "−")


def _legend_above(ax: Axes) -> None:
    ax.legend(
        frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9.5,
        handlelength=1, labelcolor=INK,
    )  # fmt: skip


def _name_above(ax: Axes, x: Any, y: Any, names: list[str]) -> None:
    """Names above the axes of points in order of x, side by side, each with a line to its point."""
    low, high = np.log(ax.get_xlim())
    place = (np.log(x) - low) / (high - low)
    for number in range(1, len(place)):
        place[number] = max(place[number], place[number - 1] + _ROOM)
    for across, up, at, name in zip(x, y, place, names, strict=True):
        ax.annotate(
            literal(name), (across, up), xytext=(at, 1.03), textcoords=ax.transAxes, rotation=40,
            rotation_mode="anchor", fontsize=8.5, color=INK,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "relpos": (0, 0)},
        )  # fmt: skip
