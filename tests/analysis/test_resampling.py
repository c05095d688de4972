"""Bootstrap over models against SciPy's."""

import numpy as np
import pytest
from scipy import stats

from featstore.analysis.resampling import (
    bca,
    draws_of_models,
    mean_correlations,
    mean_interval,
)
from featstore.kernels.correlate import bootstrap_correlation


@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_of_a_mean_is_close_to_scipys(skewed):
    rng = np.random.default_rng(0)
    values = rng.exponential(size=20) if skewed else rng.normal(size=20)
    mean, low, high = mean_interval(np.append(values, np.nan), resamples=9999, seed=0)
    assert mean == pytest.approx(values.mean())
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_few_models_have_a_mean_and_no_interval_and_none_have_nothing():
    few = mean_interval(np.array([1.0, 2.0, 6.0, np.nan]), resamples=9, seed=0)
    assert few[0] == 3
    assert np.isnan(few[1:]).all()
    assert np.isnan(mean_interval(np.array([np.nan]), resamples=9, seed=0)).all()


def test_draws_count_models_and_the_last_leave_one_out():
    weights = draws_of_models(5, resamples=7, seed=3)
    draws = np.random.default_rng(3).integers(0, 5, (7, 5))
    for row, drawn in zip(weights, draws, strict=False):
        assert row.tolist() == [list(drawn).count(i) for i in range(5)]
    np.testing.assert_array_equal(weights[7:], 1 - np.eye(5))


def test_a_draw_that_equals_the_estimate_but_for_rounding_counts_as_equal():
    draws = np.array([0.2, 0.3, 0.1 + 0.2, 0.4])
    exact = np.array([0.2, 0.3, 0.3, 0.4])
    assert bca(0.3, draws, exact) == bca(0.3, exact, exact)


def test_correlations_in_draws_are_those_of_the_models_drawn():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 3, 9)).round(1)  # with ties
    values[1, 0, 2] = values[3, 1, :2] = np.nan
    first, second = np.array([0, 0, 2]), np.array([1, 3, 3])
    given = np.array([[True, True, True], [True, False, True], [True, True, True]])
    draws = np.random.default_rng(5).integers(0, 9, (6, 9))
    weights = draws_of_models(9, resamples=6, seed=5)[:6]
    found = mean_correlations(values, first, second, weights, given)
    for pair in range(3):
        for number, drawn in enumerate(draws):
            for mean, test in zip(found, (stats.pearsonr, stats.spearmanr), strict=True):
                r = []
                for d in np.flatnonzero(given[pair]):
                    x, y = values[first[pair], d], values[second[pair], d]
                    kept = [i for i in drawn if np.isfinite(x[i] + y[i])]
                    r.append(test(x[kept], y[kept]).statistic)
                assert mean[pair, number] == pytest.approx(np.mean(r))


def test_a_draw_of_one_model_alone_has_no_correlation():
    values = np.random.default_rng(0).normal(1e6, 1, size=(2, 1, 4))
    alone = np.zeros((200, 4))
    alone[np.arange(200), np.arange(200) % 4] = np.arange(1, 201)  # sums of many are rounded
    weights = np.concatenate([alone, np.ones((1, 4))])
    pearson, spearman = mean_correlations(
        values, np.array([0]), np.array([1]), weights, np.array([[True]])
    )
    assert np.isnan(pearson[0, :200]).all()
    assert np.isnan(spearman[0, :200]).all()
    assert pearson[0, 200] == pytest.approx(stats.pearsonr(*values[:, 0]).statistic)


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
def test_limits_are_those_of_the_kernel_that_takes_one_pair(statistic):
    x, y = np.random.default_rng(4).normal(size=(2, 11))
    r, low, high = bootstrap_correlation(
        x, y, statistic=statistic, resamples=400, rng=np.random.default_rng(0)
    )
    weights = draws_of_models(11, resamples=400, seed=0)
    found = mean_correlations(
        np.stack([x, y])[:, None], np.array([0]), np.array([1]), weights, np.array([[True]])
    )[statistic == "spearman"][0]
    assert bca(r, found[:400], found[400:]) == pytest.approx((low, high), abs=1e-9)
