"""Every protocol against scikit-learn or PyTorch on the same rows, and in any division of them."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

import featstore
from featstore import probes
from featstore.errors import ProbeError, UnknownNameError
from featstore.probes import held_out, linear
from featstore.probes import rows as probe_rows
from featstore.probes.data import smallest_fraction

from .conftest import make_data, make_task


def run(name, task):
    ((_, measured),) = probes.run([probes.get(name)], task)
    if isinstance(measured, Exception):
        raise measured
    return measured


def predictions(name, task):
    return run(name, task).outcomes["top5"][:, 0]


@pytest.mark.parametrize("name", ["knn-marks", "knn-marks-zscore", "knn-marks-zscore-own"])
def test_knn_marks_predicts_as_scikit_learn_does(name, data):
    x, y, z, t = (part.copy() for part in data)
    z[:9] = x[20:29]  # exact hits take the whole vote
    train, test = x.astype(np.float64), z.astype(np.float64)
    if name != "knn-marks":
        scaler = StandardScaler().fit(train)
        own = StandardScaler().fit(test) if name.endswith("own") else scaler
        train, test = scaler.transform(train), own.transform(test)
    reference = KNeighborsClassifier(20, weights="distance", metric="euclidean", algorithm="brute")
    expected = reference.fit(train, y).predict(test)
    np.testing.assert_array_equal(predictions(name, make_task(x, y, z, t)), expected)


@pytest.mark.parametrize("k", [10, 20, 100, 200])
def test_knn_dino_is_the_formula_of_the_paper(k, data):
    x, y, z, t = data
    unit = [
        a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True)
        for a in (x, z)
    ]
    similarity = unit[1] @ unit[0].T
    expected = []
    for row in similarity:
        nearest = np.argsort(-row, kind="stable")[:k]
        total = np.bincount(y[nearest], np.exp(row[nearest] / 0.07), minlength=4)
        expected.append(total.argmax())
    np.testing.assert_array_equal(predictions(f"knn-dino-k{k}", make_task(x, y, z, t)), expected)


def test_one_search_serves_every_k(data, monkeypatch):
    searched = []
    real = probes.neighbour_lists.search

    def counted(bank, queries, **options):
        searched.append((bank.metric, options["k"]))
        return real(bank, queries, **options)

    monkeypatch.setattr(probes.neighbour_lists, "search", counted)
    names = [f"knn-dino-k{k}" for k in (10, 20, 100, 200)]
    found = dict(probes.run([probes.get(n) for n in names], make_task(*data)))
    assert searched == [("cosine", 200)]
    for protocol, measured in found.items():
        alone = run(protocol.name, make_task(*data))
        np.testing.assert_array_equal(measured.outcomes["rank"], alone.outcomes["rank"])


def test_logreg_is_the_fit_of_scikit_learn_at_the_chosen_c(data):
    x, y, z, t = data
    measured = run("logreg", make_task(x, y, z, t))
    chosen = measured.certificate
    assert chosen["converged"]
    assert chosen["excess"] <= 1e-4
    reference = LogisticRegression(C=chosen["C"], tol=1e-10, max_iter=100_000).fit(
        x.astype(np.float64), y
    )
    expected = reference.predict_log_proba(z.astype(np.float64))
    top = measured.outcomes["top5"][:, 0]
    assert (top == expected.argmax(axis=1)).mean() > 0.99
    own = np.take_along_axis(expected, top[:, None].astype(int), axis=1)[:, 0]
    np.testing.assert_allclose(measured.outcomes["top5_score"][:, 0], own, atol=0.05)


def test_logreg_chooses_c_on_rows_it_was_not_fitted_on(data):
    x, y, z, t = data
    protocol = probes.get("logreg")
    out = held_out.held_out_rows(y, protocol.held_out, seed=0)
    accuracies = []
    for exponent in protocol.log10_c:
        model = LogisticRegression(C=10.0**exponent, tol=1e-8, max_iter=50_000)
        accuracies.append(model.fit(x[~out].astype(np.float64), y[~out]).score(x[out], y[out]))
    best = 10.0 ** protocol.log10_c[int(np.argmax(accuracies))]
    assert run("logreg", make_task(x, y, z, t)).certificate["C"] == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_logreg_does_not_choose_a_c_whose_converged_fit_is_far_worse(seed):
    # A fit that stops early at a tiny C guesses well, and its optimum is one class for all.
    rng = np.random.default_rng(seed)
    sides = []
    for n in (300, 200):
        y = np.sort(rng.integers(0, 3, n))
        x = rng.normal(size=(n, 7)).astype(np.float32)
        x[np.arange(n), y] += 2
        sides += [x, y]
    x, y, z, t = sides
    best = max(
        LogisticRegression(C=10.0**c, max_iter=5000, tol=1e-8).fit(x, y).score(z, t)
        for c in range(-6, 6)
    )
    found = featstore.score(x, y, z, t, protocol="logreg")["top1"]["value"]
    assert found > best - 0.05


def test_logreg_of_two_classes_has_scikit_learns_c():
    x, y, z, t = make_data(3, n_categories=2)
    measured = run("logreg+log10_c=-1+tolerance=1e-9", make_task(x, y, z, t))
    reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000).fit(x.astype(np.float64), y)
    expected = reference.predict_log_proba(z.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(measured.outcomes["top5_score"][:, 0], expected, atol=1e-3)


@pytest.mark.parametrize("n", [25, 240])
def test_held_out_rows_are_a_stratified_tenth(n):
    labels = np.arange(n) % 4
    mask = held_out.held_out_rows(labels, 0.1, seed=1)
    assert mask.sum() == n // 10
    assert np.ptp(np.bincount(labels[mask], minlength=4)) <= 1
    others = [held_out.held_out_rows(labels, 0.1, seed) for seed in range(5)]
    assert len({other.tobytes() for other in others}) > 1


def test_held_out_rows_never_take_a_whole_category():
    labels = np.array([0] * 30 + [1])
    for seed in range(20):
        mask = held_out.held_out_rows(labels, 0.1, seed)
        assert not mask[30]
        assert mask.any()


@pytest.mark.parametrize("shots", [2, 3, 7])
def test_of_few_rows_each_is_held_out_once_and_no_category_is_lost(shots):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(9), shots))
    masks = held_out.folds(labels, 0.1, seed=3)
    assert len(masks) == min(shots, 5)
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    for mask in masks:
        assert set(labels[~mask]) == set(range(9))
    again = held_out.folds(labels, 0.1, seed=4)
    assert not np.array_equal(masks, again)


def test_a_category_of_one_row_is_never_held_out_and_of_such_alone_none():
    labels = np.array([0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(np.sum(held_out.folds(labels, 0.1, 0), axis=0), labels > 0)
    assert held_out.folds(np.arange(6), 0.1, 0) == []
    assert len(held_out.folds(np.arange(240) % 4, 0.1, 0)) == 1  # enough for one share


def test_logreg_of_few_rows_chooses_c_over_folds(data):
    x, y, z, t = data
    task = make_task(x, y, z, t, seed=1).few(6)
    few, labels = task.train.rows()
    masks = held_out.folds(labels, 0.1, seed=1)
    scores = []
    for exponent in probes.get("logreg").log10_c:
        right = np.zeros(len(labels), bool)
        for out in masks:
            model = LogisticRegression(C=10.0**exponent, tol=1e-8, max_iter=50_000)
            model.fit(few[~out].astype(np.float64), labels[~out])
            right[out] = model.predict(few[out]) == labels[out]
        scores.append(right.mean())
    found = run("logreg+path_tolerance=1e-10+shots=6", make_task(x, y, z, t, seed=1)).certificate
    assert found["held_out_top1"] == pytest.approx(scores)
    assert found["C"] == pytest.approx(10.0 ** probes.get("logreg").log10_c[np.argmax(scores)])
    assert (found["folds"], found["held_out_rows"], found["train_rows"]) == (5, 24, 24)


def test_logreg_of_one_row_of_each_category_takes_c_of_1(data):
    x, y, z, t = data
    task = make_task(x, y, z, t, seed=1)
    measured = run("logreg+shots=1+tolerance=1e-9", task)
    few, labels = task.few(1).train.rows()
    model = LogisticRegression(C=1, tol=1e-10, max_iter=100_000).fit(few.astype(float), labels)
    assert measured.metrics["top1"]["value"] == pytest.approx(model.score(z, t))
    assert (measured.certificate["C"], measured.certificate["held_out_rows"]) == (1, 0)
    assert not measured.certificate["C_at_edge"]


@pytest.mark.parametrize("categories", [2, 3, 29, 100])
def test_the_smallest_fraction_that_is_named_gives_one_of_each(categories):
    for rows in range(categories, 2000, 7):
        named = float(smallest_fraction(rows, categories).removeprefix("the smallest is "))
        assert int(named * rows / categories) == 1
        assert int((named - 2e-6) * rows / categories) == 0


def test_ridge_is_scikit_learns_with_lambda_by_leave_one_out(data):
    x, y, z, t = data
    targets = LabelBinarizer().fit_transform(y).astype(np.float64)
    grid = [10.0**e for e in probes.get("ridge").log10_lambda]
    reference = RidgeCV(alphas=grid).fit(x.astype(np.float64), targets)
    measured = run("ridge", make_task(x, y, z, t))
    assert measured.certificate["lambda"] == pytest.approx(reference.alpha_)
    expected = reference.predict(z.astype(np.float64))
    np.testing.assert_array_equal(measured.outcomes["top5"][:, 0], expected.argmax(axis=1))
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], expected.max(axis=1), atol=1e-5
    )


PUBLISHED = {0: 0.1667, 1: 0.3333, 2: 0.5, 3: 0.6667, 4: 0.8333, 5: 1.0, 50: 0.54129, 99: 0.00027}


@pytest.mark.parametrize(("epoch", "factor"), PUBLISHED.items())
def test_the_schedule_has_the_published_factors(epoch, factor):
    digits = 4 if epoch < 6 else 5
    assert round(linear.schedule_factor(epoch, 100, 5), digits) == factor


def test_linear_marks_is_sgd_written_out_by_hand(data):
    """Momentum, clipping, schedule and batches as the protocol states them, in numpy."""
    x, y, z, t = data
    name = "linear-marks-1view+epochs=12+batch_size=100+warmup=5"
    measured = run(name, make_task(x, y, z, t, seed=4))
    generator = torch.Generator().manual_seed(4)
    weight = torch.empty(4, 12)
    torch.nn.init.normal_(weight, std=0.01, generator=generator)
    w = np.concatenate([weight.numpy().T, np.zeros((1, 4))]).astype(np.float64)
    ones = np.hstack([x, np.ones((len(x), 1))]).astype(np.float64)
    velocity = np.zeros_like(w)
    for epoch in range(12):
        lr = 0.1 * 100 / 256
        lr *= (epoch + 1) / 6 if epoch < 5 else (1 + math.cos(math.pi * (epoch - 5) / 7)) / 2
        order = torch.randperm(len(x), generator=generator).numpy()
        for rows in (order[:100], order[100:200], order[200:]):
            probabilities = np.exp(log_softmax(ones[rows] @ w, axis=1))
            gradient = ones[rows].T @ (probabilities - np.eye(4)[y[rows]]) / len(rows)
            gradient *= min(1, 0.5 / (np.linalg.norm(gradient) + 1e-6))
            velocity = 0.9 * velocity + gradient
            w -= lr * velocity
    expected = log_softmax(np.hstack([z, np.ones((len(z), 1))]) @ w, axis=1)
    top = measured.outcomes["top5"][:, 0]
    np.testing.assert_array_equal(top, expected.argmax(axis=1))
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], expected.max(axis=1), atol=1e-3
    )


def test_head_bn_makes_the_scale_of_features_irrelevant(data):
    x, y, z, t = data
    name = "linear-marks-1view-bn+epochs=30"
    plain = run(name, make_task(x, y, z, t)).metrics["top1"]["value"]
    scaled = run(name, make_task(x * 1000 + 5, y, z * 1000 + 5, t)).metrics["top1"]["value"]
    assert plain == pytest.approx(scaled, abs=0.02)
    assert plain > 0.7


def test_a_last_batch_of_one_joins_its_neighbour():
    sizes = [len(b) for b in linear._batches(torch.arange(21), 5)]
    assert sizes == [5, 5, 5, 6]
    assert [len(b) for b in linear._batches(torch.arange(1), 5)] == [1]


ALL = [
    *probes.expand(["core"]),
    "linear-marks-1view-mlp+epochs=20",
    "linear-marks-1view-mlp-bn+epochs=20",
    "linear-dinov2+iterations=200",
    # as tight as it can be: at the edge of the tolerance another C may win
    "logreg-ericsson+log10_c=-2,-1,0,1+path_tolerance=1e-8+tolerance=1e-11",
    "logreg-5shot",
]
SCORES = [
    *(name for name in probes.expand(["free"]) if name != "alpha-req"),  # wants more features
    "fewshot-5shot-ericsson+ways=3+episodes=50",
]


@pytest.mark.parametrize("name", ALL)
def test_any_division_into_blocks_gives_the_same_answer(name, data, monkeypatch):
    whole = run(name, make_task(*data))
    for held_bytes in (2**30, 0):  # with the rows in memory, and read again at every pass
        monkeypatch.setattr(probe_rows, "HOLD_BYTES", held_bytes)
        divided = run(
            name, make_task(*data, train_edges=(1, 90, 91), test_edges=(70,), parallel=True)
        )
        np.testing.assert_array_equal(divided.outcomes["rank"], whole.outcomes["rank"])
        np.testing.assert_allclose(
            divided.outcomes["top5_score"], whole.outcomes["top5_score"], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", SCORES)
def test_scores_do_not_depend_on_the_division_either(name, data):
    whole = run(name, make_task(*data, seed=1))
    divided = run(
        name, make_task(*data, seed=1, train_edges=(1, 90, 91), test_edges=(70,), parallel=True)
    )
    for metric, ends in whole.metrics.items():
        assert divided.metrics[metric]["value"] == pytest.approx(ends["value"], rel=1e-6)


@pytest.mark.parametrize("name", [*ALL, *SCORES])
def test_the_same_seed_gives_the_same_bits(name, data):
    first, second = (run(name, make_task(*data, seed=3)) for _ in range(2))
    for array in first.outcomes:
        np.testing.assert_array_equal(first.outcomes[array], second.outcomes[array])


def test_metrics_are_those_of_torchmetrics(data):
    x, y, z, t = data
    t = t.copy()
    t[:40] = 0  # unbalanced, so that the mean per class is another number
    reference = KNeighborsClassifier(20, weights="distance", algorithm="brute").fit(x, y)
    share = torch.from_numpy(reference.predict_proba(z))
    metrics = run("knn-marks", make_task(x, y, z, t)).metrics
    labels = torch.from_numpy(t)
    top1 = multiclass_accuracy(share, labels, 4, average="micro")
    assert metrics["top1"]["value"] == pytest.approx(float(top1))
    mean = multiclass_accuracy(share, labels, 4, average="macro")
    assert metrics["mean_per_class"]["value"] == pytest.approx(float(mean))
    error = multiclass_calibration_error(share, labels, 4, n_bins=15, norm="l1")
    assert metrics["ece"]["value"] == pytest.approx(float(error), abs=1e-5)
    for name in ("top1", "mean_per_class"):
        ends = metrics[name]
        assert ends["low"] < ends["value"] < ends["high"]


@pytest.mark.parametrize(
    "name", ["logreg+log10_c=1,2", "linear-marks-1view+epochs=30", "linear-dinov2+iterations=300"]
)
def test_calibration_after_scaling_is_that_of_temperatures_fitted_on_test(name):
    x, y, z, t = make_data(5, n_test=151, spread=3.0)
    measured = run(name, make_task(x, y, z, t, test_edges=(40, 99)))
    kept = measured.outcomes  # four categories, so that the best five are all
    log_proba = np.empty((151, 4))
    np.put_along_axis(log_proba, kept["top5"][:, :4].astype(int), kept["top5_score"][:, :4], axis=1)

    def error(rows, temperature):
        scaled = torch.softmax(torch.from_numpy(log_proba[rows] / temperature), dim=1)
        truth = torch.from_numpy(t[rows])
        return float(multiclass_calibration_error(scaled, truth, 4, n_bins=15, norm="l1"))

    errors = []
    for fold in range(5):  # of every fifth row, each measured on the others
        inside = np.zeros(151, bool)
        inside[fold::5] = True

        def loss(logs, rows=inside):
            return -log_softmax(log_proba[rows] / np.exp(logs[0]), axis=1)[
                np.arange(rows.sum()), t[rows]
            ].sum()

        best = minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
        errors.append(error(~inside, np.exp(best.x[0])))
    value = measured.metrics["ece_scaled"]["value"]
    assert value == pytest.approx(np.mean(errors), abs=1e-4)
    assert abs(value - measured.metrics["ece"]["value"]) > 1e-3
    if "temperature" in measured.certificate:
        expected = error(np.ones(151, bool), measured.certificate["temperature"])
        assert measured.metrics["ece_scaled_val"]["value"] == pytest.approx(expected, abs=1e-5)


def test_score_takes_plain_arrays(data):
    x, y, z, t = data
    found = featstore.score(x, y, z, t, protocol="knn-marks")
    expected = KNeighborsClassifier(20, weights="distance", algorithm="brute").fit(x, y).score(z, t)
    assert found["top1"]["value"] == pytest.approx(expected)


def test_an_override_is_another_name_and_another_number(data):
    x, y, z, t = data
    assert probes.get("knn-marks+k=1").name == "knn-marks+k=1"
    assert probes.get("knn-marks").k == 20
    expected = KNeighborsClassifier(1).fit(x.astype(np.float64), y).predict(z.astype(np.float64))
    np.testing.assert_array_equal(predictions("knn-marks+k=1", make_task(x, y, z, t)), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("knn-mark", r"unknown protocol 'knn-mark'. Did you mean knn-marks "),
        ("knn-marks+kk=1", r"knn-marks has no setting 'kk'; it has .*k.*"),
        ("knn-marks+k=x", r"k must be like 20, got 'x'"),
        ("knn-marks+name=x", r"no setting 'name'"),
        ("knn-marks+k=0", r"knn-marks\+k=0: k must be at least 1, got 0"),
        ("knn-dino-k10+temperature=inf", r"temperature must be above 0 and finite, got inf"),
        ("kmeans+starts=0", r"starts must be at least 1, got 0"),
        ("retrieval+k=9", r"k must be at least 10, got 9"),
        ("logme+most_rows=50", r"0 but for transrate, gbc, nleep, got 50"),
        ("gbc+most_rows=-1", r"most_rows must be 0 or more"),
        ("linear-dinov2+lrs_per_256=-1", r"lrs_per_256 must be above 0, at least one, got \[-1"),
        ("linear-dinov2+lrs_per_256=0.1,nan", r"lrs_per_256 must be above 0"),
        ("linear-dinov2+lrs_per_256=0.1,0.01", r"lrs_per_256 must ascend, each once"),
        ("linear-dinov2+momentum=-1", r"momentum in 0..1 and not be 1, got 0.1 and -1"),
        ("linear-dinov2+held_out=0", r"held_out must lie in 0..0.5 and not be 0"),
        ("linear-dinov2+iterations=0", r"must be at least 1, got 0 and 128"),
        ("linear-marks-1view+lr_per_256=nan", r"lr_per_256 and clip must be above 0, got nan"),
        ("linear-marks-1view+momentum=1", r"momentum lie in 0..1 and not be 1, got 0 and 1"),
        ("logreg-ericsson-literal+held_out=0", r"held_out must lie in 0..0.5 and not be 0, got 0"),
        ("logreg-ericsson-literal+iterations=0", r"iterations must be at least 1, got 0"),
        ("logreg-ericsson-literal+log10_c=400", r"log10_c must be exponents of 10 in -100..100"),
        ("logreg+tolerance=-1", r"tolerance and path_tolerance must be above 0, got -1 and 1e-06"),
        ("logreg+path_tolerance=nan", r"tolerance and path_tolerance must be above 0"),
        ("logreg+max_iterations=0", r"path_iterations must be at least 1, got 0 and 1000"),
        ("logreg+log10_c=1,0", r"log10_c must ascend, each once, got \[1.0, 0.0\]"),
        ("logreg+log10_c=0,0", r"log10_c must ascend, each once"),
        ("logreg+log10_c=-400", r"log10_c must be exponents of 10 in -100..100"),
        ("ridge+log10_lambda=1,0", r"log10_lambda must ascend, each once"),
        ("ridge+log10_lambda=nan", r"log10_lambda must be exponents of 10"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(UnknownNameError, match=message):
        probes.get(name)


def test_a_grid_of_nothing_is_refused():
    grids = {
        "logreg": "log10_c",
        "logreg-ericsson-literal": "log10_c",
        "ridge": "log10_lambda",
        "linear-dinov2": "lrs_per_256",
    }
    for name, setting in grids.items():
        with pytest.raises(ValueError, match=f"{setting} must be .*at least one"):
            probes.get(name).changed("x", {setting: ()})


def test_sets_of_protocols_expand_in_order():
    assert probes.expand(["dino", "ridge", "ridge"]) == [
        *("knn-dino-k10", "knn-dino-k20", "knn-dino-k100", "knn-dino-k200", "ridge")
    ]
    assert probes.expand(["all"]) == list(probes.PROTOCOLS)


def test_k_beyond_the_train_split_fails_alone(data):
    x, y, z, t = data
    task = make_task(x[:150], y[:150], z, t)
    found = dict(probes.run([probes.get("knn-dino-k200"), probes.get("knn-marks")], task))
    by_name = {protocol.name: measured for protocol, measured in found.items()}
    assert isinstance(by_name["knn-dino-k200"], ProbeError)
    assert "k must lie in 1..150 (rows of the train split), got 200" in str(
        by_name["knn-dino-k200"]
    )
    assert by_name["knn-marks"].metrics["top1"]["value"] > 0.5


class OutOfMemoryError(MemoryError):
    """As cupy's, which is neither a ValueError nor a RuntimeError."""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (IndexError("index 5 is out of bounds"), "ncm: IndexError: index 5 is out of bounds"),
        (MemoryError(), "ncm: MemoryError"),
        (OutOfMemoryError("of 9 bytes"), "ncm: OutOfMemoryError: of 9 bytes"),
        (KeyError("mean"), "ncm: KeyError: 'mean'"),
        (ValueError("k must be 1"), "ncm: k must be 1"),
        (RuntimeError(), "ncm: RuntimeError"),
    ],
)
def test_whatever_a_protocol_raises_in_a_sweep_is_its_own_cells_failure(
    fault, told, data, tmp_path, monkeypatch, caplog
):
    def fit(protocol, task):
        raise fault

    monkeypatch.setattr(probes.prototypes.NearestMean, "fit", fit)
    caplog.set_level(logging.DEBUG, logger="featstore.probes")
    for split, x, y in (("train", *data[:2]), ("test", *data[2:])):
        featstore.import_features(
            x, y, model="mine", dataset="own", split=split, dtype="float32", store=tmp_path / "s"
        )
    done = featstore.probe(
        protocols=["ridge", "ncm", "lda"], store=tmp_path / "s", results=tmp_path / "r"
    )
    (failure,) = done.failed
    assert failure.error == told
    assert "ncm" in failure.what
    assert done.filled == 2
    found = featstore.open_results(tmp_path / "r")["top1"].squeeze(drop=True)
    expected = {
        name: run(name, make_task(*data)).metrics["top1"]["value"] for name in ("ridge", "lda")
    }
    assert found.to_series().dropna().to_dict() == pytest.approx(expected)
    assert "raise fault" in caplog.text  # the traceback, for whoever looks for a bug


@pytest.mark.parametrize("name", [*ALL, *SCORES[:-1]])
def test_one_category_and_unknown_categories_are_refused(name, data):
    x, y, z, t = data
    with pytest.raises(ProbeError, match="one category only"):
        run(name, make_task(x, np.zeros_like(y), z, np.zeros_like(t)))
    with pytest.raises(ProbeError, match="test holds label 3, which train lacks"):
        run(name, make_task(x, np.minimum(y, 2), z, t))


def spoilt(values, place, value):
    changed = np.array(values)
    changed[place] = value
    return changed


@pytest.mark.parametrize("name", ["ridge", "fewshot-5shot-ericsson+ways=2"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x, y, z, t: (x[0], y, z, t), r"X_train must be \(n, d\), .* and y_train \(n,\), "
         r"got \(12,\) and \(240,\)"),
        (lambda x, y, z, t: (x, y, z, t[1:]), r"y_test \(n,\), got \(150, 12\) and \(149,\)"),
        (lambda x, y, z, t: (x[:0], y[:0], z, t), r"X_train must be .* neither 0, .* \(0, 12\)"),
        (lambda x, y, z, t: (x, y, z[:0], t[:0]), r"X_test must be .* neither 0, .* \(0, 12\)"),
        (lambda x, y, z, t: (x[:, :0], y, z[:, :0], t), r"X_train must be .* got \(240, 0\)"),
        (lambda x, y, z, t: (x, y, spoilt(z, (7, 3), np.nan), t), "X_test must be .* row 7 is not"),
        (lambda x, y, z, t: (spoilt(x, 9, np.inf), y, z, t), "X_train must be finite, and row 9"),
        (lambda x, y, z, t: (x + 1j, y, z, t), "X_train must be real numbers, got complex64"),
        (lambda x, y, z, t: (x.astype(str), y, z, t), "X_train must be real numbers, got <U"),
        (lambda x, y, z, t: (x, y + 0.5, z, t), r"y_train must be whole numbers .* row 0 is \d.5"),
        (lambda x, y, z, t: (x, spoilt(y * 1.0, 4, np.nan), z, t), "y_train .* row 4 is nan"),
        (lambda x, y, z, t: (x, y, z, spoilt(t * 1.0, 4, np.inf)), "y_test .* row 4 is inf"),
        (lambda x, y, z, t: (x, y - 1, z, t), r"y_train must lie in 0..1048575 .* got -1..2"),
        (lambda x, y, z, t: (x, y, z, spoilt(t, 0, 10**10)), r"2\*\*20 cat.* got 0..10000000000"),
        (lambda x, y, z, t: (x, y, z, t.astype(str)), "y_test must be whole numbers .*, got <U"),
        (lambda x, y, z, t: (x, y.astype(object), z, t), "y_train must be whole .*, got object"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_scored_are_refused_by_name(name, change, fault, data):
    with pytest.raises(ValueError, match=fault):
        featstore.score(*change(*data), protocol=name)


def test_a_seed_below_0_is_refused_by_name(data):
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        featstore.score(*data, protocol="ridge", seed=-1)


@pytest.mark.parametrize("dtype", [float, np.float16, np.uint8, np.int32, bool])
def test_labels_of_any_dtype_count_by_their_value(dtype):
    x, y, z, t = make_data(n_categories=2)
    found = featstore.score(x, y.astype(dtype), z, t.astype(dtype), protocol="ridge")
    assert found == featstore.score(x, y, z, t, protocol="ridge")


def emptied(part):
    """No rows, as of a split whose images were all skipped."""
    none = np.zeros(0, np.int64)
    return replace(part, blocks=[], sizes=[], index=none, labels=none)


@pytest.mark.parametrize("name", ["knn-marks", "fewshot-5shot-ericsson+ways=2"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda task: {"train": emptied(task.train)}, "train has 0 valid rows of 12 features"),
        (lambda task: {"test": emptied(task.test)}, "test has 0 valid rows of 12 features"),
        (lambda task: {"val": emptied(task.test)}, "val has 0 valid rows of 12 features"),
        (lambda task: {"test": narrower(task.test)}, "train has 12 features and test 11; they"),
        (lambda task: {"val": narrower(task.test)}, "train has 12 features and val 11; they"),
        (lambda task: {"n_categories": 3}, r"labels of train must lie in 0..2 .*, got 0..3"),
        (lambda task: {"test": replace(task.test, labels=task.test.labels - 1)},
         r"labels of test must lie in 0..3 \(categories\), got -1..2"),
    ],
)  # fmt: skip
def test_splits_that_do_not_fit_together_are_refused(name, change, fault, data):
    task = make_task(*data)
    with pytest.raises(ProbeError, match=fault):
        run(name, replace(task, **change(task)))


def narrower(part):
    features, labels = part.rows()
    return probes.Data.of_arrays(features[:, 1:], labels)
