"""What features say of labels, or of themselves, before any classifier is trained.

TransRate, GBC and N-LEEP look at the rows themselves. All others are made from sums over rows
(`kernels.ridge.Gram`), so that a split is read once for all of these.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np

from featstore.backend import Array
from featstore.kernels.metrics import check_labels
from featstore.kernels.ridge import Gram

_FIXED_POINTS = 1000
_SETTLED = 1e-8
_NO_SPREAD = "features must vary from row to row, and all rows are equal"


def log_evidence(gram: Gram, *, xp: Any) -> float:
    """LogME: largest log evidence per row of Bayesian linear regression, averaged over categories.

    For each one-hot category y: max over a, b of log N(y | 0, F F' / a + I / b) / n. Source: You,
    Liu, Wang, Long, *LogME: Practical Assessment of Pre-trained Models for Transfer Learning* (ICML
    2021), with the fixed point of its algorithm 1, which may be a local maximum. Where the evidence
    grows without end, as that of categories which features of lower rank than n tell exactly, what
    they leave unexplained counts as no less than rounding.
    """
    values, basis = _second_moments(gram, xp)
    projected = (basis.T @ (gram.xy + gram.mean[:, None] * gram.counts[None, :])) ** 2
    width, n = values.shape[0], gram.n
    rounding = width * 2.0**-52
    largest = float(values[-1]) if values[-1] > 0 else 1.0
    known = values > largest * rounding  # below it an eigenvalue is rounding
    smallest = float(xp.min(xp.where(known, values, xp.full_like(values, largest))))
    values = xp.where(known, values, xp.ones_like(values))[:, None]
    used = xp.astype(known, xp.float64)[:, None]
    explained = used * projected / values
    present = gram.counts > 0
    counts = xp.where(present, gram.counts, xp.ones_like(gram.counts))  # no 0 / 0 of the others
    left = max(n - int(xp.sum(xp.astype(known, xp.int64))), 0)  # dimensions beyond the features
    rest = counts - xp.sum(explained, axis=0)
    least = rounding * counts if left else xp.zeros_like(counts)
    rest = xp.where((rest > least) & (left > 0), rest, least)

    def parts(ratio: Array) -> tuple[Array, Array]:
        squared = xp.sum(values * explained / (values + ratio) ** 2, axis=0)
        return squared, xp.sum(explained * (ratio / (values + ratio)) ** 2, axis=0) + rest

    # The best a / b may be 0, where n features or more tell a category, or infinite, where none
    # does. The evidence has a limit there, and these ends give it to the last digit.
    low, high = smallest * 2.0**-52, largest * 2.0**52
    ratio = xp.ones_like(counts)
    for _ in range(_FIXED_POINTS):
        squared, residual = parts(ratio)
        effective = xp.sum(used * values / (values + ratio), axis=0)
        free = left + xp.sum(used * ratio / (values + ratio), axis=0)  # n - effective has no digits
        some = xp.where(squared > 0, squared, xp.ones_like(squared))
        new = (effective / some) / (free / residual)  # a / b
        new = xp.clip(xp.where(squared > 0, new, xp.full_like(new, high)), low, high)
        moved = xp.abs(new - ratio) / ratio
        ratio = new
        if bool(xp.all(xp.where(present, moved, xp.zeros_like(moved)) < _SETTLED)):
            break
    squared, residual = parts(ratio)
    b = n / (residual + ratio * squared)  # the best one for this ratio, at either end as well
    shrunk = xp.sum(used * xp.log1p(values / ratio), axis=0)
    evidence = (n * xp.log(b) - shrunk - n - n * log(2 * pi)) / (2 * n)
    return float(xp.sum(xp.where(present, evidence, xp.zeros_like(evidence)))) / float(
        xp.sum(xp.astype(present, xp.float64))
    )


def h_score(gram: Gram, *, xp: Any) -> float:
    """H-score: trace of inverse covariance x covariance of the categories' means.

    Source: Bao, Li, Huang, Zhang, Zheng, Zamir, Guibas, *An Information-Theoretic Approach to
    Transferability in Task Transfer Learning* (ICIP 2019), definition 2; the pseudo-inverse where
    the covariance has none.
    """
    apart = _means_less_mean(gram, xp)
    between = (apart.T * gram.counts) @ apart
    return float(xp.sum(xp.linalg.pinv(gram.xx, rtol=1e-10) * between.T))


def label_alignment(gram: Gram, *, xp: Any) -> float:
    """Linear CKA in 0..1 between features and one-hot categories.

    Source: Kornblith, Norouzi, Lee, Hinton, *Similarity of Neural Network Representations
    Revisited* (ICML 2019), eq. 3 with linear kernels; of labels it is the centred kernel-target
    alignment of Cortes, Mohri, Rostamizadeh (JMLR 13, 2012).

    Raises
    ------
    ValueError
        All rows are equal, or of one category.
    """
    _check_spread(gram, xp)
    n, counts = gram.n, gram.counts
    targets = xp.eye(counts.shape[0], dtype=counts.dtype) * counts - counts[:, None] * counts / n
    spread = xp.sum(targets * targets)
    if not float(spread) > 0:
        raise ValueError("labels must be of two categories or more, and all are of one")
    norm = xp.sqrt(xp.sum(gram.xx * gram.xx)) * xp.sqrt(spread)
    return float(xp.sum(gram.xy * gram.xy) / norm)


def rank_me(gram: Gram, *, xp: Any) -> float:
    """RankMe: exponential of the entropy of the normalised singular values; 1 to d.

    Source: Garrido, Balestriero, Najman, LeCun, *RankMe: Assessing the Downstream Performance of
    Pretrained Self-Supervised Representations by Their Rank* (ICML 2023), eq. 1, epsilon 1e-7.

    Raises
    ------
    ValueError
        All features are 0.
    """
    values, _ = _second_moments(gram, xp)
    singular = xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values)))
    if not float(xp.max(singular)) > 0:
        raise ValueError("features must not all be 0, and they are")
    share = singular / xp.sum(singular) + 1e-7
    return float(xp.exp(-xp.sum(share * xp.log(share))))


def participation_ratio(gram: Gram, *, xp: Any) -> float:
    """(sum of the covariance's eigenvalues)^2 / sum of their squares; 1 to d.

    Source: Gao, Trautmann, Yu, Santhanam, Ryu, Shenoy, Ganguli, *A theory of multineuronal
    dimensionality, dynamics and measurement* (2017), eq. 5.

    Raises
    ------
    ValueError
        All rows are equal.
    """
    _check_spread(gram, xp)
    return float(xp.sum(xp.linalg.diagonal(gram.xx)) ** 2 / xp.sum(gram.xx * gram.xx))


def spectral_decay(gram: Gram, *, first: int, last: int, xp: Any) -> float:
    """Alpha of alpha-ReQ: the covariance's i-th eigenvalue falls as i^-alpha.

    Least squares of log eigenvalue on log i, for i = first..last counted from 1, as far as there
    are eigenvalues above rounding. Source: Agrawal, Mondal, Ghosh, Richards, *alpha-ReQ: Assessing
    Representation Quality in Self-Supervised Learning* (NeurIPS 2022), section 3.

    Raises
    ------
    ValueError
        Fewer than three eigenvalues are left.
    """
    values = np.asarray(sorted(map(float, xp.linalg.eigvalsh(gram.xx)), reverse=True))
    values = values[values > values[0] * len(values) * 2.0**-52][:last]
    if len(values) < first + 2:
        raise ValueError(
            f"alpha-ReQ needs eigenvalues {first}..{first + 2} or more, and {len(values)} are "
            f"above rounding"
        )
    rank = np.arange(first, len(values) + 1)
    return float(-np.polyfit(np.log(rank), np.log(values[first - 1 :]), 1)[0])


def coding_gain(features: np.ndarray, labels: np.ndarray, *, epsilon: float = 1e-4) -> float:
    """TransRate: coding rate of all rows less the mean coding rate of a category's rows.

    R(Z) = log det(I + Z' Z / (n epsilon)) / 2, of rows from which the mean of all was taken.
    Source: Huang, Huang, Rong, Yang, Wei, *Frustratingly Easy Transferability Estimation* (ICML
    2022), algorithm 1.

    Parameters
    ----------
    features : (n, d) floating ; labels : (n,) integer
    """
    rows = _centred(features)
    whole = _coding_rate(rows, epsilon)
    parts = [_coding_rate(rows[labels == one], epsilon) for one in np.unique(labels)]
    return whole - float(np.mean(parts))


def _coding_rate(rows: np.ndarray, epsilon: float) -> float:
    n, width = rows.shape
    square = rows @ rows.T if n < width else rows.T @ rows  # the same determinant
    return float(np.linalg.slogdet(np.eye(len(square)) + square / (n * epsilon))[1]) / 2


def bhattacharyya_overlap(features: np.ndarray, labels: np.ndarray, *, width: int = 64) -> float:
    """GBC: minus the sum over ordered pairs of categories of exp(-Bhattacharyya distance).

    Categories are spherical Gaussians in the first `width` principal components. Source: Pandy,
    Agostinelli, Uijlings, Ferrari, Mensink, *Transferability Estimation using Bhattacharyya Class
    Separability* (CVPR 2022), eq. 3 and 4.

    Parameters
    ----------
    features : (n, d) floating ; labels : (n,) integer

    Raises
    ------
    ValueError
        All rows are equal.
    """
    rows = _principal(features, width)
    width = rows.shape[1]
    known = np.unique(labels)
    means = np.stack([rows[labels == one].mean(axis=0) for one in known])
    spread = np.array([rows[labels == one].var(axis=0).mean() for one in known])
    spread = np.maximum(spread, np.finfo(np.float64).tiny)
    far = np.square(means[:, None] - means).sum(axis=-1)
    both, half = (spread[:, None] + spread) / 2, np.log(spread) / 2
    distance = far / (8 * both) + width / 2 * (np.log(both) - half[:, None] - half)
    overlap = np.exp(-distance)
    return float(-(overlap.sum() - np.trace(overlap)))


def _centred(features: np.ndarray) -> np.ndarray:
    """Rows in float64 less their mean; a column that is constant becomes exactly 0."""
    rows = features.astype(np.float64)
    rows -= rows[0].copy()  # a mean of equal numbers is not always that number
    rows -= rows.mean(axis=0)
    return rows


def _principal(features: np.ndarray, width: int, energy: float = 1.0) -> np.ndarray:
    """Rows in their first principal components: `width` of them, or fewer that hold the energy."""
    rows = _centred(features)
    if not rows.any():
        raise ValueError(_NO_SPREAD)
    values, basis = np.linalg.eigh(rows.T @ rows)
    values, basis = values[::-1], basis[:, ::-1]
    share = np.cumsum(values) / values.sum()
    enough = int(np.searchsorted(share, energy - 1e-12)) + 1
    return np.asarray(rows @ basis[:, : min(width, enough, rows.shape[1])])


PER_CATEGORY = 5
"""Components of the mixture for each category."""


def mixture_leep(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    n_categories: int,
    per_category: int = PER_CATEGORY,
    energy: float = 0.8,
    seed: int = 0,
) -> float:
    """N-LEEP: mean log likelihood of the labels given a Gaussian mixture's components.

    Principal components that hold `energy` of the variance; a mixture of `per_category` components
    for each category, with diagonal covariances (the paper does not say which). Source: Li, Jia,
    Sang, Zhu, Green, Wang, Gong, *Ranking Neural Checkpoints* (CVPR 2021), section 4.2; LEEP by
    Nguyen, Hassner, Seeger, Archambeau (ICML 2020), eq. 2.

    Parameters
    ----------
    features : (n, d) floating ; labels : (n,) integer, each in 0..n_categories-1

    Raises
    ------
    ValueError
        A label is out of range; all rows are equal.
    """
    check_labels(labels, n_categories, xp=np)
    from sklearn.mixture import GaussianMixture  # slow to import

    rows = _principal(features, features.shape[1], energy)
    components = min(per_category * n_categories, len(rows))
    mixture = GaussianMixture(components, covariance_type="diag", random_state=seed, reg_covar=1e-6)
    posterior = mixture.fit(rows / rows.std()).predict_proba(rows / rows.std())
    joint = np.eye(n_categories)[labels].T @ posterior / len(rows)
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)
    likelihood = (posterior @ conditional.T)[np.arange(len(rows)), labels]
    return float(np.mean(np.log(likelihood)))


def _check_spread(gram: Gram, xp: Any) -> None:
    if not float(xp.max(xp.linalg.diagonal(gram.xx))) > 0:
        raise ValueError(_NO_SPREAD)


def _second_moments(gram: Gram, xp: Any) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of F' F, the mean not taken off."""
    return tuple(xp.linalg.eigh(gram.xx + gram.n * gram.mean[:, None] * gram.mean[None, :]))


def _means_less_mean(gram: Gram, xp: Any) -> Array:
    """(c, d) mean of each category less the mean of all; 0 of one without rows."""
    counts = xp.where(gram.counts > 0, gram.counts, xp.ones_like(gram.counts))
    return gram.xy.T / counts[:, None]
