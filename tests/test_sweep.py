"""Sweeps off a real store, over real Dask workers, killed for real."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from dask.distributed import LocalCluster
from sklearn.neighbors import KNeighborsClassifier

import featstore
from featstore import probes
from featstore.backend import gpu_available
from featstore.errors import MissingFeaturesError, UnknownNameError
from featstore.keys import BNMode, FeatureKey
from featstore.results import outcomes_of, records
from featstore.store import Store
from featstore.sweep.filling import _by_bn_mode

MODELS = ["tiny-resnet-random", "tiny-vit-random"]
CHEAP = ["knn-marks", "ridge", "linear-marks-1view+epochs=5"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "features.zarr"
    featstore.extract(
        MODELS, ["digits-blur"], bn_modes=["eval", "adapt"], store=path, dtype="float32",
        chunk_rows=100, device="cpu",
    )  # fmt: skip
    return path


def found(root):
    """Everything that was measured, without what differs between runs."""
    return {
        tuple(d[k] for k in ("model", "bn_mode", "protocol", "seed")): (
            d["metrics"], d["certificate"], d["outcomes_sha256"]
        )
        for d in records(root)
    }  # fmt: skip


def test_a_cell_is_what_scikit_learn_gives_on_the_stored_rows(store, tmp_path):
    featstore.probe(protocols=["knn-marks"], store=store, results=tmp_path / "r", scheduler="sync")
    features = Store(store).open(FeatureKey("tiny-resnet-random", "digits-blur", BNMode.EVAL))
    x, z = (
        np.concatenate([features[s].chunk(i) for i in range(len(features[s].chunk_digest))])
        for s in ("train", "test")
    )
    reference = KNeighborsClassifier(20, weights="distance", algorithm="brute")
    reference.fit(x.astype(np.float64), features["train"].label)
    expected = reference.predict(z.astype(np.float64))
    (document,) = (
        d for d in records(tmp_path / "r")
        if d["model"] == "tiny-resnet-random" and d["bn_mode"] == "eval"
    )  # fmt: skip
    kept = outcomes_of(document)
    np.testing.assert_array_equal(kept["top5"][:, 0], expected)
    np.testing.assert_array_equal(kept["label"], features["test"].label)
    share = float((expected == features["test"].label).mean())
    assert document["metrics"]["top1"]["value"] == pytest.approx(share)
    assert document["n_test"] == 797


@pytest.mark.gpu
def test_a_gpu_gives_the_scores_of_the_host(store, tmp_path):
    if not gpu_available():
        pytest.skip("no GPU")
    protocols = [
        "core",
        "free",
        "logreg-5shot",
        "logreg+normalisation=zscore",
        "linear-marks-1view+epochs=5",
    ]
    scores = {}
    for device in ("cpu", "cuda"):
        root = tmp_path / device
        done = featstore.probe(protocols=protocols, store=store, results=root, device=device)
        assert not done.failed
        for document in records(root):
            cell = document["model"], document["bn_mode"], document["protocol"]
            scores.setdefault(cell, []).append(
                {name: entry["value"] for name, entry in document["metrics"].items()}
            )
    assert len(scores) > 40
    for cell, (host, gpu) in scores.items():
        assert host.keys() == gpu.keys(), cell
        for name, value in host.items():
            assert gpu[name] == pytest.approx(value, rel=0.02, abs=0.02), (cell, name)


def test_every_scheduler_gives_the_same_cells(store, tmp_path):
    options = {"protocols": CHEAP, "store": store}
    featstore.probe(results=tmp_path / "sync", scheduler="sync", **options)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        done = featstore.probe(results=tmp_path / "tcp", scheduler=address, **options)
    assert done.filled == 9
    for name in ("threads", "processes"):
        featstore.probe(results=tmp_path / name, scheduler=name, **options)
    for name in ("tcp", "threads", "processes"):
        assert found(tmp_path / name) == found(tmp_path / "sync")


def test_what_is_there_is_not_filled_again_unless_asked(store, tmp_path):
    options = {"store": store, "results": tmp_path / "r", "scheduler": "sync"}
    first = featstore.probe(protocols=["ridge"], **options)
    assert (first.filled, first.up_to_date) == (3, 0)
    more = featstore.probe(protocols=["ridge", "knn-marks"], **options)
    assert (more.filled, more.up_to_date) == (3, 3)
    again = featstore.probe(protocols=["ridge"], overwrite=True, **options)
    assert (again.filled, again.up_to_date) == (3, 0)


def test_a_sweep_can_be_narrowed(store, tmp_path):
    options = {"store": store, "results": tmp_path / "r", "scheduler": "sync"}
    one = featstore.probe(
        ["tiny-resnet-random"], bn_modes=["adapt"], protocols=["ridge"], **options
    )
    assert one.filled == 1
    # a model without BatchNorm stands under `eval` whatever mode is asked for
    vit = featstore.probe(["tiny-vit-random"], bn_modes=["adapt"], protocols=["ridge"], **options)
    assert vit.filled == 1
    results = featstore.open_results(tmp_path / "r").score.sel(protocol="ridge")
    assert np.isfinite(results.sel(model="tiny-vit-random", bn_mode="adapt")).all()


def test_seeds_are_cells_of_their_own(store, tmp_path):
    featstore.probe(
        ["tiny-vit-random"], protocols=["linear-marks-1view+epochs=5"], seeds=[0, 1, 2],
        store=store, results=tmp_path / "r", scheduler="sync",
    )  # fmt: skip
    kept = featstore.open_results(tmp_path / "r", seeds=True)
    assert kept.sizes["seed"] == 3
    assert len(set(kept.score.values.ravel())) > 1
    assert int(featstore.open_results(tmp_path / "r").n_seeds.max()) == 3


def test_features_extracted_anew_make_the_cell_missing(store, tmp_path):
    own = tmp_path / "own.zarr"
    options = {"store": own, "results": tmp_path / "r", "scheduler": "sync"}
    scores = []
    for precision, filled in (("fp32", 1), ("bf16", 1), ("fp32", 0)):
        featstore.extract(["tiny-vit-random"], ["digits-blur"], store=own, precision=precision,
                          overwrite=True)  # fmt: skip
        assert featstore.probe(protocols=["ridge"], **options).filled == filled
        scores.append(float(featstore.open_results(tmp_path / "r").top5.max()))
    assert len(list(records(tmp_path / "r"))) == 2
    digests = {d["features"]: d["metrics"]["top5"]["value"] for d in records(tmp_path / "r")}
    features = Store(own).open(FeatureKey("tiny-vit-random", "digits-blur", BNMode.EVAL))
    # back at the first features, their cell counts again, though another was recorded later
    assert scores[2] == scores[0] == digests[features.digest("train", "test")]


def test_an_empty_store_and_unknown_protocols_are_refused(store, tmp_path):
    with pytest.raises(MissingFeaturesError, match="Run: featstore extract"):
        featstore.probe(store=tmp_path / "none.zarr", results=tmp_path / "r")
    with pytest.raises(UnknownNameError, match="unknown protocol"):
        featstore.probe(protocols=["knnn"], store=store, results=tmp_path / "r")


def test_a_corrupt_chunk_fails_its_cells_by_name_and_no_other(store, tmp_path):
    own = tmp_path / "own.zarr"
    featstore.extract(MODELS, ["digits-blur"], store=own, chunk_rows=100, device="cpu")
    path = next(own.glob("tiny-vit-random/*/*/train/embedding/c/1/0"))
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    done = featstore.probe(protocols=["ridge", "knn-marks"], store=own, results=tmp_path / "r",
                           scheduler="sync")  # fmt: skip
    assert done.filled == 2
    assert len(done.failed) == 2
    assert all(
        "tiny-vit-random" in f.what and "chunk 1 is not what" in f.error for f in done.failed
    )


def test_a_damaged_record_of_earlier_hides_no_cell_that_was_filled_now(store, tmp_path, call):
    options = {"store": store, "results": tmp_path / "r", "scheduler": "sync"}
    featstore.probe(protocols=["ridge"], **options)
    before = sorted((one, one.read_bytes()) for one in (tmp_path / "r.zarr").rglob("*.*")
                    if one.is_file())  # fmt: skip
    bad = next((tmp_path / "r").rglob("*/ridge/*.json"))
    bad.write_text(bad.read_text()[:30])
    done = featstore.probe(protocols=["ncm"], **options)
    assert (done.filled, done.results, len(done.failed)) == (3, "", 1)
    assert done.failed[0].what.startswith(f"{tmp_path / 'r.zarr'} was not refreshed")
    assert str(bad) in done.failed[0].error
    assert before == [(one, one.read_bytes()) for one, _ in before]
    assert len(list((tmp_path / "r").rglob("*/ncm/*.json"))) == 3
    command = ("probe", "-p", "lda", "--store", store, "--results", tmp_path / "r",
               "--scheduler", "sync")  # fmt: skip
    status, out, error = call(*command)
    assert status == 1
    assert out.startswith("3 cells filled, 0 up to date, 1 failed")
    assert error.count("\n") == 1
    assert str(bad) in error
    bad.unlink()  # as the message says
    done = featstore.probe(protocols=["ridge", "ncm", "lda"], **options)
    assert (done.filled, done.up_to_date, done.failed) == (1, 8, [])
    assert featstore.open_results(tmp_path / "r")["score"].notnull().any("bn_mode").sum() == 6


KILLED = ["knn-marks", "linear-marks-1view", "linear-marks-1view-bn", "ridge", "lda", "ncm"]
CHILD = """
import sys, featstore
if __name__ == "__main__":
    print("ready", flush=True)
    store, results = sys.argv[1:]
    chosen = ["knn-marks", "linear-marks-1view", "linear-marks-1view-bn", "ridge", "lda", "ncm"]
    featstore.probe(protocols=chosen, store=store, results=results, scheduler="sync")
"""


@pytest.mark.slow
def test_killed_while_probing_no_cell_is_half_there(store, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    arguments = [sys.executable, str(script), str(store), str(tmp_path / "r")]
    for wanted in (2, 6, 11):
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        with child:
            assert child.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 120
            while cells(tmp_path / "r") < wanted and time.monotonic() < deadline:
                time.sleep(0.002)
            child.kill()
        for document in records(tmp_path / "r"):  # each can be read, and is whole
            outcomes_of(document)
    before = cells(tmp_path / "r")
    options = {"protocols": KILLED, "store": store, "scheduler": "sync"}
    done = featstore.probe(results=tmp_path / "r", **options)
    assert (done.up_to_date, done.filled) == (before, 18 - before)
    featstore.probe(results=tmp_path / "whole", **options)
    assert found(tmp_path / "r") == found(tmp_path / "whole")


def cells(root):
    return len(list(root.glob("*/*/*/*/*.json")))


def test_records_are_plain_json_that_says_how_it_was_made(store, tmp_path):
    featstore.probe(["tiny-vit-random"], protocols=["logreg+log10_c=-2,-1"], store=store,
                    results=tmp_path / "r", scheduler="sync")  # fmt: skip
    (path,) = (tmp_path / "r").glob("*/*/*/*/*.json")
    document = json.loads(path.read_text())
    assert document["settings"]["log10_c"] == [-2.0, -1.0]
    assert document["certificate"]["converged"] is True
    assert document["certificate"]["C"] in (0.01, 0.1)
    features = Store(store).open(FeatureKey("tiny-vit-random", "digits-blur", BNMode.EVAL))
    assert document["features"] == features.digest("train", "test")


def imported(path, *, val=False):
    """Arrays of one's own in a store, with or without an official validation split."""
    rng = np.random.default_rng(0)
    names = ["train", *["val"] * val, "test"]
    for name in names:
        y = np.arange(60) % 3
        x = (rng.normal(size=(60, 6)) + 2 * np.eye(6)[y]).astype(np.float32)
        featstore.import_features(x, y, model="mine", dataset="photos", split=name, store=path)


def test_a_protocol_reads_the_splits_that_it_wants_and_its_cell_knows_them(tmp_path):
    store, results = tmp_path / "s.zarr", tmp_path / "r"
    imported(store)
    options = {"store": store, "results": results, "scheduler": "sync"}
    protocols = ["knn-marks", "logreg-ericsson+log10_c=-1,0"]
    assert featstore.probe(protocols=protocols, **options).filled == 2
    imported(tmp_path / "more.zarr", val=True)
    featstore.merge_store(tmp_path / "more.zarr", store=store)
    # knn-marks read train and test alone, so that its cell stands; a val split makes another logreg
    again = featstore.probe(protocols=protocols, **options)
    assert (again.filled, again.up_to_date) == (1, 1)
    splits = {(d["protocol"], *sorted(d["splits"])) for d in records(results)}
    assert splits == {
        ("knn-marks", "test", "train"),
        (protocols[1], "test", "train"),
        (protocols[1], "test", "train", "val"),
    }
    chosen = featstore.open_results(results).sel(protocol=protocols[1])
    newest = [d for d in records(results) if len(d["splits"]) == 3]
    assert float(chosen.top1.max()) == newest[0]["metrics"]["top1"]["value"]


def test_cells_in_bn_mode_batch_are_marked_as_transductive(tmp_path):
    store, results = tmp_path / "s.zarr", tmp_path / "r"
    featstore.extract(["tiny-resnet-random"], ["digits-blur"], bn_modes=["eval", "batch"],
                      store=store, device="cpu")  # fmt: skip
    protocols = ["knn-marks", "knn-marks-zscore", "knn-marks-zscore-own"]
    featstore.probe(protocols=protocols, store=store, results=results, scheduler="sync")
    marked = {(d["bn_mode"], d["protocol"]) for d in records(results) if d["transductive"]}
    assert cells(results) == 6
    assert marked == {("eval", protocols[2]), *(("batch", protocol) for protocol in protocols)}
    shown = featstore.open_results(results).transductive
    assert marked == {
        (mode, protocol)
        for mode in shown.bn_mode.values
        for protocol in shown.protocol.values
        if shown.sel(bn_mode=mode, protocol=protocol)
    }


def test_episodes_are_marked_where_train_images_made_the_statistics_of_batchnorm(store, tmp_path):
    results, episodes = tmp_path / "r", "fewshot-5shot-ericsson+episodes=5"
    featstore.probe(protocols=[episodes, "ncm"], store=store, results=results, scheduler="sync")
    marked = {
        (d["model"], d["bn_mode"], d["protocol"]) for d in records(results) if d["transductive"]
    }
    assert marked == {("tiny-resnet-random", "adapt", episodes)}  # it scores train; ncm does not
    shown = featstore.open_results(results)
    assert np.isfinite(shown.score.sel(model="tiny-vit-random", bn_mode="adapt")).all()
    assert shown.transductive.sel(protocol=episodes).to_series().to_dict() == {
        "eval": False, "adapt": True,
    }  # fmt: skip
    assert not shown.transductive.sel(protocol="ncm").any()
    of_episodes = probes.get(episodes)  # without BatchNorm there is nothing to estimate
    assert not _by_bn_mode(of_episodes, BNMode.ADAPT, bn_free=True)


def test_views_that_are_not_stored_leave_their_protocols_out(tmp_path):
    store = tmp_path / "s.zarr"
    featstore.extract(["tiny-vit-random"], ["textures"], views=2, store=store)
    options = {"store": store, "results": tmp_path / "r", "scheduler": "sync"}
    done = featstore.probe(protocols=["linear-marks-8view+views=2+epochs=2"], **options)
    assert (done.filled, done.failed) == (1, [])
    done = featstore.probe(protocols=["linear-marks-8view+epochs=2"], **options)
    error = done.failed[0].error
    assert "no finished features for tiny-vit-random textures eval train+aug7" in error
    assert error.endswith("--views 8")
    of_set = featstore.probe(protocols=["marks2024"], **options)
    left = [one.what.rpartition(" ")[2] for one in of_set.not_applicable]
    assert left == [f"linear-marks-8view{head}" for head in ("", "-bn", "-mlp", "-mlp-bn")]
    assert of_set.failed == []


def test_a_score_that_is_no_share_stands_beside_the_others(store, tmp_path):
    featstore.probe(
        protocols=["ncm", "logme", "fewshot-5shot-ericsson+episodes=5"], store=store,
        results=tmp_path / "r", scheduler="sync",
    )  # fmt: skip
    found = featstore.open_results(tmp_path / "r").sel(bn_mode="eval").isel(dataset=0)
    assert dict(zip(found.protocol.values, found["scale"].values, strict=True)) == {
        "fewshot-5shot-ericsson+episodes=5": "share", "logme": "real", "ncm": "share",
    }  # fmt: skip
    for protocol, metric in (("ncm", "top1"), ("logme", "logme"),
                             ("fewshot-5shot-ericsson+episodes=5", "episodes")):  # fmt: skip
        one = found.sel(protocol=protocol)
        np.testing.assert_array_equal(one["score"], one[metric])
        assert np.isfinite(one["score"]).all()
    assert list(featstore.rank_models(featstore.open_results(tmp_path / "r")).protocol.values) == [
        "fewshot-5shot-ericsson+episodes=5", "ncm",
    ]  # fmt: skip
