"""What is no Dataset of results is refused in one line, and what is one passes."""

import numpy as np
import pytest
import xarray as xr

from featstore.results import check_results, same_metric


def results(**changes):
    dims = ("model", "dataset", "bn_mode", "protocol")
    names = {"model": ["a", "b"], "dataset": ["d", "e"], "bn_mode": ["eval"],
             "protocol": ["logreg", "map", "logme"]}  # fmt: skip
    score = np.full((2, 2, 1, 3), 0.5)
    score[..., 2] = -7.0
    score[0, 0] = np.nan
    coords = names | {
        "scale": ("protocol", ["share", "share", "real"]),
        "headline": (("dataset", "protocol"), [["top1", "map11", "logme"], ["top1", "", "logme"]]),
    }
    return xr.Dataset({"score": (dims, score)}, coords | changes)


def test_results_pass_whether_or_not_they_say_what_a_score_is():
    check_results(results())
    check_results(results().transpose("protocol", ...), "headline")
    before = results().drop_vars(["scale", "headline"])  # as of before there were these
    check_results(before)
    check_results(before.assign(score=100 * before["score"]))


def test_scores_that_chance_is_taken_out_of_may_fall_below_it():
    check_results(results().assign(score=results()["score"] - 0.52))  # as of k-means


@pytest.mark.parametrize("dim", ["model", "dataset", "bn_mode", "protocol"])
def test_what_is_there_twice_is_refused(dim):
    twice = xr.concat([results(), results().isel({dim: [0]})], dim, data_vars="all", join="outer")
    name = str(results()[dim].values[0])
    with pytest.raises(
        ValueError, match=rf"^{dim} {name} is there twice, .*drop_duplicates\('{dim}"
    ):
        check_results(twice)
    check_results(twice.drop_duplicates(dim))


@pytest.mark.parametrize(("change", "message"), [
    (lambda one: one.drop_vars("score"), "they lack score"),
    (lambda one: one.drop_vars("headline"), "they lack headline"),
    (lambda one: one.sel(bn_mode="eval"), "got model, dataset, protocol"),
    (lambda one: one.expand_dims(seed=[0]), "without seeds=True"),
    (lambda one: one.drop_vars("model"), "the dim model has no names"),
    (lambda one: one.isel(dataset=[]), "results hold no dataset"),
    (lambda one: one.assign(score=100 * one["score"]), "that of a e eval logreg is 50 .*Divide"),
    (lambda one: one.assign(score=one["score"] - 1.6), "that of a e eval logreg is -1.1 "),
    (lambda one: one.assign_coords(headline=one["headline"] + ", top5"), r"logreg on d are of sev"),
])  # fmt: skip
def test_what_are_no_results_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_results(change(results()), "headline")


def test_metrics_of_two_protocols_are_held_beside_each_other():
    assert same_metric(results(), "logreg", "logreg").values.tolist() == [True, True]
    assert same_metric(results(), "logreg", "map").values.tolist() == [False, True]
    unknown = results().drop_vars("headline")
    assert same_metric(unknown, "logreg", "map").values.tolist() == [True, True]
