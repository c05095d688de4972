"""How alike two sets of features of the same images are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featstore.backend import Array

FEWEST_ROWS = 4
"""The debiased estimator is not defined on fewer."""

_STRIP = 2**25  # values of Gram matrices at once: 256 MiB of float64


def linear_cka(x: Array, y: Array, *, debiased: bool = False, xp: Any) -> float:
    """Linear centred kernel alignment of two sets of features of the same rows; see `cka_matrices`.

    Parameters
    ----------
    x : (n, d) floating ; y : (n, e) floating
    debiased : the estimator that does not grow with the features' number
    xp : array namespace of both arrays

    Raises
    ------
    ValueError
        The numbers of rows differ, or are below 4.
    """
    matrices = cka_matrices([x, y], xp=xp)
    return float(matrices[0 if debiased else 1][0, 1])


def cka_matrices(features: Sequence[Array], *, strip: int = 0, xp: Any) -> tuple[Array, Array]:
    """Linear CKA of every two of s sets of features of the same n rows: debiased, and as published.

    Both are the cosine of two Gram matrices (n, n) taken as vectors. As published their rows and
    columns are centred; that is in 0..1, and far above 0 for unrelated features where there are no
    more rows than features. Debiased, the products are unbiased estimates of HSIC, about 0 for
    unrelated features and at most 1. Features that say nothing have no cosine, which is NaN: both
    where all rows are equal, debiased also where all are as far from each other.

    Besides the features, rows of all Gram matrices are in memory, 256 MiB at once however many sets
    and rows there are, and one set in float64, a few times over.

    Sources: Kornblith, Norouzi, Lee, Hinton, *Similarity of Neural Network Representations
    Revisited* (ICML 2019), eq. 3 and 4. Song, Smola, Gretton, Bedo, Borgwardt, *Feature Selection
    via Dependence Maximization* (JMLR 13, 2012), their unbiased estimator of HSIC, as put into CKA
    by Nguyen, Raghu, Kornblith, *Do Wide and Deep Networks Learn the Same Things?* (ICLR 2021).

    Parameters
    ----------
    features : s >= 1 arrays (n, d) floating, where d may differ; n >= 4
    strip : rows of the Gram matrices made at once; 0 for as many as the memory above holds
    xp : array namespace of all arrays

    Returns
    -------
    debiased, biased : (s, s) float64

    Raises
    ------
    ValueError
        The numbers of rows differ, or are below 4.
    """
    n = features[0].shape[0]
    counts = sorted({x.shape[0] for x in features})
    if counts != [n] or n < FEWEST_ROWS:
        raise ValueError(f"all features must be of the same rows, 4 or more, got {counts}")
    strip = min(n, strip or max(1, _STRIP // (len(features) * n)))
    # Of centred features the Gram matrix is centred. Nothing else of it is needed than its
    # products with the others, to which each row adds, and its diagonal.
    products = xp.zeros((len(features), len(features)), dtype=xp.float64)
    held = xp.empty((len(features), strip * n), dtype=xp.float64)
    for start in range(0, n, strip):
        stop = min(start + strip, n)
        size = (stop - start) * n
        for number, x in enumerate(features):
            rows = _centred(x, xp)
            held[number, :size] = xp.reshape(rows[start:stop, :] @ rows.T, (-1,))
        products = products + held[:, :size] @ held[:, :size].T
    squares = xp.stack([xp.sum(_centred(x, xp) ** 2, axis=1) for x in features])
    traces = xp.sum(squares, axis=1)

    on_diagonal = squares @ squares.T
    unbiased = (  # HSIC times n (n - 3): the diagonal is left out of the products, and of the means
        (products - on_diagonal)
        + traces[:, None] * traces[None, :] / ((n - 1) * (n - 2))
        - on_diagonal * (2 / (n - 2))
    )
    smallest = xp.linalg.diagonal(products) * (n * 2.0**-52)  # what is below it is rounding
    return _cosines(unbiased, smallest, xp), _cosines(products, smallest, xp)


def displacement(x: Array, y: Array, *, xp: Any) -> float:
    """Distance of features from others of the same rows, over their spread: ||x - y|| / ||x - m||.

    Frobenius norms, m the mean row of x. 0 where nothing moves; NaN where all rows of x are equal.

    Parameters
    ----------
    x, y : (n, d) floating
    xp : array namespace of both arrays
    """
    centred = _centred(x, xp)
    moved = xp.astype(x, xp.float64) - xp.astype(y, xp.float64)
    spread = float(xp.sum(centred * centred))
    return (float(xp.sum(moved * moved)) / spread) ** 0.5 if spread > 0 else float("nan")


def _centred(x: Array, xp: Any) -> Array:
    """(n, d) float64 less its mean; a constant column gives exact zeros."""
    rows = xp.astype(x, xp.float64)
    rows = rows - rows[0, :]
    return rows - xp.mean(rows, axis=0)


def _cosines(products: Array, smallest: Array, xp: Any) -> Array:
    """Products (s, s) over the lengths on their diagonal, NaN where there is none."""
    own = xp.linalg.diagonal(products)
    length = xp.sqrt(xp.where(own > smallest, own, xp.full_like(own, float("nan"))))
    return products / (length[:, None] * length[None, :])
