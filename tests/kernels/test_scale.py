from functools import reduce
from itertools import pairwise

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import StandardScaler, normalize

from featstore.backend import to_host
from featstore.kernels.scale import block_moments, l2_normalise, merge_moments, sum_last, zscore

LAW = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a namespace has no state
)
"""What laws of kernels are tested with: quick, and the same at every run."""


@st.composite
def divisions(draw, most_rows=24):
    """How often each row counts, (n,) of 1 or 2; and blocks of all these rows, in any order."""
    counts = np.array(draw(st.lists(st.integers(1, 2), min_size=2, max_size=most_rows)))
    order = draw(st.permutations(np.repeat(np.arange(len(counts)), counts).tolist()))
    cuts = draw(st.sets(st.integers(1, len(order) - 1), max_size=5))
    edges = [0, *sorted(cuts), len(order)]
    return counts, [np.array(order[a:b]) for a, b in pairwise(edges)]


def in_any_tree(parts, merge, rng):
    """Parts merged two by two, whichever two come together."""
    parts = list(parts)
    while len(parts) > 1:
        a, b = (parts.pop(rng.integers(len(parts))) for _ in range(2))
        parts.insert(rng.integers(len(parts) + 1), merge(a, b))
    return parts[0]


def divided(rows, cuts, xp):
    edges = [0, *cuts, len(rows)]
    parts = (rows[a:b] for a, b in pairwise(edges))
    return reduce(merge_moments, (block_moments(xp.asarray(part), xp=xp) for part in parts))


@pytest.mark.parametrize("cuts", [[], [1], [17, 39], [0, 40], list(range(1, 40))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_merged_moments_are_those_of_all_rows(xp, cuts, dtype):
    rows = (np.random.default_rng(0).normal(size=(40, 6)) * 3 + 50).astype(dtype)
    n, mean, m2 = divided(rows, cuts, xp)
    assert n == 40
    np.testing.assert_allclose(to_host(mean), np.mean(rows.astype(float), axis=0), rtol=1e-13)
    np.testing.assert_allclose(to_host(m2) / n, np.var(rows.astype(float), axis=0), rtol=1e-11)


def test_merging_keeps_digits_where_the_mean_dwarfs_the_spread(xp):
    rows = np.random.default_rng(1).integers(0, 7, size=(60, 3)) + 2.0**40
    _, _, m2 = divided(rows, [7, 30], xp)
    np.testing.assert_allclose(to_host(m2), 60 * np.var(rows - 2.0**40, axis=0), rtol=1e-3)


@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 30]])
def test_a_constant_column_has_no_variance_at_all(xp, cuts):
    rows = np.random.default_rng(2).normal(size=(41, 3))
    rows[:, 1] = 0.1  # 41 x 0.1 / 41 is not 0.1
    n, mean, m2 = divided(rows, cuts, xp)
    assert float(mean[1]) == 0.1
    assert float(m2[1]) == 0.0
    scaled = to_host(zscore(xp.asarray(rows + 1.0), mean, m2 / n, xp=xp))
    np.testing.assert_allclose(scaled[:, 1], 1.0)  # not 1 / rounding


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_zscore_is_that_of_scikit_learn(dtype):
    xp = array_api_compat.numpy
    rng = np.random.default_rng(3)
    train, test = ((rng.normal(size=(50, 8)) * 4 + 2).astype(dtype) for _ in range(2))
    train[:, 3] = 0.7
    n, mean, m2 = block_moments(train, xp=xp)
    expected = StandardScaler().fit(train.astype(float)).transform(test.astype(float))
    np.testing.assert_allclose(zscore(test, mean, m2 / n, xp=xp), expected, rtol=1e-9, atol=1e-12)


def test_zscored_rows_have_mean_0_and_variance_1(xp):
    rows = xp.asarray(np.random.default_rng(4).normal(size=(30, 5)) + 9)
    n, mean, m2 = block_moments(rows, xp=xp)
    scaled = to_host(zscore(rows, mean, m2 / n, xp=xp))
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), 1)


def test_l2_normalise_is_that_of_scikit_learn_and_leaves_zeros(xp):
    rows = np.random.default_rng(5).normal(size=(20, 7)).astype(np.float32)
    rows[4] = 0
    unit = to_host(l2_normalise(xp.asarray(rows), xp=xp))
    assert unit.dtype == np.float64
    np.testing.assert_allclose(unit, normalize(rows.astype(float)), rtol=1e-14)
    np.testing.assert_array_equal(unit[4], 0)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 31, 100, 129])
def test_sum_last_adds_every_column_once(xp, width):
    terms = 2.0 ** np.random.default_rng(6).permutation(np.arange(3 * width) % 40).reshape(3, width)
    total = to_host(sum_last(xp.asarray(terms)))
    np.testing.assert_array_equal(total, [sum(int(t) for t in row) for row in terms])


@pytest.mark.parametrize("width", [5, 33, 768])
def test_sum_last_of_a_row_does_not_depend_on_its_neighbours(xp, width):
    terms = np.random.default_rng(7).normal(size=(50, width))
    whole = to_host(sum_last(xp.asarray(terms)))
    alone = [float(to_host(sum_last(xp.asarray(terms[i : i + 1])))[0]) for i in range(50)]
    np.testing.assert_array_equal(whole, alone)


@given(
    division=divisions(),
    values=arrays(np.float64, (24, 3), elements=st.floats(-1000, 1000, width=32)),
    seed=st.integers(0, 99),
)
@LAW
def test_moments_are_those_of_weighted_rows_in_any_division_order_and_tree(
    xp, division, values, seed
):
    counts, blocks = division
    rows = values[: len(counts)]
    parts = [block_moments(xp.asarray(rows[block]), xp=xp) for block in blocks]
    parts.append(block_moments(xp.asarray(rows[:0]), xp=xp))  # a block of no rows is no hindrance
    n, mean, m2 = in_any_tree(parts, merge_moments, np.random.default_rng(seed))
    assert n == counts.sum()
    long = rows.astype(np.longdouble)  # 11 bits more
    expected = np.average(long, axis=0, weights=counts)
    np.testing.assert_allclose(to_host(mean), expected.astype(float), rtol=1e-12, atol=1e-11)
    spread = np.sum(counts[:, None] * (long - expected) ** 2, axis=0)
    np.testing.assert_allclose(to_host(m2), spread.astype(float), rtol=1e-10, atol=1e-8)
