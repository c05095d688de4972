"""Which protocols go with an expensive one, against SciPy and plain medians."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.predict import expensive, predictors
from featstore.reporting.facts import cheap_predictor


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(5)


def test_protocols_come_in_the_order_of_their_rank_correlation(study):
    found = predictors(study, "finetune-marks")
    assert set(found["protocol"].values) == set(study["protocol"].values) - {"finetune-marks"}
    assert (np.diff(found["spearman"].values) <= 0).all()
    scores = study["score"].sel(bn_mode="eval")
    for name in found["protocol"].values:
        r = [
            stats.spearmanr(one.sel(protocol=name), one.sel(protocol="finetune-marks")).statistic
            for one in scores.transpose("dataset", ...)
        ]
        cell = found.sel(protocol=name)
        assert cell["spearman"] == pytest.approx(np.mean(r))
        seconds = study["seconds"].sel(bn_mode="eval", protocol=name)
        assert cell["seconds"] == pytest.approx(np.median(seconds.values))
    assert found.attrs["seconds"] == pytest.approx(
        np.median(study["seconds"].sel(bn_mode="eval", protocol="finetune-marks").values)
    )


def test_a_correlation_that_is_there_is_not_made_again(study):
    table = correlate_protocols(study, by_dataset=False)
    once = predictors(study, "logreg", correlations=table)
    xr.testing.assert_identical(once, predictors(study, "logreg"))
    for end in ("", "_low", "_high"):
        column = table[f"pearson{end}"].sel(other="logreg", protocol=once["protocol"].values)
        np.testing.assert_array_equal(once[f"pearson{end}"].values, column.values)


def test_a_protocol_without_cells_comes_last_and_costs_nothing_known(study):
    holed = study.copy(deep=True)
    holed["score"].loc[{"protocol": "ncm"}] = np.nan
    found = predictors(holed, "finetune-marks")
    assert found["protocol"].values[-1] == "ncm"
    assert found["spearman"][-1].isnull()
    assert found["seconds"][-1].isnull()


def test_the_best_cheap_one_takes_a_tenth_of_the_time_at_most(study):
    found = predictors(study, "finetune-marks")
    best = cheap_predictor(found)
    cheap = [n for n in found["protocol"].values if "finetune" not in n and "linear-m" not in n]
    assert best["protocol"] == cheap[0]
    assert cheap_predictor(predictors(study, "rankme")) is None
    seconds = np.full(found.sizes["protocol"], 0.11)
    seconds[3:5] = 0.1
    timed = found.assign(seconds=("protocol", seconds)).assign_attrs(seconds=1.0)
    assert cheap_predictor(timed)["protocol"] == found["protocol"].values[3]


def test_fine_tunings_are_worth_predicting_or_else_the_reference(study):
    study = study.copy(deep=True)
    study["seconds"] = study["seconds"].transpose(..., "protocol")
    both = ["finetune-marks", "finetune-marks-bn"]
    study["seconds"].loc[{"protocol": both}] = [10.0, 20.0]
    assert expensive(study, "logreg", "eval") == both[::-1]  # the dearest first
    study["seconds"].loc[{"protocol": both}] = [20.0, 10.0]
    assert expensive(study, "logreg", "eval") == both
    holed = study.copy(deep=True)
    holed["score"].loc[{"protocol": "finetune-marks"}] = np.nan
    assert expensive(holed, "logreg", "eval") == ["finetune-marks-bn"]
    assert expensive(study.sel(protocol=["ncm", "logreg"]), "logreg", "eval") == ["logreg"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": "svm"}, "target must be one of knn-marks, .* got 'svm'"),
        ({"target": "ncm", "bn_mode": "x"}, "bn_mode must be one of eval, batch, adapt, got 'x'"),
        ({"target": "ncm", "models": "x"}, "models must be one of independent, all, got 'x'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(study, wrong, message):
    with pytest.raises(ValueError, match=message):
        predictors(study, **wrong)
