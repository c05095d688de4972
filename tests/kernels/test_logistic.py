"""Fits of logistic regression against scikit-learn, and the laws of a path of them."""

from dataclasses import replace
from functools import partial

import array_api_compat.numpy
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from featstore.backend import to_host
from featstore.kernels.descent import Basis
from featstore.kernels.host_rows import HostRows
from featstore.kernels.logistic import fit_logistic, fit_logistic_path
from featstore.kernels.softmax import category_sums, predict_log_proba, softmax_sums

from .conftest import evaluate, problem


def scikit_objective(features, labels, penalty, c, **solver):
    # Two categories: scikit-learn's one column of weights is the difference of our two.
    options = {"tol": 1e-10, "max_iter": 100_000} | solver
    model = LogisticRegression(C=(2 if c == 2 else 1) / penalty, **options)
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
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_the_solver_works_in_any_namespace(xp, turned):
    features, labels = problem(n=80, d=5)
    options = {"n_features": 5, "n_categories": 4, "penalties": [10.0, 0.1], "tolerance": 1e-12}
    host = array_api_compat.numpy
    sums = category_sums(features, labels, 4, xp=host)
    options["basis"] = replace(Basis.of(features), sums=sums) if turned else None
    whole = partial(softmax_sums, features=features, labels=labels, xp=host)
    expected = fit_logistic_path(whole, **options)
    there = xp.asarray(features), xp.asarray(labels)
    mine = partial(softmax_sums, features=there[0], labels=there[1], xp=xp)
    for (one, _), (other, certificate) in zip(
        fit_logistic_path(mine, **options, xp=xp), expected, strict=True
    ):
        assert certificate.converged
        assert isinstance(one, type(there[0]))
        np.testing.assert_allclose(to_host(one), other, rtol=1e-4, atol=1e-5)


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


def correlated(n=400, d=20, c=5, scale=0.5, seed=0):
    """Features off centre whose covariance has a condition number over 1000."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c)
    x = rng.normal(size=(c, d))[labels] * scale + rng.normal(size=(n, d))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return (x * np.logspace(0, -1.7, d)) @ turn + 3, labels


def path_of(rows, penalties, **options):
    shape = {"n_features": rows.n_features, "n_categories": rows.n_categories}
    return fit_logistic_path(rows.exact, **shape, penalties=penalties, basis=rows.basis, **options)


def sums_of(weight, features, labels, xp, sums=softmax_sums):
    found = sums(*(xp.asarray(a) for a in (weight, features, labels)), xp=xp)
    return float(found[0]), to_host(found[1]), to_host(found[2])


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_an_estimated_path_is_within_1e_minus_4_of_scikit_learn_at_every_c(scale, quick):
    features, labels = correlated(scale=scale)
    rows = HostRows(features, labels, 5)
    cs = np.logspace(-5, 6, 45)
    path = path_of(rows, 1 / cs, tolerance=5e-6, estimated=True, floor=0.01 * len(labels),
                   quick=rows.quick if quick else None)  # fmt: skip
    assert all(certificate.converged for _, certificate in path)
    assert sum(certificate.evaluations for _, certificate in path) < 115
    for c, (weight, certificate) in list(zip(cs, path, strict=True))[::8]:
        newton = {"solver": "newton-cholesky", "tol": 1e-6}
        best, _ = scikit_objective(features, labels, 1 / c, 5, **newton)
        proba = np.exp(predict_log_proba(weight, features, xp=array_api_compat.numpy))
        loss = log_loss(labels, proba, normalize=False)
        found = loss + np.sum(weight[:-1] ** 2) / (2 * c)
        assert certificate.objective == pytest.approx(found, rel=1e-5, abs=1e-5)
        assert found - best <= 1e-4 * max(best, 0.01 * len(labels))


def test_the_basis_changes_the_way_and_not_the_optimum(xp):
    features, labels = correlated(n=90, d=6, c=3)
    options = {"n_features": 6, "n_categories": 3, "penalty": 0.1, "tolerance": 1e-12}
    whole = partial(sums_of, features=features, labels=labels, xp=xp)
    expected, plain = fit_logistic(whole, **options)
    for rows in (features, features[::2], features[:4]):  # of the last there is but the scale
        found, certificate = fit_logistic(whole, **options, basis=Basis.of(rows))
        assert certificate.converged
        # A shift of all intercepts changes no probability.
        found[-1] += expected[-1].mean() - found[-1].mean()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    turned, _ = fit_logistic(whole, **options, basis=Basis.of(features))
    assert plain.objective == pytest.approx(
        fit_logistic(whole, **options, start=turned)[1].objective, rel=1e-10
    )
    sums = category_sums(features, labels, 3, xp=array_api_compat.numpy)
    for basis in (Basis.of(features), Basis.of(features[:4])):
        centred, certificate = fit_logistic(whole, **options, basis=replace(basis, sums=sums))
        assert certificate.converged
        centred[-1] += expected[-1].mean() - centred[-1].mean()
        np.testing.assert_allclose(centred, expected, rtol=1e-4, atol=1e-4)


def test_centres_of_many_categories_save_passes_and_lose_nothing():
    features, labels = correlated(n=4000, d=40, c=60, scale=0.7)
    rows = HostRows(features, labels, 60)
    penalties = np.logspace(1, -1, 9)
    best = [one.objective for _, one in path_of(rows, penalties, tolerance=1e-8, estimated=True)]
    passes, excess = [], []
    for basis in (rows.basis, replace(rows.basis, sums=None)):
        rows.basis = basis
        fits = path_of(rows, penalties, tolerance=2e-5, estimated=True)
        assert all(one.converged for _, one in fits)
        passes.append(sum(one.evaluations for _, one in fits))
        excess.append(
            max(one.objective / least - 1 for (_, one), least in zip(fits, best, strict=True))
        )
    assert passes[0] < 0.9 * passes[1]
    assert excess[0] < excess[1]


def test_principal_axes_save_most_passes_where_features_are_correlated():
    features, labels = correlated()
    rows = HostRows(features, labels, 5)
    options = {"n_features": 20, "n_categories": 5, "penalties": np.logspace(2, -2, 9)}
    plain = fit_logistic_path(rows.exact, **options, tolerance=1e-6)
    turned = fit_logistic_path(rows.exact, **options, tolerance=1e-6, basis=rows.basis)
    cost, more = (sum(one.evaluations for _, one in path) for path in (turned, plain))
    assert cost < 0.6 * more


def test_one_vs_rest_is_scikit_learns_regression_of_each_category():
    features, _ = correlated(c=4)
    present = (features @ np.random.default_rng(1).normal(size=(20, 4)) > 1.0).astype(np.int8)
    present ^= np.random.default_rng(2).random(present.shape) < 0.1
    path = path_of(HostRows(features, present, 4), [1.0, 0.01], tolerance=1e-9)
    for penalty, (weight, certificate) in zip([1.0, 0.01], path, strict=True):
        assert certificate.converged
        for k in range(4):
            model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=100_000)
            odds = model.fit(features, present[:, k]).decision_function(features)
            found = features @ weight[:-1, k] + weight[-1, k]
            np.testing.assert_allclose(found, odds, atol=5e-3)


def test_a_certificate_says_how_far_it_came_and_by_what():
    features, labels = correlated()
    rows = HostRows(features, labels, 5)
    ((_, rough),) = path_of(rows, [1.0], tolerance=1e-3, estimated=True, quick=rows.quick)
    assert rough.converged
    assert not rough.exact
    assert rough.estimate <= 1e-3
    assert 0 < rough.relative_gradient < 0.1
    ((_, certified),) = path_of(rows, [1.0], tolerance=1e-3)
    assert rough.excess > 1e-3 >= certified.excess  # the bound is far above the estimate
    assert rough.evaluations < certified.evaluations
    ((_, fine),) = path_of(rows, [1.0], tolerance=1e-10, quick=rows.quick)  # beyond float32
    assert fine.converged
    assert fine.exact
    assert fine.excess <= 1e-10
    ((_, cut),) = path_of(rows, [1.0], tolerance=1e-10, max_iterations=2, estimated=True)
    assert not cut.converged
    assert cut.iterations == 2
    with pytest.raises(ValueError, match=r"start must be of shape \(21, 5\), got \(2, 2\)"):
        fit_logistic(rows.exact, n_features=20, n_categories=5, penalty=1.0, start=np.ones((2, 2)))
    with pytest.raises(ValueError, match="penalties must hold at least one"):
        path_of(rows, [])
