"""Records and the Dataset they make, against the numbers that were recorded."""

import multiprocessing
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import featstore
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
        "certificate": {"C": 1.0}, "settings": {"kind": "knn", "k": 20},
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
    record(root, cell, facts(value, **more), outcomes())
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


def test_only_cells_of_the_features_last_probed_count(tmp_path):
    for digest, value in (("a" * 64, 0.5), ("b" * 64, 0.8)):
        put(tmp_path / "r", value, digest=digest)
    for digest, value in (("b" * 64, 0.8), ("a" * 64, 0.5)):
        mark_current(tmp_path / "r", "m", "d", "eval", digest)
        assert float(featstore.open_results(tmp_path / "r").score.max()) == value
    assert len(list(records(tmp_path / "r"))) == 2


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
    with pytest.raises(CorruptStoreError, match=f"{path} is no record"):
        featstore.open_results(tmp_path / "r")
    path.write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(StoreMismatchError, match="format version 9"):
        featstore.open_results(tmp_path / "r")


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


def test_exported_netcdf_is_the_dataset(tmp_path):
    put(tmp_path / "r", 0.5)
    dataset = featstore.open_results(tmp_path / "r")
    export(dataset, tmp_path / "out.nc", form="netcdf")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load().score, dataset.score)


@pytest.mark.parametrize(("name", "form"), [("x", "xlsx"), ("x.xlsx", ""), ("x", "")])
def test_unknown_formats_are_refused(tmp_path, name, form):
    put(tmp_path / "r", 0.5)
    with pytest.raises(ValueError, match="csv, parquet or netcdf"):
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
