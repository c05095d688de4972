"""Episodes against SciPy's distances, one by one."""

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from featstore.backend import to_host
from featstore.kernels.prototypes import episode_accuracies

FLOATS = ["float32", "float64"]


def draws(rng, labels, episodes, ways, size):
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.stack(
        [
            [rng.choice(members[c], size, replace=False)
             for c in rng.choice(len(members), ways, replace=False)]
            for _ in range(episodes)
        ]
    )  # fmt: skip


def problem(seed=0, episodes=30, ways=4, support=3, queries=5, d=6, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(96) % 6)
    features = rng.normal(size=(6, d))[labels] + rng.normal(size=(96, d)) + offset
    return features, draws(rng, labels, episodes, ways, support + queries), support


def reference(features, drawn, support):
    """Accuracy by the distances of each episode's queries from its means."""
    found = []
    for rows in drawn:
        means = features[rows[:, :support]].mean(axis=1)
        right = [
            cdist(features[of[support:]], means, "sqeuclidean").argmin(axis=1) == way
            for way, of in enumerate(rows)
        ]
        found.append(np.mean(right))
    return np.array(found)


def accuracies(features, drawn, support, xp, dtype="float64"):
    arrays = xp.asarray(features.astype(dtype)), xp.asarray(drawn)
    return to_host(episode_accuracies(*arrays, support=support, xp=xp))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_accuracies_are_those_of_the_nearest_mean(xp, dtype, offset):
    features, drawn, support = problem(offset=offset)
    found = accuracies(features, drawn, support, xp, dtype)
    expected = reference(features, drawn, support)
    assert 0.3 < expected.mean() < 0.9
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(
    seed=st.integers(0, 99),
    episodes=st.integers(1, 9),
    ways=st.integers(2, 6),
    support=st.integers(1, 9),
    queries=st.integers(1, 7),
    d=st.integers(1, 40),
    dtype=st.sampled_from(FLOATS),
)
@settings(max_examples=30, deadline=None)
def test_episodes_of_any_shape(seed, episodes, ways, support, queries, d, dtype):
    features, drawn, support = problem(seed, episodes, ways, support, queries, d)
    found = accuracies(features, drawn, support, array_api_compat.numpy, dtype)
    np.testing.assert_allclose(found, reference(features, drawn, support), atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_episode_is_the_same_by_itself_and_wherever_its_rows_lie(xp, dtype):
    features, drawn, support = problem()
    every = accuracies(features, drawn, support, xp, dtype)
    alone = [accuracies(features, one[None], support, xp, dtype)[0] for one in drawn]
    np.testing.assert_array_equal(every, alone)
    order = np.random.default_rng(1).permutation(len(features))
    moved = accuracies(features[order], np.argsort(order)[drawn], support, xp, dtype)
    np.testing.assert_array_equal(every, moved)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_may_lie_in_memory_in_any_way(dtype):
    features, drawn, support = problem()
    features, xp = features.astype(dtype), array_api_compat.numpy
    expected = episode_accuracies(features, drawn, support=support, xp=xp)
    locked, locked_drawn = features.copy(), drawn.copy()
    locked.flags.writeable = locked_drawn.flags.writeable = False
    for x, rows in (
        (features[:, ::-1].copy()[:, ::-1], drawn),
        (features[::-1].copy()[::-1], drawn[:, ::-1].copy()[:, ::-1]),
        (np.asfortranarray(features), np.asfortranarray(drawn)),
        (np.repeat(features, 2, axis=1)[:, ::2], np.repeat(drawn, 2, axis=0)[::2]),
        (locked, locked_drawn),
    ):
        found = episode_accuracies(x, rows, support=support, xp=xp)
        np.testing.assert_array_equal(found, expected)
    assert not locked.flags.writeable


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_features_take_several_steps(xp, dtype):
    features, drawn, support = problem(d=9000)
    found = accuracies(features, drawn, support, xp, dtype)
    np.testing.assert_allclose(found, reference(features, drawn, support), atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_of_equal_means_that_drawn_first_is_nearest(xp, dtype):
    features = np.array([[1.0], [1.0], [4.0], [2.5]])
    drawn = np.array([[[0, 1], [1, 0], [2, 3]]])  # the last query is as far from all three means
    assert accuracies(features, drawn, 1, xp, dtype) == pytest.approx([1 / 3])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("row", [0, 1])  # shown, asked for
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_drawn_row_that_is_not_finite_is_refused(xp, dtype, row, value):
    features = np.arange(8.0)[:, None] % 5
    features[row] = value
    with pytest.raises(ValueError, match="features must be finite"), np.errstate(invalid="ignore"):
        accuracies(features, np.array([[[0, 1], [2, 3]]]), 1, xp, dtype)
    assert len(accuracies(features, np.array([[[4, 5], [2, 3]]]), 1, xp, dtype)) == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"support": 0}, r"support must lie in 1..7 \(rows drawn .* got 0"),
        ({"support": 8}, "got 8"),
        ({"drawn": np.array([[[0, 96]]])}, r"drawn must lie in 0..95 \(rows .* got 0..96"),
        ({"drawn": np.array([[[-1, 2]]])}, "got -1..2"),
        ({"drawn": np.zeros((0, 5, 8), int)}, r"none of them 0, got \(96, 6\) and \(0, 5, 8\)"),
        ({"drawn": np.zeros((5, 8), int)}, r"drawn \(e, w, s \+ q\)"),
        ({"features": np.ones((96, 0))}, r"none of them 0, got \(96, 0\)"),
        ({"drawn": np.array([[[0.0, 1.0]]])}, "drawn must be integers, got float64"),
        ({"features": np.ones((96, 6), int)}, "float32 or float64, got int64"),
    ],
)  # fmt: skip
def test_what_is_no_episode_is_refused(change, fault):
    features, drawn, support = problem()
    asked = {"features": features, "drawn": drawn, "support": support} | change
    if "drawn" in change:
        asked["support"] = 1
    with pytest.raises(ValueError, match=fault):
        episode_accuracies(**asked, xp=array_api_compat.numpy)
