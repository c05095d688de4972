"""What no analysis can answer ends in one line, or in NaN: over all that take results."""

import re

import numpy as np
import pytest
import xarray as xr

import featstore
from featstore import FeatStoreError

ASKED = {  # function of results -> its other arguments
    "backbone_bn": (),
    "calibration_errors": (),
    "compare_predictors": ("finetune-marks",),
    "compare_protocols": ("logreg", ["knn-marks", "logme"]),
    "compare_two_models": ("resnet-0", "resnet-1"),
    "correlate_domains": (),
    "correlate_protocols": (),
    "critical_difference": {"protocol": "logreg"},
    "family_gap": {"attribute": "family", "groups": ("contrastive", "clustering")},
    "forecast": {"target": "finetune-marks", "predictors": ["logreg", "knn-marks"]},
    "head_bn": (),
    "influence": (),
    "pareto": ("finetune-marks",),
    "predictors": ("finetune-marks",),
    "rank_models": (),
    "ranking_stability": {"protocol": "logreg", "top": 1},
    "seed_reliability": ("logreg",),
    "text_table": {"form": "markdown"},
}
DIMS = ("model", "dataset", "bn_mode", "protocol")
COEFFICIENTS = r"(pearson|spearman|kendall|skill|p_steiger|agreement)(_.*)?"
OVER_MODELS = rf"{COEFFICIENTS}|(difference|places|ece|ece_scaled.*|pooled|within)_(low|high)"


def ask(name, results):
    """The answer of a function, with results of several seeds where it is about these."""
    how = ASKED[name]
    if name == "seed_reliability" and "score" in results:
        results = seeds(results)
    function = getattr(featstore, name)
    return function(results, **how) if isinstance(how, dict) else function(results, *how)


def seeds(results):
    """The same as if opened with two seeds."""
    cells = [name for name, one in results.items() if {*DIMS} <= {*one.dims}]
    return results.assign(results[cells].expand_dims(seed=[0, 1]))


def without(results, there):
    """The same with no cell where the mask does not hold."""
    cells = [name for name, one in results.items() if {*DIMS} <= {*one.dims}]
    return results.assign(results[cells].where(there))


def numbers(answer, names):
    """Finite numbers of an answer, under names that match."""
    if isinstance(answer, float):
        return [answer] if np.isfinite(answer) else []
    if not isinstance(answer, xr.Dataset):
        return []
    chosen = [n for n, v in answer.items() if re.fullmatch(names, n) and v.dtype.kind == "f"]
    return [f"{name} {value}" for name in chosen for value in answer[name].values.ravel()
            if np.isfinite(value)]  # fmt: skip


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(n_datasets=4)


def test_every_public_analysis_of_results_is_asked():
    # Plots show what analyses say, and some of these are of records, or of features.
    others = {"plots", "ranking_plots", "study_plots", "similarity", "differences", "images",
              "published", "beside"}  # fmt: skip
    homes = {name: home.split(".") for name, home in featstore._HOMES.items()}
    takes = {name for name, home in homes.items() if home[1:2] == ["analysis"]}
    assert {name for name in takes if homes[name][2] not in others} == set(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_a_whole_study_has_numbers(study, name):
    answer = ask(name, study)
    assert isinstance(answer, str) or numbers(answer, ".*")


SPOILT = {
    "twice": (lambda one: xr.concat([one, one.isel(model=[0])], "model", data_vars="all",
                                    coords="minimal", compat="override", join="outer"),
              "model resnet-0 is there twice"),
    "percent": (lambda one: one.assign(score=100 * one["score"]), "Divide percent by 100"),
    "no score": (lambda one: one.drop_vars("score"), "they lack score"),
    "no dim": (lambda one: one.isel(bn_mode=0), "score must have the dims"),
    "no names": (lambda one: one.drop_vars("dataset"), "the dim dataset has no names"),
    "metrics": (lambda one: one.assign_coords(headline=(("dataset", "protocol"), np.full(
        (one.sizes["dataset"], one.sizes["protocol"]), "map, top1"))), "are of several metrics"),
    "nothing": (lambda one: xr.Dataset(), "these are no results: they lack score"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("fault", SPOILT)
def test_what_are_no_results_is_refused_in_one_line(study, name, fault):
    spoil, message = SPOILT[fault]
    with pytest.raises(ValueError, match=message) as raised:
        ask(name, spoil(study))
    assert "\n" not in str(raised.value)


LITTLE = {
    "no model": lambda one: one.isel(model=[]),
    "one model": lambda one: one.isel(model=[0]),
    "three models": lambda one: one.isel(model=[0, 1, 2]),
    "two backbones": lambda one: one.isel(model=[0, 6, 7]),
    "constant": lambda one: one.assign(score=one["score"] * 0 + 0.5, low=0.4 + 0 * one["low"]),
    "nothing measured": lambda one: without(one, xr.zeros_like(one["score"], bool)),
    "none independent": lambda one: one.assign_coords(
        stage=("model", ["early"] * one.sizes["model"])),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("case", LITTLE)
def test_there_is_no_coefficient_where_there_can_be_none(study, name, case):
    try:
        answer = ask(name, LITTLE[case](study))
    except (ValueError, FeatStoreError) as error:
        assert "\n" not in str(error)  # noqa: PT017  # an answer without numbers will do as well
        assert len(str(error)) > 20  # noqa: PT017
        return
    assert numbers(answer, COEFFICIENTS if case == "constant" else OVER_MODELS) == []


SPARSE = {
    "one dataset": lambda one: one.isel(dataset=[0]),
    "another dataset": lambda one: one.isel(dataset=[1]),
    "no dataset": lambda one: one.isel(dataset=[]),
    "one protocol": lambda one: one.sel(protocol=["logreg"]),
    "no protocol": lambda one: one.isel(protocol=[]),
    "a protocol without cells": lambda one: without(one, one["protocol"] != "logreg"),
    "a target without cells": lambda one: without(one, one["protocol"] != "finetune-marks"),
    "a model without cells": lambda one: without(one, one["model"] != "resnet-0"),
    "a dataset without cells": lambda one: without(one, one["dataset"] != "set-0"),
    "a constant protocol": lambda one: one.assign(
        score=one["score"].where(one["protocol"] != "logreg", 0.5)),
    "a constant model": lambda one: one.assign(
        score=one["score"].where(one["model"] != "resnet-0", 0.0)),
    "half of the cells": lambda one: without(one, xr.DataArray(
        np.random.default_rng(0).random(one["score"].shape) < 0.5, dims=one["score"].dims)),
    "few coordinates": lambda one: one.drop_vars(
        [name for name in ("headline", "cluster", "n_test", "without_normalisation",
                           "without_backbone_bn", "transductive") if name in one]),
    "no stage": lambda one: one.drop_vars("stage"),
    "no shift": lambda one: one.drop_vars("shift"),
    "no seconds": lambda one: one.drop_vars("seconds"),
    "no kind": lambda one: one.drop_vars("kind"),
    "no limits": lambda one: one.drop_vars(["low", "high"]),
    "no bn_free": lambda one: one.drop_vars("bn_free"),
    "no scale": lambda one: one.drop_vars("scale"),
    "one BN mode": lambda one: one.sel(bn_mode=["adapt"]),
    "seeds": lambda one: seeds(one),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("case", SPARSE)
def test_gaps_end_in_an_answer_or_in_one_line(study, name, case):
    try:
        ask(name, SPARSE[case](study))
    except (ValueError, FeatStoreError) as error:
        assert "\n" not in str(error)  # noqa: PT017  # an answer will do as well
        assert len(str(error)) > 20  # noqa: PT017
