"""Names of datasets: what they stand for, how they are written, and what comes near."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.datasets import (
    ArrayImages,
    ImageSplit,
    catalogue,
    default_data_root,
    expand,
    load_dataset,
    split_transform,
)
from featstore.datasets.load import READERS
from featstore.errors import MissingDatasetError, UnknownNameError


def write_folder(root):
    for split in ("train", "test"):
        for category in ("a", "b"):
            (root / split / category).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(root / split / category / "0.png")
    return root


@pytest.mark.parametrize(
    "path", ["x/y", "x/y/", "./x/y", "x//y", "x/../x/y", "x/y@own", "x/y/@own", "./x/y/@own"]
)
def test_a_folder_has_one_name_however_its_path_is_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "x" / "y")
    assert split_transform(f"folder:{path}") == ("folder:x/y", "own")
    dataset = load_dataset(f"folder:{path}")
    assert dataset.name == dataset.info["source"] == "folder:x/y"
    assert expand([f"folder:{path}", "folder:x/y"]) == ["folder:x/y"]


@pytest.mark.parametrize(
    "path", ["/data/me@home/x", "/data/x@2024", "/a b/c~d#1", "/data/@nonsense"]
)
def test_a_folders_path_may_hold_signs_that_mean_something_elsewhere(path):
    assert split_transform(f"folder:{path}") == (f"folder:{path}", "own")
    assert split_transform(f"folder:{path}@own") == (f"folder:{path}", "own")


def test_a_folder_with_an_at_sign_is_read(tmp_path):
    root = write_folder(tmp_path / "me@home" / "birds and bees")
    dataset = load_dataset(f"folder:{root}")
    assert dataset.name == f"folder:{root}"
    assert tuple(dataset.splits) == ("train", "test")
    assert len(dataset.split("test")) == 2
    assert dataset.split("test").dataset == dataset.name


def test_a_folder_may_start_with_the_home_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "birds")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_dataset("folder:~/birds").split("train")) == 2


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(MissingDatasetError, match="folder:.*gone.*Check the path"):
        load_dataset(f"folder:{tmp_path}/gone")


def test_own_is_the_transform_of_a_bare_name():
    assert split_transform("digits") == split_transform("digits@own") == ("digits", "own")
    assert load_dataset("digits@own").name == "digits"
    assert expand(["digits@own", "digits"]) == ["digits"]


@pytest.mark.parametrize("name", ["digits@nonsense", "cifar10@mark", "digits@"])
def test_a_transform_that_does_not_exist_is_refused(name):
    with pytest.raises(UnknownNameError, match="unknown transform @.*; there are own, marks"):
        load_dataset(name)
    with pytest.raises(UnknownNameError, match="unknown transform @"):
        expand([name])


@pytest.mark.parametrize(
    ("name", "near"),
    [("cifar11", "cifar10"), ("digit", "digits"), ("oxford_pet", "oxford_pets"), ("DTD", "")],
)
def test_an_unknown_dataset_is_refused_with_those_that_come_near(name, near):
    with pytest.raises(UnknownNameError) as caught:
        load_dataset(name)
    assert repr(name) in str(caught.value)
    assert "featstore datasets lists them" in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == bool(near)
    assert near in str(caught.value)


def test_a_set_stands_for_its_members_in_order_and_each_name_comes_once():
    tiny = [name for name, entry in catalogue().items() if "tiny" in entry.sets]
    assert len(tiny) >= 6
    assert expand(["tiny"]) == tiny
    assert expand(["cifar10", "tiny", "digits", "cifar10"]) == ["cifar10", *tiny]
    assert expand(["all"]) == [n for n, e in catalogue().items() if e.task != "dense"]


def test_no_dataset_has_the_name_of_a_set():
    sets = {one for entry in catalogue().values() for one in entry.sets}
    assert not {"all", *sets} & set(catalogue())


def test_the_catalogue_describes_each_dataset():
    for entry in catalogue().values():
        assert entry.task == "dense" or entry.reader in READERS
        assert entry.task == "dense" or entry.metric in ("top1", "mean_per_class", "map11")
        assert entry.description


@pytest.mark.parametrize("name", [n for n, e in catalogue().items() if "tiny" in e.sets])
def test_a_tiny_dataset_loads_by_name_with_what_analysis_wants_to_know(name):
    dataset = load_dataset(name)
    entry = catalogue()[name]
    assert dataset.info == {
        "shift": entry.shift, "cluster": entry.cluster or name, "metric": "top1",
        "source": entry.source,
    }  # fmt: skip
    assert (dataset.name, tuple(dataset.splits)) == (name, ("train", "test"))
    with pytest.raises(UnknownNameError, match=f"{name} has no split 'val'; it has train, test"):
        dataset.split("val")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FEATSTORE_HOME": "/big/disk"}, "/big/disk/datasets"),
        ({"FEATSTORE_HOME": "/big/disk", "XDG_CACHE_HOME": "/c"}, "/big/disk/datasets"),
        ({"FEATSTORE_HOME": "~/fs"}, "/data/me/fs/datasets"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/featstore/datasets"),
        ({"XDG_CACHE_HOME": "", "FEATSTORE_HOME": ""}, "/data/me/.cache/featstore/datasets"),
        ({}, "/data/me/.cache/featstore/datasets"),
    ],
)
def test_downloads_lie_where_the_environment_says(variables, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/data/me")
    for name in ("FEATSTORE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_data_root() == Path(expected)


def test_a_dataset_is_looked_for_below_the_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("dtd").split("train")
    assert str(tmp_path / "datasets") in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 5, 4, 3)])
def test_images_in_memory_are_read_as_rgb(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    read = ArrayImages(pixels)
    image = np.asarray(read(1))
    expected = pixels[1] if len(shape) == 4 else np.stack([pixels[1]] * 3, axis=-1)
    np.testing.assert_array_equal(image, expected)


def test_the_content_of_images_in_memory_is_their_shape_and_bytes():
    pixels = np.arange(60, dtype=np.uint8).reshape(3, 5, 4)
    other = pixels.copy()
    other[2, 4, 3] ^= 1
    contents = {ArrayImages(one).content for one in (pixels, other, pixels.reshape(3, 4, 5))}
    assert len(contents) == 3
    assert ArrayImages(np.asfortranarray(pixels)).content == ArrayImages(pixels).content


def split_of(**changes):
    fields = {
        "dataset": "d", "name": "train", "sample_ids": ("x", "y"), "labels": np.array([0, 1]),
        "categories": ("a", "b"), "read": ArrayImages(np.zeros((2, 3, 3), np.uint8)),
        "content": "abc",
    }  # fmt: skip
    return ImageSplit(**(fields | changes))


def test_a_fingerprint_covers_names_labels_categories_and_content_and_nothing_else():
    same = [{"dataset": "e"}, {"name": "test"}, {"labels": np.array([0, 1], np.int32)}]
    others = [
        {"sample_ids": ("x", "z")}, {"sample_ids": ("y", "x")}, {"labels": np.array([1, 0])},
        {"categories": ("a", "c")}, {"content": "abd"},
    ]  # fmt: skip
    base = split_of().fingerprint
    assert {split_of(**change).fingerprint for change in same} == {base}
    assert len({base, *(split_of(**change).fingerprint for change in others)}) == 6


def test_a_studys_set_carries_its_transform_unless_another_is_asked_for():
    members = [n for n, e in catalogue().items() if "ericsson2021" in e.sets]
    assert expand(["ericsson2021"]) == [f"{one}@ericsson" for one in members]
    assert expand(["ericsson2021@own"]) == members
    assert expand(["marks2024@ericsson"])[0] == "imagenet@ericsson"
    with pytest.raises(UnknownNameError, match="unknown transform @mark"):
        expand(["ericsson2021@mark"])


def test_a_set_of_which_none_can_be_embedded_is_refused_as_such():
    with pytest.raises(UnknownNameError, match="listed, and cannot be embedded yet"):
        expand(["ericsson2021-dense"])
