import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.multitest import multipletests

from featstore.kernels.testing import holm, mcnemar

from .test_scale import LAW


def sample(n, shares, seed=0):
    """Correctness of classifiers that share what is hard."""
    rng = np.random.default_rng(seed)
    return (rng.random((n, 1)) + rng.random((n, len(shares)))) / 2 < np.array(shares)


def table(a, b):
    """Rows that both, the first, the second and neither have right."""
    return np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])


@pytest.mark.parametrize("n", [1, 12, 400, 3000])
def test_every_pair_has_the_p_value_of_statsmodels_and_of_scipys_binomial(n):
    correct = sample(n, [0.5, 0.52, 0.9, 0.5])
    correct[:, 3] = correct[:, 0]
    found = mcnemar(correct, correct)
    for i in range(4):
        for j in range(4):
            own = table(correct[:, i], correct[:, j])
            assert found.p[i, j] == pytest.approx(reference(own, exact=True).pvalue, rel=1e-9)
            one, other = int(own[0, 1]), int(own[1, 0])
            assert (found.only_a[i, j], found.only_b[i, j]) == (one, other)
            if one + other:
                exact = binomtest(one, one + other).pvalue
                assert found.p[i, j] == pytest.approx(exact, rel=1e-9)
            alone = mcnemar(correct[:, i], correct[:, j])
            assert alone.p.shape == ()
            assert alone.p == found.p[i, j]
    assert found.p[0, 3] == 1


def test_many_rows_come_to_the_chi_square_and_groups_may_differ_in_size():
    correct = sample(50_000, [0.5, 0.503, 0.506])
    found = mcnemar(correct[:, :1], correct)
    assert found.p.shape == (1, 3)
    for j in (1, 2):
        own = table(correct[:, 0], correct[:, j])
        chi = reference(own, exact=False, correction=True).pvalue
        assert found.p[0, j] == pytest.approx(chi, rel=0.01)


@given(one=st.integers(0, 60), other=st.integers(0, 60))
@LAW
def test_the_mid_p_value_lacks_the_probability_of_what_was_seen(one, other):
    a = np.repeat([True, False], [one, other])
    exact, mid = mcnemar(a, ~a).p, mcnemar(a, ~a, mid_p=True).p
    seen = binomtest(min(one, other), max(one + other, 1), alternative="less").pvalue
    before = 0.0
    if min(one, other):
        before = binomtest(min(one, other) - 1, one + other, alternative="less").pvalue
    if one + other:  # twice one tail, half of what was seen counted (Fagerland et al. 2013)
        assert mid == pytest.approx(seen + before, abs=1e-12)
    assert mid <= exact <= 1


def test_the_test_keeps_its_level_with_few_rows_and_the_mid_p_value_comes_nearer():
    rng = np.random.default_rng(0)
    p, mid = [], []
    for _ in range(300):  # pairs of equally good classifiers, told apart by a dozen rows
        correct = rng.random((12, 60)) < 0.5
        p.append(mcnemar(correct[:, :30], correct[:, 30:]).p.diagonal())
        mid.append(mcnemar(correct[:, :30], correct[:, 30:], mid_p=True).p.diagonal())
    exact, nearer = (np.mean(np.concatenate(one) <= 0.05) for one in (p, mid))
    assert exact < nearer < 0.05


def test_what_is_no_pair_of_classifiers_is_refused():
    right = np.ones((5, 2), bool)
    for a, b in ((right, right[:, 0]), (right.astype(float), right), (right[None], right[None])):
        with pytest.raises(ValueError, match="must be boolean and both"):
            mcnemar(a, b)
    with pytest.raises(ValueError, match="both must be of the same rows, got 5 and 4"):
        mcnemar(right, right[:4])


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=30), gaps=st.integers(0, 3))
@LAW
def test_adjusted_p_values_are_those_of_statsmodels_and_no_test_is_no_member(p, gaps):
    expected = multipletests(p, method="holm")[1]
    found = holm(np.array([np.nan] * gaps + p))
    np.testing.assert_allclose(found[gaps:], expected, rtol=1e-12)
    assert np.isnan(found[:gaps]).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_families_lie_along_an_axis(axis):
    p = np.random.default_rng(0).random((3, 4, 5)) ** 4
    expected = np.apply_along_axis(lambda one: multipletests(one, method="holm")[1], axis, p)
    np.testing.assert_allclose(holm(p, axis=axis), expected, rtol=1e-12)


def test_a_family_of_none_or_beyond_the_range():
    assert np.isnan(holm(np.full((2, 3), np.nan))).all()
    assert holm(np.empty((0,))).shape == (0,)
    with pytest.raises(ValueError, match=r"p must lie in 0..1, got 0.2..1.5"):
        holm(np.array([0.2, np.nan, 1.5]))
