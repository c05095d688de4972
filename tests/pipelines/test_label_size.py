"""The third study, whole, on miniatures of its datasets with stand-ins for its models."""

import runpy

import numpy as np
import pytest
import xarray as xr
from scipy.stats import ttest_rel

from featstore.results import records

from .conftest import PIPELINES, scores, told, tree

SCRIPT = "label_size.py"
FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@pytest.mark.slow
def test_every_model_on_every_dataset_and_nothing_twice(run, world, study):
    whole = study.narrowed(study.of(SCRIPT))
    ((datasets, protocols),) = whole.parts
    world.fill(whole.models, datasets, train=7, val=1, test=2)
    status, lines, _ = run(SCRIPT)
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    assert "look      11 of 11 models, 7 of 7 datasets" in "\n".join(lines)
    # Of 7 images a category, 30 % are two, and a tenth is none.
    here = [name for name in protocols if "fraction=0.0" not in name and "fraction=0.1" not in name]
    assert len(here) == 6
    cells = 11 * 7 * 3
    # The miniature of flowers102 has images of two of its 102 categories: no part is one of each.
    lacking = 11 * 3 * 3
    assert told(lines, "probe").startswith(
        f"{cells * 6 - lacking} cells filled, 0 up to date, 0 failed, "
        f"{cells * 15 + lacking} left out"
    )
    reasons = [line for line in lines if "the smallest is" in line]
    assert {line.split("fraction of ")[1].split(" ")[0] for line in reasons} == {
        "0.001", "0.003", "0.01", "0.03", "0.1",
    }  # fmt: skip
    score = scores(world.out)
    assert {*score.model.values} == {*whole.models}
    assert {*score.protocol.values} == {*here}
    parts = [name for name in here if "fraction" in name]
    assert score.isnull().sum() == lacking // 3
    assert score.sel(dataset="flowers102", protocol=parts).isnull().all()
    with xr.open_zarr(world.out / "results.zarr") as results:
        assert (results["n_seeds"] == 3).sum() == results["score"].notnull().sum()
    drawn = [one for one in records(world.out / "results") if one["settings"]["fraction"] == 0.3]
    assert all(one["n_train"] == 2 * 2 for one in drawn)
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows if row[:1] in (["30.0%"], ["100.0%"])][:2] == ["30.0%", "100.0%"]
    assert (world.out / "report.html").is_file()

    before = tree(world.out / "results", world.out / "features.zarr")
    status, lines, _ = run(SCRIPT)
    assert status == 0
    assert told(lines, "extract").startswith("0 splits filled, 176 up to date")
    assert told(lines, "probe").startswith(
        f"0 cells filled, {cells * 6 - lacking} up to date, 0 failed"
    )
    assert tree(world.out / "results", world.out / "features.zarr") == before


@pytest.mark.slow
def test_every_fraction_where_there_are_images_enough(run, world, study):
    ((_, protocols),) = study.narrowed(study.of(SCRIPT)).parts
    world.fill(["swav-resnet50"], ["cifar10"], train=1000, test=10)
    arguments = ("--models", "swav-resnet50", "--datasets", "cifar10", "--seeds", "1")
    status, lines, _ = run(SCRIPT, *arguments)
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    assert told(lines, "probe").startswith("21 cells filled, 0 up to date, 0 failed, 0 left out")
    assert {*scores(world.out).protocol.values} == {*protocols}
    rows = {one["settings"]["fraction"]: one["n_train"] for one in records(world.out / "results")}
    assert rows == {f: int(f * 1000) * 2 for f in (*FRACTIONS, 1.0)}


def results_of(script, rng, *, lacking=()):
    """Scores drawn at random, less those that are lacking as (model, dataset)."""
    models = script["STUDY"].models
    datasets = [f"set {i}" for i in range(5)]
    protocols = ["logreg", "logreg+fraction=0.01", "ridge"]
    score = rng.uniform(0.2, 0.9, (len(models), 5, 1, 3))
    for model, dataset in lacking:
        score[models.index(model), dataset] = np.nan
    dims = ("model", "dataset", "bn_mode", "protocol")
    coords = dict(zip(dims, (list(models), datasets, ["eval"], protocols), strict=True))
    return xr.Dataset({"score": (dims, score)}, coords)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(PIPELINES)
    return runpy.run_path(str(PIPELINES / SCRIPT))


def test_the_winner_is_told_with_the_interval_of_a_paired_t_test(script, capsys):
    results = results_of(script, np.random.default_rng(0), lacking=[("dino-s16", 3)])
    script["winners"](results)
    lines = capsys.readouterr().out.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("logreg "))
    for row, protocol in ((1, "logreg+fraction=0.01"), (2, "logreg")):
        cells = lines[at + row].split("%", 1)[1]
        for supervised, without in script["KINDS"].values():
            table = results.score.sel(protocol=protocol, bn_mode="eval").to_pandas()
            pairs = table.loc[list(without)].mean(skipna=False), table.loc[list(supervised)].mean()
            pairs = [100 * side[pairs[0].notna()] for side in pairs]
            low, high = ttest_rel(*pairs).confidence_interval()
            n = len(pairs[0])
            assert n == (4 if "dino-s16" in without else 5)
            wanted = f"{(pairs[0] - pairs[1]).mean():+.1f} [{low:+.1f}, {high:+.1f}] n={n}"
            assert wanted in cells
    first = next(line for line in lines[at:] if line.startswith("set 0"))
    table = results.score.sel(bn_mode="eval", dataset="set 0", protocol="logreg").to_pandas()
    gains = [table[list(w)].mean() - table[list(s)].mean() for s, w in script["KINDS"].values()]
    assert f"{100 * np.mean(gains):+.1f}" in first


def test_nothing_is_told_of_a_kind_that_lacks_a_model(script, capsys):
    results = results_of(script, np.random.default_rng(1)).drop_sel(model="resnet50-tv")
    gains = script["gains"](results, "logreg")
    assert list(gains) == [0.01, 1.0]
    for gain in gains.values():
        assert gain.sel(kind="ResNet").isnull().all()
        assert gain.sel(kind=["ViT", "ConvNeXt"]).notnull().all()
    script["winners"](results.isel(model=slice(0, 1)))
    assert "logreg" not in capsys.readouterr().out
