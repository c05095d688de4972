"""Ranks over datasets, against Demsar's printed tables and SciPy."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.critical import critical_difference

# Demsar (2006), table 6: AUC of C4.5, with its parameters m, cf and both tuned, on 14 datasets. Of
# the two that print as 0.975, the mean ranks that are printed too have the first before the other.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip


def cube(scores, *, cluster=None, stage="late"):
    """Results of one protocol in one BN mode, by scores (model, dataset) in 0..4."""
    models, datasets = scores.shape
    found = xr.Dataset(
        {"score": (("model", "dataset", "bn_mode", "protocol"), scores[:, :, None, None] / 4)},
        {
            "model": [f"m{i}" for i in range(models)],
            "dataset": [f"d{i}" for i in range(datasets)],
            "bn_mode": ["eval"],
            "protocol": ["logreg"],
            "stage": ("model", [stage] * models if isinstance(stage, str) else stage),
        },
    )
    return found if cluster is None else found.assign_coords(cluster=("dataset", cluster))


def test_demsars_example_comes_out_as_printed():
    found = critical_difference(cube(DEMSAR.T), protocol="logreg")
    ranks = dict(zip(found["model"].values, found["mean_rank"].values, strict=True))
    assert ranks == pytest.approx({"m0": 3.143, "m1": 2.0, "m2": 2.893, "m3": 1.964}, abs=6e-4)
    assert found["model"].values.tolist() == ["m3", "m1", "m2", "m0"]
    assert found.attrs["critical_difference"] == pytest.approx(1.25, abs=0.005)
    reference = stats.friedmanchisquare(*DEMSAR.T)
    assert found.attrs["friedman"] == pytest.approx(reference.statistic)
    assert found.attrs["p_friedman"] == pytest.approx(reference.pvalue)
    # He prints 9.28 and 3.69, without the correction for ties that SciPy and Friedman make.
    untied = 12 * 14 / 20 * (np.sum(found["mean_rank"].values ** 2) - 4 * 25 / 4)
    assert untied == pytest.approx(9.28, abs=0.005)


@pytest.mark.parametrize(
    ("k", "q"),
    [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102),
     (10, 3.164)],
)  # fmt: skip
def test_critical_differences_are_those_of_the_printed_q(k, q):  # Demsar (2006), table 5 (a)
    for n in (2, 11):
        scores = np.random.default_rng(k).random((k, n))
        found = critical_difference(cube(scores), protocol="logreg").attrs["critical_difference"]
        assert found == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * n)), rel=4e-4)


def test_friedmans_and_iman_and_davenports_statistics_without_ties():
    scores = np.random.default_rng(0).random((5, 9)) + np.arange(5)[:, None] / 8
    found = critical_difference(cube(scores), protocol="logreg").attrs
    reference = stats.friedmanchisquare(*scores)
    assert found["friedman"] == pytest.approx(reference.statistic)
    # Iman and Davenport's is the F of a two-way analysis of variance of the ranks.
    ranks = stats.rankdata(-scores, axis=0)
    rows, columns = (ranks.mean(axis=a, keepdims=True) for a in (1, 0))
    between = 9 * ((rows - 3) ** 2).sum() / 4
    within = ((ranks - rows - columns + 3) ** 2).sum() / (4 * 8)
    assert found["iman_davenport"] == pytest.approx(between / within)
    assert found["p"] == pytest.approx(stats.f.sf(between / within, 4, 32))


def test_blocks_that_agree_wholly_and_models_that_never_differ():
    whole = critical_difference(cube(np.outer(np.arange(4), np.ones(5))), protocol="logreg")
    assert whole.attrs["friedman"] == pytest.approx(15)  # n (k - 1), the most there is
    assert (whole.attrs["iman_davenport"], whole.attrs["p"]) == (np.inf, 0)
    same = critical_difference(cube(np.ones((4, 5))), protocol="logreg")
    assert (same.attrs["friedman"], same.attrs["p"], same.attrs["p_friedman"]) == (0, 1, 1)
    assert same["mean_rank"].values.tolist() == [2.5] * 4
    assert same["member"].values.tolist() == [[True] * 4]


def test_groups_are_all_that_are_within_the_critical_difference_and_no_part_of_another():
    rng = np.random.default_rng(0)
    scores = rng.random((9, 20)) + np.linspace(0, 1.5, 9)[:, None]
    found = critical_difference(cube(scores), protocol="logreg")
    mean, distance = found["mean_rank"].values, found.attrs["critical_difference"]
    assert (np.diff(mean) >= 0).all()
    members = [set(np.flatnonzero(row)) for row in found["member"].values]
    assert len(members) > 1
    for i in range(9):
        for j in range(i):
            together = any({i, j} <= one for one in members)
            assert together == (abs(mean[i] - mean[j]) <= distance)
    assert not any(one < other for one in members for other in members)
    np.testing.assert_array_equal(found["separable_from_best"], mean - mean[0] > distance)


def test_datasets_of_one_cluster_are_one_block():
    scores = np.random.default_rng(0).random((4, 6))
    cluster = ["", "net", "net", "own", "net", ""]
    found = critical_difference(cube(scores, cluster=cluster), protocol="logreg")
    assert found["block"].values.tolist() == ["d0", "net", "d3", "d5"]
    assert found.attrs["n_blocks"] == 4
    merged = np.stack([scores[:, 0], scores[:, [1, 2, 4]].mean(axis=1), scores[:, 3], scores[:, 5]])
    by_name = found.sortby("model")
    np.testing.assert_array_equal(by_name["rank"].values.T, stats.rankdata(-merged, axis=1))
    apart = critical_difference(
        cube(scores, cluster=cluster), protocol="logreg", by_cluster=False
    )  # fmt: skip
    assert apart.attrs["n_blocks"] == 6
    one = critical_difference(cube(scores), protocol="logreg")  # no cluster is told
    assert one["block"].values.tolist() == [f"d{i}" for i in range(6)]


def test_what_has_holes_is_left_out_and_named():
    scores = np.random.default_rng(0).random((5, 6))
    scores[1, :2] = scores[:4, 4] = np.nan
    found = critical_difference(cube(scores), protocol="logreg")
    assert found.attrs["left_out_models"] == ["m1"]
    assert found.attrs["left_out_datasets"] == ["d4"]
    rest = critical_difference(
        cube(scores).sel(model=["m0", "m2", "m3", "m4"]).drop_sel(dataset="d4"), protocol="logreg"
    )
    xr.testing.assert_equal(found, rest)
    whole = critical_difference(cube(np.nan_to_num(scores)), protocol="logreg").attrs
    assert whole["left_out_models"] == whole["left_out_datasets"] == []


def test_early_checkpoints_do_not_count_unless_asked_for():
    scores = np.random.default_rng(0).random((5, 6))
    cells = cube(scores, stage=["late", "early", "", "late", "random"])
    found = critical_difference(cells, protocol="logreg")
    assert sorted(found["model"].values) == ["m0", "m2", "m3"]
    assert critical_difference(cells, protocol="logreg", models="all").sizes["model"] == 5


def test_seeds_are_averaged_first():
    scores = np.random.default_rng(0).random((4, 5))
    cells = cube(scores)
    seeds = xr.concat([cells * 0.5, cells * 1.5], dim="seed").assign_coords(seed=[0, 1])
    seeds = seeds.assign_coords({name: cells[name] for name in cells.coords})
    xr.testing.assert_allclose(
        critical_difference(seeds, protocol="logreg"), critical_difference(cells, protocol="logreg")
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"protocol": "x"}, "protocol must be one of logreg, got 'x'"),
        ({"metric": "x"}, "metric must be one of score, got 'x'"),
        ({"bn_mode": "x"}, "bn_mode must be one of eval, got 'x'"),
        ({"models": "x"}, "models must be one of independent, all, got 'x'"),
        ({"alpha": 1.0}, "alpha must lie in 0..1 and be neither, got 1"),
    ],
)
def test_choices_that_do_not_exist_are_refused(change, fault):
    asked = {"protocol": "logreg"} | change
    with pytest.raises(ValueError, match=fault):
        critical_difference(cube(np.random.default_rng(0).random((4, 5))), **asked)


def test_what_are_no_results_is_refused():
    with pytest.raises(ValueError, match=r"scores are shares in 0..1"):
        critical_difference(
            cube(np.full((4, 5), 8.0)).assign_coords(scale=("protocol", ["share"])),
            protocol="logreg",
        )
    with pytest.raises(ValueError, match="score must have the dims"):
        critical_difference(cube(np.ones((4, 5))).sel(bn_mode="eval"), protocol="logreg")


def test_too_few_models_or_datasets_are_told():
    scores = np.random.default_rng(0).random((4, 5))
    for few, n, k in ((scores[:2], 2, 5), (scores[:, :1], 4, 1), (np.full((4, 5), np.nan), 0, 0)):
        with pytest.raises(ValueError, match="it takes 3 models and 2 independent datasets") as e:
            critical_difference(cube(few), protocol="logreg")
        if n:
            assert f"got {n} and {k} of logreg" in str(e.value)
    with pytest.raises(ValueError, match="got 4 and 1"):
        critical_difference(cube(scores, cluster=["net"] * 5), protocol="logreg")
