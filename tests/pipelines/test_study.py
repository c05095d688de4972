"""What the studies share: narrowing, planning, and going on where something is amiss."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr, ttest_1samp

import featstore

from .conftest import scores, told, tree

SCRIPTS = ("marks2024.py", "ericsson2021.py", "label_size.py")


def test_a_study_names_models_datasets_and_protocols_that_there_are(study):
    sizes = {}
    for script in SCRIPTS:
        whole = study.narrowed(study.of(script))
        assert {*whole.models} <= {*featstore.models.catalogue()}
        assert whole.reference in [*whole.trainings, *(p for _, of in whole.parts for p in of)]
        for datasets, protocols in whole.parts:
            assert {one.partition("@")[0] for one in datasets} <= {*featstore.datasets.catalogue()}
            assert [featstore.probes.get(name).name for name in protocols] == list(protocols)
        sizes[script] = len(whole.models), *(len(datasets) for datasets, _ in whole.parts)
    assert sizes == {"marks2024.py": (26, 11), "ericsson2021.py": (14, 11, 14),
                     "label_size.py": (11, 7)}  # fmt: skip


def test_the_first_study_has_every_head_with_a_normalisation_and_without(study):
    whole = study.narrowed(study.of("marks2024.py"))
    every = {*whole.parts[0][1], *whole.trainings}
    for normalised, plain in {
        "knn-marks-zscore": "knn-marks",
        "knn-marks-zscore-own": "knn-marks",
        "linear-marks-1view-bn": "linear-marks-1view",
        "linear-marks-8view-mlp-bn": "linear-marks-8view-mlp",
        "linear-marks-literal-bn": "linear-marks-literal",
        "finetune-marks-bn": "finetune-marks",
        "finetune10-marks-byol2-bn": "finetune10-marks-byol2",
        "finetune1-marks-byol2-bn": "finetune1-marks-byol2",
        "fewshot-5shot-ericsson+normalisation=zscore": "fewshot-5shot-ericsson",
    }.items():
        assert {normalised, plain} <= every
        module = featstore.finetuning if plain in whole.trainings else featstore.probes
        one, other = (module.get(name).settings() for name in (normalised, plain))
        differing = {name for name in one if one[name] != other[name]}
        assert differing - {"name", "head_bn", "sets", "source"} == {"normalisation"}
    assert study.views(whole.parts[0][1]) == 8


def test_what_is_asked_for_is_kept_and_no_more(study):
    whole = study.of("ericsson2021.py")
    one = study.narrowed(whole, ["swav-resnet50"], ["cifar10"], ["ridge", "finetune-ericsson"])
    assert one.models == ("swav-resnet50",)
    assert one.parts == ((("cifar10@ericsson",), ("ridge",)),)
    assert (one.trainings, one.trained_on) == (("finetune-ericsson",), ("cifar10@ericsson",))
    both = study.narrowed(whole, datasets=["cifar10"]).parts
    assert [datasets for datasets, _ in both] == [("cifar10@ericsson",),
                                                  ("cifar10@ericsson-fewshot",)]  # fmt: skip
    few = study.narrowed(whole, datasets=["cifar10@ericsson-fewshot"])
    assert [datasets for datasets, _ in few.parts] == [("cifar10@ericsson-fewshot",)]
    assert few.trainings == ()
    of_sets = study.narrowed(whole, ["marks2024"], ["ericsson2021"], ["dino"])
    assert of_sets.models == (
        "sela-v2-resnet50", "deepcluster-v2-resnet50", "swav-resnet50", "moco-v2-resnet50",
    )  # fmt: skip
    assert of_sets.parts[0][1] == tuple(f"knn-dino-k{k}" for k in (10, 20, 100, 200))
    assert study.views(of_sets.parts[0][1]) == 0
    changed = study.narrowed(whole, protocols=["knn-marks+k=3", "finetune-ericsson+steps=9"])
    assert [protocols for _, protocols in changed.parts] == [("knn-marks+k=3",)]
    assert changed.trainings == ("finetune-ericsson+steps=9",)
    marks = study.of("marks2024.py")
    assert not any("swav" in one for one in study.narrowed(marks).trainings)  # of four, one runs
    asked = ["linear-marks-mlp", "finetune10-marks-swav", "finetune1-marks-byol1-bn+epochs=3"]
    assert study.narrowed(marks, protocols=asked).trainings == (*asked,)
    fraction = study.narrowed(study.of("label_size.py"), protocols=["logreg"])
    assert fraction.parts[0][1] == ("logreg",)
    modes = study.narrowed(study.of("marks2024.py"), bn_modes=["adapt", "eval"])
    assert modes.bn_modes == ("eval", "adapt")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--models", "swav-resnet5"], "no model 'swav-resnet5'. Did you mean swav-resnet50"),
        (["--models", "dinov2-s14"], "no model 'dinov2-s14'. "),
        (["--datasets", "cob"], "no dataset 'cob'. Did you mean cub"),
        (["--datasets", "cub@ericsson"], "no dataset 'cub@ericsson'. Did you mean cub"),
        (["--protocols", "knn-mark"], "no protocol 'knn-mark'. Did you mean knn-marks"),
        (["--protocols", "finetune-ericsson+steps=1"], "no protocol 'finetune-ericsson+steps=1'"),
        (["--protocols", "knn-marks+kk=3"], "knn-marks has no setting 'kk'"),
        (["--bn-modes", "train"], "no BN mode 'train'. It has eval, batch, adapt"),
        (["--device", "gpu"], "device must be auto, cpu or cuda:N, got 'gpu'"),
    ],
)
def test_a_name_that_is_none_of_it_costs_one_line(run, world, arguments, fault):
    if arguments[0] == "--device":
        world.fill(["swav-resnet50"], ["cub"])
        arguments = ["--models", "swav-resnet50", "--datasets", "cub", *arguments]
    status, _, said = run("marks2024.py", *arguments)
    assert status == 2
    (line,) = (one for one in said if one.startswith("marks2024.py: "))
    assert fault in line
    assert "Traceback" not in "".join(said)


def test_a_study_of_which_nothing_is_left_is_refused(run):
    status, _, said = run(
        "ericsson2021.py", "--datasets", "eurosat", "--protocols", "finetune-ericsson"
    )
    assert (status, len(said)) == (2, 1)
    assert "asks none of these protocols of any of these datasets" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("marks2024.py", [
            "extract: 26 models, 11 datasets", "probe: 48 protocols, 1 seeds: 31,680 cells at most",
            "finetune: 26 models, 11 datasets, 10 protocols, 1 seeds: 2,860 trainings at most",
        ]),
        ("ericsson2021.py", [
            "extract: 14 models, 11 datasets", "probe: 27 protocols, 1 seeds: 4,158 cells at most",
            "extract: 14 models, 14 datasets", "probe: 3 protocols, 1 seeds: 588 cells at most",
            "finetune: 14 models, 11 datasets, 1 protocols, 1 seeds: 154 trainings at most",
        ]),
        ("label_size.py", [
            "extract: 11 models, 7 datasets", "probe: 21 protocols, 3 seeds: 4,851 cells at most",
        ]),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_the_whole_takes_and_writes_nothing(run, world, script, wanted):
    world.home.mkdir()
    before = [*world.root.rglob("*")]
    status, lines, said = run(script, "--dry-run")
    assert (status, said) == (0, [])
    assert [line for line in lines if line in wanted] == wanted
    assert "missing:" in lines
    assert any(line.startswith("swav-resnet50 ") and "fetchable" in line for line in lines)
    assert [*world.root.rglob("*")] == before


def test_a_catalogue_of_the_users_that_is_wrong_costs_one_line(run, world):
    world.home.mkdir()
    (world.home / "catalogue.toml").write_text("[models.x]\n")
    status, _, said = run("label_size.py")
    assert (status, len(said)) == (2, 1)
    assert "'arch' is missing" in said[0]


@pytest.mark.slow
def test_what_is_not_there_and_what_fails_is_said_and_the_rest_is_done(run, world):
    models, datasets = (
        ["swav-resnet50", "npid-resnet50", "dino-vitb16"],
        ["cub", "pascal", "imagenet"],
    )
    world.fill(models, datasets)
    arguments = ("--models", *models, "--datasets", *datasets, "--bn-modes", "eval",
                 "--protocols", "knn-marks+k=3", "finetune1-marks-byol2+epochs=1",
                 "linear-marks+shots=1+steps=1")  # fmt: skip
    converted = world.home / "weights" / "npid-resnet50.safetensors"
    converted.rename(world.root / "converted")
    (world.data / "imagenet").rename(world.root / "imagenet")
    (image,) = (world.data / "VOCdevkit").rglob("2007_000010.jpg")  # of the test split
    good = image.read_bytes()
    image.write_bytes(bytes(len(good)))
    status, lines, _ = run("marks2024.py", *arguments)
    assert status == 1
    assert told(lines, "look").startswith("2 of 3 models, 2 of 3 datasets")
    end = [line for line in lines if line.startswith(("missing: ", "failed: "))]
    assert len(end) == 3
    assert "featstore convert npid-resnet50" in end[0]
    assert "imagenet is not below" in end[1]
    first = "failed: extraction of pascal@marks with swav-resnet50 and "
    assert end[2].startswith(first)
    assert "2007_000010.jpg" in end[2]
    # a hundredth of these images is none: not a failure
    assert any("left out 4 cells: " in line or "left out 2 cells: finetune1" in line
               for line in lines)  # fmt: skip
    score = scores(world.out)
    done = score.sel(dataset="cub@marks", model=["swav-resnet50", "dino-vitb16"])
    assert np.isfinite(done).all()
    assert (world.out / "report.html").is_file()

    (world.root / "converted").rename(converted)
    (world.root / "imagenet").rename(world.data / "imagenet")
    image.write_bytes(good)
    kept = tree(world.out / "results" / "swav-resnet50" / "cub@marks")
    status, lines, _ = run("marks2024.py", *arguments)
    assert status == 0, [one for one in lines if one.startswith(("failed", "missing"))]
    assert np.isfinite(scores(world.out)).all()
    assert tree(world.out / "results" / "swav-resnet50" / "cub@marks") == kept


def test_where_nothing_is_there_nothing_is_done(run, world):
    status, lines, _ = run("label_size.py", "--models", "dino-resnet50", "--datasets", "cifar10")
    assert status == 1
    assert "no results in " in "\n".join(lines)
    assert [line.split(":")[0] for line in lines[-2:]] == ["missing", "missing"]


def test_protocols_are_told_by_how_well_they_go_with_the_reference(study, conclusions, capsys):
    rng = np.random.default_rng(0)
    dims = ("model", "dataset", "bn_mode", "protocol")
    names = ["knn-marks", "logreg", "finetune-marks+steps=1", "ncm"]
    score = rng.uniform(0.2, 0.9, (9, 3, 1, 4))
    score[..., 1] = score[..., 2] + rng.normal(0, 0.02, (9, 3, 1))
    score[..., 3] = np.nan
    results = xr.Dataset(
        {"score": (dims, score), "seconds": (dims, score)},
        {"model": [f"m{i}" for i in range(9)], "dataset": ["a", "b", "c"], "bn_mode": ["adapt"],
         "protocol": names, "stage": ("model", ["late"] * 9)},
    )  # fmt: skip
    reference = conclusions.reference_of(study.of("marks2024.py"), results)
    assert reference == "finetune-marks+steps=1"
    conclusions.tell(results, reference)
    head, *rows = capsys.readouterr().out.splitlines()
    assert reference in head
    expected = {
        name: np.mean([spearmanr(score[:, d, 0, i], score[:, d, 0, 2])[0] for d in range(3)])
        for i, name in enumerate(names[:2])
    }
    assert expected["logreg"] > expected["knn-marks"]
    assert [row.split()[:2] for row in rows] == [
        [name, f"{expected[name]:.2f}"] for name in ("logreg", "knn-marks")
    ]
    results["transductive"] = (("bn_mode", "protocol"), [[True, False, False, False]])
    conclusions.tell(results, reference)
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows] == [
        ["logreg", f"{expected['logreg']:.2f}"],
        ["knn-marks", "†"],
    ]
    assert last.strip() == "† transductive: sees all test images at once"
    conclusions.tell(results, None)
    conclusions.tell(results.isel(model=slice(0, 2)), reference)
    assert capsys.readouterr().out == ""
    assert conclusions.reference_of(study.of("label_size.py"), results.isel(protocol=[0])) is None


def test_an_interval_is_that_of_a_t_test_and_none_of_one_value(conclusions):
    values = np.array([0.1, np.nan, 0.4, -0.2, 0.3])
    known = values[np.isfinite(values)]
    interval = ttest_1samp(known, 0).confidence_interval(0.95)
    assert conclusions.mean_and_interval(values) == pytest.approx(
        (known.mean(), interval.low, interval.high, 4)
    )
    mean, low, high, n = conclusions.mean_and_interval(np.array([0.5, np.nan]))
    assert (mean, n) == (0.5, 1)
    assert np.isnan([low, high]).all()
