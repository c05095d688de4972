"""Heads trained by SGD, each against a plain PyTorch loop written from its paper."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from featstore import probes
from featstore.errors import NotApplicableError, UnknownNameError
from featstore.probes import Data, held_out
from featstore.probes.linear import schedule_factor

from .conftest import make_data, make_task
from .test_prototypes import run


def with_views(x, y, z, t, n_views=3, **options):
    """Each view is the rows moved by something of its own."""
    task = make_task(x, y, z, t, **options)
    rng = np.random.default_rng(7)
    views = [x + rng.normal(size=x.shape).astype(np.float32) for _ in range(n_views)]
    return replace(task, views=[Data.of_arrays(view, y) for view in views]), views


def loop(head, batches, *, batch, epochs, warmup=5):
    """Marks et al.: SGD with momentum, gradients clipped at .5, schedule by epoch."""
    peak = 0.1 * batch / 256
    optimiser = torch.optim.SGD(head.parameters(), lr=peak, momentum=0.9)
    for epoch, of_epoch in enumerate(batches):
        optimiser.param_groups[0]["lr"] = peak * schedule_factor(epoch, epochs, warmup)
        for features, labels in of_epoch:
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(features), labels).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 0.5)
            optimiser.step()
    return head.eval()


def same(measured, head, z):
    with torch.inference_mode():
        expected = torch.log_softmax(head(torch.from_numpy(z)).double(), dim=1).numpy()
    np.testing.assert_array_equal(measured.outcomes["top5"][:, 0], expected.argmax(axis=1))
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], expected.max(axis=1), atol=1e-3
    )


@pytest.mark.parametrize("bn", [False, True])
def test_the_small_network_has_three_layers_and_relu_between(data, bn):
    x, y, z, t = data
    suffix = "-bn" if bn else ""
    name = f"linear-marks-1view-mlp{suffix}+hidden=16+epochs=8+batch_size=100"
    measured = run(name, make_task(x, y, z, t, seed=4))
    generator = torch.Generator().manual_seed(4)
    layers = [nn.BatchNorm1d(12)] if bn else []
    for a, b in ((12, 16), (16, 16), (16, 4)):
        layer = nn.Linear(a, b)
        nn.init.normal_(layer.weight, std=0.01, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    head = nn.Sequential(*layers[:-1])
    batches = []
    for _ in range(8):
        order = torch.randperm(240, generator=generator).numpy()
        batches.append(
            [(torch.from_numpy(x[r]), torch.from_numpy(y[r])) for r in np.split(order, [100, 200])]
        )
    same(measured, loop(head, batches, batch=100, epochs=8), z)


def test_a_view_is_drawn_for_each_image_and_epoch(data):
    x, y, z, t = data
    task, views = with_views(x, y, z, t, seed=4)
    measured = run("linear-marks-8view+views=3+epochs=8+batch_size=100", task)
    generator = torch.Generator().manual_seed(4)
    head = nn.Linear(12, 4)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    batches = []
    for _ in range(8):
        order = torch.randperm(240, generator=generator).numpy()
        drawn = torch.randint(3, (240,), generator=generator).numpy()
        rows = np.stack([views[drawn[i]][i] for i in range(240)])
        batches.append(
            [(torch.from_numpy(rows[r]), torch.from_numpy(y[r]))
             for r in np.split(order, [100, 200])]
        )  # fmt: skip
    same(measured, loop(head, batches, batch=100, epochs=8), z)


def test_what_has_no_views_is_refused_by_a_protocol_that_reads_them(data):
    with pytest.raises(NotApplicableError, match="featstore extract --views N"):
        run("linear-marks-8view+epochs=1", make_task(*data))


def test_views_of_other_images_are_refused(data):
    task, _ = with_views(*data)
    moved = replace(task.views[1], index=task.views[1].index + 1)
    with pytest.raises(probes.ProbeError, match="not of the same train images"):
        run("linear-marks-8view+views=3+epochs=1", replace(task, views=[task.views[0], moved]))


def test_the_eight_views_are_read_from_the_store():
    protocol = probes.get("linear-marks-8view-bn")
    views = [f"train+aug{i}" for i in range(8)]
    assert protocol.splits([]) == ("train", *views, "test")
    assert protocol.splits(["train", "val", "test"]) == ("train", *views, "val", "test")


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
@pytest.mark.parametrize("official", [False, True])
def test_the_grid_is_one_loop_for_each_rate_and_the_best_is_trained_again(metric, official):
    x, y, z, t = make_data(spread=2.5)
    rates = (1e-3, 1e-2, 0.1)
    task = replace(make_task(x, y, z, t, seed=3), metric=metric)
    if official:
        task = replace(make_task(x[:200], y[:200], z, t, seed=3), metric=metric,
                       val=Data.of_arrays(x[200:], y[200:]))  # fmt: skip
    name = "linear-dinov2+lrs_per_256=.001,.01,.1+iterations=60+batch_size=50"
    measured = run(name, task)

    def train(x, y, rate):
        generator = torch.Generator().manual_seed(3)
        head = nn.Linear(12, 4)
        nn.init.normal_(head.weight, std=0.01, generator=generator)
        nn.init.zeros_(head.bias)
        optimiser = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9)
        orders = []
        while len(orders) < 60:
            orders += list(torch.randperm(len(x), generator=generator).split(50))
        for step, rows in enumerate(orders[:60]):
            peak = rate * 50 / 256
            # As PyTorch does it, the rate scales the step and not the memory.
            optimiser.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / 60)) / 2
            optimiser.zero_grad()
            nn.functional.cross_entropy(
                head(torch.from_numpy(x)[rows]), torch.from_numpy(y)[rows]
            ).backward()
            optimiser.step()
        return head

    if official:
        kept, asked, every = (x[:200], y[:200]), (x[200:], y[200:]), (x[:200], y[:200])
    else:
        out = held_out.held_out_rows(y, 0.1, 3)
        kept, asked, every = (x[~out], y[~out]), (x[out], y[out]), (x, y)
    scores = []
    for rate in rates:
        logits = train(*kept, rate)(torch.from_numpy(asked[0]))
        right = logits.argmax(dim=1).numpy() == asked[1]
        by_class = [right[asked[1] == c].mean() for c in range(4)]
        scores.append(right.mean() if metric == "top1" else np.mean(by_class))
    assert measured.certificate[f"held_out_{metric}"] == pytest.approx(scores)
    best = int(np.argmax(scores))
    assert measured.certificate["lr_per_256"] == rates[best]
    same(measured, train(*every, rates[best]), z)


@pytest.mark.parametrize("name", ["linear-marks-1view", "linear-marks-1view-bn", "linear-dinov2"])
@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ("shots=-1", "shots must be 0 or more"),
        ("fraction=0", "fraction lie in 0..1 and not be 0"),
        ("shots=2+fraction=0.5", "one of them be given, got 2 and 0.5"),
        ("normalisation=average", "normalisation must be one of none,"),
    ],
)
def test_a_part_of_train_that_cannot_be_is_refused(name, settings, fault):
    with pytest.raises(UnknownNameError, match=fault):
        probes.get(f"{name}+{settings}")


def test_a_batchnorm_is_in_the_head_and_named_or_neither():
    with pytest.raises(UnknownNameError, match="normalisation is `bn` with head_bn, else `none`"):
        probes.get("linear-marks-1view+normalisation=bn")
    with pytest.raises(UnknownNameError, match="normalisation must be one of none, l2"):
        probes.get("linear-dinov2+normalisation=bn")


def test_thirteen_rates_are_tried():
    assert len(probes.get("linear-dinov2").lrs_per_256) == 13


def test_calibration_is_measured_before_and_after_scaling(data):
    measured = run("linear-dinov2+iterations=200", make_task(*data))
    assert set(measured.metrics) == {
        "top1", "top5", "mean_per_class", "ece", "ece_scaled", "ece_scaled_val",
    }  # fmt: skip
    assert measured.certificate["temperature"] > 0


@pytest.mark.parametrize("name", ["linear-marks-1view-bn+epochs=20", "linear-marks-1view+epochs=5"])
def test_an_official_val_split_fits_the_temperature_alone(name, data, assert_least_loss):
    x, y, z, t = data
    val = x[-80:], y[-80:]
    task = make_task(x[:-80], y[:-80], z, t)
    plain = run(name, task)
    measured = run(name, replace(task, val=Data.of_arrays(*val)))
    np.testing.assert_array_equal(measured.outcomes["top5_score"], plain.outcomes["top5_score"])
    assert "ece_scaled_val" not in plain.metrics
    asked = run(name, make_task(x[:-80], y[:-80], *val)).outcomes  # of four categories, all scores
    scores = np.take_along_axis(asked["top5_score"], asked["top5"].argsort(axis=1), axis=1)
    assert_least_loss(measured.certificate["temperature"], scores[:, -4:], val[1])
    tested = np.take_along_axis(
        measured.outcomes["top5_score"], measured.outcomes["top5"].argsort(axis=1), axis=1
    )[:, -4:]
    scaled = torch.from_numpy(tested / measured.certificate["temperature"]).softmax(dim=1)
    error = multiclass_calibration_error(scaled, torch.from_numpy(t), num_classes=4, n_bins=15)
    assert measured.metrics["ece_scaled_val"]["value"] == pytest.approx(float(error), abs=1e-5)
