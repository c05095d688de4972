import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from featstore.backend import to_host
from featstore.kernels.metrics import (
    expected_calibration_error,
    mean_per_class,
    outcomes,
    top_k_accuracy,
)


def scored(kind, c, n=200):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(n, c))
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "minus infinity":
        scores[scores < 0.8] = -np.inf
    return scores, rng.integers(0, c, size=n)


@pytest.mark.parametrize("c", [1, 2, 5, 12])
@pytest.mark.parametrize("kind", ["continuous", "ties", "minus infinity"])
def test_outcomes_are_those_of_a_sort_of_each_row(xp, c, kind):
    scores, labels = scored(kind, c)
    found = [to_host(a) for a in outcomes(xp.asarray(scores), xp.asarray(labels), xp=xp)]
    top, top_score, rank, margin = found
    for row, label in enumerate(labels):
        order = sorted(range(c), key=lambda j: (-scores[row, j], j))
        assert list(top[row]) == order[:5]
        assert rank[row] == order.index(label)
        expected = np.maximum(scores[row], -np.finfo(float).max)
        np.testing.assert_array_equal(top_score[row], expected[order[:5]])
        others = np.delete(expected, label)
        assert margin[row] == (expected[label] - others.max() if c > 1 else np.inf)
    assert top.dtype == rank.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outcomes_are_float64_and_int64_whatever_comes_in(xp, dtype):
    scores, labels = xp.asarray(np.eye(3, dtype=dtype)), xp.asarray(np.arange(3, dtype=np.int32))
    top, top_score, rank, margin = outcomes(scores, labels, xp=xp)
    assert top.dtype == rank.dtype == xp.int64
    assert top_score.dtype == margin.dtype == xp.float64


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_accuracy_is_that_of_scikit_learn_and_torchmetrics(xp, k):
    scores, labels = scored("continuous", 12)
    rank = to_host(outcomes(xp.asarray(scores), xp.asarray(labels), xp=xp).rank)
    found = top_k_accuracy(rank, k)
    assert found == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(12)))
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    reference = multiclass_accuracy(*tensors, num_classes=12, top_k=k, average="micro")
    assert found == pytest.approx(float(reference))


def test_mean_per_class_is_balanced_accuracy_of_the_categories_present():
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 2, 3, 7], p=[0.6, 0.2, 0.15, 0.05], size=300)
    predicted = np.where(rng.random(300) < 0.6, labels, 2)
    found = mean_per_class(predicted == labels, labels, 9)
    assert found == pytest.approx(balanced_accuracy_score(labels, predicted))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(bins):
    rng = np.random.default_rng(2)
    probability = rng.dirichlet(np.full(6, 0.3), size=500).astype(np.float32)
    labels = rng.integers(0, 6, size=500)
    reference = multiclass_calibration_error(
        torch.from_numpy(probability), torch.from_numpy(labels), 6, n_bins=bins, norm="l1"
    )
    confidence = probability.max(axis=1).astype(float)
    found = expected_calibration_error(confidence, probability.argmax(axis=1) == labels, bins)
    assert found == pytest.approx(float(reference), abs=1e-6)


def test_bins_are_closed_above_and_the_first_holds_0():
    # [0, 0.5]: confidences add up to 0.5, with one correct. (0.5, 1]: to 1.8, with one correct.
    confidence = np.array([0.0, 0.5, 0.8, 1.0])
    correct = np.array([True, False, True, False])
    assert expected_calibration_error(confidence, correct, 2) == pytest.approx((0.5 + 0.8) / 4)


def test_no_rows_have_no_metric():
    none = np.zeros(0, dtype=int)
    assert np.isnan(top_k_accuracy(none, 1))
    assert np.isnan(mean_per_class(none.astype(bool), none, 3))
    assert np.isnan(expected_calibration_error(none.astype(float), none.astype(bool)))
