import numpy as np
import pytest
from scipy import stats

from featstore.kernels.correlate import bootstrap_correlation, pearson, rank_data, spearman


def pairs(kind, n=14):
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    y = x + rng.normal(size=n)
    if kind == "ties":
        x, y = np.round(x), np.round(y)
    elif kind == "tiny":
        x, y = x * 1e-200, y * 1e-200
    elif kind == "huge":
        x, y = x * 1e200, y * 1e200
    elif kind == "shifted":
        x, y = x + 1e6, y - 1e6
    return x, y


@pytest.mark.parametrize("kind", ["continuous", "ties", "tiny", "huge", "shifted"])
@pytest.mark.parametrize("n", [3, 14, 200])
def test_coefficients_are_those_of_scipy(kind, n):
    x, y = pairs(kind, n)
    assert float(pearson(x, y)) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_leading_axes_broadcast(correlate):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 1, 9)), rng.normal(size=(5, 9))
    whole = correlate(x, y)
    assert whole.shape == (4, 5)
    single = [[float(correlate(x[i, 0], y[j])) for j in range(5)] for i in range(4)]
    np.testing.assert_allclose(whole, single, rtol=1e-12)


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_what_has_no_correlation_is_nan_without_a_warning(correlate):
    varied = np.arange(7.0)
    for other in (np.full(7, 0.1), np.append(varied[:-1], np.nan)):
        assert np.isnan(correlate(varied, other))
        assert np.isnan(correlate(other, varied))
    assert np.isnan(correlate(varied[:1], varied[:1]))
    assert np.isnan(correlate(varied[:0], varied[:0]))


def test_coefficients_stay_within_1():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 11))
    r = pearson(x, 3 * x + 1)
    assert np.all(r <= 1)
    np.testing.assert_allclose(r, 1, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 4, 1000])
def test_ranks_count_smaller_values_and_half_the_equal_ones(levels):
    x = np.random.default_rng(3).integers(0, levels, size=(6, 5, 12)).astype(float)
    less = np.sum(x[..., None, :] < x[..., :, None], axis=-1)
    same = np.sum(x[..., None, :] == x[..., :, None], axis=-1)
    np.testing.assert_array_equal(rank_data(x), less + (same + 1) / 2)


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_scipy_from_the_same_draws(statistic, confidence):
    x, y = pairs("continuous", 20)
    r, low, high = bootstrap_correlation(
        x,
        y,
        statistic=statistic,
        resamples=999,
        rng=np.random.default_rng(4),
        confidence=confidence,
    )
    correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[statistic]
    reference = stats.bootstrap(
        (x, y),
        lambda a, b: correlate(a, b).statistic,
        n_resamples=999,
        paired=True,
        vectorized=False,
        method="BCa",
        confidence_level=confidence,
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert r == pytest.approx(correlate(x, y).statistic)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_degenerate_resamples_are_dropped():
    x, y = np.array([0.0, 0.0, 0.0, 1.0, 0.0]), np.arange(5.0)  # most draws miss the fourth
    r, low, high = bootstrap_correlation(
        x, y, statistic="pearson", resamples=500, rng=np.random.default_rng(5)
    )
    assert -1 <= low <= r <= high <= 1


@pytest.mark.parametrize("seed", range(4))
def test_draws_that_all_fall_on_one_side_still_give_an_interval(seed):
    x, y = pairs("continuous", 8)
    rng = np.random.default_rng(seed)
    _, low, high = bootstrap_correlation(x, y, statistic="pearson", resamples=1, rng=rng)
    assert -1 <= low <= high <= 1


def test_a_perfect_correlation_has_an_interval_without_width():
    x = np.arange(6.0)
    found = bootstrap_correlation(
        x, 2 * x, statistic="spearman", resamples=300, rng=np.random.default_rng(6)
    )
    assert found == pytest.approx((1, 1, 1), abs=1e-12)


def test_too_few_observations_have_no_interval():
    rng = np.random.default_rng(7)
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    r, low, high = bootstrap_correlation(x, y, statistic="pearson", resamples=9, rng=rng)
    assert r == pytest.approx(stats.pearsonr(x, y).statistic)
    assert np.isnan([low, high]).all()
    constant = bootstrap_correlation(
        np.ones(9), np.arange(9.0), statistic="pearson", resamples=9, rng=rng
    )
    assert np.isnan(constant).all()


def test_another_statistic_is_refused():
    with pytest.raises(ValueError, match="statistic must be pearson or spearman, got 'kendall'"):
        bootstrap_correlation(
            np.ones(4), np.ones(4), statistic="kendall", resamples=9, rng=np.random.default_rng(0)
        )
