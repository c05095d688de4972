"""Samples of several labels: stored as they are, and refused by probes that want one."""

import numpy as np
import pytest
import xarray as xr

import featstore
from featstore import extraction
from featstore.datasets import ArrayImages, Dataset, ImageSplit
from featstore.keys import BNMode, FeatureKey
from featstore.store import Store

CATEGORIES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
KEY = FeatureKey("tiny-resnet-random", "manifold", BNMode.EVAL)


def images_of(name, labels=None):
    rng = np.random.default_rng(len(name))
    read = ArrayImages(rng.integers(0, 256, (30, 32, 32), dtype=np.uint8))
    if labels is None:
        labels = rng.integers(-1, 2, (30, len(CATEGORIES))).astype(np.int8)
    ids = tuple(f"{name}/{i}" for i in range(30))
    return ImageSplit("manifold", name, ids, labels, CATEGORIES, read, read.content)


@pytest.fixture
def store(tmp_path, monkeypatch):
    info = {"shift": "", "cluster": "", "metric": "map11", "source": ""}
    dataset = Dataset("manifold", ("train", "test"), images_of, info)
    real = extraction.load_dataset

    def load(name, **options):
        return dataset if name == "manifold" else real(name, **options)

    monkeypatch.setattr(extraction, "load_dataset", load)
    monkeypatch.setattr(extraction.datasets_, "expand", list)
    path = tmp_path / "s.zarr"
    featstore.extract(["tiny-resnet-random"], ["manifold", "digits-blur"], store=path, views=1,
                      chunk_rows=13, num_workers=0)  # fmt: skip
    return path


def test_labels_are_stored_as_they_are_in_the_stored_order(store):
    for name in ("train", "test", "train+aug0"):
        split = Store(store).open(KEY)[name]
        assert split.multi_label
        assert split.label.dtype == np.int8
        expected = images_of(name.partition("+")[0]).labels[split.array("index")]
        np.testing.assert_array_equal(split.label, expected)
        assert split.verify() == []
        with xr.open_zarr(split.path) as opened:
            assert opened.label.dims == ("sample", "category")
            assert opened.label.dtype == np.int8
            np.testing.assert_array_equal(opened.label, expected)


def test_a_sample_of_one_label_is_stored_as_ever(store):
    split = Store(store).open(FeatureKey(KEY.model, "digits-blur", BNMode.EVAL))["train"]
    assert not split.multi_label
    assert split.label.dtype == np.int64
    with xr.open_zarr(split.path) as opened:
        assert opened.label.dims == ("sample",)


def test_a_changed_label_is_noticed_by_verify_and_fingerprint(store):
    split = Store(store).open(KEY)["test"]
    file = next(p for p in (split.path / "label").rglob("*") if p.is_file() and p.name == "0")
    file.write_bytes(file.read_bytes()[:-1])
    assert any("label" in fault for fault in split.verify())
    images = images_of("test")
    other = images.labels.copy()
    other[3, 2] = 1 - abs(other[3, 2])
    assert images_of("test", other).fingerprint != images.fingerprint


def test_many_labels_never_pass_for_one_each():
    many = np.zeros((30, 8), np.int8)
    one = np.zeros(30, np.int64)
    assert many.tobytes() == one.tobytes()
    assert images_of("test", many).fingerprint != images_of("test", one).fingerprint


@pytest.mark.parametrize(
    "labels", [np.zeros((30, 7), np.int8), np.zeros((29, 8), np.int8), np.zeros((30, 8), np.int64)]
)
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(ValueError, match=r"multi-label split must be \(30, 8\) int8, got"):
        images_of("test", labels)


def test_a_sweep_says_that_no_protocol_takes_them_and_goes_on(store, tmp_path):
    done = featstore.probe(protocols=["knn-marks", "ridge"], store=store, results=tmp_path / "r",
                           scheduler="sync")  # fmt: skip
    assert done.filled == 2
    assert len(done.failed) == 2
    for failure in done.failed:
        assert failure.what.startswith("tiny-resnet-random manifold eval")
        assert "is for one label an image, and these have several each" in failure.error
