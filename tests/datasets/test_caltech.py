"""Caltech101 and Caltech256 in miniature: the studies' divisions, stray files, odd lists."""

import dataclasses

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image

from featstore.datasets import caltech, catalogue
from featstore.errors import BadImageError, MissingDatasetError

OBJECTS = {"BACKGROUND_Google": 5, "Faces": 4, "accordion": 3, "yin_yang": 40}
C101 = dataclasses.replace(catalogue()["caltech101"], categories=4, n_images={})
TRAIN = [
    "BACKGROUND_Google/image_0003.jpg 0",
    "yin_yang/image_0002.jpg 3",
    "Faces/image_0001.jpg 1",
    "yin_yang/image_0002.jpg 3",
    "accordion/image_0001.jpg 2",
    "yin_yang/image_0002.jpg 3",
]
TEST = ["accordion/image_0002.jpg 2", "Faces/image_0004.jpg 1"]


def picture(path, value, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value % 256, 0, 0)).convert(mode).save(path, "JPEG")


def write_101(root, base="caltech101", listing=None, end="\n"):
    folder = root / base / "101_ObjectCategories"
    for name, count in OBJECTS.items():
        for i in range(1, count + 1):
            picture(folder / name / f"image_{i:04d}.jpg", i, "L" if name == "Faces" else "RGB")
    (folder / "BACKGROUND_Google" / "tmp").write_text("no image")
    if listing is not None:
        (root / listing).mkdir(parents=True, exist_ok=True)
        (root / listing / "train.txt").write_bytes(end.join(TRAIN).encode())
        (root / listing / "test.txt").write_bytes((end.join(TEST) + end).encode())
    return folder


def read_101(root, split, entry=C101):
    return caltech.read_101(entry, split, root)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_lists_tell_the_split_and_a_line_that_comes_twice_is_a_sample_twice(tmp_path, end):
    folder = write_101(tmp_path, listing="caltech101", end=end)
    train, test = read_101(tmp_path, "train"), read_101(tmp_path, "test")
    assert train.categories == test.categories == tuple(OBJECTS)
    assert train.labels.tolist() == [0, 3, 1, 3, 2, 3]
    assert test.labels.tolist() == [2, 1]
    twice = "101_ObjectCategories/yin_yang/image_0002.jpg"
    assert [train.sample_ids[row] for row in (1, 3, 5)] == [twice, f"{twice}#2", f"{twice}#3"]
    assert {train.read.paths[row] for row in (1, 3, 5)} == {
        str(folder / "yin_yang" / "image_0002.jpg")
    }
    assert test.read(1).mode == "RGB"


def test_labels_are_torchvisions_with_the_background_before_them(tmp_path):
    write_101(tmp_path, listing="caltech101")
    theirs = tv.Caltech101(str(tmp_path), target_type="category")
    test = read_101(tmp_path, "test")
    for name, label in zip(test.sample_ids, test.labels, strict=True):
        assert theirs.categories.index(name.split("/")[1]) == label - 1


def test_the_two_versions_of_the_list_are_two_datasets(tmp_path):
    write_101(tmp_path, listing="caltech101")
    first = read_101(tmp_path, "train").fingerprint
    once = list(dict.fromkeys(TRAIN))
    (tmp_path / "caltech101" / "train.txt").write_bytes("\r\n".join(once).encode())
    second = read_101(tmp_path, "train")
    assert len(second) == 4
    assert second.fingerprint != first
    (tmp_path / "caltech101" / "train.txt").write_text("\n".join(once))
    assert read_101(tmp_path, "train").fingerprint == second.fingerprint


@pytest.mark.parametrize(
    ("base", "listing"),
    [
        ("Caltech101/caltech101", "Caltech101"),
        ("caltech101", "caltech101/caltech101-splits"),
        ("caltech-101", "caltech-101"),
        ("caltech101/101_ObjectCategories", "caltech101"),
        (".", "caltech101"),
    ],
)
def test_copies_that_lie_elsewhere_are_the_same_dataset(tmp_path, base, listing):
    write_101(tmp_path / "a", listing="caltech101")
    write_101(tmp_path / "b", base, listing)
    usual, other = read_101(tmp_path / "a", "train"), read_101(tmp_path / "b", "train")
    assert other.labels.tolist() == usual.labels.tolist()
    assert [one.split("/")[-2:] for one in other.sample_ids] == [
        one.split("/")[-2:] for one in usual.sample_ids
    ]


def test_lists_of_another_dataset_beside_it_are_not_taken(tmp_path):
    write_101(tmp_path, listing=".")
    with pytest.raises(MissingDatasetError, match=r"train\.txt and test\.txt are not at"):
        read_101(tmp_path, "train")


def test_without_the_lists_the_studys_dataset_is_not_there(tmp_path):
    write_101(tmp_path)
    with pytest.raises(MissingDatasetError, match=r"Place them there .* or take caltech101_drawn"):
        read_101(tmp_path, "train")


def test_thirty_of_each_category_are_drawn_where_that_is_asked_for(tmp_path):
    write_101(tmp_path)
    drawn = dataclasses.replace(catalogue()["caltech101_drawn"], categories=4, n_images={})
    train, test = (read_101(tmp_path, split, drawn) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [5, 4, 3, 30]
    assert test.labels.tolist() == [3] * 10
    assert not {*train.sample_ids} & {*test.sample_ids}
    np.random.seed(7)  # the global state must play no part
    assert read_101(tmp_path, "test", drawn).sample_ids == test.sample_ids
    # Written down: a release that drew otherwise would tear stored features from their splits.
    numbers = [int(one[-8:-4]) for one in test.sample_ids]
    assert numbers == [1, 3, 5, 15, 16, 26, 27, 34, 38, 39]


def test_one_list_of_two_is_not_enough(tmp_path):
    write_101(tmp_path, listing="caltech101")
    (tmp_path / "caltech101" / "test.txt").unlink()
    with pytest.raises(MissingDatasetError, match="test.txt"):
        read_101(tmp_path, "test")


def test_a_listed_image_that_is_absent_is_named(tmp_path):
    folder = write_101(tmp_path, listing="caltech101")
    (folder / "accordion" / "image_0002.jpg").unlink()
    with pytest.raises(MissingDatasetError, match="accordion/image_0002.jpg"):
        read_101(tmp_path, "test")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("accordion/image_0001.jpg 1", "the label 1, which is Faces"),
        ("accordion/image_0001.jpg 4", r"the label 4; labels lie in 0\.\.3"),
    ],
)
def test_a_list_with_torchvisions_labels_is_refused(tmp_path, line, fault):
    write_101(tmp_path, listing="caltech101")
    (tmp_path / "caltech101" / "test.txt").write_text(line)
    with pytest.raises(BadImageError, match=fault):
        read_101(tmp_path, "test")


def test_a_copy_without_the_background_is_refused(tmp_path):
    folder = write_101(tmp_path, listing="caltech101")
    (folder / "BACKGROUND_Google").rename(tmp_path / "elsewhere")
    with pytest.raises(BadImageError, match="has 3 categories, caltech101 has 4"):
        read_101(tmp_path, "train")


KINDS = {"001.ak47": 12, "002.t-shirt": 1, "003.faces-easy-101": 7, "004.clutter": 10}
C256 = dataclasses.replace(
    catalogue()["caltech256"], categories=4, n_images={"train": 24, "test": 6}
)


def write_256(root, base="caltech256"):
    folder = root / base / "256_ObjectCategories"
    for number, (name, count) in enumerate(KINDS.items(), 1):
        for i in range(count, 0, -1):
            picture(folder / name / f"{number:03d}_{i:04d}.jpg", 20 * i, "L" if i == 3 else "RGB")
    (folder / "003.faces-easy-101" / "RENAME2").write_text("mv a b")
    (folder / "001.ak47" / "greg" / "vision309").mkdir(parents=True)
    return folder


def read_256(root, split, entry=C256):
    return caltech.read_256(entry, split, root)


def test_the_division_is_the_studys_over_torchvisions_order(tmp_path):
    write_256(tmp_path)
    theirs = tv.Caltech256(str(tmp_path))
    assert len(theirs) == 30
    np.random.seed(0)  # as the study's code has it, on the global state
    order = np.arange(30)
    np.random.shuffle(order)
    for split, rows in (("train", sorted(order[:24])), ("test", sorted(order[24:]))):
        images = read_256(tmp_path, split)
        assert images.labels.tolist() == [theirs.y[row] for row in rows]
        for position, row in enumerate(rows):
            expected = theirs[row][0].convert("RGB")
            np.testing.assert_array_equal(np.asarray(images.read(position)), np.asarray(expected))
    assert images.categories == ("ak47", "t-shirt", "faces-easy-101", "clutter")


def test_the_published_number_of_images_is_divided_as_published():
    published = catalogue()["caltech256"].n_images
    assert published == {"train": 24485, "test": 6122}
    assert int(caltech._SHARE_OF_TRAIN_256 * 30607) == published["train"]


@pytest.mark.parametrize(
    "base", [".", "Caltech256", "caltech256/caltech256", "caltech256/256_ObjectCategories"]
)
def test_copies_of_the_256_that_lie_elsewhere_are_the_same(tmp_path, base):
    write_256(tmp_path / "a")
    write_256(tmp_path / "b", base)
    usual, other = read_256(tmp_path / "a", "test"), read_256(tmp_path / "b", "test")
    assert other.fingerprint == usual.fingerprint


def test_an_image_missing_in_the_midst_is_named_and_one_at_the_end_is_counted(tmp_path):
    folder = write_256(tmp_path)
    (folder / "001.ak47" / "001_0012.jpg").unlink()
    with pytest.raises(MissingDatasetError, match="has 29 images, 30 were published.*division"):
        read_256(tmp_path, "train")
    (folder / "004.clutter" / "004_0005.jpg").unlink()
    with pytest.raises(MissingDatasetError, match="004_0005.jpg is not there"):
        read_256(tmp_path, "train")


def test_a_missing_or_misnumbered_folder_is_refused(tmp_path):
    folder = write_256(tmp_path)
    (folder / "002.t-shirt").rename(folder / "005.t-shirt")
    with pytest.raises(BadImageError, match="has 003.faces-easy-101 where 002 should be"):
        read_256(tmp_path, "train")
    (folder / "005.t-shirt").rename(tmp_path / "elsewhere")
    with pytest.raises(BadImageError, match="has 3 categories, caltech256 has 4"):
        read_256(tmp_path, "train")


@pytest.mark.parametrize("read", [caltech.read_101, caltech.read_256])
def test_what_is_nowhere_is_said(tmp_path, read):
    entry = C101 if read is caltech.read_101 else C256
    with pytest.raises(MissingDatasetError, match=f"--download --data-root {tmp_path}"):
        read(entry, "train", tmp_path)
