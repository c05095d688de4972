"""Recipes: what they were before views and studies, and what full fingerprints add."""

import hashlib

import numpy as np
import pytest
from torch import nn

import featstore
from featstore.datasets import ArrayImages, Dataset, ImageSplit, Transform
from featstore.datasets.files import FileImages
from featstore.errors import BadImageError, StoreMismatchError
from featstore.extraction import Options, stored_against_now, transform_of
from featstore.extraction.targets import Target, recipe_of
from featstore.keys import BNMode, FeatureKey
from featstore.models import Model
from featstore.store import Store

VIT = "file:none#arch=tiny-vit"
RESNET = "file:none#arch=tiny-resnet"
CONFIG = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.875,
          "crop_mode": "center", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.25)}  # fmt: skip
MODEL = Model("m", "arch", nn.Identity(), "ab" * 32, CONFIG, {})


def split(name, labels=(0, 1, 1), categories=("x", "y")):
    return ImageSplit(
        "set", name, ("a.png", "b.png", "ü.png"), np.array(labels), categories, None, "cd" * 32
    )


@pytest.mark.parametrize(
    ("mode", "train", "digest"),
    [
        (BNMode.EVAL, None, "d791537c7329b9646bb3e9a96d5d81a6564faf75bf8d0a7899a986b01e46bce6"),
        (
            BNMode.ADAPT,
            split("train"),
            "50cb0a48bc9f4a57442fa37efca19d1d07a900866b4aae085a7d0f7cb55c2543",
        ),
    ],
)
def test_the_recipe_of_a_plain_split_never_changes(mode, train, digest):
    # Written down once: else all that was ever extracted would be out of date.
    target = Target.of(split("test"), Transform.own(CONFIG))
    assert recipe_of(MODEL, "cls", mode, target, train, Options()).digest == digest


def test_a_fingerprint_never_changes():
    expected = "9c2e84a1f5d6a2d7e40d09122b6e9a018e99b1ba447aa536b31f4268be169e5e"
    assert split("test").fingerprint == expected


@pytest.mark.parametrize("name", ["own", "marks", "ericsson", "ericsson-fewshot"])
def test_a_datasets_transform_is_its_studys_or_the_models_own(name):
    dataset = Dataset("d", ("test",), split, {}, name, "pad")
    square = "pad" if name == "marks" else ""
    expected = Transform.own(CONFIG) if name == "own" else Transform.study(name, square=square)
    assert transform_of(dataset, CONFIG) == expected


def test_a_view_is_in_the_recipe_with_its_transform_and_its_seed():
    def fields(view):
        target = Target.of(split("train"), Transform.own(CONFIG), view)
        return dict(recipe_of(MODEL, "", BNMode.EVAL, target, None, Options()).fields)

    plain, first, second = fields(None), fields(0), fields(1)
    assert plain["augmentation"] == "none"
    assert first["augmentation"]["name"] == "random-resized-crop+flip"
    assert first["augmentation"]["view"] == 0
    assert first["transform"] == {
        "crop": "random", "flip": 0.5, "input_size": [3, 32, 32], "interpolation": "bicubic",
        "ratio": [3 / 4, 4 / 3], "scale": [0.08, 1.0],
    }  # fmt: skip
    assert first["augmentation"]["seed"] != second["augmentation"]["seed"]
    same = set(plain) - {"augmentation", "transform"}
    assert {name: plain[name] for name in same} == {name: first[name] for name in same}


def extract(root, store, *, model=VIT, **options):
    return featstore.extract(
        [model], [f"folder:{root}"], store=store, weights="random", dtype="float32",
        num_workers=0, **options,
    )  # fmt: skip


def recipes(store, root, model=VIT, mode="eval"):
    key = FeatureKey(f"{model}~random0", f"folder:{root}", BNMode(mode))
    return {split.name: dict(split.recipe.fields) for split in Store(store).splits(key)}


def test_a_full_fingerprint_adds_the_bytes_and_changes_nothing_else(folder, tmp_path):
    extract(folder, tmp_path / "names.zarr")
    extract(folder, tmp_path / "full.zarr", fingerprint="full")
    names, full = (recipes(tmp_path / f"{one}.zarr", folder) for one in ("names", "full"))
    for name in ("train", "test"):
        hasher = hashlib.sha256()
        for path in sorted((folder / name).rglob("*.png")):
            hasher.update(b"%d\n" % path.stat().st_size + path.read_bytes())
        assert full[name].pop("bytes") == hasher.hexdigest()
        assert full[name] == names[name]


def test_an_edit_that_keeps_the_size_is_seen_by_a_full_fingerprint_alone(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr", fingerprint="full")
    path = folder / "test" / "bee" / "3.png"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    key = FeatureKey(f"{VIT}~random0", f"folder:{folder}", BNMode.EVAL)
    found = {
        fingerprint: stored_against_now(
            key, store=tmp_path / "s.zarr",
            options=Options(dtype="float32", fingerprint=fingerprint),
        )
        for fingerprint in ("full", "names")
    }  # fmt: skip
    assert found["full"]["train"] == {}
    assert set(found["full"]["test"]) == {"bytes"}
    assert set(found["names"]["test"]) == {"bytes"}  # which a plain run does not look at
    assert found["names"]["test"]["bytes"][1] is None
    with pytest.raises(StoreMismatchError, match="test .*by another recipe .bytes: stored '"):
        extract(folder, tmp_path / "s.zarr", fingerprint="full", splits=["test"])


def test_a_plain_run_over_features_of_a_full_one_names_the_field(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr", fingerprint="full")
    assert extract(folder, tmp_path / "s.zarr", fingerprint="full").up_to_date == 2
    with pytest.raises(StoreMismatchError, match=r"\(bytes: stored '\w{64}', now None\)"):
        extract(folder, tmp_path / "s.zarr")


def test_in_adapt_mode_the_bytes_adapted_to_count_as_well(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr", model=RESNET, fingerprint="full", bn_modes=["adapt"])
    found = recipes(tmp_path / "s.zarr", folder, RESNET, "adapt")
    assert found["test"]["adapted_to_bytes"] == found["train"]["bytes"]


def test_bytes_of_arrays_are_in_the_content_already():
    read = ArrayImages(np.zeros((3, 4, 4), np.uint8))
    images = ImageSplit("set", "test", ("a", "b", "c"), np.zeros(3, int), ("x",), read, "ef" * 32)
    assert images.bytes_digest == "ef" * 32


def test_a_byte_that_moves_to_the_next_file_is_seen(tmp_path):
    digests = set()
    for number, contents in enumerate([(b"ab", b"c"), (b"a", b"bc"), (b"", b"abc")]):
        paths = []
        for name, content in zip("xy", contents, strict=True):
            paths.append(tmp_path / f"{number}{name}")
            paths[-1].write_bytes(content)
        digests.add(FileImages(tuple(map(str, paths))).bytes_digest())
    assert len(digests) == 3


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(BadImageError, match="gone.png cannot be read"):
        FileImages((str(tmp_path / "gone.png"),)).bytes_digest()


def test_an_unknown_fingerprint_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="fingerprint must be names or full, got 'md5'"):
        extract(folder, tmp_path / "s.zarr", fingerprint="md5")
