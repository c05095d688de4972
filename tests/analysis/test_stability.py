"""Stability of rankings against brute force: all subsets, all ways to break ties."""

from itertools import combinations, permutations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.stability import agreement, fewer_labels, ranking_stability

DIMS = ("model", "dataset", "bn_mode", "protocol")


def study(scores, protocols=("knn",), clusters=None):
    """Scores (model, dataset, protocol) as of `open_results`."""
    n_models, n_datasets, _ = scores.shape
    coords = {
        "model": [f"m{i}" for i in range(n_models)],
        "dataset": [f"d{i}" for i in range(n_datasets)],
        "bn_mode": ["eval"],
        "protocol": list(protocols),
        "stage": ("model", ["late"] * n_models),
    }
    if clusters is not None:
        coords["cluster"] = ("dataset", clusters)
    return xr.Dataset({"score": (DIMS, scores[:, :, None])}, coords)


def outcomes(correct, label=None, **attrs):
    """Whether images are told right (model, image) as of `open_outcomes`."""
    n_models, n_images = correct.shape
    coords = {
        "model": [f"m{i}" for i in range(n_models)],
        "protocol": ["knn"],
        "stage": ("model", ["late"] * n_models),
        "label": ("image", np.zeros(n_images, int) if label is None else label),
    }
    values = np.asarray(correct, np.float32)[:, None]
    return xr.Dataset({"correct": (("model", "protocol", "image"), values)}, coords, attrs)


def noisy(seed=0, n_models=5, n_datasets=6, spread=1.0, protocols=1):
    rng = np.random.default_rng(seed)
    quality = spread * np.arange(n_models)[:, None, None]
    return quality + rng.normal(size=(n_models, n_datasets, protocols))


def by_hand(merit, whole, top):
    """Agreement of two orders, with each way to break ties in the first tried out."""
    best = {*sorted(range(len(whole)), key=lambda m: (-whole[m], m))[:top]}
    tops = [
        {*sorted(range(len(merit)), key=lambda m: (-merit[m], order[m]))[:top]}
        for order in permutations(range(len(merit)))
    ]
    return {
        "same_top": np.mean([one == best for one in tops]),
        "overlap": np.mean([len(one & best) / top for one in tops]),
        "kendall": stats.kendalltau(merit, whole).statistic,
        "spearman": stats.spearmanr(merit, whole).statistic,
    }


@pytest.mark.parametrize("top", [1, 2, 3, 4])
def test_equal_models_count_by_the_chance_of_their_order(top):
    rng = np.random.default_rng(top)
    merit = rng.integers(0, 4, (40, 5)).astype(float)
    merit = merit[np.ptp(merit, axis=1) > 0]
    whole = rng.integers(0, 5, 5).astype(float)
    found = agreement(merit, whole, top)
    for draw, row in enumerate(merit):
        for name, value in by_hand(row, whole, top).items():
            assert found[name][draw] == pytest.approx(value), name


@pytest.mark.parametrize("clusters", [None, ["a", "", "b", "b", "a", "b"]])
def test_subsets_of_datasets_are_all_looked_at(clusters):
    scores = noisy(3)
    found = ranking_stability(study(scores, clusters=clusters), protocol="knn", top=2)
    ranks = stats.rankdata(-scores[:, :, 0], axis=0).T
    units = [[0], [1], [2], [3], [4], [5]] if clusters is None else [[0, 4], [2, 3, 5], [1]]
    units = [ranks[one].mean(axis=0) for one in units]
    whole = -np.round(np.mean(units, axis=0), 9)
    assert list(found["size"].values) == [*range(1, len(units) + 1)]
    for size in found["size"].values:
        rows = [
            by_hand(-np.round(np.mean(chosen, axis=0), 9), whole, 2)
            for chosen in combinations(units, int(size))
        ]
        cell = found.sel(size=size)
        assert cell["n_draws"] == len(rows)
        for name in rows[0]:
            assert float(cell[name]) == pytest.approx(np.mean([row[name] for row in rows])), name
        ends = np.quantile([row["kendall"] for row in rows], [0.025, 0.975])
        assert [cell["kendall_low"], cell["kendall_high"]] == pytest.approx(ends)
    order = sorted(range(5), key=lambda m: (-whole[m], m))
    assert list(found["best"].values) == [f"m{m}" for m in order[:2]]


def test_too_many_subsets_are_drawn_and_come_near_all():
    results = study(noisy(1, n_datasets=10))
    every = ranking_stability(results, protocol="knn", top=2, draws=252)
    some = ranking_stability(results, protocol="knn", top=2, draws=200, seed=4)
    assert every["n_draws"].sel(size=5) == 252
    assert some["n_draws"].sel(size=5) == 200
    for name in ("same_top", "overlap", "spearman"):
        np.testing.assert_allclose(some[name], every[name], atol=0.12)


def test_a_ranking_that_all_datasets_share_is_settled_by_one():
    found = ranking_stability(study(noisy(spread=100)), protocol="knn")
    assert (found["same_top"] == 1).all()
    assert (found["overlap"] == 1).all()
    np.testing.assert_allclose(found["kendall"], 1)
    assert found["settled_at"] == 1
    assert list(found["best"].values) == ["m4", "m3", "m2"]


def test_results_that_are_on_disk_yet_say_the_same():
    made = study(noisy(spread=1))
    xr.testing.assert_identical(
        ranking_stability(made.chunk(), protocol="knn"), ranking_stability(made, protocol="knn")
    )


def test_a_ranking_by_chance_is_settled_by_no_part():
    found = ranking_stability(study(noisy(2, n_models=12, spread=0)), protocol="knn")
    assert found["same_top"].sel(size=1) < 0.2
    assert found["same_top"].sel(size=6) == 1  # all agree with themselves
    assert np.isnan(found["settled_at"])


def test_what_comes_loose_again_is_not_settled_yet():
    whole = np.tile(np.arange(6.0)[:, None], (1, 4))  # the same order on four datasets
    columns = {"knn": whole, "knn-1shot": whole, "knn-2shot": -whole, "knn-5shot": whole}
    made = study(np.stack([*columns.values()], axis=-1), protocols=columns)
    found = ranking_stability(made, protocol="knn", over="labels")
    assert found["same_top"].values.tolist() == [1, 0, 1]
    assert found["settled_at"] == 5


def test_what_is_settled_stays_so_from_there_on():
    # The last dataset turns the two best round: with one other it leaves them equal.
    scores = np.tile(np.arange(5.0)[:, None, None], (1, 21, 1))
    scores[[3, 4], 20] = scores[[4, 3], 20]
    found = ranking_stability(study(scores), protocol="knn", top=1, draws=2000)
    same = found["same_top"].values
    np.testing.assert_allclose(same[0], 20 / 21)  # .952: one of them alone is wrong
    np.testing.assert_allclose(same[1], 1 - 20 / 210 / 2)
    assert (same[2:] == 1).all()
    assert found["settled_at"] == 1
    scores[[3, 4], 19] = scores[[4, 3], 19]
    found = ranking_stability(study(scores), protocol="knn", top=1, draws=2000)
    np.testing.assert_allclose(found["same_top"].values[:2], [19 / 21, (171 + 38 / 2) / 210])
    assert found["settled_at"] == 3


def test_models_that_lack_a_dataset_are_left_out_and_datasets_that_none_has():
    scores = noisy(5)
    scores[2, 3] = np.nan
    scores[:, 5] = np.nan
    found = ranking_stability(study(scores), protocol="knn", top=2)
    kept = ranking_stability(
        study(scores).isel(model=[0, 1, 3, 4], dataset=range(5)), protocol="knn", top=2
    )
    xr.testing.assert_identical(found, kept)
    assert found.attrs["n_models"] == 4


@pytest.mark.parametrize("over", ["datasets", "labels", "images"])
@pytest.mark.parametrize("n_models", [1, 3])
def test_below_four_models_there_is_no_number(over, n_models):
    rng = np.random.default_rng(0)
    if over == "images":
        results = outcomes(rng.random((n_models, 60)) < 0.5)
    else:
        results = study(noisy(n_models=n_models, protocols=2), ["knn", "knn-1shot"])
    found = ranking_stability(results, protocol="knn", over=over)
    for name in ("same_top", "overlap", "kendall", "kendall_low", "spearman", "settled_at"):
        assert found[name].isnull().all(), name
    assert found.attrs["n_models"] == n_models


def test_of_images_each_draw_leaves_some_out():
    rng = np.random.default_rng(8)
    correct = rng.random((5, 51)) < np.linspace(0.5, 0.7, 5)[:, None]
    found = ranking_stability(outcomes(correct), protocol="knn", over="images", top=2, draws=4000)
    assert list(found["size"].values) == [50, 51]
    whole = correct.sum(axis=1).astype(float)
    rows = [by_hand(whole - correct[:, out], whole, 2) for out in range(51)]
    for name in rows[0]:
        each = [row[name] for row in rows]
        near = 4 * np.std(each) / np.sqrt(4000) + 1e-9
        assert float(found[name][0]) == pytest.approx(np.mean(each), abs=near), name
    assert list(found["n_draws"].values) == [4000, 1]


def test_more_images_agree_more_and_settle_what_differs():
    rng = np.random.default_rng(9)
    correct = rng.random((6, 3000)) < np.linspace(0.4, 0.9, 6)[:, None]
    found = ranking_stability(outcomes(correct), protocol="knn", over="images", draws=300)
    assert list(found["size"].values) == [50, 100, 200, 500, 1000, 2000, 3000]
    assert (np.diff(found["same_top"].values) >= -0.03).all()
    assert found["settled_at"] in (100, 200, 500)
    close = correct.copy()
    close[3] = close[4] ^ (np.arange(3000) < 2)  # nothing tells these two apart
    found = ranking_stability(outcomes(close), protocol="knn", over="images", top=2, draws=300)
    assert np.isnan(found["settled_at"])


def test_where_classes_count_the_same_so_do_images_of_each():
    label = np.repeat([0, 1], [190, 10])
    share = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.2], [0.5, 0.5], [0.2, 0.3]])
    correct = np.concatenate(
        [np.arange(190) < 190 * share[:, [0]], np.arange(10) < 10 * share[:, [1]]], axis=1
    )
    how = {"protocol": "knn", "over": "images", "top": 3}
    plain = ranking_stability(outcomes(correct, label), **how)
    fair = ranking_stability(outcomes(correct, label, metric="mean_per_class"), **how)
    assert list(plain["best"].values) == ["m0", "m1", "m2"]
    assert list(fair["best"].values) == ["m1", "m0", "m3"]  # .85, .5, .5, .45, .25


@pytest.mark.parametrize("seeds", [1, 3])
def test_on_fewer_labels_each_dataset_and_seed_is_held_against_all_labels(seeds):
    rng = np.random.default_rng(2)
    protocols = ["ncm", "ncm-1shot", "ncm-5shot", "knn-2shot"]
    results = study(noisy(6, n_models=6, protocols=4), protocols)
    results = results.expand_dims(seed=range(seeds))
    results = results + 0.7 * rng.normal(size=tuple(results.sizes.values()))
    asked = results if seeds > 1 else results.isel(seed=0)
    found = ranking_stability(asked, protocol="ncm", over="labels")
    assert list(found["size"].values) == [1, 5]
    scores = results["score"].sel(bn_mode="eval")
    for size in (1, 5):
        rows = [
            by_hand(
                scores.sel(protocol=f"ncm-{size}shot", dataset=dataset, seed=seed).values,
                scores.sel(protocol="ncm", dataset=dataset).mean("seed").values,
                3,
            )
            for dataset in scores["dataset"].values
            for seed in range(seeds)
        ]
        assert found["n_draws"].sel(size=size) == len(rows)
        for name in rows[0]:
            mean = np.mean([row[name] for row in rows])
            assert float(found[name].sel(size=size)) == pytest.approx(mean), name


def test_few_labels_that_do_as_well_as_all_are_enough():
    scores = np.tile(noisy(7, protocols=1, spread=10), (1, 1, 3))
    scores[:, :, 1] *= -1
    found = ranking_stability(
        study(scores, ["ncm", "ncm-1shot", "ncm-2shot"]), protocol="ncm", over="labels", top=2
    )
    np.testing.assert_array_equal(found["same_top"], [0, 1])
    assert found["settled_at"] == 2


def test_protocols_of_fewer_labels_are_found_by_name():
    names = ["knn-dino-k20", "knn-10shot", "knn-2shot", "fewshot-5shot-ericsson", "ridge"]
    assert fewer_labels(names, "knn-dino-k20") == {2: "knn-2shot", 10: "knn-10shot"}
    assert fewer_labels(["ridge", "ridge+shots=4"], "ridge") == {4: "ridge+shots=4"}
    with pytest.raises(ValueError, match="others with fewer labels .* ridge-5shot, got 'ridge'"):
        fewer_labels(names, "ridge")


def test_a_protocol_of_fewer_labels_without_cells_is_no_size():
    scores = noisy(7, protocols=3)
    scores[:, :, 1] = np.nan
    results = study(scores, ["ncm", "ncm-1shot", "ncm-2shot"])
    found = ranking_stability(results, protocol="ncm", over="labels")
    assert list(found["size"].values) == [2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"over": "models"}, "over must be one of datasets, images, labels, got 'models'"),
        (
            {"over": "images"},
            r"over = 'images' needs a Dataset of open_outcomes\(\), got",
        ),
        ({"protocol": "svm"}, "protocol must be one of knn, got 'svm'"),
        ({"metric": "x"}, "metric must be one of score, got 'x'"),
        ({"bn_mode": "x"}, "bn_mode must be one of eval, got 'x'"),
        ({"models": "x"}, "models must be one of independent, all, got 'x'"),
        ({"top": 0}, r"top must lie in 1\.\.4 \(5 models\), got 0"),
        ({"top": 5}, r"top must lie in 1\.\.4 \(5 models\), got 5"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"over": "labels"}, "protocol must have others with fewer labels"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        ranking_stability(study(noisy()), **{"protocol": "knn", **wrong})


def test_a_protocol_without_cells_is_refused_and_so_are_results_without_images():
    with pytest.raises(ValueError, match="protocol must have cells of these models"):
        ranking_stability(study(noisy() * np.nan), protocol="knn")
    with pytest.raises(ValueError, match=r"over = 'datasets' needs a Dataset of open_results\(\)"):
        ranking_stability(outcomes(np.ones((4, 9))), protocol="knn")
