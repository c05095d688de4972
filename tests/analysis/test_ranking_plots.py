"""What the pictures of rankings show, read back from Matplotlib's artists."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from featstore.analysis.critical import critical_difference
from featstore.analysis.ranking_plots import critical_difference_plot, ranking_plot
from featstore.analysis.style import OKABE_ITO

LONG = "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k@cls+avg"


def comparison(models):
    """What `compare_models` would say."""
    rng = np.random.default_rng(0)
    rank = np.arange(1.0, models + 1)
    score = 0.8 - 0.02 * rank
    columns = {
        "score": score, "score_low": score - 0.02, "score_high": score + 0.015, "rank": rank,
        "rank_low": np.maximum(rank - rng.integers(0, 5, models), 1),
        "rank_high": np.minimum(rank + rng.integers(0, 5, models), models),
        "separable_from_best": rank > 2,
    }  # fmt: skip
    return xr.Dataset(
        {name: ("model", column) for name, column in columns.items()},
        {"model": [f"{LONG}~{n}$" for n in range(models)]},
        {"confidence": 0.9},
    )


def critical(models, datasets=11):
    rng = np.random.default_rng(0)
    scores = (rng.random((models, datasets)) + np.linspace(0, 1.5, models)[:, None]) / 3
    cells = xr.Dataset(
        {"score": (("model", "dataset", "bn_mode", "protocol"), scores[:, :, None, None])},
        {
            "model": [f"{LONG}~{n}" for n in range(models)], "bn_mode": ["eval"],
            "dataset": [f"d{n}" for n in range(datasets)], "protocol": ["logreg"],
            "stage": ("model", ["late"] * models),
        },
    )  # fmt: skip
    return critical_difference(cells, protocol="logreg")


def dots(ax):
    """Markers by the name in their tooltip, which the report shows."""
    lines = {line.get_gid(): line for line in ax.lines if (line.get_gid() or "").startswith("tip:")}
    return {gid[4:].split(": ")[0]: line for gid, line in lines.items()}


def is_filled(line):
    return to_hex(line.get_markerfacecolor()) == to_hex(line.get_color()) == OKABE_ITO[0].lower()


@pytest.mark.parametrize("models", [2, 5, 26])
def test_the_ranking_has_every_rank_interval_and_score_with_the_best_on_top(models):
    found = comparison(models)
    ax = ranking_plot(found)
    assert ax.yaxis_inverted()
    labels = [one.get_text().replace(r"\$", "$") for one in ax.get_yticklabels()]
    assert labels == list(found["model"].values)
    shown = dots(ax)
    bars = {int(line.get_ydata()[0]): line for line in ax.lines if len(line.get_xdata()) == 2}
    texts = {round(one.get_position()[1]): one.get_text() for one in ax.texts}
    for row, name in enumerate(found["model"].values):
        one = found.isel(model=row)
        assert shown[name].get_xydata().tolist() == [[one["rank"], row]]
        assert is_filled(shown[name]) == (not one["separable_from_best"])
        assert bars[row].get_xdata().tolist() == [one["rank_low"], one["rank_high"]]
        low, high = 100 * one["score_low"], 100 * one["score_high"]
        assert texts[row] == f"{100 * one['score']:.1f}  [{low:.1f}, {high:.1f}]"
    assert texts[-1] == "score (%)  [90 %]"
    assert "90 % intervals" in ax.get_xlabel()


@pytest.mark.parametrize("models", [3, 5, 26])
def test_in_the_diagram_models_hang_from_their_mean_ranks(models):
    found = critical(models)
    ax = critical_difference_plot(found)
    names = [str(name) for name in found["model"].values]
    shown = dots(ax)
    assert list(shown) == names
    words = {name: [one for one in ax.texts if name in one.get_text().split()] for name in names}
    heights = []
    for name in names:
        one = found.sel(model=name)
        assert shown[name].get_xydata().tolist() == [[one["mean_rank"], 0]]
        assert is_filled(shown[name]) == (not one["separable_from_best"])
        (text,) = words[name]
        assert f"{float(one['mean_rank']):.1f}" in text.get_text().split()
        side, depth = text.xy
        assert (side < 1) == (names.index(name) < (models + 1) // 2)
        (line,) = [
            line for line in ax.lines
            if len(line.get_xdata()) == 3 and line.get_ydata()[2] == depth
            and line.get_xdata()[2] == side
        ]  # fmt: skip
        assert line.get_xdata()[0] == one["mean_rank"]
        heights.append((side, depth))
    assert len(set(heights)) == models


def test_in_the_diagram_a_bar_joins_every_group_and_none_hides_another():
    found = critical(26)
    ax = critical_difference_plot(found)
    thick = [line for line in ax.lines if line.get_linewidth() > 3]
    mean = found["mean_rank"].values
    assert len(thick) == found.sizes["group"] > 2
    for line, row in zip(thick, found["member"].values, strict=True):
        first, last = line.get_xdata()
        assert ((first <= mean) & (mean <= last)).tolist() == row.tolist()
    for number, line in enumerate(thick):
        for other in thick[:number]:
            if line.get_ydata()[0] == other.get_ydata()[0]:
                assert other.get_xdata()[1] < line.get_xdata()[0]
    (ruler,) = [line for line in ax.lines if line.get_marker() == "|"]
    assert np.ptp(ruler.get_xdata()) == pytest.approx(found.attrs["critical_difference"])
    (told,) = [one.get_text() for one in ax.texts if "critical difference" in one.get_text()]
    assert told.endswith("(11 datasets)")


def test_pictures_are_drawn_on_the_axes_given_and_no_name_lies_over_another():
    for draw, found in ((ranking_plot, comparison(26)), (critical_difference_plot, critical(26))):
        ax = Figure(figsize=(8, 6)).add_subplot()
        assert draw(found, ax=ax) is ax
        own = draw(found)
        canvas = FigureCanvasAgg(own.figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [one.get_window_extent(renderer) for one in (*own.texts, *own.get_yticklabels())]
        boxes = [box for box in boxes if box.width > 1]
        assert len(boxes) > 26
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        inside = own.figure.bbox
        assert all(box.x0 >= inside.x0 and box.x1 <= inside.x1 for box in boxes)
