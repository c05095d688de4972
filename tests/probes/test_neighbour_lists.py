"""Neighbour lists on the disk: a read where they are whole, a search where they are not."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore import probes
from featstore.errors import ProbeError
from featstore.probes import neighbour_lists
from featstore.probes.neighbour_lists import Search, read_lists, write_lists

from .conftest import make_data, make_task


@pytest.fixture
def searched(monkeypatch):
    """k of each search."""
    ks = []
    real = neighbour_lists.search

    def count(bank, queries, *, k):
        ks.append(k)
        return real(bank, queries, k=k)

    monkeypatch.setattr(neighbour_lists, "search", count)
    return ks


def kept(tmp_path, task):
    return replace(task, lists=tmp_path / "neighbours" / "abc", cache={})


def test_lists_are_read_again_by_other_protocols_and_labels(tmp_path, searched):
    x, y, z, t = make_data()
    task = make_task(x, y, z, t)
    plain = Search(task, "cosine", "l2").nearest(0, 30)
    Search(kept(tmp_path, task), "cosine", "l2").nearest(0, 30)
    assert searched == [30, 30]
    relabelled = make_task(x, np.roll(y, 1), z, t)
    value, index = Search(kept(tmp_path, relabelled), "cosine", "l2").nearest(0, 7)
    assert searched == [30, 30]
    np.testing.assert_array_equal(value, plain[0][:, :7])
    np.testing.assert_array_equal(index, plain[1][:, :7])
    Search(kept(tmp_path, task), "cosine", "l2").nearest(0, 40)  # longer than what is kept
    Search(kept(tmp_path, task), "cosine", "l2").nearest(0, 40)
    Search(kept(tmp_path, task), "euclidean", "l2").nearest(0, 5)  # another metric
    assert searched == [30, 30, 40, 5]


@pytest.mark.parametrize("harm", ["bit", "cut", "other", "rows"])
def test_lists_that_are_not_what_was_written_are_made_again(tmp_path, searched, harm, caplog):
    task = kept(tmp_path, make_task(*make_data()))
    whole = Search(task, "cosine", "l2").nearest(0, 9)
    (file,) = tmp_path.glob("neighbours/*.npz")
    data = bytearray(file.read_bytes())
    if harm == "bit":
        data[data.index(b"value.npy") + 300] ^= 4
    elif harm == "cut":
        del data[len(data) // 2 :]
    elif harm == "other":
        data = b"not an archive"
    file.write_bytes(bytes(data))
    if harm == "rows":
        write_lists(file, np.zeros((3, 9)), np.zeros((3, 9), np.int64))
    with caplog.at_level(logging.WARNING):
        again = Search(replace(task, cache={}), "cosine", "l2").nearest(0, 9)
    assert searched == [9, 9]
    assert "made again" in caplog.text
    np.testing.assert_array_equal(again[1], whole[1])
    assert read_lists(file, len(task.test)) is not None


def test_a_place_that_cannot_be_written_costs_no_score(tmp_path, caplog):
    (tmp_path / "neighbours").write_text("a file")
    task = kept(tmp_path, make_task(*make_data()))
    assert Search(task, "cosine", "l2").nearest(0, 3)[0].shape[1] == 3
    assert "not kept" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["neighbours"]


def test_a_draw_of_train_keeps_no_lists_under_the_name_of_all(tmp_path):
    task = kept(tmp_path, make_task(*make_data()))
    assert task.few(3).lists is None


@pytest.mark.parametrize("normalisation", ["none", "l2", "zscore", "zscore-own"])
def test_lists_are_those_of_brute_force(normalisation):
    x, y, z, t = make_data()
    bank, queries = x.astype(float), z.astype(float)
    if normalisation.startswith("zscore"):
        own = bank if normalisation == "zscore" else queries
        queries = (queries - own.mean(0)) / own.std(0)
        bank = (bank - bank.mean(0)) / bank.std(0)
    elif normalisation == "l2":
        bank, queries = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (bank, queries))
    far = np.sqrt(((queries[:, None] - bank) ** 2).sum(-1))
    value, index = Search(make_task(x, y, z, t), "euclidean", normalisation).nearest(0, 12)
    expected = np.argsort(far, axis=1)[: len(index), :12]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(value, np.take_along_axis(far[: len(index)], expected, 1), rtol=1e-9)


def test_rows_without_a_direction_are_named():
    x, y, z, t = make_data()
    x[90] = 0
    task = make_task(x, y, z, t, train_edges=(50,))
    with pytest.raises(ProbeError, match="train must hold no row of zeros.*row 90 is one"):
        Search(task, "cosine", "l2").nearest(0, 3)
    assert Search(task, "euclidean", "none").nearest(0, 3)[0].shape[1] == 3


def test_a_sweep_keeps_lists_beside_its_cells(tmp_path, searched):
    rng = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 30)):
        featstore.import_features(
            rng.normal(size=(n, 8)).astype(np.float32), np.arange(n) % 3,
            model="mine", dataset="birds", split=split, store=tmp_path / "s.zarr",
        )  # fmt: skip
    places = {"store": tmp_path / "s.zarr", "results": tmp_path / "r"}
    featstore.probe(protocols=["knn-dino-k20"], **places)
    featstore.probe(protocols=["knn-dino-k10"], **places)
    assert searched == [20]
    (file,) = Path(tmp_path / "r").rglob("neighbours/*.npz")
    assert file.name.startswith("cosine-l2-")
    assert featstore.open_results(tmp_path / "r").sizes["protocol"] == 2


def test_uniform_votes_are_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    x, y, z, t = make_data()
    name = "knn-marks+k=7+weighting=uniform"
    ((_, measured),) = probes.run([probes.get(name)], make_task(x, y, z, t))
    model = KNeighborsClassifier(7, algorithm="brute").fit(x, y)
    expected = (model.predict(z) == t).mean()
    assert measured.metrics["top1"]["value"] == pytest.approx(expected)
