"""The efficient protocols against a comparison of every two."""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.cost import front, pareto, seed_reliability
from featstore.analysis.predict import predictors


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(3)


def unbeaten(cost, gain):
    """By comparing every two."""
    return [
        not any(
            c <= cost[i] and g >= gain[i] and (c < cost[i] or g > gain[i])
            for c, g in zip(cost, gain, strict=True)
        )
        and np.isfinite(cost[i])
        and np.isfinite(gain[i])
        for i in range(len(cost))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_what_no_other_beats_is_on_the_front(seed):
    rng = np.random.default_rng(seed)
    cost, gain = rng.integers(0, 6, 15).astype(float), rng.integers(0, 6, 15) / 5
    cost[rng.random(15) < 0.1] = np.nan
    gain[rng.random(15) < 0.1] = np.nan
    assert list(front(cost, gain)) == unbeaten(cost, gain)


def test_nothing_is_on_the_front_of_nothing():
    assert not front(np.full(3, np.nan), np.arange(3.0)).any()
    assert front(np.empty(0), np.empty(0)).shape == (0,)


def test_protocols_come_by_cost_with_their_share_of_ranking_and_seconds(study):
    found = pareto(study, "finetune-marks", reliability=0.8)
    known = predictors(study, "finetune-marks").sel(protocol=found["protocol"])
    assert (np.diff(found["seconds"].values) >= 0).all()
    for end in ("", "_low", "_high"):
        np.testing.assert_array_equal(found[f"spearman{end}"], known[f"spearman{end}"])
        np.testing.assert_allclose(found[f"share_ranking{end}"], known[f"spearman{end}"] / 0.8)
    seconds = study["seconds"].sel(bn_mode="eval").median(["model", "dataset"])
    share = seconds.sel(protocol=found["protocol"]) / seconds.sel(protocol="finetune-marks")
    np.testing.assert_allclose(found["share_seconds"], share)
    columns = found["seconds"].values, found["spearman"].values
    assert list(found["efficient"].values) == unbeaten(*columns)
    assert found["efficient"].values[0]
    assert found["efficient"].values[np.argmax(columns[1])]


def test_correlations_that_are_there_are_not_made_again(study):
    table = correlate_protocols(study, by_dataset=False)
    once = pareto(study, "logreg", correlations=table)
    xr.testing.assert_identical(once, pareto(study, "logreg"))
    column = table["spearman"].sel(other="logreg", protocol=once["protocol"].values)
    np.testing.assert_array_equal(once["share_ranking"].values, column.values)


def test_a_protocol_without_cells_is_last_and_not_efficient(study):
    holed = study.copy(deep=True)
    holed["score"].loc[{"protocol": "rankme"}] = np.nan  # the cheapest
    found = pareto(holed, "finetune-marks")
    assert found["protocol"].values[-1] == "rankme"
    assert not found["efficient"].values[-1]
    assert np.isnan(found["share_ranking"].values[-1])


@pytest.mark.parametrize("reliability", [0.0, -0.5, 1.1, np.nan])
def test_a_reliability_that_is_none_is_refused(study, reliability):
    with pytest.raises(ValueError, match="reliability must lie above 0 and not above 1, got"):
        pareto(study, "logreg", reliability=reliability)


def test_what_does_not_exist_is_refused_by_name(study):
    with pytest.raises(ValueError, match="target must be one of knn-marks, .* got 'svm'"):
        pareto(study, "svm")


def test_reliability_is_the_mean_correlation_of_every_two_seeds(study):
    rng = np.random.default_rng(0)
    seeds = study[["score"]].expand_dims(seed=3)
    noise = rng.normal(0, 0.05, tuple(seeds.sizes[dim] for dim in seeds["score"].dims))
    seeds = (seeds + noise).clip(0, 1)
    seeds["score"][2, :6, 1] = np.nan  # three models have the last seed there
    scores = seeds["score"].sel(bn_mode="eval", protocol="logreg")
    expected = [
        stats.spearmanr(a, b, nan_policy="omit").statistic
        for number, cells in enumerate(scores.transpose("dataset", "seed", "model"))
        for a, b in combinations(cells.values[:2] if number == 1 else cells.values, 2)
    ]
    assert len(expected) == 7
    assert seed_reliability(seeds, "logreg") == pytest.approx(np.mean(expected))
    few = seeds.isel(model=[0, 1, 2])
    assert np.isnan(seed_reliability(few, "logreg"))


def test_without_seeds_there_is_no_reliability(study):
    with pytest.raises(ValueError, match=r"results must have their seeds, as of open_results"):
        seed_reliability(study, "logreg")
    with pytest.raises(ValueError, match="protocol must be one of .* got 'svm'"):
        seed_reliability(study, "svm")
