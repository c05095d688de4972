"""Catalogue files: those that ship, and the user's own below FEATSTORE_HOME."""

import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featstore
from featstore.datasets import catalogue as datasets
from featstore.datasets.load import READERS
from featstore.errors import CatalogueError
from featstore.models import catalogue as models
from featstore.models import create_backbone, expand
from featstore.models.fetch import status

README = (Path(__file__).parents[1] / "README.md").read_text()
# What README tells the user to write, of an architecture that is quick.
OWN = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1].replace("resnet50", "test_resnet")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    return tmp_path


def write_own(home, text=OWN):
    (home / "catalogue.toml").write_text(text)


def test_own_entries_stand_beside_those_that_ship(home):
    before = list(models())
    write_own(home)
    assert list(models()) == [*before, "my-run"]
    assert datasets()["photos"].shift == "in-domain"
    assert models()["my-run"].folder == str(home)


def test_a_changed_catalogue_is_read_again(home):
    write_own(home)
    assert models()["my-run"].family == "contrastive"
    write_own(home, OWN.replace("contrastive", "clustering"))
    later = (home / "catalogue.toml").stat().st_mtime_ns + 10**9
    os.utime(home / "catalogue.toml", ns=(later, later))
    assert models()["my-run"].family == "clustering"
    (home / "catalogue.toml").unlink()
    assert "my-run" not in models()


def test_own_model_and_dataset_go_the_whole_path_by_their_names(home):
    write_own(home)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            (home / "photos" / split / name).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 99, (20, 20, 3), dtype=np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(home / "photos" / split / name / f"{i}.png")
    (home / "runs").mkdir()
    backbone = create_backbone("test_resnet", seed=5)
    teacher = {f"backbone.{name}": t for name, t in backbone.state_dict().items()}
    teacher |= {"backbone.fc.weight": torch.ones(2, 64), "projector.weight": torch.ones(3)}
    torch.save({"epoch": 9, "student": {}, "teacher": teacher}, home / "runs" / "last.pt")

    featstore.extract(["my-run"], ["photos"], store=home / "s.zarr")
    featstore.probe(
        protocols=["knn-marks"], store=home / "s.zarr", results=home / "r", scheduler="sync"
    )
    results = featstore.open_results(home / "r")
    assert list(results.model.values) == ["my-run"]
    assert results.family.item() == "contrastive"
    assert results.paradigm.item() == "discriminative"
    assert results["shift"].item() == "in-domain"
    assert bool(results.seen_in_pretraining.item())
    assert results.top1.item() > 0.9
    model = featstore.load_model("my-run")
    loaded = model.module.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in backbone.state_dict().items())
    stated = tomllib.loads(OWN)["models"]["my-run"]
    assert model.data_config["mean"] == tuple(stated["mean"]) != (0.485, 0.456, 0.406)
    assert model.data_config["std"] == tuple(stated["std"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.x]\nweights = 'a.pt'", "[models.x]: 'arch' is missing"),
        (
            "[models.x]\narch = 'resnet50'\nwieghts = 'a.pt'",
            "[models.x]: there is no field 'wieghts'. Did you mean weights",
        ),
        ("[models.x]\narch = 'a'\nfolder = 'b'", "[models.x]: there is no field 'folder'"),
        ("[models.x]\narch = 'a'\nname = 'b'", "[models.x]: there is no field 'name'"),
        (
            "[models.tiny-vit-mae]\narch = 'resnet50'",
            "'tiny-vit-mae' is known already; use another",
        ),
        ("[models.x\n", "is no catalogue"),
        (
            "[models.x]\narch = 'a'\nmean = [124.0, 116.0, 103.0]",
            "[models.x]: mean must lie in 0..1",
        ),
        ("[models.x]\narch = 'a'\nstd = [0.0, 1.0, 1.0]", "and std as well without 0, got"),
        ("[models.x]\narch = 'a'\ncrop_pct = -1.0", "crop_pct, image_size and width must be"),
        ("[models.x]\narch = 'a'\nurls = ['ftp://x/y']", "must be http or https addresses, got"),
        ("models = 3", "'models' is no table of models or datasets. Write a table [models.NAME]"),
        ("[[models]]\nx = 3", "'models' is no table of models or datasets"),
        ("[model.x]\narch = 'a'", "'model' is no table of models or datasets. Write a table [m"),
        ("[models]\nx = 3", "models: 'x' is no table, but 3"),
        ("[models.x]\nlike = '_y'", "models 'x' is like '_y', which must be a table beside it"),
        ("[models.x]\nlike = 3", "models 'x' is like 3, which must be a table"),
        (
            "[models.x]\nlike = 'y'\n[models.y]\nlike = '_z'\n[models._z]\narch = 'a'",
            "models 'x' is like 'y', which must be a table beside it that is like no other",
        ),
    ],
)
def test_a_catalogue_that_cannot_be_understood_is_refused_in_one_line(home, text, said):
    assert said in refusal(home, text, models)


def refusal(home, text, entries):
    write_own(home, text)
    with pytest.raises(CatalogueError) as caught:
        entries()
    assert str(caught.value).startswith(str(home / "catalogue.toml"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Of each type that a field has, what is not of it.
WRONG = {
    "a string": ("5", "true", "['a']", "1979-05-27"),
    "a whole number of 0 or more": ("'a'", "1.5", "true", "-1"),
    "a number": ("'a'", "nan", "-inf", "true", "[1]"),
    "true or false": ("1", "'yes'"),
    "a list of strings": ("'a'", "[1]", "['a', 2]", "{}"),
    "a list of 3 numbers": ("0.5", "[1]", "[1, 2, 3, 4]", "['a', 'b', 'c']", "[1, 2, nan]"),
    "a table of values": ("3", "[1]"),
    "a table of whole numbers of 0 or more": ("{ train = '3' }", "{ train = -1 }", "[3]"),
    "one of ": ("'x'", "3", "['top1']"),
}
TYPES = {
    "models": {
        "a string": "weights backbone family paradigm method teacher stage lineage by_hand file "
        "sha256 nest site licence imagenet_source unverified note description",
        "a whole number of 0 or more": "epochs width image_size",
        "a number": "crop_pct imagenet_top1",
        "true or false": "converts",
        "a list of strings": "sets pretraining urls rules",
        "a list of 3 numbers": "mean std",
        "a table of values": "options",
        "one of ": "interpolation",
    },
    "datasets": {
        "a string": "shift cluster source by_hand licence unverified note description",
        "a whole number of 0 or more": "categories size",
        "true or false": "login",
        "a list of strings": "splits sets urls found_by",
        "a table of values": "options",
        "a table of whole numbers of 0 or more": "n_images",
        "one of ": "task metric square",
    },
}


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        (kind, field, expected)
        for kind, types in TYPES.items()
        for expected, names in types.items()
        for field in names.split()
    ],
)
def test_a_value_of_another_type_is_refused(home, kind, field, expected):
    first = {"models": "arch = 'resnet50'", "datasets": "reader = 'folder'\npath = 'x'"}[kind]
    for value in WRONG[expected]:
        text = f"[{kind}.x]\n{first}\n{field} = {value}"
        said = refusal(home, text, {"models": models, "datasets": datasets}[kind])
        assert f": [{kind}.x]: {field} must be {expected}" in said
        assert ", got " in said


def test_a_whole_number_is_a_number(home):
    write_own(home, "[models.x]\narch = 'resnet50'\nstd = [1, 1, 1]\ncrop_pct = 1")
    assert (models()["x"].std, models()["x"].crop_pct) == ([1, 1, 1], 1)


@pytest.mark.parametrize("entries", [models, datasets])
@pytest.mark.parametrize(
    "name", ["a@b", "a~b", "a:b", "a/b", "a#b", "a b", "a\\u0000b", "a\\nb", ""]
)
def test_a_name_that_could_be_taken_for_something_else_is_refused(home, name, entries):
    first = {models: "[models.{}]\narch = 'a'", datasets: "[datasets.{}]\nreader = 'imagenet'"}
    said = refusal(home, first[entries].format(f'"{name}"'), entries)
    assert "a name is not empty and holds no white space and none of @ ~ # : /" in said
    group = first[entries].format("x") + f'\nsets = ["{name}"]'
    assert "a name is not empty" in refusal(home, group, entries)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("[models.all]\narch = 'a'", models),
        ("[models.marks2024]\narch = 'a'", models),
        ("[models.x]\narch = 'a'\nsets = ['x']", models),
        ("[datasets.tiny]\nreader = 'imagenet'", datasets),
        ("[datasets.x]\nreader = 'imagenet'\nsets = ['cifar10']", datasets),
    ],
)
def test_no_entry_has_the_name_of_a_set(home, text, entries):
    assert "is the name of a set as well; use another" in refusal(home, text, entries)


def test_own_entries_take_fields_of_another_table(home):
    write_own(
        home,
        "[models._base]\narch = 'resnet50'\nwidth = 3\nsets = ['mine']\n"
        "[models.a]\nlike = '_base'\nwidth = 4\n[models.b]\nlike = '_base'\n",
    )
    assert "_base" not in models()
    assert {n: (models()[n].arch, models()[n].width) for n in expand(["mine"])} == {
        "a": ("resnet50", 4), "b": ("resnet50", 3),
    }  # fmt: skip


def test_a_reader_that_does_not_exist_is_refused_with_those_that_do(home):
    said = refusal(home, "[datasets.x]\nreader = 'foldr'", datasets)
    known = said.partition("reader must be one of ")[2].partition(", got 'foldr'")[0]
    assert {*known.split(", ")} == {"folder", "none", *READERS}


@pytest.mark.parametrize("reader", ["folder", "webdataset", "huggingface"])
def test_a_reader_of_a_place_is_told_the_place(home, reader):
    said = refusal(home, f"[datasets.x]\nreader = '{reader}'", datasets)
    assert f"[datasets.x]: path is missing, where the reader {reader} looks for images" in said


def test_an_entry_without_weights_does_not_keep_the_others_from_being_listed(home):
    write_own(home, "[models.x]\narch = 'resnet50'")
    assert {status(entry) for entry in models().values()} >= {"ready", "fetchable", "incomplete"}
    with pytest.raises(CatalogueError, match="x: its entry needs file = NAME"):
        featstore.load_model("x")


def test_a_published_layout_is_read_below_the_data_root_alone(home):
    text = "[datasets.mine]\nreader = 'cub'\npath = 'mine/CUB_200_2011'"
    assert "path goes with the readers folder, webdataset, huggingface; cub reads" in refusal(
        home, text, datasets
    )
