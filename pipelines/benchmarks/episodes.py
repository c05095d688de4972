"""Few-shot episodes beside a loop over them in torch, on the same draws.

python pipelines/benchmarks/episodes.py [--small] [--json FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from common import Row, clusters, compare, run

from featstore import kernels

WAYS, SUPPORT, QUERIES = 5, 20, 15


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Wide rows, which memory limits, and narrow ones, which the loop does."""
    if arguments.small:
        return [beside(3840, 64, 20, repeats=1), beside(3840, 8, 20, repeats=1)]
    return [
        beside(38_400, 2048, 600, repeats=7, goal=0.4),
        beside(38_400, 64, 600, repeats=7, goal=0.1),
    ]


def beside(n: int, d: int, episodes: int, *, repeats: int, goal: float | None = None) -> Row:
    """Both on the same draws of 64 categories."""
    x, y = clusters(n, d, 64, apart=0.6 / d**0.5)
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(y == category) for category in range(64)]
    drawn = np.array(
        [
            [rng.choice(members[c], SUPPORT + QUERIES, replace=False)
             for c in rng.choice(64, WAYS, replace=False)]
            for _ in range(episodes)
        ]
    )  # fmt: skip
    rows, places = torch.from_numpy(x), torch.from_numpy(drawn)
    ours = partial(kernels.prototypes.episode_accuracies, x, drawn, support=SUPPORT, xp=np)
    theirs = partial(loop, rows, places)
    what = f"{episodes} episodes, {WAYS}-way {SUPPORT}-shot, {n} x {d}"
    row = compare(what, ours, "a loop in torch", theirs, goal=goal, repeats=repeats)
    apart = np.abs(ours() - np.array(theirs()))
    return replace(row, note=f"accuracies differ by {apart.max():.0e} at most")


def loop(x: torch.Tensor, drawn: torch.Tensor) -> list[float]:
    """One episode after the other: index, mean, distances."""
    own = torch.arange(WAYS)[:, None]
    found = []
    for rows in drawn:
        means = x[rows[:, :SUPPORT]].mean(dim=1)
        guess = torch.cdist(x[rows[:, SUPPORT:].reshape(-1)], means).argmin(dim=1)
        found.append(float((guess.view(WAYS, QUERIES) == own).double().mean()))
    return found


if __name__ == "__main__":
    run(measure, __doc__ or "")
