"""Correlations of whole Datasets against SciPy and xarray, cell by cell."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.compare import compare_protocols
from featstore.analysis.correlate import correlate_domains, correlate_protocols
from featstore.analysis.influence import influence
from featstore.analysis.predict import predictors
from featstore.analysis.rank import rank_models
from featstore.analysis.selection import in_domain_datasets, is_independent

COEFFICIENTS = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


def scipy_r(x, y, statistic):
    """Coefficient over the models that have both, and how many those are."""
    both = np.isfinite(x) & np.isfinite(y)
    return COEFFICIENTS[statistic](x[both], y[both]).statistic, both.sum()


@pytest.mark.parametrize("statistic", COEFFICIENTS)
@pytest.mark.parametrize("models", ["independent", "all"])
def test_each_coefficient_is_scipys_over_the_models_that_have_both(results, statistic, models):
    few = results.isel(protocol=[0, 8, 10])
    table = correlate_protocols(few, models=models, bn_mode="adapt")
    frame = few["score"].sel(bn_mode="adapt")
    if models == "independent":
        frame = frame[few["stage"].values == "late"]
    for dataset in few["dataset"].values:
        for a in few["protocol"].values:
            for b in few["protocol"].values:
                x, y = (frame.sel(dataset=dataset, protocol=name).values for name in (a, b))
                found = table.sel(dataset=dataset, protocol=a, other=b)
                r, n = scipy_r(x, y, statistic)
                assert found[f"{statistic}_by_dataset"] == pytest.approx(r)
                assert found["n_by_dataset"] == n


def test_pearson_on_complete_data_is_that_of_xarray_and_spearman_that_of_pandas(make_results):
    full = make_results(3).isel(protocol=[0, 1, 3], model=slice(0, 4), dataset=slice(0, 2))
    table = correlate_protocols(full, models="all", dataset="digits")
    frame = full["score"].sel(bn_mode="eval", dataset="digits")
    expected = xr.corr(frame, frame.rename(protocol="other"), dim="model")
    np.testing.assert_allclose(
        table["pearson"].values, expected.transpose("protocol", "other").values
    )
    ranked = pd.DataFrame(frame.transpose("model", "protocol").values).corr("spearman")
    np.testing.assert_allclose(table["spearman"].values, ranked.values)


def test_the_average_is_the_mean_over_datasets_and_symmetric(results):
    table = correlate_protocols(results.isel(protocol=slice(0, 4)))
    for statistic in ("pearson", "spearman"):
        mean = table[f"{statistic}_by_dataset"].values.mean(axis=0)
        np.testing.assert_allclose(table[statistic].values, mean)
        np.testing.assert_array_equal(table[statistic].values, table[statistic].values.T)
        np.testing.assert_allclose(np.diag(table[statistic].values), 1)
    assert (table["n_datasets"] == 7).all()


def test_the_interval_of_one_dataset_is_close_to_scipys_bootstrap(results):
    table = correlate_protocols(
        results.isel(protocol=[0, 7]).drop_vars(["method", "lineage"]), models="all",
        dataset="digits-edges", interval="bca", resamples=4000,
    )  # fmt: skip
    x, y = results["score"].sel(bn_mode="eval", dataset="digits-edges")[:, [0, 7]].values.T
    expected = stats.bootstrap(
        (x, y),
        lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        vectorized=True,
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = table.isel(protocol=0, other=1)
    assert found["pearson_low"] == pytest.approx(expected.low, abs=0.03)
    assert found["pearson_high"] == pytest.approx(expected.high, abs=0.01)


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
def test_the_interval_of_the_average_is_close_to_scipys_bootstrap_of_all_datasets(
    make_results, statistic
):
    full = make_results(0).isel(dataset=slice(0, 3), protocol=[0, 7])
    full = full.drop_vars(["method", "lineage"])  # each model is drawn by itself
    table = correlate_protocols(
        full, models="all", by_dataset=False, interval="bca", resamples=4000
    )
    x, y = full["score"].sel(bn_mode="eval").transpose("protocol", "dataset", "model").values
    test = stats.pearsonr if statistic == "pearson" else stats.spearmanr

    def mean_r(*columns):
        return np.mean(
            [test(a, b).statistic for a, b in zip(columns[:3], columns[3:], strict=True)]
        )

    expected = stats.bootstrap(
        (*x, *y),
        mean_r,
        paired=True,
        vectorized=False,
        n_resamples=1500,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = table.isel(protocol=0, other=1)
    assert found[f"{statistic}_low"] == pytest.approx(expected.low, abs=0.04)
    assert found[f"{statistic}_high"] == pytest.approx(expected.high, abs=0.02)


def test_the_average_of_one_dataset_is_that_dataset(results):
    few = results.isel(protocol=[0, 5, 10])
    by_name = correlate_protocols(few, dataset="faces")
    every = correlate_protocols(few).sel(dataset="faces")
    assert "pearson_by_dataset" not in by_name
    for name in ("pearson", "pearson_low", "spearman_high", "n"):
        np.testing.assert_array_equal(by_name[name].values, every[f"{name}_by_dataset"].values)


def test_early_checkpoints_and_random_weights_are_left_out_unless_asked_for(results):
    assert is_independent(results).values.sum() == 10
    changed = results.copy(deep=True)
    dependent = ~is_independent(results).values
    changed["score"].values[dependent] = np.random.default_rng(0).uniform(
        size=changed["score"].values[dependent].shape
    )
    few = {"protocol": [0, 1, 7]}
    same, other = (
        [correlate_protocols(d.isel(few), models=m) for d in (results, changed)]
        for m in ("independent", "all")
    )
    xr.testing.assert_identical(*same)
    assert np.abs(other[0]["pearson"] - other[1]["pearson"]).max() > 0.1


def test_a_stage_that_is_not_known_counts_as_independent(results):
    unknown = results.assign_coords(stage=("model", [""] * 15))
    assert is_independent(unknown).all()


def test_fewer_than_four_models_give_no_coefficient_but_their_number(results):
    table = correlate_protocols(results.isel(model=[0, 1, 2], protocol=[0, 1]))
    assert table["pearson"].isnull().all()
    assert table["spearman_low"].isnull().all()
    assert (table["n"] == 3).all()
    assert (table["n_datasets"] == 0).all()


def test_a_protocol_without_cells_gives_nan_only_where_it_takes_part(results):
    few = results.isel(protocol=[0, 1, 7]).copy(deep=True)
    few["score"][..., 1] = np.nan
    table = correlate_protocols(few)
    assert table["pearson"].isel(protocol=1).isnull().all()
    assert table["n"].isel(protocol=1).max() == 0
    assert np.isfinite(table["pearson"].isel(protocol=0, other=2))


def test_equal_scores_of_all_models_give_no_coefficient(results):
    few = results.isel(protocol=[0, 1]).copy(deep=True)
    few["score"][..., 1] = 0.5
    assert correlate_protocols(few)["pearson"].isel(protocol=0, other=1).isnull()


def test_what_has_more_than_one_value_a_cell_is_no_metric(make_study):
    study = make_study()
    for function in (correlate_protocols, correlate_domains, rank_models):
        with pytest.raises(ValueError, match=r"metric must be one of score, .* got 'reliability_c"):
            function(study, metric="reliability_count")


def test_a_pair_does_not_depend_on_what_else_is_in_the_table(results):
    small = correlate_protocols(results.isel(protocol=[2, 5]))
    large = correlate_protocols(results.isel(protocol=slice(0, 6)))
    for name in ("pearson_low", "spearman_high", "pearson_low_by_dataset"):
        found = large[name].isel(protocol=2, other=5).values
        expected = small[name].isel(protocol=0, other=1).values
        np.testing.assert_allclose(found, expected, atol=1e-9)  # sums in another order


def test_domains_correlate_the_in_domain_dataset_with_each_other_one(results):
    table = correlate_domains(results.isel(protocol=[0, 8]), models="all")
    assert table.attrs["in_domain"] == "digits"
    assert "digits" not in table["dataset"].values
    scores = results["score"].sel(bn_mode="eval")
    for protocol in table["protocol"].values:
        for dataset in table["dataset"].values:
            x, y = (scores.sel(protocol=protocol, dataset=d).values for d in ("digits", dataset))
            found = table.sel(protocol=protocol, dataset=dataset)
            for statistic in ("pearson", "spearman"):
                r, n = scipy_r(x, y, statistic)
                assert found[statistic] == pytest.approx(r)
                assert found["n"] == n
    mean = table["pearson"].mean("dataset")
    np.testing.assert_allclose(table["pearson_mean"].values, mean.values)
    assert (table["pearson_mean_low"] < mean).all()
    assert (table["pearson_mean_high"] > mean).all()


def test_domains_across_protocols_hold_the_same_protocol_on_the_diagonal(results):
    few = results.isel(protocol=[0, 1, 8])
    across = correlate_domains(few, across=True)
    same = correlate_domains(few)
    for i in range(3):
        for name in ("pearson", "spearman_low", "n", "pearson_mean"):
            found = across[name].isel(protocol=i, other=i).values
            np.testing.assert_allclose(found, same[name].isel(protocol=i).values)
    scores = few["score"].sel(bn_mode="eval")[is_independent(few).values]
    x, y = scores.sel(dataset="digits")[:, 0].values, scores.sel(dataset="faces")[:, 2].values
    r, _ = scipy_r(x, y, "pearson")
    assert across["pearson"].isel(protocol=0, other=2).sel(dataset="faces") == pytest.approx(r)


def test_domains_need_exactly_one_in_domain_dataset_or_its_name(results):
    nowhere = results.assign_coords(shift=("dataset", ["other"] * 7))
    assert in_domain_datasets(nowhere) == []
    with pytest.raises(ValueError, match=r"in_domain must name a dataset: 0 have 'in-domain'"):
        correlate_domains(nowhere)
    named = correlate_domains(nowhere.isel(protocol=[0]), in_domain="faces")
    assert named.attrs["in_domain"] == "faces"
    assert named.sizes["dataset"] == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metric": "auc"}, "metric must be one of .*score.* got 'auc'"),
        ({"bn_mode": "frozen"}, "bn_mode must be one of eval, batch, adapt, got 'frozen'"),
        ({"models": "some"}, "models must be one of independent, all, got 'some'"),
        ({"dataset": "cats"}, "dataset must be one of digits, .* got 'cats'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(results, wrong, message):
    with pytest.raises(ValueError, match=message):
        correlate_protocols(results, **wrong)


@pytest.mark.parametrize("bn_mode", ["eval", "batch", "adapt"])
def test_transductive_protocols_are_marked_in_every_answer(results, bn_mode):
    few = results.isel(protocol=[7, 2, 0], dataset=[0, 1, 2])
    expected = {"logreg": False, "knn-marks-zscore-own": True, "knn-marks": False}
    if bn_mode == "batch":
        expected = dict.fromkeys(expected, True)
    how = {"bn_mode": bn_mode}
    answers = {
        "protocols": correlate_protocols(few, **how),
        "domains": correlate_domains(few, across=True, **how),
        "predictors": predictors(few, "logreg", **how),
        "given": predictors(few, "logreg", correlations=correlate_protocols(few, **how)),
        "compared": compare_protocols(few, "logreg", ["knn-marks-zscore-own", "knn-marks"], **how),
        "ranking": rank_models(few, bn_mode=bn_mode),
    }
    for what, found in answers.items():
        marks = found["transductive"]
        assert marks.dims == ("protocol",), what
        assert marks.dtype == bool, what
        told = dict(zip(marks["protocol"].values.tolist(), marks.values.tolist(), strict=True))
        missing = {"logreg"} if what in ("predictors", "given", "compared") else set()
        assert told == {k: v for k, v in expected.items() if k not in missing}, what


def test_results_that_do_not_say_what_is_transductive_have_no_mark(results):
    few = results.isel(protocol=[7, 2]).drop_vars("transductive")
    assert "transductive" not in correlate_protocols(few)
    assert "transductive" not in predictors(few, "logreg")


@pytest.fixture
def lineages():
    """Nine models of five methods on four datasets of two clusters, two protocols."""
    rng = np.random.default_rng(5)
    method = ["a", "a", "b", "b", "c", "c", "d", "d", "e"]
    own = dict(zip("abcde", rng.normal(size=(5, 1, 1)), strict=True))
    score = np.stack([own[m] + rng.normal(0, 0.4, (4, 2)) for m in method])
    return xr.Dataset(
        {
            "score": (("model", "dataset", "bn_mode", "protocol"), score[:, :, None]),
        },
        coords={
            "model": [f"m{i}" for i in range(9)],
            "dataset": ["home", "x", "y", "z"],
            "bn_mode": ["eval"],
            "protocol": ["p", "q"],
            "stage": ("model", ["late"] * 9),
            "method": ("model", method),
            "backbone": ("model", ["cnn", "vit"] * 4 + ["vit"]),
            "cluster": ("dataset", ["", "", "", ""]),
            "shift": ("dataset", ["in-domain", "other", "other", "other"]),
        },
    )


def test_the_default_interval_leaves_out_a_method_at_a_time_in_all_datasets(lineages):
    x, y = lineages["score"].sel(bn_mode="eval").transpose("protocol", "dataset", "model").values
    method = lineages["method"].values

    def mean_r(kept):
        return np.mean([stats.pearsonr(x[d, kept], y[d, kept]).statistic for d in range(4)])

    centre = np.arctanh(mean_r(np.ones(9, bool)))
    apart = np.arctanh([mean_r(method != one) for one in "abcde"])
    reach = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * ((apart - apart.mean()) ** 2).sum())
    found = correlate_protocols(lineages).sel(protocol="p", other="q")
    expected = np.tanh([centre - reach, centre + reach])
    assert [found["pearson_low"], found["pearson_high"]] == pytest.approx(expected)
    assert correlate_protocols(lineages).attrs["n_units"] == 5


def test_a_protocol_goes_with_itself_whatever_models_there_are(lineages):
    found = correlate_protocols(lineages, interval="bca", resamples=20)
    for name in COEFFICIENTS:
        for end in ("", "_low", "_high"):
            np.testing.assert_array_equal(np.diag(found[f"{name}{end}"]), 1)


def test_an_interval_over_datasets_is_students_over_their_coefficients(lineages):
    found = correlate_protocols(lineages, over="datasets")
    r = found["kendall_by_dataset"].sel(protocol="p", other="q").values
    low, high = stats.t.interval(0.95, 3, r.mean(), stats.sem(r))
    pair = found.sel(protocol="p", other="q")
    assert [pair["kendall_low"], pair["kendall_high"]] == pytest.approx([low, min(high, 1)])
    two = correlate_protocols(
        lineages.assign_coords(cluster=("dataset", ["u", "u", "u", "v"])), over="datasets"
    )
    assert two["kendall_low"].sel(protocol="p", other="q").isnull()  # two clusters say nothing


def test_intervals_over_both_are_wider_than_over_either(lineages):
    widths = {}
    for over in ("models", "datasets", ("models", "datasets")):
        found = correlate_protocols(lineages, over=over).sel(protocol="p", other="q")
        widths[over] = float(found["spearman"] - found["spearman_low"])
    assert widths["models", "datasets"] == pytest.approx(
        min(np.hypot(widths["models"], widths["datasets"]), 1 + float(found["spearman"]))
    )


def test_held_fixed_a_backbone_leaves_the_correlation_of_residuals(lineages):
    shifted = lineages.copy(deep=True)
    shifted["score"] += 5 * (lineages["backbone"] == "vit")
    whole, partial = (correlate_protocols(shifted, partial=one) for one in ("", "backbone"))
    for dataset in shifted["dataset"].values:
        columns = shifted["score"].sel(bn_mode="eval", dataset=dataset).values
        rest = columns.copy()
        for one in ("cnn", "vit"):
            rest[shifted["backbone"] == one] -= columns[shifted["backbone"] == one].mean(axis=0)
        found = partial["pearson_by_dataset"].sel(dataset=dataset, protocol="p", other="q")
        assert found == pytest.approx(stats.pearsonr(*rest.T).statistic)
    assert whole["pearson"].sel(protocol="p", other="q") > 0.95
    with pytest.raises(ValueError, match="partial must be one of stage, method, backbone, got 'x'"):
        correlate_protocols(lineages, partial="x")


def test_on_logits_and_ranks_coefficients_are_of_these(results):
    few = results.isel(protocol=[0, 7])
    scores = few["score"].sel(bn_mode="eval", dataset="faces")[is_independent(few).values].values
    images = few["n_test"].sel(bn_mode="eval", dataset="faces")[is_independent(few).values].values
    kept = np.clip(scores, 0.5 / images, 1 - 0.5 / images)
    logits = np.log(kept / (1 - kept))
    for scale, columns in (("logit", logits), ("rank", stats.rankdata(scores, axis=0))):
        found = correlate_protocols(few, dataset="faces", scale=scale)["pearson"].values[0, 1]
        assert found == pytest.approx(stats.pearsonr(*columns.T).statistic), scale
    with pytest.raises(ValueError, match="scale must be one of raw, logit, rank, got 'log'"):
        correlate_protocols(few, scale="log")


def test_what_is_no_share_has_no_logit(make_study):
    study = make_study().sel(protocol=["logme", "logreg"])
    raw, logit = (correlate_protocols(study, scale=scale) for scale in ("raw", "logit"))
    assert np.isfinite(logit["pearson"]).all()
    np.testing.assert_allclose(logit["spearman"], raw["spearman"])
    scores = study["score"].sel(bn_mode="eval").isel(dataset=0).values
    odds = np.log(scores[:, 1] / (1 - scores[:, 1]))
    found = logit["pearson_by_dataset"].isel(dataset=0).sel(protocol="logme", other="logreg")
    assert found == pytest.approx(stats.pearsonr(scores[:, 0], odds).statistic)


def test_seeds_make_intervals_wider_by_what_they_move(lineages):
    rng = np.random.default_rng(0)
    noise = xr.DataArray(rng.normal(0, 0.5, (9, 4, 3)), dims=("model", "dataset", "seed"))
    q = xr.DataArray([0.0, 1.0], {"protocol": ["p", "q"]}, ("protocol",))
    seeded = lineages.assign(score=lineages["score"] + noise * q).assign_coords(seed=[0, 1, 2])
    seeded["score"] = seeded["score"].where((q == 1) | (seeded["seed"] == 0))  # p has one alone
    found = correlate_protocols(seeded, over="seeds").sel(protocol="p", other="q")
    mean = lineages.assign(score=seeded["score"].mean("seed"))
    assert found["pearson"] == pytest.approx(
        float(correlate_protocols(mean)["pearson"].sel(protocol="p", other="q"))
    )
    # Brute force: what the mean coefficient becomes with other noise of this size.
    again = []
    clean = mean["score"].sel(bn_mode="eval").values
    for _ in range(400):
        moved = clean[..., 1] + rng.normal(0, 0.5 / np.sqrt(3), (9, 4))
        r = [stats.pearsonr(clean[:, d, 0], moved[:, d]).statistic for d in range(4)]
        again.append(np.mean(r))
    reach = float(found["pearson_high"] - found["pearson"])
    assert reach / 1.96 == pytest.approx(np.std(again), rel=0.25)
    with pytest.raises(ValueError, match=r"open_results\(..., seeds=True\)"):
        correlate_protocols(mean, over=("models", "seeds"))


@pytest.mark.parametrize("partial", ["", "backbone"])
def test_without_a_model_coefficients_are_those_of_the_others(lineages, partial):
    found = influence(lineages, partial=partial)
    whole = correlate_protocols(lineages, partial=partial)
    for model in lineages["model"].values:
        rest = lineages.sel(model=lineages["model"] != model)
        for name in COEFFICIENTS:
            own = found[name].sel(model=model)
            expected = correlate_protocols(rest, partial=partial)[name]
            np.testing.assert_allclose(own, expected)
            np.testing.assert_allclose(
                found[f"{name}_change"].sel(model=model), own - whole[name], atol=1e-12
            )


def test_a_model_of_four_cannot_be_left_out(results):
    few = results.isel(model=slice(0, 4), protocol=[0, 1])
    assert influence(few)["pearson"].isnull().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interval": "exact"}, "interval must be one of jackknife, fisher, bca, percentile, got"),
        ({"over": "images"}, "over must be one of models, datasets, seeds, got 'images'"),
        ({"over": ()}, "over must name what the interval is over"),
    ],
)
def test_intervals_that_there_are_not_are_refused(results, wrong, message):
    with pytest.raises(ValueError, match=message):
        correlate_protocols(results, **wrong)


def test_a_perfect_score_has_the_logit_of_half_an_image_less(results):
    few = results.isel(protocol=[0, 7]).copy(deep=True)
    few["score"].loc[{"model": few["model"].values[0], "dataset": "faces"}] = 1.0
    found = correlate_protocols(few, dataset="faces", scale="logit")["pearson"].values[0, 1]
    own = few.isel(model=np.flatnonzero(is_independent(few).values))
    scores = own["score"].sel(bn_mode="eval", dataset="faces").values
    kept = np.where(scores == 1, 1 - 0.5 / 60, scores)  # faces have 60 test images
    columns = np.log(kept / (1 - kept))
    assert found == pytest.approx(stats.pearsonr(*columns.T).statistic)


def test_clusters_count_alike_however_many_datasets_they_have(lineages):
    grouped = lineages.isel(dataset=[0, 1, 2, 3, 1, 2]).assign_coords(
        dataset=[*"abcdef"], cluster=("dataset", ["", "", "", "u", "u", "u"]),
        shift=("dataset", ["other"] * 6),
    )  # fmt: skip
    found = correlate_protocols(grouped, over="datasets").sel(protocol="p", other="q")
    r = found["kendall_by_dataset"].values
    means = np.array([*r[:3], r[3:].mean()])
    reach = stats.t.ppf(0.975, 3) * stats.sem(means)
    assert found["kendall"] - found["kendall_low"] == pytest.approx(
        min(reach, 1 + float(found["kendall"]))
    )
