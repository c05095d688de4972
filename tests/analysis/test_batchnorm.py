"""What BatchNorm changes, against plain loops over models, datasets and draws."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.batchnorm import backbone_bn, head_bn

TWIN = {"linear-marks": "linear-marks-literal"}


@pytest.fixture(scope="module")
def study(make_study):
    """A study with some cells missing and one model that counts for none."""
    made = make_study(3, n_bn=6, n_free=3, n_datasets=3)
    score = made["score"].copy(deep=True)
    score[2, 1, 1, 0] = score[4, 0, 0, 3] = score[7, 2, :, 0] = score[5, :, 2, 3] = np.nan
    stage = made["stage"].values.copy()
    stage[1] = "early"
    return made.assign(score=score).assign_coords(stage=("model", stage))


def sides(study, change, protocol):
    """Scores (dataset, model) before and after a change, NaN where one of the two is missing."""
    late = study["score"].sel(model=study["stage"].isin(["late", ""]))
    late = late.transpose("bn_mode", "protocol", "dataset", "model")
    before = late.sel(bn_mode="eval", protocol=protocol).values
    after = (
        late.sel(bn_mode="eval", protocol=TWIN[protocol])
        if change == "train"
        else late.sel(bn_mode=change, protocol=protocol)
    ).values
    gone = np.isnan(before) | np.isnan(after)
    return np.where(gone, np.nan, before), np.where(gone, np.nan, after)


def with_bn(study):
    late = study.sel(model=study["stage"].isin(["late", ""]))
    return ~late["bn_free"].values


def jackknifed(estimate, without, ahead=lambda r: r, back=lambda z: z):
    """Student's t around an estimate, by what it is without each model, on some scale."""
    n, centre = len(without), ahead(estimate)
    apart = ahead(np.array(without))
    reach = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((apart - apart.mean()) ** 2).sum())
    return [float(back(centre - reach)), float(back(centre + reach))]


def arcsine(end):
    return np.sin(np.clip(end, -np.pi / 2, np.pi / 2))


def interval(values):
    """Interval of a mean over models."""
    n = len(values)
    return jackknifed(np.mean(values), [np.mean(np.delete(values, i)) for i in range(n)])


CASES = [
    ("batch", "knn-marks"),
    ("adapt", "logreg"),
    ("adapt", "knn-marks"),
    ("batch", "ncm"),
    ("train", "linear-marks"),
]


@pytest.mark.parametrize(("change", "protocol"), CASES)
def test_the_difference_is_the_mean_over_models_with_batchnorm(study, change, protocol):
    before, after = sides(study, change, protocol)
    found = backbone_bn(study).sel(change=change, protocol=protocol)
    means = []
    for model in np.flatnonzero(with_bn(study)):
        moved = [
            after[d, model] - before[d, model] for d in range(3) if np.isfinite(after[d, model])
        ]
        if moved:
            means.append(sum(moved) / len(moved))
    assert found["difference"] == pytest.approx(np.mean(means))
    assert found["n_models"] == len(means) == (4 if (change, protocol) == CASES[1] else 5)
    assert found["n_ranked"] == len(means) + 3
    assert found["n_datasets"] == 3
    limits = found["difference_low"], found["difference_high"]
    assert [float(one) for one in limits] == pytest.approx(interval(means), abs=1e-9)


@pytest.mark.parametrize(("change", "protocol"), CASES)
def test_rankings_are_of_all_models_that_have_both_cells(study, change, protocol):
    before, after = sides(study, change, protocol)
    found = backbone_bn(study).sel(change=change, protocol=protocol)
    moved = np.full(before.shape, np.nan)
    r = []
    for d in range(3):
        there = np.isfinite(before[d])
        ranks = [stats.rankdata(-side[d, there]) for side in (before, after)]
        moved[d, there] = abs(ranks[1] - ranks[0])
        r.append(stats.spearmanr(before[d, there], after[d, there]).statistic)
    places = [np.mean(one[np.isfinite(one)]) for one in moved.T if np.isfinite(one).any()]
    assert found["places"] == pytest.approx(np.mean(places))
    assert found["spearman"] == pytest.approx(np.mean(r))
    assert found["spearman_low"] - 1e-9 <= found["spearman"] <= found["spearman_high"] + 1e-9
    limits = found["places_low"], found["places_high"]
    assert [float(one) for one in limits] == pytest.approx(interval(places), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "protocol", "reference"),
    [
        ("batch", "knn-marks", "logreg"),
        ("adapt", "logme", "ncm"),
        ("adapt", "knn-marks", "finetune-marks"),  # has cells in eval only
        ("train", "linear-marks", "logreg"),
    ],
)
def test_agreement_is_with_the_reference_over_the_same_cells(study, change, protocol, reference):
    before, after = sides(study, change, protocol)
    late = study["score"].sel(model=study["stage"].isin(["late", ""]), protocol=reference)
    home = late.sel(bn_mode="eval").transpose("dataset", "model").values
    own = home
    if change != "train" and reference != "finetune-marks":
        own = late.sel(bn_mode=change).transpose("dataset", "model").values
    gone = np.isnan(before + after + home + own)
    columns = [np.where(gone, np.nan, side) for side in (before, home, after, own)]

    def r(a, b, models):
        found = []
        for d in range(3):
            kept = [i for i in models if np.isfinite(a[d, i])]
            found.append(stats.spearmanr(a[d, kept], b[d, kept]).statistic)
        return np.mean(found)

    def change_of(models):
        return r(*columns[2:], models) - r(*columns[:2], models)

    n = before.shape[1]
    found = backbone_bn(study, reference=reference).sel(change=change, protocol=protocol)
    assert found["agreement_before"] == pytest.approx(r(*columns[:2], range(n)))
    assert found["agreement_after"] == pytest.approx(r(*columns[2:], range(n)))
    whole = change_of(range(n))
    assert found["agreement_change"] == pytest.approx(whole)
    expected = jackknifed(whole, [change_of([j for j in range(n) if j != i]) for i in range(n)])
    limits = found["agreement_change_low"], found["agreement_change_high"]
    assert [float(one) for one in limits] == pytest.approx(expected, abs=1e-9)


def test_a_constant_shift_is_just_that_and_changes_no_ranking(study):
    shifted = study.isel(model=~study["bn_free"].values).copy(deep=True)
    shifted["score"].loc[{"bn_mode": "adapt"}] = shifted["score"].sel(bn_mode="eval") - 0.07
    found = backbone_bn(shifted).sel(change="adapt", protocol=["knn-marks", "logreg"])
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(found[f"difference{end}"], -0.07, atol=1e-9)
        np.testing.assert_array_equal(found[f"places{end}"], 0)
    np.testing.assert_allclose(found["spearman"], 1)
    np.testing.assert_allclose(found["agreement_change"].sel(protocol="knn-marks"), 0, atol=1e-12)


def test_a_model_without_batchnorm_keeps_its_score_and_is_passed(make_study):
    # Two models with BatchNorm pass one without: each moves a place, and that one two.
    made = make_study(0, n_bn=4, n_free=1, n_datasets=1).sel(protocol=["logreg"])
    score = made["score"].copy(deep=True)
    score[:, 0, :, 0] = np.array([[0.9, 0.4, 0.3, 0.2, 0.5]]).T
    score[1:3, 0, 2, 0] += 0.3
    found = backbone_bn(made.assign(score=score)).sel(change="adapt", protocol="logreg")
    assert found["places"] == pytest.approx((1 + 1 + 2) / 5)
    assert found["difference"] == pytest.approx(0.3 * 2 / 4)
    assert (found["n_models"], found["n_ranked"]) == (4, 5)
    expected = stats.spearmanr(score[:, 0, 0, 0], score[:, 0, 2, 0]).statistic
    assert found["spearman"] == pytest.approx(expected)


def test_scores_that_are_no_shares_have_ranks_but_no_difference(study):
    found = backbone_bn(study).sel(protocol="logme", change=["batch", "adapt"])
    assert found["difference"].isnull().all()
    assert found["difference_low"].isnull().all()
    assert found["spearman"].notnull().all()


def test_what_a_mode_does_not_change_is_left_empty(study):
    found = backbone_bn(study)
    assert found["change"].values.tolist() == ["batch", "adapt", "train"]
    tuned = found.sel(protocol="finetune-marks")
    assert (tuned["n_models"] == 0).all()
    assert tuned["spearman"].isnull().all()
    train = found.sel(change="train")
    assert train["after"].sel(protocol="linear-marks") == "linear-marks-literal"
    assert train["after"].sel(protocol="logreg") == ""
    assert int((train["n_models"] > 0).sum()) == 1
    assert found["agreement_change"].sel(protocol="logreg").isnull().all()  # with itself


def test_three_models_have_a_difference_and_no_interval(study):
    found = backbone_bn(study.isel(model=[0, 2, 6])).sel(change="adapt", protocol="ncm")
    assert found["n_models"] == 2
    assert np.isfinite(found["difference"])
    for name in ("difference_low", "places_high", "spearman", "agreement_change"):
        assert found[name].isnull()


def test_without_two_sides_there_is_no_change(study):
    assert backbone_bn(study.sel(bn_mode=["eval"], protocol=["ncm"])).sizes["change"] == 0
    later = backbone_bn(study.sel(bn_mode=["adapt"]))
    assert (later["n_models"] == 0).all()
    old = study.drop_vars([name for name in study.coords if "without" in str(name)])
    assert backbone_bn(old)["change"].values.tolist() == ["batch", "adapt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reference": "svm"}, "reference must be one of knn-marks, .* got 'svm'"),
        ({"models": "some"}, "models must be one of independent, all, got 'some'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(study, wrong, message):
    with pytest.raises(ValueError, match=message):
        backbone_bn(study, **wrong)


PAIRS = [
    ("knn", "none to zscore", [("knn-marks", "knn-marks-zscore")]),
    ("knn", "none to zscore-own", [("knn-marks", "knn-marks-zscore-own")]),
    ("linear", "none to zscore", [("logreg", "logreg+normalisation=zscore")]),
    ("fewshot", "none to zscore", [("fewshot", "fewshot+normalisation=zscore")]),
    ("finetune", "none to bn", [("finetune-marks", "finetune-marks-bn")]),
]


@pytest.mark.parametrize(("kind", "change", "pairs"), PAIRS)
@pytest.mark.parametrize("among", ["all", "batchnorm", "bn_free"])
def test_a_normalisation_changes_the_score_by_the_mean_over_its_pairs(
    study, kind, change, pairs, among
):
    late = study["score"].sel(model=study["stage"].isin(["late", ""]), bn_mode="eval")
    bn = with_bn(study)
    chosen = {"all": bn | True, "batchnorm": bn, "bn_free": ~bn}[among]
    means = []
    for model in np.flatnonzero(chosen):
        moved = []
        for before, after in pairs:
            for dataset in study["dataset"].values:
                one = late.isel(model=model).sel(dataset=dataset)
                moved.append(float(one.sel(protocol=after) - one.sel(protocol=before)))
        means.append(np.nanmean(moved))
    found = head_bn(study)
    cell = found.sel(kind=kind, change=change, among=among)
    assert cell["difference"] == pytest.approx(np.mean(means))
    assert (cell["n_models"], cell["n_datasets"], cell["n_pairs"]) == (len(means), 3, len(pairs))
    if among == "bn_free":
        assert cell["difference_low"].isnull()
    else:
        limits = cell["difference_low"], cell["difference_high"]
        assert [float(one) for one in limits] == pytest.approx(interval(means), abs=1e-9)
    (pair,) = np.flatnonzero(found["after"].values == pairs[0][1])
    assert found["difference_by_pair"].sel(among=among)[pair] == pytest.approx(np.mean(means))
    assert found["before"].values[pair] == pairs[0][0]


def test_pairs_of_one_kind_are_averaged_and_l2_is_a_change_of_its_own(make_study):
    made = make_study(1, times=2)
    found = head_bn(made)
    cell = found.sel(kind="knn", change="none to zscore", among="all")
    single = found["difference_by_pair"].sel(among="all")
    of_pair = (found["pair_kind"] == "knn") & (found["pair_change"] == "none to zscore")
    assert cell["n_pairs"] == of_pair.sum() == 2
    assert cell["difference"] == pytest.approx(single.values[of_pair.values].mean())
    names = made["normalisation"].values.copy()
    names[made["protocol"].values == "knn-marks"] = "l2"
    renamed = head_bn(made.assign_coords(normalisation=("protocol", names)))
    assert renamed["n_pairs"].sel(kind="knn", change="l2 to zscore", among="all") == 1


def spearman(a, b, models):
    """Mean over rows (row, model) of Spearman's correlation over some of the models."""
    found = []
    for x, y in zip(a, b, strict=True):
        kept = [i for i in models if np.isfinite(x[i])]
        found.append(stats.spearmanr(x[kept], y[kept]).statistic)
    return np.mean(found)


def interval_of(function, n, *scale):
    """Interval of a function of the models that are left, by loops."""
    without = [function([j for j in range(n) if j != i]) for i in range(n)]
    return jackknifed(function(range(n)), without, *scale)


@pytest.mark.parametrize("among", ["all", "batchnorm"])
@pytest.mark.parametrize(
    ("kind", "change", "count"),
    [("knn", "none to zscore", 2), ("knn", "none to zscore", 1), ("finetune", "none to bn", 2)],
)
def test_a_normalisation_moves_ranks_and_agreement_by_the_mean_over_its_pairs(
    make_study, kind, change, count, among
):
    made = make_study(3, n_bn=6, n_free=3, n_datasets=3, times=count)
    made["score"][2, 1, 0, 0] = made["score"][4, 0, 0, 3] = np.nan
    (pairs,) = (p for k, c, p in PAIRS if (k, c) == (kind, change))
    pairs = [(a + end, b + end) for end in ("", "+k=1")[:count] for a, b in pairs]
    late = made["score"].sel(bn_mode="eval").transpose("protocol", "dataset", "model")
    before, after = (late.sel(protocol=list(side)).values for side in zip(*pairs, strict=True))
    home = np.broadcast_to(late.sel(protocol="logreg").values, before.shape)
    chosen = np.ones(9, bool) if among == "all" else ~made["bn_free"].values
    gone = np.isnan(before) | np.isnan(after) | ~chosen
    sides = [np.where(gone, np.nan, one).reshape(-1, 9) for one in (before, after)]
    moved = np.full(sides[0].shape, np.nan)
    for row, (x, y) in enumerate(zip(*sides, strict=True)):
        there = np.isfinite(x)
        moved[row, there] = abs(stats.rankdata(-y[there]) - stats.rankdata(-x[there]))
    places = [np.nanmean(one) for one in moved.T if np.isfinite(one).any()]

    found = head_bn(made, reference="logreg")
    cell = found.sel(kind=kind, change=change, among=among)

    def limits(name):
        return [cell[f"{name}{end}"].item() for end in ("_low", "_high")]

    assert cell["places"] == pytest.approx(np.mean(places))
    assert limits("places") == pytest.approx(interval(places), abs=1e-9)
    models = np.flatnonzero(chosen)
    assert cell["spearman"] == pytest.approx(spearman(*sides, models))
    if among == "all":
        expected = interval_of(lambda left: spearman(*sides, left), 9, np.arcsin, arcsine)
        assert limits("spearman") == pytest.approx(expected, abs=1e-9)

    gone |= np.isnan(home)
    x, y, h = (np.where(gone, np.nan, one).reshape(-1, 9) for one in (before, after, home))
    assert cell["agreement_before"] == pytest.approx(spearman(x, h, models))
    assert cell["agreement_after"] == pytest.approx(spearman(y, h, models))

    def change_of(drawn):
        return spearman(y, h, drawn) - spearman(x, h, drawn)

    assert cell["agreement_change"] == pytest.approx(change_of(models))
    if among == "all":
        expected = interval_of(change_of, 9)
        assert limits("agreement_change") == pytest.approx(expected, abs=1e-9)
    if count == 1:  # a group of one pair is that pair
        (pair,) = np.flatnonzero(found["after"].values == pairs[0][1])
        for name in ("places", "spearman_low", "agreement_change_high", "n_models"):
            alone = found[f"{name}_by_pair"].sel(among=among)[pair]
            assert float(alone) == pytest.approx(float(cell[name]), rel=1e-12, nan_ok=True)


def test_a_pair_of_the_reference_has_ranks_and_no_agreement(study):
    found = head_bn(study, reference="logreg").sel(among="all")
    assert found.attrs["reference"] == "logreg"
    cell = found.sel(kind="linear", change="none to zscore")
    assert np.isfinite(cell["spearman"])
    for name in ("agreement_before", "agreement_after", "agreement_change_low"):
        assert cell[name].isnull()
    other = head_bn(study, reference="ncm").sel(among="all")
    assert np.isfinite(other["agreement_change"].sel(kind="linear", change="none to zscore"))
    with pytest.raises(ValueError, match="reference must be one of knn-marks, .* got 'svm'"):
        head_bn(study, reference="svm")


def test_a_monotone_change_before_the_head_moves_no_rank_and_no_agreement(study):
    moved = study.copy(deep=True)
    moved["score"].loc[{"protocol": "knn-marks-zscore"}] = (
        moved["score"].sel(protocol="knn-marks").values ** 2
    )
    cell = head_bn(moved).sel(kind="knn", change="none to zscore", among="all")
    for end in ("", "_low", "_high"):
        assert cell[f"places{end}"] == 0
        assert cell[f"agreement_change{end}"] == pytest.approx(0, abs=1e-12)
    assert [cell["spearman"], cell["spearman_high"]] == pytest.approx([1, 1])
    assert cell["difference"] < -0.01


def test_a_constant_shift_of_a_twin_is_its_difference(study):
    moved = study.copy(deep=True)
    moved["score"].loc[{"protocol": "knn-marks-zscore"}] = (
        moved["score"].sel(protocol="knn-marks").values + 0.02
    )
    cell = head_bn(moved).sel(kind="knn", change="none to zscore", among="all")
    for end in ("", "_low", "_high"):
        assert cell[f"difference{end}"] == pytest.approx(0.02)


def test_transductive_normalisations_are_marked(study):
    found = head_bn(study)["transductive"]
    assert found.sel(kind="knn", change="none to zscore-own")
    assert found.sel(kind="fewshot", change="none to zscore")
    assert not found.sel(kind="knn", change="none to zscore")
    by_pair = head_bn(study).set_coords("after")["transductive_by_pair"]
    marked = by_pair["after"].values[by_pair.values]
    assert sorted(marked) == ["fewshot+normalisation=zscore", "knn-marks-zscore-own"]


def test_what_is_transductive_after_a_change_is_marked(study):
    found = backbone_bn(study)["transductive"]
    assert found.dims == ("change", "protocol")
    assert found.sel(change="batch").all()
    adapt = found.sel(change="adapt")
    assert adapt["protocol"].values[adapt.values].tolist() == [
        "knn-marks-zscore-own",
        "fewshot+normalisation=zscore",
    ]
    assert not found.sel(change="train").any()
    marked = study.copy(deep=True)
    marked["transductive"].loc[{"bn_mode": "eval", "protocol": "linear-marks-literal"}] = True
    train = backbone_bn(marked)["transductive"].sel(change="train")
    assert train["protocol"].values[train.values].tolist() == ["linear-marks"]


@pytest.mark.parametrize("dtype", [object, np.dtypes.StringDType()], ids=["object", "StringDType"])
def test_every_kind_of_string_array_gives_the_same(study, dtype):
    texts = [name for name in study.coords if study[name].dtype.kind in "UO"]
    other = study.assign_coords(
        {name: (study[name].dims, study[name].values.astype(dtype)) for name in texts}
    )
    for function in (backbone_bn, head_bn):
        xr.testing.assert_equal(function(other), function(study))


def test_without_twins_there_is_no_pair(study):
    for one in (study.sel(protocol=["ncm", "logreg"]), study.drop_vars("without_normalisation")):
        found = head_bn(one)
        assert dict(found.sizes) == {"kind": 0, "change": 0, "among": 3, "pair": 0}
    with pytest.raises(ValueError, match="bn_mode must be one of eval, batch, adapt, got 'x'"):
        head_bn(study, bn_mode="x")
