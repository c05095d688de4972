"""The tiles in host memory against the portable losses, block by block."""

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from featstore.kernels.host_rows import HostRows
from featstore.kernels.softmax import sigmoid_sums, softmax_sums


def problem(n, d, c, several, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, d)) * 3 + 100).astype(dtype)  # far off centre
    labels = rng.integers(-1, 2, size=(n, c)) if several else rng.permutation(np.arange(n) % c)
    weight = rng.normal(size=(d + 1, c))
    weight[-1] -= 100 * weight[:-1].sum(axis=0)
    return features, labels, weight


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    n=st.sampled_from([2, 3, 50, 2048, 2049, 4500]),
    d=st.integers(1, 9),
    c=st.integers(2, 7),
    several=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_any_rows_have_the_sums_of_the_portable_losses(n, d, c, several, dtype, seed):
    features, labels, weight = problem(n, d, c, several, seed, dtype)
    sums = sigmoid_sums if several else softmax_sums
    expected = sums(weight, features.astype(np.float64), labels, xp=xp)
    rows = HostRows(features, labels, c)
    scale = np.abs(features).sum()
    for found, rtol in ((rows.exact(weight), 1e-9), (rows.quick(weight), 2e-5)):
        assert found[0] == pytest.approx(float(expected[0]), rel=rtol, abs=rtol * n)
        np.testing.assert_allclose(found[1], expected[1], rtol=rtol, atol=rtol * scale)
        np.testing.assert_allclose(found[2], expected[2], rtol=rtol, atol=rtol * n)


def test_the_loss_of_separated_rows_keeps_its_digits():
    features = np.array([[30.0], [-30.0], [29.0]], np.float32)
    weight = np.array([[-1.0, 1.0], [0.0, 0.0]])
    rows = HostRows(features, np.array([1, 0, 1]), 2)
    expected = 2 * np.exp(-60) + np.exp(-58)
    assert rows.exact(weight)[0] == pytest.approx(expected, rel=1e-12)
    assert rows.quick(weight)[0] == pytest.approx(expected, rel=1e-4)
    assert rows.exact(weight * 1e4)[0] == 0
    wrong = HostRows(features, np.array([0, 1, 0]), 2).exact(weight * 1e3)[0]
    logits = features.astype(float) @ weight[:1] * 1e3
    assert wrong == pytest.approx(-log_softmax(logits, axis=1)[range(3), [0, 1, 0]].sum())


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((4, 2)), [0, 1, 2, 3], r"labels must lie in 0..2 \(n_categories 3\), got 0..3"),
        (np.full((4, 2), 1e13), [0, 1, 2, 0], r"within 1e\+12 of 0, .* and row 0 holds 1e\+13"),
        (np.ones((4, 2)), [0, -1, 2, 1], r"labels must lie in 0..2 .*, got -1..2"),
        (np.ones((4, 2)), [1, 1, 1, 1], "labels must be of two categories or more, got 1 alone"),
        (np.ones((4, 2)), [0, 1, 2], r"labels must be integers of shape \(4,\) or \(4, 3\)"),
        (np.ones((4, 2)), np.ones((4, 2), int), r"shape \(4,\) or \(4, 3\).*got int64 \(4, 2\)"),
        (np.ones((4, 2)), [0.0, 1.0, 2.0, 0.0], "labels must be integers.*got float64"),
        (np.ones((0, 2)), np.ones(0, int), r"features must .* at least one row.*\(0, 2\)"),
        (np.ones(4), [0, 1, 2, 0], r"features must be floating and \(n, d\).*got float64 \(4,\)"),
        (np.ones((4, 2), int), [0, 1, 2, 0], "features must be floating.*got int64"),
        (np.array([[1.0], [np.nan]]), [0, 1], "features must be finite, and row 1 has NaN"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        HostRows(features, np.asarray(labels), 3)
