"""A training against a plain loop written out here; what stays, what moves, what is resumed."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from featstore.errors import DivergedError
from featstore.finetuning.net import Net
from featstore.finetuning.train import Checkpoints
from featstore.models import batch_norms

from .conftest import toy, trained, work_of

LENGTH = "+epochs=3+batch_size=10+warmup=1"


def plain_loop(net, split, *, peaks, epochs, batch, seed, smoothing, clip):
    """SGD with momentum in PyTorch alone, at centre crops, by the formulas of the paper."""
    backbone, linear = net.backbone.train(), net.head[-1]
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.5)
    images = torch.from_numpy(np.ascontiguousarray(split.read.pixels.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(split.labels)
    named = {**{f"backbone.{n}": p for n, p in backbone.named_parameters()},
             **{f"head.{n}": p for n, p in linear.named_parameters()}}  # fmt: skip
    velocity = {name: torch.zeros_like(p) for name, p in named.items()}
    losses = []
    for epoch in range(epochs):
        warm = epoch < 1
        factor = (epoch + 1) / 2 if warm else (1 + math.cos(math.pi * (epoch - 1) / 2)) / 2
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        total = 0.0
        for rows in torch.from_numpy(order).split(batch):
            features = backbone((images[rows] / 255 - mean) / std)
            log_p = torch.log_softmax(features @ linear.weight.T + linear.bias, dim=1)
            right = log_p[torch.arange(len(rows)), labels[rows]]
            loss = -((1 - smoothing) * right + smoothing * log_p.mean(dim=1)).mean()
            grads = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
            norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
            with torch.no_grad():
                for name, parameter in named.items():
                    velocity[name] = 0.9 * velocity[name] + grads[name] * min(1, clip / norm)
                    parameter -= factor * peaks(name) * velocity[name]
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(labels))
    return losses


def vit_rate(name):
    """Of four blocks: .65^5 before them, .65^(4 - k) in block k, .65 after them, 1 in the head."""
    if name.startswith("head"):
        return 0.5
    if name.startswith("backbone.blocks"):
        return 0.5 * 0.65 ** (4 - int(name.split(".")[2]))
    return 0.5 * (0.65 if name.startswith("backbone.norm") else 0.65**5)


@pytest.mark.parametrize(
    ("model", "peaks", "smoothing"),
    [("tiny-resnet-random", lambda name: 0.5, 0.0), ("tiny-vit-random", vit_rate, 0.1)],
)
def test_a_training_is_what_a_plain_loop_computes(model, peaks, smoothing, tmp_path):
    protocol = f"finetune-marks{LENGTH}+lr=0.5+lr_batch=0+crop=centre+drop_path=0"
    work = work_of(protocol, model, seed=3)
    net, after, curves = trained(work, tmp_path)
    losses = plain_loop(
        net, work.splits["train"], peaks=peaks, epochs=3, batch=10, seed=3,
        smoothing=smoothing, clip=0.5,
    )  # fmt: skip
    assert curves.loss == pytest.approx(losses, rel=1e-5)
    expected = net.state_dict()
    for name, found in after.state_dict().items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("ending", ["", "-bn"])
@pytest.mark.parametrize("form", ["", "-literal"])
def test_a_small_network_is_trained_as_a_plain_loop_does(form, ending, tmp_path):
    # a start so wide that all layers are seen to move in nine steps
    changes = "+hidden=16+head_std=0.3+lr=0.5+lr_batch=0+crop=centre"
    work = work_of(f"linear-marks{form}-mlp{ending}{LENGTH}{changes}", seed=3)
    net, after, curves = trained(work, tmp_path)
    train = work.splits["train"]
    images = torch.from_numpy(np.ascontiguousarray(train.read.pixels.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(train.labels)
    backbone = net.backbone.train(form == "-literal")
    first, second, third = (layer for layer in net.head if isinstance(layer, nn.Linear))
    sizes = [tuple(layer.weight.shape) for layer in (first, second, third)]
    assert sizes == [(16, 128), (16, 16), (3, 16)]
    norm = nn.BatchNorm1d(128) if ending else nn.Identity()
    learnt = [p for layer in (norm, first, second, third) for p in layer.parameters()]
    optimiser = torch.optim.SGD(learnt, momentum=0.9)
    losses = []
    for epoch, factor in enumerate((1 / 2, 1, 1 / 2)):  # warm-up of one, then a cosine over two
        optimiser.param_groups[0]["lr"] = 0.5 * factor
        order = torch.from_numpy(np.random.default_rng([3, epoch]).permutation(24))
        total = 0.0
        for rows in order.split(10):
            with torch.no_grad():
                features = backbone((images[rows] / 255 - 0.5) / 0.5)
            logits = third(second(first(norm(features)).relu()).relu())
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, 0.5)
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / 24)
    assert curves.loss == pytest.approx(losses, rel=1e-5)
    start = work.net().head.parameters()
    for one, found, expected in zip(start, after.head.parameters(), learnt, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, one, rtol=1e-3, atol=1e-3)


def test_each_layer_of_the_head_starts_as_published():
    for seed in (0, 1):
        head = work_of("linear-marks-mlp-bn", seed=seed).net().head
        kinds = [nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
        assert [type(layer) for layer in head] == kinds
        for layer, shape in zip(head[1::2], [(1000, 128), (1000, 1000), (3, 1000)], strict=True):
            assert layer.weight.shape == shape
            assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
            assert not layer.bias.any()
    own = work_of("finetune-ericsson+head=mlp").net().head
    bounds = [float(layer.weight.detach().abs().max()) for layer in own[::2]]
    assert bounds == pytest.approx([128**-0.5, 1000**-0.5, 1000**-0.5], rel=0.01)


def test_the_head_starts_as_published():
    for protocol, spread in (("finetune-marks", 0.01), ("finetune-ericsson", 128**-0.5 / 3**0.5)):
        head = work_of(protocol, dataset=toy(classes=10)).net().head[-1]
        assert float(head.weight.detach().std()) == pytest.approx(spread, rel=0.1)
        if spread == 0.01:
            assert not head.bias.any()
    norm, _ = work_of("finetune-marks-bn").net().head
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.eps, norm.momentum, norm.affine, norm.num_features) == (1e-5, 0.1, True, 128)


@pytest.mark.parametrize("model", ["tiny-resnet-random", "tiny-vit-random"])
def test_a_small_set_is_learnt_by_heart(model, tmp_path):
    rng = np.random.default_rng(1)  # labels that nothing but the very images tells
    dataset = toy(per_class=4, labels=lambda kinds: rng.permutation(kinds).astype(np.int64))
    protocol = "finetune-tiny+epochs=100+batch_size=6"
    *_, curves = trained(work_of(protocol, model, dataset), tmp_path)
    assert curves.accuracy[-1] == 1
    assert curves.loss[-1] < 0.1 < curves.loss[0]


def moved(before, after):
    """Whether the backbone's convolutions and whether its running statistics have changed."""
    pairs = zip(before.backbone.parameters(), after.backbone.parameters(), strict=True)
    layers = zip(batch_norms(before.backbone), batch_norms(after.backbone), strict=True)
    statistics = [
        not torch.equal(getattr(one, name), getattr(other, name))
        for one, other in layers
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    # a BatchNorm's weight before another BatchNorm has no gradient, whatever is trained
    parameters = [not torch.equal(one, other) for one, other in pairs if one.ndim == 4]
    assert any(parameters) == all(parameters)
    assert any(statistics) == all(statistics)
    return all(parameters), all(statistics)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("linear-marks", (False, False)),
        ("linear-marks-bn", (False, False)),
        ("linear-marks-literal", (False, True)),
        ("finetune-marks", (True, True)),
        ("finetune-marks+backbone_bn=frozen", (True, False)),
    ],
)
def test_what_stays_as_shipped_and_what_moves(protocol, expected, tmp_path):
    work = work_of(protocol + LENGTH)
    before, after, _ = trained(work, tmp_path)
    assert moved(before, after) == expected
    assert not torch.equal(before.head[-1].weight, after.head[-1].weight)
    shipped = work.asked.model.module.state_dict()
    if not expected[0]:
        for one, other in zip(
            before.backbone.parameters(), after.backbone.parameters(), strict=True
        ):
            assert torch.equal(one, other)
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(value, shipped[name])  # the model itself was not touched


def test_a_frozen_backbone_embeds_as_shipped_and_a_literal_one_by_the_batch(tmp_path):
    images = torch.from_numpy(toy().split("train").read.pixels).permute(0, 3, 1, 2)
    found = {}
    for protocol in ("linear-marks", "linear-marks-literal"):
        net = work_of(protocol + LENGTH).net()
        net.head = nn.Identity()
        found[protocol] = net.train()(images[:10]), net.eval()(images[:10])
    train, evaluated = found["linear-marks"]
    assert torch.equal(train, evaluated)
    assert not train.requires_grad
    literal, drifted = found["linear-marks-literal"]
    assert not torch.allclose(literal, train, atol=1e-3)
    assert not torch.allclose(drifted, evaluated, atol=1e-4)


def test_parts_of_a_batch_add_up_to_it(tmp_path):
    protocol = f"finetune-marks{LENGTH}+drop_path=0+crop=centre"
    _, whole, curves = trained(work_of(protocol, "tiny-vit-random"), tmp_path / "a")
    work = work_of(protocol, "tiny-vit-random", accumulate=3)
    _, parts, same = trained(work, tmp_path / "b")
    assert same.loss == pytest.approx(curves.loss, rel=1e-5)
    assert same.accuracy == curves.accuracy
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class StopError(Exception):
    pass


@pytest.mark.parametrize("model", ["tiny-resnet-random", "tiny-vit-random"])
@pytest.mark.parametrize("at", [2, 3, 5])
def test_resumed_it_ends_in_the_same_bits(model, at, tmp_path, every_step):
    work = work_of("finetune-marks-bn+steps=8+batch_size=10+warmup=2", model)
    _, whole, curves = trained(work, tmp_path / "whole")

    def stop(done, total, record):
        if done == at:
            raise StopError

    with pytest.raises(StopError):
        trained(work, tmp_path / "cut", tell=stop)
    assert len(list((tmp_path / "cut").iterdir())) == 2
    torch.manual_seed(at)  # what others draw meanwhile
    steps = []
    _, resumed, same = trained(
        work, tmp_path / "cut", tell=lambda done, total, record: steps.append(done)
    )
    assert steps == list(range(at + 1, 9))
    assert (same.loss, same.accuracy) == (curves.loss, curves.accuracy)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_stochastic_depth_is_drawn_anew_in_each_step_and_leaves_the_generator_alone(tmp_path):
    protocol = f"finetune-marks{LENGTH}+crop=centre+drop_path="
    state = torch.get_rng_state()
    _, none, _ = trained(work_of(f"{protocol}0", "tiny-vit-random"), tmp_path / "a")
    _, some, _ = trained(work_of(f"{protocol}0.5", "tiny-vit-random"), tmp_path / "b")
    _, again, _ = trained(work_of(f"{protocol}0.5", "tiny-vit-random"), tmp_path / "c")
    _, other, _ = trained(work_of(f"{protocol}0.5", "tiny-vit-random", seed=1), tmp_path / "d")
    weights = [net.backbone.blocks[0].norm1.weight for net in (none, some, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checkpoint_that_was_cut_off_is_passed_over_and_said(tmp_path, caplog):
    kept = Checkpoints(tmp_path, "00")
    for step in range(1, 5):
        kept.save(step, {"done": step, "x": torch.ones(3)})
    assert [path.name for path in kept.paths()] == ["00-000000003.pt", "00-000000004.pt"]
    last = kept.paths()[-1]
    last.write_bytes(last.read_bytes()[:100])
    assert kept.load()["done"] == 3
    assert "00-000000004.pt cannot be read" in caplog.text
    kept.clear()
    assert kept.load() is None


def test_a_training_that_diverges_says_where_and_keeps_no_such_state(
    tmp_path, monkeypatch, every_step
):
    plain, calls = Net.forward, []

    def forward(self, images):
        calls.append(0)
        return plain(self, images) * (math.inf if len(calls) == 5 else 1)

    monkeypatch.setattr(Net, "forward", forward)
    work = work_of(f"finetune-tiny{LENGTH}")
    with pytest.raises(DivergedError, match=r"at step 5 of 9, in epoch 2\. Lower .*lr=0\.03$"):
        trained(work, tmp_path)
    assert [path.name[-6:] for path in Checkpoints(tmp_path, "00").paths()] == ["003.pt", "004.pt"]


@pytest.mark.parametrize("clip", [0.01, 0.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_clipped_at_their_own_scale_whatever_the_precision(precision, clip, tmp_path):
    # fp16's gradients are scaled by 65536 until the step, and a norm of that would be clipped
    protocol = f"finetune-tiny+steps=1+batch_size=8+warmup=0+momentum=0+lr=0.1+clip={clip}"
    before, after, _ = trained(work_of(protocol, precision=precision), tmp_path / "a")
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    moved = math.sqrt(sum(float((one - other).detach().square().sum()) for one, other in pairs))
    if clip:
        assert moved == pytest.approx(0.1 * clip, rel=1e-3)
    else:
        assert moved > 0.1  # so that clipping has something to do


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs C++"
)
def test_compiled_it_is_the_same_training_and_its_checkpoints_go_on_without(
    tmp_path, every_step, monkeypatch
):
    protocol = "finetune-tiny+steps=3+batch_size=8+warmup=0"
    compiler, seen = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda net: seen.append(type(net)) or compiler(net))

    def stop(done, total, record):
        raise StopError

    _, plain, curves = trained(work_of(protocol), tmp_path / "plain")
    for name, compiled in (("plain_cut", False), ("compiled", True)):
        with pytest.raises(StopError):
            trained(work_of(protocol, compile=compiled), tmp_path / name, tell=stop)
    assert seen == [Net]
    one, other = (Checkpoints(tmp_path / name, "00").load() for name in ("plain_cut", "compiled"))
    assert one["done"] == other["done"] == 1
    assert list(one["net"]) == list(other["net"])
    torch.testing.assert_close(other["sums"], one["sums"], rtol=1e-5, atol=1e-5)
    for name, value in one["net"].items():
        torch.testing.assert_close(other["net"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    _, resumed, same = trained(work_of(protocol), tmp_path / "compiled")
    assert same.loss == pytest.approx(curves.loss, rel=1e-5)
    for (name, value), found in zip(
        plain.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5, msg=name)


def test_reduced_precision_trains_nearly_the_same(tmp_path):
    _, plain, _ = trained(work_of(f"finetune-tiny{LENGTH}"), tmp_path / "a")
    _, short, curves = trained(work_of(f"finetune-tiny{LENGTH}", precision="bf16"), tmp_path / "b")
    assert np.isfinite(curves.loss).all()
    one, other = plain.head[-1].weight, short.head[-1].weight
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0.2, atol=0.02)
    laid = copy.deepcopy(work_of(f"finetune-tiny{LENGTH}", channels_last=True))
    _, last, _ = trained(laid, tmp_path / "c")
    weight = last.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.head[-1].weight, one, rtol=1e-3, atol=1e-4)
