"""Two models cell by cell: against SciPy, statsmodels and what both have right."""

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from featstore.analysis.two_models import compare_two_models
from featstore.results import Cell, open_results, record

N = 120


def put(root, model, dataset, protocol, right, *, metric="top1", keep=True):
    """A record of test images that were told right or not, with Wilson's interval."""
    value = float(right.mean())
    low, high = proportion_confint(right.sum(), len(right), method="wilson")
    facts = {
        "metrics": {metric: {"value": value, "low": low, "high": high}}, "headline": metric,
        "certificate": {}, "splits": {}, "n_train": 9, "n_test": len(right), "n_skipped": 0,
        "n_categories": 4, "seconds": 0.1, "settings": {"kind": "linear", "scale": "share"},
        "transductive": False, "versions": {"featstore": "0.1.0"},
        "model_info": {"backbone": "resnet", "pretraining": [], "bn_free": False, "stage": "late"},
        "dataset_info": {"metric": metric, "source": "x"},
    }  # fmt: skip
    rows = {"index": np.arange(len(right)), "label": np.arange(len(right)) % 4}
    kept = rows | {"rank": np.where(right, 0, 1)} if keep else {}
    record(root, Cell(model, dataset, "eval", protocol, 0, "a" * 64), facts, kept)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Folder of records, and who had which image right."""
    root, rng = tmp_path_factory.mktemp("two") / "r", np.random.default_rng(0)
    right = {}
    for dataset in "de":
        for protocol in ("knn", "logreg"):
            hard = rng.random(N)
            for model, skill in (("a", 0.75), ("b", 0.6), ("c", 0.6)):
                hits = hard + rng.normal(0, 0.2, N) < skill
                right[model, dataset, protocol] = hits
                put(root, model, dataset, protocol, hits)
    for model in "ab":
        put(root, model, "d", "map", right[model, "d", "knn"], metric="map")
        put(root, model, "d", "none", right[model, "d", "knn"], keep=False)
    return root, right


def test_with_records_models_are_compared_on_the_same_images(cells):
    root, right = cells
    found = compare_two_models(open_results(root), "a", "b", root=root)
    p = []
    for dataset in "de":
        for protocol in ("knn", "logreg"):
            a, b = (right[model, dataset, protocol] for model in "ab")
            cell = found.sel(dataset=dataset, protocol=protocol)
            difference = np.mean(a.astype(float) - b)
            assert cell["difference"] == pytest.approx(difference)
            spread = 1.96 * np.std(a.astype(float) - b) / N**0.5
            assert cell["low"] == pytest.approx(difference - spread, abs=0.015)
            assert cell["high"] == pytest.approx(difference + spread, abs=0.015)
            only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
            expected = binomtest(only_a, only_a + only_b).pvalue
            assert cell["p"] == pytest.approx(expected)
            assert cell["paired"]
            p.append(expected)
    holm = multipletests(p, method="holm")[1].reshape(2, 2)
    np.testing.assert_allclose(found["p_holm"].sel(protocol=["knn", "logreg"]), holm)
    assert found.attrs["n_tests"] == 4


def test_turned_round_the_signs_turn(cells):
    root, _ = cells
    results = open_results(root)
    for folder in (root, None):
        one = compare_two_models(results, "a", "b", root=folder)
        two = compare_two_models(results, "b", "a", root=folder)
        np.testing.assert_allclose(one["difference"], -two["difference"])
        np.testing.assert_allclose(one["low"], -two["high"], atol=0.01)
        np.testing.assert_array_equal(one["p_holm"], two["p_holm"])


def test_without_records_limits_are_those_of_two_independent_shares(cells):
    root, right = cells
    found = compare_two_models(open_results(root), "a", "b")
    paired = compare_two_models(open_results(root), "a", "b", root=root)
    for dataset in "de":
        for protocol in ("knn", "logreg"):
            counts = [int(right[model, dataset, protocol].sum()) for model in "ab"]
            low, high = confint_proportions_2indep(counts[0], N, counts[1], N, method="newcomb")
            cell = found.sel(dataset=dataset, protocol=protocol)
            assert cell["low"] == pytest.approx(low)
            assert cell["high"] == pytest.approx(high)
            assert not cell["paired"]
            assert np.isnan(cell["p"])
            same = paired.sel(dataset=dataset, protocol=protocol)
            assert same["high"] - same["low"] < cell["high"] - cell["low"]


def test_scores_that_are_no_share_of_images_are_not_paired(cells):
    root, _ = cells
    found = compare_two_models(open_results(root), "a", "b", root=root)
    assert found["paired"].sel(dataset="d").values.tolist() == [True, True, False, False]
    assert found["p"].sel(dataset="d", protocol=["map", "none"]).isnull().all()
    assert found["low"].sel(dataset="d").notnull().all()
    assert found["difference"].sel(dataset="e", protocol="map").isnull()
    missing = compare_two_models(open_results(root), "a", "c", root=root)
    assert missing["difference"].sel(protocol=["map", "none"]).isnull().all()


def test_predictions_that_are_damaged_are_named_and_pair_nothing(tmp_path, caplog):
    for model, seed in (("a", 1), ("b", 2)):
        put(tmp_path, model, "d", "knn", np.random.default_rng(seed).random(N) < 0.5)
    (bad,) = tmp_path.glob("a/*/*/*/*.npz")
    bad.write_bytes(b"")
    found = compare_two_models(open_results(tmp_path), "a", "b", root=tmp_path)
    assert not found["paired"].any()
    assert found["low"].notnull().all()
    assert f"not paired: {bad} is not what was written" in caplog.text


def test_names_that_are_not_there_are_refused(cells):
    results = open_results(cells[0])
    with pytest.raises(ValueError, match="model must be one of a, b, c, got 'x'"):
        compare_two_models(results, "a", "x")
    with pytest.raises(ValueError, match="got a twice"):
        compare_two_models(results, "a", "a")
    with pytest.raises(ValueError, match="bn_mode must be one of eval, got 'batch'"):
        compare_two_models(results, "a", "b", bn_mode="batch")
