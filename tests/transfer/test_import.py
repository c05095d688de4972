"""Embeddings from files of every kind, against what NumPy itself holds."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch
from sklearn.neighbors import KNeighborsClassifier

import featstore
from featstore.errors import (
    BadArrayError,
    BadEmbeddingError,
    CorruptStoreError,
    FeatStoreError,
    MissingFeaturesError,
    StoreMismatchError,
)
from featstore.keys import BNMode, FeatureKey
from featstore.store import Store

MAIN = [sys.executable, "-c", "from featstore.cli import main; main()"]
N, D, C = 60, 7, 3
KEY = FeatureKey("mine", "birds", BNMode.EVAL)


def arrays(n=N, seed=0):
    rng = np.random.default_rng(seed)
    y = np.sort(rng.integers(0, C, n))
    y[[0, n // 2, -1]] = range(C)
    X = rng.normal(size=(n, D)).astype(np.float32) + 2 * np.eye(C, D, dtype=np.float32)[y]
    return X, y


def bring(*sources, model="mine", dataset="birds", **options):
    return featstore.import_features(*sources, model=model, dataset=dataset, **options)


def stored(split="train", key=KEY, store="data/features.zarr"):
    """Features, labels, ids in the order of the file, by `index`."""
    one = Store(store).open(key)[split]
    rows = np.concatenate([one.chunk(i) for i in range(len(one.chunk_digest))])
    back = np.argsort(one.array("index"))
    assert one.verify() == []
    assert one.valid.all()
    return rows[back], one.label[back], one.array("sample_id")[back]


def write_npy(X, y):
    np.save("X.npy", X)
    np.save("y.npy", y)
    return "X.npy", "y.npy"


def write_npz(X, y):
    np.savez("all.npz", X=X, y=y)
    return ("all.npz",)


def write_npz_packed(X, y):
    np.savez_compressed("packed.npz", features=X, labels=y, other=np.zeros((2, 2)))
    return ("packed.npz",)


def write_npz_fortran(X, y):
    np.savez("fortran.npz", X=np.asfortranarray(X), y=y)
    return ("fortran.npz",)


def write_npy_fortran(X, y):
    np.save("F.npy", np.asfortranarray(X))
    np.save("y.npy", y)
    return "F.npy", "y.npy"


def write_big_endian(X, y):
    np.save("X.npy", X.astype(">f4"))
    np.save("y.npy", y.astype(">i2"))
    return "X.npy", "y.npy"


def write_pt(X, y):
    torch.save({"features": torch.tensor(X), "labels": torch.tensor(y)}, "all.pt")
    return ("all.pt",)


def write_pth_tuple(X, y):
    torch.save((torch.tensor(X), torch.tensor(y)), "pair.pth")
    return ("pair.pth",)


def write_pt_old(X, y):
    both = {"X": torch.tensor(X), "y": torch.tensor(y)}
    torch.save(both, "old.pt", _use_new_zipfile_serialization=False)
    return ("old.pt",)


def write_safetensors(X, y):
    save_numpy({"embeddings": X, "targets": y}, "all.safetensors")
    return ("all.safetensors",)


def write_h5(X, y):
    with h5py.File("all.h5", "w") as file:
        file.create_dataset("X", data=X, chunks=(7, 3), compression="gzip")
        file.create_dataset("y", data=y)
    return ("all.h5",)


def write_parquet_list(X, y):
    rows = pa.array(list(X), pa.list_(pa.float32()))
    table = pa.table({"label": y, "embedding": rows})
    pq.write_table(table, "list.parquet", row_group_size=13)
    return ("list.parquet",)


def write_parquet_columns(X, y):
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(D)])
    frame["target"] = y
    frame.index = frame.index[::-1]  # pandas keeps it as a column of its own
    frame.to_parquet("columns.parquet")
    return ("columns.parquet",)


def write_mixed(X, y):
    save_numpy({"whatever": X}, "X.safetensors")
    with h5py.File("y.hdf5", "w") as file:
        file["deep/inside"] = y
    return "X.safetensors", "y.hdf5"


WRITERS = [
    *(write_npy, write_npz, write_npz_packed, write_npz_fortran, write_npy_fortran),
    *(write_big_endian, write_pt, write_pth_tuple, write_pt_old, write_safetensors, write_h5),
    *(write_parquet_list, write_parquet_columns, write_mixed),
]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("write", WRITERS)
def test_what_a_file_holds_comes_into_the_store(write, dtype):
    X, y = arrays()
    done = bring(*write(X, y), dtype=dtype, chunk_rows=16)
    assert (done.filled, done.rows, done.features, done.categories) == (True, N, D, C)
    rows, labels, ids = stored()
    np.testing.assert_array_equal(rows, X.astype(dtype))
    np.testing.assert_array_equal(labels, y)
    assert ids.tolist() == [str(i) for i in range(N)]
    assert not bring(*write(X, y), dtype=dtype).filled


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint64"])
def test_every_kind_of_number_is_taken(dtype):
    X, y = arrays()
    X = np.abs(X * 3).astype(dtype)
    bring(X, y, dtype="float32")
    np.testing.assert_array_equal(stored()[0], X.astype("float32"))


def test_bfloat16_is_taken_as_it_is():
    X, y = arrays()
    tensor = torch.tensor(X).bfloat16()
    save_torch({"X": tensor, "y": torch.tensor(y)}, "b.safetensors")
    bring("b.safetensors", dtype="float32")
    np.testing.assert_array_equal(stored()[0], tensor.float().numpy())


def test_the_same_arrays_are_the_same_features_from_whatever_file():
    X, y = arrays()
    digests = set()
    for number, write in enumerate(WRITERS):
        if write is not write_big_endian:  # its labels and features have another dtype
            bring(*write(X, y), store=f"{number}.zarr")
            digests.add(Store(f"{number}.zarr").open(KEY).digest("train"))
    assert len(digests) == 1


def test_rows_are_stored_in_an_order_that_tells_nothing():
    X, y = arrays(n=400)  # sorted by class
    bring(X, y)
    split = Store("data/features.zarr").open(KEY)["train"]
    assert sorted(split.array("index")) == list(range(400))
    changes = (np.diff(split.label) != 0).mean()
    assert changes > 0.5  # of a random order two thirds; of the file's, 2 of 399
    bring(X[:, ::-1], y, store="other.zarr")
    other = Store("other.zarr").open(KEY)["train"]
    assert not np.array_equal(split.array("index"), other.array("index"))


def test_names_as_labels_become_sorted_categories():
    X, y = arrays()
    names = np.array(["wren", "auk", "crow"])[y]
    bring(X, names)
    split = Store("data/features.zarr").open(KEY)["train"]
    assert split.categories == ["auk", "crow", "wren"]
    assert [split.categories[label] for label in stored()[1]] == names.tolist()


@pytest.mark.parametrize("kind", ["S", "U", "h5", "parquet", "dictionary", "pt"])
def test_names_are_read_from_every_kind_of_file(kind):
    X, y = arrays()
    names = np.array(["wren", "auk", "crow"])[y]
    np.save("X.npy", X)
    path = {"h5": "y.h5", "pt": "y.pt"}.get(kind, "y.parquet" if kind[0] in "pd" else "y.npy")
    if kind in "SU":
        np.save(path, names.astype(kind))
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("label", data=names.tolist())
    elif kind == "pt":
        torch.save({"labels": names.tolist()}, path)
    else:
        column = pa.array(names.tolist())
        column = column.dictionary_encode() if kind == "dictionary" else column
        pq.write_table(pa.table({"label": column}), path)
    bring("X.npy", path)
    split = Store("data/features.zarr").open(KEY)["train"]
    assert [split.categories[label] for label in stored()[1]] == names.tolist()


def test_ids_and_categories_come_from_files_or_lists():
    X, y = arrays()
    ids = [f"é/{i}.png" for i in range(N)]
    Path("ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    np.save("names.npy", np.array(["a", "b", "c", "never"]))
    done = bring(X, y, ids="ids.txt", categories="names.npy")
    assert done.categories == 4
    assert stored()[2].tolist() == ids
    done = bring(X, y, ids=ids, categories=["a", "b", "c", "never"])
    assert not done.filled


def test_arrays_are_named_by_key():
    X, y = arrays()
    np.savez("odd.npz", a=X, b=X + 1, c=y, d=y[::-1])
    with pytest.raises(BadArrayError, match=r"a \(float32 \(60, 7\)\), b .*--x-key"):
        bring("odd.npz")
    with pytest.raises(BadArrayError, match=r"--y-key which are the labels"):
        bring("odd.npz", x_key="b")
    with pytest.raises(BadArrayError, match=r"no array 'x'; it holds a .*, b .*, c .*, d "):
        bring("odd.npz", x_key="x")
    bring("odd.npz", x_key="b", y_key="c")
    np.testing.assert_array_equal(stored()[0], (X + 1).astype("float16"))


def test_the_label_column_is_never_a_feature():
    X, y = arrays()
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(D)]).assign(species=y)
    frame.to_parquet("f.parquet")
    assert bring("f.parquet", y_key="species").features == D


DAMAGE = {
    "1-D": (lambda X, y: (X[:, 0], y), r"must be \(n, d\).*found \(60,\)"),
    "4-D": (lambda X, y: (X[:, :, None, None], y), r"must be \(n, d\)"),
    "empty": (lambda X, y: (X[:0], y[:0]), r"found \(0, 7\)"),
    "n": (lambda X, y: (X, y[:-1]), "has 60 rows, and .* 59 labels"),
    "fraction": (lambda X, y: (X, y + 0.5 * (y == 1)), "row 19 is 1.5; labels are whole numbers"),
    "nan label": (lambda X, y: (X, np.where(y == 0, np.nan, y)), "row 0 is nan"),
    "negative": (lambda X, y: (X, y - 1), r"row 0 is -1; it must lie in 0..1"),
    "two columns": (lambda X, y: (X, np.stack([y, y], 1)), r"must be \(n,\)"),
    "complex": (lambda X, y: (X + 1j, y), "complex64; features are numbers"),
    "bool": (lambda X, y: (X > 0, y), "bool; features are numbers"),
    "datetime": (lambda X, y: (X, y.astype("M8[D]")), "labels are whole numbers or names"),
    "huge label": (lambda X, y: (X, y * 10**9), "it must lie in 0..999999"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_arrays_of_another_form_are_refused_and_nothing_is_stored(kind):
    change, message = DAMAGE[kind]
    with pytest.raises(BadArrayError, match=message):
        bring(*write_npy(*change(*arrays())))
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float16", "X.npy: row 17 holds NaN or infinity"),
        (-np.inf, "float32", "row 17 holds NaN"),
        (7e4, "float16", "row 17 reaches 7e.04, beyond float16: use --dtype float32"),
    ],
)
def test_features_that_cannot_be_stored_are_refused_by_their_row(value, dtype, message):
    X, y = arrays()
    X[17, 3] = value
    sources = write_npy(X, y)
    with pytest.raises(BadEmbeddingError, match=message):
        bring(*sources, dtype=dtype)
    assert not Path("data").exists()
    if np.isfinite(value):
        assert bring(*sources, dtype="float32").filled


def test_rounding_that_overflows_is_refused_before_anything_is_stored():
    X, y = arrays()
    X[17, 3] = 65504
    with pytest.raises(BadEmbeddingError, match="rounding by bitround:3 overflows float16"):
        bring(X, y, codec="bitround:3")
    assert not Path("data").exists()


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "renamed"])
def test_pickled_objects_are_refused_and_never_run(kind):
    y = arrays()[1]
    thing = np.array([Evil()] * N, dtype=object)
    path = Path(f"X.{'npy' if kind == 'renamed' else kind}")
    if kind == "npz":
        np.savez(path, X=thing, y=y)
    elif kind == "npy":
        np.save(path, thing, allow_pickle=True)
    else:
        torch.save({"X": thing}, path)
        if kind == "renamed":
            path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(BadArrayError, match="X.* holds pickled Python objects, .* may run code"):
        bring(path, y, x_key="X" if kind == "npz" else "")
    assert not Path("ran").exists()


@pytest.mark.parametrize("write", [w for w in WRITERS if w is not write_mixed])
def test_files_that_are_cut_or_changed_never_pass(write):
    sources = write(*arrays())
    path = Path(sources[0])
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FeatStoreError, match=str(path)):
            bring(*sources)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": ["a"] * N}, "'a' is there more than once"),
        ({"ids": ["a"]}, "has 60 rows, and sample ids 1 ids"),
        ({"ids": "gone.txt"}, "no file at gone.txt"),
        ({"categories": ["a", "b"]}, r"row 40 is 2; it must lie in 0..1"),
        ({"categories": ["a", "b", "a"]}, "categories must be unique, and 'a'"),
    ],
)
def test_ids_and_categories_that_do_not_fit_are_refused(options, message):
    with pytest.raises(BadArrayError, match=message):
        bring(*arrays(), **options)


@pytest.mark.parametrize(
    ("model", "dataset", "options", "message"),
    [
        ("tiny-resnet-simclr", "birds", {}, "use another name, or tiny-resnet-simclr~VARIANT"),
        ("timm:resnet50", "birds", {}, "would pass for those"),
        ("tiny", "birds", {}, "name of a set"),
        ("my model", "birds", {}, "holds a space"),
        ("mine~random0", "birds", {}, "would read as random weights"),
        ("mine", "tiny", {}, "name of a set"),
        ("mine", "birds", {"split": "training"}, "split must be one of train, val, test"),
        ("mine", "birds", {"dtype": "int8"}, "dtype must be float16 or float32"),
        ("mine", "birds", {"codec": "lz4"}, "codec must be"),
        ("mine", "birds", {"chunk_rows": 0}, "chunk_rows must be"),
        ("mine", "birds", {"bn_mode": "train"}, "BNMode"),
        ("mine", "", {}, "cannot name a part"),
    ],
)
def test_names_that_mean_something_else_are_refused(model, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        bring(*arrays(), model=model, dataset=dataset, **options)


def test_a_catalogue_name_is_taken_as_a_variant_and_a_dataset_is_described_by_it():
    bring(*arrays(), model="tiny-resnet-simclr", variant="mine", dataset="textures")
    (split,) = Store("data/features.zarr").splits()
    assert split.key.model == "tiny-resnet-simclr~mine"
    assert split.attrs["dataset"]["shift"] == featstore.load_dataset("textures").info["shift"]
    assert split.attrs["model"]["family"] == ""


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (lambda y: y + 1, "no row has the label 0: empty are 1 of 4 categories. .* subtract 1"),
        (lambda y: 3 * y, "no row has the label 1, 2, 4, ...: empty are 4 of 7 categories."),
    ],
)
def test_categories_without_rows_are_told(labels, said, caplog):
    X, y = arrays()
    bring(*write_npy(X, labels(y)))
    (told,) = caplog.messages
    assert re.search(f"y.npy: {said}", told)


def test_no_category_is_told_to_be_empty_that_was_asked_for(caplog):
    X, y = arrays()
    bring(X, y)
    bring(X[:5], y[:5], split="test")  # the train split has them all
    bring(X, y, dataset="named", categories=["a", "b", "c", "d"])
    bring(X, np.array(["b", "c", "e"])[y], dataset="text")
    assert caplog.messages == []


PUBLISHED = {
    "rows": ("train", slice(1, None), 0, "small train has 60 images, and these are 59"),
    "categories": ("train", slice(None), 1, "small has 3 categories, and these are 4"),
    "split": ("val", slice(None), 0, "small has the splits train, and no val"),
}


@pytest.mark.parametrize("other", PUBLISHED)
def test_what_is_not_the_published_dataset_does_not_go_by_its_name(other, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    (tmp_path / "catalogue.toml").write_text(
        '[datasets.small]\nreader = "folder"\npath = "small"\ncategories = 3\n'
        f"n_images = {{train = {N}}}\n"
    )
    X, y = arrays()
    split, rows, more, said = PUBLISHED[other]
    for name in ("small", "small@marks"):
        with pytest.raises(ValueError, match=f"{said}. Use another dataset name, or --variant"):
            bring(X[rows], (y + more)[rows], dataset=name, split=split)
    assert not Path("data").exists()
    bring(X[rows], (y + more)[rows], dataset="small", split=split, variant="part")
    bring(X[rows], (y + more)[rows], model="mine~part", dataset="small@marks", split=split)
    bring(X, y, dataset="small")


def test_splits_of_one_key_must_agree():
    X, y = arrays()
    names = np.array(["auk", "crow", "wren"])[y]
    bring(X, names)
    with pytest.raises(StoreMismatchError, match="has 7 features, and these are 6.*--variant"):
        bring(X[:, 1:], names, split="test")
    with pytest.raises(BadArrayError, match="row 0 is 'emu', which is none of the categories auk"):
        bring(X, ["emu"] * N, split="test")
    with pytest.raises(StoreMismatchError, match="3 categories .auk.*these are 2 .x, y.*"):
        bring(X, y % 2, split="test", categories=["x", "y"])
    bring(X[:5], ["wren"] * 5, split="test")  # the others' categories hold, seen or not
    assert Store("data/features.zarr").open(KEY)["test"].label.tolist() == [2] * 5


def test_other_features_are_never_overwritten_in_silence():
    X, y = arrays()
    bring(X, y)
    with pytest.raises(StoreMismatchError, match="imported: stored .*--variant NAME"):
        bring(X + 1, y)
    with pytest.raises(StoreMismatchError, match="dtype: stored 'float16', now 'float32'"):
        bring(X, y, dtype="float32")
    bring(X + 1, y, variant="b")
    bring(X + 2, y, overwrite=True)
    np.testing.assert_array_equal(stored()[0], (X + 2).astype("float16"))
    assert len(Store("data/features.zarr").keys()) == 2


def test_a_refused_import_deletes_nothing_even_when_told_to_overwrite():
    X, y = arrays()
    bring(X, y)
    with pytest.raises(BadEmbeddingError):
        bring(X * np.nan, y, overwrite=True)
    np.testing.assert_array_equal(stored()[0], X.astype("float16"))


def test_probes_score_imported_features_as_plain_arrays():
    (X, y), (Z, z) = arrays(300), arrays(200, seed=1)
    bring(X, y, dtype="float32")
    bring(Z, z, dtype="float32", split="test")
    protocols = ["knn-marks", "logreg", "ridge"]
    done = featstore.probe(protocols=protocols, scheduler="sync")
    assert (done.filled, done.failed) == (3, [])
    cells = featstore.open_results().sel(model="mine", dataset="birds", bn_mode="eval")
    features = Store("data/features.zarr").open(KEY)
    at, of = (features[split].array("index") for split in ("train", "test"))
    for protocol in protocols:  # in the stored order, since logreg draws its held-out rows
        plain = featstore.score(X[at], y[at], Z[of], z[of], protocol=protocol)
        assert float(cells.score.sel(protocol=protocol)) == plain["top1"]["value"]
    knn = KNeighborsClassifier(20).fit(X, y).score(Z, z)
    assert float(cells.score.sel(protocol="knn-marks")) == pytest.approx(knn, abs=0.02)


def test_what_is_missing_or_damaged_is_to_be_imported_again():
    bring(*write_npy(*arrays()))
    again = "featstore import X.npy y.npy -m mine -d birds --bn-mode eval --split train"
    features = Store("data/features.zarr").open(KEY)
    with pytest.raises(MissingFeaturesError, match="Run: featstore import FILES .*--split test"):
        features["test"]
    path = features["train"].path / "embedding" / "c" / "0" / "0"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptStoreError, match=f"{again} --overwrite"):
        stored()
    document = features["train"].path / "zarr.json"
    document.write_text(document.read_text().replace('"complete"', '"elsewhere"'))
    with pytest.raises(MissingFeaturesError, match=f"Run: {again}"):
        Store("data/features.zarr").open(KEY)


def tree(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_an_import_that_is_killed_goes_on_to_the_same_bytes(here):
    X, y = arrays(n=1500)
    arguments = [*write_npy(X, y), "-m", "mine", "-d", "birds", "--chunk-rows", "5"]
    child = subprocess.Popen([*MAIN, "import", *arguments, "--store", "killed.zarr"])
    digests = "mine/birds/eval/train/chunk_digest/c/*"
    deadline = time.monotonic() + 60
    while len(list(Path("killed.zarr").glob(digests))) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (split,) = Store("killed.zarr").splits()
    assert not split.complete
    assert 0 < split.rows_done < 1500
    assert {path.name for path in here.iterdir()} == {"X.npy", "y.npy", "killed.zarr"}
    subprocess.run([*MAIN, "import", *arguments, "--store", "killed.zarr"], check=True)
    subprocess.run([*MAIN, "import", *arguments, "--store", "whole.zarr"], check=True)
    assert tree("killed.zarr") == tree("whole.zarr")
    assert len(tree("whole.zarr")) > 600
    np.testing.assert_array_equal(stored(store="killed.zarr")[0], X.astype("float16"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no count of peak memory")
@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "parquet", "safetensors", "pt"])
def test_a_file_larger_than_what_is_held_takes_little_memory(kind):
    n, d = 60_000, 1000  # 240 MB
    code = (
        "import sys, featstore.transfer as t\n"
        "t.import_features(*sys.argv[2:], model='mine', dataset=sys.argv[1])\n"
        # not ru_maxrss, which starts at that of the process it was forked from
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    rows = np.random.default_rng(0).standard_normal((1000, d), dtype=np.float32)
    X, y = np.tile(rows, (n // 1000, 1)), np.arange(n) % 10
    few = slice(0, 1000)
    for name, span in (("few", few), ("many", slice(None))):
        if kind == "npy":
            np.save(f"{name}.npy", X[span])
        elif kind == "npz":
            np.savez(f"{name}.npz", X=X[span])
        elif kind == "h5":
            with h5py.File(f"{name}.h5", "w") as file:
                file["X"] = X[span]
        elif kind == "safetensors":
            save_numpy({"X": X[span]}, f"{name}.safetensors")
        elif kind == "pt":
            torch.save({"X": torch.tensor(X[span])}, f"{name}.pt")
        else:
            rows = pa.FixedSizeListArray.from_arrays(X[span].ravel(), d)
            pq.write_table(pa.table({"X": rows}), f"{name}.parquet", row_group_size=5000)
        np.save(f"{name}_y.npy", y[span])
    del X
    peak = {}
    for name in ("few", "many"):
        arguments = [name, f"{name}.{kind}", f"{name}_y.npy"]
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        peak[name] = int(found.stdout) // 1024  # MB
    assert peak["many"] - peak["few"] < 200
