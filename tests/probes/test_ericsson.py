"""Logistic regression under Ericsson et al.'s rules: as meant, and as their code ran."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from featstore import probes
from featstore.datasets import catalogue as datasets
from featstore.errors import NotApplicableError
from featstore.kernels.metrics import interpolated_precision
from featstore.models import catalogue as models
from featstore.probes import Data, held_out, literal

from .conftest import make_data, make_task
from .test_prototypes import run

GRID = "log10_c=-2,-1,0,1"


def with_val(x, y, z, t, n=80, **options):
    """The last train rows as an official validation split."""
    task = make_task(x[:-n], y[:-n], z, t, **options)
    return replace(task, val=Data.of_arrays(x[-n:], y[-n:]))


def fitted(x, y, c):
    return LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(x.astype(np.float64), y)


def test_there_are_45_c_from_1e_minus_5_to_1e6():
    grid = probes.get("logreg-ericsson").log10_c
    np.testing.assert_allclose(10.0 ** np.array(grid[::-1]), 1 / np.logspace(-6, 5, 45))
    np.testing.assert_allclose(probes.get("logreg-ericsson-literal").log10_c, grid[::-1])


def test_c_is_chosen_on_the_official_split_and_fitted_again_on_both(data):
    x, y, z, t = data
    task = with_val(x, y, z, t)
    measured = run(f"logreg-ericsson+{GRID}+tolerance=1e-8", task)
    scores = [fitted(x[:-80], y[:-80], 10.0**c).score(x[-80:], y[-80:]) for c in (-2, -1, 0, 1)]
    best = max(c for c in range(4) if scores[c] == max(scores))  # the largest of equals
    assert measured.certificate["held_out_top1"] == pytest.approx(scores)
    assert measured.certificate["C"] == pytest.approx(10.0 ** (best - 2))
    expected = fitted(x, y, 10.0 ** (best - 2)).predict_log_proba(z.astype(np.float64))
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], expected.max(axis=1), atol=1e-3
    )


def test_all_45_choose_as_converged_fits_do():
    x, y, z, t = make_data(2, n_train=230, width=30, n_categories=5, spread=4.0)
    task = with_val(x, y, z, t)
    found = run("logreg-ericsson", task).certificate
    cs = found["C_tried"]
    scores = [fitted(x[:-80], y[:-80], c).score(x[-80:], y[-80:]) for c in cs]
    assert np.sum(np.not_equal(found["held_out_top1"], scores)) <= 2  # a tie within rounding
    assert found["C"] == max(c for c, one in zip(cs, scores, strict=True) if one == max(scores))
    assert found["path_converged"]
    assert found["path_excess"] <= 1e-6
    hurried = run("logreg-ericsson+path_iterations=1", task).certificate
    assert not hurried["path_converged"]


@pytest.mark.parametrize(
    ("name", "wins"), [("logreg+path_tolerance=1e-6", min), ("logreg-ericsson", max)]
)
def test_of_equally_good_c_the_preset_takes_the_one_it_says(name, wins):
    x, y, z, t = make_data(3, n_train=120, width=6, n_categories=3, spread=0.9)
    task = make_task(x, y, z, t)
    protocol = probes.get(name)
    if protocol.draw == "permutation":
        out = held_out.permuted_rows(task.train, protocol.held_out, 0)
    else:
        out = held_out.held_out_rows(y, protocol.held_out, 0)
    cs = 10.0 ** np.array(protocol.log10_c)
    scores = np.array([fitted(x[~out], y[~out], c).score(x[out], y[out]) for c in cs])
    equal = cs[scores == scores.max()]
    assert 1 < len(equal) < len(cs)
    assert run(name, task).certificate["C"] == pytest.approx(wins(equal))


def test_few_images_are_not_joined_by_a_whole_val_split(data):
    task = with_val(*data)
    found = run("logreg-ericsson+shots=5+held_out=0.5", task).certificate
    assert (found["train_rows"], found["held_out_rows"]) == (20, 10)
    assert run("logreg-ericsson", task).certificate["train_rows"] == 240
    assert run("logreg-ericsson-literal+shots=5", task).certificate["train_rows"] == 20


def test_without_one_the_first_fifth_of_numpys_permutation_is_held_out(data):
    x, y = data[:2]
    order = np.random.RandomState(0).permutation(240)
    expected = np.zeros(240, bool)
    expected[order[:48]] = True
    shuffled = np.random.default_rng(1).permutation(240)  # the order in which rows are stored
    stored = replace(Data.of_arrays(x[shuffled], y[shuffled]), index=shuffled)
    np.testing.assert_array_equal(held_out.permuted_rows(stored, 0.2, 0), expected[shuffled])


@pytest.mark.parametrize("name", ["logreg-ericsson", "logreg-ericsson-literal"])
def test_of_a_draw_a_fifth_of_the_rows_drawn_is_held_out(name, data):
    x, y, z, t = data
    for seed in range(4):
        task = make_task(x, y, z, t, seed=seed)
        few = task.few(10)
        found = run(f"{name}+{GRID}+shots=10", task).certificate
        assert (found["train_rows"], found["held_out_rows"]) == (40, 8)
        (out,) = held_out.permuted_folds(few, 0.2)
        ordered = np.sort(few.train.index)
        expected = ordered[np.random.RandomState(seed).permutation(40)[:8]]
        assert set(few.train.index[out]) == set(expected)
        half = int(task.few(0, 0.5).train.labels.size * 0.2)
        assert run(f"{name}+{GRID}+fraction=.5", task).certificate["held_out_rows"] == half


@pytest.mark.parametrize("name", ["logreg-ericsson", "logreg-ericsson-literal"])
def test_of_two_images_of_each_category_each_chooses_c_once_and_of_one_it_is_1(name):
    x, y, z, t = make_data(n_train=120)
    task = make_task(x, y, z, t, seed=1)
    few = task.few(2)
    masks = held_out.permuted_folds(few, 0.2)
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    rows, labels = few.train.rows()
    scores = []
    for c in (-2, -1, 0, 1):
        right = np.zeros(8, bool)
        for out in masks:
            model = fitted(rows[~out], labels[~out], 10.0**c)
            right[out] = model.predict(rows[out]) == labels[out]
        scores.append(right.mean())
    more = "iterations=5000" if "literal" in name else "path_tolerance=1e-8"
    found = run(f"{name}+{GRID}+{more}+shots=2", task).certificate
    assert found["held_out_top1"] == pytest.approx(scores)
    assert (found["folds"], found["held_out_rows"], found["train_rows"]) == (2, 8, 8)
    alone = run(f"{name}+{GRID}+shots=1", task).certificate
    assert (alone["C"], alone["held_out_rows"], alone["train_rows"]) == (1, 0, 4)
    assert not alone["C_at_edge"]


def test_the_edges_of_a_sweep_are_its_extremes_in_any_order(data):
    name = "logreg-ericsson-literal+iterations=1000+log10_c=-6,-1,-5"
    found = run(name, with_val(*data)).certificate
    assert found["C"] == 0.1
    assert found["C_at_edge"]


def test_the_choice_is_by_the_datasets_own_metric():
    x, y, z, t = make_data(spread=3.0)
    kept = (y != 0) | (np.arange(len(y)) % 8 == 0)  # one rare category
    task = make_task(x[kept], y[kept], z, t)
    name = f"logreg-ericsson+{GRID}"
    out = held_out.permuted_rows(task.train, 0.2, 0)
    xs, ys = x[kept], y[kept]
    expected = []
    for c in (-2, -1, 0, 1):
        right = fitted(xs[~out], ys[~out], 10.0**c).predict(xs[out]) == ys[out]
        expected.append(np.mean([right[ys[out] == k].mean() for k in np.unique(ys[out])]))
    found = run(name, replace(task, metric="mean_per_class")).certificate
    assert found["held_out_mean_per_class"] == pytest.approx(expected)


def multi_label(seed=0, n=220):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    odds = x @ rng.normal(size=(8, 5)) + rng.normal(size=(n, 5))
    labels = (odds > 0.5).astype(np.int8)
    labels[rng.random(labels.shape) < 0.03] = -1
    return x, labels


def multi_task(x, labels):
    parts = [slice(0, 100), slice(100, 150), slice(150, None)]
    train, val, test = (
        replace(Data.of_arrays(x[p], np.zeros(len(x[p]), int)), labels=labels[p]) for p in parts
    )
    for data, part in zip((train, val, test), parts, strict=True):
        data.blocks[:] = [type(data.blocks[0])(x[part], labels[part])]
    template = make_task(*make_data())
    return replace(template, train=train, val=val, test=test, n_categories=5, metric="map11")


def two_columns(x, y, c, z):
    """Log-odds of rows z by a softmax of two columns, as Ericsson et al. fit two classes."""
    ones = np.hstack([x.astype(np.float64), np.ones((len(x), 1))])
    target = np.eye(2)[np.asarray(y, int)]

    def objective(flat):
        w = flat.reshape(-1, 2)
        logits = ones @ w
        slope = c * ones.T @ (softmax(logits, axis=1) - target)
        slope[:-1] += w[:-1]
        loss = c * -np.sum(log_softmax(logits, axis=1) * target)
        return loss + np.sum(w[:-1] ** 2) / 2, slope.ravel()

    start = np.zeros(2 * ones.shape[1])
    tight = {"maxiter": 100_000, "maxfun": 100_000, "ftol": 0, "gtol": 1e-9}
    w = minimize(objective, start, jac=True, method="L-BFGS-B", options=tight).x.reshape(-1, 2)
    return np.hstack([z, np.ones((len(z), 1))]) @ (w[:, 1] - w[:, 0])


BOTH = [
    f"logreg-ericsson+{GRID}+tolerance=1e-11",
    f"logreg-ericsson-literal+{GRID}+iterations=5000",
]


@pytest.mark.parametrize("name", BOTH)
def test_c_of_several_labels_is_that_of_a_softmax_of_two_columns(name):
    x, labels = multi_label()
    measured = run(name, multi_task(x, labels))
    present, c = labels[:150] == 1, measured.certificate["C"]
    expected = np.stack([two_columns(x[:150], one, c, x[150:]) for one in present.T], axis=1)
    np.testing.assert_allclose(measured.outcomes["scores"], expected, atol=0.02)


@pytest.mark.parametrize("name", BOTH)
def test_c_of_two_categories_is_that_of_a_softmax_of_two_columns(name):
    x, y, z, t = make_data(3, n_categories=2, spread=4.0)
    x, z = (rows / x.std(axis=0) for rows in (x, z))
    measured = run(name, with_val(x, y, z, t))
    odds = two_columns(x, y, measured.certificate["C"], z)
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], -np.log1p(np.exp(-np.abs(odds))), atol=1e-3
    )


def test_of_several_labels_the_literal_form_is_one_estimator_from_category_to_category():
    x, labels = multi_label()
    measured = run("logreg-ericsson-literal+iterations=3", multi_task(x, labels))
    rows, present = x.astype(np.float64), labels == 1
    model, cut, scores = LogisticRegression(max_iter=3, warm_start=True), 0, []
    cs = [10.0**x for x in np.linspace(6, -5, 45)]

    def fit(kept, asked, c):
        found, unfinished = [], 0
        for k in range(5):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=2 * c).fit(rows[kept], present[kept, k])
            unfinished += int(model.n_iter_[0] >= 3)
            found.append(model.decision_function(rows[asked]))
        return np.stack(found, axis=1), unfinished

    for c in cs:
        found, more = fit(slice(0, 100), slice(100, 150), c)
        scores.append(interpolated_precision(found, present[100:150]).mean())
        cut += more
    best = cs[int(np.argmax(scores))]
    expected, more = fit(slice(0, 150), slice(150, None), best)
    assert measured.certificate["held_out_map11"] == pytest.approx(scores)
    assert measured.certificate["C"] == best
    assert measured.certificate["unconverged_fits"] == cut + more > 0
    np.testing.assert_allclose(measured.outcomes["scores"], expected, rtol=1e-3, atol=1e-4)


def test_a_category_that_only_held_out_rows_have_begins_anew(data):
    x, y, z, t = data
    task = make_task(x, y, z, t)
    kept = (y != 3) | held_out.permuted_rows(task.train, 0.2, 0)
    left = Data.of_arrays(x[kept], y[kept])
    left = replace(left, index=np.flatnonzero(kept), n_skipped=int((~kept).sum()))
    task = replace(task, train=left)
    measured = run("logreg-ericsson-literal+log10_c=-2+iterations=5000", task)
    expected = fitted(x[kept], y[kept], 0.01).predict_log_proba(z.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(measured.outcomes["top5_score"][:, 0], expected, atol=1e-2)


def test_several_labels_are_regressions_against_the_rest_with_one_c():
    x, labels = multi_label()
    measured = run(f"logreg-ericsson+{GRID}+tolerance=1e-9+path_tolerance=1e-7",
                   multi_task(x, labels))  # fmt: skip
    present = labels == 1

    def scores(rows, asked, c):
        models = [fitted(x[rows], present[rows, k], 2 * c) for k in range(5)]  # as theirs counts
        return np.stack([m.decision_function(x[asked].astype(np.float64)) for m in models], axis=1)

    val = [
        interpolated_precision(
            scores(slice(0, 100), slice(100, 150), 10.0**c), present[100:150]
        ).mean()
        for c in (-2, -1, 0, 1)
    ]
    assert measured.certificate["held_out_map11"] == pytest.approx(val, abs=1e-3)
    expected = scores(slice(0, 150), slice(150, None), measured.certificate["C"])
    np.testing.assert_allclose(measured.outcomes["scores"], expected, atol=1e-3)
    ends = measured.metrics["map11"]
    assert ends["value"] == pytest.approx(
        interpolated_precision(expected, present[150:]).mean(), abs=1e-6
    )
    assert ends["low"] < ends["value"] < ends["high"]


def test_other_protocols_leave_several_labels_alone():
    task = multi_task(*multi_label())
    for name in ("knn-marks", "ridge", "logreg", "fewshot-5shot-ericsson", "logme", "ncm-1shot"):
        with pytest.raises(NotApplicableError):
            run(name, task)


@pytest.mark.filterwarnings("error")
def test_the_literal_form_is_their_loop(data, assert_least_loss):
    x, y, z, t = data
    measured = run("logreg-ericsson-literal+iterations=7", with_val(x, y, z, t))
    model, scores = LogisticRegression(max_iter=7, warm_start=True), []
    rows = [a.astype(np.float64) for a in (x[:-80], x[-80:], x, z)]
    cs = [10.0**x for x in np.linspace(6, -5, 45)]
    cut, found = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in cs:
            scores.append(model.set_params(C=c).fit(rows[0], y[:-80]).score(rows[1], y[-80:]))
            found.append(model.predict_log_proba(rows[1]))
            cut += int(model.n_iter_[0] >= 7)
        best = cs[int(np.argmax(scores))]
        model.set_params(C=best).fit(rows[2], y)
        cut += int(model.n_iter_[0] >= 7)
    assert measured.certificate["C"] == pytest.approx(best)
    assert measured.certificate["unconverged_fits"] == cut > 0
    unseen = found[int(np.argmax(scores))]
    assert_least_loss(measured.certificate["temperature"], unseen, y[-80:])
    expected = model.predict_log_proba(rows[3])
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], expected.max(axis=1), rtol=1e-3, atol=1e-4
    )


def test_the_published_c_belong_to_models_and_datasets_of_the_catalogue():
    found = literal.published_c()
    assert len(found) == 14 * 11
    study = [
        {name for name, entry in known.items() if "ericsson2021" in entry.sets}
        for known in (models(), datasets())
    ]
    assert {model for model, _ in found} == study[0]
    assert {dataset for _, dataset in found} == study[1]
    exponents = np.log10(list(found.values()))
    np.testing.assert_allclose(exponents * 4, np.round(exponents * 4), atol=1e-5)


def test_a_published_c_is_taken_where_there_is_one(data):
    x, y, z, t = data
    named = replace(
        with_val(x, y, z, t), model="byol-deepmind-resnet50", dataset="cifar10@ericsson"
    )
    measured = run("logreg-ericsson-literal-published", named)
    assert measured.certificate["C"] == pytest.approx(1.7782794)
    with pytest.warns(ConvergenceWarning):
        model = LogisticRegression(C=measured.certificate["C"]).fit(x.astype(np.float64), y)
    expected = model.predict_log_proba(z.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(
        measured.outcomes["top5_score"][:, 0], expected, rtol=1e-3, atol=1e-4
    )
    assert not measured.certificate["converged"]
    with pytest.raises(NotApplicableError, match="no C was published for this model"):
        run("logreg-ericsson-literal-published", with_val(x, y, z, t))
