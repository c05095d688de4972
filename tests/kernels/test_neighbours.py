from functools import reduce
from importlib import import_module
from itertools import pairwise

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier

from featstore.backend import to_host
from featstore.kernels import neighbours
from featstore.kernels.neighbours import merge_nearest, nearest
from featstore.kernels.votes import inverse_distance_weights, votes


def reference(bank, queries, k, metric):
    """Brute force over all pairs, with SciPy's distances."""
    if metric == "inner":
        value = np.einsum("qd,nd->qn", queries, bank)
    elif metric == "cosine":
        value = 1 - cdist(queries, bank, "cosine")
    else:
        value = cdist(queries, bank)
    key = value if metric == "euclidean" else -value
    order = np.argsort(key, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(value, order, axis=1), order


def found(bank, queries, xp, *, k, metric, bank_cuts=(), query_cuts=()):
    """Answer merged from the blocks between the cuts, as numpy arrays."""
    edges = [0, *sorted(bank_cuts), len(bank)]
    q_edges = [0, *sorted(query_cuts), len(queries)]
    answers = []
    for top, bottom in pairwise(q_edges):
        some = xp.asarray(queries[top:bottom])
        parts = [
            nearest(xp.asarray(bank[a:b]), some, k=k, metric=metric, first=a, xp=xp)
            for a, b in pairwise(edges)
        ]
        answers.append(reduce(lambda a, b: merge_nearest(a, b, k=k, metric=metric, xp=xp), parts))
    return tuple(np.concatenate([to_host(answer[i]) for answer in answers]) for i in (0, 1))


def lattice(rng, n, width, distinct):
    """Rows of small integers drawn from few distinct ones: exact distances, many ties."""
    return rng.integers(-2, 3, size=(distinct, width))[rng.integers(0, distinct, n)].astype(float)


@pytest.mark.parametrize("metric", neighbours.METRICS)
@pytest.mark.parametrize("k", [1, 20, 60])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_continuous_data_agree_with_brute_force(xp, metric, k, dtype):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(60, 33)).astype(dtype), rng.normal(size=(25, 33)).astype(dtype)
    value, index = found(bank, queries, xp, k=k, metric=metric)
    expected = reference(bank.astype(float), queries.astype(float), k, metric)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(value, expected[0], rtol=1e-12, atol=1e-13)
    assert value.dtype == np.float64
    assert index.dtype == np.int64


@pytest.mark.parametrize("metric", ["euclidean", "inner"])
@pytest.mark.parametrize("k", [1, 5, 17, 80])
def test_ties_go_to_the_lower_row(xp, metric, k):
    rng = np.random.default_rng(1)
    bank, queries = lattice(rng, 80, 6, 12), lattice(rng, 30, 6, 12)
    value, index = found(bank, queries, xp, k=k, metric=metric, bank_cuts=[13, 40, 41])
    expected = reference(bank, queries, k, metric)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_array_equal(value, expected[0])


def test_a_bank_of_one_row_repeated_gives_the_first_rows(xp):
    bank = np.tile(np.random.default_rng(2).normal(size=(1, 9)), (200, 1))
    value, index = found(bank, bank[:3], xp, k=7, metric="euclidean", bank_cuts=[3, 100])
    np.testing.assert_array_equal(index, np.tile(np.arange(7), (3, 1)))
    np.testing.assert_array_equal(value, 0)  # exactly: a duplicate takes the whole vote


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 70),
    k=st.integers(1, 75),
    metric=st.sampled_from(neighbours.METRICS),
    spacing=st.sampled_from([0.0, 1e-9, 1.0]),
    offset=st.sampled_from([0.0, 1e3, 1e7]),
    data=st.data(),
)
def test_no_division_into_blocks_changes_a_bit(seed, n, k, metric, spacing, offset, data):
    xp = array_api_compat.numpy
    rng = np.random.default_rng(seed)
    bank = lattice(rng, n, 11, 9) + spacing * rng.normal(size=(n, 11)) + offset
    queries = np.concatenate((lattice(rng, 12, 11, 9) + offset, bank[:3]))
    cut = st.lists(st.integers(0, n), max_size=5)
    bank_cuts = data.draw(cut)
    query_cuts = data.draw(st.lists(st.integers(0, len(queries)), max_size=3))
    options = {"k": k, "metric": metric}
    whole = found(bank, queries, xp, **options)
    parts = found(bank, queries, xp, **options, bank_cuts=bank_cuts, query_cuts=query_cuts)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_array_equal(parts[0], whole[0])
    assert whole[0].shape == (len(queries), min(k, n))


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_tiles_and_strips_change_no_bit(xp, metric, monkeypatch):
    rng = np.random.default_rng(3)
    bank, queries = lattice(rng, 90, 10, 40), rng.normal(size=(21, 10))
    whole = found(bank, queries, xp, k=8, metric=metric)
    monkeypatch.setattr(neighbours, "_BANK_ROWS", 17)
    monkeypatch.setattr(neighbours, "_COSTS", 51)  # three queries at a time
    monkeypatch.setattr(neighbours, "strip_size", lambda xp: 40)  # four pairs at a time
    parts = found(bank, queries, xp, k=8, metric=metric)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_array_equal(parts[0], whole[0])


def test_neighbours_closer_than_the_products_rounding_are_told_apart(xp):
    # Distances of 1e-6 x 0..299 at 1e6 from the origin: |q|^2 + |b|^2 - 2qb has no correct digit.
    rng = np.random.default_rng(4)
    direction = rng.normal(size=16) / 4
    step = rng.permutation(300)
    bank = 1e6 + step[:, None] * 1e-6 * np.sign(direction)
    queries = np.full((5, 16), 1e6)
    _, index = found(bank, queries, xp, k=10, metric="euclidean")
    np.testing.assert_array_equal(index, np.tile(np.argsort(step)[:10], (5, 1)))


def merged(parts, rng, **options):
    """One list out of all, by a binary tree of merges drawn at random."""
    parts = list(parts)
    while len(parts) > 1:
        a, b = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(merge_nearest(a, b, **options))
    return tuple(to_host(one) for one in parts[0])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    k=st.integers(1, 20),
    metric=st.sampled_from(neighbours.METRICS),
    name=st.sampled_from(["numpy", "array_api_strict"]),
    copies=st.integers(1, 3),
    spacing=st.sampled_from([0.0, 1e-9, 1.0]),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_neither_blocks_nor_merges_nor_the_order_of_rows_change_a_bit(
    seed, n, k, metric, name, copies, spacing, cuts
):
    xp = array_api_compat.array_namespace(import_module(name).empty(0))
    rng = np.random.default_rng(seed)
    options = {"k": k, "metric": metric, "xp": xp}
    # Odd numbers of few kinds: many ties, and no row of zeros.
    rows = 2.0 * rng.integers(-2, 3, size=(n, 7)) + 1 + spacing * rng.normal(size=(n, 7))
    queries = np.concatenate((2.0 * rng.integers(-2, 3, size=(5, 7)) + 1, rows[:3]))
    order = rng.permutation(np.repeat(np.arange(n), copies))
    bank = rows[order]
    asked = xp.asarray(queries)
    edges = [0, *sorted(min(cut, len(bank)) for cut in cuts), len(bank)]
    blocks = [xp.asarray(bank[a:b]) for a, b in pairwise(edges)]
    parts = [
        nearest(block, asked, first=a, **options)
        for a, block in zip(edges[:-1], blocks, strict=True)
    ]
    value, index = merged(parts, rng, **options)

    # Each row's own value, from a bank of that row alone.
    single = np.stack(
        [to_host(nearest(xp.asarray(row[None]), asked, **options)[0])[:, 0] for row in rows], axis=1
    )
    every = single[:, order]
    best = np.argsort(every if metric == "euclidean" else -every, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, best)
    np.testing.assert_array_equal(value, np.take_along_axis(every, best, axis=1))
    expected = reference(bank, queries, k, metric)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-7)


def test_merging_is_associative_and_commutative(xp):
    rng = np.random.default_rng(5)
    bank, queries = lattice(rng, 60, 5, 10), xp.asarray(lattice(rng, 9, 5, 10))
    options = {"k": 6, "metric": "euclidean", "xp": xp}
    a, b, c = (
        nearest(xp.asarray(bank[i : i + 20]), queries, first=i, **options) for i in (0, 20, 40)
    )
    left = merge_nearest(merge_nearest(a, b, **options), c, **options)
    right = merge_nearest(c, merge_nearest(b, a, **options), **options)
    for i in (0, 1):
        np.testing.assert_array_equal(to_host(left[i]), to_host(right[i]))


@pytest.mark.parametrize(("n", "q"), [(0, 4), (5, 0), (0, 0)])
def test_no_rows_give_empty_lists(xp, n, q):
    value, index = found(np.ones((n, 3)), np.ones((q, 3)), xp, k=2, metric="cosine")
    assert value.shape == index.shape == (q, min(n, 2))


@pytest.mark.parametrize("side", ["bank", "queries"])
def test_rows_without_a_distance_are_refused_by_number(xp, side):
    for value, metric, message in (
        (np.nan, "euclidean", f"{side} must be finite, and row 2 is not"),
        (np.inf, "cosine", f"{side} must be finite, and row 2 is not"),
        (0.0, "cosine", f"{side} must hold no row of zeros, which has no cosine, and row 2 is one"),
    ):
        rows = {"bank": np.ones((4, 3)), "queries": np.ones((3, 3))}
        rows[side][2] = value
        with pytest.raises(ValueError, match=message):
            nearest(*(xp.asarray(one) for one in rows.values()), k=1, metric=metric, xp=xp)


@pytest.mark.parametrize("metric", neighbours.METRICS)
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (np.float32, np.where(np.arange(200) == 7, 1e25, 1)),
        (np.float32, 1e20),
        (np.float32, 1e-30),
        (np.float64, 1e50),
        (np.float64, np.where(np.arange(200) % 2, 1e-90, 1e90)),
    ],
)
def test_size_loses_no_neighbour(xp, metric, dtype, factor):
    rng = np.random.default_rng(12)
    bank = (rng.normal(size=(200, 8)) * np.reshape(factor, (-1, 1))).astype(dtype)
    queries = (rng.normal(size=(20, 8)) * np.min(factor)).astype(dtype)
    value, index = found(bank, queries, xp, k=5, metric=metric, bank_cuts=[60, 150])
    x, y = bank.astype(np.longdouble), queries.astype(np.longdouble)  # of a wider range
    products = (y[:, None] * x).sum(axis=2)
    norms = [np.sqrt((one**2).sum(axis=1)) for one in (x, y)]
    every = {
        "inner": products,
        "cosine": products / norms[0] / norms[1][:, None],
        "euclidean": np.sqrt(((y[:, None] - x) ** 2).sum(axis=2)),
    }[metric]
    order = np.argsort(every if metric == "euclidean" else -every, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(value, np.take_along_axis(every, order, 1).astype(float), rtol=1e-9)


@pytest.mark.parametrize("side", ["bank", "queries"])
def test_numbers_whose_squares_overflow_or_vanish_are_refused_by_number(xp, side):
    for row, metric, message in (
        ([1e200, 0, 0], "euclidean", f"{side} must lie within 2\\*\\*500 .* row 2 does not"),
        ([0, -1e200, 0], "cosine", f"{side} must lie within 2\\*\\*500 .* row 2 does not"),
        ([0, 1e-200, 0], "cosine", f"{side} must hold a number of 2\\*\\*-500 .* row 2 does not"),
    ):
        rows = {"bank": np.ones((4, 3)), "queries": np.ones((3, 3))}
        rows[side][2] = row
        with pytest.raises(ValueError, match=message):
            nearest(*(xp.asarray(one) for one in rows.values()), k=1, metric=metric, xp=xp)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0, "metric": "cosine"}, "k must be at least 1, got 0"),
        ({"k": 1, "metric": "l1"}, "metric must be one of euclidean, cosine, inner, got 'l1'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    xp = array_api_compat.numpy
    with pytest.raises(ValueError, match=message):
        nearest(np.zeros((2, 3)), np.zeros((2, 3)), xp=xp, **options)
    with pytest.raises(ValueError, match="rows of width 3, queries of 4"):
        nearest(np.zeros((2, 3)), np.zeros((2, 4)), k=1, metric="inner", xp=xp)


def test_lists_that_cannot_be_merged_are_refused(xp):
    rng = np.random.default_rng(13)
    bank, queries = (xp.asarray(rng.normal(size=(n, 3))) for n in (5, 4))
    options = {"k": 2, "metric": "inner", "xp": xp}
    a, b = nearest(bank, queries, **options), nearest(bank, queries[:3, :], **options)
    for lists, changed, message in (
        ((a, a), {"k": 0}, "k must be at least 1, got 0"),
        ((a, a), {"metric": "l1"}, "metric must be one of euclidean, cosine, inner, got 'l1'"),
        ((a, b), {}, "lists must be of the same queries, got 4 in a, 3 in b"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_nearest(*lists, **(options | changed))


def predictions(bank, labels, queries, xp):
    distance, index = nearest(
        xp.asarray(bank), xp.asarray(queries), k=20, metric="euclidean", xp=xp
    )
    near = xp.asarray(labels[to_host(index)])
    total = votes(near, inverse_distance_weights(distance, xp=xp), n_categories=5, xp=xp)
    return to_host(xp.argmax(total, axis=1))


@pytest.mark.parametrize("kind", ["continuous", "duplicates"])
def test_predictions_are_those_of_scikit_learn(xp, kind):
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 5, size=300)
    if kind == "continuous":
        bank = rng.normal(size=(300, 16)) + labels[:, None] * 0.3
        queries = rng.normal(size=(200, 16)) + 0.6
    else:
        # Integers, whose distances scikit-learn too computes exactly, each row with a few copies of
        # other categories; every query is one of them, for scikit-learn promises no order of ties
        # at the twentieth place.
        bank = lattice(rng, 300, 16, 120)
        queries = bank[rng.permutation(300)[:200]]
    model = KNeighborsClassifier(20, weights="distance", algorithm="brute").fit(bank, labels)
    np.testing.assert_array_equal(predictions(bank, labels, queries, xp), model.predict(queries))
