"""CKA against the published formulas written out with their centring matrices."""

import array_api_compat.numpy
import numpy as np
import pytest

from featstore.backend import to_host
from featstore.kernels.ridge import gram_block
from featstore.kernels.similarity import cka_matrices, displacement, linear_cka
from featstore.kernels.transferability import label_alignment


def features(n=40, widths=(6, 60, 9), seed=0):
    """Sets that have something in common, some wider than they have rows, far from the origin."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4))
    return [
        common @ rng.normal(size=(4, d)) + 2 * rng.normal(size=(n, d)) + rng.normal(size=d) * 5
        for d in widths
    ]


def as_published(x, y):
    """Kornblith et al. 2019, eq. 3 and 4."""

    def hsic(a, b):
        n = len(a)
        h = np.eye(n) - np.ones((n, n)) / n
        return np.trace(a @ a.T @ h @ (b @ b.T) @ h) / (n - 1) ** 2

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def debiased(x, y):
    """Nguyen et al. 2021, with the unbiased HSIC of Song et al. 2012."""

    def hsic(a, b):
        n = len(a)
        k, m = (one @ one.T * (1 - np.eye(n)) for one in (a, b))
        ones = np.ones(n)
        total = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def on(xp, arrays):
    return [xp.asarray(one) for one in arrays]


@pytest.mark.parametrize("strip", [0, 1, 7, 39, 40, 1000])
def test_both_estimators_are_the_published_ones_however_they_are_cut(xp, strip):
    sets = features()
    found = [to_host(one) for one in cka_matrices(on(xp, sets), strip=strip, xp=xp)]
    for matrix, formula in zip(found, (debiased, as_published), strict=True):
        expected = [[formula(x, y) for y in sets] for x in sets]
        np.testing.assert_allclose(matrix, expected, rtol=1e-9)


def test_two_sets_alone_have_the_same_alignment(xp):
    x, y = features(widths=(6, 60))
    a, b = on(xp, (x, y))
    assert linear_cka(a, b, xp=xp) == pytest.approx(as_published(x, y))
    assert linear_cka(a, b, debiased=True, xp=xp) == pytest.approx(debiased(x, y))


def test_single_precision_is_widened_before_anything_is_lost(xp):
    x, y = (one.astype(np.float32) for one in features(widths=(6, 60)))
    wide = linear_cka(*on(xp, (x.astype(np.float64), y.astype(np.float64))), xp=xp)
    assert linear_cka(*on(xp, (x, y)), xp=xp) == wide


@pytest.mark.parametrize("is_debiased", [False, True])
def test_turning_scaling_and_shifting_change_nothing_and_itself_is_1(xp, is_debiased):
    rng = np.random.default_rng(1)
    x, y = features(widths=(12, 60))
    turn, _ = np.linalg.qr(rng.normal(size=(12, 12)))

    def cka(a, b):
        return linear_cka(*on(xp, (a, b)), debiased=is_debiased, xp=xp)

    assert cka(x, x) == pytest.approx(1)
    assert cka(x, -3 * x @ turn + rng.normal(size=12)) == pytest.approx(1)
    assert cka(x @ turn * 1e-3, y) == pytest.approx(cka(x, y))
    assert cka(x, y) == pytest.approx(cka(y, x))
    assert cka(x @ rng.normal(size=(12, 12)), x) < 0.99  # but not by any linear map


def test_of_unrelated_features_only_the_debiased_estimate_is_about_0(xp):
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(100, 400)) for _ in range(12)]
    found, biased = (to_host(one) for one in cka_matrices(on(xp, sets), xp=xp))
    apart = ~np.eye(12, dtype=bool)
    assert biased[apart].min() > 0.7
    # Its spread over pairs is about 1 / n, and its mean is not above 0.
    assert np.abs(found[apart]).max() < 0.05
    assert abs(found[apart].mean()) < 0.005


def test_a_mean_that_dwarfs_the_spread_costs_no_digits(xp):
    x, y = (np.round(one * 64) / 64 for one in features(widths=(6, 9)))  # so that shifts are exact
    near = linear_cka(*on(xp, (x, y)), debiased=True, xp=xp)
    far = linear_cka(*on(xp, (x + 2.0**22, y - 2.0**22)), debiased=True, xp=xp)
    assert far == pytest.approx(near, rel=1e-6)


def test_features_that_say_nothing_have_no_alignment(xp):
    x = features(widths=(6,))[0]
    same = np.full((40, 3), 0.1)  # all rows equal
    apart = np.eye(40)  # each row as far from every other
    found, biased = (to_host(one) for one in cka_matrices(on(xp, (x, same, apart)), xp=xp))
    assert np.isnan(found).tolist() == [[False, True, True], [True] * 3, [True] * 3]
    assert np.isnan(biased[1]).all()
    assert biased[2, 2] == pytest.approx(1)


def test_alignment_with_one_hot_labels_is_the_score_of_that_name():
    xp = array_api_compat.numpy
    x = features(widths=(6,))[0]
    y = np.arange(40) % 3
    gram = gram_block(x, y, n_categories=3, xp=xp)
    assert linear_cka(x, np.eye(3)[y], xp=xp) == pytest.approx(label_alignment(gram, xp=xp))


@pytest.mark.parametrize("shapes", [[(3, 5), (3, 5)], [(8, 5), (9, 5)]])
def test_too_few_rows_or_other_rows_are_refused(shapes):
    with pytest.raises(ValueError, match="must be of the same rows, 4 or more, got"):
        cka_matrices([np.ones(shape) for shape in shapes], xp=array_api_compat.numpy)


def test_displacement_is_the_distance_in_units_of_the_spread(xp):
    x, y = features(widths=(9, 9))
    expected = np.linalg.norm(x - y) / np.linalg.norm(x - x.mean(axis=0))
    assert displacement(*on(xp, (x, y)), xp=xp) == pytest.approx(expected)
    assert displacement(*on(xp, (x, x)), xp=xp) == 0
    # what alignment does not see counts here
    centred = x - x.mean(axis=0)
    assert displacement(*on(xp, (x, x - 2 * centred)), xp=xp) == pytest.approx(2)
    assert np.isnan(displacement(*on(xp, (np.ones((5, 2)), np.zeros((5, 2)))), xp=xp))
