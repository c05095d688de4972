"""Features compared off a real store, against the formulas on the stored rows."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import featstore
from featstore.errors import CorruptStoreError, FeatStoreError, UnknownNameError
from featstore.keys import BNMode, FeatureKey, Recipe
from featstore.results.files import write_whole
from featstore.results.similarities import Compared, build_similarity
from featstore.store import Rows, Store, create

RESNET, VIT = "tiny-resnet-random", "tiny-vit-random"
DIMS = ("dataset", "model", "bn_mode", "other", "other_mode")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("similarity") / "features.zarr"
    featstore.extract(
        [RESNET, VIT], ["textures"], bn_modes=["eval", "adapt"], splits=["train", "test"],
        store=path, dtype="float32", chunk_rows=100, device="cpu",
    )  # fmt: skip
    return path


def stored(store, model, bn_mode, split="test", dataset="textures"):
    one = Store(store).open(FeatureKey(model, dataset, BNMode(bn_mode)))[split]
    return np.concatenate([one.chunk(i) for i in range(len(one.chunk_digest))]).astype(float)


def cka(x, y):
    """Kornblith et al. 2019, in feature space."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return (
        np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    )  # fmt: skip


def debiased(x, y):
    """The unbiased HSIC as a product of U-centred matrices (Szekely & Rizzo 2014)."""

    def centred(rows):
        k, n = rows @ rows.T, len(rows)
        np.fill_diagonal(k, 0)
        sums = k.sum(axis=0)
        k = k - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k / np.linalg.norm(k)

    return np.sum(centred(x) * centred(y))


def test_a_comparison_is_that_of_the_stored_rows(store, tmp_path):
    told = []
    done = featstore.similarity(
        store=store, results=tmp_path / "r", rows=250, progress=lambda *args: told.append(args)
    )
    assert (done.datasets, done.feature_sets, done.rows, done.failed) == (1, 3, 250, [])
    assert done.results == str(tmp_path / "r.similarity.zarr")
    assert told == [("comparing", 3, 3)]
    with xr.open_zarr(done.results) as opened:  # nothing of ours is needed
        found = opened.load()
    xr.testing.assert_identical(found, featstore.open_similarity(tmp_path / "r"))
    assert found["cka"].dims == DIMS
    assert dict(found.sizes) == dict(zip(DIMS, (1, 2, 2, 2, 2), strict=True))
    assert found["rows"].values.tolist() == [250]
    assert (found.attrs["split"], found.attrs["title"]) == ("test", "featstore similarity")
    assert found["family"].values.tolist() == ["random", "random"]

    found = found.isel(dataset=0)
    rows = {
        (model, mode): stored(store, model, "eval" if model == VIT else mode)[:250]
        for model in (RESNET, VIT)
        for mode in ("eval", "adapt")
    }
    for (model, mode), x in rows.items():
        for (other, other_mode), y in rows.items():
            one = found.sel(model=model, bn_mode=mode, other=other, other_mode=other_mode)
            assert float(one["cka"]) == pytest.approx(debiased(x, y))
            assert float(one["cka_biased"]) == pytest.approx(cka(x, y))
            if model == other:
                moved = np.linalg.norm(x - y) / np.linalg.norm(x - x.mean(axis=0))
                assert float(one["displacement"]) == pytest.approx(moved)
            else:
                assert np.isnan(float(one["displacement"]))
    one = found.sel(model=RESNET, other=RESNET, bn_mode="eval", other_mode="adapt")
    assert float(one["displacement"]) > 0.1  # so that the above says something


def test_models_modes_and_splits_are_those_asked_for(store, tmp_path):
    options = {"store": store, "results": tmp_path / "r"}
    featstore.similarity([VIT], split="train", **options)
    found = featstore.open_similarity(tmp_path / "r")
    assert dict(found.sizes) == dict.fromkeys(DIMS, 1)
    assert found["rows"].values.tolist() == [len(stored(store, VIT, "eval", "train"))]
    # without BatchNorm: under the modes of the others
    featstore.similarity(["tiny"], bn_modes=["adapt"], **options)
    found = featstore.open_similarity(tmp_path / "r")  # in place of the last
    assert (found["model"].values.tolist(), found["bn_mode"].values.tolist()) == (
        [RESNET, VIT], ["adapt"],
    )  # fmt: skip
    assert found["cka"].notnull().all()


def imported(path, features, model, *, y=None, dataset="photos", split="test"):
    y = np.arange(len(features)) % 5 if y is None else y
    featstore.import_features(
        features, y, model=model, dataset=dataset, split=split, store=path, dtype="float32"
    )


def test_rows_in_another_order_are_brought_into_one(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    store = tmp_path / "s.zarr"
    imported(store, x, "a")
    imported(store, x @ turn, "b")
    a, b = (stored(store, name, "eval", dataset="photos") for name in "ab")
    assert cka(a, b) < 0.9  # their stored orders do differ
    featstore.similarity(store=store, results=tmp_path / "r", rows=70)
    found = featstore.open_similarity(tmp_path / "r")
    assert float(found["cka"].sel(model="a", other="b").squeeze()) == pytest.approx(1, abs=1e-6)


def test_features_of_other_images_are_left_out_by_name(tmp_path):
    rng = np.random.default_rng(0)
    store = tmp_path / "s.zarr"
    for name in "bcd":
        imported(store, rng.normal(size=(40, 6)), name)
    imported(store, rng.normal(size=(40, 6)), "e", y=np.arange(40) // 8)
    imported(store, rng.normal(size=(41, 6)), "f")
    done = featstore.similarity(store=store, results=tmp_path / "r")
    assert [one.what for one in done.failed] == ["e photos eval test", "f photos eval test"]
    assert all("of other images than b photos eval test" in one.error for one in done.failed)
    assert featstore.open_similarity(tmp_path / "r")["model"].values.tolist() == ["b", "c", "d"]


def put(root, model, *, images="one", skip=(), n=60, bn_mode=BNMode.EVAL, bn_free=False):
    """A finished test split in a shuffled order; its features by their positions in the dataset."""
    order = np.random.default_rng(3).permutation(n)
    rng = np.random.default_rng(sum(map(ord, model + bn_mode)))
    x = rng.normal(size=(n, 5)).astype("float32")
    writer = create(
        root, FeatureKey(model, "d", bn_mode), "test", Recipe({"images": images}),
        Rows([str(i) for i in order], order, order % 3, ["a", "b", "c"]),
        width=5, dtype="float32", codec="none", chunk_rows=16,
        notes={"model": {"bn_free": bn_free}},
    )  # fmt: skip
    for chunk in writer.missing():
        rows = order[writer.split.span(chunk)]
        writer.write(chunk, x[rows], ~np.isin(rows, skip))
    writer.finish()
    return x, order


def test_rows_are_the_first_stored_ones_that_all_sets_have(tmp_path):
    a, order = put(tmp_path / "s", "a", skip=[7, 8])
    b, _ = put(tmp_path / "s", "b", skip=[8, 31])
    common = [i for i in order if i not in (7, 8, 31)]
    for rows in (20, 57, 2000):
        featstore.similarity(store=tmp_path / "s", results=tmp_path / "r", rows=rows)
        found = featstore.open_similarity(tmp_path / "r")
        assert found["rows"].values.tolist() == [min(rows, 57)]
        expected = debiased(a[common[:rows]], b[common[:rows]])
        assert float(found["cka"].sel(model="a", other="b").squeeze()) == pytest.approx(expected)
        assert np.isnan(found["displacement"].sel(model="a", other="b")).all()  # though as wide


def test_files_that_changed_between_extractions_are_other_images(tmp_path):
    for model, images in (("a", "old"), ("b", "new"), ("c", "new")):
        put(tmp_path / "s", model, images=images)
    done = featstore.similarity(store=tmp_path / "s", results=tmp_path / "r")
    assert [one.what for one in done.failed] == ["a d eval test"]
    assert "of other images than b d eval test" in done.failed[0].error
    assert done.feature_sets == 2


def test_with_too_few_rows_in_common_the_dataset_is_left_out(tmp_path):
    put(tmp_path / "s", "a", skip=range(30))
    put(tmp_path / "s", "b", skip=range(33, 60))
    done = featstore.similarity(store=tmp_path / "s", results=tmp_path / "r")
    (fault,) = done.failed
    assert fault.what == "d test"
    assert "only 3 images have features in all 2 sets" in fault.error
    assert (done.results, (tmp_path / "r.similarity.zarr").exists()) == ("", False)


def test_a_corrupt_chunk_costs_its_own_set_alone(store, tmp_path):
    own = tmp_path / "own.zarr"
    shutil.copytree(store, own)
    path = next(own.glob(f"{VIT}/*/*/test/embedding/c/1/0"))
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    done = featstore.similarity(store=own, results=tmp_path / "r")
    (fault,) = done.failed
    assert fault.what == f"{VIT} textures eval test"
    assert "chunk 1 is not what was written" in fault.error
    assert done.feature_sets == 2
    # the damaged chunk is not read where its rows are not asked for
    assert featstore.similarity(store=own, results=tmp_path / "r", rows=90).failed == []


def test_what_is_not_stored_is_a_failure_only_if_asked_for_by_name(store, tmp_path):
    own = tmp_path / "own.zarr"
    shutil.copytree(store, own)
    Store(own).remove(FeatureKey(RESNET, "textures", BNMode.ADAPT), "test")
    options = {"store": own, "results": tmp_path / "r"}
    done = featstore.similarity(**options)
    assert (done.failed, done.feature_sets) == ([], 2)
    assert "no finished features for tiny-resnet-random textures adapt" in done.left_out[0].error
    done = featstore.similarity([RESNET, VIT], ["textures"], bn_modes=["eval", "adapt"], **options)
    assert [one.what for one in done.failed] == [f"{RESNET} textures adapt test"]
    done = featstore.similarity(["tiny-vit-mae", VIT], ["textures"], **options)
    assert [one.what for one in done.failed] == ["tiny-vit-mae textures eval"]
    with pytest.raises(UnknownNameError, match="unknown model 'tiny-vit-maee'"):
        featstore.similarity(["tiny-vit-maee"], **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "tests"}, "split must be one of train, val, test, got 'tests'"),
        ({"rows": 3}, "rows must be 4 or more, got 3"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N"),
        ({"bn_modes": ["evil"]}, "'evil' is not a valid BNMode"),
    ],
)
def test_wrong_arguments_are_refused(store, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        featstore.similarity(store=store, results=tmp_path / "r", **options)


def test_what_is_no_comparison_is_not_replaced(store, tmp_path):
    shutil.copytree(store, tmp_path / "r.similarity.zarr")
    told = []
    with pytest.raises(FeatStoreError, match="would be replaced by the results, and is none"):
        featstore.similarity(
            store=store, results=tmp_path / "r", progress=lambda *args: told.append(args)
        )
    assert told == []  # before any work
    assert len(Store(tmp_path / "r.similarity.zarr").keys()) == 3


def test_a_write_that_fails_leaves_the_last_comparison(store, tmp_path):
    done = featstore.similarity(store=store, results=tmp_path / "r")
    before = featstore.open_similarity(tmp_path / "r")

    class Odd:
        pass

    unfit = before.assign(odd=("model", np.array([Odd(), Odd()], dtype=object)))
    with pytest.raises((TypeError, ValueError)):
        write_whole(lambda: unfit, tmp_path / "r.similarity.zarr")
    xr.testing.assert_identical(featstore.open_similarity(tmp_path / "r"), before)
    assert featstore.similarity(store=store, results=tmp_path / "r").results == done.results
    assert not (tmp_path / "r.similarity.new").exists()


def test_none_or_a_damaged_comparison_says_what_to_run(store, tmp_path):
    with pytest.raises(FeatStoreError, match="no similarities at .* Run: featstore similarity"):
        featstore.open_similarity(tmp_path / "r")
    done = featstore.similarity(store=store, results=tmp_path / "r")
    (tmp_path / "r.similarity.zarr" / "zarr.json").write_text("{")
    with pytest.raises(CorruptStoreError, match="Delete it and run: featstore similarity"):
        featstore.open_similarity(tmp_path / "r")
    assert done.results


def test_only_models_without_batchnorm_stand_under_eval():
    one = np.ones((1, 1))
    compared = Compared("d", 9, [("vit", "eval")], one, one, one)
    found = build_similarity([compared], {"vit": {"bn_free": True}}, split="test")
    assert found["bn_mode"].values.tolist() == ["eval"]


def test_a_dataset_that_a_model_lacks_is_nan_for_it(tmp_path):
    rng = np.random.default_rng(0)
    store = tmp_path / "s.zarr"
    for name, dataset in (("a", "x"), ("b", "x"), ("a", "y")):
        imported(store, rng.normal(size=(30, 6)), name, dataset=dataset)
    done = featstore.similarity(store=store, results=tmp_path / "r")
    assert (done.datasets, done.feature_sets) == (2, 3)
    found = featstore.open_similarity(tmp_path / "r")["cka"].squeeze()
    assert found.sel(dataset="x").notnull().all()
    assert found.sel(dataset="y").notnull().values.tolist() == [[True, False], [False, False]]


def test_the_command_says_what_it_did_in_one_line(store, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    arguments = ("similarity", "--store", store, "--rows", "100")
    status, out, err = call(*arguments)
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    assert out.startswith("3 feature sets of 1 datasets compared on up to 100 test images in ")
    assert out.endswith(" s -> data/results.similarity.zarr\n")
    status, out, _ = call(*arguments, "-m", VIT, "-d", "textures", "--bn-mode", "eval", "--json")
    assert (status, json.loads(out)["feature_sets"]) == (0, 1)
    status, out, err = call(*arguments, "-m", "tiny-vit-mae", "-d", "textures")
    assert (status, out) == (1, "")
    assert "no finished features for tiny-vit-mae textures eval" in err
    status, _, err = call(*arguments, "--split", "testing")
    assert (status, err) == (
        2, "featstore: split must be one of train, val, test, got 'testing'\n"
    )  # fmt: skip
