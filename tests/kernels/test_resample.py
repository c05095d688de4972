import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, bootstrap, chi2, norm

from featstore.kernels.resample import (
    bootstrap_accuracies,
    paired_differences,
    stratified_bootstrap,
    wilson_interval,
)

from .test_scale import LAW


@pytest.mark.parametrize("n", [1, 2, 17, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_interval_is_that_of_scipy(n, share, confidence):
    successes = round(n * share)
    low, high = wilson_interval(successes, n, confidence)
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


def test_no_rows_have_no_interval_and_more_successes_than_rows_are_refused():
    assert np.isnan(wilson_interval(0, 0)).all()
    with pytest.raises(ValueError, match=r"successes must lie in 0..3 \(rows\), got 4"):
        wilson_interval(4, 3)


def sample():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 4], [60, 25, 15]))
    return rng.random(100) < np.array([0.9, 0.4, 0, 0, 0.6])[labels], labels


def test_the_bootstrap_is_that_of_scipy_resampling_rows_of_each_category():
    correct, labels = sample()
    found = stratified_bootstrap(
        correct, labels, 5, resamples=40_000, rng=np.random.default_rng(1), confidence=0.9
    )
    reference = bootstrap(
        [correct[labels == c] for c in (0, 1, 4)],
        lambda *rows, axis=-1: np.mean([np.mean(r, axis=axis) for r in rows], axis=0),
        n_resamples=40_000,
        method="percentile",
        confidence_level=0.9,
        vectorized=True,
        batch=2_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found == pytest.approx((reference.low, reference.high), abs=0.003)


def test_the_same_generator_gives_the_same_interval():
    correct, labels = sample()
    intervals = {
        stratified_bootstrap(correct, labels, 5, resamples=500, rng=np.random.default_rng(7))
        for _ in range(2)
    }
    assert len(intervals) == 1


def test_a_test_that_is_all_right_has_no_width():
    labels = np.arange(10) % 2
    rng = np.random.default_rng(0)
    interval = stratified_bootstrap(np.ones(10, bool), labels, 2, resamples=50, rng=rng)
    assert interval == (1.0, 1.0)


def test_no_rows_have_no_bootstrap_and_scores_are_refused():
    none, rng = np.zeros(0, dtype=int), np.random.default_rng(0)
    assert np.isnan(stratified_bootstrap(none.astype(bool), none, 2, resamples=5, rng=rng)).all()
    with pytest.raises(ValueError, match="correct must be boolean, got float64"):
        stratified_bootstrap(np.ones(3), np.zeros(3, int), 2, resamples=5, rng=rng)


def test_a_label_beyond_the_categories_is_none_of_the_bootstraps():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"labels must lie in 0..1 \(categories\), got 0..2"):
        stratified_bootstrap(np.ones(3, bool), np.arange(3), 2, resamples=5, rng=rng)


def models(n=300):
    """Correctness of four models, of which the second and the last are the same."""
    rng = np.random.default_rng(0)
    hard = rng.random((n, 1))
    correct = rng.random((n, 4)) * 0.5 + hard * 0.5 < np.array([0.6, 0.55, 0.3, 0.55])
    correct[:, 3] = correct[:, 1]
    return correct


@pytest.mark.parametrize("block", [1, 7, 100])
def test_any_block_gives_the_accuracies_of_rows_taken_one_resample_at_a_time(block):
    correct = models(37)
    found = bootstrap_accuracies(correct, resamples=20, rng=np.random.default_rng(5), block=block)
    rng = np.random.default_rng(5)
    expected = [correct[rng.integers(37, size=37)].mean(axis=0) for _ in range(20)]
    np.testing.assert_array_equal(found, expected)


def test_the_covariance_is_that_of_the_sample_over_n():
    correct = models()
    found = bootstrap_accuracies(correct, resamples=40_000, rng=np.random.default_rng(1))
    exact = np.cov(correct.T, ddof=0) / len(correct)
    np.testing.assert_allclose(found.mean(axis=0), correct.mean(axis=0), atol=6e-4)
    np.testing.assert_allclose(np.cov(found.T), exact, atol=0.03 * exact.max())


def test_intervals_of_differences_are_those_of_scipy():
    correct = models()
    accuracies = bootstrap_accuracies(correct, resamples=40_000, rng=np.random.default_rng(1))
    found = paired_differences(correct.mean(axis=0), accuracies, confidence=0.9)
    for i, j in ((0, 1), (2, 0)):
        reference = bootstrap(
            (correct[:, i], correct[:, j]),
            lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis),
            paired=True,
            n_resamples=40_000,
            method="percentile",
            confidence_level=0.9,
            vectorized=True,
            batch=2_000,
            rng=np.random.default_rng(2),
        ).confidence_interval
        assert found.low[i, j] == pytest.approx(reference.low, abs=0.004)  # a row is .0033
        assert found.high[i, j] == pytest.approx(reference.high, abs=0.004)
        assert found.value[i, j] == correct[:, i].mean() - correct[:, j].mean()


def test_p_values_are_those_of_mcnemar_where_there_are_many_rows():
    correct = models(2000)[:, :2]
    better, worse = (correct[:, 0] & ~correct[:, 1]).sum(), (correct[:, 1] & ~correct[:, 0]).sum()
    for extra in (0, better - worse - 40):  # as drawn, and with a difference near chance
        moved = correct.copy()
        moved[np.flatnonzero(~correct[:, 1] & correct[:, 0])[:extra], 0] = False
        accuracies = bootstrap_accuracies(moved, resamples=20_000, rng=np.random.default_rng(1))
        one, other = better - extra, worse
        exact = chi2.sf((one - other) ** 2 / (one + other), 1)
        assert paired_differences(moved.mean(axis=0), accuracies).p[0, 1] == pytest.approx(
            exact, abs=0.012
        )


def test_differences_are_antisymmetric_and_equal_models_do_not_differ():
    correct = models()
    accuracies = bootstrap_accuracies(correct, resamples=300, rng=np.random.default_rng(1))
    found = paired_differences(correct.mean(axis=0), accuracies)
    np.testing.assert_array_equal(found.value, -found.value.T)
    np.testing.assert_allclose(found.low, -found.high.T, atol=1e-12)
    np.testing.assert_array_equal(found.p, found.p.T)
    assert found.low[1, 3] == found.high[1, 3] == 0
    assert found.p[1, 3] == found.p[2, 2] == 1
    assert found.p[0, 2] == 2 / 301  # no resample reaches 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"correct": np.ones((3, 2))}, r"boolean and \(n, M\).* got float64 \(3, 2\)"),
        ({"correct": np.ones(3, bool)}, r"got bool \(3,\)"),
        ({"correct": np.ones((0, 2), bool)}, r"got bool \(0, 2\)"),
        ({"strata": np.zeros(4, int)}, r"strata must be \(3,\) as rows of correct, got \(4,\)"),
        ({"resamples": 0}, "resamples and block must be at least 1, got 0 and 32"),
        ({"block": 0}, "got 5 and 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_resampled_is_refused(change, fault):
    asked = {"correct": np.ones((3, 2), bool), "resamples": 5, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=fault):
        bootstrap_accuracies(**asked | change)


def categories(n=300):
    """Four models and the category of each row, three of them of very different sizes."""
    labels = np.random.default_rng(3).permutation(np.repeat([0, 2, 7], [n - 40, 30, 10]))
    return models(n) & (np.random.default_rng(4).random((n, 1)) < 1 - labels[:, None] / 20), labels


@pytest.mark.parametrize("block", [1, 7, 32])
def test_within_categories_mean_and_covariance_are_those_of_the_categories(block):
    correct, labels = categories()
    found = bootstrap_accuracies(
        correct, resamples=20_000, rng=np.random.default_rng(1), strata=labels, block=block
    )
    of_category = [correct[labels == c] for c in (0, 2, 7)]
    mean = np.mean([rows.mean(axis=0) for rows in of_category], axis=0)
    exact = sum(np.cov(rows.T) / len(rows) for rows in of_category) / 9  # without bias
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=1.5e-3)
    np.testing.assert_allclose(np.cov(found.T), exact, atol=0.04 * exact.max())
    np.testing.assert_array_equal(found[:, 1], found[:, 3])  # they are the same model
    np.testing.assert_array_equal(
        found[:20],
        bootstrap_accuracies(
            correct, resamples=20, rng=np.random.default_rng(1), strata=labels, block=5
        ),
    )


def test_within_categories_resamples_are_distributed_as_binomial_draws():
    correct, labels = categories()
    found = bootstrap_accuracies(
        correct, resamples=20_000, rng=np.random.default_rng(1), strata=labels
    )
    rng, parts = np.random.default_rng(2), []
    for category in (0, 2, 7):
        rows = correct[labels == category]
        less = len(rows) - 1
        parts.append(rng.binomial(less, rows.mean(axis=0), (20_000, 4)) / less)
    expected = np.mean(parts, axis=0)
    ends = [0.005, 0.025, 0.5, 0.975, 0.995]
    np.testing.assert_allclose(
        np.quantile(found, ends, axis=0), np.quantile(expected, ends, axis=0), atol=0.008
    )


def test_categories_of_two_rows_spread_as_their_mean_does_over_samples():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 2)
    spreads = []
    for _ in range(300):
        correct = rng.random((200, 1)) < 0.7
        found = bootstrap_accuracies(correct, resamples=100, rng=rng, strata=labels)
        spreads.append(found.var())
    assert np.mean(spreads) == pytest.approx(0.7 * 0.3 / 200, rel=0.03)
    single = bootstrap_accuracies(
        np.array([[True], [False]]), resamples=5, rng=rng, strata=np.arange(2)
    )
    assert (single == 0.5).all()


def test_normal_p_values_go_on_where_resamples_end():
    correct = models()
    accuracies = bootstrap_accuracies(correct, resamples=20_000, rng=np.random.default_rng(1))
    found = paired_differences(correct.mean(axis=0), accuracies)
    a, b = correct[:, 0], correct[:, 1]
    spread = np.sqrt(np.var(a.astype(int) - b) / len(a))
    assert found.p_normal[0, 1] == pytest.approx(2 * norm.sf(found.value[0, 1] / spread), rel=0.2)
    far = found.value[0, 2] / np.sqrt(np.var(a.astype(int) - correct[:, 2]) / len(a))
    assert found.p[0, 2] == 2 / 20_001
    assert np.log10(found.p_normal[0, 2]) == pytest.approx(np.log10(2 * norm.sf(far)), rel=0.03)
    assert found.p_normal[1, 3] == found.p_normal[2, 2] == 1
    never = np.repeat([[True, False]], 30, axis=0)  # no spread, so no more than resamples say
    fixed = bootstrap_accuracies(never, resamples=9, rng=np.random.default_rng(0))
    assert paired_differences(never.mean(axis=0), fixed).p_normal[0, 1] == 2 / 10


def test_differences_of_other_models_and_confidences_that_are_none_are_refused():
    correct = models()
    with pytest.raises(ValueError, match=r"as many models, got \(5, 3\) and \(4,\)"):
        paired_differences(correct.mean(axis=0), np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"confidence must lie in 0..1 and be neither, got 1"):
        paired_differences(correct.mean(axis=0), np.ones((5, 4)), confidence=1)


@given(
    correct=arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 5))),
    seed=st.integers(0, 99),
    block=st.integers(1, 12),
)
@LAW
def test_models_in_any_order_have_the_differences_of_their_own_resamples(correct, seed, block):
    n, m = correct.shape
    order = np.random.default_rng(seed).permutation(m)
    found = bootstrap_accuracies(
        correct[:, order], resamples=11, rng=np.random.default_rng(seed), block=block
    )
    rng = np.random.default_rng(seed)
    expected = np.array([correct[rng.integers(n, size=n)].mean(axis=0) for _ in range(11)])
    np.testing.assert_allclose(found, expected[:, order], rtol=1e-14)
    pairs = paired_differences(correct[:, order].mean(axis=0), found)
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            apart = found[:, i] - found[:, j]
            assert pairs.value[i, j] == pytest.approx(correct[:, a].mean() - correct[:, b].mean())
            low, high = np.percentile(apart, [2.5, 97.5])
            assert pairs.low[i, j] == pytest.approx(low, abs=1e-12)
            assert pairs.high[i, j] == pytest.approx(high, abs=1e-12)
            tail = min(sum(one <= 0 for one in apart), sum(one >= 0 for one in apart))
            assert pairs.p[i, j] == pytest.approx(min(1, 2 * (tail + 1) / 12))


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
@LAW
def test_the_stratified_interval_does_not_mind_the_order_of_rows(labels, seed):
    labels, rng = np.array(labels), np.random.default_rng(seed)
    correct, order = rng.random(len(labels)) < 0.6, rng.permutation(len(labels))
    first, second = (
        stratified_bootstrap(
            correct[rows], labels[rows], 6, resamples=50, rng=np.random.default_rng(seed)
        )
        for rows in (slice(None), order)
    )
    assert first == second
    assert 0 <= first[0] <= first[1] <= 1


@given(n=st.integers(1, 10**6), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
@LAW
def test_the_interval_of_failures_is_that_of_successes_turned_round(n, share, confidence):
    successes = round(n * share)
    low, high = wilson_interval(successes, n, confidence)
    assert low <= successes / n <= high
    turned = wilson_interval(n - successes, n, confidence)
    assert (1 - high, 1 - low) == pytest.approx(turned, abs=1e-12)
