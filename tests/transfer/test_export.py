"""Features written as files, read by the formats' own libraries alone."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import featstore
from featstore.errors import CorruptStoreError, FeatStoreError, MissingFeaturesError
from featstore.keys import BNMode, FeatureKey
from featstore.store import Store

KEY = FeatureKey("m", "folder:/a b", BNMode.EVAL)
FORMATS = ["npy", "npz", "parquet", "h5", "safetensors"]


def read(form):
    """X, y, sample ids, positions and categories by the format's own reader."""
    names = ("X", "y", "sample_id", "index", "categories")
    if form == "npy":
        beside = [np.load(f"out.{name}.npy") for name in names[1:]]
        return np.load("out.npy"), *beside
    if form == "npz":
        with np.load("out.npz") as held:
            return tuple(held[name] for name in names)
    if form == "h5":
        with h5py.File("out.h5") as held:
            text = ("sample_id", "categories")
            return tuple(held[n].asstr()[:] if n in text else held[n][:] for n in names)
    if form == "parquet":
        table = pq.read_table("out.parquet")
        X = np.stack(table["X"].to_pylist()).astype(np.float32)
        rest = [np.array(table[name].to_pylist()) for name in names[1:4]]
        return X, *rest, np.array(json.loads(table.schema.metadata[b"categories"]))
    held = load_file("out.safetensors")
    with safe_open("out.safetensors", framework="np") as file:
        about = file.metadata()
    ids, categories = (np.array(json.loads(about[n])) for n in ("sample_id", "categories"))
    return held["X"], held["y"], ids, held["index"], categories


def out_of(form):
    return f"out.{form}"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("order", ["original", "stored"])
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_stored_is_what_other_libraries_read(put, form, order, dtype):
    _, X, y, ids, index = put(dtype=dtype, skip=[3, 24])
    skipped = featstore.export_features(KEY, out_of(form), order=order, store="s")
    assert skipped == 2
    at = np.argsort(index) if order == "original" else np.arange(len(X))
    found = read(form)
    assert found[0].dtype == ("float32" if form == "parquet" else dtype)
    for got, expected in zip(found, (X[at], y[at], ids[at], index[at]), strict=False):
        np.testing.assert_array_equal(got, expected)
    assert found[4].tolist() == ["ä", "b", "c"]


@pytest.mark.parametrize("form", [f for f in FORMATS if f != "npy"])
def test_what_goes_out_comes_in_again(put, form):
    _, X, y, ids, index = put()
    featstore.export_features(KEY, out_of(form), store="s")
    featstore.import_features(out_of(form), model="again", dataset="set", store="s")
    split = Store("s").open(FeatureKey("again", "set", BNMode.EVAL))["train"]
    rows = np.concatenate([split.chunk(i) for i in range(len(split.chunk_digest))])
    back, at = np.argsort(split.array("index")), np.argsort(index)
    np.testing.assert_array_equal(rows[back], X[at])
    np.testing.assert_array_equal(split.label[back], y[at])
    np.testing.assert_array_equal(split.array("sample_id")[back], ids[at])
    assert split.categories == ["ä", "b", "c"]


def test_an_npy_comes_in_again_with_what_lies_beside_it(put):
    _, X, _, _, index = put()
    featstore.export_features(KEY, "out.npy", store="s")
    featstore.import_features(
        "out.npy", "out.y.npy", ids="out.sample_id.npy", categories="out.categories.npy",
        model="again", dataset="set", store="s",
    )  # fmt: skip
    split = Store("s").open(FeatureKey("again", "set", BNMode.EVAL))["train"]
    rows = np.concatenate([split.chunk(i) for i in range(len(split.chunk_digest))])
    np.testing.assert_array_equal(rows[np.argsort(split.array("index"))], X[np.argsort(index)])


@pytest.mark.parametrize("form", FORMATS)
def test_several_labels_for_a_sample_go_out_as_they_are(put, form):
    y = np.random.default_rng(0).integers(-1, 2, (25, 3)).astype("int8")
    put(y=y)
    featstore.export_features(KEY, out_of(form), order="stored", store="s")
    np.testing.assert_array_equal(read(form)[1], y)


def test_pandas_reads_the_table(put):
    _, X, y, _, index = put()
    featstore.export_features(KEY, "out.parquet", store="s")
    frame = pd.read_parquet("out.parquet")
    np.testing.assert_array_equal(np.stack(frame["X"]), X[np.argsort(index)].astype(np.float32))
    np.testing.assert_array_equal(frame["y"], y[np.argsort(index)])


def test_a_file_that_exists_is_kept_unless_told_otherwise(put):
    put()
    for name in ("out.npz", "out.y.npy"):
        Path(name).write_text("mine")
    for out in ("out.npz", "out.npy"):
        with pytest.raises(FeatStoreError, match=r"out.* exists. Use --overwrite"):
            featstore.export_features(KEY, out, store="s")
    assert Path("out.npz").read_text() == "mine"
    assert not Path("out.npy").exists()
    featstore.export_features(KEY, "out.npz", store="s", overwrite=True)
    assert read("npz")[0].shape == (25, 6)


@pytest.mark.parametrize("order", ["original", "stored"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_chunk_leaves_no_file_and_the_old_one_as_it_was(put, form, order):
    put()
    chunk = Store("s").open(KEY)["train"].path / "embedding" / "c" / "2" / "0"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    Path(out_of(form)).write_text("old")
    with pytest.raises(CorruptStoreError, match="chunk 2 is not what was written"):
        featstore.export_features(KEY, out_of(form), store="s", order=order, overwrite=True)
    assert Path(out_of(form)).read_text() == "old"
    assert not list(Path().glob("*.partial"))


def test_one_of_several_splits_must_be_named(put):
    put(), put(split="test", n=9)
    with pytest.raises(FeatStoreError, match="has the splits test, train; say with --split which"):
        featstore.export_features(KEY, "out.npz", store="s")
    featstore.export_features(str(KEY), "out.npz", store="s", split="test")
    assert len(read("npz")[0]) == 9
    with pytest.raises(MissingFeaturesError, match="no finished features for .* val"):
        featstore.export_features(KEY, "val.npz", store="s", split="val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "x.csv"}, "format must be one of npy, npz, parquet, h5, safetensors, got 'csv'"),
        ({"out": "x.npy", "order": "random"}, "order must be one of original, stored"),
        ({"out": "x.npy", "key": "two words"}, "is no key; write 'MODEL DATASET BN_MODE'"),
    ],
)
def test_wrong_words_are_refused(put, options, message):
    put()
    with pytest.raises(ValueError, match=message):
        featstore.export_features(**{"key": KEY, "store": "s", **options})


def test_the_commands_lead_from_files_to_files_and_mark_what_was_imported(call):
    rng = np.random.default_rng(0)
    np.save("X.npy", rng.normal(size=(30, 4)))
    Path("names.txt").write_text("ant\nbee\n")
    np.save("y.npy", np.arange(30) % 2)
    arguments = ("import", "X.npy", "y.npy", "-m", "mine", "-d", "birds", "--store", "s")
    said = "mine birds eval train: 30 rows of 4 features, 2 categories, imported -> s\n"
    assert call(*arguments, "--categories", "names.txt") == (0, said, "")
    status, out, _ = call(*arguments, "--categories", "ant,bee", "--json")
    assert (status, json.loads(out)["filled"]) == (0, False)
    (row,) = json.loads(call("ls", "--store", "s", "--json")[1])
    assert (row["origin"], row["state"]) == ("imported", "complete")
    assert call("verify", "--store", "s") == (0, "1 splits checked, 0 faults\n", "")
    status, _, err = call("why", "mine birds eval", "--store", "s")
    assert (status, "was imported, not extracted" in err) == (2, True)
    export = ("export", "mine birds eval", "--store", "s", "--out", "out.npz")
    assert call(*export) == (0, "wrote out.npz\n", "")
    named = call(*export[:-2], "--split", "train", "--format", "npy")
    assert named == (0, "wrote mine-birds-eval-train.npy\n", "")
    np.testing.assert_array_equal(read("npz")[0], np.load("X.npy").astype("float16"))
    assert read("npz")[4].tolist() == ["ant", "bee"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["import", "X.npy", "y.npy"], 2, "say with --model and --dataset"),
        (["import", "a", "b", "c", "-m", "x", "-d", "y"], 2, "one or two files"),
        (["import", "s.zarr", "-m", "x", "-d", "y"], 2, "leave out --model, --dataset"),
        (["import", "s.zarr", "--variant", "x", "--overwrite"], 2, "out --variant, --overwrite"),
        (["import", "s.zarr", "--dtype", "float16"], 2, "leave out --dtype"),  # though the default
        (["import", "s.zarr", "t.zarr"], 2, "give one store at a time"),
        (["import", "gone.npy", "y.npy", "-m", "x", "-d", "y"], 1, "no file at gone.npy"),
        (["import", "gone.csv", "-m", "x", "-d", "y"], 1, "no file at gone.csv"),
        (["export", "x y eval", "--out", "x.npz"], 1, "no finished features for x y eval"),
        (["export", "--split", "train", "--out", "x.csv"], 2, "a KEY: leave out --split"),
    ],
)
def test_what_the_commands_cannot_do_is_one_line(call, arguments, status, said):
    ended, _, err = call(*arguments)
    assert ended == status
    (line,) = err.splitlines()
    assert line.startswith("featstore: ")
    assert said in line
