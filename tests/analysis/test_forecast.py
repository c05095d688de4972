"""Forecasts against loops with scikit-learn, and in studies whose truth is known."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.special import expit, logit
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featstore.analysis.forecast import forecast

DIMS = ("model", "dataset", "bn_mode", "protocol")
PROTOCOLS = ["knn", "ncm", "logme", "finetune"]
METHODS = [f"method{i // 2}" for i in range(6)] + [f"method{i}" for i in range(6, 16)]


def study(seed=0, *, signal=1.0, noise=0.2, n_models=16):
    """Models of a quality that shows everywhere, more or less; the first six are three methods."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, signal, (n_models, 1, 1))
    hard = np.array([1.5, 0.5, 0.0, 0.2, -0.5])[:, None]
    odds = quality + hard + rng.normal(0, noise, (n_models, 5, 4))
    score = expit(odds)
    score[:, :, 2] = 30 * odds[:, :, 2] - 7  # no share
    cost = np.broadcast_to([2.0, 0.5, 0.2, 100.0], score.shape)
    return xr.Dataset(
        {"score": (DIMS, score[:, :, None]), "seconds": (DIMS, cost[:, :, None])},
        {
            "model": [f"m{i}" for i in range(n_models)],
            "dataset": ["home", "a", "b", "c", "d"],
            "bn_mode": ["eval"],
            "protocol": PROTOCOLS,
            "method": ("model", METHODS[:n_models]),
            "lineage": ("model", [f"run{i}" for i in range(n_models)]),
            "stage": ("model", ["late"] * n_models),
            "shift": ("dataset", ["in-domain", *["other"] * 4]),
            "cluster": ("dataset", ["home", "a", "twins", "twins", "d"]),
            "scale": ("protocol", ["share", "share", "real", "share"]),
        },
    )


def by_hand(results, leave, predictors, penalty):
    """Forecasts and training means of the fine-tuning, cell by cell with scikit-learn."""
    scores = results["score"].isel(bn_mode=0)
    x = np.column_stack(
        [
            one if name == "logme" else logit(one)
            for name in predictors
            for one in [scores.sel(protocol=name, dataset="home").values]
        ]
    )
    y = scores.sel(protocol="finetune", dataset=["a", "b", "c", "d"])
    y = y.transpose("model", "dataset").values
    method, cluster = results["method"].values, ["a", "twins", "twins", "d"]
    predicted, average = np.full((2, *y.shape), np.nan)
    for m, d in np.ndindex(y.shape):
        pairs = [
            (i, j)
            for i, j in np.ndindex(y.shape)
            if np.isfinite(y[i, j])
            and (
                (j == d and method[i] != method[m])
                if leave == "model"
                else cluster[j] != cluster[d]
            )
        ]
        if np.isnan(y[m, d]):
            continue
        fit = make_pipeline(StandardScaler(), Ridge(penalty))
        fit.fit([x[i] for i, _ in pairs], [logit(y[i, j]) for i, j in pairs])
        predicted[m, d] = expit(fit.predict(x[[m]])[0])
        average[m, d] = np.mean([y[i, j] for i, j in pairs])
    return predicted, average, y


@pytest.mark.parametrize("leave", ["model", "dataset"])
@pytest.mark.parametrize(
    ("predictors", "penalty"), [(["knn"], 1e-12), (["knn", "ncm", "logme"], 1.0), (["logme"], 3.0)]
)
def test_forecasts_are_those_of_a_loop_with_scikit_learn(leave, predictors, penalty):
    results = study(1)
    results["score"].loc[{"model": "m3", "dataset": "b", "protocol": "finetune"}] = np.nan
    predicted, average, true = by_hand(results, leave, predictors, penalty)
    found = forecast(
        results, target="finetune", predictors=predictors, penalty=penalty, leave=leave
    )
    found = found.transpose("baseline", "model", "dataset", ...)
    np.testing.assert_allclose(found["predicted"], predicted, rtol=1e-7)
    np.testing.assert_allclose(found["true"], true)
    np.testing.assert_allclose(found["naive"].sel(baseline="mean"), average)
    assert list(found["n"].values) == [16, 15, 16, 16]

    error, naive = np.abs(predicted - true), np.abs(average - true)
    np.testing.assert_allclose(found["mae"], np.nanmean(error, axis=0), rtol=1e-7)
    np.testing.assert_allclose(found["mae_naive"].sel(baseline="mean"), np.nanmean(naive, axis=0))
    assert float(found["mae_mean"]) == pytest.approx(np.nanmean(error))
    rank = stats.spearmanr(predicted, true, nan_policy="omit").statistic
    rank = [rank[d, d + 4] for d in range(4)]
    np.testing.assert_allclose(found["spearman"], rank, atol=1e-9)
    assert float(found["spearman_mean"]) == pytest.approx(np.mean(rank))
    skill = 1 - np.nanmean(error) / np.nanmean(naive)
    assert float(found["skill"].sel(baseline="mean")) == pytest.approx(skill)


def test_the_in_domain_score_itself_is_the_other_baseline():
    results = study(2)
    lacking = results.copy(deep=True)  # no fine-tuning at home: the first predictor that is a share
    lacking["score"].loc[{"protocol": "finetune", "dataset": "home"}] = np.nan
    for one, protocol in ((results, "finetune"), (lacking, "ncm")):
        found = forecast(one, target="finetune", predictors=["logme", "ncm", "knn"])
        home = results["score"].sel(protocol=protocol, dataset="home", bn_mode="eval").values
        naive = found["naive"].sel(baseline="in-domain").transpose("model", "dataset")
        np.testing.assert_array_equal(naive, np.tile(home[:, None], 4))
        assert found.attrs["naive_in_domain"] == protocol
    error = np.abs(naive.values - found["true"].values)
    assert float(found["mae_naive_mean"].sel(baseline="in-domain")) == pytest.approx(error.mean())
    found = forecast(lacking, target="finetune", predictors=["logme"])
    assert found["skill"].sel(baseline="in-domain").isnull()


@pytest.mark.parametrize("leave", ["model", "dataset"])
def test_the_interval_is_a_jackknife_over_what_is_left_out_together(leave):
    results = study(3)
    how = {"target": "finetune", "predictors": ["knn"], "leave": leave}
    found = forecast(results, **how).sel(baseline="mean")
    units = METHODS if leave == "model" else ["a", "twins", "twins", "d"]
    every = results[leave].values if leave == "model" else ["a", "b", "c", "d"]
    rest = []
    for unit in dict.fromkeys(units):
        out = [name for name, one in zip(every, units, strict=True) if one == unit]
        again = forecast(results.drop_sel({leave: out}), **how).sel(baseline="mean")
        rest.append(np.log(1 - float(again["skill"])))
    n = len(rest)
    reach = np.sqrt((n - 1) / n * np.sum((rest - np.mean(rest)) ** 2)) * stats.t.ppf(0.975, n - 1)
    middle = np.log(1 - float(found["skill"]))
    ends = [float(found[f"skill_{end}"]) for end in ("low", "high")]
    if leave == "dataset":  # three clusters are too few
        assert np.isnan(ends).all()
    else:
        assert ends == pytest.approx([1 - np.exp(middle + reach), 1 - np.exp(middle - reach)])


def moved(results, **place):
    """Results with other fine-tuned scores at a place."""
    other = results.copy(deep=True)
    other["score"].loc[{"protocol": "finetune", **place}] **= 3
    return other


def test_nothing_is_learnt_from_a_relative_of_the_model_that_is_foretold():
    results = study(4)
    results["lineage"][9] = "run8"
    results["method"][8:10] = ""  # where no method is told, the lineage is
    how = {"target": "finetune", "predictors": ["knn"]}
    before = forecast(results, **how)["predicted"]
    for model, relatives in (("m0", {"m0", "m1"}), ("m9", {"m8", "m9"}), ("m15", {"m15"})):
        after = forecast(moved(results, model=model), **how)["predicted"]
        same = {str(one) for one in before["model"][(before == after).all("dataset")].values}
        assert same == relatives


def test_nothing_is_learnt_from_a_dataset_of_the_cluster_that_is_foretold():
    results = study(5)
    how = {"target": "finetune", "predictors": ["knn"], "leave": "dataset"}
    before = forecast(results, **how)["predicted"]
    for dataset, cluster in (("b", {"b", "c"}), ("a", {"a"})):
        after = forecast(moved(results, dataset=dataset), **how)["predicted"]
        same = {str(one) for one in before["dataset"][(before == after).all("model")].values}
        assert same == cluster


@pytest.mark.parametrize("leave", ["model", "dataset"])
def test_a_relation_that_is_there_is_foretold(leave):
    found = [
        forecast(study(seed), target="finetune", leave=leave).sel(baseline="mean")
        for seed in range(20)
    ]
    assert np.mean([one["skill"] for one in found]) > 0.4
    assert np.mean([one["spearman_mean"] for one in found]) > 0.85
    if leave == "model":
        assert np.mean([one["skill_low"] > 0 for one in found]) > 0.9


def test_of_noise_nothing_is_foretold():
    found = [
        forecast(study(seed, signal=0, noise=1), target="finetune").sel(baseline="mean")
        for seed in range(60)
    ]
    assert -0.25 < np.mean([one["skill"] for one in found]) < 0
    assert np.mean([one["skill_low"] > 0 for one in found]) < 0.05
    assert np.mean([one["spearman_mean"] for one in found]) < 0.05


def test_without_names_all_that_is_cheap_and_whole_predicts():
    results = study(6)
    assert list(forecast(results, target="finetune")["predictor"].values) == PROTOCOLS[:3]
    results["score"].loc[{"model": "m0", "dataset": "home", "protocol": "ncm"}] = np.nan
    found = forecast(results, target="finetune")
    assert list(found["predictor"].values) == ["knn", "logme"]
    assert found["predicted"].notnull().all()
    assert list(forecast(results, target="knn")["predictor"].values) == ["logme"]
    with pytest.raises(ValueError, match="predictors must be named: .* home .* of ncm at most"):
        forecast(results, target="ncm")
    with pytest.raises(ValueError, match="predictors must be named: results do not say"):
        forecast(results.drop_vars("seconds"), target="finetune")


def test_a_model_without_a_predictor_is_neither_foretold_nor_learnt_from():
    results = study(7)
    how = {"target": "finetune", "predictors": ["knn", "ncm"]}
    fewer = forecast(results.drop_sel(model="m7"), **how)
    results["score"].loc[{"model": "m7", "dataset": "home", "protocol": "ncm"}] = np.nan
    found = forecast(results, **how)
    assert found.sel(model="m7")["predicted"].isnull().all()
    assert (found["n"] == 15).all()
    for name in ("predicted", "mae", "spearman", "skill", "skill_low"):
        left = found.drop_sel(model="m7") if "model" in found[name].dims else found
        np.testing.assert_allclose(left[name], fewer[name])


def test_of_fewer_than_four_others_nothing_is_learnt():
    found = forecast(study(n_models=5), target="finetune")  # three methods
    assert found["predicted"].isnull().sum() == 16  # of m4 alone there are four others
    found = forecast(study(n_models=3), target="finetune", leave="dataset")
    for name in ("predicted", "naive", "mae", "mae_mean", "spearman", "skill", "skill_high"):
        assert found[name].isnull().all(), name
    assert (found["n"] == 0).all()


def test_the_same_protocol_in_domain_may_predict_itself_elsewhere_and_nowhere_else():
    results = study(8)
    found = forecast(results, target="knn", predictors=["knn"], datasets=["d", "a"])
    assert list(found["dataset"].values) == ["d", "a"]
    assert found["spearman_mean"] > 0.8
    with pytest.raises(ValueError, match="predictors must not have the target, knn, where"):
        forecast(results, target="knn", predictors=["knn"], datasets=["home", "a"])
    at_home = forecast(results, target="finetune", predictors=["knn"], datasets=["home"])
    assert at_home["predicted"].notnull().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": "svm"}, "target must be one of knn, ncm, finetune, got 'svm'"),
        ({"target": "logme"}, "target must be one of knn, ncm, finetune, got 'logme'"),
        ({"datasets": ["x"]}, "datasets must be one of home, a, b, c, d, got 'x'"),
        ({"predictors": ["x"]}, "predictors must be one of knn, ncm, logme, finetune, got 'x'"),
        ({"leave": "x"}, "leave must be one of model, dataset, got 'x'"),
        ({"in_domain": "x"}, "in_domain must be one of home, a, b, c, d, got 'x'"),
        ({"penalty": -1.0}, "penalty must be 0 or more, got -1.0"),
        ({"penalty": np.nan}, "penalty must be 0 or more, got nan"),
        ({"bn_mode": "x"}, "bn_mode must be one of eval, got 'x'"),
        ({"models": "x"}, "models must be one of independent, all, got 'x'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        forecast(study(), **{"target": "finetune", **wrong})


def test_without_one_dataset_that_is_in_domain_it_must_be_named():
    results = study().assign_coords(shift=("dataset", ["other"] * 5))
    with pytest.raises(ValueError, match="in_domain must name a dataset: 0 are in-domain"):
        forecast(results, target="finetune")
    named = forecast(results, target="finetune", in_domain="home")
    xr.testing.assert_identical(named, forecast(study(), target="finetune"))
