import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from featstore.kernels import cuda_softmax
from featstore.kernels.cuda_softmax import CudaSoftmax
from featstore.kernels.logistic import fit_logistic


def reference(weight, features, labels):
    """Loss, gradient and uncertainties in float64, by SciPy."""
    x = np.concatenate((features.astype(np.float64), np.ones((len(features), 1))), axis=1)
    logits = x @ weight
    loss = -log_softmax(logits, axis=1)[np.arange(len(x)), labels].sum()
    share = softmax(logits, axis=1)
    error = share.copy()
    error[np.arange(len(x)), labels] -= 1
    return loss, x.T @ error, (share * (1 - share)).sum(axis=0)


def rows(rng, n, width, categories, dtype):
    labels = rng.integers(0, categories, n)
    centres = rng.normal(size=(categories, width))
    return (rng.normal(size=(n, width)) + centres[labels]).astype(dtype), labels


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("width", "categories"), [(7, 5), (16, 40)])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_sums_agree_with_float64(device, dtype, width, categories, size, monkeypatch):
    monkeypatch.setattr(cuda_softmax, "_TILE_ROWS", 40)
    rng = np.random.default_rng(width)
    x, y = rows(rng, 100, width, categories, dtype)
    weight = rng.normal(size=(width + 1, categories)) * size
    evaluate = CudaSoftmax(x, y, n_categories=categories, device=device)
    loss, gradient, uncertain = evaluate(weight)
    expected = reference(weight, x, y)
    assert loss == pytest.approx(expected[0], rel=3e-6)
    scale = np.abs(x).sum() / width
    np.testing.assert_allclose(gradient, expected[1], atol=2e-6 * scale)
    np.testing.assert_allclose(uncertain, expected[2], rtol=5e-3, atol=1e-3)
    assert gradient.dtype == uncertain.dtype == np.float64
    again = evaluate(weight)
    assert again[0] == loss
    np.testing.assert_array_equal(again[1], gradient)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_losses_of_separable_rows_keep_their_digits(gpu, dtype):
    """Where the own category leads by far, a loss is as small as the others' odds."""
    x = np.eye(3, dtype=dtype)
    weight = np.concatenate((np.eye(3) * 30.0, np.zeros((1, 3))))
    loss, gradient, _ = CudaSoftmax(x, np.arange(3), n_categories=3, device=gpu)(weight)
    expected = 3 * np.log1p(2 * np.exp(-30.0))
    assert loss == pytest.approx(expected, rel=1e-5, abs=0)
    np.testing.assert_allclose(np.diag(gradient[:3]), -expected / 3, rtol=0.5)


def test_rows_far_from_one_are_scaled(gpu):
    rng = np.random.default_rng(1)
    x, y = rows(rng, 60, 6, 4, np.float32)
    weight = rng.normal(size=(7, 4))
    weight[-1] *= 1e5
    loss, gradient, _ = CudaSoftmax(x * 1e5, y, n_categories=4, device=gpu)(weight / 1e5)
    expected = reference(weight / 1e5, x * 1e5, y)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(gradient[:-1], expected[1][:-1], atol=1e-5 * np.abs(x * 1e5).sum())


def test_rows_that_do_not_fit_are_staged_for_each_evaluation(gpu):
    rng = np.random.default_rng(2)
    x, y = rows(rng, 3000, 64, 3, np.float16)
    weight = rng.normal(size=(65, 3))
    whole = CudaSoftmax(x, y, n_categories=3, device=gpu)
    parts = CudaSoftmax(x, y, n_categories=3, device=gpu, memory=350_000)
    assert whole.resident
    assert not parts.resident
    assert parts.rows < whole.rows
    for one, other in zip(whole(weight), parts(weight), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="memory of 9000 bytes is too small for 3 categories"):
        CudaSoftmax(x, y, n_categories=3, device=gpu, memory=9000)


def test_a_fit_is_that_of_scikit_learn(gpu):
    rng = np.random.default_rng(3)
    x, y = rows(rng, 120, 5, 4, np.float16)
    weight, certificate = fit_logistic(
        CudaSoftmax(x, y, n_categories=4, device=gpu),
        n_features=5,
        n_categories=4,
        penalty=1.0,
        tolerance=1e-6,
    )
    assert certificate.converged
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x.astype(float), y)
    np.testing.assert_allclose(weight[:-1].T, model.coef_, atol=3e-3)


def test_wrong_arguments_are_refused(gpu):
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match=r"labels must lie in 0..2, got 0..3"):
        CudaSoftmax(x, np.arange(4), n_categories=3, device=gpu)
    with pytest.raises(ValueError, match=r"labels must be \(n,\) of 4 rows"):
        CudaSoftmax(x, np.arange(3), n_categories=3, device=gpu)
    x[2, 1] = np.inf
    with pytest.raises(ValueError, match="features must be finite"):
        CudaSoftmax(x, np.arange(4), n_categories=4, device=gpu)
