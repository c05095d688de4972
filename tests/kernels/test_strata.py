"""Differences within strata against statsmodels, SciPy and refits without each observation."""

from itertools import permutations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from featstore.kernels.strata import difference_within, permute_within, t_interval

STUDY = np.repeat([0, 1], [17, 9]), np.repeat([True, False], [20, 6])  # 9 ViTs, 3 against 6


def made(seed=0, n=24, strata=3):
    rng = np.random.default_rng(seed)
    stratum = rng.integers(0, strata, n)
    first = rng.random(n) < 0.2 + 0.25 * stratum
    first[stratum == strata - 1] = True  # one stratum says nothing
    return rng.normal(size=n) + stratum + 0.5 * first, first, stratum


def reference(y, first, stratum):
    design = np.column_stack([first, *(stratum == one for one in np.unique(stratum))])
    return sm.OLS(y, design.astype(float)).fit(cov_type="HC3", use_t=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_difference_and_its_error_are_those_of_least_squares_with_hc3(seed):
    y, first, stratum = made(seed)
    difference, change, freedom = difference_within(y, first, stratum)
    fit = reference(y, first, stratum)
    assert difference == pytest.approx(fit.params[0])
    assert np.sqrt(np.sum(change**2)) == pytest.approx(fit.bse[0])

    telling = stratum < 2  # the same without the strata of one group, but with fewer to count on
    fit = reference(y[telling], first[telling], stratum[telling])
    assert freedom == fit.df_resid
    assert t_interval(difference, change, freedom) == pytest.approx(fit.conf_int()[0])
    inner = t_interval(difference, change, freedom, confidence=0.8)
    assert inner == pytest.approx(fit.conf_int(alpha=0.2)[0])


def test_a_change_is_what_a_refit_without_the_observation_makes():
    y, first, stratum = made(5)
    whole, change, _ = difference_within(y, first, stratum)
    for out in range(len(y)):
        keep = np.arange(len(y)) != out
        without = reference(y[keep], first[keep], stratum[keep]).params[0]
        assert whole - without == pytest.approx(change[out], abs=1e-12)


def test_without_strata_it_is_the_difference_of_means():
    y, first, stratum = made(1)
    difference, _, freedom = difference_within(y, first, np.zeros_like(stratum))
    assert difference == pytest.approx(y[first].mean() - y[~first].mean())
    assert freedom == len(y) - 2


def test_what_hangs_on_one_observation_has_a_difference_and_no_interval():
    y, first = np.arange(6.0), np.arange(6) == 0
    difference, change, freedom = difference_within(y, first, np.zeros(6, int))
    assert difference == pytest.approx(-3)
    assert np.isnan(change[0])
    assert np.isnan(t_interval(difference, change, freedom)).all()
    assert np.isnan(t_interval(0.0, np.zeros(2), 0)).all()


def test_groups_that_share_no_stratum_have_no_difference():
    first = np.arange(6) < 3
    difference, change, _ = difference_within(np.arange(6.0), first, first.astype(int))
    assert np.isnan(difference)
    assert np.isnan(change).all()
    p, smallest, arrangements, _ = permute_within(
        np.arange(6.0), first, first.astype(int), rng=np.random.default_rng(0)
    )
    assert np.isnan([p, smallest]).all()
    assert arrangements == 1


@pytest.mark.parametrize("rounded", [False, True])
def test_of_one_stratum_the_permutation_test_is_scipys(rounded):
    stratum, first = STUDY
    y = np.random.default_rng(3).normal(size=26)
    y = np.round(y) if rounded else y
    p, smallest, arrangements, exact = permute_within(
        y, first, stratum, rng=np.random.default_rng(0)
    )
    vits = stratum == 1
    found = stats.permutation_test(
        (y[vits & first], y[vits & ~first]),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        n_resamples=np.inf,
        vectorized=True,
    )
    assert p == pytest.approx(found.pvalue)
    assert (arrangements, exact) == (84, True)
    assert smallest == pytest.approx(2 / 84) if not rounded else smallest >= 2 / 84


def test_three_against_six_reach_two_of_84_and_no_less_even_where_they_lie_wholly_apart():
    stratum, first = STUDY
    y = np.where(first, 0.9, 0.1) + np.random.default_rng(0).normal(0, 0.01, 26)
    p, smallest, _, _ = permute_within(y, first, stratum, rng=np.random.default_rng(0))
    assert p == smallest == pytest.approx(2 / 84)


def test_arrangements_of_several_strata_are_those_of_a_brute_force():
    rng = np.random.default_rng(7)
    stratum = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    first = np.array([1, 0, 0, 1, 1, 0, 0, 1], bool)
    y = rng.normal(size=8)
    observed = difference_within(y, first, stratum)[0]
    dealt = {
        (*a, *b, True)
        for a in permutations(first[:4].tolist())
        for b in permutations(first[4:7].tolist())
    }
    every = np.array([difference_within(y, np.array(one), stratum)[0] for one in dealt])
    tail = min(np.mean(every >= observed - 1e-12), np.mean(every <= observed + 1e-12))
    p, smallest, arrangements, exact = permute_within(y, first, stratum, rng=rng)
    assert (arrangements, exact) == (len(dealt), True) == (18, True)
    assert p == pytest.approx(2 * tail)
    assert smallest == pytest.approx(2 / 18)


def test_with_too_many_arrangements_a_draw_of_them_comes_near():
    y, first, stratum = made(5, n=30)
    exact = permute_within(y, first, stratum, most=10**7, rng=np.random.default_rng(0))
    drawn = permute_within(y, first, stratum, most=5_000, rng=np.random.default_rng(0))
    assert exact[3]
    assert not drawn[3]
    assert exact[2] == drawn[2] == 25_480
    assert drawn[0] == pytest.approx(exact[0], abs=4 * np.sqrt(exact[0] / 5_000))
    assert drawn[1] == pytest.approx(2 / 5_001)


def test_equal_values_cannot_tell_groups_apart():
    stratum, first = STUDY
    p, smallest, _, _ = permute_within(np.full(26, 0.3), first, stratum, rng=None)
    assert p == smallest == 1


def test_where_groups_do_not_differ_within_strata_five_in_a_hundred_tests_say_so_at_most():
    stratum, first = STUDY
    rng = np.random.default_rng(0)
    p = [
        permute_within(rng.normal(size=26) - 3 * stratum, first, stratum, rng=rng)[0]
        for _ in range(2000)
    ]
    # Of 84 arrangements the two tails of 2 / 84 together hold 4 / 84 = .048.
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(4 / 84, abs=0.015)
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.04)
