from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss

from featstore.backend import to_host
from featstore.kernels.softmax import (
    category_sums,
    predict_log_proba,
    sigmoid_loss,
    sigmoid_sums,
    softmax_loss,
    softmax_sums,
)

from .conftest import evaluate, problem
from .test_scale import LAW, divisions


def reference_loss(weight, features, labels):
    """Summed cross-entropy by scikit-learn; shares no code with the kernel."""
    weight = weight.reshape(-1, 4)
    odds = np.exp(features @ weight[:-1] + weight[-1])
    share = odds / odds.sum(axis=1, keepdims=True)
    return log_loss(labels, share, normalize=False, labels=range(4))


@pytest.mark.parametrize("cuts", [[], [1], [17, 39]])
def test_loss_and_gradient_of_blocks_add_up_to_the_reference(xp, cuts):
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(40, 6)), rng.normal(size=(7, 4))
    labels = rng.permutation(np.arange(40) % 4)
    loss, gradient = evaluate(weight, features, labels, xp, cuts)
    slope = approx_fprime(weight.ravel(), reference_loss, 1e-7, features, labels)
    assert loss == pytest.approx(reference_loss(weight, features, labels), rel=1e-10)
    np.testing.assert_allclose(gradient.ravel(), slope, atol=1e-5)


def test_results_have_the_dtype_of_the_weight(xp):
    arrays = (xp.zeros((4, 2), dtype=xp.float32), xp.ones((3, 3), dtype=xp.float32))
    loss, gradient = softmax_loss(*arrays, xp.asarray([0, 1, 1]), xp=xp)
    assert loss.dtype == gradient.dtype == xp.float32


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([0, 1, 3], r"labels must lie in 0..2 \(categories\), got 0..3"),
        ([0, -1, 1], "got -1..1"),
        ([0.0, 1.0, 2.0], "labels must be integers, got .*float64"),
    ],
)
def test_a_label_of_no_category_is_refused_on_the_host(xp, labels, fault):
    if "cupy" in xp.__name__:
        pytest.skip("there a check would wait for the GPU at every block; probes check once")
    features, labels = xp.ones((3, 2)), xp.asarray(labels)
    for kernel in (softmax_loss, softmax_sums):
        with pytest.raises(ValueError, match=fault):
            kernel(xp.zeros((3, 3)), features, labels, xp=xp)
    with pytest.raises(ValueError, match=fault):
        category_sums(features, labels, 3, xp=xp)


def test_log_probabilities_are_those_of_scipy_even_where_odds_overflow(xp):
    rng = np.random.default_rng(1)
    features, weight = rng.normal(size=(9, 5)) * 400, rng.normal(size=(6, 3))
    found = to_host(predict_log_proba(xp.asarray(weight), xp.asarray(features), xp=xp))
    expected = log_softmax(features @ weight[:-1] + weight[-1], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    loss, _ = evaluate(weight, features, np.zeros(9, dtype=int), xp)
    assert loss == pytest.approx(-expected[:, 0].sum(), rel=1e-12)


def test_one_against_the_rest_is_scikit_learns_loss_of_each_category(xp):
    features, labels = problem(c=4)
    rng = np.random.default_rng(3)
    present = rng.integers(-1, 2, size=(len(labels), 4)).astype(np.int8)
    weight = rng.normal(size=(13, 4)) / 2

    def reference(flat):
        odds = features @ flat.reshape(13, 4)[:-1] + flat.reshape(13, 4)[-1]
        share = 1 / (1 + np.exp(-odds))
        return sum(log_loss(present[:, c] == 1, share[:, c], normalize=False) for c in range(4))

    loss, gradient = sigmoid_loss(*map(xp.asarray, (weight, features, present)), xp=xp)
    assert float(loss) == pytest.approx(reference(weight.ravel()), rel=1e-9)
    slope = approx_fprime(weight.ravel(), reference, 1e-6).reshape(13, 4)
    np.testing.assert_allclose(to_host(gradient), slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_sums_of_categories_are_those_of_their_rows(xp, several):
    features, labels = problem(n=30, c=4)
    present = labels[:, None] == np.arange(5)  # one that no row has
    if several:
        labels = np.where(present, 1, np.random.default_rng(0).integers(-1, 2, size=(30, 5)))
        present = labels == 1
    found = to_host(category_sums(xp.asarray(features), xp.asarray(labels), 5, xp=xp))
    for k in range(5):
        np.testing.assert_allclose(found[:-1, k], features[present[:, k]].sum(axis=0), atol=1e-12)
        assert found[-1, k] == present[:, k].sum()


def test_scores_however_large_overflow_nowhere(xp):
    weight = xp.asarray(np.full((3, 2), 1e5))
    features, present = xp.asarray(np.ones((4, 2))), xp.asarray(np.zeros((4, 2), np.int8))
    loss, gradient = sigmoid_loss(weight, features, present, xp=xp)
    assert float(loss) == pytest.approx(4 * 2 * 3e5)
    assert np.isfinite(to_host(gradient)).all()


@given(division=divisions(), scale=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 99))
@LAW
@pytest.mark.parametrize("several", [False, True])
def test_sums_over_blocks_are_those_of_weighted_rows_in_any_order(
    xp, several, division, scale, seed
):
    counts, blocks = division
    rng = np.random.default_rng(seed)
    n = len(counts)
    features, weight = rng.normal(size=(n, 3)), rng.normal(size=(4, 5)) * scale
    labels = rng.integers(-1, 2, size=(n, 5)) if several else rng.integers(0, 5, size=n)
    kernel = sigmoid_sums if several else softmax_sums
    parts = [
        kernel(*map(xp.asarray, (weight, features[rows], labels[rows])), xp=xp) for rows in blocks
    ]
    loss, gradient, spread = (
        reduce(np.add, map(to_host, each)) for each in zip(*parts, strict=True)
    )

    logits = features @ weight[:-1] + weight[-1]
    target = labels == 1 if several else np.eye(5)[labels]
    share = expit(logits) if several else softmax(logits, axis=1)
    if several:  # log(1 - p) of a sure one has no digits but by the other sign
        losses = -np.log(expit(np.where(target, logits, -logits))).sum(axis=1)
    else:
        losses = -log_softmax(logits, axis=1)[np.arange(n), labels]
    assert float(loss) == pytest.approx(counts @ losses, rel=1e-9, abs=1e-9)
    error = counts[:, None] * (share - target)
    expected = np.vstack([features.T @ error, error.sum(axis=0)])
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(spread, counts @ (share * (1 - share)), rtol=1e-9, atol=1e-10)

    sums = [category_sums(xp.asarray(features[b]), xp.asarray(labels[b]), 5, xp=xp) for b in blocks]
    has = counts[:, None] * target
    expected = np.vstack([features.T @ has, has.sum(axis=0)])
    np.testing.assert_allclose(reduce(np.add, map(to_host, sums)), expected, atol=1e-12)
