"""Cells side by side, image by image, against what was recorded."""

import numpy as np
import pytest

from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.results import Cell, open_outcomes, open_results, record

LABELS = np.random.default_rng(0).integers(0, 4, 60)


def put(root, right, *, model="m", protocol="logreg", bn_mode="eval", seed=0, order=None,
        labels=LABELS, index=None, metric="top1", bn_free=False, stage="late",
        kept=None):  # fmt: skip
    """A record of test images in some order, of whether each was right."""
    index = np.arange(len(right)) if index is None else index
    order = np.arange(len(right)) if order is None else order
    rows = {"index": index, "label": labels[: len(right)], "rank": np.where(right, 0, 2)}
    rows = {name: column[order] for name, column in rows.items()} if kept is None else kept
    share = float(np.mean(right))
    means = [
        right[rows_of].mean() for c in range(4) if (rows_of := labels[: len(right)] == c).any()
    ]
    values = {"top1": share, "mean_per_class": float(np.mean(means))}
    info = {
        "backbone": "resnet", "family": "contrastive", "stage": stage, "lineage": model,
        "pretraining": [], "bn_free": bn_free,
    }  # fmt: skip
    facts = {
        "metrics": {name: {"value": one, "low": one, "high": one} for name, one in values.items()},
        "n_train": 40, "n_test": len(right), "n_skipped": 0, "n_categories": 4, "seconds": 0.5,
        "certificate": {}, "settings": {"kind": "linear", "scale": "share"}, "headline": metric,
        "transductive": False, "splits": {}, "model_info": info,
        "dataset_info": {"shift": "", "metric": metric, "source": "x"},
        "versions": {"featstore": "0.1.0"},
    }  # fmt: skip
    record(root, Cell(model, "d", bn_mode, protocol, seed, "a" * 64), facts, rows)


def hits(seed, n=60):
    return np.random.default_rng(seed).random(n) < 0.6


def test_images_stand_where_the_dataset_has_them_whatever_the_order_of_a_record(tmp_path):
    place = np.random.default_rng(1).permutation(60) * 3  # as a split is drawn from a folder
    orders = {name: np.random.default_rng(n).permutation(60) for n, name in enumerate("abc")}
    for name, order in orders.items():
        put(tmp_path, hits(ord(name)), model=name, order=order, index=place)
    found = open_outcomes(tmp_path, dataset="d")
    assert found["correct"].dims == ("model", "protocol", "image")
    assert found["index"].values.tolist() == list(range(0, 180, 3))
    for name in orders:
        for image, index in enumerate(found["index"].values):
            at = int(np.flatnonzero(place == index)[0])
            one = found["correct"].sel(model=name, protocol="logreg")[image]
            assert one == hits(ord(name))[at]
            assert found["label"][image] == LABELS[at]


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_their_mean_is_the_score_and_what_is_not_there_has_none(tmp_path, metric):
    for n, (model, protocol) in enumerate([("a", "k20"), ("a", "k100"), ("b", "k100")]):
        put(tmp_path, hits(n), model=model, protocol=protocol, metric=metric)
    found = open_outcomes(tmp_path, dataset="d")
    assert found["protocol"].values.tolist() == ["k20", "k100"]
    assert found.attrs == {"dataset": "d", "bn_mode": "eval", "seed": 0, "metric": metric}
    assert found["there"].values.tolist() == [[True, True], [False, True]]
    assert found["correct"].sel(model="b", protocol="k20").isnull().all()
    mean = found["correct"].mean("image")
    if metric == "mean_per_class":
        mean = found["correct"].groupby("label").mean().mean("label")
    expected = open_results(tmp_path)["score"].sel(dataset="d", bn_mode="eval")
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_models_are_described_and_one_without_batchnorm_is_the_same_in_every_mode(tmp_path):
    put(tmp_path, hits(0), model="vit", bn_free=True)
    put(tmp_path, hits(1), model="early", bn_mode="batch", stage="early")
    put(tmp_path, hits(2), model="resnet")
    put(tmp_path, hits(3), model="resnet", seed=1)
    put(tmp_path, hits(4), model="twice", bn_free=True)
    put(tmp_path, hits(5), model="twice", bn_free=True, bn_mode="batch")
    found = open_outcomes(tmp_path, dataset="d", bn_mode="batch")
    assert found["model"].values.tolist() == ["early", "twice", "vit"]
    assert found["stage"].values.tolist() == ["early", "late", "late"]
    assert found["bn_free"].values.tolist() == [False, True, True]
    assert (found["correct"].sel(model="vit", protocol="logreg").values == hits(0)).all()
    assert (found["correct"].sel(model="twice", protocol="logreg").values == hits(5)).all()
    assert open_outcomes(tmp_path, dataset="d", seed=1)["model"].values.tolist() == ["resnet"]


def test_models_and_protocols_are_chosen_and_none_is_left_out_in_silence(tmp_path):
    for model in "abc":
        for protocol in ("knn", "logreg"):
            put(tmp_path, hits(0), model=model, protocol=protocol)
    put(tmp_path, hits(0), protocol="logme", model="a", kept={"index": np.arange(0)})
    found = open_outcomes(tmp_path, dataset="d", models=["c", "a"], protocols=["logreg"])
    assert found["model"].values.tolist() == ["a", "c"]
    assert found["protocol"].values.tolist() == ["logreg"]
    assert open_outcomes(tmp_path, dataset="d")["protocol"].values.tolist() == ["knn", "logreg"]
    for asked, fault in (
        ({"models": ["a", "x"]}, "no cell on d .* of model x in .* Run: featstore probe"),
        ({"protocols": ["knn", "y"]}, "of protocol y in"),
        ({"protocols": ["y"]}, "no cell of y on d .* Run: featstore probe -p y -d d"),
        ({"seed": 4}, "no cell of any protocol on d in BN mode eval with seed 4"),
        (
            {"protocols": ["knn", "logme"]},
            "logme on d .* keeps no single category",
        ),
    ):
        with pytest.raises(FeatStoreError, match=fault):
            open_outcomes(tmp_path, dataset="d", **asked)
    with pytest.raises(ValueError, match="bn_mode must be one of eval, batch, adapt, got 'x'"):
        open_outcomes(tmp_path, dataset="d", bn_mode="x")


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"right": hits(0, 50)}, r"most have 60 \(\w+\), but odd logreg 50 \(\w+\)"),
        ({"right": hits(0), "index": np.arange(1, 61)}, "odd logreg 60"),
        ({"right": hits(0), "labels": LABELS[::-1]}, "odd logreg 60"),
    ],
    ids=["fewer", "others", "other labels"],
)
def test_cells_of_other_test_images_are_refused_by_name(tmp_path, odd, told):
    for n, model in enumerate("abc"):
        put(tmp_path, hits(n), model=model)
    put(tmp_path, model="odd", **odd)
    fault = rf"cells on d .* not of the same test images: .*{told}.*Leave these out by models"
    with pytest.raises(StoreMismatchError, match=fault):
        open_outcomes(tmp_path, dataset="d")
    assert open_outcomes(tmp_path, dataset="d", models=list("abc")).sizes["image"] == 60


def test_cells_of_another_metric_and_images_of_several_labels_are_refused_by_name(tmp_path):
    put(tmp_path, hits(0), model="a")
    put(tmp_path, hits(1), model="b", metric="mean_per_class")
    with pytest.raises(StoreMismatchError, match="one metric: most have top1, but b logreg mean_p"):
        open_outcomes(tmp_path, dataset="d")
    several = {"index": np.arange(3), "label": np.eye(3, dtype=int), "scores": np.eye(3)}
    put(tmp_path / "voc", hits(0), kept=several)
    with pytest.raises(FeatStoreError, match="logreg on d in BN mode eval with seed 0 keeps no"):
        open_outcomes(tmp_path / "voc", dataset="d")


def test_a_record_with_an_image_twice_is_damaged(tmp_path):
    put(tmp_path, hits(0), index=np.arange(60) // 2)
    with pytest.raises(CorruptStoreError, match="has no test image, or one twice"):
        open_outcomes(tmp_path, dataset="d")


def test_a_damaged_record_is_named_and_left_out_if_told(tmp_path, caplog):
    for n, model in enumerate("abc"):
        put(tmp_path, hits(n), model=model)
    (file,) = (tmp_path / "b").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-1])
    (document,) = (tmp_path / "c").rglob("*.json")
    document.write_text("{}")
    with pytest.raises(CorruptStoreError, match="c/d/eval/logreg/0-"):
        open_outcomes(tmp_path, dataset="d")
    found = open_outcomes(tmp_path, dataset="d", skip_errors=True)
    assert found["model"].values.tolist() == ["a"]
    assert [name for name in "bc" if f"{name}/d/eval/logreg/0-" in caplog.text] == ["b", "c"]
    for one in (tmp_path / "a").rglob("*.npz"):
        one.unlink()
    with pytest.raises(FeatStoreError, match="records on d .* are damaged"):
        open_outcomes(tmp_path, dataset="d", skip_errors=True)
