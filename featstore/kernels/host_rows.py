"""Logistic losses of rows in the host's memory, several times faster than block by block."""

from __future__ import annotations

from dataclasses import replace

import array_api_compat.numpy
import numpy as np

from featstore.kernels.descent import Basis, sample_step
from featstore.kernels.softmax import category_sums

_LARGEST = 1e12

_TILE = 2048  # rows at a time: their logits stay in a core's cache

Sums = tuple[float, np.ndarray, np.ndarray]


class HostRows:
    """Rows of numpy arrays, ready to be evaluated over and over (see `fit_logistic_path`).

    Products are made by numpy's BLAS, in as many threads as it is set to.

    Attributes
    ----------
    basis : coordinates to solve in
    n_features, n_categories : d and c
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, n_categories: int) -> None:
        """Rows and their labels.

        Parameters
        ----------
        features : (n, d) finite, floating
        labels : (n,) integer, each in 0..c-1; or (n, c) where a row may have several labels, for
            one-vs-rest: 1 where it has the category, anything else counts as absent
        n_categories : c

        Raises
        ------
        ValueError
            Shapes do not fit; no rows; a feature is not finite; a label is out of range; all rows
            are of one category.
        """
        _check(features, labels, n_categories)
        self.n_features, self.n_categories = features.shape[1], n_categories
        self.features, self.labels = features, labels
        # Centred, so that an offset takes no digits from float32; the intercept makes up for it.
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.centred = np.empty(features.shape, np.float32)
        np.subtract(features, self.mean, out=self.centred, casting="same_kind")
        basis = Basis.of(self.centred[:: sample_step(*features.shape)])
        sums = np.zeros((self.n_features + 1, n_categories))
        for begin in range(0, len(labels), _TILE):
            tile = slice(begin, begin + _TILE)
            sums += category_sums(
                self.centred[tile], labels[tile], n_categories, xp=array_api_compat.numpy
            )
        sums[:-1] += self.mean[:, None] * sums[-1]
        self.basis = replace(basis, mean=basis.mean + self.mean, sums=sums)

    def quick(self, weight: np.ndarray) -> Sums:
        """Loss, gradient and spread as `softmax_sums` has them, with products in float32.

        Half the time of `exact`; losses of rows, right to six digits or so, are added in float64.
        """
        inner = weight.copy()
        inner[-1] += self.mean @ weight[:-1]
        loss, gradient, spread = self._sums(inner, self.centred, np.dtype(np.float32))
        gradient[:-1] += np.outer(self.mean, gradient[-1])
        return loss, gradient, spread

    def exact(self, weight: np.ndarray) -> Sums:
        """Loss, gradient and spread as `softmax_sums` has them, in float64."""
        return self._sums(weight, self.features, np.dtype(np.float64))

    def _sums(self, weight: np.ndarray, rows: np.ndarray, dtype: np.dtype[np.floating]) -> Sums:
        (n, d), c = rows.shape, self.n_categories
        tile = softmax_tile if self.labels.ndim == 1 else sigmoid_tile
        coefficients = np.ascontiguousarray(weight[:-1], dtype=dtype)
        intercept = weight[-1][:, None].astype(dtype)
        # Categories first: sums over them then run along whole rows of the array. Products are
        # faster the other way, above all those of few categories.
        across = np.empty((min(n, _TILE), c), dtype)
        logits, product = np.empty((c, min(n, _TILE)), dtype), np.empty((c, d), dtype)
        loss, gradient, spread = 0.0, np.zeros((c, d + 1)), np.zeros(c)
        for begin in range(0, n, _TILE):
            x = rows[begin : begin + _TILE].astype(dtype, copy=False)
            if len(x) < logits.shape[1]:
                logits = np.empty((c, len(x)), dtype)
            np.copyto(logits, np.matmul(x, coefficients, out=across[: len(x)]).T)
            logits += intercept
            part, intercepts, uncertain = tile(logits, self.labels[begin : begin + _TILE])
            loss, spread = loss + part, spread + uncertain
            gradient[:, :-1] += np.matmul(logits, x, out=product)
            gradient[:, -1] += intercepts
        return loss, np.ascontiguousarray(gradient.T), spread


def softmax_tile(logits: np.ndarray, labels: np.ndarray) -> Sums:
    """Cross-entropy of a softmax, its gradient by the intercept, and its spread; by category.

    Parameters
    ----------
    logits : (c, n) floating; overwritten by the gradient by each of them, p - target
    labels : (n,) integer

    Returns
    -------
    loss : summed over rows ; gradient : (c,) ; spread : (c,) sum of p (1 - p)
    """
    column = np.arange(len(labels))
    logits -= logits.max(axis=0)
    own = logits[labels, column].astype(np.float64)
    odds = np.exp(logits, out=logits)
    mine = odds[labels, column].astype(np.float64)
    # 1 - p of the row's own category is a sum of the others', so that it keeps its digits where
    # p is all but 1: on separable rows nothing else is left of the loss.
    odds[labels, column] = 0.0
    others = odds.sum(axis=0).astype(np.float64)
    total = mine + others
    likely = mine > others
    loss = np.log1p(others[likely] / mine[likely]).sum()
    loss += (np.log(total[~likely]) - own[~likely]).sum()
    odds *= (1 / total).astype(odds.dtype)
    missing = others / total
    odds[labels, column] = -missing
    gradient = odds.sum(axis=1)
    absolute = gradient + 2 * np.bincount(labels, missing, len(odds))
    return float(loss), gradient, absolute - np.einsum("ij,ij->i", odds, odds)


def sigmoid_tile(logits: np.ndarray, present: np.ndarray) -> Sums:
    """The same of a regression of each category against the rest.

    Parameters
    ----------
    logits : (c, n) floating; overwritten by the gradient by each of them
    present : (n, c) integer, 1 where a row has the category
    """
    sign = np.where(present.T == 1, -1, 1).astype(logits.dtype)
    logits *= sign  # now positive where it is wrong
    small = np.exp(-np.abs(logits))  # never overflows
    loss = np.maximum(logits, 0).sum(dtype=np.float64) + np.log1p(small).sum(dtype=np.float64)
    share = np.where(logits > 0, 1, small) / (1 + small)
    spread = share.sum(axis=1) - np.einsum("ij,ij->i", share, share)
    np.multiply(share, sign, out=logits)
    return float(loss), logits.sum(axis=1), spread


def _check(features: np.ndarray, labels: np.ndarray, n_categories: int) -> None:
    if features.ndim != 2 or not features.size or features.dtype.kind != "f":
        raise ValueError(
            f"features must be floating and (n, d) with at least one row and one feature, got "
            f"{features.dtype} {features.shape}"
        )
    n, several = len(features), labels.ndim == 2
    if labels.shape != ((n, n_categories) if several else (n,)) or labels.dtype.kind not in "iub":
        raise ValueError(
            f"labels must be integers of shape ({n},) or ({n}, {n_categories}), as many as rows of "
            f"features, got {labels.dtype} {labels.shape}"
        )
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise ValueError(f"features must be finite, and row {row} has NaN or infinity")
    largest = np.maximum(features.max(axis=1), -features.min(axis=1))
    if largest.max() >= _LARGEST:
        raise ValueError(
            f"features must lie within {_LARGEST:.0e} of 0, or no C of use is left, and row "
            f"{int(largest.argmax())} holds {largest.max():.3g}; divide them all by as much"
        )
    if several:
        return
    if labels.min() < 0 or labels.max() >= n_categories:
        raise ValueError(
            f"labels must lie in 0..{n_categories - 1} (n_categories {n_categories}), got "
            f"{labels.min()}..{labels.max()}"
        )
    if labels.min() == labels.max():
        raise ValueError(f"labels must be of two categories or more, got {labels[0]} alone")
