"""Losses of logistic regression over blocks of rows, with what a fit needs to know of them."""

from __future__ import annotations

from typing import Any, TypeAlias

import array_api_compat

from featstore.backend import Array
from featstore.kernels.metrics import check_labels

Sums: TypeAlias = tuple[Array, Array, Array]
"""Loss () ; gradient (d+1, c) ; sum of p (1 - p) of each category (c,): how uncertain its rows are,
from which a fit knows about how large second derivatives are."""


def softmax_loss(weight: Array, features: Array, labels: Array, *, xp: Any) -> tuple[Array, Array]:
    """Cross-entropy of a linear classifier over one block of rows, with its gradient.

    Both results are sums over rows, not means, so those of two blocks add up to
    the result for the two blocks together.

    Parameters
    ----------
    weight : (d+1, c) floating; its last row is the intercept
    features : (n, d) same dtype as `weight`
    labels : (n,) integer, each in 0..c-1
    xp : array namespace the three arrays belong to

    Returns
    -------
    loss : () ; gradient : (d+1, c), both in the dtype of `weight`

    Raises
    ------
    ValueError
        A label is out of range; of a GPU's arrays none is looked at (see `softmax_sums`).
    """
    return softmax_sums(weight, features, labels, xp=xp)[:2]


def softmax_sums(weight: Array, features: Array, labels: Array, *, xp: Any) -> Sums:
    """Loss and gradient of `softmax_loss`, and the sum of p (1 - p) of each category (c,).

    Of a GPU's arrays the caller must have checked the labels: to look at them here would make the
    host wait at every block of every pass.

    Raises
    ------
    ValueError
        A label is out of range, of arrays on the host: its row would have a loss of no category.
    """
    _check(labels, weight.shape[1], xp)
    logits = _logits(weight, features, xp)
    odds = xp.exp(logits)
    total = xp.sum(odds, axis=1, keepdims=True)
    categories = xp.arange(weight.shape[1], dtype=labels.dtype)
    target = xp.astype(labels[:, None] == categories[None, :], weight.dtype)
    loss = xp.sum(xp.log(total)) - xp.sum(logits * target)
    share = odds / total
    return loss, _gradient(features, share - target, xp), xp.sum(share * (1.0 - share), axis=0)


def category_sums(features: Array, labels: Array, n_categories: int, *, xp: Any) -> Array:
    """Sum of the rows of each category, and their number: (d+1, c) in the dtype of the features.

    Parameters
    ----------
    features : (n, d) floating
    labels : (n,) integer, each in 0..c-1; or (n, c), 1 where a row has the category

    Raises
    ------
    ValueError
        A label is out of range, of arrays on the host (see `softmax_sums`).
    """
    if labels.ndim == 1:
        _check(labels, n_categories, xp)
        present = labels[:, None] == xp.arange(n_categories, dtype=labels.dtype)[None, :]
    else:
        present = labels == 1
    has = xp.astype(present, features.dtype)
    return xp.concat((features.T @ has, xp.sum(has, axis=0)[None, :]))


def sigmoid_loss(weight: Array, features: Array, present: Array, *, xp: Any) -> tuple[Array, Array]:
    """Cross-entropy of one-vs-rest classifiers over one block of rows, with its gradient.

    Summed over rows and categories, so that those of two blocks add up; each category's column of
    the weight is a problem of its own.

    Parameters
    ----------
    weight : (d+1, c) floating; its last row is the intercept
    features : (n, d) same dtype as `weight`
    present : (n, c) integer; 1 where the row has the category, anything else counts as absent
    xp : array namespace the three arrays belong to

    Returns
    -------
    loss : () ; gradient : (d+1, c), both in the dtype of `weight`
    """
    return sigmoid_sums(weight, features, present, xp=xp)[:2]


def sigmoid_sums(weight: Array, features: Array, present: Array, *, xp: Any) -> Sums:
    """Loss and gradient of `sigmoid_loss`, and the sum of p (1 - p) of each category (c,)."""
    logits = features @ weight[:-1, :] + weight[-1:, :]
    target = xp.astype(present == 1, weight.dtype)
    small = xp.exp(-xp.abs(logits))  # never overflows
    positive = xp.where(logits > 0, logits, xp.zeros_like(logits))
    loss = xp.sum(positive - logits * target + xp.log1p(small))
    share = xp.where(logits > 0, 1.0 / (1.0 + small), small / (1.0 + small))
    return loss, _gradient(features, share - target, xp), xp.sum(share * (1.0 - share), axis=0)


def predict_log_proba(weight: Array, features: Array, *, xp: Any) -> Array:
    """Log-probability of every category for each row.

    Parameters
    ----------
    weight : (d+1, c) floating; its last row is the intercept
    features : (n, d) same dtype as `weight`
    xp : array namespace of both arrays

    Returns
    -------
    log_proba : (n, c) in the dtype of `weight`
    """
    logits = _logits(weight, features, xp)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))


def _check(labels: Array, n_categories: int, xp: Any) -> None:
    if not array_api_compat.is_cupy_array(labels):
        check_labels(labels, n_categories, xp=xp)


def _logits(weight: Array, features: Array, xp: Any) -> Array:
    logits = features @ weight[:-1, :] + weight[-1:, :]
    return logits - xp.max(logits, axis=1, keepdims=True)  # exp can no longer overflow


def _gradient(features: Array, error: Array, xp: Any) -> Array:
    return xp.concat((features.T @ error, xp.sum(error, axis=0, keepdims=True)), axis=0)
