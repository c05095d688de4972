import numpy as np
import pytest
from scipy import stats

from featstore.kernels.correlate import kendall, pearson, rank_data, spearman, steiger


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
    assert float(kendall(x, y)) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("correlate", [pearson, spearman, kendall])
def test_leading_axes_broadcast(correlate):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 1, 9)), rng.normal(size=(5, 9))
    whole = correlate(x, y)
    assert whole.shape == (4, 5)
    single = [[float(correlate(x[i, 0], y[j])) for j in range(5)] for i in range(4)]
    np.testing.assert_allclose(whole, single, rtol=1e-12)


@pytest.mark.parametrize("correlate", [pearson, spearman, kendall])
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


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_tau_b_of_many_ties_is_that_of_scipy(levels):
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, levels, size=(2, 50, 8)).astype(float)
    expected = []
    for a, b in zip(x, y, strict=True):
        constant = np.ptp(a) == 0 or np.ptp(b) == 0
        expected.append(np.nan if constant else stats.kendalltau(a, b).statistic)
    np.testing.assert_allclose(kendall(x, y), expected, atol=1e-12)


def test_a_perfect_order_has_tau_1():
    x = np.arange(3, 60.0)
    assert kendall(x, np.exp(x)) == 1
    assert kendall(x, -x) == -1


# Coefficients as rounded to four digits, and the z that R's cocor 1.1 prints of them unrounded.
PRINTED = [(0.2493, 0.3395, 0.4082, 553, -2.0660), (0.0228, 0.3522, 0.3718, 553, -7.1345)]


@pytest.mark.parametrize(("r_xz", "r_yz", "r_xy", "n", "printed"), PRINTED)
def test_steigers_z_is_the_one_that_r_prints(r_xz, r_yz, r_xy, n, printed):
    z, p = steiger(r_xz, r_yz, r_xy, n)
    assert z == pytest.approx(printed, abs=2e-3)
    assert p == pytest.approx(2 * stats.norm.sf(abs(printed)), rel=0.02)


def test_steigers_z_goes_with_williams_t_where_coefficients_are_small_and_many():
    """Another test of the same, whose formula shares nothing with this one."""
    r_xz, r_yz, r_xy, n = 0.30, 0.25, 0.5, 2000
    determinant = 1 - r_xz**2 - r_yz**2 - r_xy**2 + 2 * r_xz * r_yz * r_xy
    mean = (r_xz + r_yz) / 2
    below = 2 * (n - 1) / (n - 3) * determinant + mean**2 * (1 - r_xy) ** 3
    williams = (r_xz - r_yz) * np.sqrt((n - 1) * (1 + r_xy) / below)
    assert steiger(r_xz, r_yz, r_xy, n)[0] == pytest.approx(williams, rel=5e-3)


@pytest.mark.parametrize(("r", "between"), [(0.0, 0.5), (0.5, 0.2), (0.7, 0.9)])
def test_steigers_test_rejects_a_true_hypothesis_as_often_as_it_says(r, between):
    rng = np.random.default_rng(8)
    spread = np.linalg.cholesky([[1, between, r], [between, 1, r], [r, r, 1]])
    x, y, z = np.moveaxis(rng.normal(size=(10_000, 30, 3)) @ spread.T, -1, 0)
    _, p = steiger(pearson(x, z), pearson(y, z), pearson(x, y), 30)
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.01)  # four standard errors and a little


def test_steigers_test_broadcasts_changes_sign_and_has_no_number_where_there_can_be_none():
    z, p = steiger(np.array([[0.5], [0.2]]), np.array([0.2, 0.5]), 0.3, 20)
    assert z.shape == p.shape == (2, 2)
    assert z[0, 0] == -z[1, 1] > 0
    assert z[0, 1] == 0
    assert p[0, 1] == 1
    cases = [(1, 0.5, 0.5, 9), (0.5, -1, 0, 9), (0.5, 0.5, 1, 9), (0.5, 0.3, 0.2, 3)]
    for case in [*cases, (np.nan, 0.3, 0.2, 9)]:
        assert np.isnan(steiger(*case)).all()
