"""What the pictures of conclusions show, read back from Matplotlib's artists."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from featstore.analysis import study_plots
from featstore.analysis.cost import pareto
from featstore.analysis.families import family_gap
from featstore.analysis.forecast import forecast
from featstore.analysis.stability import ranking_stability


@pytest.fixture(scope="module")
def study(make_study):
    """Twelve models, of which every generative one is without BatchNorm."""
    results = make_study(2, n_bn=6, n_free=6)
    paradigm = ["discriminative"] * 9 + ["generative"] * 3
    return results.assign_coords(paradigm=("model", paradigm))


def drawn(ax):
    """The axes, once they were drawn without complaint."""
    ax.figure.canvas.draw()
    return ax


def markers(ax):
    """Collections of markers that show any."""
    dots = [one for one in ax.collections if isinstance(one, PathCollection)]
    return [one for one in dots if len(one.get_offsets())]


def test_gaps_stand_before_and_after_with_their_intervals(study):
    gaps = family_gap(study)
    ax = drawn(study_plots.family_gaps(gaps))
    before, after = markers(ax)
    lines = [one for one in ax.collections if isinstance(one, LineCollection)]
    for name, dots, line in (("pooled", before, lines[0]), ("within", after, lines[1])):
        np.testing.assert_allclose(dots.get_offsets()[:, 0], 100 * gaps[name])
        ends = [[x for x, _ in one] for one in line.get_segments()]
        limits = np.transpose([gaps[f"{name}_low"], gaps[f"{name}_high"]])
        np.testing.assert_allclose(ends, 100 * limits)
    assert [one.get_text() for one in ax.get_yticklabels()] == list(gaps["protocol"].values)
    assert ax.get_xlabel() == "discriminative − generative (points)"
    told = [one.get_text() for one in ax.get_legend().get_texts()]
    assert told == ["before accounting for the backbone", "after accounting for the backbone"]


def test_a_gap_that_hangs_on_one_model_is_hollow(study):
    gaps = family_gap(study.isel(model=slice(10)), scale="logit")
    ax = drawn(study_plots.family_gaps(gaps))
    _, after = markers(ax)
    np.testing.assert_allclose(after.get_offsets()[:, 0], gaps["within"])
    assert {to_hex(one) for one in after.get_facecolors()} == {"#ffffff"}
    assert ax.get_xlabel() == "discriminative − generative (logits)"


def curves(ax):
    """Lines with a label in the legend."""
    return {one.get_label(): one for one in ax.lines if not one.get_label().startswith("_")}


def test_one_stability_shows_three_curves_and_a_band(study):
    found = ranking_stability(study, protocol="logreg")
    ax = drawn(study_plots.stability_curves(found))
    names = {"same top": "same_top", "shared of the top": "overlap", "Kendall's τ": "kendall"}
    assert set(curves(ax)) == set(names)
    for label, name in names.items():
        np.testing.assert_array_equal(curves(ax)[label].get_xdata(), found["size"])
        np.testing.assert_array_equal(curves(ax)[label].get_ydata(), found[name])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(float(found["kendall_low"].min()))
    assert ax.get_title() == "logreg, top 3"
    assert ax.get_xlabel() == "datasets"


def test_a_ring_marks_where_the_top_is_settled():
    found = xr.Dataset(
        {name: ("size", [0.2, 0.97, 0.99]) for name in ("same_top", "overlap", "kendall")}
        | {f"kendall_{end}": ("size", [0.1, 0.9, 0.95]) for end in ("low", "high")}
        | {"settled_at": 100.0},
        {"size": [50, 100, 200]},
        {"over": "images", "top": 3, "protocol": "knn"},
    )
    for asked in (found, {"knn": found}):
        ax = drawn(study_plots.stability_curves(asked))
        (ring,) = [one for one in ax.lines if one.get_markerfacecolor() == "none"]
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (100, 0.97)
        assert ax.get_xscale() == "log"
        assert [one.get_text() for one in ax.get_xticklabels()] == ["50", "100", "200"]
    loose = found.assign(settled_at=np.nan)
    ax = drawn(study_plots.stability_curves(loose))
    assert not [one for one in ax.lines if one.get_markerfacecolor() == "none"]


def test_several_stabilities_show_the_share_with_the_same_top(study):
    found = {name: ranking_stability(study, protocol=name) for name in ("logreg", "ncm")}
    ax = drawn(study_plots.stability_curves(found))
    assert set(curves(ax)) == set(found)
    for name, line in curves(ax).items():
        np.testing.assert_array_equal(line.get_ydata(), found[name]["same_top"])
    assert ax.get_ylabel() == "share with the same top 3"


def test_efficient_protocols_are_joined_and_named(study):
    costs = pareto(study, "finetune-marks")
    ax = drawn(study_plots.pareto_front(costs))
    tips = {
        one.get_gid()[4:].removesuffix(" †"): one
        for one in ax.lines
        if (one.get_gid() or "").startswith("tip:")
    }
    assert set(tips) == set(costs["protocol"].values)
    for name, mark in tips.items():
        cell = costs.sel(protocol=name)
        at = mark.get_xdata()[0], mark.get_ydata()[0]
        assert at == (float(cell["seconds"]), float(cell["spearman"]))
    efficient = costs.isel(protocol=np.flatnonzero(costs["efficient"].values))
    named = {one.get_text().removesuffix(" †") for one in ax.texts}
    assert named == set(efficient["protocol"].values)
    (line,) = [one for one in ax.lines if one.get_drawstyle() == "steps-post"]
    np.testing.assert_array_equal(line.get_xdata(), efficient["seconds"])
    np.testing.assert_array_equal(line.get_ydata(), efficient["spearman"])
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel() == "Spearman's ρ with finetune-marks"


def test_names_above_keep_their_distance(study):
    costs = pareto(study, "finetune-marks")
    rising = np.linspace(0.1, 0.9, costs.sizes["protocol"])
    close = costs.assign(seconds=("protocol", 1 + 1e-3 * rising), spearman=("protocol", rising))
    close["efficient"][:] = True
    ax = drawn(study_plots.pareto_front(close))
    places = [one.get_position()[0] for one in ax.texts]
    assert len(places) == costs.sizes["protocol"]
    assert min(np.diff(places)) > 0.049


def test_transductive_protocols_have_a_dagger(study):
    costs = pareto(study, "finetune-marks")
    costs["efficient"][:] = True
    ax = drawn(study_plots.pareto_front(costs))
    marked = {one.get_text().removesuffix(" †") for one in ax.texts if "†" in one.get_text()}
    assert marked == set(costs["protocol"].values[costs["transductive"].values])
    assert marked


def test_foretold_stands_against_true_in_percent(study):
    found = forecast(study, target="finetune-marks", predictors=["logreg", "knn-marks"])
    ax = drawn(study_plots.predicted_against_true(found))
    dots = np.concatenate([one.get_offsets() for one in ax.collections])
    found = found.transpose(..., "model", "dataset")
    both = [found[name].values.ravel() for name in ("predicted", "true")]
    np.testing.assert_allclose(dots, 100 * np.column_stack(both))
    over = found.sel(baseline="mean")
    skill, low, high = (f"{float(over[f'skill{end}']):.2f}" for end in ("", "_low", "_high"))
    title = f"skill {skill} [{low}, {high}], error {100 * float(found['mae_mean']):.1f} points"
    assert ax.get_title() == title.replace("-", "−")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("foretold (%)", "finetune-marks (%)")


def test_where_nothing_is_foretold_the_picture_says_so(study):
    found = forecast(study.isel(model=[0, 1, 2]), target="finetune-marks", predictors=["ncm"])
    ax = drawn(study_plots.predicted_against_true(found))
    assert ax.get_title() == "nothing foretold: too few models to learn from"


def test_pictures_are_drawn_on_the_axes_given(study):
    cost, gap = pareto(study, "finetune-marks"), family_gap(study)
    told = forecast(study, target="finetune-marks", predictors=["ncm"])
    stability = ranking_stability(study, protocol="ncm")
    for draw, found in (
        (study_plots.pareto_front, cost),
        (study_plots.family_gaps, gap),
        (study_plots.predicted_against_true, told),
        (study_plots.stability_curves, stability),
    ):
        ax = Figure().add_subplot()
        assert draw(found, ax=ax) is ax
