"""Calibration errors and what bins of confidence are worth, by plain loops."""

import numpy as np
import pytest
import xarray as xr

from featstore.analysis import plots
from featstore.analysis.calibration import SCALED, calibration_errors, pooled_reliability


@pytest.fixture(scope="module")
def study(make_study):
    made = make_study(7).copy(deep=True)
    for name in ("ece", "reliability_count", "reliability_confidence", "reliability_accuracy"):
        made[name][4, 1, 0, 3] = np.nan  # a cell of logreg from before this was kept
    made["reliability_count"].loc[{"dataset": "set-1"}] *= 3  # a larger one counts no more
    stage = made["stage"].values.copy()
    stage[2] = "random"
    return made.assign_coords(stage=("model", stage))


def test_errors_are_means_over_independent_models_of_their_means_over_datasets(study):
    found = calibration_errors(study)
    assert "ncm" not in found["protocol"].values  # no probabilities
    assert "logme" not in found["protocol"].values
    for protocol in found["protocol"].values:
        cells = study["ece"].sel(protocol=protocol, bn_mode="eval").values
        means = [row[np.isfinite(row)].mean() for row in np.delete(cells, 2, axis=0)]
        one = found.sel(protocol=protocol)
        assert one["ece"] == pytest.approx(np.mean(means))
        assert one["ece_low"] < one["ece"] < one["ece_high"]
    assert (found["n_models"] == 8).all()
    assert found["ece_scaled_val"].sel(protocol="linear-marks").isnull()


@pytest.mark.parametrize("name", SCALED)
def test_what_stands_before_and_after_scaling_is_of_the_same_cells(study, name):
    study = study.copy(deep=True)
    study[name].loc[{"dataset": "set-0"}] = np.nan
    study[name][3, :, 0, 3] = np.nan
    found = calibration_errors(study)
    late = study.isel(model=[i for i in range(9) if i != 2]).sel(bn_mode="eval")
    for protocol in found["protocol"].values:
        one, cells = found.sel(protocol=protocol), late.sel(protocol=protocol)
        before, after = (cells[k].transpose("model", "dataset").values for k in ("ece", name))
        both = np.isfinite(before) & np.isfinite(after)
        assert one[f"{name}_cells"] == both.sum()
        assert one["n_cells"] == np.isfinite(before).sum()
        for column, values in ((f"{name}_before", before), (name, after)):
            means = [row[there].mean() for row, there in zip(values, both, strict=True)
                     if there.any()]  # fmt: skip
            assert one[column] == pytest.approx(np.mean(means) if means else np.nan, nan_ok=True)
    assert 0 < found[f"{name}_cells"].sel(protocol="logreg") < found["n_cells"].max()
    assert found["n_cells"].sel(protocol="logreg") == 8 * 3 - 1


def test_a_temperature_that_changes_nothing_is_seen_to_change_nothing(make_study):
    made = make_study(0, n_datasets=2).sel(protocol=["logreg"])
    made["ece"].loc[{"dataset": "set-0"}], made["ece"].loc[{"dataset": "set-1"}] = 0.30, 0.02
    made["ece_scaled"] = made["ece"].copy()
    made["ece_scaled_val"] = made["ece"].where(made["dataset"] == "set-1")  # has a val split
    one = calibration_errors(made).isel(protocol=0)
    assert one["ece"] == pytest.approx(0.16)
    assert one["ece_scaled_val_before"] == one["ece_scaled_val"] == pytest.approx(0.02)
    assert one["ece_scaled_before"] == one["ece_scaled"] == pytest.approx(0.16)
    assert (one["n_cells"], one["ece_scaled_val_cells"]) == (18, 9)


def test_what_is_transductive_of_calibration_is_marked(study):
    found = calibration_errors(study)
    marked = found["protocol"].values[found["transductive"].values]
    assert marked.tolist() == ["knn-marks-zscore-own"]
    assert calibration_errors(study, bn_mode="batch")["transductive"].all()
    told = {name for name in found if found[name].attrs.get("transductive")}
    assert told == {"ece_scaled", "ece_scaled_low", "ece_scaled_high"}


def test_results_without_any_calibration_have_no_row(study):
    without = study.drop_vars([name for name in study if str(name).startswith("ece")])
    assert calibration_errors(without).sizes["protocol"] == 0
    with pytest.raises(ValueError, match="bn_mode must be one of eval, batch, adapt, got 'x'"):
        calibration_errors(study, bn_mode="x")


@pytest.mark.parametrize("dataset", [None, "set-1"])
def test_each_model_and_each_dataset_counts_the_same(study, dataset):
    where = {"protocol": "logreg", "bn_mode": "eval"}
    pooled, by_model = pooled_reliability(study, protocol="logreg", dataset=dataset)
    datasets = study["dataset"].values if dataset is None else [dataset]
    shares, sums, hits = [], [], []  # of models
    for model in [name for name in study["model"].values if name != "resnet-2"]:
        own = []
        for one in datasets:
            cell = study.sel(where | {"model": model, "dataset": one})
            count = cell["reliability_count"].values
            if np.isfinite(count).all():
                share = count / count.sum()
                columns = (cell[f"reliability_{k}"].values for k in ("confidence", "accuracy"))
                own.append([share, *(share * np.where(share > 0, c, 0) for c in columns)])
        if not own:
            assert model not in by_model["model"].values
            continue
        for kept, column in zip((shares, sums, hits), np.mean(own, axis=0), strict=True):
            kept.append(column)
        found = by_model.sel(model=model)
        some = shares[-1] > 0
        np.testing.assert_allclose(found["share"], shares[-1])
        np.testing.assert_allclose(found["confidence"][some], sums[-1][some] / shares[-1][some])
        np.testing.assert_allclose(found["accuracy"][some], hits[-1][some] / shares[-1][some])
        assert found["accuracy"][~some].isnull().all()
    share, total, right = (np.mean(column, axis=0) for column in (shares, sums, hits))
    np.testing.assert_allclose(pooled["share"], share)
    some = share > 0
    np.testing.assert_allclose(pooled["confidence"][some], total[some] / share[some])
    np.testing.assert_allclose(pooled["accuracy"][some], right[some] / share[some])
    assert pooled["share"].sum() == pytest.approx(1)


def test_of_dependent_models_alone_all_count(study):
    only = study.isel(model=[2])
    _, by_model = pooled_reliability(only, protocol="logreg")
    assert by_model["model"].values.tolist() == ["resnet-2"]


def test_the_diagram_has_a_line_a_model_one_of_all_and_bars(study):
    pooled, by_model = pooled_reliability(study, protocol="knn-marks-zscore-own")
    ax = plots.reliability(study, protocol="knn-marks-zscore-own")
    tips = [line for line in ax.lines if (line.get_gid() or "").startswith("tip:")]
    assert [line.get_gid()[4:] for line in tips] == by_model["model"].values.tolist()
    (whole,) = (line for line in ax.lines if line.get_linewidth() == 2)
    shown = pooled["share"].values >= 0.01
    np.testing.assert_allclose(whole.get_xdata(), 100 * pooled["confidence"].values[shown])
    np.testing.assert_allclose(whole.get_ydata(), 100 * pooled["accuracy"].values[shown])
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(100 * pooled["share"].values)
    assert ax.patches[3].get_x() == pytest.approx(20)
    assert ax.get_title() == "knn-marks-zscore-own \N{DAGGER}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"protocol": "ncm"}, "ncm has no reliability here: it gives no probabilities, or was"),
        ({"protocol": "svm"}, "protocol must be one of knn-marks, .* got 'svm'"),
        ({"protocol": "logreg", "dataset": "x"}, "dataset must be one of set-0, .* got 'x'"),
        ({"protocol": "finetune-marks", "bn_mode": "x"}, "bn_mode must be one of .* got 'x'"),
    ],
)
def test_what_has_no_diagram_says_why(study, wrong, message):
    with pytest.raises(ValueError, match=message):
        plots.reliability(study, **wrong)


def test_results_from_before_reliability_was_kept_say_so(study):
    old = study.drop_dims("bin")
    with pytest.raises(ValueError, match="probe again with --overwrite"):
        plots.reliability(old, protocol="logreg")


def test_a_dataset_that_is_on_disk_yet_is_read(study):
    """As `xarray.open_zarr` gives it."""
    for one, other in zip(
        pooled_reliability(study.chunk(), protocol="logreg"),
        pooled_reliability(study, protocol="logreg"),
        strict=True,
    ):
        xr.testing.assert_identical(one.compute(), other)
