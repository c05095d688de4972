from functools import reduce
from itertools import pairwise

import array_api_compat.numpy
import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifierCV, RidgeCV

from featstore.backend import to_host
from featstore.kernels.ridge import gram_block, loo_errors, merge_grams, solve_ridge

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


def test_a_row_the_fit_passes_through_gives_finite_errors(xp):
    # The leverage of both rows is 1 / 2 + 1 / (2 + 1e-30), which is 1 in float64.
    features, labels = np.array([[1.0], [-1.0]]), np.array([0, 1])
    _, squared, _ = solve(features, labels, xp, lambdas=[1e-30], c=2)
    assert np.all(np.isfinite(squared))


@pytest.mark.parametrize("lambdas", [[], [1.0, 0.0], [-1.0]])
def test_a_lambda_that_is_none_is_refused(lambdas):
    xp = array_api_compat.numpy
    gram = gram_block(*problem(), n_categories=3, xp=xp)
    with pytest.raises(ValueError, match="lambdas must all be above 0"):
        solve_ridge(gram, lambdas, xp=xp)


def test_one_row_cannot_be_left_out():
    xp = array_api_compat.numpy
    gram = gram_block(np.ones((1, 2)), np.zeros(1, int), n_categories=2, xp=xp)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        solve_ridge(gram, [1.0], xp=xp)
