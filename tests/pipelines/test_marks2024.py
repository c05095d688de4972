"""The first study, whole, on miniatures of its datasets with stand-ins for its models."""

import signal

import numpy as np
import pytest

import featstore

from .conftest import found, scores, shortened, told, tree

SCRIPT = "marks2024.py"
MODELS = featstore.models.expand(["marks2024"])
DATASETS = featstore.datasets.expand(["marks2024"])
BROAD = ("knn-marks+k=3", "knn-marks-zscore+k=3", "finetune-marks+shots=1+steps=1")
HEADS = {  # plain -> with a normalisation before the head
    "knn-marks": "knn-marks-zscore",
    "linear-marks-1view": "linear-marks-1view-bn",
    "linear-marks": "linear-marks-bn",
    "finetune-marks": "finetune-marks-bn",
    "finetune10-marks-byol2": "finetune10-marks-byol2-bn",
    "finetune1-marks-byol2": "finetune1-marks-byol2-bn",
    "fewshot-5shot-ericsson": "fewshot-5shot-ericsson+normalisation=zscore",
}


@pytest.mark.slow
def test_every_model_on_every_dataset_and_nothing_twice(run, world):
    world.fill(MODELS, DATASETS)
    arguments = (SCRIPT, "--bn-modes", "eval", "--protocols", *BROAD)
    status, lines, _ = run(*arguments)
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    assert "look      26 of 26 models, 11 of 11 datasets" in "\n".join(lines)
    assert told(lines, "extract").startswith("572 splits filled, 0 up to date")
    assert told(lines, "probe").startswith("572 cells filled, 0 up to date, 0 failed, 0 left out")
    assert told(lines, "finetune").startswith("286 cells filled, 0 up to date, 0 failed, 0 left")
    score = scores(world.out)
    assert dict(score.sizes) == {"model": 26, "dataset": 11, "protocol": 3}
    assert {*score.model.values} == {*MODELS}
    assert {*score.dataset.values} == {*DATASETS}
    assert np.isfinite(score).all()
    alike = featstore.open_similarity(world.out / "results")
    assert {*alike.model.values} == {*MODELS}
    page = (world.out / "report.html").read_text()
    assert "Whose features are alike?" in page
    assert all(f">{model}" in page for model in MODELS)

    before = tree(world.out / "results", world.out / "features.zarr")
    status, lines, _ = run(*arguments)
    assert status == 0
    assert told(lines, "extract").startswith("0 splits filled, 572 up to date")
    assert told(lines, "probe").startswith("0 cells filled, 572 up to date, 0 failed, 0 left out")
    assert told(lines, "finetune").startswith("0 cells filled, 286 up to date, 0 failed, 0 left")
    assert tree(world.out / "results", world.out / "features.zarr") == before


@pytest.mark.slow
def test_every_protocol_in_every_bn_mode(run, world, study):
    models = ["simsiam-resnet50", "ibot-vitb16"]
    world.fill(models, ["cifar100"], categories=5, train=12, test=8)
    whole = study.narrowed(study.of(SCRIPT))
    protocols = [*whole.parts[0][1], *whole.trainings]
    assert {*HEADS, *HEADS.values()} <= {*protocols}
    short = [shortened(name) for name in protocols]
    status, lines, _ = run(
        SCRIPT, "--models", *models, "--datasets", "cifar100", "--protocols", *short
    )
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    assert "extract   2 models x 1 datasets, BN modes eval, batch, adapt, 8 views" in lines
    assert told(lines, "extract").startswith("40 splits filled")
    probes = len(whole.parts[0][1])
    assert told(lines, "probe").startswith(f"{4 * probes} cells filled, 0 up to date, 0 failed, 0")
    assert told(lines, "finetune").startswith("20 cells filled, 0 up to date, 0 failed, 0 left out")
    for mode in ("eval", "batch", "adapt"):
        score = scores(world.out, mode).isel(dataset=0)
        assert {*score.protocol.values} == {*short}
        measured = short[:probes] if mode != "eval" else short
        assert np.isfinite(score.sel(protocol=measured)).all(), mode
    assert (world.out / "report.html").is_file()


@pytest.mark.slow
def test_interrupted_and_killed_it_ends_with_the_same_results(run, world):
    models, datasets = ["dino-resnet50", "mae-vitb16"], ["cub", "pascal"]
    world.fill(models, datasets)
    narrow = (
        *("--models", *models, "--datasets", *datasets, "--bn-modes", "eval", "adapt"),
        *("--protocols", "knn-marks+k=3", "linear-marks-1view+epochs=5"),
        "finetune-marks+epochs=3+batch_size=4",
    )

    def until(mark, stop, *more):
        with world.start(SCRIPT, *narrow, *more) as child:
            lines = []
            while not lines or mark not in lines[-1]:
                lines.append(child.stdout.readline())
                assert lines[-1], lines
            child.send_signal(stop)
            return child.wait(), lines + child.stdout.readlines()

    status, lines = until(" cub test", signal.SIGINT)
    assert (status, lines[-1]) == (
        130, "marks2024.py: interrupted; the same command goes on from here\n",
    )  # fmt: skip
    assert not any("Traceback" in line for line in lines)
    assert (world.out / "features.zarr").is_dir()
    mark = " pascal@marks eval finetune"
    status, lines = until(mark, signal.SIGKILL, "--scheduler", "processes")
    assert status == -signal.SIGKILL
    done = len(found(world.out / "results"))
    assert 0 < done < 16
    with world.start(SCRIPT, *narrow) as child:
        lines = child.stdout.read().splitlines()
    assert child.returncode == 0, lines
    assert told(lines, "probe").startswith("0 cells filled, 12 up to date")
    assert told(lines, "finetune").startswith(f"{16 - done} cells filled, {done - 12} up to date")

    cut, world.out = world.out, world.root / "uncut"
    assert run(SCRIPT, *narrow)[0] == 0
    assert found(cut / "results") == found(world.out / "results")
    assert tree(cut / "features.zarr").keys() == {
        cut / path.relative_to(world.out) for path in tree(world.out / "features.zarr")
    }
