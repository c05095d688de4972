"""Gaps between families against statsmodels, and in studies whose truth is known."""

import numpy as np
import pytest
import statsmodels.api as sm
import xarray as xr
from scipy.special import expit, logit

from featstore.analysis.families import family_gap

# As in the larger study: every generative model is a ViT, and only three ViTs are not generative.
PARADIGM = np.repeat(["discriminative", "generative"], [20, 6])
BACKBONE = np.repeat(["resnet50", "vitb16"], [17, 9])
TAUGHT = np.repeat(["", "clip"], [23, 3])


def study(seed=0, *, family=0.0, backbone=0.0, n_datasets=11, noise=0.04):
    """26 models whose scores depend on family and backbone by so much."""
    rng = np.random.default_rng(seed)
    own = 0.6 + family * (PARADIGM == "discriminative") + backbone * (BACKBONE == "resnet50")
    own = own + rng.normal(0, noise, 26)
    score = own[:, None, None, None] + rng.normal(0, 0.02, (26, n_datasets, 1, 2))
    return xr.Dataset(
        {"score": (("model", "dataset", "bn_mode", "protocol"), np.clip(score, 0, 1))},
        {
            "model": [f"m{i}" for i in range(26)],
            "dataset": [f"d{i}" for i in range(n_datasets)],
            "bn_mode": ["eval"],
            "protocol": ["knn", "logreg"],
            "paradigm": ("model", PARADIGM),
            "backbone": ("model", BACKBONE),
            "teacher": ("model", TAUGHT),
            "lineage": ("model", [f"run{i}" for i in range(26)]),
            "stage": ("model", ["late"] * 26),
        },
    )


def least_squares(y, design):
    design = np.column_stack(design).astype(float)
    return sm.OLS(y, design).fit(cov_type="HC3", use_t=True)


def assert_is(found, name, fit, *, limits=True):
    assert float(found[name]) == pytest.approx(fit.params[0])
    if limits:
        ends = [float(found[f"{name}_{end}"]) for end in ("low", "high")]
        assert ends == pytest.approx(fit.conf_int()[0])


@pytest.mark.parametrize("scale", ["raw", "logit"])
@pytest.mark.parametrize("by_dataset", [False, True])
def test_gaps_are_those_of_statsmodels(scale, by_dataset):
    results = study(1, family=0.02, backbone=0.08)
    scores = results["score"].sel(bn_mode="eval", protocol="logreg")
    scores = logit(scores) if scale == "logit" else scores
    y = (scores.sel(dataset="d3") if by_dataset else scores.mean("dataset")).values
    found = family_gap(results, scale=scale, by_dataset=by_dataset).sel(protocol="logreg")
    assert ("dataset" in found.dims) == by_dataset
    found = found.sel(dataset="d3") if by_dataset else found
    first, vits = PARADIGM == "discriminative", BACKBONE == "vitb16"
    assert_is(found, "pooled", least_squares(y, [first, np.ones(26)]))
    assert_is(found, "within", least_squares(y, [first, ~vits, vits]), limits=False)
    assert_is(found, "within", least_squares(y[vits], [first[vits], np.ones(9)]))
    assert float(found["explained"]) == pytest.approx(float(found["pooled"] - found["within"]))


def test_the_interval_of_what_is_explained_is_of_refits_without_each_model():
    results = study(2, backbone=0.1)
    found = family_gap(results).sel(protocol="knn")
    left_out = []
    for model in results["model"].values:
        again = family_gap(results.drop_sel(model=model)).sel(protocol="knn")
        left_out.append(float(found["explained"] - again["explained"]))
    error = np.sqrt(np.sum(np.square(left_out)))
    half = float(found["explained_high"] - found["explained_low"]) / 2
    assert half / error == pytest.approx(2.3646, abs=1e-4)  # Student's t of 7


def test_the_confounding_is_shown_and_so_are_models_that_clip_taught():
    found = family_gap(study())
    cells = found["n_cell"].sel(protocol="knn").transpose("held", "group")
    np.testing.assert_array_equal(cells, [[17, 0], [3, 6]])
    np.testing.assert_array_equal(found["n_clip"].sel(protocol="knn", held="vitb16"), [0, 3])
    assert (found["n"] == 26).all()
    assert (found["n_within"] == 9).all()
    assert (found["n_arrangements"] == 84).all()
    np.testing.assert_allclose(found["p_smallest"], 2 / 84)

    without = family_gap(study(), without_clip=True)
    assert (without["n_clip"] == 0).all()
    assert (without["n_within"] == 6).all()
    np.testing.assert_allclose(without["p_smallest"], 2 / 20)
    xr.testing.assert_allclose(without, family_gap(study().sel(model=TAUGHT == "")))


@pytest.fixture(scope="module")
def confounded():
    """Gaps of 300 studies in which a ResNet is ten points better, and family means nothing."""
    return [family_gap(study(seed, backbone=0.1)).sel(protocol="knn") for seed in range(300)]


def share(gaps, name, value):
    """Share of intervals that hold a value."""
    return np.mean([one[f"{name}_low"] <= value <= one[f"{name}_high"] for one in gaps])


def test_a_family_effect_that_is_the_backbones_vanishes_once_that_is_accounted_for(confounded):
    assert np.mean([one["pooled"] for one in confounded]) == pytest.approx(0.085, abs=0.003)
    assert share(confounded, "pooled", 0.0) < 0.1  # the naive answer: families differ
    assert np.mean([one["within"] for one in confounded]) == pytest.approx(0, abs=0.005)
    assert share(confounded, "within", 0.0) > 0.92
    assert np.mean([float(one["p"]) <= 0.05 for one in confounded]) <= 0.08
    assert share(confounded, "explained", 0.085) > 0.92


def test_a_family_effect_that_is_real_survives():
    gaps = [family_gap(study(seed, family=0.12)).sel(protocol="knn") for seed in range(100)]
    assert np.mean([one["within"] for one in gaps]) == pytest.approx(0.12, abs=0.01)
    assert share(gaps, "within", 0.12) > 0.9
    assert share(gaps, "within", 0.0) < 0.25
    assert np.mean([float(one["p"]) <= 0.05 for one in gaps]) > 0.75


def test_models_of_one_run_count_once():
    results = study(4)
    twice = xr.concat([results, results.isel(model=[25]).assign_coords(model=["again"])], "model")
    twice["score"].loc[{"model": "again"}] += 0.02
    once = results.copy(deep=True)
    once["score"].loc[{"model": "m25"}] += 0.01  # the mean of both
    xr.testing.assert_allclose(family_gap(twice), family_gap(once))


def test_what_is_of_neither_group_or_no_model_of_its_own_plays_no_part():
    results = study(5)
    more = results.isel(model=[0, 1]).assign_coords(
        model=["floor", "early"],
        stage=("model", ["random", "early"]),
        lineage=("model", ["f", "e"]),
    )
    supervised = results.isel(model=[2]).assign_coords(model=["s"], paradigm=("model", ["other"]))
    with_more = xr.concat([results, more, supervised], "model")
    found = family_gap(with_more)
    assert found.attrs["n_left_out"] == 1
    xr.testing.assert_identical(found, family_gap(results).assign_attrs(found.attrs))


def test_a_model_without_one_dataset_is_in_no_mean_but_in_the_other_datasets():
    results = study(6)
    results["score"].loc[{"model": "m25", "dataset": "d0", "protocol": "knn"}] = np.nan
    found = family_gap(results)
    np.testing.assert_array_equal(found["n"], [25, 26])
    for protocol in ("knn", "logreg"):
        kept = results if protocol == "logreg" else results.drop_sel(model="m25")
        again = family_gap(kept)["within"].sel(protocol=protocol)
        assert float(found["within"].sel(protocol=protocol)) == pytest.approx(float(again))
    each = family_gap(results, by_dataset=True)["n"].sel(protocol="knn")
    np.testing.assert_array_equal(each, [25, *[26] * 10])


def test_a_dataset_that_nobody_has_is_in_no_mean():
    results = study(7)
    fewer = family_gap(results.isel(dataset=slice(1, None)))
    results["score"].loc[{"dataset": "d0"}] = np.nan
    xr.testing.assert_allclose(family_gap(results), fewer)


def test_with_fewer_than_four_models_there_is_no_number():
    found = family_gap(study().isel(model=[0, 18, 25]))
    for name in ("pooled", "pooled_low", "within", "explained", "p", "p_smallest"):
        assert found[name].isnull().all()
    assert (found["n"] == 3).all()


def test_groups_that_share_no_backbone_have_a_pooled_gap_alone():
    found = family_gap(study().isel(model=[*range(17), *range(20, 26)]))
    assert found["pooled"].notnull().all()
    assert found["within"].isnull().all()
    assert found["p"].isnull().all()
    assert (found["n_within"] == 0).all()


def test_other_groups_of_another_coordinate():
    found = family_gap(
        study(8), attribute="backbone", groups=("resnet50", "vitb16"), hold="paradigm"
    ).sel(protocol="knn")
    y = study(8)["score"].sel(bn_mode="eval", protocol="knn").mean("dataset").values
    first, rest = BACKBONE == "resnet50", PARADIGM == "generative"
    assert_is(found, "within", least_squares(y, [first, rest, ~rest]), limits=False)
    assert list(found["held"].values) == ["discriminative", "generative"]


def test_scores_of_all_and_none_have_odds_where_test_images_are_known():
    results = study(9)
    results["score"][0] = 1.0
    results["n_test"] = xr.full_like(results["score"], 200.0)
    found = family_gap(results, scale="logit")
    assert (found["n"] == 26).all()
    results["score"][0] = expit(logit(1 - 0.5 / 200))
    xr.testing.assert_allclose(found, family_gap(results, scale="logit"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attribute": "colour"}, "attribute must be one of .*paradigm.*, got 'colour'"),
        ({"hold": "dataset"}, "hold must be one of .*backbone.*, got 'dataset'"),
        ({"groups": ("discriminative", "x")}, "groups must be one of .*generative, got 'x'"),
        ({"groups": ("generative",) * 2}, "groups must be two different values of paradigm"),
        ({"metric": "x"}, "metric must be one of score, got 'x'"),
        ({"scale": "x"}, "scale must be one of raw, logit, got 'x'"),
        ({"bn_mode": "x"}, "bn_mode must be one of eval, got 'x'"),
        ({"models": "x"}, "models must be one of independent, all, got 'x'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        family_gap(study(), **wrong)
