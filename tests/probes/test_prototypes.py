"""Class means against scikit-learn, and episodes against a plain loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from torchmetrics.functional.classification import multiclass_calibration_error

from featstore import probes
from featstore.datasets import ArrayImages, ImageSplit
from featstore.errors import NotApplicableError
from featstore.finetuning import get as finetuning
from featstore.finetuning.data import drawn_rows as shown_by
from featstore.probes import Data

from .conftest import make_data, make_task


def run(name, task):
    ((_, measured),) = probes.run([probes.get(name)], task)
    if isinstance(measured, Exception):
        raise measured
    return measured


def test_the_nearest_mean_is_scikit_learns_nearest_centroid(data):
    x, y, z, t = data
    expected = NearestCentroid().fit(x.astype(np.float64), y).predict(z.astype(np.float64))
    found = run("ncm", make_task(x, y, z, t, train_edges=(17, 100))).outcomes["top5"][:, 0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shrinkage", [0.1, 0.0, 1.0])
def test_lda_is_scikit_learns(data, shrinkage):
    x, y, z, t = data
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    expected = reference.fit(x.astype(np.float64), y).predict_log_proba(z.astype(np.float64))
    task = make_task(x, y, z, t, train_edges=(17, 100))
    found = run(f"lda+shrinkage={shrinkage}", task).outcomes
    np.testing.assert_array_equal(found["top5"][:, 0], expected.argmax(axis=1))
    np.testing.assert_allclose(
        found["top5_score"], -np.sort(-expected, axis=1)[:, :5], rtol=1e-4, atol=1e-5
    )


def test_lda_fits_its_temperature_on_an_official_val_split_alone(data, assert_least_loss):
    x, y, z, t = data
    assert probes.get("lda").splits(["train", "val", "test"]) == ("train", "val", "test")
    assert probes.get("lda").splits(["train", "test"]) == ("train", "test")
    task = make_task(x[:-80], y[:-80], z, t)
    plain = run("lda", task)
    measured = run("lda", replace(task, val=Data.of_arrays(x[-80:], y[-80:])))
    np.testing.assert_array_equal(measured.outcomes["top5_score"], plain.outcomes["top5_score"])
    assert "ece_scaled_val" not in plain.metrics
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    reference.fit(x[:-80].astype(np.float64), y[:-80])
    temperature = measured.certificate["temperature"]
    assert_least_loss(temperature, reference.predict_log_proba(x[-80:].astype(np.float64)), y[-80:])
    scaled = torch.from_numpy(reference.decision_function(z.astype(np.float64)) / temperature)
    error = multiclass_calibration_error(
        scaled.softmax(dim=1), torch.from_numpy(t), num_classes=4, n_bins=15
    )
    assert measured.metrics["ece_scaled_val"]["value"] == pytest.approx(float(error), abs=1e-5)


def test_lda_leaves_val_rows_out_whose_category_train_lacks(data):
    x, y, z, t = data
    rows, val = y[:-80] != 2, y[-80:] != 2
    task = make_task(x[:-80][rows], y[:-80][rows], z[t != 2], t[t != 2])
    whole, kept = (
        run("lda", replace(task, val=Data.of_arrays(x[-80:][of], y[-80:][of]))).certificate
        for of in (slice(None), val)
    )
    assert whole["temperature"] == pytest.approx(kept["temperature"])


@pytest.mark.parametrize("name", ["ncm", "lda"])
def test_a_category_without_train_rows_is_never_predicted(data, name):
    x, y, z, t = data
    kept, asked = y != 2, t != 2
    found = run(name, make_task(x[kept], y[kept], z[asked], t[asked])).outcomes["top5"][:, 0]
    assert set(found) == {0, 1, 3}


def test_episodes_are_the_loop_of_the_paper():
    x, y, z, t = make_data(n_train=160, n_test=120, n_categories=6)
    name = "fewshot-5shot-ericsson+episodes=40+queries=7"
    measured = run(name, make_task(x, y, z, t, seed=3))
    rows, labels = np.concatenate([x, z]).astype(np.float64), np.concatenate([y, t])
    rng = np.random.default_rng(3)
    expected = []
    for _ in range(40):
        chosen = rng.choice(6, 5, replace=False)
        drawn = {c: rng.choice(np.flatnonzero(labels == c), 12, replace=False) for c in chosen}
        means = {c: rows[d[:5]].mean(axis=0) for c, d in drawn.items()}
        right = [
            min(means, key=lambda m: np.sum((rows[i] - means[m]) ** 2)) == c
            for c, d in drawn.items()
            for i in d[5:]
        ]
        expected.append(np.mean(right))
    np.testing.assert_allclose(measured.outcomes["accuracy"], expected, atol=1e-6)
    ends = measured.metrics["episodes"]
    assert ends["value"] == pytest.approx(np.mean(expected), abs=1e-6)
    half = 1.96 * np.std(expected) / np.sqrt(40)
    assert ends["high"] - ends["value"] == pytest.approx(half, rel=1e-4)


def test_episodes_draw_from_val_as_well():
    protocol = probes.get("fewshot-5shot-ericsson")
    assert protocol.splits(["test", "train", "train+aug0", "val"]) == ("train", "val", "test")
    assert protocol.splits(["test", "train"]) == ("train", "test")


def test_too_few_images_for_an_episode_are_said(data):
    with pytest.raises(NotApplicableError, match=r"takes 5 categories of 65 images or more, and 4"):
        run("fewshot-50shot-ericsson", make_task(*data))


@pytest.mark.parametrize("name", ["fewshot-5shot-ericsson+ways=1", "ncm+shots=-1"])
def test_settings_that_mean_nothing_are_refused(name):
    with pytest.raises(probes.UnknownNameError, match="must be"):
        probes.get(name)


def shown(task, shots):
    """Positions in the dataset of the train rows that a protocol of so many shots sees."""
    return set(task.few(shots).train.index)


@pytest.mark.parametrize("shots", [1, 3])
def test_shots_are_as_many_rows_of_each_category(data, shots):
    task = make_task(*data, seed=5, train_edges=(31, 90)).few(shots)
    assert np.bincount(task.train.labels).tolist() == [shots] * 4
    x, y, _, _ = data
    features, labels = task.train.rows()
    np.testing.assert_array_equal(features, x[task.train.index])
    np.testing.assert_array_equal(labels, y[task.train.index])
    np.testing.assert_allclose(task.train.mean, features.mean(axis=0), rtol=1e-5)


def test_draws_are_nested_seeded_and_the_same_in_any_order_of_rows(data):
    x, y, z, t = data
    task = make_task(x, y, z, t, seed=5)
    assert shown(task, 2) < shown(task, 5)
    assert shown(task, 5) == shown(make_task(x, y, z, t, seed=5, train_edges=(7,)), 5)
    assert shown(task, 5) != shown(make_task(x, y, z, t, seed=6), 5)
    order = np.random.default_rng(0).permutation(len(y))  # as another store may hold them
    stored = replace(Data.of_arrays(x[order], y[order]), index=order)
    assert shown(replace(task, train=stored), 5) == shown(task, 5)


@pytest.mark.parametrize("name", ["lda+shots=1", "gbc+shots=1", "nleep+shots=5"])
def test_what_needs_spread_within_categories_does_not_apply_without(name, data):
    with pytest.raises(NotApplicableError, match="needs .*train images"):
        run(name, make_task(*data))


def test_more_shots_than_a_category_has_do_not_apply(data):
    x, y, z, t = data
    kept = (y != 1) | (np.cumsum(y == 1) <= 3)
    found = dict(
        probes.run(
            [probes.get("ncm-5shot"), probes.get("ncm-2shot")],
            make_task(x[kept], y[kept], z, t),
        )
    )
    by_name = {protocol.name: measured for protocol, measured in found.items()}
    assert isinstance(by_name["ncm-5shot"], NotApplicableError)
    assert "5 train images of each category are asked for, and one has 3" in str(
        by_name["ncm-5shot"]
    )
    assert by_name["ncm-2shot"].metrics["top1"]["value"] > 0.3


@pytest.mark.parametrize("name", ["knn", "logreg", "ridge", "ncm"])
def test_a_few_shot_probe_is_the_probe_on_the_rows_drawn(data, name):
    x, y, z, t = data
    task = make_task(x, y, z, t, seed=2)
    found = run(f"{name}-5shot", task)
    few = task.few(5).train
    order = np.argsort(few.index)
    drawn = make_task(x[few.index][order], y[few.index][order], z, t, seed=2)
    alone = run(f"{name}-5shot+shots=0", drawn)
    assert found.metrics["top1"] == alone.metrics["top1"]


def photos(labels, n_categories):
    """A split of images with these labels, as fine-tuning draws from it."""
    read = ArrayImages(np.zeros((len(labels), 2, 2, 3), np.uint8))
    ids, names = (tuple(map(str, range(n))) for n in (len(labels), n_categories))
    return ImageSplit("photos", "train", ids, labels, names, read, read.content)


@pytest.mark.parametrize("part", ["fraction=.1", "fraction=.33", "shots=1", "shots=3"])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_draw_is_the_one_of_fine_tuning(data, part, seed):
    x, y, z, t = data
    kept = (y != 1) | (np.cumsum(y == 1) <= 3)  # one rare category
    x, y = x[kept], np.where(y[kept] == 3, 5, y[kept])  # and two that no row has
    z, t = z[t != 3], t[t != 3]
    shuffled = np.random.default_rng(0).permutation(len(y))  # as a store holds them
    stored = replace(Data.of_arrays(x[shuffled], y[shuffled]), index=shuffled)
    task = replace(make_task(x, y, z, t, seed=seed), train=stored, n_categories=6)
    protocol = probes.get(f"ncm+{part}")
    few = task.few(protocol.shots, protocol.fraction).train
    expected = shown_by(photos(y, 6), finetuning(f"finetune-marks+{part}"), seed)
    assert sorted(few.index) == expected.tolist()
    np.testing.assert_array_equal(few.rows()[0], x[few.index])
    if seed == 0 and "fraction" in part:  # as the authors' code draws
        count, rng = int(protocol.fraction * len(y) / 6), np.random.RandomState(42)
        rows = [np.flatnonzero(y == kind) for kind in (0, 1, 2, 5)]
        drawn = [rng.choice(of, min(count, len(of)), replace=False) for of in rows]
        assert expected.tolist() == sorted(np.concatenate(drawn))


def test_a_smaller_fraction_lies_within_a_larger_one_and_within_shots(data):
    task = make_task(*data, seed=5)
    draws = [*(task.few(0, part) for part in (0.1, 0.3, 0.7)), task.few(50)]
    rows = [set(draw.train.index) for draw in draws]
    assert rows[0] < rows[1] < rows[2] < rows[3]


def test_a_fraction_is_as_many_of_each_category_as_there_are_on_average(data):
    x, y, z, t = data
    kept = (y != 1) | (np.cumsum(y == 1) <= 3)
    task = make_task(x[kept], y[kept], z, t)
    n = int(kept.sum())
    assert np.bincount(task.few(0, 0.1).train.labels).tolist() == [
        min(int(0.1 * n / 4), 3 if c == 1 else 99) for c in range(4)
    ]
    found = run("ncm+fraction=.1", task).metrics["top1"]
    few = task.few(0, 0.1).train
    drawn = make_task(*few.rows(), z, t)
    assert found == run("ncm", drawn).metrics["top1"]


def test_a_fraction_that_is_none_is_refused_with_the_smallest(data):
    with pytest.raises(NotApplicableError, match=r"none for each of 4 .* smallest is 0\.016667"):
        run("ncm+fraction=.01", make_task(*data))
    with pytest.raises(NotApplicableError, match="none for each of 241 .* fewer images than"):
        run("ncm+fraction=1e-9", replace(make_task(*data), n_categories=241))


@pytest.mark.parametrize("name", ["ncm+fraction=0", "ncm+fraction=1.5", "ncm-1shot+fraction=.5"])
def test_fractions_that_mean_nothing_are_refused(name):
    with pytest.raises(probes.UnknownNameError, match="fraction lie in"):
        probes.get(name)
