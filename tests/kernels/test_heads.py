"""Heads trained side by side, each against torch's own modules trained by themselves."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featstore.kernels.heads import Head, train_heads

from .test_scale import LAW

D, C = 7, 4


def start(seed):
    return torch.randn(C, D, generator=torch.Generator().manual_seed(seed)).double()


HEADS = [
    Head(start(seed), lr=lr, weight_decay=decay, bn=bn)
    for seed, lr, decay, bn in [
        (0, 0.1, 0.0, False),
        (1, 0.5, 0.01, True),
        (0, 2.0, 0.0, True),
        (2, 0.02, 0.1, False),
        (2, 0.02, 0.0, True),
    ]
]


def stream(steps=12, rows=20, offset=3.0):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(C, D)) + offset
    for step in range(steps):
        y = rng.integers(0, C, size=rows)
        x = centres[y] + rng.normal(size=(rows, D))
        yield torch.from_numpy(x), torch.from_numpy(y), (1 + math.cos(math.pi * step / steps)) / 2


def alone(head, batches, *, momentum=0.9, clip=math.inf):
    """The head in torch's modules, its losses, and logits of other rows."""
    linear = nn.Linear(D, C).double()
    with torch.no_grad():
        linear.weight.copy_(head.start)
        linear.bias.zero_()
    model = nn.Sequential(*[nn.BatchNorm1d(D).double()] * head.bn, linear)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=momentum, weight_decay=head.weight_decay
    )
    losses = []
    for x, y, factor in batches:
        optimiser.param_groups[0]["lr"] = head.lr * factor
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [math.inf, 0.3])
@pytest.mark.parametrize(
    "heads", [HEADS, HEADS[:1], HEADS[1:3], [HEADS[0], HEADS[3]]], ids=["all", "one", "bn", "plain"]
)
def test_each_head_is_the_one_that_torch_trains_by_itself(heads, momentum, clip):
    trained, losses = train_heads(stream(), heads, momentum=momentum, clip=clip)
    x = torch.cat([x for x, _, _ in stream(steps=2)])
    for head, found, its in zip(heads, trained, losses.T, strict=True):
        model, expected = alone(head, stream(), momentum=momentum, clip=clip)
        np.testing.assert_allclose(its, expected, rtol=1e-9)
        with torch.no_grad():
            np.testing.assert_allclose(found(x), model(x), rtol=1e-8, atol=1e-8)


def test_heads_do_not_see_each_other():
    every, losses = train_heads(stream(), HEADS, clip=0.3)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 29):
        some = order[:3]
        trained, its = train_heads(stream(), [HEADS[i] for i in some], clip=0.3)
        np.testing.assert_allclose(its, losses[:, some], rtol=1e-9)
        for found, i in zip(trained, some, strict=True):
            np.testing.assert_allclose(found.weight, every[i].weight, rtol=1e-7, atol=1e-10)


def test_a_feature_without_spread_is_no_hindrance_to_batchnorm():
    batches = [(torch.cat([x[:, 1:], x[:, :1] * 0 + 5], dim=1), y, f) for x, y, f in stream()]
    (found,), _ = train_heads(batches, HEADS[1:2])
    model, _ = alone(HEADS[1], batches)
    with torch.no_grad():
        np.testing.assert_allclose(found(batches[0][0]), model(batches[0][0]), rtol=1e-8)


def test_a_head_that_diverges_leaves_the_others_as_they_are():
    wild = Head(start(3), lr=1e308)
    (_, calm), losses = train_heads(stream(), [wild, HEADS[0]])
    (expected,), _ = train_heads(stream(), HEADS[:1])
    assert not losses[-1, 0].isfinite()
    np.testing.assert_allclose(calm.weight, expected.weight, rtol=1e-9)


@pytest.mark.parametrize(
    ("heads", "options", "fault"),
    [
        ([], {}, "heads must hold at least one head, got none"),
        ([HEADS[0], Head(start(0)[:, 1:], 0.1)], {}, r"one shape .* got \[\(4, 6\), \(4, 7\)\]"),
        ([Head(start(0)[:1], 0.1)], {}, r"c at least 2, got \[\(1, 7\)\]"),
        ([Head(start(0), 0.0)], {}, "lr must be above 0 .* got 0 and 0"),
        ([Head(start(0), math.nan)], {}, "lr must be above 0 .* got nan and 0"),
        ([Head(start(0), 1, -1)], {}, "weight_decay at least 0, both finite, got 1 and -1"),
        ([HEADS[0], Head(start(0) * math.nan, 1)], {}, "finite, and that of head 1 is not"),
        ([Head(start(0) / 0, 1)], {}, "finite, and that of head 0 is not"),
        ([HEADS[0], Head(start(0).float(), 1)], {}, "got torch.float32, torch.float64"),
        ([Head(start(0).long(), 1)], {}, "of one floating dtype, got torch.int64"),
        (HEADS, {"momentum": 1}, "momentum must lie in 0..1 and not be 1, .* got 1 and inf"),
        (HEADS, {"clip": 0}, "clip be above 0, got 0.9 and 0"),
    ],
)
def test_heads_that_cannot_be_trained_are_refused(heads, options, fault):
    with pytest.raises(ValueError, match=fault):
        train_heads(stream(), heads, **options)


@pytest.mark.parametrize(
    ("x", "y", "fault"),
    [
        (np.ones((3, 6)), [0, 1, 2], r"\(m, 7\), as wide as the heads, .* got \(3, 6\) and \(3,\)"),
        (np.ones((3, 7)), [0, 1], r"got \(3, 7\) and \(2,\)"),
        (np.ones((3, 7)), [0, 1, 4], r"labels must lie in 0..3 \(categories\), got 0..4"),
        (np.ones((3, 7)), [0, -1, 3], "got -1..3"),
        (np.ones((1, 7)), [0], "a batch must hold at least 2 rows, got 1"),
        (np.full((3, 7), np.nan), [0, 1, 2], "features of a batch must be finite"),
    ],
)
def test_batches_that_no_head_can_learn_from_are_refused(x, y, fault):
    batch = torch.from_numpy(x), torch.tensor(y), 1.0
    with pytest.raises(ValueError, match=fault):
        train_heads([batch], HEADS)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        train_heads([], HEADS)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x, y, f: (x.float(), y, f), "must be torch.float64 .* got torch.float32 and"),
        (lambda x, y, f: (x.long(), y, f), "got torch.int64 and torch.int64"),
        (lambda x, y, f: (x, y.int(), f), "labels torch.int64, got torch.float64 and torch.int32"),
        (lambda x, y, f: (x, y.double(), f), "got torch.float64 and torch.float64"),
        (lambda x, y, f: (x, y, math.nan), "factor of learning rates must be finite, got nan"),
        (lambda x, y, f: (x, y, math.inf), "must be finite, got inf"),
    ],
)
@pytest.mark.parametrize("heads", [HEADS, HEADS[:1]], ids=["all", "one"])
def test_batches_of_other_dtypes_or_steps_of_no_length_are_refused(heads, change, fault):
    with pytest.raises(ValueError, match=fault):
        train_heads([change(*next(stream()))], heads)


@cache
def by_torch(i, clip):
    return alone(HEADS[i], stream(steps=5), clip=clip)


@given(
    order=st.lists(st.integers(0, 4), min_size=1, max_size=6),  # a head may come twice
    clip=st.sampled_from([math.inf, 0.3]),
    seed=st.integers(0, 99),
)
@LAW
def test_neither_the_order_of_heads_nor_that_of_rows_in_a_batch_changes_any(order, clip, seed):
    rng = np.random.default_rng(seed)
    shuffled = ((x[p], y[p], f) for x, y, f in stream(steps=5) for p in [rng.permutation(len(y))])
    trained, losses = train_heads(shuffled, [HEADS[i] for i in order], clip=clip)
    x = torch.cat([x for x, _, _ in stream(steps=2)])
    for i, head, its in zip(order, trained, losses.T, strict=True):
        model, expected = by_torch(i, clip)
        np.testing.assert_allclose(its, expected, rtol=1e-9)
        with torch.no_grad():
            np.testing.assert_allclose(head(x), model(x), rtol=1e-8, atol=1e-8)
