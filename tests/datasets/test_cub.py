"""CUB-200-2011 in miniature: three kinds, lists in disorder, a greyscale image."""

import dataclasses
import random

import numpy as np
import pytest
from PIL import Image

from featstore.datasets import catalogue, cub, load_dataset
from featstore.errors import BadImageError, MissingDatasetError

FOLDERS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"]
# Image id -> folder, file, whether in train: ids do not follow the folders.
IMAGES = {
    1: (0, "Black_Footed_Albatross_0046_18.jpg", 0),
    2: (0, "Black_Footed_Albatross_0009_34.jpg", 1),
    3: (2, "Red_Winged_Blackbird_0011_5845.jpg", 1),
    4: (1, "Laysan_Albatross_0002_1027.jpg", 1),
    9: (1, "Laysan_Albatross_0082_524.jpg", 0),
    10: (2, "Red_Winged_Blackbird_0079_4527.jpg", 0),
}
ENTRY = dataclasses.replace(catalogue()["cub"], categories=3, n_images={"train": 3, "test": 3})


def write(root, base="CUB_200_2011"):
    place = root / base
    for number, (folder, name, _) in IMAGES.items():
        path = place / "images" / FOLDERS[folder] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8, 6), (20 * number, 0, 0))
        (image.convert("L") if number == 3 else image).save(path, quality=95)
    rows = {
        "images": [f"{i} {FOLDERS[f]}/{name}" for i, (f, name, _) in IMAGES.items()],
        "image_class_labels": [f"{i} {(1, 2, 10)[f]}" for i, (f, _, _) in IMAGES.items()],
        "train_test_split": [f"{i} {train}" for i, (_, _, train) in IMAGES.items()],
        "classes": [f"{number} {name}" for number, name in zip((1, 2, 10), FOLDERS, strict=True)],
    }
    for seed, (name, lines) in enumerate(rows.items()):
        random.Random(seed).shuffle(lines)
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return place


def test_each_split_has_its_images_by_id_with_the_label_of_their_class(tmp_path):
    place = write(tmp_path)
    assert (place / "images.txt").read_text().split()[::2] != sorted(map(str, IMAGES))
    train = cub.read(ENTRY, "train", tmp_path)
    test = cub.read(ENTRY, "test", tmp_path)
    names = [f"images/{FOLDERS[f]}/{name}" for f, name, _ in IMAGES.values()]
    assert train.sample_ids == tuple(names[row] for row in (1, 2, 3))
    assert test.sample_ids == tuple(names[row] for row in (0, 4, 5))
    assert train.labels.tolist() == [0, 2, 1]
    assert test.labels.tolist() == [0, 1, 2]
    assert train.categories == test.categories
    assert train.categories == (
        "Black_footed_Albatross", "Laysan_Albatross", "Red_winged_Blackbird",
    )  # fmt: skip
    grey = train.read(1)
    assert grey.mode == "RGB"
    assert np.asarray(train.read(0))[0, 0, 0] == pytest.approx(40, abs=3)


@pytest.mark.parametrize("base", ["CUB_200_2011/CUB_200_2011", "cub/CUB_200_2011", "cub"])
def test_copies_that_lie_elsewhere_are_the_same_dataset(tmp_path, base):
    write(tmp_path / "a")
    write(tmp_path / "b", base)
    usual = cub.read(ENTRY, "test", tmp_path / "a")
    assert cub.read(ENTRY, "test", tmp_path / "b").fingerprint == usual.fingerprint


@pytest.mark.parametrize("name", ["classes.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_a_missing_list_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(MissingDatasetError, match=name):
        cub.read(ENTRY, "train", tmp_path)


def test_a_missing_image_is_named(tmp_path):
    path = write(tmp_path) / "images" / FOLDERS[1] / "Laysan_Albatross_0002_1027.jpg"
    path.unlink()
    with pytest.raises(MissingDatasetError, match="Laysan_Albatross_0002_1027.jpg"):
        cub.read(ENTRY, "train", tmp_path)
    assert len(cub.read(ENTRY, "test", tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "line", "other", "fault"),
    [
        ("image_class_labels", "4 2", "4 10", "which classes.txt calls 010.Red"),
        ("image_class_labels", "4 2", "4 99", "which classes.txt calls None"),
        ("image_class_labels", "4 2\n", "", "image_class_labels.txt lacks the image 4"),
        ("images", "4 ", "x ", "has the id 'x', which is no number"),
        ("train_test_split", "9 0\n", "", "train_test_split.txt lacks the image 9"),
        ("classes", "2 002.Laysan_Albatross\n", "", "has 2 categories, cub has 3"),
    ],
)
def test_lists_that_do_not_fit_each_other_are_refused(tmp_path, name, line, other, fault):
    path = write(tmp_path) / f"{name}.txt"
    text = "\n" + path.read_text()
    assert f"\n{line}" in text
    path.write_text(text.replace(f"\n{line}", f"\n{other}", 1))
    with pytest.raises(BadImageError, match=fault):
        cub.read(ENTRY, "test", tmp_path)


def test_what_is_nowhere_is_said_with_the_command_and_the_address(tmp_path):
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("cub@marks", data_root=tmp_path).split("train")
    assert "featstore datasets cub --download" in str(caught.value)
    assert "data.caltech.edu/records/65de6-vp158" in str(caught.value)
