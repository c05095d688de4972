"""Records and the Dataset they make, against the numbers that were recorded."""

import json
import multiprocessing
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

import featstore
from featstore import finetuning, probes
from featstore.backend import namespace
from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.results import (
    Cell,
    export,
    mark_current,
    outcomes_of,
    record,
    records,
    refresh,
)


def facts(value, *, metric="top1", bn_free=False, source="photos", transductive=False):
    ends = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {
        "metrics": {
            "top1": ends,
            "top5": {"value": 1.0, "low": 0.9, "high": 1.0},
            "mean_per_class": {"value": value / 2, "low": value / 4, "high": value},
            "ece": {"value": 0.05, "low": None, "high": None},
        },
        "n_train": 40, "n_test": 20, "n_skipped": 1, "n_categories": 3, "seconds": 0.5,
        "certificate": {"C": 1.0}, "settings": {"kind": "knn", "k": 20, "scale": "share"},
        "headline": metric,
        "transductive": transductive,
        "model_info": {"backbone": "resnet", "family": "contrastive", "method": "simclr",
                       "stage": "late", "lineage": "run1", "pretraining": ["digits"],
                       "bn_free": bn_free},
        "dataset_info": {"shift": "edges", "metric": metric, "source": source},
        "versions": {"featstore": "0.1.0"},
    }  # fmt: skip


def outcomes():
    return {"rank": np.arange(20, dtype=np.int32), "margin": np.zeros(20, np.float32)}


def put(root, value, *, model="m", dataset="d", bn_mode="eval", protocol="knn-marks", seed=0,
        digest="a" * 64, **more):  # fmt: skip
    cell = Cell(model, dataset, bn_mode, protocol, seed, digest)
    splits = {"splits": {"train": digest, "test": digest}}
    record(root, cell, facts(value, **more) | splits, outcomes())
    return cell


def test_what_was_recorded_stands_in_the_dataset(tmp_path):
    put(tmp_path / "r", 0.5, model="timm:a b@cls", dataset="folder:/x y")
    put(tmp_path / "r", 0.7, model="m2", dataset="folder:/x y", protocol="knn-dino-k20")
    found = featstore.open_results(tmp_path / "r")
    assert dict(found.sizes) == {"model": 2, "dataset": 1, "bn_mode": 1, "protocol": 2}
    cell = found.sel(model="timm:a b@cls", dataset="folder:/x y", bn_mode="eval")
    one = cell.sel(protocol="knn-marks")
    assert [float(one[n]) for n in ("score", "top1", "low", "high")] == [0.5, 0.5, 0.4, 0.6]
    assert [float(one[n]) for n in ("n_train", "n_test", "n_skipped", "n_seeds")] == [40, 20, 1, 1]
    assert np.isnan(float(one.ece_low))
    assert np.isnan(float(cell.sel(protocol="knn-dino-k20").score))
    assert str(one.family.values) == "contrastive"
    assert not bool(one.seen_in_pretraining)


def test_the_headline_metric_is_the_datasets(tmp_path):
    put(tmp_path / "r", 0.6, metric="mean_per_class", source="digits")
    found = featstore.open_results(tmp_path / "r").isel(model=0, dataset=0, bn_mode=0, protocol=0)
    assert [float(found[n]) for n in ("score", "low", "high")] == [0.3, 0.15, 0.6]
    assert bool(found.seen_in_pretraining)


def test_seeds_are_averaged_or_kept(tmp_path):
    for seed, value in enumerate((0.2, 0.4, 0.9)):
        put(tmp_path / "r", value, seed=seed)
    put(tmp_path / "r", 0.3, model="other")
    mean = featstore.open_results(tmp_path / "r").isel(dataset=0, bn_mode=0, protocol=0)
    assert float(mean.score.sel(model="m")) == pytest.approx(0.5)
    assert mean.n_seeds.values.tolist() == [3, 1]
    kept = featstore.open_results(tmp_path / "r", seeds=True)
    assert kept.score.sel(model="m").values.ravel().tolist() == [0.2, 0.4, 0.9]
    assert np.isnan(kept.score.sel(model="other", seed=2)).all()


def test_a_model_without_batchnorm_stands_under_every_mode(tmp_path):
    put(tmp_path / "r", 0.5, model="vit", bn_free=True)
    put(tmp_path / "r", 0.6, model="resnet", bn_mode="adapt")
    found = featstore.open_results(tmp_path / "r").isel(dataset=0, protocol=0)
    assert found.score.sel(model="vit").values.tolist() == [0.5, 0.5]
    assert np.isnan(found.score.sel(model="resnet", bn_mode="eval"))
    assert found.bn_free.values.tolist() == [False, True]


def test_transductive_cells_are_marked(tmp_path):
    put(tmp_path / "r", 0.5, transductive=True, protocol="knn-marks-zscore-own")
    put(tmp_path / "r", 0.5)
    found = featstore.open_results(tmp_path / "r").transductive.sel(bn_mode="eval")
    assert bool(found.sel(protocol="knn-marks-zscore-own"))
    assert not bool(found.sel(protocol="knn-marks"))


def test_what_is_transductive_by_its_protocol_is_so_in_every_mode_that_shows_it(tmp_path):
    own = {"transductive": True, "protocol": "knn-marks-zscore-own"}
    put(tmp_path / "r", 0.5, model="vit", bn_free=True, **own)
    put(tmp_path / "r", 0.5, model="resnet", bn_mode="batch", transductive=True)
    put(tmp_path / "r", 0.5, model="resnet", bn_mode="adapt")
    found = featstore.open_results(tmp_path / "r").transductive
    assert found.sel(protocol="knn-marks-zscore-own").values.tolist() == [True, True, True]
    assert found.sel(protocol="knn-marks").values.tolist() == [False, True, False]
    assert found.bn_mode.values.tolist() == ["eval", "batch", "adapt"]


def test_what_is_transductive_by_its_bn_mode_is_so_in_no_other_that_shows_it(tmp_path):
    put(tmp_path / "r", 0.5, model="vit", bn_free=True, bn_mode="batch", transductive=True)
    put(tmp_path / "r", 0.5, model="resnet")
    found = featstore.open_results(tmp_path / "r").isel(dataset=0, protocol=0)
    assert found.bn_mode.values.tolist() == ["eval", "batch"]
    assert found.score.sel(model="vit").values.tolist() == [0.5, 0.5]
    assert found.transductive.values.tolist() == [False, True]


def test_what_is_transductive_by_itself_is_so_everywhere_though_recorded_in_batch(tmp_path):
    changed = [
        *("fewshot-5shot-ericsson+normalisation=zscore", "logreg+normalisation=zscore"),
        *("logreg+normalisation=zscore-own", "fewshot-5shot-ericsson+normalisation=zscore-own"),
    ]
    named = probes.PROTOCOLS | {name: probes.get(name) for name in changed}
    for name, protocol in named.items():
        cell = Cell("vit", "d", "batch", name, 0, "a" * 64)
        more = {"splits": {}, "transductive_by_protocol": protocol.transductive}
        record(tmp_path / "r", cell, facts(0.5, bn_free=True, transductive=True) | more, outcomes())
    put(tmp_path / "r", 0.5, model="resnet")
    found = featstore.open_results(tmp_path / "r").transductive
    assert found.sel(bn_mode="batch").all()
    for name, protocol in named.items():
        assert bool(found.sel(bn_mode="eval", protocol=name)) == protocol.transductive, name


def test_protocols_say_whether_scored_images_are_looked_at_together():
    named = probes.PROTOCOLS | finetuning.PROTOCOLS
    together = {name for name, protocol in named.items() if protocol.transductive}
    assert together == {"knn-marks-zscore-own", "kmeans"}
    for name, transductive in (
        ("fewshot-5shot-ericsson+normalisation=zscore", True),  # scores images of train as well
        ("fewshot-5shot-ericsson+normalisation=zscore-own", True),
        ("fewshot-5shot-ericsson+normalisation=l2", False),
        ("logreg+normalisation=zscore", False),
        ("logreg+normalisation=zscore-own", True),
    ):
        assert probes.get(name).transductive == transductive


def test_protocols_that_differ_in_one_setting_alone_are_told_by_it(tmp_path):
    named = {**probes.PROTOCOLS, **finetuning.PROTOCOLS}
    changed = ("logreg+normalisation=zscore", "knn-dino-k20+k=10", "fewshot-5shot-ericsson")
    named |= {name: probes.get(name) for name in changed}
    for name, protocol in named.items():
        cell = Cell("m", "d", "eval", name, 0, "a" * 64)
        more = {"splits": {}, "settings": protocol.settings()}
        record(tmp_path / "r", cell, facts(0.5) | more, outcomes())
    found = featstore.open_results(tmp_path / "r")
    assert found["normalisation"].sel(protocol="linear-marks-1view-bn") == "bn"
    assert found["backbone_bn"].sel(protocol="linear-marks-literal") == "train"
    assert found["backbone_bn"].sel(protocol="logreg") == ""

    def twins(setting):
        groups = {}
        for name in found["protocol"].values:
            key = str(found[f"without_{setting}"].sel(protocol=name).values)
            groups.setdefault(key, set()).add(str(name))
        return [group for group in groups.values() if len(group) > 1]

    knn = {"knn-marks", "knn-marks-zscore", "knn-marks-zscore-own"}
    expected = [knn, {"logreg", "logreg+normalisation=zscore"}]
    expected += [{"knn-dino-k10", "knn-dino-k20+k=10"}]  # the same by another name
    with_bn = [name for name in named if f"{name}-bn" in named]
    expected += [{name, f"{name}-bn"} for name in with_bn]
    assert sorted(map(sorted, twins("normalisation"))) == sorted(map(sorted, expected))
    heads = ("", "-bn", "-mlp", "-mlp-bn")
    expected = [{f"linear-marks{e}", f"linear-marks-literal{e}"} for e in heads]
    found_twins = [one for one in twins("backbone_bn") if "knn-dino-k10" not in one]
    assert sorted(map(sorted, found_twins)) == sorted(map(sorted, expected))


def measured(name, seed):
    """A protocol on clusters that overlap, four categories, another number of test rows by seed."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in (80, 90 + 30 * seed):
        labels = rng.integers(0, 4, n)
        parts += [rng.normal(size=(n, 5)) + 0.8 * np.eye(4, 5)[labels], labels]
    train, test = (probes.Data.of_arrays(*parts[i : i + 2]) for i in (0, 2))
    task = probes.Task(train, test, 4, seed, namespace("cpu"))
    return probes.measure(probes.get(name), task)


def put_measured(root, name, seed=0, *, model="m", forget=False):
    """Record what a protocol found; without its reliability, as records were before."""
    found = measured(name, seed)
    if forget:
        del found.certificate["reliability"]
    cell = Cell(model, "d", "eval", name, seed, "a" * 64)
    made = {"metrics": found.metrics, "certificate": found.certificate, "splits": {}}
    made["headline"] = next(iter(found.metrics))
    made["n_categories"] = 4
    record(root, cell, facts(0.5) | made, found.outcomes)
    return found


def of_bins(cell):
    """Calibration error by the table of bins."""
    count, confidence, accuracy = (
        cell[f"reliability_{name}"].values for name in ("count", "confidence", "accuracy")
    )
    some = count > 0
    return np.sum(count[some] * abs(accuracy - confidence)[some]) / count.sum()


def error_of(*found):
    """Calibration error of rows by torchmetrics; all four categories are among the top five."""
    top = np.concatenate([one.outcomes["top5"] for one in found]).astype(np.int64)
    score = np.concatenate([one.outcomes["top5_score"] for one in found])
    share = np.zeros(top.shape)
    np.put_along_axis(share, top, np.exp(score.astype(np.float64)), axis=1)
    labels = np.concatenate([one.outcomes["label"] for one in found])
    tensors = torch.from_numpy(share), torch.from_numpy(labels)
    return float(multiclass_calibration_error(*tensors, num_classes=4, n_bins=15, norm="l1"))


@pytest.mark.parametrize("name", ["logreg", "knn-marks", "lda"])
def test_the_table_of_bins_gives_the_calibration_error(tmp_path, name):
    found = put_measured(tmp_path / "r", name)
    cell = featstore.open_results(tmp_path / "r").sel(model="m", dataset="d", protocol=name)
    cell = cell.sel(bn_mode="eval")
    assert of_bins(cell) == pytest.approx(float(cell["ece"]), abs=1e-12)
    assert of_bins(cell) == pytest.approx(error_of(found), abs=1e-6)
    assert cell["reliability_count"].sum() == 90
    assert cell["bin_low"].values.tolist() == [i / 15 for i in range(15)]
    empty = cell["reliability_count"].values == 0
    assert empty.any()
    assert cell["reliability_accuracy"].isnull().values.tolist() == empty.tolist()
    inside = cell["reliability_confidence"].values[~empty]
    assert (cell["bin_low"].values[~empty] < inside).all()
    assert (inside <= cell["bin_high"].values[~empty]).all()


def test_calibration_after_scaling_by_scored_images_is_marked_wherever_it_goes(tmp_path):
    put_measured(tmp_path / "r", "logreg")
    found = featstore.open_results(tmp_path / "r")
    refresh(tmp_path / "r")
    for one in (found, xr.open_zarr(tmp_path / "r.zarr")):
        for end in ("", "_low", "_high"):
            assert one[f"ece_scaled{end}"].attrs == {"transductive": 1}
        assert not one["transductive"].any()
        assert one["ece_scaled_val"].attrs == one["ece"].attrs == {}


def test_bins_of_several_seeds_are_those_of_all_their_images(tmp_path):
    found = [put_measured(tmp_path / "r", "logreg", seed) for seed in (0, 1, 2)]
    cell = featstore.open_results(tmp_path / "r").squeeze()
    assert of_bins(cell) == pytest.approx(error_of(*found), abs=1e-6)
    assert of_bins(cell) != pytest.approx(float(cell["ece"]), abs=1e-3)  # a mean of three
    kept = featstore.open_results(tmp_path / "r", seeds=True).squeeze()
    for seed in (0, 1, 2):
        one = kept.sel(seed=seed)
        assert of_bins(one) == pytest.approx(error_of(found[seed]), abs=1e-6)
    assert cell["reliability_count"].sum() == pytest.approx(120)  # the mean of 90, 120, 150


def test_records_from_before_bins_were_kept_open_beside_others(tmp_path):
    put_measured(tmp_path / "r", "logreg", model="old", forget=True)
    assert "bin" not in featstore.open_results(tmp_path / "r").dims
    put_measured(tmp_path / "r", "logreg", model="new")
    put_measured(tmp_path / "r", "ncm", model="new")
    found = featstore.open_results(tmp_path / "r").squeeze()
    assert found["reliability_count"].sel(model="old").isnull().all()
    assert found["reliability_count"].sel(model="new", protocol="ncm").isnull().all()
    assert found["reliability_count"].sel(model="new", protocol="logreg").notnull().all()
    assert float(found["ece"].sel(model="old", protocol="logreg")) > 0


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_say_in_its_name_what_is_transductive_in_every_cell(tmp_path, form):
    found, out = put_measured(tmp_path / "r", "logreg"), tmp_path / f"out.{form}"
    export(featstore.open_results(tmp_path / "r"), out)
    table = (pd.read_csv if form == "csv" else pd.read_parquet)(out)
    assert not table["transductive"].any()
    assert {one for one in table.columns if one.startswith("ece_scaled") and "val" not in one} == {
        f"ece_scaled{end}_transductive" for end in ("", "_low", "_high")
    }
    value = table["ece_scaled_transductive"].item()
    assert value == pytest.approx(found.metrics["ece_scaled"]["value"])


@pytest.mark.parametrize("form", ["csv", "parquet", "nc", "zarr"])
def test_tables_leave_bins_out_and_other_files_keep_them(tmp_path, form):
    put_measured(tmp_path / "r", "logreg")
    put_measured(tmp_path / "r", "ncm")
    results, out = featstore.open_results(tmp_path / "r"), tmp_path / f"out.{form}"
    if form in ("csv", "parquet"):
        export(results, out)
        table = (pd.read_csv if form == "csv" else pd.read_parquet)(out)
        assert len(table) == 2
        assert not [name for name in table.columns if "reliability" in name or "bin" in name]
        return
    if form == "nc":
        export(results, out)
        opened = xr.open_dataset(out, engine="h5netcdf")
    else:
        opened = xr.open_zarr(refresh(tmp_path / "r"))
    with opened:
        found = opened.load()
    for name in ("reliability_count", "reliability_accuracy", "bin_high"):
        np.testing.assert_array_equal(found[name].values, results[name].values)


def put_classes(root, right, labels, *, model="m", bn_mode="eval", seed=0, **more):
    """A record of test images by their label and whether they were right; six categories."""
    kept = {
        "label": np.array(labels),
        "rank": np.where(right, 0, 2),
        "index": np.arange(len(right)),
    }
    cell = Cell(model, "d", bn_mode, "logreg", seed, "a" * 64)
    record(root, cell, facts(0.5, **more) | {"splits": {}, "n_categories": 6}, kept)


def test_accuracies_of_categories_are_those_of_their_images(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3, 4], 50)
    right = {name: rng.random(50) < 0.6 for name in ("a", "b", "vit")}
    put_classes(tmp_path / "r", right["a"], labels, model="a")
    put_classes(tmp_path / "r", right["b"][:40], labels[:40], model="b")  # ten were unreadable
    put_classes(tmp_path / "r", right["vit"], labels, model="vit", bn_free=True)
    put_classes(tmp_path / "r", ~right["a"], labels, model="a", bn_mode="adapt")
    put_classes(tmp_path / "r", ~right["a"], labels, model="a", seed=1)
    options = {"dataset": "d", "protocol": "logreg"}
    found = featstore.per_class_accuracy(tmp_path / "r", **options)
    assert found.dims == ("model", "category")
    assert found["model"].values.tolist() == ["a", "b", "vit"]
    assert found["category"].values.tolist() == list(range(6))
    assert found["n"].values.tolist() == [int((labels == c).sum()) for c in range(6)]
    for model, hits in right.items():
        size = 40 if model == "b" else 50
        for category in range(6):
            own = hits[:size][labels[:size] == category]
            value = found.sel(model=model, category=category)
            assert value == (own.mean() if own.size else pytest.approx(np.nan, nan_ok=True))
    adapted = featstore.per_class_accuracy(tmp_path / "r", **options, bn_mode="adapt")
    assert adapted["model"].values.tolist() == ["a", "vit"]
    np.testing.assert_allclose(adapted.sel(model="a"), 1 - found.sel(model="a"))
    np.testing.assert_array_equal(adapted.sel(model="vit"), found.sel(model="vit"))
    other = featstore.per_class_accuracy(tmp_path / "r", **options, seed=1)
    assert other["model"].values.tolist() == ["a"]


def test_accuracies_of_categories_agree_with_the_mean_per_class(tmp_path):
    put_measured(tmp_path / "r", "logreg")
    found = featstore.per_class_accuracy(tmp_path / "r", dataset="d", protocol="logreg")
    mean = featstore.open_results(tmp_path / "r")["mean_per_class"].squeeze()
    assert found.mean("category").item() == pytest.approx(mean.item())


def test_what_has_no_accuracy_of_categories_says_so(tmp_path):
    put_measured(tmp_path / "r", "logreg")
    put_measured(tmp_path / "r", "logme")
    shape = {"dataset": "d", "protocol": "logreg"}
    for wrong in ({"dataset": "e"}, {"protocol": "lda"}, {"seed": 3}, {"bn_mode": "batch"}):
        with pytest.raises(FeatStoreError, match=r"no cell of .* Run: featstore probe -p"):
            featstore.per_class_accuracy(tmp_path / "r", **(shape | wrong))
    with pytest.raises(FeatStoreError, match="logme on d in BN mode eval with seed 0 keeps no"):
        featstore.per_class_accuracy(tmp_path / "r", dataset="d", protocol="logme")
    with pytest.raises(ValueError, match="bn_mode must be one of eval, batch, adapt, got 'x'"):
        featstore.per_class_accuracy(tmp_path / "r", **shape, bn_mode="x")


def test_only_cells_of_the_features_last_probed_count(tmp_path):
    for digest, value in (("a" * 64, 0.5), ("b" * 64, 0.8)):
        put(tmp_path / "r", value, digest=digest)
    for digest, value in (("b" * 64, 0.8), ("a" * 64, 0.5)):
        stored = {"train": digest, "test": digest, "val": "c" * 64}
        mark_current(tmp_path / "r", "m", "d", "eval", stored)
        assert float(featstore.open_results(tmp_path / "r").score.max()) == value
    assert len(list(records(tmp_path / "r"))) == 2


def created(cell, root, when, **more):
    """The record of a cell as one made at another time, or from other splits."""
    path = cell.path(root)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": when} | more))


@pytest.mark.parametrize(("older", "newer"), ["ab", "ba"])
def test_of_cells_in_one_place_that_made_last_counts(tmp_path, older, newer):
    for digest, value, day in ((older, 0.5, 1), (newer, 0.8, 2)):
        created(put(tmp_path, value, digest=digest * 64), tmp_path, f"2026-01-0{day}T00:00:00Z")
    found = featstore.open_results(tmp_path)
    assert (found.score.item(), found.n_seeds.item()) == (0.8, 1)


@pytest.mark.parametrize(("two", "three"), ["ab", "ba"])
@pytest.mark.parametrize("day", [1, 3])
def test_a_cell_that_read_one_split_more_counts_whenever_it_was_made(tmp_path, two, three, day):
    created(put(tmp_path, 0.5, digest=two * 64), tmp_path, "2026-01-02T00:00:00Z")
    cell = put(tmp_path, 0.8, digest=three * 64)
    splits = dict.fromkeys(("train", "val", "test"), three * 64)
    created(cell, tmp_path, f"2026-01-0{day}T00:00:00Z", splits=splits)
    assert featstore.open_results(tmp_path).score.item() == 0.8


def test_protocols_stand_in_the_order_of_their_numbers(tmp_path):
    for k in (100, 20, 10):
        put(tmp_path / "r", 0.5, protocol=f"knn-dino-k{k}")
    names = featstore.open_results(tmp_path / "r").protocol.values.tolist()
    assert names == ["knn-dino-k10", "knn-dino-k20", "knn-dino-k100"]


def test_results_zarr_opens_with_xarray_alone_and_no_warning(tmp_path):
    put(tmp_path / "r", 0.5, model="ä")
    target = refresh(tmp_path / "r")
    assert target == tmp_path / "r.zarr"
    code = (
        "import sys, xarray as xr; ds = xr.open_zarr(sys.argv[1]).load(); "
        "assert float(ds.score.sel(model='ä').max()) == .5; "
        "assert 'featstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(target)], check=True)
    with xr.open_zarr(target) as opened, warnings.catch_warnings():
        # identical() of texts: the file gives variable-length strings, memory fixed ones
        xr.testing.assert_equal(opened.load().score, featstore.open_results(tmp_path / "r").score)


def test_refreshing_replaces_the_old_one_whole(tmp_path):
    put(tmp_path / "r", 0.5, model="a")
    refresh(tmp_path / "r")
    put(tmp_path / "r", 0.6, model="b")
    refresh(tmp_path / "r")
    with xr.open_zarr(tmp_path / "r.zarr") as opened:
        assert opened.sizes["model"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "r.lock", "r.zarr"]


def fill_some(root, worker):
    for number in range(20):
        put(root, 0.5, model=f"m{worker}", protocol=f"p{number}")
        if number % 5 == 0:
            refresh(root)


def test_writers_side_by_side_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill_some, args=(tmp_path / "r", i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    refresh(tmp_path / "r")
    with xr.open_zarr(tmp_path / "r.zarr") as opened:
        assert int(opened.score.notnull().sum()) == 60


def test_a_damaged_record_is_named(tmp_path):
    path = put(tmp_path / "r", 0.5).path(tmp_path / "r")
    text = path.read_text()
    path.write_text(text[:50])
    with pytest.raises(CorruptStoreError, match=f"{path} cannot be read .*--skip-errors"):
        featstore.open_results(tmp_path / "r")
    path.write_text("[1, 2]")
    with pytest.raises(CorruptStoreError, match=f"{path} holds no JSON object"):
        featstore.open_results(tmp_path / "r")


@pytest.mark.parametrize(("version", "next_step"), [
    (9, "A newer featstore is needed"), (1, "Use the featstore that wrote it, or probe again"),
])  # fmt: skip
def test_records_of_another_format_version_say_what_to_do(tmp_path, version, next_step):
    path = put(tmp_path / "r", 0.5).path(tmp_path / "r")
    path.write_text(path.read_text().replace('"format": 2', f'"format": {version}'))
    for skip_errors in (False, True):  # they are not damaged
        with pytest.raises(StoreMismatchError, match=f"format version {version}.* {next_step}"):
            featstore.open_results(tmp_path / "r", skip_errors=skip_errors)


@pytest.mark.parametrize(("change", "fault"), [
    ({"format": True}, "its 'format' is True"),
    ({"seed": "0"}, "its 'seed' is '0'"),
    ({"model": "other"}, "it is of another place, other/d/eval/knn-marks/0-aaaaaaaaaaaa.json"),
    ({"model": "x" * 300}, "takes 300 bytes in a path"),
    ({"bn_mode": "evil"}, "its BN mode is 'evil'"),
    ({"headline": "top9"}, "its headline 'top9' is none of its metrics"),
    ({"n_test": "twenty"}, "its 'n_test' is 'twenty'"),
    ({"seconds": 10**400}, "its 'seconds' is 1000"),
    ({"seconds": float("inf")}, "its 'seconds' is inf"),
    ({"metrics": {"top1": 0.5}}, "its metric 'top1' is 0.5"),
    ({"metrics": {"top1": {"value": "0.5", "low": 0, "high": 1}}}, "its metric 'top1' is {'value'"),
    ({"certificate": {"converged": "yes"}}, "its 'converged' is 'yes'"),
    ({"certificate": {"reliability": [1]}}, "its 'reliability' is"),
    ({"certificate": {"reliability": {"count": [], "confidence": [], "accuracy": []}}},
     "its reliability's 'count' is"),
    ({"model_info": {"pretraining": []}}, "its model_info's 'bn_free' is missing"),
    ({"splits": {"test": 1}}, "its 'splits' is {'test': 1}"),
])  # fmt: skip
def test_a_record_that_says_the_wrong_thing_is_named_with_what_it_says(tmp_path, change, fault):
    path = put(tmp_path / "r", 0.5).path(tmp_path / "r")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptStoreError) as raised:
        featstore.open_results(tmp_path / "r")
    assert str(path) in str(raised.value)
    assert fault in str(raised.value)


def test_each_field_that_a_record_lacks_is_named(tmp_path):
    put_measured(tmp_path / "r", "logreg")
    (path,) = (tmp_path / "r").rglob("*.json")
    whole = json.loads(path.read_text())
    for name in whole:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(CorruptStoreError, match=f"'{name}' is (missing|None)"):
            featstore.open_results(tmp_path / "r")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Folder of one record, its path, and its bytes."""
    root = tmp_path_factory.mktemp("spoilt") / "r"
    put_measured(root, "logreg")
    (path,) = root.rglob("*.json")
    return root, path, path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), cut=st.booleans())
def test_no_truncated_or_flipped_record_ends_in_a_traceback(spoilt, data, cut):
    root, path, whole = spoilt
    at = data.draw(st.integers(0, len(whole) - 1))
    spoilt_bytes = bytearray(whole)
    if cut:
        del spoilt_bytes[at:]
    else:
        spoilt_bytes[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(spoilt_bytes)
    try:
        found = featstore.open_results(root)
    except FeatStoreError as error:
        assert str(path) in str(error)  # noqa: PT017  # it need not be raised: a digit may change
    else:
        assert not cut or at == len(whole) - 1
        assert found["score"].size == 1


def test_damaged_records_are_left_out_if_told_and_counted(tmp_path, caplog):
    put(tmp_path / "r", 0.5, model="a")
    bad = put(tmp_path / "r", 0.7, model="b").path(tmp_path / "r")
    bad.write_text("{")
    with caplog.at_level("WARNING"):
        found = featstore.open_results(tmp_path / "r", skip_errors=True)
    assert found["model"].values.tolist() == ["a"]
    assert found.attrs["damaged_records"] == 1
    assert f"left out: {bad} cannot be read" in caplog.text
    bad.unlink()
    assert featstore.open_results(tmp_path / "r").attrs["damaged_records"] == 0
    (tmp_path / "r" / "a" / "d" / "eval" / "knn-marks" / "0-aaaaaaaaaaaa.json").write_text("")
    with pytest.raises(FeatStoreError, match=r"no results in .*\(1 are damaged\)"):
        featstore.open_results(tmp_path / "r", skip_errors=True)


def test_a_damaged_note_of_what_was_last_probed_is_named(tmp_path, caplog):
    put(tmp_path / "r", 0.5)
    mark_current(tmp_path / "r", "m", "d", "eval", {"train": "a" * 64, "test": "a" * 64})
    mark = tmp_path / "r" / "m" / "d" / "eval" / "features.json"
    mark.write_bytes(b"\xff{")
    with pytest.raises(CorruptStoreError, match=f"{mark} cannot be read"):
        featstore.open_results(tmp_path / "r")
    found = featstore.open_results(tmp_path / "r", skip_errors=True)
    assert (found.score.item(), found.attrs["damaged_records"]) == (0.5, 1)
    mark_current(tmp_path / "r", "m", "d", "eval", {"train": "a" * 64, "test": "a" * 64})
    assert featstore.open_results(tmp_path / "r").score.item() == 0.5


def test_a_guess_at_which_features_count_is_said(tmp_path, caplog):
    for digest, value, day in (("a", 0.5, 1), ("b", 0.8, 2)):
        cell = put(tmp_path, value, digest=digest * 64)
        created(cell, tmp_path, f"2026-01-0{day}T00:00:00Z")
    with caplog.at_level("WARNING"):
        assert featstore.open_results(tmp_path).score.item() == 0.8
    assert "1 cells have records of several features" in caplog.text
    assert "0-bbbbbbbbbbbb.json" in caplog.text
    caplog.clear()
    mark_current(tmp_path, "m", "d", "eval", {"train": "a" * 64, "test": "a" * 64})
    assert featstore.open_results(tmp_path).score.item() == 0.5
    assert not caplog.text


def test_what_a_score_is_and_of_which_features_is_told(tmp_path):
    put(tmp_path / "r", 0.5, model="vit", bn_free=True, digest="b" * 64)
    put(tmp_path / "r", 0.6, model="resnet", bn_mode="adapt", digest="c" * 64)
    put(tmp_path / "r", 0.6, model="resnet", dataset="e", metric="mean_per_class", protocol="ridge")
    target = refresh(tmp_path / "r")
    code = (
        "import sys, xarray as xr; ds = xr.open_zarr(sys.argv[1]).load()\n"
        "assert ds.headline.sel(dataset='d', protocol='knn-marks') == 'top1'\n"
        "assert ds.headline.sel(dataset='e', protocol='ridge') == 'mean_per_class'\n"
        "assert ds.headline.sel(dataset='e', protocol='knn-marks') == ''\n"
        "digest = ds.features_digest.sel(dataset='d')\n"
        "assert digest.sel(model='vit').values.tolist() == ['b' * 12] * 2\n"
        "assert digest.sel(model='resnet').values.tolist() == ['', 'c' * 12]\n"
        "assert ds.score.sel(model='vit', dataset='d', protocol='knn-marks')[0] == .5\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(target)], check=True)


def test_trainings_that_diverged_are_told_from_cells_that_are_not_there(tmp_path):
    put(tmp_path / "r", 0.5)
    assert "diverged" not in featstore.open_results(tmp_path / "r")
    nothing = dict.fromkeys(("value", "low", "high"))
    cell = Cell("lost", "d", "eval", "finetune-marks", 0, "a" * 64)
    more = {"metrics": {"top1": nothing}, "certificate": {"diverged": "at step 3"}, "splits": {}}
    record(tmp_path / "r", cell, facts(0.5) | more, {})
    found = featstore.open_results(tmp_path / "r").squeeze()["diverged"]
    assert found.sel(model="lost", protocol="finetune-marks") == 1
    assert found.sel(model="m", protocol="knn-marks") == 0
    assert found.isnull().sum() == 2
    assert "features_digest" in found.coords
    assert found["features_digest"].sel(model="lost") == ""


def test_outcomes_are_checked_against_their_checksum(tmp_path):
    path = put(tmp_path / "r", 0.5).path(tmp_path / "r")
    (document,) = records(tmp_path / "r")
    np.testing.assert_array_equal(outcomes_of(document)["rank"], np.arange(20))
    data = bytearray(path.with_suffix(".npz").read_bytes())
    data[60] ^= 1
    path.with_suffix(".npz").write_bytes(data)
    with pytest.raises(CorruptStoreError, match="not what was written"):
        outcomes_of(document)


def test_without_any_cell_the_next_step_is_said(tmp_path):
    with pytest.raises(FeatStoreError, match=r"no results in .* Run: featstore probe"):
        featstore.open_results(tmp_path)


def test_a_record_that_cannot_be_written_is_not_there(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(FeatStoreError, match="No space left on device.*run the same command again"):
        put(tmp_path / "r", 0.5)
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "r").rglob("*") if p.is_file()]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_exported_tables_hold_a_row_per_cell(tmp_path, form):
    put(tmp_path / "r", 0.5, model="a")
    put(tmp_path / "r", 0.7, model="b", protocol="ridge")
    export(featstore.open_results(tmp_path / "r"), tmp_path / f"out.{form}")
    read = pd.read_csv if form == "csv" else pd.read_parquet
    table = read(tmp_path / f"out.{form}").set_index(["model", "protocol"])
    assert len(table) == 2
    assert table.loc[("a", "knn-marks"), "score"] == 0.5
    assert table.loc[("b", "ridge"), "family"] == "contrastive"


def test_exported_json_has_null_where_there_is_no_number(tmp_path):
    put(tmp_path / "r", 1 / 3)
    export(featstore.open_results(tmp_path / "r"), tmp_path / "out.json")
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["score"] == pytest.approx(1 / 3, abs=1e-14)
    assert row["ece_low"] is None
    assert (row["model"], row["headline"], row["transductive"]) == ("m", "top1", False)


def test_exported_netcdf_is_the_dataset(tmp_path):
    put(tmp_path / "r", 0.5)
    dataset = featstore.open_results(tmp_path / "r")
    export(dataset, tmp_path / "out.nc", form="netcdf")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load().score, dataset.score)


@pytest.mark.parametrize(("name", "form"), [("x", "xlsx"), ("x.xlsx", ""), ("x", "")])
def test_unknown_formats_are_refused(tmp_path, name, form):
    put(tmp_path / "r", 0.5)
    with pytest.raises(ValueError, match="csv, parquet, json or netcdf"):
        export(featstore.open_results(tmp_path / "r"), tmp_path / name, form=form)


def test_a_table_that_is_there_is_replaced_only_if_told(tmp_path):
    put(tmp_path / "r", 0.5)
    results, out = featstore.open_results(tmp_path / "r"), tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(FeatStoreError, match=r"out\.csv exists"):
        export(results, out)
    assert out.read_text() == "mine"
    export(results, out, overwrite=True)
    assert len(pd.read_csv(out)) == 1


def test_a_store_of_features_is_never_replaced_by_results(tmp_path):
    featstore.extract(["tiny-vit-random"], ["textures"], store=tmp_path / "x.zarr")
    before = sorted(path.read_bytes() for path in (tmp_path / "x.zarr").rglob("*.json"))
    with pytest.raises(FeatStoreError, match=r"x\.zarr would be replaced by the results"):
        featstore.probe(
            protocols=["ridge"], store=tmp_path / "x.zarr", results=tmp_path / "x", scheduler="sync"
        )
    assert not (tmp_path / "x").exists()
    assert sorted(p.read_bytes() for p in (tmp_path / "x.zarr").rglob("*.json")) == before
