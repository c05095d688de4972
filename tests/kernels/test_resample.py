import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from featstore.kernels.resample import stratified_bootstrap, wilson_interval


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
