from functools import partial
from itertools import pairwise

import array_api_compat.numpy
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from featstore.backend import to_host
from featstore.kernels.softmax import (
    fit_logistic,
    fit_logistic_path,
    predict_log_proba,
    sigmoid_loss,
    softmax_loss,
)


def reference_loss(weight, features, labels):
    """Summed cross-entropy by scikit-learn; shares no code with the kernel."""
    weight = weight.reshape(-1, 4)
    odds = np.exp(features @ weight[:-1] + weight[-1])
    share = odds / odds.sum(axis=1, keepdims=True)
    return log_loss(labels, share, normalize=False, labels=range(4))


def problem(n=200, d=12, c=4, scale=0.6):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % c)
    return rng.normal(size=(c, d))[labels] * scale + rng.normal(size=(n, d)) + 0.5, labels


def evaluate(weight, features, labels, xp, cuts=()):
    """What a caller of the fit does: the kernel over blocks, summed on the host."""
    loss, gradient = 0.0, np.zeros_like(weight)
    edges = [0, *cuts, len(features)]
    for a, b in pairwise(edges):
        block = (xp.asarray(array) for array in (weight, features[a:b], labels[a:b]))
        part = softmax_loss(*block, xp=xp)
        loss, gradient = loss + float(part[0]), gradient + to_host(part[1])
    return loss, gradient


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


def test_log_probabilities_are_those_of_scipy_even_where_odds_overflow(xp):
    rng = np.random.default_rng(1)
    features, weight = rng.normal(size=(9, 5)) * 400, rng.normal(size=(6, 3))
    found = to_host(predict_log_proba(xp.asarray(weight), xp.asarray(features), xp=xp))
    expected = log_softmax(features @ weight[:-1] + weight[-1], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    loss, _ = evaluate(weight, features, np.zeros(9, dtype=int), xp)
    assert loss == pytest.approx(-expected[:, 0].sum(), rel=1e-12)


def scikit_objective(features, labels, penalty, c):
    # Two categories: scikit-learn's one column of weights is the difference of our two.
    model = LogisticRegression(C=(2 if c == 2 else 1) / penalty, tol=1e-10, max_iter=100_000)
    model.fit(features, labels)
    coef = model.coef_ if c > 2 else np.concatenate((-model.coef_, model.coef_)) / 2
    loss = log_loss(labels, model.predict_proba(features), normalize=False)
    return loss + penalty / 2 * np.sum(coef**2), model


@pytest.mark.parametrize("c", [2, 4])
@pytest.mark.parametrize("penalty", [1e3, 1.0, 1e-3])
def test_the_fit_reaches_the_optimum_of_scikit_learn(c, penalty):
    features, labels = problem(c=c)
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    weight, certificate = fit_logistic(bound, n_features=12, n_categories=c, penalty=penalty)
    best, model = scikit_objective(features, labels, penalty, c)
    assert certificate.converged
    assert certificate.objective == pytest.approx(best, rel=1e-6)
    proba = np.exp(predict_log_proba(weight, features, xp=array_api_compat.numpy))
    np.testing.assert_allclose(proba, model.predict_proba(features), atol=2e-3)


def test_the_fit_over_blocks_on_any_backend_is_the_same(xp):
    features, labels = problem(n=60, d=5)
    whole = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    parts = partial(evaluate, features=features, labels=labels, xp=xp, cuts=[7, 31])
    options = {"n_features": 5, "n_categories": 4, "penalty": 1.0, "tolerance": 1e-12}
    expected, _ = fit_logistic(whole, **options)
    found, certificate = fit_logistic(parts, **options)
    assert certificate.converged
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_excess_is_near_the_true_one_and_above_it():
    features, labels = problem()
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    options = {"n_features": 12, "n_categories": 4, "penalty": 1.0}
    _, best = fit_logistic(bound, **options, tolerance=1e-13)
    for tolerance in (1e-1, 1e-3, 1e-5, 1e-7):
        _, certificate = fit_logistic(bound, **options, tolerance=tolerance)
        true = certificate.objective / best.objective - 1
        assert certificate.converged
        assert true <= 1.5 * certificate.excess <= 1.5 * tolerance


def test_a_fit_cut_short_says_so():
    features, labels = problem()
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    _, certificate = fit_logistic(
        bound, n_features=12, n_categories=4, penalty=1e-3, max_iterations=5
    )
    assert not certificate.converged
    assert certificate.iterations == 5
    assert certificate.excess > 1e-7


def test_a_tolerance_beyond_float64_ends_without_a_claim():
    features, labels = problem()
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    _, certificate = fit_logistic(bound, n_features=12, n_categories=4, penalty=1.0, tolerance=0.0)
    assert not certificate.converged
    assert certificate.excess < 1e-12
    assert certificate.iterations < 1000


def test_evaluations_are_counted():
    features, labels = problem()
    calls = []

    def counted(weight):
        calls.append(weight)
        return evaluate(weight, features, labels, array_api_compat.numpy)

    _, certificate = fit_logistic(counted, n_features=12, n_categories=4, penalty=1.0)
    assert certificate.evaluations == len(calls)


def test_a_path_is_its_single_fits_in_whatever_order():
    features, labels = problem()
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    options = {"n_features": 12, "n_categories": 4}
    penalties = [1e-2, 1e3, 1.0, 10.0, 1e-1, 1e2, 1.0]
    path = fit_logistic_path(bound, **options, penalties=penalties)
    backwards = fit_logistic_path(bound, **options, penalties=penalties[::-1])[::-1]
    for penalty, (weight, one), (again, _) in zip(penalties, path, backwards, strict=True):
        _, alone = fit_logistic(bound, **options, penalty=penalty)
        assert one.converged
        assert one.objective == pytest.approx(alone.objective, rel=3e-7)
        np.testing.assert_array_equal(weight, again)


def test_a_fine_path_costs_less_than_its_single_fits():
    features, labels = problem(d=40)
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    options = {"n_features": 40, "n_categories": 4}
    penalties = np.logspace(-4, 3, 29)
    path = fit_logistic_path(bound, **options, penalties=penalties)
    single = [fit_logistic(bound, **options, penalty=penalty) for penalty in penalties]
    assert all(certificate.converged for _, certificate in path)
    cost, separate = (sum(fit[1].evaluations for fit in fits) for fits in (path, single))
    assert cost < 0.7 * separate


def test_a_start_at_the_optimum_is_kept():
    features, labels = problem()
    bound = partial(evaluate, features=features, labels=labels, xp=array_api_compat.numpy)
    options = {"n_features": 12, "n_categories": 4, "penalty": 1.0}
    weight, _ = fit_logistic(bound, **options)
    again, certificate = fit_logistic(bound, **options, start=weight)
    assert certificate.iterations == 0
    np.testing.assert_array_equal(again, weight)


def test_one_category_leaves_nothing_to_learn():
    bound = partial(
        evaluate, features=np.ones((3, 2)), labels=np.zeros(3, int), xp=array_api_compat.numpy
    )
    weight, certificate = fit_logistic(bound, n_features=2, n_categories=1, penalty=1.0)
    assert certificate.converged
    np.testing.assert_array_equal(weight, 0)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match="penalty must be above 0"):
        fit_logistic(lambda w: (0.0, w), n_features=2, n_categories=2, penalty=penalty)


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


def test_scores_however_large_overflow_nowhere(xp):
    weight = xp.asarray(np.full((3, 2), 1e5))
    features, present = xp.asarray(np.ones((4, 2))), xp.asarray(np.zeros((4, 2), np.int8))
    loss, gradient = sigmoid_loss(weight, features, present, xp=xp)
    assert float(loss) == pytest.approx(4 * 2 * 3e5)
    assert np.isfinite(to_host(gradient)).all()
