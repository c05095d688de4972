"""Colours, markers, text and grids of cells that all pictures share."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart with any common colour blindness. Grey is for random weights.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHADES = {"YlGnBu": "y", "Blues": "b", "RdBu": "r"}
"""Colour maps of the report's tables, and what the classes of their steps begin with."""
_STEPS = 48
_CONTRAST = 4.5  # of text, WCAG 2.2, 1.4.3 (AA); on every colour white or black has it
INK, FAINT, PAPER, GREY = "#22303c", "#8a949e", "#f0f1f3", "#999999"


def family_colours(results: xr.Dataset) -> dict[str, str]:
    """Colour of each family of models; random weights are grey wherever they come."""
    families = sorted({str(name) for name in results["family"].values} - {"random"})
    chosen = {name: OKABE_ITO[i % len(OKABE_ITO)] for i, name in enumerate(families)}
    return chosen | ({"random": GREY} if "random" in results["family"].values else {})


def backbone_markers(results: xr.Dataset) -> dict[str, str]:
    """Matplotlib marker of each backbone."""
    backbones = sorted({str(name) for name in results["backbone"].values})
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(backbones)}


def colour_floor(values: Any) -> float:
    """The tenth below the smallest coefficient, at most .9."""
    finite = values[np.isfinite(values)]
    return min(0.9, float(np.floor(10 * finite.min()) / 10)) if finite.size else 0.0


def ink_on(paper: Any) -> str:
    """White, dark or black: the first that stands out enough from a colour (r, g, b, ...)."""
    share = np.array([*paper[:3], *to_rgb(INK)]).reshape(2, 3)
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ground, ink = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    if 1.05 / ground >= _CONTRAST:
        return "white"
    return INK if ground / ink >= _CONTRAST else "black"


def shades(values: Any, colours: str, low: float, high: float) -> list[list[str]]:
    """CSS class of each cell of a table (row, column), "" where there is no number.

    Parameters
    ----------
    colours : a name in `SHADES` ; low, high : values at its ends
    """
    share = np.clip((values - low) / (high - low), 0, 1)
    steps = np.round(np.nan_to_num(share) * (_STEPS - 1)).astype(int)
    names = np.array([f"{SHADES[colours]}{step}" for step in range(_STEPS)])
    return [list(row) for row in np.where(np.isfinite(share), names[steps], "").tolist()]


def shades_css() -> str:
    """The rules of all classes that `shades` gives."""
    rules = []
    for colours, prefix in SHADES.items():
        for step, paper in enumerate(colormaps[colours](np.linspace(0, 1, _STEPS))):
            ink = ink_on(paper)
            rules.append(f".{prefix}{step}{{background:{to_hex(paper)};color:{ink}}}")
    return "".join(rules)


def literal(name: str) -> str:
    """A name as Matplotlib prints it unchanged: a dollar sign would open a formula."""
    return name.replace("$", r"\$")


def without_frame(ax: Axes) -> None:
    """Neither frame nor tick marks."""
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    ax.set_axisbelow(True)


def calm(ax: Axes) -> None:
    """Grey axes to the left and below, nothing above and to the right."""
    ax.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)


def new_axes(width: float, height: float) -> Axes:
    """Axes that fill a new Figure; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def draw_cells(ax: Axes, values: Any, colours: str, limits: tuple[float, float], text: Any) -> None:
    """A grid of coloured cells with their values written inside."""
    mesh = ax.pcolormesh(
        np.arange(values.shape[1] + 1) - 0.5,
        np.arange(values.shape[0] + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        edgecolors="white",
        linewidth=1.5,
    )
    papers = np.asarray(mesh.cmap(np.asarray(mesh.norm(values))))
    for (row, column), value in np.ndenumerate(values):
        known = np.isfinite(value)
        words, colour = (text(value), ink_on(papers[row, column])) if known else ("–", FAINT)
        cell = ax.text(column, row, words, color=colour, ha="center", va="center", fontsize=9)
        cell.set_in_layout(False)  # it lies inside, and measuring them all takes long
    ax.set_facecolor(PAPER)
    ax.invert_yaxis()  # row 0 on top


def label_cells(ax: Axes, rows: list[str], columns: list[str]) -> None:
    """Names of the rows to the left of such a grid, of the columns above it."""
    ax.set_yticks(range(len(rows)), [literal(name) for name in rows])
    columns = [literal(name) for name in columns]
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    without_frame(ax)
