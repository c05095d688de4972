"""Episodes of nearest class means: a few rows of a few categories name others of the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featstore.backend import Array, strip_size
from featstore.kernels.pairs import pair_dots


def episode_accuracies(features: Array, drawn: Array, *, support: int, xp: Any) -> Array:
    """Share of the queries of each episode whose own category's mean is the nearest.

    Nearest is by squared Euclidean distance, of equals the category drawn first. Arithmetic is in
    the dtype of `features`, on differences from the mean of an episode's means, so that a mean
    common to all rows costs few digits. float32 on the host gathers and multiplies in one step:
    what an episode reads is not written again.
    Source: Snell et al., *Prototypical Networks for Few-shot Learning* (2017), section 2.2.

    Parameters
    ----------
    features : (n, d) float32 or float64, finite
    drawn : (e, w, s + q) integer rows of `features` in 0..n-1, of e episodes and w categories: the
        first s of each make its mean, the other q are asked for
    support : s
    xp : array namespace of both arrays

    Returns
    -------
    accuracies : (e,) float64

    Raises
    ------
    ValueError
        Shapes do not fit, there is no query, a row is not there, or a feature drawn is not finite.
    """
    _check(features, drawn, support, xp)
    if isinstance(features, np.ndarray) and features.dtype == np.float32:
        return _fused(features, drawn, support)
    episodes, ways, size = drawn.shape
    step = max(1, 8 * strip_size(xp) // (ways * size * features.shape[1]))
    own = xp.arange(ways)[None, :, None]
    found = []
    for first in range(0, episodes, step):
        rows = drawn[first : min(first + step, episodes), ...]
        taken = xp.reshape(
            xp.take(features, xp.reshape(rows, (-1,)), axis=0), (*rows.shape, features.shape[1])
        )
        means = xp.mean(taken[:, :, :support, :], axis=2)
        middle = xp.mean(means, axis=1, keepdims=True)
        apart = means - middle
        offset = xp.sum(apart * (means + middle), axis=2) / 2
        asked = xp.reshape(taken[:, :, support:, :], (rows.shape[0], -1, features.shape[1]))
        near = asked @ xp.matrix_transpose(apart) - offset[:, None, :]
        _check_near(bool(xp.all(xp.isfinite(near))))
        guess = xp.reshape(xp.argmax(near, axis=2), (rows.shape[0], ways, size - support))
        found.append(xp.mean(xp.astype(guess == own, xp.float64), axis=(1, 2)))
    return xp.concat(found)


def _fused(features: np.ndarray, drawn: np.ndarray, support: int) -> np.ndarray:
    """The same, by torch's gathering mean and its product at chosen places of a matrix."""
    episodes, ways, size = drawn.shape
    queries = ways * (size - support)
    # torch has no negative strides, and warns of memory that it must not write to.
    x = torch.from_numpy(np.require(features, requirements=["C", "W"]))
    rows = torch.from_numpy(np.array(drawn, np.int64, order="C"))
    bags = rows[:, :, :support].reshape(-1, support)
    apart = torch.nn.functional.embedding_bag(bags, x, mode="mean").view(episodes, ways, -1)
    middle = apart.mean(dim=1, keepdim=True)
    apart -= middle
    # q is nearest m where q.(m - c) - (m - c).(m + c)/2 is largest, c being the middle.
    offset = torch.linalg.vector_norm(apart, dim=2).square() / 2
    offset += (apart @ middle.transpose(1, 2))[:, :, 0]
    # In row (episode, category) the places asked for are the episode's queries, so that a query
    # is read from memory once and for the other categories from the cache.
    places = rows[:, None, :, support:].expand(-1, ways, -1, -1).reshape(-1)
    starts = torch.arange(0, len(places) + 1, queries)
    near = pair_dots(apart.view(episodes * ways, -1), x, starts, places)
    near = near.view(episodes, ways, queries)
    near -= offset[:, :, None]
    _check_near(bool(torch.isfinite(near).all()))
    best, guess = near[:, 0], torch.zeros(episodes, queries, dtype=torch.int64)
    for way in range(1, ways):  # argmax over an axis that is not the last takes many times as long
        better = near[:, way] > best
        best = torch.where(better, near[:, way], best)
        guess = guess.masked_fill(better, way)
    own = torch.arange(ways).repeat_interleave(size - support)
    found: np.ndarray = (guess == own).double().mean(dim=1).numpy()
    return found


def _check(features: Array, drawn: Array, support: int, xp: Any) -> None:
    shapes = (*features.shape, *drawn.shape)
    if len(features.shape) != 2 or len(drawn.shape) != 3 or 0 in shapes:
        raise ValueError(
            f"features must be (n, d) and drawn (e, w, s + q), none of them 0, got "
            f"{features.shape} and {drawn.shape}"
        )
    if features.dtype not in (xp.float32, xp.float64):
        raise ValueError(f"features must be float32 or float64, got {features.dtype}")
    if not xp.isdtype(drawn.dtype, "integral"):
        raise ValueError(f"drawn must be integers, got {drawn.dtype}")
    if not 1 <= support < drawn.shape[2]:
        raise ValueError(
            f"support must lie in 1..{drawn.shape[2] - 1} (rows drawn of a category, less a "
            f"query), got {support}"
        )
    low, high = int(xp.min(drawn)), int(xp.max(drawn))
    if low < 0 or high >= features.shape[0]:
        raise ValueError(
            f"drawn must lie in 0..{features.shape[0] - 1} (rows of features), got {low}..{high}"
        )


def _check_near(finite: bool) -> None:
    if not finite:
        raise ValueError(
            "features must be finite, and so their products; of rows drawn some are not"
        )
