"""Resampling of models, datasets and seeds against SciPy, brute force and laws."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.coefficients import mean_correlations
from featstore.analysis.resampling import (
    Resampling,
    clusters_of,
    combined,
    draws_of,
    mean_interval,
    redrawn_seeds,
    units_of,
)

TESTS = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def test_the_interval_of_a_mean_of_single_models_is_students():
    values = np.random.default_rng(0).exponential(size=12)
    mean, low, high = mean_interval(np.append(values, np.nan), np.arange(13))
    assert mean == pytest.approx(values.mean())
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected)


def test_the_interval_of_a_mean_of_lineages_is_wider_where_they_are_alike():
    lineages = np.repeat(np.arange(6), 3)
    alike = np.random.default_rng(1).normal(size=6)[lineages]
    _, low, high = mean_interval(alike, lineages)
    expected = stats.t.interval(0.95, 5, alike.mean(), stats.sem(alike[::3]))
    assert (low, high) == pytest.approx(expected)  # three copies of a model say no more than one


def test_few_models_have_a_mean_and_no_interval_and_none_have_nothing():
    few = mean_interval(np.array([1.0, 2.0, 6.0, np.nan]), np.arange(4))
    assert few[0] == 3
    assert np.isnan(few[1:]).all()
    assert np.isnan(mean_interval(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 2]))[1:]).all()
    assert np.isnan(mean_interval(np.array([np.nan]), np.arange(1))).all()


def test_draws_count_models_and_the_last_leave_one_out():
    weights = draws_of(np.arange(5), resamples=7, seed=3)
    draws = np.random.default_rng(3).integers(0, 5, (7, 5))
    for row, drawn in zip(weights, draws, strict=False):
        assert row.tolist() == [list(drawn).count(i) for i in range(5)]
    np.testing.assert_array_equal(weights[7:], 1 - np.eye(5))


def test_models_of_a_unit_are_drawn_and_left_out_together():
    units = np.array([4, 2, 4, 7])
    weights = draws_of(units, resamples=50, seed=0)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:50, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(weights[50:], [[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]])


def test_a_unit_is_a_method_or_else_a_lineage_or_else_the_model():
    results = xr.Dataset(
        coords={
            "model": list("abcdefg"),
            "method": ("model", ["simclr", "simclr", "mae", "", "", "", ""]),
            "lineage": ("model", ["run-1", "run-2", "run-3", "run-4", "run-4", "", ""]),
            "dataset": ["x", "y", "z"],
            "cluster": ("dataset", ["domainnet", "", "domainnet"]),
        }
    )
    assert units_of(results).tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert clusters_of(results).tolist() == [0, 1, 0]
    bare = results.drop_vars(["method", "lineage", "cluster"])
    assert units_of(bare).tolist() == list(range(7))
    assert clusters_of(bare).tolist() == [0, 1, 2]


def test_correlations_in_draws_are_those_of_the_models_drawn():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 3, 9)).round(1)  # with ties
    values[1, 0, 2] = values[3, 1, :2] = np.nan
    first, second = np.array([0, 0, 2]), np.array([1, 3, 3])
    given = np.array([[True, True, True], [True, False, True], [True, True, True]])
    draws = np.random.default_rng(5).integers(0, 9, (6, 9))
    weights = draws_of(np.arange(9), resamples=6, seed=5)[:6]
    found = mean_correlations(values, first, second, weights, given)
    for pair in range(3):
        for number, drawn in enumerate(draws):
            for name, test in TESTS.items():
                r = []
                for d in np.flatnonzero(given[pair]):
                    x, y = values[first[pair], d], values[second[pair], d]
                    kept = [i for i in drawn if np.isfinite(x[i] + y[i])]
                    r.append(test(x[kept], y[kept]).statistic)
                assert found[name][pair, number] == pytest.approx(np.mean(r))


def test_a_draw_of_one_model_alone_has_no_correlation():
    values = np.random.default_rng(0).normal(1e6, 1, size=(2, 1, 4))
    alone = np.zeros((200, 4))
    alone[np.arange(200), np.arange(200) % 4] = np.arange(1, 201)  # sums of many are rounded
    weights = np.concatenate([alone, np.ones((1, 4))])
    found = mean_correlations(values, np.array([0]), np.array([1]), weights, np.array([[True]]))
    for name, test in TESTS.items():
        assert np.isnan(found[name][0, :200]).all()
        assert found[name][0, 200] == pytest.approx(test(*values[:, 0]).statistic)


def residuals(column, groups):
    """What is left of a column once the mean of each group is taken away."""
    return column - np.array([column[groups == one].mean() for one in groups])


def test_within_groups_coefficients_are_those_of_residuals_and_of_pairs_of_one_group():
    rng = np.random.default_rng(3)
    groups = np.array([0, 1, 1, 0, 2, 2, 2, 0, 1, 1])
    x, y = rng.normal(size=(2, 10)).round(1) + 3 * groups
    found = mean_correlations(
        np.stack([x, y])[:, None], np.array([0]), np.array([1]), np.ones((1, 10)),
        np.array([[True]]), groups=groups,
    )  # fmt: skip
    found = {name: float(one[0, 0]) for name, one in found.items()}
    assert found["pearson"] == pytest.approx(
        stats.pearsonr(residuals(x, groups), residuals(y, groups)).statistic
    )
    ranked = (residuals(stats.rankdata(side), groups) for side in (x, y))
    assert found["spearman"] == pytest.approx(stats.pearsonr(*ranked).statistic)
    pairs = [(i, j) for i in range(10) for j in range(i) if groups[i] == groups[j]]
    signs = np.array([[np.sign(side[i] - side[j]) for i, j in pairs] for side in (x, y)])
    expected = (signs[0] * signs[1]).sum() / np.sqrt(np.prod(np.abs(signs).sum(axis=1)))
    assert found["kendall"] == pytest.approx(expected)
    assert found["pearson"] < stats.pearsonr(x, y).statistic - 0.3  # the groups made it


def test_a_group_that_is_not_drawn_does_no_harm():
    groups = np.array([0, 0, 0, 0, 1, 1])
    values = np.random.default_rng(0).normal(size=(2, 1, 6))
    weights = np.array([[1, 1, 1, 1, 0, 0], [1, 2, 1, 1, 0, 0]], float)
    found = mean_correlations(
        values, np.array([0]), np.array([1]), weights, np.array([[True]]), groups=groups
    )
    alone = mean_correlations(
        values[..., :4], np.array([0]), np.array([1]), weights[:, :4], np.array([[True]])
    )
    for name in TESTS:
        np.testing.assert_allclose(found[name], alone[name])


def correlated(r, n, seed):
    return np.random.default_rng(seed).multivariate_normal([0, 0], [[1, r], [r, 1]], n).T


def limits_of(x, y, scheme, statistic="pearson"):
    sides = np.stack([x, y])[:, None], np.array([0]), np.array([1])
    again = mean_correlations(*sides, scheme.weights, np.array([[True]]))[statistic]
    whole = mean_correlations(*sides, np.ones((1, len(x))), np.array([[True]]))[statistic]
    present = np.ones((1, scheme.n_units), bool)
    low, high = scheme.limits(whole[:, 0], again, present, statistic=statistic)
    return float(low[0]), float(high[0])


def test_bca_and_percentile_are_close_to_scipys():
    x, y = correlated(0.6, 20, 4)
    for interval, method in (("bca", "BCa"), ("percentile", "percentile")):
        found = limits_of(x, y, Resampling(np.arange(20), interval, 6000, 0))
        expected = stats.bootstrap(
            (x, y), lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic, paired=True,
            vectorized=True, n_resamples=6000, method=method, rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        assert found == pytest.approx((expected.low, expected.high), abs=0.04), interval


def test_fisher_counts_units_and_is_scipys_where_each_model_is_one():
    x, y = correlated(0.5, 12, 0)
    expected = stats.pearsonr(x, y).confidence_interval()
    found = limits_of(x, y, Resampling(np.arange(12), "fisher"))
    assert found == pytest.approx((expected.low, expected.high))
    pairs = limits_of(x, y, Resampling(np.arange(12) // 2, "fisher"))
    assert pairs[0] < found[0]
    assert pairs[1] > found[1]


def test_a_unit_without_a_model_in_a_pair_changes_nothing():
    x, y = correlated(0.5, 10, 1)
    alone = limits_of(x, y, Resampling(np.arange(10)))
    scheme = Resampling(np.arange(11))
    sides = (
        np.stack([np.append(x, np.nan), np.append(y, 0.0)])[:, None],
        np.array([0]),
        np.array([1]),
    )
    again = mean_correlations(*sides, scheme.weights, np.array([[True]]))["pearson"]
    r = np.array([stats.pearsonr(x, y).statistic])
    present = scheme.present(np.isfinite(sides[0]).all(axis=0))
    low, high = scheme.limits(r, again, present, statistic="pearson")
    assert (float(low[0]), float(high[0])) == pytest.approx(alone)


def test_two_sources_add_up_as_squares_on_each_side():
    estimate = np.array([0.5])
    sources = [(np.array([0.2]), np.array([0.6])), (np.array([0.1]), np.array([0.7]))]
    low, high = combined(estimate, sources)
    assert low[0] == pytest.approx(0.5 - np.hypot(0.3, 0.4))
    assert high[0] == pytest.approx(0.5 + np.hypot(0.1, 0.2))
    assert combined(estimate, sources[:1]) == sources[0]
    assert combined(np.array([0.9]), [(np.array([-0.9]), np.array([1.0]))] * 2)[0][0] == -1


def test_redrawn_seeds_vary_as_much_as_means_of_seeds_do():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2000, 3))
    values[0, 1:] = np.nan  # a protocol without randomness
    values[1] = np.nan
    drawn = np.stack([*redrawn_seeds(values, 300, 0)])
    np.testing.assert_allclose(drawn[:, 0], values[0, 0])
    assert np.isnan(drawn[:, 1]).all()
    # Over many cells, the variance of a mean of three.
    assert drawn[:, 2:].var(axis=0).mean() == pytest.approx(1 / 3, rel=0.05)
    np.testing.assert_allclose(drawn[:, 2:].mean(axis=0), values[2:].mean(axis=1), atol=0.2)
