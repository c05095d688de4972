"""Extraction against plain timm and Pillow, and against itself after being cut off."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from timm.data import create_transform, resolve_model_data_config

import featstore
from featstore.datasets.files import FileImages
from featstore.errors import BadEmbeddingError, BadImageError, FeatStoreError, StoreMismatchError
from featstore.extraction import passes, stations, stored_against_now, targets
from featstore.keys import BNMode, FeatureKey
from featstore.store import SplitWriter, Store

from .conftest import write_folder

RESNET = "file:none#arch=tiny-resnet"
VIT = "file:none#arch=tiny-vit"


def extract(models, root, store, **options):
    options = {"weights": "random", "dtype": "float32", "num_workers": 0} | options
    return featstore.extract(models, [f"folder:{root}"], store=store, **options)


def features(store, model, root, bn_mode="eval", split="train"):
    found = Store(store).open(FeatureKey(f"{model}~random0", f"folder:{root}", BNMode(bn_mode)))
    one = found[split]
    rows = np.concatenate([one.chunk(i) for i in range(len(one.chunk_digest))])
    return rows, one


def test_embeddings_are_those_of_plain_timm(folder, tmp_path):
    extract([VIT], folder, tmp_path / "s.zarr")
    rows, split = features(tmp_path / "s.zarr", VIT, folder)
    module = featstore.create_backbone("tiny-vit", seed=0).eval()
    transform = create_transform(**resolve_model_data_config(module), is_training=False)
    for row, name in enumerate(split.array("sample_id")):
        image = transform(Image.open(folder / str(name)).convert("RGB"))
        with torch.inference_mode():
            expected = module(image[None])[0].numpy()
        np.testing.assert_allclose(rows[row], expected, atol=2e-5)
    labels = [
        sorted(("ant", "bee", "cat")).index(str(n).split("/")[1]) for n in split.array("sample_id")
    ]
    assert split.label.tolist() == labels
    assert split.categories == ["ant", "bee", "cat"]


def test_rows_align_across_models_and_modes(folder, tmp_path):
    extract([VIT, RESNET], folder, tmp_path / "s.zarr", bn_modes=["eval", "batch"])
    orders = {
        tuple(s.array("index")) for s in Store(tmp_path / "s.zarr").splits() if s.name == "train"
    }
    assert len(orders) == 1


def test_models_that_share_a_transform_are_decoded_once_and_sites_embedded_once(folder, tmp_path):
    done = extract([VIT, f"{VIT}@cls", f"{VIT}@avg", RESNET], folder, tmp_path / "s.zarr")
    assert done.images == 36  # each image of train and test once, for four targets
    assert done.filled == 8


def test_four_models_that_share_a_transform_read_each_image_once(folder, tmp_path, monkeypatch):
    opened = []
    read = FileImages.__call__

    def counted(images, position):
        opened.append((id(images), position))
        return read(images, position)

    monkeypatch.setattr(FileImages, "__call__", counted)
    models = {f"m{i}": featstore.create_backbone("tiny-vit", seed=i).eval() for i in range(4)}
    featstore.extract(models, [f"folder:{folder}"], store=tmp_path / "s.zarr", device="cpu")
    assert len(opened) == len(set(opened)) == 36


def test_a_second_run_touches_no_image(folder, tmp_path):
    extract([VIT], folder, tmp_path / "s.zarr")
    for path in folder.rglob("*.png"):
        size = path.stat().st_size
        path.write_bytes(b"x" * size)  # the same names and sizes; reading one would fail
    done = extract([VIT], folder, tmp_path / "s.zarr")
    assert (done.filled, done.up_to_date, done.images) == (0, 2, 0)


@pytest.mark.parametrize("bn_mode", ["eval", "batch", "adapt"])
def test_two_runs_give_equal_bytes(folder, tmp_path, bn_mode):
    for name in ("a.zarr", "b.zarr"):
        extract([RESNET], folder, tmp_path / name, bn_modes=[bn_mode], batch_size=5)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")


def test_worker_processes_change_nothing(folder, tmp_path):
    for workers in (0, 2):
        extract([RESNET], folder, tmp_path / f"{workers}.zarr", num_workers=workers, batch_size=5)
    assert contents(tmp_path / "0.zarr") == contents(tmp_path / "2.zarr")


def contents(root):
    """Every committed file by name; JSON by its meaning, since its order of names is the disk's."""
    return {
        str(path.relative_to(root)): json.loads(path.read_bytes())
        if path.suffix == ".json"
        else path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".partial"
    }  # fmt: skip


def leaky_folder(root):
    """Noise, but for every fourth image of a class, which is drowned in the class's own pattern.

    A plain image says nothing of its class; a batch of one class would say it through the
    statistics that its drowned images give to all.
    """
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (4, 32, 32), dtype=np.uint8)
    for split in ("train", "test"):
        for label in range(4):
            place = root / split / str(label)
            place.mkdir(parents=True)
            for i in range(40):
                plain = rng.integers(0, 256, (32, 32), dtype=np.uint8)
                pixels = patterns[label] if i % 4 == 0 else plain
                Image.fromarray(pixels).save(
                    place / f"{'drowned' if i % 4 == 0 else 'plain'}{i}.png"
                )
    return root


def accuracy_on_plain_images(root, store):
    extract([RESNET], root, store, bn_modes=["batch"], batch_size=40)
    parts = []
    for name in ("train", "test"):
        rows, split = features(store, RESNET, root, "batch", name)
        plain = np.array(["plain" in str(one) for one in split.array("sample_id")])
        parts += [rows[plain], split.label[plain]]
    x, y, z, t = parts
    return KNeighborsClassifier(5).fit(x, y).score(z, t)


def test_batch_mode_does_not_leak_the_labels_of_a_sorted_folder(tmp_path, monkeypatch):
    root = leaky_folder(tmp_path / "sorted")
    chance, deviation = 0.25, (0.25 * 0.75 / 120) ** 0.5
    assert abs(accuracy_on_plain_images(root, tmp_path / "a.zarr") - chance) < 4 * deviation
    # The folder's own order, class by class, does leak: the images are such that it shows.
    for module in (stations, passes, targets):
        monkeypatch.setattr(module, "row_order", lambda fingerprint, n: np.arange(n))
    assert accuracy_on_plain_images(root, tmp_path / "b.zarr") > chance + 4 * deviation


def test_a_model_without_batchnorm_is_stored_once(folder, tmp_path):
    done = extract([VIT, RESNET], folder, tmp_path / "s.zarr", bn_modes=["batch", "adapt"])
    assert done.filled == 2 + 4
    assert {(k.model[:27], str(k.bn_mode)) for k in list(Store(tmp_path / "s.zarr").keys())} == {
        (f"{VIT}~random0"[:27], "eval"),
        (f"{RESNET}~random0"[:27], "batch"),
        (f"{RESNET}~random0"[:27], "adapt"),
    }


def test_half_precision_storage_is_the_rounded_embedding(folder, tmp_path):
    extract([VIT], folder, tmp_path / "32.zarr")
    extract([VIT], folder, tmp_path / "16.zarr", dtype="float16")
    np.testing.assert_array_equal(
        features(tmp_path / "16.zarr", VIT, folder)[0],
        features(tmp_path / "32.zarr", VIT, folder)[0].astype(np.float16),
    )


def test_autocast_is_close_and_part_of_the_recipe(folder, tmp_path):
    extract([VIT], folder, tmp_path / "s.zarr")
    with pytest.raises(StoreMismatchError, match="precision: stored 'fp32', now 'bf16'"):
        extract([VIT], folder, tmp_path / "s.zarr", precision="bf16")
    extract([VIT], folder, tmp_path / "s.zarr", precision="bf16", variant="bf16")
    full = features(tmp_path / "s.zarr", VIT, folder)[0]
    key = FeatureKey(f"{VIT}~random0-bf16", f"folder:{folder}", BNMode.EVAL)
    half = Store(tmp_path / "s.zarr").open(key)["train"].chunk(0)
    assert 0 < np.abs(full - half).max() < 0.1 * np.abs(full).max()


def test_overwrite_replaces_another_recipe(folder, tmp_path):
    extract([VIT], folder, tmp_path / "s.zarr")
    extract([VIT], folder, tmp_path / "s.zarr", precision="bf16", overwrite=True)
    assert features(tmp_path / "s.zarr", VIT, folder)[1].recipe.fields["precision"] == "bf16"


def test_why_names_what_changed(folder, tmp_path):
    extract([VIT], folder, tmp_path / "s.zarr")
    key = FeatureKey(f"{VIT}~random0", f"folder:{folder}", BNMode.EVAL)
    options = featstore.extraction.Options(dtype="float32")
    found = stored_against_now(key, store=tmp_path / "s.zarr", options=options)
    assert found == {"train": {}, "test": {}}
    Image.new("RGB", (9, 9)).save(folder / "test" / "ant" / "new.png")
    found = stored_against_now(key, store=tmp_path / "s.zarr", options=options)
    assert found["train"] == {}
    assert set(found["test"]) == {"images", "row_order"}


def break_image(folder):
    path = folder / "train" / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_by_its_name(folder, tmp_path, workers):
    path = break_image(folder)
    with pytest.raises(BadImageError, match=rf"{path} is truncated or broken"):
        extract([VIT], folder, tmp_path / "s.zarr", num_workers=workers)
    path.unlink()
    write = np.full((9, 9, 3), 7, np.uint8)
    Image.fromarray(write).save(path)


@pytest.mark.parametrize("bn_mode", ["eval", "batch", "adapt"])
def test_skipped_images_are_masked_and_change_no_other(folder, tmp_path, bn_mode):
    path = break_image(folder)
    extract([RESNET], folder, tmp_path / "s.zarr", skip_errors=True, bn_modes=[bn_mode])
    rows, split = features(tmp_path / "s.zarr", RESNET, folder, bn_mode)
    names = split.array("sample_id")
    bad = [str(name) for name in names[~split.valid]]
    assert bad == [str(path.relative_to(folder))]
    assert not rows[~split.valid].any()
    assert np.isfinite(rows).all()
    if bn_mode == "eval":
        used = rows[split.valid].astype(np.float64)
        np.testing.assert_allclose(split.array("mean"), used.mean(axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "holds NaN or infinity"), (np.inf, "holds NaN or infinity"), (1e6, "beyond float16")],
)
def test_what_cannot_be_stored_stops_the_run_by_its_name(
    folder, tmp_path, monkeypatch, value, message
):
    real = passes.Encoder.__call__

    def spoiled(self, images):
        found = {site: rows.clone() for site, rows in real(self, images).items()}
        for rows in found.values():
            rows[len(rows) // 2, 1] = value
        return found

    monkeypatch.setattr(passes.Encoder, "__call__", spoiled)
    with pytest.raises(BadEmbeddingError, match=rf"(ant|bee|cat)/\d.png .*{message}"):
        extract([VIT], folder, tmp_path / "s.zarr", dtype="float16")
    monkeypatch.undo()
    assert [s.rows_done for s in Store(tmp_path / "s.zarr").splits()] == [0]
    extract([VIT], folder, tmp_path / "s.zarr", dtype="float16")
    assert all(s.complete for s in Store(tmp_path / "s.zarr").splits())


def fill_the_disk_at_chunk_2(monkeypatch):
    real = SplitWriter.write

    def full(self, chunk, rows, valid):
        if chunk == 2:
            raise OSError(28, "No space left on device")
        real(self, chunk, rows, valid)

    monkeypatch.setattr(SplitWriter, "write", full)


def test_a_full_disk_is_said_and_the_run_goes_on_after(folder, tmp_path, monkeypatch):
    fill_the_disk_at_chunk_2(monkeypatch)
    with pytest.raises(FeatStoreError, match="No space left on device.*kept; make room"):
        extract([VIT], folder, tmp_path / "s.zarr", chunk_rows=5)
    monkeypatch.undo()
    done = extract([VIT], folder, tmp_path / "s.zarr", chunk_rows=5)
    assert done.images < 36
    extract([VIT], folder, tmp_path / "whole.zarr", chunk_rows=5)
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "whole.zarr")


def test_two_at_once_share_the_chunks(folder, tmp_path, monkeypatch):
    """One five times as slow as the other: what the quick one made, the slow one leaves alone."""
    real = passes.Encoder.__call__

    def slow_in_one_thread(self, images):
        if threading.current_thread().name.endswith("_0"):
            time.sleep(0.2)
        return real(self, images)

    monkeypatch.setattr(passes.Encoder, "__call__", slow_in_one_thread)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(extract, [VIT], folder, tmp_path / "s.zarr", chunk_rows=3) for _ in range(2)
        ]
        images = [run.result().images for run in runs]
    monkeypatch.undo()
    assert sum(images) == 36
    extract([VIT], folder, tmp_path / "whole.zarr", chunk_rows=3)
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "whole.zarr")


@pytest.mark.slow
def test_processes_that_start_at_one_instant_fill_one_store(folder, tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, VIT, str(folder), str(tmp_path / "s.zarr")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    done = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], [err for _, err in done]
    assert sum(int(out) for out, _ in done) == 36
    assert all(split.verify() == [] for split in Store(tmp_path / "s.zarr").splits())


TOGETHER = """
import sys, featstore
featstore.extract  # loaded now, so that all begin together
print("ready", flush=True)
sys.stdin.readline()
print(featstore.extract(
    [sys.argv[1]], ["folder:" + sys.argv[2]], store=sys.argv[3], weights="random", chunk_rows=2,
    num_workers=0, dtype="float32",
).images)
"""


def test_splits_cut_into_chunks_of_unlike_sizes_share_a_pass(folder, tmp_path, monkeypatch):
    """One model half done in chunks of 5, another begun in chunks of 4: each keeps its own."""
    fill_the_disk_at_chunk_2(monkeypatch)
    with pytest.raises(FeatStoreError):
        extract([VIT], folder, tmp_path / "s.zarr", chunk_rows=5)
    monkeypatch.undo()
    extract([VIT, RESNET], folder, tmp_path / "s.zarr", chunk_rows=4)
    extract([VIT, RESNET], folder, tmp_path / "whole.zarr")
    for model in (VIT, RESNET):
        rows, split = features(tmp_path / "s.zarr", model, folder)
        assert split.verify() == []
        np.testing.assert_allclose(
            rows, features(tmp_path / "whole.zarr", model, folder)[0], atol=1e-5
        )


def test_adapting_reads_the_train_split_once_for_all_splits(folder, tmp_path):
    seen = []
    extract(
        [RESNET],
        folder,
        tmp_path / "s.zarr",
        bn_modes=["adapt"],
        progress=lambda what, done, total: seen.append((what, done)),
    )
    assert [done for what, done in seen if what.startswith("adapting")] == [18]


CHILD = """
import sys, featstore
print("ready", flush=True)
featstore.extract(
    [sys.argv[1]], ["folder:" + sys.argv[2]], store=sys.argv[3], weights="random",
    bn_modes=[sys.argv[4]], chunk_rows=6, batch_size=4, num_workers=0, dtype="float32",
)
"""


@pytest.mark.slow
def test_killed_at_ten_moments_and_resumed_the_bytes_are_the_same(tmp_path):
    folder = write_folder(tmp_path / "photos", per_class=60)
    options = {"chunk_rows": 6, "batch_size": 4}
    started = time.perf_counter()
    for mode in ("eval", "adapt"):
        extract([RESNET], folder, tmp_path / f"{mode}.zarr", bn_modes=[mode], **options)
    whole = (time.perf_counter() - started) / 2
    draw = random.Random(0)
    interrupted = 0
    for moment in range(10):
        mode = ("eval", "adapt")[moment % 2]
        store = tmp_path / f"{moment}.zarr"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, RESNET, str(folder), str(store), mode],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with child:
            assert child.stdout.readline() == "ready\n"
            while not any(store.glob("*/*/*/train/zarr.json")) and child.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, whole))
            child.send_signal(signal.SIGKILL)
        left = rows_left(store, len_train=180, len_test=180)
        interrupted += left > 0
        done = extract([RESNET], folder, store, bn_modes=[mode], **options)
        assert done.images == left  # nothing that was committed is computed again
        assert contents(store) == contents(tmp_path / f"{mode}.zarr"), f"moment {moment}"
    assert interrupted >= 3, "the kills came too late to interrupt anything"


def rows_left(store, *, len_train, len_test):
    done = {split.name: split.rows_done for split in Store(store).splits()}
    return len_train - done.get("train", 0) + len_test - done.get("test", 0)


def test_rounding_that_overflows_is_refused(folder, tmp_path, monkeypatch):
    real = passes.Encoder.__call__

    def large(self, images):
        return {site: rows * 0 + 65000 for site, rows in real(self, images).items()}

    monkeypatch.setattr(passes.Encoder, "__call__", large)
    with pytest.raises(BadEmbeddingError, match="rounding by bitround:3 overflows float16"):
        extract([VIT], folder, tmp_path / "s.zarr", dtype="float16", codec="bitround:3")


def test_batches_of_one_have_no_statistics(folder, tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        extract([RESNET], folder, tmp_path / "s.zarr", bn_modes=["batch"], batch_size=1)


def test_options_out_of_range_are_refused_before_any_work(folder, tmp_path):
    for options, message in [
        ({"dtype": "int8"}, "dtype must be float16 or float32"),
        ({"precision": "fp8"}, "precision must be"),
        ({"codec": "gzip"}, "codec must be"),
        ({"batch_size": 0}, "at least 1"),
        ({"bn_modes": ["train"]}, "train"),
        ({"device": "cuda:0"}, "sees no GPU"),
    ]:
        if "device" in options and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match=message):
            extract([VIT], folder, tmp_path / "s.zarr", **options)
    assert not (tmp_path / "s.zarr").exists()


def test_timm_models_by_name_with_their_own_transform(folder, tmp_path):
    extract(["timm:test_vit.r160_in1k", "timm:test_efficientnet.r160_in1k"], folder,
            tmp_path / "s.zarr", splits=["test"])  # fmt: skip
    split = next(s for s in Store(tmp_path / "s.zarr").splits() if "vit" in s.key.model)
    config = resolve_model_data_config(timm.create_model("test_vit.r160_in1k"))
    assert split.recipe.fields["transform"]["input_size"] == list(config["input_size"])
    assert split.recipe.fields["mean"] == list(config["mean"])
    assert split.embedding.dtype == np.float32
