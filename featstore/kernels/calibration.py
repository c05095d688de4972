"""Temperature scaling: one number that makes confidences fit accuracies."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from featstore.kernels.metrics import expected_calibration_error

_RANGE = 1e-3, 1e3  # of temperatures


def fit_temperature(log_proba: np.ndarray, labels: np.ndarray) -> float:
    """Temperature T that minimises the cross-entropy of softmax(log_proba / T), within 1e-3..1e3.

    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017),
    section 4.2. The loss is convex in 1 / T.

    Parameters
    ----------
    log_proba : (n, c) floating, finite; logits do as well
    labels : (n,) integer, each in 0..c-1
    """
    scores = log_proba.astype(np.float64)
    own = scores[np.arange(len(labels)), labels].sum()

    def loss(log_inverse: float) -> float:
        inverse = float(np.exp(log_inverse))
        return float(logsumexp(inverse * scores, axis=1).sum() - inverse * own)

    low, high = _RANGE
    found = minimize_scalar(
        loss, bounds=(-np.log(high), -np.log(low)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(-found.x))


def scaled_error(log_proba: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Expected calibration error (15 bins) of softmax(log_proba / temperature)."""
    scaled = log_proba.astype(np.float64) / temperature
    best = scaled.argmax(axis=1)
    confidence = np.exp(scaled.max(axis=1) - logsumexp(scaled, axis=1))
    return expected_calibration_error(confidence, best == labels)


def folded_error(log_proba: np.ndarray, labels: np.ndarray, *, folds: int = 5) -> float:
    """Calibration error after scaling by temperatures fitted on folds of the same rows.

    Each fold's temperature is fitted on it and measured on all the others; the mean. The rows are
    those that are scored, so the result is transductive. As in Ericsson, Gouk, Hospedales, *How
    Well Do Self-Supervised Models Transfer?* (CVPR 2021), with folds of every fifth row.

    Raises
    ------
    ValueError
        There are fewer rows than folds.
    """
    if len(labels) < folds:
        raise ValueError(f"{folds} folds need as many rows, got {len(labels)}")
    fold = np.arange(len(labels)) % folds
    errors = []
    for one in range(folds):
        inside = fold == one
        temperature = fit_temperature(log_proba[inside], labels[inside])
        errors.append(scaled_error(log_proba[~inside], labels[~inside], temperature))
    return float(np.mean(errors))
