"""Rankings against pandas, and what is said about models that are none of their own."""

import numpy as np
import pytest
import xarray as xr

from featstore.analysis.rank import mean_over_datasets, rank_models


def long_table(results, bn_mode):
    cells = results["score"].sel(bn_mode=bn_mode).drop_vars("bn_mode")
    frame = cells.to_dataframe()[["score"]].dropna().reset_index()
    groups = frame.groupby(["dataset", "protocol"])["score"]
    return frame.assign(rank=groups.rank(ascending=False, method="average"))


@pytest.mark.parametrize("bn_mode", ["eval", "adapt"])
def test_means_and_ranks_are_those_of_pandas(results, bn_mode):
    ranking = rank_models(results, bn_mode=bn_mode)
    frame = long_table(results, bn_mode)
    by_model = frame.groupby("model")
    for model in results["model"].values:
        found = ranking.sel(model=model)
        assert found["mean_score"] == pytest.approx(by_model["score"].mean()[model])
        assert found["mean_rank"] == pytest.approx(by_model["rank"].mean()[model])
        assert found["n_cells"] == by_model["score"].count()[model]
    by_both = frame.groupby(["model", "protocol"])
    for place, rank in by_both["rank"].mean().items():
        found = ranking.sel(model=place[0], protocol=place[1])
        assert found["rank"] == pytest.approx(rank)
        assert found["score"] == pytest.approx(by_both["score"].mean()[place])
        assert found["n_datasets"] == by_both["score"].count()[place]


def test_models_come_best_first_and_only_independent_ones_take_a_place(results):
    ranking = rank_models(results)
    assert (np.diff(ranking["mean_rank"]) >= 0).all()
    placed = ranking["place"].values[ranking["independent"].values]
    np.testing.assert_array_equal(placed, np.arange(1, 11))
    apart = ranking.isel(model=~ranking["independent"].values)
    assert set(apart["stage"].values) == {"early", "random"}
    assert apart["place"].isnull().all()


def test_losing_a_hard_dataset_lifts_the_mean_score_but_not_the_place(results):
    first = rank_models(results)
    worst = first["model"].values[-1]
    holed = results.copy(deep=True)
    holed["score"].loc[{"model": worst, "dataset": "digits-texture"}] = np.nan
    again = rank_models(holed)
    assert again["mean_score"].sel(model=worst) > first["mean_score"].sel(model=worst)
    assert again["model"].values[-1] == worst
    assert (again["n_datasets"].sel(model=worst) == 6).all()


def test_a_model_without_a_cell_comes_last_without_a_place(results):
    holed = results.copy(deep=True)
    name = rank_models(results)["model"].values[0]
    holed["score"].loc[{"model": name}] = np.nan
    ranking = rank_models(holed)
    assert ranking["model"].values[-1] == name
    assert ranking["place"].sel(model=name).isnull()
    assert ranking["score"].sel(model=name).isnull().all()
    assert (ranking["place"].max() == 9).item()


def test_the_interval_of_a_mean_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, n_test, studies = np.array([0.97, 0.6, 0.3, 0.85]), 200, 4000
    share = rng.binomial(n_test, truth, size=(studies, 4)) / n_test
    half = 1.96**2 / n_test
    centre = (share + half / 2) / (1 + half)
    reach = np.sqrt(half * share * (1 - share) + half**2 / 4) / (1 + half)
    dims = ("model", "dataset")
    cells = xr.Dataset(
        {"score": (dims, share), "low": (dims, centre - reach), "high": (dims, centre + reach)}
    )
    mean = mean_over_datasets(cells)
    inside = (mean["low"] <= truth.mean()) & (truth.mean() <= mean["high"])
    assert inside.mean() == pytest.approx(0.95, abs=0.012)


def test_the_mean_of_one_dataset_keeps_its_interval(results):
    one = results.sel(bn_mode="eval").isel(dataset=[2])
    mean = mean_over_datasets(one)
    np.testing.assert_allclose(mean["low"], one["low"].isel(dataset=0))
    np.testing.assert_allclose(mean["high"], one["high"].isel(dataset=0))


def test_another_metric_is_ranked_without_intervals(results):
    ranking = rank_models(results, metric="mean_per_class")
    assert ranking["low"].isnull().all()
    assert ranking["mean_score"].notnull().all()


@pytest.mark.parametrize("wrong", [{"metric": "auc"}, {"bn_mode": "frozen"}])
def test_what_does_not_exist_is_refused_by_name(results, wrong):
    with pytest.raises(ValueError, match=f"must be one of .* got '{next(iter(wrong.values()))}'"):
        rank_models(results, **wrong)
