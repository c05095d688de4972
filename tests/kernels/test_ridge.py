from functools import reduce
from itertools import pairwise

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeClassifierCV, RidgeCV

from featstore.backend import to_host
from featstore.kernels.ridge import (
    gram_block,
    loo_errors,
    merge_grams,
    solve_ridge,
    solve_ridge_rows,
)

from .test_scale import LAW, divisions, in_any_tree

LAMBDAS = [1e-3, 0.1, 1.0, 30.0, 1e4]


def problem(n=40, d=6, c=3, offset=5.0):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, c, size=n)
    return rng.normal(size=(c, d))[labels] * 0.7 + rng.normal(size=(n, d)) + offset, labels


def solve(features, labels, xp, *, cuts=(), c=3, lambdas=LAMBDAS):
    """Solution and summed leave-one-out errors from the blocks between the cuts."""
    edges = [0, *cuts, len(features)]
    blocks = [(xp.asarray(features[a:b]), xp.asarray(labels[a:b])) for a, b in pairwise(edges)]
    gram = reduce(merge_grams, (gram_block(*block, n_categories=c, xp=xp) for block in blocks))
    solution = solve_ridge(gram, lambdas, xp=xp)
    errors = [loo_errors(*block, solution, xp=xp) for block in blocks]
    return solution, *(sum(to_host(error[i]) for error in errors) for i in (0, 1))


@pytest.mark.parametrize("cuts", [[], [1], [13, 14, 30]])
@pytest.mark.parametrize("d", [6, 60])  # fewer and more features than rows
def test_weights_are_those_of_scikit_learn(xp, cuts, d):
    features, labels = problem(d=d)
    solution, _, _ = solve(features, labels, xp, cuts=cuts)
    for choice, penalty in enumerate(LAMBDAS):
        model = Ridge(alpha=penalty).fit(features, np.eye(3)[labels])
        weight = to_host(solution.weight(choice, xp=xp))
        np.testing.assert_allclose(weight[:-1], model.coef_.T, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(weight[-1], model.intercept_, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cuts", [[], [1], [13, 14, 30]])
@pytest.mark.parametrize("d", [6, 60])
def test_leave_one_out_errors_are_those_of_refits(xp, cuts, d):
    features, labels = problem(d=d)
    _, squared, correct = solve(features, labels, xp, cuts=cuts)
    targets = np.eye(3)[labels]
    for choice, penalty in enumerate(LAMBDAS):
        scores = np.empty((40, 3))
        for row in range(40):
            rest = np.arange(40) != row
            model = Ridge(alpha=penalty).fit(features[rest], targets[rest])
            scores[row] = model.predict(features[row : row + 1])[0]
        assert squared[choice] == pytest.approx(np.sum((targets - scores) ** 2), rel=1e-6)
        assert correct[choice] == np.sum(np.argmax(scores, axis=1) == labels)


@pytest.mark.parametrize("d", [6, 60])
@pytest.mark.parametrize("twice", [False, True])
def test_all_rows_at_once_give_the_weights_of_scikit_learn(xp, d, twice):
    features, labels = problem(d=d)
    if twice:  # directions without spread
        features, labels = np.repeat(features, 2, axis=0)[:d], np.repeat(labels, 2)[:d]
    arrays = xp.asarray(features), xp.asarray(labels)
    solution = solve_ridge_rows(*arrays, LAMBDAS, n_categories=3, xp=xp)
    _, squared, correct = solve(features, labels, xp)
    for choice, penalty in enumerate(LAMBDAS):
        model = Ridge(alpha=penalty).fit(features, np.eye(3)[labels])
        weight = to_host(solution.weight(choice, xp=xp))
        np.testing.assert_allclose(weight[:-1], model.coef_.T, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(weight[-1], model.intercept_, rtol=1e-6, atol=1e-8)
    found = loo_errors(*arrays, solution, xp=xp)
    np.testing.assert_allclose(to_host(found[0]), squared, rtol=1e-6)
    np.testing.assert_array_equal(to_host(found[1]), correct)


def test_rows_without_any_spread_are_fitted_by_their_share(xp):
    arrays = xp.ones((3, 5)), xp.asarray([0, 1, 1])
    solution = solve_ridge_rows(*arrays, [0.1], n_categories=2, xp=xp)
    weight = to_host(solution.weight(0, xp=xp))
    np.testing.assert_allclose(weight, [[0, 0]] * 5 + [[1 / 3, 2 / 3]], atol=1e-12)


@pytest.mark.parametrize(("counts", "right"), [((3, 2), 3), ((2, 3), 0)])
def test_of_equal_left_out_scores_the_lower_category_wins(xp, counts, right):
    labels = np.repeat([0, 1], counts)  # without one of three, there are two of each
    _, _, correct = solve(np.zeros((5, 1)), labels, xp, c=2, lambdas=[1.0, 3.0])
    assert correct.tolist() == [right, right]


@pytest.mark.parametrize("spread", [0, 6])  # decades between the largest and the smallest scale
@pytest.mark.parametrize("cuts", [[], [1, 1700, 4000]])
def test_errors_of_many_rows_are_those_of_the_hat_matrix(xp, spread, cuts):
    features, labels = problem(n=5000, d=12, c=5)
    features = (features - 5.0) * np.logspace(0, -spread, 12)
    lambdas = np.logspace(-9, 6, 16)
    _, squared, correct = solve(features, labels, xp, c=5, cuts=cuts, lambdas=lambdas)
    x, t = features - features.mean(axis=0), np.eye(5)[labels]
    for choice, penalty in enumerate(lambdas):
        solved = np.linalg.solve(x.T @ x + penalty * np.eye(12), x.T)
        leverage = np.einsum("nd,dn->n", x, solved) + 1 / 5000
        fitted = x @ (solved @ t) + t.mean(axis=0)
        left_out = t - (t - fitted) / (1 - leverage)[:, None]
        assert squared[choice] == pytest.approx(np.sum((t - left_out) ** 2), rel=1e-7)
        assert abs(correct[choice] - np.sum(left_out.argmax(axis=1) == labels)) <= 1


def test_a_row_that_pulls_the_fit_to_itself_is_left_out_as_exactly():
    features, labels = problem(n=5000, d=3)
    features[7] = 1e4, -3e4, 2e4  # its leverage is 1 - 1e-6, which float32 could not tell from 1
    solution, _, _ = solve(features, labels, array_api_compat.numpy)
    squared, _ = loo_errors(features[7:8], labels[7:8], solution, xp=array_api_compat.numpy)
    rest, target = np.arange(5000) != 7, np.eye(3)[labels]
    for choice, penalty in enumerate(LAMBDAS):
        model = Ridge(alpha=penalty).fit(features[rest], target[rest])
        error = target[7] - model.predict(features[7:8])[0]
        assert squared[choice] == pytest.approx(np.sum(error**2), rel=1e-7)


def test_the_lambda_of_least_error_is_that_of_scikit_learn():
    features, labels = problem(n=120, d=20, c=4, offset=0.0)
    xp = array_api_compat.numpy
    lambdas = np.logspace(-3, 4, 30)
    _, squared, _ = solve(features, labels, xp, c=4, lambdas=lambdas)
    model = RidgeCV(alphas=lambdas, store_cv_results=True).fit(features, np.eye(4)[labels])
    np.testing.assert_allclose(squared, model.cv_results_.sum(axis=(0, 1)), rtol=1e-8)
    assert lambdas[np.argmin(squared)] == model.alpha_
    # RidgeClassifierCV codes targets -1 and 1, so that its scores are twice ours less 1.
    classifier = RidgeClassifierCV(alphas=lambdas, store_cv_results=True).fit(features, labels)
    assert classifier.alpha_ == lambdas[np.argmin(squared)]
    np.testing.assert_allclose(4 * squared, classifier.cv_results_.sum(axis=(0, 1)), rtol=1e-8)


def test_a_mean_that_dwarfs_the_spread_costs_no_digits():
    features, labels = problem(offset=0.0)
    xp = array_api_compat.numpy
    features = np.round(features * 64) / 64  # so that the shift is exact
    _, near, _ = solve(features, labels, xp, cuts=[11])
    _, far, _ = solve(features + 2.0**22, labels, xp, cuts=[11])
    np.testing.assert_allclose(far, near, rtol=1e-6)


def test_a_column_that_is_constant_adds_nothing_not_even_rounding(xp):
    features, labels = np.full((41, 2), 0.1), np.arange(41) % 2  # 41 x 0.1 / 41 is not 0.1
    parts = (slice(0, 3), slice(3, 41))
    blocks = [(xp.asarray(features[part]), xp.asarray(labels[part])) for part in parts]
    gram = reduce(merge_grams, (gram_block(*block, n_categories=2, xp=xp) for block in blocks))
    np.testing.assert_array_equal(to_host(gram.mean), 0.1)
    for sums in (gram.xx, gram.xy):
        np.testing.assert_array_equal(to_host(sums), 0)


def test_a_row_the_fit_passes_through_gives_finite_errors(xp):
    # The leverage of both rows is 1 / 2 + 1 / (2 + 1e-30), which is 1 in float64.
    features, labels = np.array([[1.0], [-1.0]]), np.array([0, 1])
    _, squared, _ = solve(features, labels, xp, lambdas=[1e-30], c=2)
    assert np.all(np.isfinite(squared))


@pytest.mark.parametrize("lambdas", [[], [1.0, 0.0], [-1.0], [np.nan], [np.inf]])
@pytest.mark.parametrize("d", [6, 60])
def test_a_lambda_that_is_none_is_refused(lambdas, d):
    xp, (features, labels) = array_api_compat.numpy, problem(d=d)
    with pytest.raises(ValueError, match="lambdas must all be above 0"):
        solve(features, labels, xp, lambdas=lambdas)
    with pytest.raises(ValueError, match="lambdas must all be above 0"):
        solve_ridge_rows(features, labels, lambdas, n_categories=3, xp=xp)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [([0], "at least 2 rows, got 1"), ([1, 1], "labels must be of at least 2 categories, got 1")],
)
@pytest.mark.parametrize("d", [1, 9])
def test_what_has_nothing_to_tell_apart_is_refused(xp, labels, fault, d):
    block = xp.ones((len(labels), d)), xp.asarray(labels)
    with pytest.raises(ValueError, match=fault):
        solve_ridge(gram_block(*block, n_categories=2, xp=xp), [1.0], xp=xp)
    with pytest.raises(ValueError, match=fault):
        solve_ridge_rows(*block, [1.0], n_categories=2, xp=xp)


@pytest.mark.parametrize(
    ("features", "labels", "fault"),
    [
        (np.ones((2, 2)), [0, 3], r"labels must lie in 0..2 \(categories\), got 0..3"),
        (np.ones((2, 2)), [-1, 1], r"got -1..1"),
        (np.ones((2, 2)), [0], r"got \(2, 2\) and \(1,\)"),
        (np.ones((0, 2)), [], r"n at least 1, got \(0, 2\)"),
        (np.array([[1.0], [np.nan]]), [0, 1], "features must be finite, and row 1 is not"),
        (np.array([[-np.inf], [np.inf]]), [0, 1], "row 0 is not"),
        (np.ones((2, 2)), [0.0, 1.0], "labels must be integers, got .*float64"),
    ],
)
def test_rows_that_cannot_be_are_refused(xp, features, labels, fault):
    block = xp.asarray(features), xp.asarray(np.array(labels) if labels else np.zeros(0, int))
    with pytest.raises(ValueError, match=fault):
        gram_block(*block, n_categories=3, xp=xp)
    with pytest.raises(ValueError, match=fault):
        solve_ridge_rows(*block, [1.0], n_categories=3, xp=xp)


def test_blocks_that_do_not_fit_together_are_refused():
    xp, (features, labels) = array_api_compat.numpy, problem()
    one = gram_block(features, labels, n_categories=4, xp=xp)
    other = gram_block(features[:, :5], labels, n_categories=4, xp=xp)
    with pytest.raises(ValueError, match="b must have 6 features and 4 categories .* got 5 and 4"):
        merge_grams(one, other)
    solution = solve_ridge(one, [1.0], xp=xp)
    with pytest.raises(ValueError, match=r"features must be \(n, 6\).* got \(40, 5\)"):
        loo_errors(features[:, :5], labels, solution, xp=xp)
    with pytest.raises(ValueError, match="categories that solution has rows of"):
        loo_errors(features, labels + 1, solution, xp=xp)


@given(
    division=divisions(), d=st.integers(1, 8), offset=st.integers(0, 50), seed=st.integers(0, 99)
)
@LAW
def test_sums_are_those_of_weighted_rows_in_any_division_order_and_tree(
    xp, division, d, offset, seed
):
    counts, blocks = division
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(counts), d)) + offset
    labels = rng.permutation(np.arange(len(counts)) % 3)  # two categories at least, of four
    block = [(xp.asarray(features[rows]), xp.asarray(labels[rows])) for rows in blocks]
    parts = [gram_block(*one, n_categories=4, xp=xp) for one in block]
    gram = in_any_tree(parts, merge_grams, rng)

    targets, n = np.eye(4)[labels], counts.sum()
    both = np.cov(features.T, targets.T, fweights=counts, ddof=0) * n
    assert gram.n == n
    np.testing.assert_allclose(to_host(gram.counts), counts @ targets, rtol=1e-12)
    mean = np.average(features, axis=0, weights=counts)
    np.testing.assert_allclose(to_host(gram.mean), mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(to_host(gram.xx), both[:d, :d], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(to_host(gram.xy), both[:d, d:], rtol=1e-9, atol=1e-10)

    model = Ridge(alpha=0.5).fit(features, targets, sample_weight=counts)
    weight = to_host(solve_ridge(gram, [0.5], xp=xp).weight(0, xp=xp))
    np.testing.assert_allclose(weight[:-1], model.coef_.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(weight[-1], model.intercept_, rtol=1e-7, atol=1e-7)
