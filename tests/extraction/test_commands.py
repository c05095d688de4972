"""Views and fingerprints by the command line, through `main`."""

import json

import pytest


@pytest.fixture
def run(folder, monkeypatch, call):
    """A command beside the folder `photos`."""
    monkeypatch.chdir(folder.parent)
    return call


EXTRACT = ("extract", "-m", "tiny-resnet-random", "--num-workers", 0, "-d")
KEY = "tiny-resnet-random folder:photos eval"


def test_views_are_extracted_listed_verified_compared_and_removed(run):
    assert run(*EXTRACT, "folder:photos", "--views", 2)[0] == 0
    status, out, _ = run("ls", "--json")
    assert status == 0
    listed = {row["split"]: (row["rows"], row["state"]) for row in json.loads(out)}
    assert listed == dict.fromkeys(["train", "train+aug0", "train+aug1", "test"], (18, "complete"))
    assert "4 splits checked, 0 faults" in run("verify")[1]
    assert run("why", KEY)[1].count("as it would be extracted now") == 4
    assert "deleted 4 splits" in run("rm", KEY, "--yes")[1]


def test_a_full_fingerprint_is_asked_for_and_compared_with(run):
    assert run(*EXTRACT, "folder:photos", "--fingerprint", "full")[0] == 0
    assert "up to date" in run(*EXTRACT, "folder:photos", "--fingerprint", "full")[1]
    assert run("why", KEY, "--fingerprint", "full")[1].count("as it would be") == 2
    assert "test: bytes: stored '" in run("why", KEY)[1]
    status, _, err = run(*EXTRACT, "folder:photos")
    assert status == 1
    assert "was made by another recipe (bytes: stored '" in err
    assert "--variant NAME" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder:photos@ericsson-fewshot", "--views", 1), "has no augmentation, so no views"),
        (("folder:photos", "--views", 1, "--split", "test"), "views are of the train split"),
        (("folder:photos", "--fingerprint", "md5"), "fingerprint must be names or full"),
    ],
)
def test_what_cannot_be_is_one_line(run, arguments, message):
    status, out, err = run(*EXTRACT, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_what_cannot_be_had_is_left_out_and_the_rest_is_embedded(run, monkeypatch, caplog):
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    asked = ("-m", "byol-resnet50", "-m", "swav-resnet50", "-d", "cub")
    status, out, _ = run(*EXTRACT, "folder:photos", *asked)
    assert status == 1
    assert "2 splits filled" in out
    assert "3 models or datasets left out" in out
    for name in ("byol-resnet50", "swav-resnet50", "cub"):
        told = [one for one in caplog.messages if one.startswith("left out:") and name in one]
        assert len(told) == 1
    status, out, _ = run(*EXTRACT, "folder:photos", *asked, "--json")
    assert (status, json.loads(out)["up_to_date"], len(json.loads(out)["failed"])) == (1, 2, 3)


@pytest.mark.parametrize(
    "asked",
    [("-m", "byol-resnet50", "-d", "folder:photos"), ("-m", "tiny-vit-random", "-d", "cub")],
)
def test_where_nothing_can_be_had_the_reason_is_the_error(run, asked):
    status, out, err = run("extract", *asked, "--num-workers", 0)
    assert (status, out) == (1, "")
    assert err.startswith("featstore: ")
    assert err.count("\n") == 1
