"""Which of two protocols predicts a third better, against brute force and in simulation."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.versus import compare_predictors
from featstore.kernels.correlate import steiger


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


SCALES = {
    "pearson": (stats.pearsonr, np.arctanh, np.tanh),
    "spearman": (stats.spearmanr, np.arcsin, lambda z: np.sin(np.clip(z, -np.pi / 2, np.pi / 2))),
}


@pytest.mark.parametrize("statistic", SCALES)
def test_limits_and_p_are_those_worked_by_hand(statistic):
    cells = planted(9, (0.8, 0.5), 3)[:, 0]
    test, ahead, back = SCALES[statistic]

    def both(kept):
        return np.array([test(cells[kept, 0], cells[kept, side]).statistic for side in (1, 2)])

    r = both(np.arange(9))
    without = np.stack([both(np.delete(np.arange(9), one)) for one in range(9)])
    apart = ahead(without) - ahead(without).mean(axis=0)
    reach = stats.t.ppf(0.975, 8) * np.sqrt(8 / 9 * (apart**2).sum(axis=0))
    low, high = back(ahead(r) - reach), back(ahead(r) + reach)
    c = stats.pearsonr(*ahead(without).T).statistic
    below = np.sqrt(
        (r[0] - low[0]) ** 2 + (high[1] - r[1]) ** 2 - 2 * c * (r[0] - low[0]) * (high[1] - r[1])
    )
    above = np.sqrt(
        (high[0] - r[0]) ** 2 + (r[1] - low[1]) ** 2 - 2 * c * (high[0] - r[0]) * (r[1] - low[1])
    )
    drawn = np.random.default_rng(0).integers(0, 9, (400, 9))
    z = np.array([ahead(both(one)) for one in drawn])
    size = abs(np.subtract(*ahead(r))) / np.subtract(*z.T).std()
    pair = compare_predictors(
        study(cells[:, None]), "target", statistic=statistic, resamples=400
    ).sel(protocol="a", other="b")
    assert pair["difference"] == pytest.approx(r[0] - r[1])
    assert pair["low"] == pytest.approx(r[0] - r[1] - below)
    assert pair["high"] == pytest.approx(r[0] - r[1] + above)
    assert pair["p"] == pytest.approx(2 * stats.t.sf(size, 8), rel=1e-3)
    if statistic == "pearson":
        between = stats.pearsonr(cells[:, 1], cells[:, 2]).statistic
        assert pair["p_steiger"] == pytest.approx(float(steiger(*r, between, 9)[1]))


@pytest.mark.slow
def test_limits_hold_the_true_difference_as_often_as_they_say():
    truth, held, runs = 0.8 - 0.4, 0, 200
    for seed in range(runs):
        found = compare_predictors(
            study(planted(14, (0.8, 0.4), seed)), "target", statistic="pearson", resamples=20
        ).sel(protocol="a", other="b")
        held += bool(found["low"] <= truth <= found["high"])
    assert held / runs > 0.95 - 2.6 * np.sqrt(0.95 * 0.05 / runs)


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
