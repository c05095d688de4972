"""The tiny study's pretraining learns and repeats itself; what is committed came from it."""

import hashlib
import importlib
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from featstore import create_backbone, load_dataset

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data" / "tiny"
CHECKPOINTS = sorted(FOLDER.glob("*.safetensors"))
CATALOGUE = {
    name: entry
    for name, entry in tomllib.loads(
        (ROOT / "featstore" / "models" / "catalogue" / "tiny.toml").read_text()
    ).items()
    if "tiny" in entry.get("sets", ())
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "pipelines")  # as when Python runs the script
    return importlib.import_module("tiny_pretrain")


def facts_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["pretraining"])


def as_float32(path):
    state = load_file(path)
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def test_only_training_images_are_seen(script):
    images, labels, fingerprint = script.digit_images()
    train, test = (load_dataset("digits").split(split) for split in ("train", "test"))
    assert fingerprint == train.fingerprint
    np.testing.assert_array_equal(labels, train.labels)
    seen = {one.numpy().tobytes() for one in (images[:, 0] * 255).round().to(torch.uint8)}
    assert seen == {np.asarray(train.read(row).convert("L")).tobytes() for row in range(1000)}

    def raw(split):  # the rows of scikit-learn's own array, by the names of the samples
        return {int(name.removeprefix("digit-")) for name in split.sample_ids}

    assert not raw(train) & raw(test)
    assert raw(train) | raw(test) == set(range(len(load_digits().target)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "simclr", "barlow", "rotation", "mae"])
def test_a_method_lowers_its_loss_and_changes_every_weight(script, method):
    backbone = "vit" if method == "mae" else "resnet"
    images, labels, _ = script.digit_images()
    run = script.Run(backbone, method, epochs=5)
    epochs = list(script.pretrain(run, images[:250], labels[:250]))
    losses, trained = [loss for _, loss, _ in epochs], epochs[-1][2]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    start = dict(create_backbone(f"tiny-{backbone}", seed=script.SEED).named_parameters())
    for name, weight in trained.named_parameters():
        assert not torch.equal(weight, start[name]), name


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_bytes_which_load_strictly(script, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        script.main(["--out", str(folder), "--only", "resnet-supervised", "--epochs-scale", "0.01"])
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    weights = ["resnet-supervised-early.safetensors", "resnet-supervised.safetensors"]
    assert sorted(one) == ["README.md", "SHA256SUMS", *weights]
    assert one[weights[0]] != one[weights[1]]
    for name in weights:
        create_backbone("tiny-resnet").load_state_dict(as_float32(folders[0] / name))


def test_numbers_survive_float16(script, tmp_path):
    backbone = create_backbone("tiny-resnet", seed=3).eval()
    script.save(backbone, tmp_path / "weights.safetensors", {"epoch": 1})
    loaded = create_backbone("tiny-resnet").eval()
    loaded.load_state_dict(as_float32(tmp_path / "weights.safetensors"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        there, back = backbone(images), loaded(images)
    torch.testing.assert_close(there, back, rtol=1e-2, atol=1e-2 * float(there.abs().max()))
    assert script.facts_of(tmp_path / "weights.safetensors") == {"epoch": 1}


def test_committed_files_are_those_of_the_catalogue_and_small():
    named = {Path(e["weights"]).name for e in CATALOGUE.values() if e["stage"] != "random"}
    assert {path.name for path in CHECKPOINTS} == named
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12 * 2**20


def test_committed_checksums_agree():
    sums = dict(
        reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text().splitlines()
    )
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in CHECKPOINTS
    }


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_committed_file_loads_strictly_is_finite_and_saw_only_the_training_images(path):
    entry = CATALOGUE[f"tiny-{path.stem}"]
    facts = facts_of(path)
    assert facts["images"] == load_dataset("digits").split("train").fingerprint
    assert (facts["arch"], facts["method"]) == (entry["arch"], entry["method"])
    assert facts["epoch"] == entry["epochs"]
    assert (facts["epoch"] < facts["epochs"]) == (entry["stage"] == "early")
    state = as_float32(path)
    create_backbone(entry["arch"]).load_state_dict(state)
    assert all(torch.isfinite(t).all() for t in state.values())
    assert f"| {path.name} |" in (FOLDER / "README.md").read_text()


def test_the_runs_make_the_catalogue(script):
    made = {name: epoch for run in script.RUNS for epoch, name in run.checkpoints.items()}
    assert made == {
        Path(e["weights"]).name: e["epochs"] for e in CATALOGUE.values() if e["stage"] != "random"
    }
