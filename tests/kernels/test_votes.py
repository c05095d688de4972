"""Votes of neighbours against counting them one by one."""

from fractions import Fraction
from importlib import import_module

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.backend import to_host
from featstore.kernels.votes import inverse_distance_weights, softmax_weights, votes, winners


def test_an_exact_hit_takes_the_whole_vote(xp):
    distance = xp.asarray([[0.0, 0.0, 2.0], [1.0, 2.0, 4.0]], dtype=xp.float64)
    weights = to_host(inverse_distance_weights(distance, xp=xp))
    np.testing.assert_array_equal(weights, [[1, 1, 0], [1, 0.5, 0.25]])


def test_softmax_weights_are_exponentials_that_cannot_overflow(xp):
    similarity = np.random.default_rng(7).uniform(-1, 1, size=(6, 9))
    weights = to_host(softmax_weights(xp.asarray(similarity), temperature=0.07, xp=xp))
    plain = np.exp(similarity / 0.07)
    np.testing.assert_allclose(
        weights / weights.sum(axis=1, keepdims=True), plain / plain.sum(axis=1, keepdims=True)
    )
    sharp = to_host(softmax_weights(xp.asarray(similarity), temperature=1e-5, xp=xp))
    np.testing.assert_allclose(sharp.sum(axis=1), 1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        softmax_weights(xp.asarray(similarity), temperature=0, xp=xp)


def test_votes_are_sums_per_category(xp):
    rng = np.random.default_rng(8)
    labels, weights = rng.integers(0, 7, size=(30, 12)), rng.random((30, 12))
    total = votes(xp.asarray(labels), xp.asarray(weights), n_categories=7, xp=xp)
    expected = [
        np.bincount(label, weights=weight, minlength=7)
        for label, weight in zip(labels, weights, strict=True)
    ]
    np.testing.assert_allclose(to_host(total), expected)


def test_a_tied_vote_goes_to_the_lower_category(xp):
    labels, weights = xp.asarray([[3, 1, 1, 3]]), xp.asarray([[0.5, 0.25, 0.75, 0.5]])
    assert int(xp.argmax(votes(labels, weights, n_categories=4, xp=xp), axis=1)[0]) == 1


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 40),
    categories=st.integers(1, 30),
    kind=st.sampled_from(["uniform", "halves", "continuous"]),
)
def test_winners_are_the_first_largest_sums_of_votes(seed, m, categories, kind):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, categories, size=(25, m))
    weights = {
        "uniform": np.ones((25, m)),
        "halves": rng.integers(1, 5, size=(25, m)) / 2,  # sums are exact, and often tied
        "continuous": rng.random((25, m)),
    }[kind]
    ks = sorted({1, m // 2 + 1, m})
    predicted = winners(labels, weights, ks=ks)
    for column, k in enumerate(ks):
        for row in range(25):
            total = np.bincount(labels[row, :k], weights[row, :k], minlength=categories)
            assert predicted[row, column] == total.argmax()


WEIGHTINGS = {
    "uniform": np.ones_like,
    "distance": lambda far: inverse_distance_weights(far, xp=array_api_compat.numpy),
    "softmax": lambda far: softmax_weights(-far, temperature=0.5, xp=array_api_compat.numpy),
    "float32": lambda far: (1 / (1 + far)).astype(np.float32),
}


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 40),
    categories=st.integers(1, 6),
    weighting=st.sampled_from(sorted(WEIGHTINGS)),
    unit=st.sampled_from([1.0, 0.1, 1 / 3]),  # thirds and tenths tie up to rounding alone
    name=st.sampled_from(["numpy", "array_api_strict"]),
)
def test_winners_are_the_argmax_of_votes_where_many_tie(seed, m, categories, weighting, unit, name):
    xp = array_api_compat.array_namespace(import_module(name).empty(0))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, categories, size=(20, m))
    distance = np.sort(rng.integers(0, 5, size=(20, m)) + (seed % 2), axis=1) * unit
    weights = WEIGHTINGS[weighting](distance)
    ks = sorted({1, m // 2 + 1, m})
    predicted = winners(labels, weights, ks=ks)
    for column, k in enumerate(ks):
        near = xp.asarray(labels[:, :k]), xp.asarray(weights[:, :k])
        total = to_host(votes(*near, n_categories=categories, xp=xp))
        np.testing.assert_array_equal(predicted[:, column], total.argmax(axis=1))
        for row in range(20):
            exact = [Fraction(0)] * categories
            for label, weight in zip(labels[row, :k], weights[row, :k], strict=True):
                exact[label] += Fraction(float(weight))
            close = [sum_ >= max(exact) * (1 - Fraction(1, 10**12)) for sum_ in exact]
            assert predicted[row, column] == close.index(True)


def test_sums_that_tie_up_to_rounding_go_to_the_lower_category(xp):
    # 1 / 10 + 1 / 5 is 0.30000000000000004, and 1 / (10 / 3) is 0.3.
    labels, distance = np.array([[0, 1, 1]]), np.array([[10 / 3, 5.0, 10.0]])
    weights = inverse_distance_weights(xp.asarray(distance), xp=xp)
    total = votes(xp.asarray(labels), weights, n_categories=2, xp=xp)
    assert int(xp.argmax(total, axis=1)[0]) == 0
    assert winners(labels, to_host(weights), ks=[3])[0, 0] == 0


def test_labels_and_shapes_that_do_not_fit_are_refused(xp):
    for labels, wrong in (([[0, 2, 4], [0, 1, 1]], 4), ([[0, -1, 2]], -1)):
        near = xp.asarray(labels)
        weights = xp.ones(near.shape, dtype=xp.float64)
        with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.2 .*got {wrong}"):
            votes(near, weights, n_categories=3, xp=xp)
    with pytest.raises(ValueError, match=r"weights must be of shape \(2, 3\), got \(2, 2\)"):
        votes(xp.asarray([[0, 1, 1]] * 2), xp.ones((2, 2)), n_categories=3, xp=xp)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2\*\*40-1, got -3"):
        winners(np.array([[0, -3]]), np.ones((1, 2)), ks=[1])


def test_no_queries_have_no_winners(xp):
    none = np.zeros((0, 4), int)
    assert winners(none, np.zeros((0, 4)), ks=[1, 3]).shape == (0, 2)
    assert winners(none, np.zeros((2, 0, 4)), ks=[1, 3]).shape == (2, 0, 2)
    near = xp.asarray(none), xp.zeros((0, 4), dtype=xp.float64)
    assert votes(*near, n_categories=3, xp=xp).shape == (0, 3)


def test_winners_of_exact_hits_and_of_many_categories():
    distance = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 2.0]])
    weights = inverse_distance_weights(distance, xp=array_api_compat.numpy)
    labels = np.array([[2**33 + 1, 2**33, 7], [9, 8, 8]])
    np.testing.assert_array_equal(
        winners(labels, weights, ks=[1, 2, 3]), [[2**33 + 1, 2**33, 2**33], [9, 8, 8]]
    )
    both = np.stack([weights, np.ones_like(weights)])
    apart = [winners(labels, one, ks=[2, 3]) for one in both]
    np.testing.assert_array_equal(winners(labels, both, ks=[2, 3]), apart)
    with pytest.raises(ValueError, match=r"weights must be of shape \(2, 3\) or \(w, 2, 3\)"):
        winners(labels, weights[:, :2], ks=[1])
    for ks in ([0], [4], []):
        with pytest.raises(ValueError, match=r"ks must lie in 1\.\.3 \(neighbours in a list\)"):
            winners(labels, weights, ks=ks)
