"""The second study, whole, on miniatures of its datasets with stand-ins for its models."""

import numpy as np
import pytest

import featstore
from featstore.results import records

from .conftest import scores, shortened, told, tree

SCRIPT = "ericsson2021.py"
MODELS = featstore.models.expand(["ericsson2021"])
MANY = featstore.datasets.expand(["ericsson2021"])
FEW = featstore.datasets.expand(["ericsson2021-fewshot"])
FITTED = "logreg-ericsson+log10_c=-1,0"
EPISODES = "fewshot-5shot-ericsson+ways=2+support=1+queries=2+episodes=5"
TRAINED = "finetune-ericsson+steps=1+batch_size=4+lrs=0.01+decays=0+crop=centre"


@pytest.mark.slow
def test_every_model_on_every_dataset_and_nothing_twice(run, world):
    world.fill(MODELS, [*MANY, *FEW])
    arguments = (SCRIPT, "--protocols", FITTED, EPISODES, TRAINED)
    status, lines, _ = run(*arguments)
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    assert "look      14 of 14 models, 25 of 25 datasets" in "\n".join(lines)
    probes = [line for line in lines if line.startswith("probe") and "filled" in line]
    assert probes[0].startswith("probe     154 cells filled, 0 up to date, 0 failed, 0 left out")
    assert probes[1].startswith("probe     196 cells filled, 0 up to date, 0 failed, 0 left out")
    assert told(lines, "finetune").startswith("154 cells filled, 0 up to date, 0 failed, 0 left")
    score = scores(world.out)
    assert {*score.model.values} == {*MODELS}
    assert {*score.dataset.values} == {*MANY, *FEW}
    assert np.isfinite(score.sel(dataset=MANY, protocol=[FITTED, TRAINED])).all()
    assert np.isfinite(score.sel(dataset=FEW, protocol=EPISODES)).all()
    assert int(score.notnull().sum()) == 2 * 154 + 196
    several = [one for one in records(world.out / "results") if one["dataset"].startswith("voc")]
    assert {one["headline"] for one in several} == {"map11"}  # several labels an image
    assert (world.out / "report.html").is_file()

    before = tree(world.out / "results", world.out / "features.zarr")
    status, lines, _ = run(*arguments)
    assert status == 0
    assert "extract   0 splits filled, 364 up to date" in "\n".join(lines)
    assert "probe     0 cells filled, 154 up to date" in "\n".join(lines)
    assert told(lines, "finetune").startswith("0 cells filled, 154 up to date, 0 failed, 0 left")
    assert tree(world.out / "results", world.out / "features.zarr") == before


@pytest.mark.slow
def test_every_protocol_off_the_store(run, world, study):
    models = ["byol-deepmind-resnet50", "swav-resnet50"]
    world.fill(models, ["cifar10", "voc2007"], train=12, val=4, test=4)
    (_, protocols), (_, episodes) = study.narrowed(study.of(SCRIPT)).parts
    short = [shortened(name) for name in protocols]
    status, lines, _ = run(
        SCRIPT, "--models", *models, "--datasets", "cifar10@ericsson", "voc2007",
        "--protocols", *short,
    )  # fmt: skip
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    # Of several labels an image, only the regressions of the study are to be had.
    several = [shortened(name) for name in protocols if name.startswith("logreg-ericsson")]
    assert len(several) == 3
    left = 2 * (len(short) - len(several))
    filled = 2 * (len(short) + len(several))
    assert told(lines, "probe").startswith(
        f"{filled} cells filled, 0 up to date, 0 failed, {left} left out"
    )
    score = scores(world.out)
    assert np.isfinite(score.sel(dataset="cifar10@ericsson", protocol=short)).all()
    assert np.isfinite(score.sel(dataset="voc2007@ericsson", protocol=several)).all()

    world.fill([], ["eurosat"], categories=5, train=52, test=13)
    status, lines, _ = run(
        SCRIPT, "--models", models[0], "--datasets", "eurosat", "--protocols", *episodes
    )
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    found = scores(world.out).sel(model=models[0], dataset="eurosat@ericsson-fewshot")
    assert np.isfinite(found.sel(protocol=list(episodes))).all()


@pytest.mark.slow
def test_fine_tuning_chooses_among_twenty_pairs_and_two_crops(run, world):
    world.fill(["pcl-v1-resnet50"], ["dtd"])
    name = "finetune-ericsson+steps=1+batch_size=4"
    arguments = ("--models", "pcl-v1-resnet50", "--datasets", "dtd", "--protocols", name)
    status, lines, _ = run(SCRIPT, *arguments)
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    (document,) = records(world.out / "results")
    certificate = document["certificate"]
    tried = {(one["lr"], one["weight_decay"], one["crop"]) for one in certificate["tried"]}
    assert len(tried) == 40
    assert {crop for *_, crop in tried} == {"random", "centre"}
    assert (certificate["held_out_rows"], certificate["images"]) == (4, 12)  # val, then both
