import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata
from sklearn.metrics import (
    balanced_accuracy_score,
    precision_recall_curve,
    top_k_accuracy_score,
)
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from featstore.backend import to_host
from featstore.kernels.metrics import (
    bootstrap_precision,
    check_labels,
    expected_calibration_error,
    interpolated_precision,
    mean_per_class,
    outcomes,
    reliability_table,
    top_k_accuracy,
)

from .test_scale import LAW, divisions


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


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([0, 3], r"labels must lie in 0..2 \(categories\), got 0..3"),
        ([-1, 1], "got -1..1"),
        ([2**40, 1], r"got 1..1099511627776"),
        ([0.0, 1.0], "labels must be integers, got .*float64"),
        ([True, False], "labels must be integers, got .*bool"),
    ],
)
def test_labels_that_are_no_categories_are_refused(xp, labels, fault):
    labels = xp.asarray(np.array(labels))
    with pytest.raises(ValueError, match=fault):
        check_labels(labels, 3, xp=xp)
    with pytest.raises(ValueError, match=fault):
        outcomes(xp.zeros((2, 3)), labels, xp=xp)
    with pytest.raises(ValueError, match=fault):
        mean_per_class(np.ones(2, bool), to_host(labels), 3)
    check_labels(labels[:0] if "lie" in fault else xp.asarray([0, 2]), 3, xp=xp)


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


@pytest.mark.parametrize("bins", [2, 15])
def test_the_reliability_table_holds_each_row_in_the_bin_of_its_confidence(bins):
    rng = np.random.default_rng(3)
    confidence = np.concatenate([rng.uniform(0.3, 1, 200), [0.0, 1.0, 1 / bins]])
    correct = rng.random(203) < confidence
    edges = np.arange(bins + 1) / bins
    count, mean, accuracy = reliability_table(confidence, correct, bins)
    for b in range(bins):
        above = (edges[b] < confidence) | ((confidence == 0) & (b == 0))
        inside = above & (confidence <= edges[b + 1])
        assert count[b] == inside.sum()
        if inside.any():
            assert mean[b] == pytest.approx(confidence[inside].mean())
            assert accuracy[b] == pytest.approx(correct[inside].mean())
        else:
            assert np.isnan([mean[b], accuracy[b]]).all()
    assert count.sum() == 203
    assert bins == 2 or np.isnan(mean).any()


def test_no_rows_have_no_metric():
    none = np.zeros(0, dtype=int)
    assert np.isnan(top_k_accuracy(none, 1))
    assert np.isnan(mean_per_class(none.astype(bool), none, 3))
    assert np.isnan(expected_calibration_error(none.astype(float), none.astype(bool)))


def reference_precision(scores, present):
    """The 11-point rule on scikit-learn's curve."""
    precision, recall, _ = precision_recall_curve(present, scores)
    precision, recall = precision[:-1], recall[:-1]  # its last point belongs to no row
    # Its recalls are quotients that may fall a rounding short of t.
    return np.mean([precision[recall >= t - 1e-9].max() for t in np.linspace(0, 1, 11)])


@pytest.mark.parametrize("ties", [False, True])
def test_interpolated_precision_is_the_rule_on_scikit_learns_curve(ties):
    rng = np.random.default_rng(0)
    present = rng.random((60, 4)) < [0.1, 0.5, 0.9, 0.02]
    present[0] = True
    scores = present + rng.normal(size=(60, 4))
    scores = np.round(scores) if ties else scores
    expected = [reference_precision(scores[:, c], present[:, c]) for c in range(4)]
    np.testing.assert_allclose(interpolated_precision(scores, present), expected)


def test_weights_are_repeated_rows():
    rng = np.random.default_rng(1)
    present = rng.random((40, 3)) < 0.4
    scores = rng.normal(size=(40, 3)).round(1)
    counts = rng.integers(0, 4, size=(5, 40))
    found = interpolated_precision(scores, present, counts)
    for row, count in zip(found, counts, strict=True):
        again = np.repeat(np.arange(40), count)
        np.testing.assert_allclose(row, interpolated_precision(scores[again], present[again]))


def test_a_category_that_no_row_has_has_no_precision():
    present = np.array([[True, False], [False, False]])
    found = interpolated_precision(np.ones((2, 2)), present)
    assert found[0] == 0.5
    assert np.isnan(found[1])


def test_the_interval_of_mean_precision_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    present = rng.random((200, 3)) < 0.3
    scores = present + rng.normal(size=(200, 3))
    low, high = bootstrap_precision(scores, present, resamples=400, rng=np.random.default_rng(0))
    draws = rng.integers(0, 200, size=(400, 200))
    means = [interpolated_precision(scores[d], present[d]).mean() for d in draws]
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.02)
    assert low < interpolated_precision(scores, present).mean() < high


@given(
    division=divisions(),
    scores=arrays(np.float64, (24, 7), elements=st.integers(-3, 3).map(float)),  # with many ties
    labels=arrays(np.int64, 24, elements=st.integers(0, 6)),
)
@LAW
def test_outcomes_of_blocks_are_each_rows_own(xp, division, scores, labels):
    for rows in division[1]:
        found = outcomes(xp.asarray(scores[rows]), xp.asarray(labels[rows]), xp=xp)
        place = rankdata(-scores[rows], method="ordinal", axis=1) - 1  # equals in their order
        np.testing.assert_array_equal(
            to_host(found.rank), place[np.arange(len(rows)), labels[rows]]
        )
        np.testing.assert_array_equal(to_host(found.top), np.argsort(place, axis=1)[:, :5])


@given(
    division=divisions(),
    labels=arrays(np.int64, 24, elements=st.integers(0, 6)),
    correct=arrays(bool, 24),
    seed=st.integers(0, 99),
)
@LAW
def test_means_per_class_are_of_weighted_rows_whatever_their_order_and_their_categories_names(
    division, labels, correct, seed
):
    counts, blocks = division
    rows, names = np.concatenate(blocks), np.random.default_rng(seed).permutation(9)
    found = mean_per_class(correct[rows], names[labels][rows], 9)
    n = len(counts)
    guess = np.where(correct[:n], labels[:n], (labels[:n] + 1) % 7)
    confusion = np.zeros((7, 7))
    np.add.at(confusion, (labels[:n], guess), counts)
    expected = [row[k] / row.sum() for k, row in enumerate(confusion) if row.any()]
    assert found == pytest.approx(np.mean(expected), rel=1e-12)


@given(
    division=divisions(),
    confidence=arrays(np.float64, 24, elements=st.integers(0, 30).map(lambda i: i / 30)),
    correct=arrays(bool, 24),
)
@LAW
def test_tables_of_blocks_add_up_to_that_of_weighted_rows(division, confidence, correct):
    counts, blocks = division
    tables = [reliability_table(confidence[rows], correct[rows], 10) for rows in blocks]
    count = sum(table[0] for table in tables)
    sums = [sum(np.nan_to_num(t[0] * t[i]) for t in tables) for i in (1, 2)]
    n = len(counts)
    place = np.array([max(-(-round(30 * one) // 3) - 1, 0) for one in confidence[:n]])  # in thirds
    for b in range(10):
        inside = counts * (place == b)
        assert count[b] == inside.sum()
        np.testing.assert_allclose(sums[0][b], inside @ confidence[:n], atol=1e-12)
        np.testing.assert_allclose(sums[1][b], inside @ correct[:n], atol=1e-12)


@given(
    division=divisions(),
    scores=arrays(np.float64, (24, 2), elements=st.integers(-3, 3).map(float)),
    present=arrays(bool, (24, 2)),
)
@LAW
def test_precision_is_that_of_weighted_rows_in_any_order(division, scores, present):
    counts, blocks = division
    rows, n = np.concatenate(blocks), len(counts)
    found = interpolated_precision(scores[rows], present[rows])
    for c in range(2):
        if not present[:n, c].any():
            assert np.isnan(found[c])
            continue
        levels = np.unique(scores[:n, c])
        chosen = scores[:n, c] >= levels[:, None]  # all rows of a score or more
        hits, asked = chosen @ (counts * present[:n, c]), chosen @ counts
        best = [max((hits / asked)[10 * hits >= t * hits.max()]) for t in range(11)]
        assert found[c] == pytest.approx(np.mean(best), rel=1e-12)
