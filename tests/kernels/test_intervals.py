"""Intervals of correlations against SciPy, against other forms of their formulas, and in use."""

import numpy as np
import pytest
from scipy import stats

from featstore.kernels.correlate import kendall, pearson, spearman
from featstore.kernels.intervals import bca, fisher, jackknife, percentile

KERNELS = {"pearson": pearson, "spearman": spearman, "kendall": kendall}
SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def samples(repetitions, n, r, seed=0):
    """Bivariate normal samples (repetitions, n) of two variables."""
    x, y = np.random.default_rng(seed).normal(size=(2, repetitions, n))
    return x, r * x + np.sqrt(1 - r * r) * y


def without_each(correlate, x, y):
    """Coefficients (..., n) without each observation, computed anew."""
    n = x.shape[-1]
    others = np.nonzero(~np.eye(n, dtype=bool))[1].reshape(n, n - 1)
    return correlate(x[..., others], y[..., others])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_fishers_interval_of_pearson_is_scipys(confidence):
    x, y = samples(5, 12, 0.4)
    low, high = fisher(pearson(x, y), 12, statistic="pearson", confidence=confidence)
    expected = [stats.pearsonr(*pair).confidence_interval(confidence) for pair in zip(x, y)]  # noqa: B905
    np.testing.assert_allclose(np.stack([low, high], axis=1), expected, rtol=1e-10)


def test_fishers_interval_of_ranks_is_what_a_table_of_z_gives():
    # artanh(.5) = .5493; sqrt((1 + .125) / 25) = .2121; sqrt(.437 / 24) = .1349; times 1.9600
    low, high = fisher(0.5, 28, statistic="spearman")
    assert (np.arctanh(low), np.arctanh(high)) == pytest.approx((0.1336, 0.9651), abs=2e-4)
    low, high = fisher(0.5, 28, statistic="kendall")
    assert (np.arctanh(low), np.arctanh(high)) == pytest.approx((0.2848, 0.8138), abs=2e-4)


@pytest.mark.parametrize("statistic", KERNELS)
def test_fishers_interval_of_the_opposite_is_the_opposite_and_axes_broadcast(statistic):
    r, n = np.array([[-1.0, -0.3, 0.0, 0.7, 1.0]]), np.array([[5], [9], [100]])
    low, high = fisher(r, n, statistic=statistic)
    assert low.shape == (3, 5)
    assert np.all((low >= -1) & (low <= r) & (r <= high) & (high <= 1) & (low < high))
    np.testing.assert_allclose(fisher(-r, n, statistic=statistic), (-high, -low), rtol=1e-12)
    assert np.all(np.diff(high - low, axis=0) < 0)  # more observations, less width
    assert np.isnan(fisher(np.array([0.5, np.nan]), np.array([3, 9]), statistic=statistic)).all()


@pytest.mark.parametrize("n", [5, 6, 9])
def test_perfect_order_is_as_rare_as_nominal_where_the_truth_is_its_lower_limit(n):
    """One in 40, were the interval exact; so it is honest that it has a width at all."""
    low, high = fisher(1.0, n, statistic="pearson")
    x, y = samples(40_000, n, float(low), seed=n)
    perfect = np.mean(spearman(x, y) > 1 - 1e-12)
    assert 0.01 < perfect < 0.035
    assert high == 1


def test_perfect_limits_are_those_of_one_normal_distribution():
    low = {name: float(fisher(1.0, 6, statistic=name)[0]) for name in KERNELS}
    x, y = samples(1, 400_000, low["pearson"])
    assert low["spearman"] == pytest.approx(spearman(x[0], y[0]), abs=0.01)
    some = x[0, :3000], y[0, :3000]
    assert low["kendall"] == pytest.approx(stats.kendalltau(*some).statistic, abs=0.04)


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(1).exponential(size=(3, 11))
    without = (values.sum(axis=1, keepdims=True) - values) / 10
    found = jackknife(values.mean(axis=1), without, statistic=None, confidence=0.9)
    expected = stats.t.interval(0.9, 10, values.mean(axis=1), stats.sem(values, axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("statistic", "to", "back"),
    [
        ("pearson", np.arctanh, np.tanh),
        ("spearman", np.arcsin, np.sin),
        ("kendall", np.asarray, np.asarray),
    ],
)
def test_the_jackknife_is_that_of_pseudo_values(statistic, to, back):
    """Their variance over n is the jackknife's: Tukey's form of it."""
    x, y = samples(1, 15, 0.5, seed=3)
    r = KERNELS[statistic](x, y)
    without = without_each(KERNELS[statistic], x, y)
    pseudo = 15 * to(r) - 14 * to(without)
    ends = stats.t.interval(0.95, 14, to(r), stats.sem(pseudo, axis=-1))
    found = jackknife(r, without, statistic=statistic)
    np.testing.assert_allclose(found, back(np.array(ends)), rtol=1e-9)


@pytest.mark.parametrize("statistic", KERNELS)
def test_the_jackknife_stays_within_1_and_has_a_width_where_all_is_perfect(statistic):
    x, y = samples(2000, 5, 0.9)
    r = KERNELS[statistic](x, y)
    low, high = jackknife(r, without_each(KERNELS[statistic], x, y), statistic=statistic)
    assert np.all((low >= -1) & (low <= r + 1e-12) & (r <= high + 1e-12) & (high <= 1))
    perfect = np.array([1.0, -1.0])
    for units in (4, 14):
        found = jackknife(perfect, np.repeat(perfect[:, None], units, 1), statistic=statistic)
        np.testing.assert_allclose(found, fisher(perfect, units, statistic=statistic))
        assert np.all(found[1] - found[0] > 0.005)


def test_what_is_missing_is_left_out_of_a_jackknife():
    without = np.array([0.1, 0.3, np.nan, 0.2, 0.25, 0.4])
    whole = jackknife(0.25, np.delete(without, 2), statistic="spearman")
    np.testing.assert_allclose(jackknife(0.25, without, statistic="spearman"), whole)
    assert np.isnan(jackknife(0.25, without[:4], statistic="spearman")).all()  # three are left
    assert np.isnan(jackknife(np.nan, without, statistic="spearman")).all()


def drawn(statistic, x, y, resamples, seed):
    """What `bca` takes: estimate, bootstrap draws, without each; and SciPy's interval of them."""
    n, correlate = len(x), KERNELS[statistic]
    rows = np.random.default_rng(seed).integers(0, n, (resamples, n))
    draws = correlate(x[rows], y[rows])
    reference = stats.bootstrap(
        (x, y),
        lambda a, b: SCIPY[statistic](a, b).statistic,
        n_resamples=resamples,
        paired=True,
        vectorized=False,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return correlate(x, y), draws, without_each(correlate, x, y), reference


@pytest.mark.parametrize("statistic", KERNELS)
def test_bca_is_scipys_from_the_same_draws_row_by_row(statistic):
    pairs = [drawn(statistic, *(one[0] for one in samples(1, 20, 0.5, seed)), 399, seed)
             for seed in range(3)]  # fmt: skip
    estimate, draws, without = (np.stack(column) for column in list(zip(*pairs, strict=True))[:3])
    low, high = bca(estimate, draws, without)
    np.testing.assert_allclose(np.stack([low, high], 1), [one[3] for one in pairs], atol=1e-9)


def test_a_draw_that_equals_the_estimate_but_for_rounding_counts_as_equal():
    draws = np.array([0.2, 0.3, 0.1 + 0.2, 0.4])
    exact = np.array([0.2, 0.3, 0.3, 0.4])
    assert bca(0.3, draws, exact) == bca(0.3, exact, exact)


def test_draws_without_an_estimate_are_left_out_each_row_by_itself():
    rng = np.random.default_rng(5)
    draws, without = rng.uniform(size=(2, 60)), rng.uniform(size=(2, 7))
    draws[0, ::3] = np.nan
    found = bca(np.array([0.4, 0.6]), draws, without)
    few = bca(0.4, draws[0, np.isfinite(draws[0])], without[0])
    assert (found[0][0], found[1][0]) == pytest.approx(few)
    low, high = percentile(draws, confidence=0.8)
    np.testing.assert_allclose([low, high], np.nanquantile(draws, [0.1, 0.9], axis=1))


@pytest.mark.parametrize("side", [0.0, 1.0])
def test_draws_that_all_fall_on_one_side_still_give_an_interval(side):
    draws = np.random.default_rng(6).uniform(0.3, 0.5, 20)
    low, high = bca(side, draws, np.linspace(0, 1, 8))
    assert 0.3 <= low <= high <= 0.5


def test_there_is_no_interval_without_draws_or_of_too_few_units():
    draws = np.random.default_rng(7).uniform(size=50)
    for nothing in (np.zeros(0), np.full(9, np.nan)):
        assert np.isnan(percentile(nothing)).all()
        assert np.isnan(bca(0.5, nothing, draws[:8])).all()
    assert np.isnan(bca(0.5, draws, draws[:3])).all()
    assert np.isnan(bca(np.nan, draws, draws[:8])).all()


def test_what_is_no_statistic_and_no_confidence_is_refused():
    with pytest.raises(ValueError, match="statistic must be pearson, spearman or kendall, got 'r'"):
        fisher(0.5, 9, statistic="r")
    with pytest.raises(ValueError, match="statistic must be"):
        jackknife(0.5, np.zeros(9), statistic="r")
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence must lie in 0..1"):
            percentile(np.zeros(9), confidence=confidence)


@pytest.mark.parametrize("statistic", KERNELS)
@pytest.mark.parametrize("n", [14, 26])
@pytest.mark.parametrize("r", [0.3, 0.6, 0.9])
def test_the_jackknife_holds_the_truth_as_often_as_it_says(statistic, n, r):
    truth = {
        "pearson": r,
        "spearman": 6 / np.pi * np.arcsin(r / 2),
        "kendall": 2 / np.pi * np.arcsin(r),
    }[statistic]
    x, y = samples(4000, n, r, seed=n)
    without = without_each(KERNELS[statistic], x, y)
    low, high = jackknife(KERNELS[statistic](x, y), without, statistic=statistic)
    assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.97  # 5 standard errors about 95 %


def test_the_percentile_interval_of_nine_models_holds_the_truth_too_rarely():
    x, y = samples(1500, 9, 0.6, seed=2)
    rows = np.random.default_rng(3).integers(0, 9, (499, 9))
    low, high = percentile(pearson(x[:, rows], y[:, rows]))
    assert np.mean((low <= 0.6) & (high >= 0.6)) < 0.93
