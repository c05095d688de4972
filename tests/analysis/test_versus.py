"""Which of two protocols predicts a third better, against brute force and in simulation."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.versus import compare_predictors


def study(cells, lineages=None):
    """Results of scores (model, dataset, protocol)."""
    n, datasets, protocols = cells.shape
    names = [f"m{i}" for i in range(n)]
    return xr.Dataset(
        {"score": (("model", "dataset", "bn_mode", "protocol"), cells[:, :, None])},
        coords={
            "model": names,
            "dataset": [f"d{i}" for i in range(datasets)],
            "bn_mode": ["eval"],
            "protocol": ["target", *"abcdefg"[: protocols - 1]],
            "stage": ("model", ["late"] * n),
            "lineage": ("model", lineages or names),
        },
    )


def planted(n, r, seed, datasets=1, between=0.5):
    """Three protocols: `a` and `b` correlate with the target by r[0] and r[1]."""
    rng = np.random.default_rng(seed)
    sigma = [[1, r[0], r[1]], [r[0], 1, between], [r[1], between, 1]]
    return rng.multivariate_normal([0, 0, 0], sigma, (n, datasets))


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "kendall"])
def test_differences_are_those_of_scipys_coefficients_over_common_models(statistic):
    cells = planted(12, (0.8, 0.4), 0, datasets=3)
    cells[2, 1, 1] = cells[5, 0, 0] = np.nan
    found = compare_predictors(study(cells), "target", statistic=statistic, resamples=50)
    test = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    apart = []
    for d in range(3):
        t, a, b = cells[:, d][np.isfinite(cells[:, d]).all(axis=1)].T
        apart.append(test[statistic](t, a).statistic - test[statistic](t, b).statistic)
    pair = found.sel(protocol="a", other="b")
    back = found.sel(protocol="b", other="a")
    assert pair["difference"] == pytest.approx(np.mean(apart))
    assert (pair["n"], pair["n_datasets"]) == (11, 3)
    assert (back["difference"], back["low"], back["high"]) == (
        -pair["difference"], -pair["high"], -pair["low"],
    )  # fmt: skip
    assert back["p"] == pair["p"] == pair["p_holm"]
    assert found["p"].sel(protocol="a", other="a").isnull()


def test_the_interval_is_close_to_scipys_paired_bootstrap():
    cells = planted(26, (0.8, 0.5), 3)

    def apart(t, a, b, axis):
        r = (stats.pearsonr(t, side, axis=axis).statistic for side in (a, b))
        return np.subtract(*r)

    expected = stats.bootstrap(
        tuple(cells[:, 0].T), apart, paired=True, vectorized=True, n_resamples=5000,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = compare_predictors(study(cells), "target", statistic="pearson", resamples=5000)
    pair = found.sel(protocol="a", other="b")
    assert pair["low"] == pytest.approx(expected.low, abs=0.03)
    assert pair["high"] == pytest.approx(expected.high, abs=0.03)


def test_a_pair_does_not_depend_on_what_else_is_compared():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(10, 2, 5)).cumsum(axis=2)
    cells[3, 0, 4] = np.nan
    alone = compare_predictors(study(cells), "target", ["a", "c"], resamples=200)
    whole = compare_predictors(study(cells), "target", resamples=200)
    for name in ("difference", "low", "p", "n"):
        np.testing.assert_allclose(
            whole[name].sel(protocol="a", other="c"), alone[name].sel(protocol="a", other="c")
        )
    assert whole["n"].sel(protocol="a", other="d") == 9
    assert (whole["p_holm"] >= whole["p"]).where(whole["p"].notnull(), True).all()


@pytest.mark.slow
@pytest.mark.parametrize("n", [14, 26])
def test_equal_predictors_are_called_different_about_one_time_in_twenty_as_by_steiger(n):
    wrong = np.zeros(2)
    runs = 150
    for seed in range(runs):
        cells = planted(n, (0.7, 0.7), seed)
        found = compare_predictors(study(cells), "target", statistic="pearson", resamples=300)
        pair = found.sel(protocol="a", other="b")
        wrong += [pair["p"] < 0.05, pair["p_steiger"] < 0.05]
    assert (wrong / runs < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / runs)).all(), wrong / runs
    assert (wrong > 0).all()


def test_a_better_predictor_is_found_and_copies_of_models_do_not_make_it_surer():
    cells = planted(20, (0.97, 0.3), 1)
    found = compare_predictors(study(cells), "target", statistic="pearson", resamples=500)
    pair = found.sel(protocol="a", other="b")
    assert pair["p"] < 0.01
    assert pair["p_steiger"] < 0.01
    assert pair["low"] > 0
    names = [f"m{i}" for i in range(20)]
    twice = study(np.concatenate([cells, cells]), names * 2)
    copied = compare_predictors(twice, "target", statistic="pearson", resamples=500)
    assert copied["p"].sel(protocol="a", other="b") == pytest.approx(float(pair["p"]), rel=1e-6)


def test_too_few_models_or_protocols_are_said():
    cells = planted(3, (0.8, 0.4), 0)
    found = compare_predictors(study(cells), "target", resamples=20)
    assert found["difference"].isnull().all()
    assert found["n"].sel(protocol="a", other="b") == 3
    with pytest.raises(ValueError, match="two or more besides target, got"):
        compare_predictors(study(cells), "target", ["a"])
    with pytest.raises(ValueError, match="target must be one of target, a, b, got 'z'"):
        compare_predictors(study(cells), "z")
