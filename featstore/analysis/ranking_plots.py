"""Pictures of rankings, and of what in them is sure.

Each is drawn on the `ax` it is given or on one of a new Figure, as in `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from featstore.analysis.style import FAINT, INK, OKABE_ITO, PAPER, literal, new_axes, without_frame

_BEST, _OTHER = OKABE_ITO[0], FAINT
_OPEN = "not separable from the best"
_ROW, _LETTER = 0.24, 0.085  # inches, of names


def ranking_plot(comparison: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """The answer of `compare_models`: each model's rank and score with intervals, the best on top.

    A dot is the rank, a bar the ranks that it may have; all bars hold at once. Filled blue dots are
    the best model and those not separable from it; hollow grey ones are worse. Scores stand to the
    right, with intervals of each by itself.
    """
    names = [str(name) for name in comparison["model"].values]
    if ax is None:
        ax = new_axes(5.2 + _LETTER * max(map(len, names)), 1.2 + _ROW * len(names))
    confidence = f"{100 * comparison.attrs['confidence']:g} %"
    open_ended = ~comparison["separable_from_best"].values.astype(bool)
    columns = (comparison[name].values for name in ("rank", "rank_low", "rank_high"))
    for row, (rank, low, high) in enumerate(zip(*columns, strict=True)):
        colour = _BEST if open_ended[row] else _OTHER
        ax.plot([low, high], [row, row], color=colour, linewidth=4, alpha=0.4, zorder=2)
        (dot,) = ax.plot(
            rank, row, "o", color=colour, markersize=5.5,
            markerfacecolor=colour if open_ended[row] else "white", zorder=3,
        )  # fmt: skip
        dot.set_gid(f"tip:{names[row]}: rank {low:g} to {high:g}")  # a tooltip in the report
    for filled, label in ((True, _OPEN), (False, "worse than the best")):
        if (open_ended == filled).any():
            colour = _BEST if filled else _OTHER
            ax.plot(
                [], [], "o", color=colour, markerfacecolor=colour if filled else "white",
                markersize=5.5, label=label,
            )  # fmt: skip
    scores = (100 * comparison[name].values for name in ("score", "score_low", "score_high"))
    for row, (score, low, high) in enumerate(zip(*scores, strict=True)):
        _beside(ax, row, f"{score:.1f}  [{low:.1f}, {high:.1f}]", INK)
    _beside(ax, -1, f"score (%)  [{confidence}]", FAINT)
    ax.set_yticks(range(len(names)), [literal(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0.4, len(names) + 0.6)
    ax.set_xticks(_ticks(len(names)))
    ax.set_xlabel(f"rank, with {confidence} intervals that hold at once", fontsize=9.5, color=INK)
    ax.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9,
        handletextpad=0.2, borderaxespad=0.2, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip
    without_frame(ax)
    ax.grid(axis="both", color=PAPER)
    return ax


def _beside(ax: Axes, row: float, words: str, colour: str) -> None:
    """Text in a column to the right."""
    ax.text(
        1.03, row, words, transform=ax.get_yaxis_transform(), va="center", fontsize=9, color=colour
    )


def critical_difference_plot(critical: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """The answer of `critical_difference` as the diagram of Demsar (2006), section 3.2.4.

    Models hang from their mean ranks, the best on the left. A thick bar joins those of which no two
    differ. The best model and those not separable from it are blue, and their dots filled.
    """
    names = [str(name) for name in critical["model"].values]
    mean = critical["mean_rank"].values
    spans = [mean[row][[0, -1]] for row in critical["member"].values.astype(bool)]
    bars = _rows_apart(spans)
    deep = 1.0 + 0.5 * (max(bars, default=-1) + 1)  # where the first name hangs
    count = len(names)
    left = (count + 1) // 2
    if ax is None:
        letters = sum(max(map(len, side)) for side in (names[:left], names[left:]))
        ax = new_axes(4.2 + _LETTER * letters, 0.9 + _ROW * (deep + left))
    open_ended = ~critical["separable_from_best"].values.astype(bool)
    room = 0.03 * (count - 1)
    for place, name in enumerate(names):
        here = place < left
        depth = deep + (place if here else count - 1 - place)
        side = 1 - room if here else count + room
        colour, ink = (_BEST, _BEST) if open_ended[place] else (_OTHER, INK)
        ax.plot([mean[place]] * 2 + [side], [0, depth, depth], color=colour, linewidth=0.9)
        (dot,) = ax.plot(
            mean[place], 0, "o", color=colour, markersize=4.5,
            markerfacecolor=colour if open_ended[place] else "white", zorder=4,
        )  # fmt: skip
        dot.set_gid(f"tip:{name}: mean rank {mean[place]:.2f}")
        words = [literal(name), f"{mean[place]:.1f}"]
        ax.annotate(
            "  ".join(words if here else words[::-1]), (side, depth), (-3 if here else 3, 0),
            textcoords="offset points", ha="right" if here else "left", va="center", fontsize=9,
            color=ink,
        )  # fmt: skip
    for (first, last), row in zip(spans, bars, strict=True):
        height = 0.55 + 0.5 * row
        ends = [first - room / 4, last + room / 4]
        ax.plot(ends, [height] * 2, color=INK, linewidth=3.2, solid_capstyle="butt", zorder=3)
    distance = float(critical.attrs["critical_difference"])
    ax.plot([1, 1 + distance], [-1.9] * 2, "|-", color=INK, linewidth=1.2, markersize=7)
    ax.annotate(
        f"critical difference {distance:.2f}  ({critical.attrs['n_blocks']} datasets)",
        (1 + distance, -1.9), (6, 0), textcoords="offset points", va="center", fontsize=9,
        color=INK,
    )  # fmt: skip
    ax.set_ylim(deep + left - 0.4, -2.5)
    ax.set_xlim(1 - room, count + room)
    without_frame(ax)
    ax.set_yticks([])
    ax.spines["top"].set(visible=True, position=("data", 0), bounds=(1, count), color=FAINT)
    ax.xaxis.set_ticks_position("top")
    ax.set_xticks(_ticks(count))
    ax.tick_params(axis="x", length=3, color=FAINT, pad=4)
    return ax


def _ticks(count: int) -> list[int]:
    """Ranks that are written: all of a few, else the first and every fifth."""
    return list(range(1, count + 1)) if count <= 12 else [1, *range(5, count + 1, 5)]


def _rows_apart(spans: Sequence[Any]) -> list[int]:
    """The first row in which each span, sorted by where it begins, overlaps none before it."""
    ends: list[float] = []
    rows = []
    for first, last in spans:
        free = (row for row, end in enumerate(ends) if end < first)
        row = next(free, len(ends))
        ends[row : row + 1] = [last]
        rows.append(row)
    return rows
