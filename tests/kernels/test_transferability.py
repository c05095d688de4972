"""Each score against its paper's formula, written out on the rows themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from featstore.kernels import transferability as scores
from featstore.kernels.ridge import gram_block, merge_grams

from .test_scale import LAW, divisions, in_any_tree


def problem(n=90, d=6, c=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % c)
    x = rng.normal(size=(c, d))[y] * 1.2 + rng.normal(size=(n, d)) * np.linspace(0.3, 2, d) + 1
    return x, y


def sums(x, y, xp, c=None, cut=40):
    """Gram sums of two blocks, merged."""
    c = int(y.max()) + 1 if c is None else c
    a, b = (
        gram_block(xp.asarray(x[part]), xp.asarray(y[part]), n_categories=c, xp=xp)
        for part in (slice(None, cut), slice(cut, None))
    )
    return merge_grams(a, b)


@pytest.mark.parametrize("shape", [(90, 6), (30, 45)])
def test_logme_is_the_largest_evidence_that_an_optimiser_finds(xp, shape):
    x, y = problem(*shape)
    n = len(x)

    def best(target):
        def loss(logs):
            a, b = np.exp(logs)
            cov = x @ x.T / a + np.eye(n) / b
            return -multivariate_normal.logpdf(target, np.zeros(n), cov)

        starts = ([0.0, 0.0], [2.0, 2.0], [-2.0, 3.0])
        return max(-minimize(loss, s, method="Nelder-Mead").fun for s in starts)

    expected = np.mean([best(np.asarray(y == c, float)) / n for c in range(4)])
    assert scores.log_evidence(sums(x, y, xp, cut=13), xp=xp) == pytest.approx(expected, abs=1e-4)


def algorithm_1(x, y):
    """LogME as it is published, by singular values of the rows; None where it does not converge."""
    (n, d), found = x.shape, []
    u, singular, _ = np.linalg.svd(x, full_matrices=False)
    s = singular**2
    for category in np.unique(y):
        target = np.asarray(y == category, float)
        z = (u.T @ target) ** 2
        rest, a, b = max(target @ target - z.sum(), 0), 1.0, 1.0
        for _ in range(3000):
            ratio = a / b
            gamma = np.sum(s / (s + ratio))
            m2 = np.sum(s * z / (s + ratio) ** 2)
            res2 = np.sum(z * (ratio / (s + ratio)) ** 2) + rest
            if not 1e-9 < ratio < 1e9 or n - gamma < 1e-9:  # only digits of rounding are left
                return None
            a, b = gamma / m2, (n - gamma) / res2
            if abs(a / b - ratio) < 1e-10 * ratio:
                break
        else:
            return None
        logdet = np.sum(np.log(a + b * s)) + (d - len(s)) * np.log(a)
        found.append((d * np.log(a) + n * np.log(b) - logdet - b * res2 - a * m2) / (2 * n))
    return np.mean(found) - np.log(2 * np.pi) / 2


def best_of_all_ratios(x, y):
    """Largest evidence by brute force over a / b, each with the best b, averaged."""
    n, (k, u) = len(x), np.linalg.eigh(x @ x.T)
    ratio = k.max() * np.geomspace(1e-22, 1e22, 4001)[:, None]
    found = []
    for category in np.unique(y):
        z = (u.T @ (y == category)) ** 2
        b = n / np.sum(z * ratio / (np.maximum(k, 0) + ratio), axis=1)
        logs = n * np.log(b) - np.sum(np.log1p(np.maximum(k, 0) / ratio), axis=1)
        found.append(np.max(logs - n - n * np.log(2 * np.pi)) / (2 * n))
    return np.mean(found)


SMALL = [(6, 6, 2), (6, 12, 3), (8, 8, 2), (10, 30, 2), (5, 4, 2), (9, 9, 3), (6, 3, 2), (4, 40, 2)]


@pytest.mark.parametrize("shape", SMALL)
def test_logme_of_few_rows_is_finite_and_that_of_its_algorithm_where_it_converges(shape):
    import array_api_compat.numpy as xp

    n, d, c = shape
    compared = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        y = rng.permutation(np.arange(n) % c)
        x = rng.normal(size=(n, d)) + rng.choice([0, 1, 5]) * rng.normal(size=(c, d))[y]
        found = scores.log_evidence(sums(x, y, xp, c, cut=3), xp=xp)
        assert np.isfinite(found)
        assert found < best_of_all_ratios(x, y) + 1e-4  # the grid is that coarse
        expected = algorithm_1(x, y)
        if expected is not None:
            assert found == pytest.approx(expected, abs=1e-6)
            compared += 1
    assert compared or d > n


@pytest.mark.parametrize("apart", [5, 0])
def test_logme_has_its_limit_where_the_best_ratio_is_none_or_all(xp, apart):
    rng = np.random.default_rng(1)
    y = np.arange(6) % 2
    x = rng.normal(size=(6, 12)) + apart * rng.normal(size=(2, 12))[y]
    if not apart:  # each category has the mean 0: features tell nothing of it
        x = x - np.stack([x[y == k].mean(axis=0) for k in range(2)])[y]
    # The published iteration ends here or does not, by how this processor rounds: no reference.
    found = scores.log_evidence(sums(x, y, xp, cut=3), xp=xp)
    assert found == pytest.approx(best_of_all_ratios(x, y), abs=1e-9)


def test_logme_of_features_that_are_the_categories_is_finite_and_beyond_any_noisy_ones(xp):
    y = np.arange(12) % 3
    x = np.eye(3)[y]
    noisy = x + np.random.default_rng(0).normal(size=x.shape) * 1e-5
    turned = x @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    first, second, third = (
        scores.log_evidence(sums(one, y, xp, cut=5), xp=xp) for one in (x, turned, noisy)
    )
    assert np.isfinite(first)
    assert first == pytest.approx(second, abs=1e-9)  # not what rounding happens to leave
    assert first > third + 1
    nothing = scores.log_evidence(sums(np.zeros((12, 2)), y, xp, cut=5), xp=xp)
    assert nothing == pytest.approx((np.log(3) - 1 - np.log(2 * np.pi)) / 2)


def test_h_score_is_its_definition(xp):
    x, y = problem()
    means = np.stack([x[y == c].mean(axis=0) for c in range(4)])[y]
    expected = np.trace(np.linalg.pinv(np.cov(x.T, ddof=0)) @ np.cov(means.T, ddof=0))
    assert scores.h_score(sums(x, y, xp), xp=xp) == pytest.approx(expected)


def test_h_score_of_features_with_a_constant_column_is_that_without_it(xp):
    x, y = problem()
    wide = np.hstack([x, np.full((len(x), 1), 3.0), x[:, :1]])
    assert scores.h_score(sums(wide, y, xp), xp=xp) == pytest.approx(
        scores.h_score(sums(x, y, xp), xp=xp)
    )


def test_label_alignment_is_linear_cka_of_the_kernels(xp):
    x, y = problem()
    centre = np.eye(len(x)) - 1 / len(x)
    k, t = (centre @ (a @ a.T) @ centre for a in (x, np.eye(4)[y]))
    expected = np.sum(k * t) / np.linalg.norm(k) / np.linalg.norm(t)
    assert scores.label_alignment(sums(x, y, xp), xp=xp) == pytest.approx(expected)


def test_rankme_is_the_entropy_of_singular_values(xp):
    x, y = problem()
    singular = np.linalg.svd(x, compute_uv=False)
    share = singular / singular.sum() + 1e-7
    expected = np.exp(-np.sum(share * np.log(share)))
    assert scores.rank_me(sums(x, y, xp), xp=xp) == pytest.approx(expected)


def test_rankme_counts_directions_of_equal_strength(xp):
    x = np.vstack([np.eye(5)] * 8)
    assert scores.rank_me(sums(x, np.arange(40) % 2, xp, cut=7), xp=xp) == pytest.approx(5, 1e-4)


def test_participation_ratio_is_that_of_the_covariance(xp):
    x, y = problem()
    values = np.linalg.eigvalsh(np.cov(x.T))
    expected = values.sum() ** 2 / np.square(values).sum()
    assert scores.participation_ratio(sums(x, y, xp), xp=xp) == pytest.approx(expected)


def test_spectral_decay_finds_the_power_that_was_put_in(xp):
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.normal(size=(120, 120)))
    basis, _ = np.linalg.qr(rng.normal(size=(400, 120)))
    basis -= basis.mean(axis=0)
    basis, _ = np.linalg.qr(basis)
    x = basis * np.arange(1, 121) ** -0.65 @ turned  # variances fall as i^-1.3
    found = scores.spectral_decay(sums(x, np.arange(400) % 2, xp), first=11, last=100, xp=xp)
    assert found == pytest.approx(1.3, abs=1e-6)


@pytest.mark.parametrize(("width", "first", "last"), [(12, 2, 9), (9, 3, 40), (7, 1, 7)])
def test_spectral_decay_is_least_squares_of_logarithms(xp, width, first, last):
    x, y = problem(n=50, d=width, seed=width)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    points = [(np.log(i), np.log(values[i - 1])) for i in range(first, min(last, width) + 1)]
    u, v = np.transpose(points)
    slope = np.sum((u - u.mean()) * (v - v.mean())) / np.sum((u - u.mean()) ** 2)
    found = scores.spectral_decay(sums(x, y, xp), first=first, last=last, xp=xp)
    assert found == pytest.approx(-slope)


def test_spectral_decay_of_too_few_directions_is_refused(xp):
    x, y = problem()
    with pytest.raises(ValueError, match=r"eigenvalues 11\.\.13 or more, and 6 are above"):
        scores.spectral_decay(sums(x, y, xp), first=11, last=100, xp=xp)


@pytest.mark.parametrize("value", [0.1, 1.0, 0.0])  # 0.1 has a mean beside it
def test_rows_that_are_all_equal_have_no_score(xp, value):
    x, y = np.full((60, 5), value), np.arange(60) % 3
    for score in (scores.label_alignment, scores.participation_ratio):
        with pytest.raises(ValueError, match="must vary from row to row, and all rows are equal"):
            score(sums(x, y, xp), xp=xp)
    for score in (
        scores.bhattacharyya_overlap,
        lambda x, y: scores.mixture_leep(x, y, n_categories=3),
    ):
        with pytest.raises(ValueError, match="must vary from row to row, and all rows are equal"):
            score(x, y)
    assert scores.h_score(sums(x, y, xp), xp=xp) == 0
    assert scores.coding_gain(x, y) == 0
    if value:
        assert scores.rank_me(sums(x, y, xp), xp=xp) == pytest.approx(1, abs=1e-4)
    else:
        with pytest.raises(ValueError, match="features must not all be 0"):
            scores.rank_me(sums(x, y, xp), xp=xp)


def test_one_category_is_aligned_with_nothing(xp):
    x, _ = problem()
    with pytest.raises(ValueError, match="labels must be of two categories or more"):
        scores.label_alignment(sums(x, np.zeros(90, int), xp, c=2), xp=xp)


def test_nleep_of_labels_beyond_its_categories_is_refused():
    x, y = problem()
    with pytest.raises(ValueError, match=r"labels must lie in 0..2 \(categories\), got 0..3"):
        scores.mixture_leep(x, y, n_categories=3)


def coding(x, y):
    """TransRate by its algorithm."""
    z = x - x.mean(axis=0)

    def rate(rows):
        n, d = rows.shape
        return np.linalg.slogdet(np.eye(d) + rows.T @ rows / (n * 1e-4))[1] / 2

    return rate(z) - np.mean([rate(z[y == c]) for c in np.unique(y)])


@pytest.mark.parametrize("shape", [(90, 6), (40, 60)])
def test_transrate_is_its_algorithm(shape):
    x, y = problem(*shape)
    assert scores.coding_gain(x, y) == pytest.approx(coding(x, y))


def overlap(x, y, width=5):
    """GBC as a sum over pairs of spheres."""
    z = PCA(width).fit_transform(x)
    expected = 0.0
    for i in np.unique(y):
        for j in np.unique(y):
            if i != j:
                a, b = z[y == i], z[y == j]
                va, vb = (of.var(axis=0).mean() * np.eye(width) for of in (a, b))
                v, gap = (va + vb) / 2, a.mean(axis=0) - b.mean(axis=0)
                far = gap @ np.linalg.inv(v) @ gap / 8
                far += np.log(np.linalg.det(v) / np.sqrt(np.linalg.det(va) * np.linalg.det(vb))) / 2
                expected -= np.exp(-far)
    return expected


def test_gbc_is_a_sum_over_pairs_of_spheres():
    x, y = problem(d=9)
    assert scores.bhattacharyya_overlap(x, y, width=5) == pytest.approx(overlap(x, y))


def test_nleep_is_leep_of_the_mixtures_posterior():
    x, y = problem(n=120, d=8, c=3)
    whole = PCA().fit(x)
    kept = int(np.searchsorted(np.cumsum(whole.explained_variance_ratio_), 0.8)) + 1
    z = PCA(kept).fit_transform(x)
    # The sign of a component is arbitrary, and the mixture's start depends on it.
    own = scores._principal(x, 8, 0.8)
    assert own.shape == z.shape
    np.testing.assert_allclose(np.abs(own), np.abs(z), atol=1e-9)
    mixture = GaussianMixture(15, covariance_type="diag", random_state=0).fit(own / own.std())
    log_weights = mixture._estimate_weighted_log_prob(own / own.std())
    posterior = np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))
    total = 0.0
    for row, label in zip(posterior, y, strict=True):
        likelihood = 0.0
        for component in range(15):
            joint = posterior[y == label, component].sum() / len(y)
            marginal = posterior[:, component].sum() / len(y)
            likelihood += joint / marginal * row[component]
        total += np.log(likelihood)
    found = scores.mixture_leep(x, y, n_categories=3)
    assert found == pytest.approx(total / len(y))


@pytest.mark.parametrize(
    "score",
    [
        lambda x, y, xp: scores.log_evidence(sums(x, y, xp, 4), xp=xp),
        lambda x, y, xp: scores.h_score(sums(x, y, xp, 4), xp=xp),
        lambda x, y, xp: scores.label_alignment(sums(x, y, xp, 4), xp=xp),
        lambda x, y, xp: scores.coding_gain(x, y),
        lambda x, y, xp: scores.bhattacharyya_overlap(x, y),
        lambda x, y, xp: scores.mixture_leep(x, y, n_categories=4),
    ],
    ids=["logme", "hscore", "label_cka", "transrate", "gbc", "nleep"],
)
def test_labels_that_fit_score_higher_than_shuffled_ones(score):
    import array_api_compat.numpy as xp

    x, y = problem(n=200)
    shuffled = np.random.default_rng(1).permutation(y)
    assert score(x, y, xp) > score(x, shuffled, xp)


def test_a_category_without_rows_changes_nothing(xp):
    x, y = problem()
    for score in (scores.log_evidence, scores.h_score, scores.label_alignment):
        assert score(sums(x, y, xp, c=6), xp=xp) == pytest.approx(score(sums(x, y, xp), xp=xp))


def formulas(x, y):
    """Scores of sums by their definitions on the rows themselves; LogME's has a test of its own."""
    n, one_hot = len(x), np.eye(4)[y]
    means = np.linalg.lstsq(one_hot, x, rcond=None)[0][y]
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T, ddof=0)))
    inverse = np.linalg.pinv(np.atleast_2d(np.cov(x.T, ddof=0)), rcond=1e-10)
    centre = np.eye(n) - 1 / n
    k, t = (centre @ (a @ a.T) @ centre for a in (x, one_hot))
    singular = np.linalg.svd(x, compute_uv=False)
    share = singular / singular.sum() + 1e-7
    return {
        scores.h_score: np.trace(inverse @ np.atleast_2d(np.cov(means.T, ddof=0))),
        scores.label_alignment: np.sum(k * t) / np.linalg.norm(k) / np.linalg.norm(t),
        scores.participation_ratio: values.sum() ** 2 / np.square(values).sum(),
        scores.rank_me: np.exp(-np.sum(share * np.log(share))),
    }


@given(division=divisions(), d=st.integers(1, 4), seed=st.integers(0, 99))
@LAW
def test_scores_of_sums_are_those_of_the_rows_in_any_division_order_and_tree(xp, division, d, seed):
    counts, blocks = division
    rng = np.random.default_rng(seed)
    y = np.arange(len(counts)) % 3  # two categories at least; no row has the last of four
    x = rng.normal(size=(len(counts), d)) + rng.normal(size=(3, d))[y] + 1
    parts = [
        gram_block(xp.asarray(x[rows]), xp.asarray(y[rows]), n_categories=4, xp=xp)
        for rows in blocks
    ]
    gram = in_any_tree(parts, merge_grams, rng)
    every = np.repeat(np.arange(len(counts)), counts)
    for score, expected in formulas(x[every], y[every]).items():
        # A singular value that is 0 is the root of rounding where it comes of a sum of squares.
        assert score(gram, xp=xp) == pytest.approx(expected, rel=1e-5), score.__name__
    published = algorithm_1(x[every], y[every])
    if published is not None:
        assert scores.log_evidence(gram, xp=xp) == pytest.approx(published, abs=1e-6)


@given(n=st.integers(12, 60), d=st.integers(5, 20), seed=st.integers(0, 99))
@LAW
def test_scores_of_rows_mind_neither_their_order_nor_the_names_of_categories(n, d, seed):
    rng = np.random.default_rng(seed)
    x, y = problem(n, d, c=3, seed=seed)
    order, names = rng.permutation(n), rng.permutation(9)
    moved = x[order], names[y[order]]
    assert scores.coding_gain(*moved) == pytest.approx(coding(x, y), rel=1e-9)
    found = scores.bhattacharyya_overlap(*moved, width=5)
    assert found == pytest.approx(overlap(x, y), rel=1e-8, abs=1e-12)
