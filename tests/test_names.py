"""Catalogue files: those that ship, and the user's own below FEATSTORE_HOME."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import featstore
from featstore.datasets import catalogue as datasets
from featstore.errors import CatalogueError
from featstore.models import catalogue as models
from featstore.models import create_backbone
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
    save_file(backbone.state_dict(), home / "runs" / "last.safetensors")

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
    loaded = featstore.load_model("my-run").module.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[models.x]\nweights = 'a.pt'",
            "[models.x]: missing 1 required positional argument: 'arch'",
        ),
        (
            "[models.x]\narch = 'resnet50'\nwieghts = 'a.pt'",
            "unexpected keyword argument 'wieghts'",
        ),
        (
            "[models.tiny-vit-mae]\narch = 'resnet50'",
            "'tiny-vit-mae' is known already; use another",
        ),
        ("[models.x\n", "is no catalogue"),
        ("models = 3", "is no catalogue"),
        ("[models]\nx = 3", "is no catalogue"),
    ],
)
def test_a_catalogue_that_cannot_be_understood_is_refused_in_one_line(home, text, said):
    write_own(home, text)
    with pytest.raises(CatalogueError) as caught:
        models()
    assert said in str(caught.value)
    assert str(home / "catalogue.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reader_that_does_not_exist_is_refused(home):
    write_own(home, "[datasets.x]\nreader = 'foldr'")
    with pytest.raises(CatalogueError, match="x names the reader 'foldr'; there are folder, tiny"):
        featstore.load_dataset("x")


def test_an_entry_without_weights_does_not_keep_the_others_from_being_listed(home):
    write_own(home, "[models.x]\narch = 'resnet50'")
    assert {status(entry) for entry in models().values()} >= {"ready", "fetchable", "incomplete"}
    with pytest.raises(CatalogueError, match="x: its entry needs file = NAME"):
        featstore.load_model("x")
