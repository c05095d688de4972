"""Comparisons on the same test images, against SciPy, statsmodels and planted truths."""

import re

import numpy as np
import pytest
import xarray as xr
from scipy.special import ndtri
from scipy.stats import binomtest, bootstrap, norm, rankdata
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from featstore.analysis.differences import compare_models, compare_outcomes
from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.results import Cell, record


def draw(rng, n, shares):
    """Correctness (n, model) of models right on these shares, which find the same images hard."""
    hard = 0.8 * rng.normal(size=(n, 1)) + 0.6 * rng.normal(size=(n, len(shares)))
    return hard < ndtri(np.array(shares))


def outcomes(correct, *, metric="top1", labels=None, dataset="d", there=None, stage="late"):
    """What `open_outcomes` would give of one protocol."""
    n, models = correct.shape
    there = np.ones(models, bool) if there is None else np.array(there, bool)
    values = np.where(there, correct, np.nan).T[:, None].astype(np.float32)
    return xr.Dataset(
        {
            "correct": (("model", "protocol", "image"), values),
            "there": (("model", "protocol"), there[:, None]),
        },
        {
            "model": [f"m{i:02d}" for i in range(models)],
            "protocol": ["logreg"],
            "label": ("image", np.zeros(n, int) if labels is None else labels),
            "index": ("image", np.arange(n)),
            "stage": ("model", [stage] * models if isinstance(stage, str) else stage),
        },
        {"dataset": dataset, "bn_mode": "eval", "seed": 0, "metric": metric},
    )


def compare(correct, **more):
    options = {key: more.pop(key) for key in ("metric", "labels") if key in more}
    return compare_outcomes([outcomes(correct, **options)], protocol="logreg", **more)


def table(a, b):
    return [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]


SHARES = [0.55, 0.72, 0.6, 0.71, 0.65]


def test_every_pair_has_the_numbers_of_scipy_and_statsmodels():
    correct = draw(np.random.default_rng(0), 400, SHARES)
    found = compare(correct, resamples=20_000)
    names = found["model"].values
    assert list(names) == [f"m{i:02d}" for i in np.argsort(-correct.mean(axis=0))]
    np.testing.assert_array_equal(found["other"], names)
    pairs = [(0, 1), (0, 4), (1, 2), (3, 2)]
    for i, j in pairs:
        a, b = (correct[:, int(names[k][1:])] for k in (i, j))
        one = found.isel(model=i, other=j)
        assert one["difference"] == pytest.approx(a.mean() - b.mean())
        assert one["p_mcnemar"] == pytest.approx(mcnemar(table(a, b), exact=True).pvalue)
        reference = bootstrap(
            (a, b), lambda x, y, axis=-1: x.mean(axis=axis) - y.mean(axis=axis), paired=True,
            n_resamples=20_000, method="percentile", vectorized=True, batch=2000,
            rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        assert (one["low"], one["high"]) == pytest.approx((reference.low, reference.high), abs=4e-3)
    above = np.triu_indices(5, 1)
    family = multipletests(found["p_mcnemar"].values[above], method="holm")[1]
    np.testing.assert_allclose(found["p_holm"].values[above], family)
    np.testing.assert_array_equal(found["p_holm"], found["p_holm"].T)
    of_best = found["p_holm"].values[0, 1:] < 0.05
    assert found["separable_from_best"].values.tolist() == [False, *of_best]


def test_ranks_are_as_far_as_significant_pairs_leave_open():
    correct = draw(np.random.default_rng(1), 900, [0.9, 0.895, 0.7, 0.69, 0.695, 0.4])
    found = compare(correct)
    assert found["rank"].values.tolist() == [1, 2, 3, 4, 5, 6]
    assert found["rank_low"].values.tolist() == [1, 1, 3, 3, 3, 6]
    assert found["rank_high"].values.tolist() == [2, 2, 5, 5, 5, 6]
    assert found["separable_from_best"].values.tolist() == [False, False, True, True, True, True]
    for place in range(6):
        significant = found["p_holm"][:, place] < 0.05
        better = significant & (found["difference"][:, place] > 0)
        assert found["rank_low"][place] == 1 + better.sum()


def test_what_one_model_loses_to_the_best_alone_it_need_not_lose_among_others():
    correct = np.ones((200, 6), bool)
    for model in range(1, 6):
        correct[6 * model : 6 * model + 6, model] = False  # six that the best has right: p = 1 / 32
    alone, among = compare(correct[:, :2]), compare(correct)
    assert alone["separable_from_best"].values.tolist() == [False, True]
    assert not among["separable_from_best"].any()
    assert among["rank_low"].values.tolist() == [1] * 6
    assert alone["p_holm"][0, 1] == among["p_mcnemar"][0, 1] == 1 / 32


def test_rank_intervals_hold_the_true_ranks_near_ties_where_ranks_of_resamples_do_not():
    rng, repeats = np.random.default_rng(0), 150
    truth = np.arange(1, 9)
    shares = 0.7 - 1e-4 * truth
    ours, naive, best = [], [], []
    for number in range(repeats):
        correct = draw(rng, 300, shares)
        found = compare(correct, resamples=200, seed_of_draws=number).sortby("model")
        ours.append((found["rank_low"] <= truth) & (truth <= found["rank_high"]))
        best.append(not found["separable_from_best"][0])
        rows = rng.integers(300, size=(200, 300))
        ranks = rankdata(-correct[rows].mean(axis=1), axis=1)
        low, high = np.quantile(ranks, [0.025, 0.975], axis=0)
        naive.append((low <= truth) & (truth <= high))
    least = binomtest(round(0.95 * repeats), repeats).proportion_ci(0.99).low
    assert np.all(ours, axis=1).mean() >= least  # all ranks at once
    assert np.mean(best) >= least
    assert np.mean(naive) < 0.9  # each by itself, and nominally 95 %
    assert np.all(naive, axis=1).mean() < 0.5


def test_equal_models_are_not_told_apart_and_every_rank_stays_open():
    one = draw(np.random.default_rng(0), 200, [0.6])
    found = compare(np.repeat(one, 3, axis=1))
    assert (found["difference"] == 0).all()
    assert (found["p_holm"] == 1).all()
    assert found["rank"].values.tolist() == [2, 2, 2]
    assert found["rank_low"].values.tolist() == [1, 1, 1]
    assert found["rank_high"].values.tolist() == [3, 3, 3]


def test_of_categories_the_mean_counts_and_images_are_drawn_within_them():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 5], [600, 60, 30]))
    correct = draw(rng, 690, SHARES) & (
        rng.random((690, 1)) < np.where(labels == 0, 1, 0.6)[:, None]
    )
    found = compare(correct, metric="mean_per_class", labels=labels, resamples=8000)
    found = found.sortby("model").sortby("other")
    shares = np.array([correct[labels == c].mean(axis=0) for c in (0, 1, 5)])
    np.testing.assert_allclose(found["score"], shares.mean(axis=0))
    assert "p_mcnemar" not in found
    a, b = correct[:, 0].astype(float), correct[:, 1].astype(float)
    of_category = [(a - b)[labels == c] for c in (0, 1, 5)]
    variance = sum(np.var(one, ddof=1) / len(one) for one in of_category) / 9
    z = (shares[:, 0] - shares[:, 1]).mean() / np.sqrt(variance)
    one = found.isel(model=0, other=1)
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.05)
    assert norm.isf(one["p_normal"] / 2) == pytest.approx(abs(z), rel=0.03)
    assert one["p_normal"] < 2 / 8001 == found["p"].min()  # below what a share of resamples can say


def test_several_datasets_count_the_same_and_models_that_lack_one_are_named():
    rng = np.random.default_rng(0)
    first, second = draw(rng, 900, SHARES), draw(rng, 100, SHARES[::-1])
    found = compare_outcomes(
        [outcomes(first), outcomes(second, dataset="e", there=[1, 1, 1, 1, 0])],
        protocol="logreg", resamples=8000,
    )  # fmt: skip
    assert found.attrs["left_out"] == ["m04"]
    assert found.attrs["dataset"] == ["d", "e"]
    assert found.attrs["n_test"] == [900, 100]
    mean = (first.mean(axis=0) + second.mean(axis=0))[:4] / 2
    by_name = found.sortby("model").sortby("other")
    np.testing.assert_allclose(by_name["score"], mean)
    apart = [one[:, 0].astype(float) - one[:, 1] for one in (first, second)]
    variance = sum(np.var(one) / len(one) for one in apart) / 4
    one = by_name.isel(model=0, other=1)
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.05)


def test_images_that_several_datasets_share_are_drawn_for_all_of_them_together():
    rng = np.random.default_rng(0)
    hard = draw(rng, 500, [0.6, 0.5, 0.55])
    blurred = hard ^ (rng.random((500, 3)) < 0.2)
    labels = rng.integers(0, 5, 500)
    cells = [
        outcomes(one, dataset=name, labels=labels) for name, one in (("d", hard), ("e", blurred))
    ]
    found = compare_outcomes(cells, protocol="logreg", resamples=8000)
    one = found.sortby("model").sortby("other").isel(model=0, other=1)
    both = (hard.astype(float) + blurred) / 2  # of each image
    spread = np.std(both[:, 0] - both[:, 1]) / np.sqrt(500)
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * spread, rel=0.05)
    cells[1] = outcomes(blurred, dataset="e", labels=labels[::-1])  # others, drawn by themselves
    apart = compare_outcomes(cells, protocol="logreg", resamples=8000)
    one = apart.sortby("model").sortby("other").isel(model=0, other=1)
    alone = np.sqrt(sum(np.var(x[:, 0].astype(float) - x[:, 1]) for x in (hard, blurred)) / 500) / 2
    assert alone < 0.9 * spread
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * alone, rel=0.05)


def test_early_checkpoints_do_not_count_unless_asked_for():
    correct = draw(np.random.default_rng(0), 300, [0.9, 0.5, 0.7])
    cells = outcomes(correct, stage=["early", "late", "late"])
    found = compare_outcomes([cells], protocol="logreg", resamples=50)
    assert found["model"].values.tolist() == ["m02", "m01"]
    every = compare_outcomes([cells], protocol="logreg", resamples=50, models="all")
    assert every["model"].values.tolist() == ["m00", "m02", "m01"]
    assert every["stage"].values.tolist() == ["early", "late", "late"]


def test_what_cannot_be_compared_says_so():
    correct = draw(np.random.default_rng(0), 40, [0.9, 0.5])
    with pytest.raises(FeatStoreError, match="1 models have logreg on d, and it takes two"):
        compare(correct[:, :1])
    with pytest.raises(ValueError, match="protocol must be one of logreg, got 'knn'"):
        compare_outcomes([outcomes(correct)], protocol="knn")
    with pytest.raises(ValueError, match="models must be one of independent, all, got 'x'"):
        compare(correct, models="x")
    with pytest.raises(ValueError, match="most categories of d have a single test image"):
        compare(correct, metric="mean_per_class", labels=np.arange(40))
    with pytest.raises(ValueError, match="dataset must name at least one"):
        compare_models("nowhere", dataset=[], protocol="logreg")
    with pytest.raises(ValueError, match="confidence must lie in 0..1"):
        compare(correct, confidence=1.0)


def put(root, model, dataset, right, labels, *, metric="top1"):
    share = {name: float(right.mean()) for name in ("value", "low", "high")}
    facts = {
        "metrics": {metric: share}, "headline": metric, "splits": {}, "n_categories": 3,
        "n_train": 9, "n_test": len(right), "n_skipped": 0, "seconds": 0.1, "certificate": {},
        "settings": {"kind": "linear", "scale": "share"}, "transductive": False,
        "model_info": {"stage": "late", "pretraining": [], "bn_free": False},
        "dataset_info": {"metric": "top1", "source": dataset},
        "versions": {"featstore": "0.1.0"},
    }  # fmt: skip
    order = np.random.default_rng(len(model)).permutation(len(right))
    rows = {"index": np.arange(len(right)), "label": labels, "rank": np.where(right, 0, 1)}
    kept = {name: column[order] for name, column in rows.items()}
    record(root, Cell(model, dataset, "eval", "logreg", 0, "a" * 64), facts, kept)


@pytest.mark.parametrize("metric", ["top5", "map", "episodes"])
def test_scores_that_images_do_not_tell_are_refused_by_their_metric(tmp_path, metric):
    correct = draw(np.random.default_rng(0), 40, [0.9, 0.5])
    message = f"scores on d are {metric}, and only top1 and mean_per_class follow"
    with pytest.raises(FeatStoreError, match=message):
        compare(correct, metric=metric)
    for model, column in enumerate(correct.T):
        put(tmp_path, f"m{model}", "d", column, np.arange(40) % 3, metric=metric)
    with pytest.raises(FeatStoreError, match=message):
        compare_models(tmp_path, dataset="d", protocol="logreg")


def test_cells_of_other_test_images_are_refused_by_name(tmp_path):
    correct = draw(np.random.default_rng(0), 40, [0.9, 0.5, 0.6])
    for model, column in enumerate(correct.T):
        images = column[: 40 - model // 2]  # the last lacks one
        put(tmp_path, f"m{model}", "d", images, np.arange(len(images)) % 3)
    with pytest.raises(StoreMismatchError, match=r"not of the same test images.* but m2 logreg 39"):
        compare_models(tmp_path, dataset="d", protocol="logreg")


def test_a_damaged_record_is_named_and_left_out_only_if_told(tmp_path, caplog):
    correct = draw(np.random.default_rng(0), 40, [0.9, 0.5, 0.6])
    for model, column in enumerate(correct.T):
        put(tmp_path, f"m{model}", "d", column, np.arange(40) % 3)
    (kept,) = tmp_path.glob("m1/*/*/*/*.npz")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match=re.escape(str(kept))):
        compare_models(tmp_path, dataset="d", protocol="logreg")
    found = compare_models(tmp_path, dataset="d", protocol="logreg", skip_errors=True)
    assert sorted(found["model"].values) == ["m0", "m2"]
    assert str(kept) in caplog.text


def test_records_are_compared_image_by_image(tmp_path):
    rng = np.random.default_rng(0)
    right = {name: draw(rng, 150, SHARES) for name in ("d", "e")}
    for name, columns in right.items():
        for model, column in enumerate(columns.T):
            put(tmp_path, "m" * (model + 1), name, column, np.arange(150) % 3)
    found = compare_models(tmp_path, dataset="d", protocol="logreg", resamples=100)
    for first in found["model"].values:
        for second in found["other"].values:
            a, b = (right["d"][:, len(name) - 1] for name in (first, second))
            p = found["p_mcnemar"].sel(model=first, other=second)
            assert p == pytest.approx(mcnemar(table(a, b), exact=True).pvalue)
    both = compare_models(tmp_path, dataset=["d", "e"], protocol="logreg", resamples=100)
    mean = (right["d"].mean(axis=0) + right["e"].mean(axis=0)) / 2
    np.testing.assert_allclose(both.sortby("model")["score"], mean)
