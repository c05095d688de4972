"""Listings of models and datasets, and plans, as a user reads them."""

import json

import pytest

from featstore.datasets import catalogue as datasets
from featstore.models import catalogue as models


@pytest.fixture
def run(tmp_path, monkeypatch, call):
    """A command in an empty folder, with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path / "home"))
    return call


def names(out):
    return [line.split("  ")[0] for line in out.splitlines()[1:]]


@pytest.mark.parametrize(("command", "entries"), [("models", models), ("datasets", datasets)])
def test_everything_known_is_listed_with_its_status(run, command, entries):
    status, out, _ = run(command)
    assert status == 0
    assert names(out) == list(entries())
    assert "status" in out.splitlines()[0]
    _, text, _ = run(command, "--json")
    words = {facts["status"] for facts in json.loads(text).values()}
    assert {"ready", "fetchable", "by hand"} <= words
    assert words <= {"ready", "fetchable", "by hand", "convert", "later"}


@pytest.mark.parametrize(
    ("command", "group", "n"),
    [
        *(("models", "marks2024", 26), ("models", "ericsson2021", 14), ("models", "modern", 44)),
        *(("datasets", "marks2024", 11), ("datasets", "ericsson2021", 11)),
        *(("datasets", "ericsson2021-fewshot", 14), ("datasets", "ericsson2021-dense", 3)),
    ],
)
def test_a_set_is_listed_by_its_name(run, command, group, n):
    status, out, _ = run(command, group)
    assert (status, len(names(out))) == (0, n)


def test_entries_are_chosen_by_their_fields_and_sorted(run):
    _, out, _ = run("models", "marks2024", "-w", "paradigm=generative", "--sort", "imagenet_top1")
    assert set(names(out)) == {
        *("mae-vitb16", "maskfeat-vitb16", "beitv2-vitb16", "milan-vitb16"),
        *("eva-vitb16", "pixmim-vitb16"),
    }
    _, text, _ = run("models", "modern", "--sort", "imagenet_top1", "--json")
    tops = [facts["imagenet_top1"] for facts in json.loads(text).values()]
    assert tops == sorted(tops, reverse=True)
    _, out, _ = run("datasets", "-w", "sets=marks2024", "-w", "cluster=domainnet")
    assert len(names(out)) == 6
    _, out, _ = run("datasets", "--sort", "metric", "-w", "sets=ericsson2021")
    assert len(names(out)) == 11


def test_one_model_is_shown_in_full(run):
    status, out, _ = run("models", "moco-v3-vitb16-momentum")
    assert status == 0
    for said in ("vit_base_patch16_224", "dl.fbaipublicfiles.com", "momentum encoder", "fetchable"):
        assert said in out


def test_one_dataset_is_shown_in_full_with_where_it_is_to_be_had(run):
    status, out, _ = run("datasets", "stanford_cars")
    assert status == 0
    assert "by hand" in out
    assert "on disk" in out
    status, out, _ = run("datasets", "ade20k")
    assert (status, "later" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("models", "dino-resnet5"), "unknown model 'dino-resnet5'. Did you mean dino-resnet50"),
        (("datasets", "imagenett"), "unknown dataset 'imagenett'. Did you mean imagenet"),
        (("models", "-w", "famly=x"), "no field 'famly'; there are arch, "),
        (("models", "-w", "family"), "--where takes FIELD=TEXT, got 'family'"),
        (("models", "--sort", "top1"), "no field 'top1'; there are"),
    ],
)
def test_a_mistake_is_told_in_one_line(run, arguments, said):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_plan_is_a_table_and_what_is_missing(run):
    status, out, _ = run("plan", "-m", "marks2024", "-d", "marks2024", "--rate", "1000")
    assert status == 0
    lines = out.splitlines()
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[1:3] == ["286", "0"]
    assert "1000 images/s through each model, as given" in out
    missing = lines[lines.index("missing:") + 2 :]
    assert len(missing) == 26 + 11
    _, text, _ = run("plan", "-m", "tiny", "-d", "tiny", "--json")
    assert json.loads(text)["total"]["cells"] == 15 * 7


def test_a_dry_run_of_extract_is_the_plan_and_does_nothing(run, tmp_path):
    asked = ("-m", "tiny-vit-random", "-d", "textures", "--bn-mode", "eval")
    _, plan, _ = run("plan", *asked)
    status, out, _ = run("extract", *asked, "--dry-run")
    assert (status, out) == (0, plan)
    assert list(tmp_path.glob("data/*")) == []
