"""How far protocols lie from a reference, against plain loops over models, datasets and draws."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.compare import compare_protocols
from featstore.reporting.facts import linear_forms

HOME = "linear-marks"
OTHERS = ["linear-marks-literal", "logreg", "knn-marks"]
ESTIMATES = ["difference", "places", "spearman", "pearson", "n_models", "n_datasets"]


@pytest.fixture(scope="module")
def study(make_study):
    """A study with cells missing on either side, equal scores, and a model that counts for none."""
    made = make_study(4, n_bn=6, n_free=3, n_datasets=4)
    made["score"].loc[{"protocol": "knn-marks"}] = made["score"].sel(protocol="knn-marks").round(1)
    for name, model, dataset in (
        (HOME, 2, 1),
        ("logreg", 0, 2),
        ("logreg", 4, slice(None)),
        ("knn-marks", 7, 0),
        ("linear-marks-literal", slice(None), 3),
    ):
        at = {"protocol": made["protocol"].values.tolist().index(name)}
        made["score"][at | {"model": model, "dataset": dataset}] = np.nan
    stage = made["stage"].values.copy()
    stage[1] = "early"
    return made.assign_coords(stage=("model", stage))


def cells_of(study, *protocols, metric="score"):
    """Values (dataset, model) of independent models, NaN where one of the protocols has none."""
    late = study.sel(model=study["stage"].isin(["late", ""]), bn_mode="eval")
    one = [late.sel(protocol=name).transpose(..., "dataset", "model") for name in protocols]
    gone = sum(np.isnan(side["score"].values) for side in one) > 0
    return [np.where(gone, np.nan, side[metric].values) for side in one]


def jackknifed(estimate, without, ahead=lambda r: r, back=lambda z: z):
    """Student's t around an estimate, by what it is without each model, on some scale."""
    n, centre = len(without), ahead(estimate)
    apart = ahead(np.array(without))
    reach = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((apart - apart.mean()) ** 2).sum())
    return [float(back(centre - reach)), float(back(centre + reach))]


SCALES = {
    "pearson": (np.arctanh, np.tanh),
    "spearman": (np.arcsin, lambda z: np.sin(np.clip(z, -np.pi / 2, np.pi / 2))),
}


def interval(function, n, *scale):
    """Interval of a function of the models that are left, by loops."""
    without = [function([j for j in range(n) if j != i]) for i in range(n)]
    return jackknifed(function(range(n)), without, *scale)


def ends_of(one, name):
    return [one[f"{name}{end}"].item() for end in ("_low", "_high")]


@pytest.mark.parametrize("other", OTHERS)
def test_differences_and_places_are_means_over_models_of_means_over_datasets(study, other):
    before, after = cells_of(study, HOME, other)
    ranks = np.full((2, *before.shape), np.nan)
    for d in range(4):
        there = np.isfinite(before[d])
        ranks[:, d, there] = [stats.rankdata(-side[d, there]) for side in (before, after)]
    found = compare_protocols(study, HOME, OTHERS).sel(protocol=other)
    for name, moved in (("difference", after - before), ("places", abs(ranks[1] - ranks[0]))):
        means = np.array([one[np.isfinite(one)].mean() for one in moved.T if any(one == one)])
        assert found[name] == pytest.approx(means.mean())
        expected = interval(lambda drawn, means=means: means[drawn].mean(), len(means))
        assert ends_of(found, name) == pytest.approx(expected, abs=1e-9)
    assert found["n_models"] == len(means) == (7 if other == "logreg" else 8)
    assert found["n_datasets"] == (3 if other == "linear-marks-literal" else 4)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("statistic", ["spearman", "pearson"])
def test_coefficients_are_means_over_datasets(study, other, statistic):
    before, after = cells_of(study, HOME, other)
    coefficient = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[statistic]

    def mean(models):
        found = []
        for d in np.flatnonzero(np.isfinite(before).any(axis=1)):
            kept = [i for i in models if np.isfinite(before[d, i])]
            pair = before[d, kept], after[d, kept]
            if min(len(set(side)) for side in pair) < 2:
                return np.nan  # a draw without spread
            found.append(coefficient(*pair).statistic)
        return np.mean(found)

    found = compare_protocols(study, HOME, OTHERS).sel(protocol=other)
    assert found[statistic] == pytest.approx(mean(range(8)))
    there = np.flatnonzero(np.isfinite(before).any(axis=0))
    expected = interval(lambda left: mean(there[left]), len(there), *SCALES[statistic])
    assert ends_of(found, statistic) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("other", OTHERS)
def test_seconds_are_medians_of_the_cells_compared(study, other):
    before, after = cells_of(study, HOME, other, metric="seconds")
    found = compare_protocols(study, HOME, [other]).isel(protocol=0)
    assert found["seconds"] == np.nanmedian(after)
    assert found["reference_seconds"] == np.nanmedian(before)


def test_a_protocol_is_no_way_from_itself(study):
    found = compare_protocols(study, HOME, [HOME]).isel(protocol=0)
    for end in ("", "_low", "_high"):
        assert found[f"difference{end}"] == found[f"places{end}"] == 0
    for name in ("spearman", "pearson"):
        assert [found[name], found[f"{name}_high"]] == pytest.approx([1, 1])
        assert 0.8 < found[f"{name}_low"] < 1  # eight models cannot show more
    assert found["seconds"] == found["reference_seconds"]
    assert found.attrs["reference"] == HOME


def test_the_way_back_is_as_far(study):
    for other in OTHERS:
        there = compare_protocols(study, HOME, [other]).isel(protocol=0)
        back = compare_protocols(study, other, [HOME]).isel(protocol=0)
        assert there["difference"] == pytest.approx(-back["difference"].item())
        assert there["seconds"] == back["reference_seconds"]
        for name in ESTIMATES[1:]:
            assert there[name] == pytest.approx(back[name].item())


def test_a_constant_shift_is_just_that_and_moves_nobody(study):
    moved = study.copy(deep=True)
    moved["score"].loc[{"protocol": "logreg"}] = moved["score"].sel(protocol=HOME) - 0.03
    found = compare_protocols(moved, HOME, ["logreg"]).isel(protocol=0)
    for end in ("", "_low", "_high"):
        assert found[f"difference{end}"] == pytest.approx(-0.03)
        assert found[f"places{end}"] == 0
    assert found["spearman"] == pytest.approx(1)


def test_two_models_that_change_places_move_one_each(make_study):
    made = make_study(0, n_bn=4, n_free=0, n_datasets=1)
    made["score"].loc[{"protocol": HOME}] = np.array([0.9, 0.5, 0.4, 0.1])[:, None, None]
    made["score"].loc[{"protocol": "logreg"}] = np.array([0.9, 0.4, 0.5, 0.1])[:, None, None]
    found = compare_protocols(made, HOME, ["logreg"]).isel(protocol=0)
    assert found["places"] == 0.5
    assert found["difference"] == pytest.approx(0)
    assert found["spearman"] == pytest.approx(0.8)


def test_scores_of_other_metrics_are_not_subtracted_and_said(study):
    metrics = np.full((4, study.sizes["protocol"]), "top1", dtype=object)
    metrics[1, study["protocol"].values.tolist().index("logreg")] = "map"
    metrics[:, study["protocol"].values.tolist().index("knn-marks")] = "map11"
    told = study.assign_coords(headline=(("dataset", "protocol"), metrics.astype(str)))
    found = compare_protocols(told, HOME, OTHERS)
    rest = compare_protocols(study.isel(dataset=[0, 2, 3]), HOME, OTHERS)
    whole = compare_protocols(study, HOME, OTHERS)
    for name in ("difference", "difference_low", "difference_high"):
        assert found[name].sel(protocol="logreg") == rest[name].sel(protocol="logreg")
        assert found[name].sel(protocol="knn-marks").isnull()
        assert found[name][0] == whole[name][0]
    same = [name for name in whole if not name.startswith("difference")]
    xr.testing.assert_equal(found[same], whole[same])  # ranks are of whatever metric
    odd = ["logreg on set-1", *(f"knn-marks on set-{i}" for i in range(4))]
    assert (found.attrs["not_subtracted"], whole.attrs["not_subtracted"]) == (odd, [])


def test_the_order_of_models_and_datasets_does_not_matter(study):
    found = compare_protocols(study, HOME, OTHERS)
    datasets = compare_protocols(study.isel(dataset=[2, 0, 3, 1]), HOME, OTHERS)
    xr.testing.assert_allclose(datasets, found, atol=1e-9)
    models = compare_protocols(study.isel(model=[3, 8, 0, 5, 1, 7, 2, 6, 4]), HOME, OTHERS)
    xr.testing.assert_allclose(models[ESTIMATES], found[ESTIMATES])  # draws are by place
    axes = compare_protocols(study.transpose("protocol", "model", ...), HOME, OTHERS)
    xr.testing.assert_identical(axes, found)
    back = compare_protocols(study, HOME, OTHERS[::-1])
    assert back["protocol"].values.tolist() == OTHERS[::-1]
    xr.testing.assert_allclose(back.sel(protocol=OTHERS), found)


def test_a_cell_that_is_missing_on_one_side_is_left_out_on_both(study):
    at = {"model": study["model"].values[5], "dataset": study["dataset"].values[0]}
    found = []
    for name in (HOME, "logreg"):
        holed = study.copy(deep=True)
        holed["score"].loc[{"protocol": name, "bn_mode": "eval"} | at] = np.nan
        found.append(compare_protocols(holed, HOME, ["logreg"]))
    xr.testing.assert_identical(*found)
    whole = compare_protocols(study, HOME, ["logreg"])
    assert found[0]["difference"].item() != whole["difference"].item()
    # A hole of another protocol is no hole of this one.
    together = compare_protocols(holed, HOME, OTHERS)
    alone = compare_protocols(study, HOME, ["knn-marks"])
    xr.testing.assert_allclose(together.sel(protocol=["knn-marks"]), alone)


def test_scores_that_are_no_shares_have_ranks_but_no_difference(study):
    for pair in (("logme", "ncm"), ("ncm", "logme")):
        found = compare_protocols(study, pair[0], [pair[1], *pair[:1]])
        assert found["difference"][0].isnull()
        assert found["difference_low"][0].isnull()
        assert found["spearman"].notnull().all()
    assert found["difference"][1] == 0


def test_early_models_count_where_all_are_asked_for(study):
    found = compare_protocols(study, HOME, ["knn-marks"], models="all")
    assert found["n_models"] == 9


def test_three_models_have_a_difference_and_no_interval(study):
    few = study.isel(model=[0, 2, 6])
    found = compare_protocols(few, HOME, ["ncm"]).isel(protocol=0)
    assert found["n_models"] == 3
    assert np.isfinite(found["difference"])
    for name in ("difference_low", "places_high", "spearman", "pearson"):
        assert found[name].isnull()


def test_protocols_without_a_common_cell_have_no_numbers(study):
    holed = study.copy(deep=True)
    holed["score"].loc[{"protocol": "ncm"}] = np.nan
    found = compare_protocols(holed, HOME, ["ncm"]).isel(protocol=0)
    assert (found["n_models"], found["n_datasets"]) == (0, 0)
    for name in ("difference", "places", "spearman", "pearson", "seconds", "reference_seconds"):
        assert found[name].isnull()
    assert compare_protocols(study, HOME, []).sizes["protocol"] == 0


def test_in_another_bn_mode_a_training_on_images_has_models_without_batchnorm_only(study):
    found = compare_protocols(study, HOME, ["knn-marks"], bn_mode="adapt")
    assert found["n_models"] == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reference": "svm"}, "reference must be one of knn-marks, .* got 'svm'"),
        ({"others": ["ncm", "svm"]}, "others must be one of knn-marks, .* got 'svm'"),
        ({"bn_mode": "x"}, "bn_mode must be one of eval, batch, adapt, got 'x'"),
        ({"models": "some"}, "models must be one of independent, all, got 'some'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(study, wrong, message):
    with pytest.raises(ValueError, match=message):
        compare_protocols(study, **({"reference": HOME, "others": OTHERS} | wrong))


@pytest.mark.parametrize("dtype", [object, np.dtypes.StringDType()], ids=["object", "StringDType"])
def test_every_kind_of_string_array_gives_the_same(study, dtype):
    texts = [name for name in study.coords if study[name].dtype.kind in "UO"]
    other = study.assign_coords(
        {name: (study[name].dims, study[name].values.astype(dtype)) for name in texts}
    )
    expected = compare_protocols(study, HOME, OTHERS)
    xr.testing.assert_equal(compare_protocols(other, HOME, OTHERS), expected)


def test_forms_of_the_linear_probe_share_head_and_settings():
    names = [
        *("linear-marks-1view-bn", "linear-marks", "linear-marks-bn", "linear-marks-8view-mlp"),
        *("linear-marks-literal", "linear-marks-1view", "linear-marks-literal+epochs=5"),
        *("linear-marks+epochs=5", "linear-marks+epochs=6", "linear-marks-8view-bn"),
        *("linear-marks-mlp", "linear-marks-literal-mlp", "linear-marks-1view-mlp-bn"),
        *("linear-marks-mlp-bn+epochs=5", "linear-marks-1view-mlp-bn+epochs=5"),
    ]
    assert linear_forms(names) == {
        "linear-marks": ["linear-marks-1view", "linear-marks-literal"],
        "linear-marks-bn": ["linear-marks-1view-bn", "linear-marks-8view-bn"],
        "linear-marks+epochs=5": ["linear-marks-literal+epochs=5"],
        "linear-marks+epochs=6": [],
        "linear-marks-mlp": ["linear-marks-8view-mlp", "linear-marks-literal-mlp"],
        "linear-marks-mlp-bn+epochs=5": ["linear-marks-1view-mlp-bn+epochs=5"],
    }
