"""The descent behind logistic regression: L-BFGS that lives on when the penalty changes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from featstore.cuda import Array

Evaluate: TypeAlias = Callable[[Array], tuple[Any, ...]]
"""Weight (d+1, c) -> cross-entropy summed over all rows, its gradient (d+1, c) and, where a basis
is given, the sum of p (1 - p) of each category (c,): see `softmax_sums`. Arrays are float64 of the
solver's namespace."""

Seen: TypeAlias = tuple[float, Array, Array | None]

_MEMORY = 20  # steps that are remembered: 8 cost 5 % more evaluations, 40 as many
SOLVER_ARRAYS = 3 * _MEMORY + 12  # of a weight's size, at most, that a solver holds
_SINGLE = 1e-6  # least estimate that `quick` may claim
_RECENT = 5  # of them tell how long a step may be
_TRIALS = 12  # points along one step
_WIDEST = 4096  # features whose principal axes are worth their time
_SAMPLE = 8  # rows for each feature from which they are found


@dataclass(frozen=True)
class Basis:
    """Coordinates in which the second derivative of the loss is nearly diagonal.

    Attributes
    ----------
    mean : (d,) of the features
    values : (d,) variance along each direction
    vectors : (d, d) directions as columns, or None for those of the features themselves
    sums : (d+1, c) of the rows of each category, and their number (`category_sums`), or None.
        With them, second derivatives are taken about where the rows of a category lie: their
        coupling with its intercept is the one thing that such coordinates leave out and that
        twenty remembered steps cannot make up for where categories are many
    """

    mean: Array
    values: Array
    vectors: Array | None
    sums: Array | None = None

    @classmethod
    def of(cls, rows: np.ndarray) -> Basis:
        """Principal axes of a sample of rows (n, d); the features' own where it is too small.

        Any basis leads to the same optimum: a sample serves as well as all rows.
        """
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean.astype(rows.dtype)
        n, d = rows.shape
        if n < 2 * d or d > _WIDEST:
            return cls(mean, np.asarray(np.var(rows, axis=0, dtype=np.float64)), None)
        values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / n)
        return cls(mean, np.maximum(values, 0.0), vectors)

    def on(self, xp: Any) -> Basis:
        """The same in arrays of a namespace."""
        vectors, sums = (
            None if one is None else xp.asarray(one) for one in (self.vectors, self.sums)
        )
        return Basis(xp.asarray(self.mean), xp.asarray(self.values), vectors, sums)

    def weight(self, inner: Array) -> Array:
        """The weight (d+1, c) of coordinates (d+1, c)."""
        weight = 1.0 * inner
        if self.vectors is not None:
            weight[:-1, :] = self.vectors @ inner[:-1, :]
        weight[-1, :] -= self.mean @ weight[:-1, :]
        return weight

    def coordinates(self, weight: Array) -> Array:
        """The coordinates (d+1, c) of a weight (d+1, c)."""
        inner = 1.0 * weight
        if self.vectors is not None:
            inner[:-1, :] = self.vectors.T @ weight[:-1, :]
        inner[-1, :] += self.mean @ weight[:-1, :]
        return inner

    def gradient(self, gradient: Array) -> Array:
        """A gradient by the weight, by the coordinates."""
        turned = 1.0 * gradient
        turned[:-1, :] -= self.mean[:, None] * gradient[-1:, :]
        if self.vectors is not None:
            turned[:-1, :] = self.vectors.T @ turned[:-1, :]
        return turned


def sample_step(n_rows: int, n_features: int) -> int:
    """Every how many rows one is enough for a `Basis`."""
    return max(1, n_rows // (_SAMPLE * n_features))


@dataclass(frozen=True)
class LogisticCertificate:
    """How near a fit came to the optimum, and what that took.

    Attributes
    ----------
    objective : summed cross-entropy + penalty / 2 x squared weights, at the weight returned
    excess : (objective - optimum) / objective at most, from the gradient at the weight returned.
        The weights' part, |gradient|^2 / (2 penalty), is a bound: the penalty makes the objective
        strongly convex in them. The intercept's part, |gradient|^2 c / cross-entropy, takes its
        curvature to be what it is where all c categories are about as hard
    estimate : of the same, from the curvature that the steps have shown: half of the decrease a
        quasi-Newton step promises to first order. Where the penalty is small the bound is far
        above it
    gradient_norm : Euclidean norm of the objective's gradient at the weight returned
    relative_gradient : gradient_norm / what it was at the start of the fit
    iterations : steps of L-BFGS
    evaluations : passes over the rows
    exact : whether objective and gradient are of `evaluate`, not of `quick`
    converged : whether `excess`, or `estimate` where that was asked for, is at most the tolerance;
        never merely that the solver stopped
    """

    objective: float
    excess: float
    estimate: float
    gradient_norm: float
    relative_gradient: float
    iterations: int
    evaluations: int
    exact: bool
    converged: bool


class Descent:
    """L-BFGS (Nocedal and Wright, Algorithm 7.4) that lives on when the penalty changes.

    What it remembers is of the loss alone, flat in the basis's coordinates: `slope` its gradient,
    `pairs` its steps and the changes of `slope` along them.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        quick: Evaluate | None,
        shape: tuple[int, int],
        basis: Basis | None,
        start: Array | None,
        *,
        estimated: bool = False,
        floor: float = 0.0,
        xp: Any = np,
    ) -> None:
        self.evaluate, self.quick, self.shape, self.xp = evaluate, quick, shape, xp
        self.basis = None if basis is None else basis.on(xp)
        self.estimated, self.floor = estimated, floor
        self.evaluations = 0
        self.pairs: deque[tuple[Array, Array]] = deque(maxlen=_MEMORY)
        self.sums = None
        if self.basis is not None and self.basis.sums is not None:
            self.sums = self.basis.gradient(self.basis.sums)
        self.n_weights = (shape[0] - 1) * shape[1]  # intercepts follow, not penalised
        parts = xp.ones(self.n_weights, dtype=xp.float64), xp.zeros(shape[1], dtype=xp.float64)
        self.penalised = xp.concat(parts)
        begin = xp.zeros(shape, dtype=xp.float64) if start is None else start
        self.weight = xp.asarray(begin, dtype=xp.float64)
        if self.weight.shape != shape:
            raise ValueError(f"start must be of shape {shape}, got {self.weight.shape}")
        inner = self.weight if self.basis is None else self.basis.coordinates(self.weight)
        self.at = self.before = xp.reshape(inner, (-1,))
        self.loss, self.slope, self.spread = self._look(self.at)
        # So that no curvature is nothing, even where every row is told for certain.
        self.least = 0.0 if self.spread is None else 1e-9 * float(xp.sum(self.spread)) + 1e-300

    def _look(self, at: Array) -> Seen:
        """Loss, its gradient and spread at coordinates; one pass over the rows."""
        self.evaluations += 1
        loss, gradient, *more = (self.quick or self.evaluate)(self._weight(at))
        slope = self.xp.asarray(gradient, dtype=self.xp.float64)
        if self.basis is not None:
            slope = self.basis.gradient(slope)
        return float(loss), self.xp.reshape(slope, (-1,)), more[0] if more else None

    def _weight(self, at: Array) -> Array:
        inner = self.xp.reshape(at, self.shape)
        return inner if self.basis is None else self.basis.weight(inner)

    def solve(self, penalty: float, tolerance: float, most: int) -> LogisticCertificate:
        """Go to the optimum of a penalty, or as near as there is a way, in `most` steps."""
        pull = penalty * self.penalised
        # What was learned holds for this penalty too once its own part is added.
        pairs = deque([(s, y + pull * s) for s, y in self.pairs], maxlen=_MEMORY)
        ahead, self.before = self.at - self.before, self.at
        first, iterations, lost = 0.0, 0, False
        while True:
            value = self.loss + float(self.at @ (pull * self.at)) / 2
            gradient = self.slope + pull * self.at
            norm = math.sqrt(float(gradient @ gradient))
            first = first or norm
            scale = max(value, self.floor, np.finfo(float).tiny)
            excess = self._bound(gradient, penalty) / scale
            step = self._direction(gradient, pull, pairs)
            estimate = max(0.0, -float(gradient @ step) / 2) / scale
            gap = estimate if self.estimated and (pairs or self.basis) else excess
            ended = gap <= tolerance or iterations >= most
            if ended and self.quick and (not self.estimated or tolerance < _SINGLE):
                self._look_closer()
                continue
            if ended:
                break
            # Weights move almost linearly in the logarithm of the penalty: going on as far as the
            # last penalty went saves half of all evaluations where these are evenly spaced there.
            guess = not iterations and not lost and float(gradient @ ahead) < 0
            found = self._search(ahead if guess else step, value, gradient, pull)
            if found is None:  # rounding hides any descent, or what is remembered misleads
                if lost and self.quick is None:
                    break
                lost = True
                pairs.clear()
                self.pairs.clear()
                if self.quick is not None:
                    self._look_closer()
                continue
            at, (loss, slope, spread) = found
            s, y = at - self.at, slope - self.slope
            if float(s @ (y + pull * s)) > 0:
                self.pairs.append((s, y))
                pairs.append((s, y + pull * s))
            self.at, self.loss, self.slope, self.spread = at, loss, slope, spread
            iterations, lost = iterations + 1, False
        if iterations:  # else a start is returned as it came
            self.weight = self._weight(self.at)
        evaluations, self.evaluations = self.evaluations, 0
        return LogisticCertificate(
            objective=value,
            excess=excess,
            estimate=estimate,
            gradient_norm=norm,
            relative_gradient=norm / first if first else 0.0,
            iterations=iterations,
            evaluations=evaluations,
            exact=self.quick is None,
            converged=gap <= tolerance,
        )

    def _look_closer(self) -> None:
        self.quick = None
        self.loss, self.slope, self.spread = self._look(self.at)

    def _bound(self, gradient: Array, penalty: float) -> float:
        """What the objective exceeds its optimum by at most, as far as the gradient tells."""
        weights, intercepts = gradient[: self.n_weights], gradient[self.n_weights :]
        gap = float(weights @ weights) / (2 * penalty)
        if self.loss > 0:
            gap += float(intercepts @ intercepts) * self.shape[1] / self.loss
        return gap

    def _direction(
        self, gradient: Array, pull: Array, pairs: Sequence[tuple[Array, Array]]
    ) -> Array:
        """A quasi-Newton step: minus the gradient times an inverse Hessian made of the pairs."""
        inverse = self._inverse(pull)
        # Of the last few ratios of true to assumed curvature the most cautious: a step too long
        # costs an evaluation.
        ratios = [float(s @ y) / float(y @ inverse(y)) for s, y in list(pairs)[-_RECENT:]]
        if self.basis is not None:
            length = min(5.0, max(0.2, min(ratios, default=1.0)))
        else:
            length = ratios[-1] if ratios else 1 / max(1.0, math.sqrt(float(gradient @ gradient)))
        rest, shares = 1.0 * gradient, []
        for s, y in reversed(pairs):
            shares.append(float(s @ rest) / float(s @ y))
            rest -= shares[-1] * y
        rest = length * inverse(rest)
        for s, y in pairs:
            rest += (shares.pop() - float(y @ rest) / float(s @ y)) * s
        return -rest

    def _inverse(self, pull: Array) -> Callable[[Array], Array]:
        """An inverse Hessian as it is where p (1 - p) has nothing to do with the features.

        Where sums are known, it has to do with them as far as the mean of a category's rows tells,
        each row counted by its share p: that mean is the loss's slope plus the sum of the rows that
        have the category, over their number.
        """
        xp, shape = self.xp, self.shape
        if self.basis is None:
            return lambda gradient: gradient
        values = xp.concat((self.basis.values, xp.ones(1, dtype=xp.float64)))
        second = values[:, None] * self.spread + xp.reshape(pull, shape) + self.least
        if self.sums is None:
            return lambda gradient: xp.reshape(xp.reshape(gradient, shape) / second, (-1,))
        seen = xp.reshape(self.slope, shape) + self.sums
        few = xp.ones_like(seen[-1, :])  # of less than a row, rounding is all that is left
        centre = seen[:-1, :] / xp.maximum(seen[-1, :], few)

        def inverse(gradient: Array) -> Array:
            step = 1.0 * xp.reshape(gradient, shape)
            step[:-1, :] -= centre * step[-1, :]
            step /= second
            step[-1, :] -= xp.sum(centre * step[:-1, :], axis=0)
            return xp.reshape(step, (-1,))

        return inverse

    def _search(
        self, step: Array, value: float, gradient: Array, pull: Array
    ) -> tuple[Array, Seen] | None:
        """The first point along a step that is low enough (Hager and Zhang 2005, eq. 4.1)."""
        slope = float(gradient @ step)
        rounding = (1e-6 if self.quick else 1e-10) * abs(value)
        length = 1.0
        for _ in range(_TRIALS if slope < 0 else 0):
            at = self.at + length * step
            seen = self._look(at)
            rise = seen[0] + float(at @ (pull * at)) / 2 - value
            along = float((seen[1] + pull * at) @ step)
            if rise <= 1e-4 * length * slope or (rise <= rounding and abs(along) <= -0.9 * slope):
                return at, seen
            length *= min(0.5, max(0.1, -slope * length / (2 * (rise - slope * length))))
        return None
