"""CIFAR's pickles: all forms that circulate are read, and none runs code."""

import io
import os
import pickle

import numpy as np
import pytest

from featstore.datasets import load_dataset
from featstore.errors import BadImageError, MissingDatasetError

NAMES = ["airplane", "automobile", "bird", "cat", "deer"]
FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
ROWS = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did: bytes as its `str`, which Python 3's own pickler never writes."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_str2(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_str2


def python2(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    # NumPy 1 was what there was.
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def as_bytes(table):
    return {k.encode(): [n.encode() for n in v] if k == "label_names" else v
            for k, v in table.items()}  # fmt: skip


FORMS = {
    "str keys": pickle.dumps,
    "str keys, protocol 2": lambda table: pickle.dumps(table, protocol=2),
    "bytes keys": lambda table: pickle.dumps(as_bytes(table)),
    "bytes keys, protocol 2": lambda table: pickle.dumps(as_bytes(table), protocol=2),
    "Python 2": lambda table: python2(as_bytes(table)),
}


def batch(**changes):
    return {"data": ROWS, "labels": [4, 0, 1, 2], "batch_label": "a batch"} | changes


def write(root, dumps=pickle.dumps, **changes):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    for file in FILES:
        (folder / file).write_bytes(dumps(batch(**changes)))
    (folder / "batches.meta").write_bytes(dumps({"label_names": NAMES, "num_vis": 3072}))
    return folder


def read(root, split="test", name="cifar10"):
    return load_dataset(name, data_root=root).split(split)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_pickles_is_read(form, tmp_path):
    write(tmp_path, FORMS[form])
    images = read(tmp_path)
    assert images.labels.tolist() == [4, 0, 1, 2]
    assert list(images.categories) == NAMES
    for row in range(4):
        red, green, blue = ROWS[row].reshape(3, 32, 32)
        pixels = np.asarray(images.read(row))
        assert images.read(row).mode == "RGB"
        for channel, expected in enumerate((red, green, blue)):
            np.testing.assert_array_equal(pixels[..., channel], expected)
    assert len(read(tmp_path, "train")) == 20


def test_python_2s_form_is_that_of_its_opcodes():
    content = python2(as_bytes(batch()))
    assert b"U" in content or b"T" in content
    assert b"_codecs" not in content
    assert b"numpy.core.multiarray" in content


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["test_batch", "batches.meta"])
@pytest.mark.parametrize(
    "hostile",
    [
        Hostile(os.mkdir, "ran"), Hostile(eval, "__import__('os').mkdir('ran')"),
        Hostile(getattr, "", "join"), Hostile(np.load, "x.npy"),
    ],
    ids=["os.mkdir", "eval", "getattr", "numpy.load"],
)  # fmt: skip
def test_a_pickle_that_asks_for_anything_but_arrays_is_refused_before_it_runs(
    where, hostile, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path)
    (folder / where).write_bytes(pickle.dumps({"data": hostile, "label_names": hostile}))
    with pytest.raises(BadImageError, match="is not read: it asks for .*only arrays") as caught:
        read(tmp_path)
    assert str(folder / where) in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_name_with_dots_leads_out_of_no_allowed_module(protocol, tmp_path):
    folder = write(tmp_path)
    head = pickle.PROTO + bytes([max(protocol, 2)])
    (folder / "test_batch").write_bytes(head + b"cnumpy\nndarray.__subclasses__\n.")
    with pytest.raises(BadImageError, match="it asks for numpy.ndarray.__subclasses__"):
        read(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 12_000])
def test_a_batch_that_is_cut_off_is_named(kept, tmp_path):
    folder = write(tmp_path)
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:kept])
    with pytest.raises(BadImageError, match="data_batch_3 is not read: ") as caught:
        read(tmp_path, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [4, 0, 1]}, "holds 4 images and 3 labels"),
        ({"labels": [4, 0, 1, 5]}, r"test/3 has the label 5, counted from 0, and there are 5 cat"),
        ({"labels": [-1, 0, 1, 2]}, "test/0 has the label -1"),
        ({"labels": [0.5, 0, 1, 2]}, "which must be as many integers"),
        ({"labels": "4012"}, "does not hold rows of 3072 bytes"),
        ({"data": ROWS.astype(np.int64)}, "does not hold rows of 3072 bytes"),
        ({"data": ROWS[:, :3000]}, "does not hold rows of 3072 bytes"),
        ({"data": ROWS.tolist()}, "does not hold rows of 3072 bytes"),
    ],
)
def test_a_batch_of_another_form_is_refused(changes, said, tmp_path):
    write(tmp_path, **changes)
    with pytest.raises(BadImageError, match=said):
        read(tmp_path)


def test_one_set_is_not_taken_for_the_other(tmp_path):
    write(tmp_path).rename(tmp_path / "cifar-100-python")
    folder = tmp_path / "cifar-100-python"
    (folder / "batches.meta").rename(folder / "meta")
    with pytest.raises(BadImageError, match="has no 'fine_label_names'; it has label_names, num_"):
        read(tmp_path, name="cifar100")


@pytest.mark.parametrize("file", ["batches.meta", "test_batch"])
def test_a_missing_file_is_named(file, tmp_path):
    folder = write(tmp_path)
    (folder / file).unlink()
    with pytest.raises(MissingDatasetError, match=f"cifar10 is not whole: .*{file} is missing"):
        read(tmp_path)


def test_a_folder_within_its_like_is_read(tmp_path):
    inner = write(tmp_path)
    usual = read(tmp_path)
    inner.rename(tmp_path / "x")
    inner.mkdir()
    (tmp_path / "x").rename(inner / inner.name)
    assert read(tmp_path).fingerprint == usual.fingerprint


def test_a_file_that_is_not_the_published_one_is_said_to_be_another(tmp_path, caplog):
    write(tmp_path)
    read(tmp_path)
    assert "test_batch is not the published file, by its md5" in caplog.text
