"""Figures of `ericsson2021_analysis.py`: each function draws on what it is given and returns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import expit, logit

# Okabe & Ito (2008): told apart with any common colour blindness.
COLOURS = {
    "clustering": "#0072B2",
    "contrastive": "#D55E00",
    "self-distillation": "#009E73",
    "supervised": "#22303c",
}
INK, FAINT = "#22303c", "#8a949e"

TITLES = {
    "logreg-ericsson": "many-shot, linear",
    "finetune-ericsson": "many-shot, fine-tuned",
    "fewshot-5shot-ericsson": "few-shot, 5 images",
    "fewshot-20shot-ericsson": "few-shot, 20 images",
    "fewshot-50shot-ericsson": "few-shot, 50 images",
}
DENSE = {
    "detection-frozen": "detection, frozen",
    "detection-finetune": "detection, tuned",
    "normals-frozen": "normals",
    "segmentation-finetune": "segmentation",
}
METRICS = {
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75", "miou": "mIoU", "pixel_accuracy": "pixels"},
    **{"mean_angular_error": "mean error", "median_angular_error": "median error"},
    **{"within_11_25": "within 11.25°", "within_22_5": "within 22.5°", "within_30": "within 30°"},
}

# Where a label may stand beside its point: points right and up, and its alignment.
_PLACES = (
    *((4, 2, "left"), (4, -7, "left"), (-4, 2, "right"), (-4, -7, "right")),
    *((0, 6, "center"), (0, -11, "center"), (4, 9, "left"), (-4, 9, "right"), (4, -14, "left")),
)
_LETTER, _LINE = 3.4, 6.5  # width and height of a label's letter in points
_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif"}


def write(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, with text as text, and as PNG."""
    with rc_context(_STYLE):
        for kind in ("svg", "png"):
            figure.savefig(path.with_suffix(f".{kind}"), dpi=150, bbox_inches="tight")


def against_imagenet(groups: xr.Dataset, percent: pd.DataFrame, found: xr.Dataset) -> Figure:
    """ImageNet top-1 across, every task group upward: a panel a group, a point a model.

    Parameters
    ----------
    groups : of which the families are taken
    percent : (model, group), with ImageNet among the groups
    found : correlations of every two groups
    """
    names = [name for name in percent.columns if name != "ImageNet"]
    figure = Figure(figsize=(14.5, 7))
    axes = figure.subplots(2, -(-len(names) // 2))
    figure.subplots_adjust(0.05, 0.13, 0.99, 0.95, wspace=0.25, hspace=0.36)
    for ax, name in zip(axes.flat, names, strict=True):
        one_group(groups, percent, found, name, ax=ax)
    points = [Line2D([], [], color=c, marker="o", linestyle="") for c in COLOURS.values()]
    figure.legend(points, list(COLOURS), loc="lower center", ncols=len(points), frameon=False)
    return figure


def one_group(
    groups: xr.Dataset, percent: pd.DataFrame, found: xr.Dataset, name: str, *, ax: Axes
) -> Axes:
    """Models by ImageNet top-1 and by one task group, on logit scales where both are shares."""
    degrees = name == "surface normals"
    x, y = percent["ImageNet"] / 100, percent[name] / (1 if degrees else 100)
    ax.set_xscale("logit")
    ax.set_yscale("linear" if degrees else "logit")
    family = groups["family"].to_series()
    ax.scatter(x, y, s=26, c=[COLOURS[family[model]] for model in percent.index], zorder=2)
    _frame(ax, x, y, share=not degrees)
    if degrees:
        ax.invert_yaxis()  # an error: up is better, as everywhere
    _label(ax, x, y, groups["method"].to_series())
    row = found.sel(protocol="ImageNet", other=name)
    r, low, high = (float(row[f"pearson{end}"]) for end in ("", "_low", "_high"))
    title = f"r = {r:.2f} [{low:.2f}, {high:.2f}],  ρ = {float(row['spearman']):.2f}"
    ax.set_title(title.replace("-", "−"), fontsize=9.5, color=INK)
    ax.set_xlabel("ImageNet top-1 (%)", fontsize=9, color=INK)
    ax.set_ylabel(f"{name} ({'degrees' if degrees else '%'})", fontsize=9, color=INK)
    calm(ax)
    return ax


def _frame(ax: Axes, x: pd.Series, y: pd.Series, *, share: bool) -> None:
    """Limits with room for labels, and ticks at round shares."""
    for values, axis, set_limits in ((x, ax.xaxis, ax.set_xlim), (y, ax.yaxis, ax.set_ylim)):
        logits = axis is ax.xaxis or share
        scaled = logit(values) if logits else values
        low, high = scaled.min(), scaled.max()
        room = 0.14 * (high - low)
        ends = np.array([low - room, high + room])
        set_limits(*(expit(ends) if logits else ends))
        if logits:
            ticks = _ticks(*expit(ends))
            axis.set_ticks(ticks, [f"{100 * tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)


def _ticks(low: float, high: float) -> list[float]:
    """Four or more round shares between two."""
    ticks: list[float] = []
    for step in (0.1, 0.05, 0.02, 0.01, 0.005):
        ticks = [float(t) for t in np.arange(step, 1, step).round(4) if low <= t <= high]
        if len(ticks) >= 4:
            break
    return ticks


def _label(ax: Axes, x: pd.Series, y: pd.Series, names: pd.Series) -> None:
    """Names beside the points, each where it hides least and stays inside."""
    frame = tuple(ax.get_window_extent().extents * 72 / ax.figure.dpi)
    points = ax.transData.transform(np.column_stack([x, y])) * 72 / ax.figure.dpi
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in points]
    for model, (px, py) in zip(x.index, points, strict=True):
        text = names[model]
        boxes = []
        for dx, dy, side in _PLACES:
            width = _LETTER * len(text)
            left = px + dx - {"left": 0, "center": 0.5, "right": 1}[side] * width
            boxes.append((left, py + dy, left + width, py + dy + _LINE))
        outside = [_LETTER * len(text) * _LINE - _overlap(box, frame) for box in boxes]
        hidden = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = int(np.argmin(np.add(hidden, outside)))
        taken.append(boxes[best])
        dx, dy, side = _PLACES[best]
        ax.annotate(
            text, (x[model], y[model]), xytext=(dx, dy), textcoords="offset points", ha=side,
            fontsize=6.5, color=INK,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(wide, 0.0) * max(high, 0.0)


def placed(places: pd.DataFrame) -> Axes:
    """Places of the methods in each task group, dark where good."""
    columns = [name for name in places.columns if name != "mean"]
    figure = Figure(
        figsize=(1.6 + 0.75 * len(columns), 0.9 + 0.34 * len(places)), layout="constrained"
    )
    ax = figure.subplots()
    values = places[columns].to_numpy()
    ax.imshow(values, cmap="YlGnBu_r", aspect="auto", vmin=-2, vmax=len(places) + 4)
    for (row, column), place in np.ndenumerate(values):
        dark = place <= len(places) / 2
        ax.text(
            column, row, f"{place:g}", ha="center", va="center", fontsize=9,
            color="white" if dark else INK,
        )  # fmt: skip
    ax.set_yticks(range(len(places)), places.index, fontsize=9)
    ax.set_xticks(
        range(len(columns)), columns, fontsize=9, rotation=40, ha="left", rotation_mode="anchor"
    )
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelcolor=INK)
    ax.spines[:].set_visible(False)
    return ax


def with_intervals(settings: pd.DataFrame) -> Figure:
    """Pearson's r with ImageNet and its interval of every dataset, a panel a setting."""
    parts = {title: settings.xs(name, level="protocol") for name, title in TITLES.items()}
    parts = {title: part.droplevel("metric") for title, part in parts.items()}
    dense = settings[settings.index.get_level_values("protocol").isin(DENSE)]
    names = [f"{DENSE[p]}: {METRICS[metric]}" for p, _, metric in dense.index]
    parts["detection, dense prediction"] = dense.set_axis(pd.Index(names))
    figure = Figure(figsize=(14, 7.4))
    figure.subplots_adjust(0.08, 0.08, 0.99, 0.95, wspace=0.48, hspace=0.22)
    for ax, (title, part) in zip(figure.subplots(2, 3).flat, parts.items(), strict=True):
        height = np.arange(len(part))
        reach = [part["pearson"] - part["pearson_low"], part["pearson_high"] - part["pearson"]]
        ax.errorbar(
            part["pearson"], height, xerr=np.maximum(reach, 0), fmt="o", markersize=4,
            color=COLOURS["clustering"], elinewidth=1.2,
        )  # fmt: skip
        ax.axvline(0, color=FAINT, linewidth=0.8)
        ax.set_yticks(height, list(part.index))
        ax.set_ylim(len(part) - 0.4, -0.6)
        ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
        ax.set_xlim(-1, 1.02)
        ax.set_title(title, fontsize=10, color=INK)
        calm(ax)
    figure.supxlabel("Pearson's r with ImageNet top-1, 95 % interval", fontsize=9.5, color=INK)
    return figure


def calm(ax: Axes) -> None:
    """Grey axes to the left and below, nothing above and to the right."""
    ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
