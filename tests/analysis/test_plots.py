"""What the pictures show, read back from Matplotlib's artists."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

from featstore.analysis import plots
from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.selection import is_independent
from featstore.analysis.style import OKABE_ITO, family_colours


def cell_texts(ax):
    """Texts inside the axes by (row, column)."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in ax.texts}


def bars(ax):
    """Coordinates of each marker by the model's name."""
    found = {}
    for line in ax.lines:
        gid = line.get_gid() or ""
        if gid.startswith("tip:"):
            found[gid[4:]] = (line.get_xdata()[0], line.get_ydata()[0], line)
    return found


def test_the_heat_map_holds_every_score_in_percent_and_a_dash_where_there_is_none(results):
    ax = plots.heat_map(results, protocol="ridge")
    texts = cell_texts(ax)
    values = results["score"].sel(protocol="ridge", bn_mode="eval").values
    assert len(texts) == values.size
    assert np.isnan(values).sum() == 2
    for place, value in np.ndenumerate(values):
        assert texts[place].get_text() == ("–" if np.isnan(value) else f"{100 * value:.1f}")
    assert [t.get_text() for t in ax.get_xticklabels()] == list(results["dataset"].values)
    assert ax.get_yticklabels()[5].get_text() == "random-cnn  (random)"
    assert ax.yaxis_inverted()


def test_text_in_cells_stands_out_from_its_background(results):
    ax = plots.heat_map(results, protocol="ridge")
    mesh = ax.collections[0]

    def luminance(colour):
        part = np.array(colour[:3])
        part = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        return part @ [0.2126, 0.7152, 0.0722]

    for text in ax.texts:
        if text.get_text() == "–":
            continue
        paper = luminance(mesh.cmap(mesh.norm(float(text.get_text()) / 100)))
        ink = luminance(
            tuple(int(to_hex(text.get_color())[i : i + 2], 16) / 255 for i in (1, 3, 5))
        )
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast >= 4.5


def test_the_correlation_map_holds_every_coefficient(results):
    table = correlate_protocols(results.isel(protocol=[0, 6, 8]), by_dataset=False)
    texts = cell_texts(plots.correlation_map(table, statistic="spearman"))
    for place, value in np.ndenumerate(table["spearman"].values):
        assert float(texts[place].get_text()) == pytest.approx(value, abs=0.0051)


def test_the_correlation_map_marks_transductive_protocols(results):
    table = correlate_protocols(results.isel(protocol=[0, 2]), by_dataset=False)
    names = ["knn-marks", "knn-marks-zscore-own \N{DAGGER}"]
    ax = plots.correlation_map(table)
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [one.get_text() for one in ticks] == names
    named = plots.correlation_map(table, labels={"knn-marks": "kNN"})
    assert [one.get_text() for one in named.get_yticklabels()] == ["kNN", "knn-marks-zscore-own"]


def test_a_negative_coefficient_turns_the_colours_to_a_scale_around_zero(results):
    table = correlate_protocols(results.isel(protocol=[0, 6]), by_dataset=False)
    assert plots.correlation_map(table).collections[0].norm.vmin > 0.5
    table["pearson"] = -table["pearson"]
    mesh = plots.correlation_map(table).collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-1, 1)


def test_a_scatter_shows_means_over_datasets_and_their_correlation(results):
    ax = plots.scatter(results, "knn-marks", "logreg")
    scores = results["score"].sel(bn_mode="eval").mean("dataset")
    found = bars(ax)
    assert set(found) == set(results["model"].values)
    for name, (x, y, line) in found.items():
        one = scores.sel(model=name)
        assert x == pytest.approx(100 * one.sel(protocol="knn-marks"))
        assert y == pytest.approx(100 * one.sel(protocol="logreg"))
        hollow = line.get_markerfacecolor() == "white"
        assert hollow == (one["stage"].item() in ("early", "random"))
        assert line.get_color() == family_colours(results)[one["family"].item()]
    late = scores[is_independent(results).values]
    x, y = late.sel(protocol="knn-marks").values, late.sel(protocol="logreg").values
    r, rho = stats.pearsonr(x, y).statistic, stats.spearmanr(x, y).statistic
    assert ax.get_title() == f"r = {r:.2f},  ρ = {rho:.2f}  (n = 10)"


def test_a_model_that_lacks_a_cell_is_left_out_of_means_but_not_of_other_datasets(results):
    assert "mae-cnn" not in bars(plots.scatter(results, "knn-marks", "linear-marks-1view"))
    ax = plots.scatter(results, "knn-marks", "linear-marks-1view", dataset="digits")
    assert "mae-cnn" in bars(ax)


def test_a_dataset_that_no_model_has_does_not_empty_the_scatter(results):
    holed = results.copy(deep=True)
    holed["score"].loc[{"dataset": "faces"}] = np.nan
    found = bars(plots.scatter(holed, "knn-marks", "logreg"))
    assert set(found) == set(results["model"].values)


def test_error_bars_end_at_the_limits_of_the_interval(results):
    ax = plots.scatter(results, "knn-marks", "logreg", dataset="faces")
    one = results.sel(bn_mode="eval", dataset="faces", protocol="logreg")
    segments = [s for c in ax.collections for s in c.get_segments()]
    upright = {tuple(np.round(sorted(s[:, 1]), 6)) for s in segments if s[0, 0] == s[1, 0]}
    low, high = 100 * one["low"].values, 100 * one["high"].values
    assert upright == {tuple(pair) for pair in np.round(np.stack([low, high], axis=1), 6)}


def test_backbones_have_different_markers(results):
    found = bars(plots.scatter(results, "knn-marks", "logreg"))
    markers = {name.split("-")[1]: line.get_marker() for name, (_, _, line) in found.items()}
    assert markers["cnn"] != markers["vit"]


def test_three_models_have_a_scatter_that_says_why_it_has_no_r(results):
    ax = plots.scatter(results.isel(model=[0, 1, 2]), "knn-marks", "logreg")
    assert ax.get_title() == "no r: 3 independent models, it takes 4"


def test_equal_scores_have_a_scatter_that_says_why_it_has_no_r(results):
    same = results.copy(deep=True)
    same["score"].loc[{"protocol": "logreg"}] = 0.5
    assert plots.scatter(same, "knn-marks", "logreg").get_title().startswith("no r: all scores")


def test_the_grid_has_a_panel_for_each_other_dataset(results):
    figure = plots.scatter_grid(results, protocol="logreg")
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == [f"{name} (%)" for name in results["dataset"].values[1:]]
    assert {ax.get_xlabel() for ax in figure.axes} == {"digits (%)"}


def test_the_bn_plot_has_the_mean_change_of_models_with_batchnorm(results):
    ax = plots.bn_shift(results)
    with_bn = results["score"].sel(model=~results["bn_free"])
    for mode, marks in zip(("batch", "adapt"), (ax.collections[1], ax.collections[3]), strict=True):
        change = (with_bn.sel(bn_mode=mode) - with_bn.sel(bn_mode="eval")).mean("dataset")
        expected = 100 * change.mean("model").values
        np.testing.assert_allclose(marks.get_offsets()[:, 0], expected)
        assert marks.get_label() == {"batch": "batch †", "adapt": "adapt"}[mode]


def test_the_bn_plot_leaves_out_what_stands_under_one_mode(make_study):
    ax = plots.bn_shift(make_study())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert "finetune-marks" not in names
    assert "logme" not in names  # its scores are no shares
    assert {"knn-marks", "knn-marks-zscore-own †"} <= set(names)


def test_transductive_protocols_carry_a_dagger(results):
    assert plots.protocol_label(results, "knn-marks-zscore-own") == "knn-marks-zscore-own †"
    assert plots.protocol_label(results, "knn-marks") == "knn-marks"
    assert plots.protocol_label(results, "knn-marks", "batch") == "knn-marks †"


def test_families_have_distinct_colours_and_random_weights_are_grey(results):
    colours = family_colours(results)
    assert len(set(colours.values())) == len(colours)
    assert colours["random"] == "#999999"
    assert set(colours.values()) - {"#999999"} <= set(OKABE_ITO)


def test_a_given_axes_is_drawn_on_and_returned(results):
    ax = Figure().add_subplot()
    assert plots.heat_map(results, protocol="ridge", ax=ax) is ax


def test_pyplot_is_not_imported():
    code = "import sys, featstore.reporting.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
