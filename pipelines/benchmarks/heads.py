"""Linear heads trained by SGD: ten in one pass beside one, and one beside torch's own modules.

python pipelines/benchmarks/heads.py [--small] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from common import Row, clusters, compare, run
from torch import Tensor, nn

from featstore import kernels

BATCH = 1024


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Few and many categories, of features stored in float16."""
    if arguments.small:
        return beside(2048, 16, 4, epochs=2, repeats=1)
    return [row for c in (10, 100) for row in beside(50_000, 768, c, epochs=3, repeats=3)]


def beside(n: int, d: int, c: int, *, epochs: int, repeats: int) -> list[Row]:
    """Ten heads of five learning rates, with BatchNorm and without."""
    x, y = clusters(n, d, c, apart=0.1)
    stored, labels = torch.from_numpy(x).half(), torch.from_numpy(y)
    starts = [torch.randn(c, d, generator=torch.Generator().manual_seed(i)) / 100 for i in range(5)]
    heads = [
        kernels.heads.Head(start, lr, bn=bn)
        for start, lr in zip(starts, (0.02, 0.05, 0.1, 0.2, 0.4), strict=True)
        for bn in (False, True)
    ]

    def train(some: list[kernels.heads.Head]) -> Tensor:
        return kernels.heads.train_heads(batches(stored, labels, epochs), some, clip=0.5)[1]

    what = f"{n} x {d}, {c} categories, {epochs} epochs"
    ten, one = partial(train, heads), partial(train, heads[:1])
    plain = partial(loop, stored, labels, heads[0], epochs)
    off = (one()[:, 0] - torch.tensor(plain())).abs().max()
    rows = [
        compare(f"10 heads, {what}", ten, "1 head", one, goal=3.0, repeats=repeats),
        compare(f"10 heads, {what}", ten, "1 head of torch.nn", plain, goal=3.0, repeats=repeats),
        compare(f"1 head, {what}", one, "1 head of torch.nn", plain, repeats=repeats),
    ]
    return [*rows[:-1], replace(rows[-1], note=f"losses differ by {off:.0e} at most")]


def batches(x: Tensor, y: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Shuffled rows, as off a store."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(BATCH):
            yield x.index_select(0, rows).float(), y[rows], 1.0


def loop(x: Tensor, y: Tensor, head: kernels.heads.Head, epochs: int) -> list[float]:
    """A layer, an optimiser, autograd: losses."""
    layer = nn.Linear(x.shape[1], len(head.start))
    with torch.no_grad():
        layer.weight.copy_(head.start)
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=head.lr, momentum=0.9)
    losses = []
    for features, labels, _ in batches(x, y, epochs):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(layer(features), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 0.5)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    run(measure, __doc__ or "")
