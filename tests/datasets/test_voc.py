"""PASCAL VOC in miniature: palette masks, difficult objects, lists with CRLF."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation

from featstore.datasets import catalogue, voc
from featstore.errors import BadImageError, CatalogueError, MissingDatasetError

PASCAL = dataclasses.replace(catalogue()["pascal"], n_images={})
VOC2007 = dataclasses.replace(catalogue()["voc2007"], n_images={})

# Values of a 6 x 4 mask, and the label by the rule: most pixels outside 0 and 255, ties lowest.
MASKS = {
    "2007_000032": ([0] * 10 + [1] * 4 + [15] * 3 + [255] * 7, 0),
    "2007_000033": ([255] * 20 + [20] * 3 + [7], 19),
    "2008_000008": ([12] * 5 + [3] * 5 + [0] * 14, 2),
    "2009_000100": ([15] * 24, 14),
    "2011_003256": ([0] * 23 + [2], 1),
}


def palette():
    """VOC's colours: bit k of each channel comes from bit 3 (7 - k) + channel of the index."""
    colours = []
    for index in range(256):
        for channel in range(3):
            bits = ((index >> (3 * shift + channel) & 1) << (7 - shift) for shift in range(3))
            colours.append(sum(bits))
    return colours


def write_mask(path, values):
    mask = Image.frombytes("P", (6, 4), bytes(values))
    mask.putpalette(palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)


def write_images(place, ids):
    (place / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(ids):
        Image.new("RGB", (6, 4), (0, 40 * i, 0)).save(place / "JPEGImages" / f"{one}.jpg")


def pascal(root, base="VOCdevkit/VOC2012"):
    place = root / base
    write_images(place, MASKS)
    for one, (values, _) in MASKS.items():
        write_mask(place / "SegmentationClass" / f"{one}.png", values)
    listing = place / "ImageSets" / "Segmentation"
    listing.mkdir(parents=True)
    ids = list(MASKS)
    (listing / "train.txt").write_bytes(("\r\n".join(ids[:3])).encode())
    (listing / "val.txt").write_bytes(("\n".join(ids[3:]) + "\n").encode())
    return place


@pytest.mark.parametrize(("split", "official", "rows"), [("train", "train", slice(3)),
                                                         ("test", "val", slice(3, 5))])  # fmt: skip
def test_an_image_has_the_label_of_most_pixels_of_its_mask(tmp_path, split, official, rows):
    pascal(tmp_path)
    images = voc.read_segmentation(PASCAL, split, tmp_path)
    ids = list(MASKS)[rows]
    assert images.sample_ids == tuple(f"JPEGImages/{one}.jpg" for one in ids)
    assert images.labels.tolist() == [MASKS[one][1] for one in ids]
    theirs = VOCSegmentation(str(tmp_path), year="2012", image_set=official)
    assert list(images.read.paths) == theirs.images
    for row in range(len(images)):
        image, mask = theirs[row]
        np.testing.assert_array_equal(np.asarray(images.read(row)), np.asarray(image))
        values, counts = np.unique(np.asarray(mask), return_counts=True)
        inside = ~np.isin(values, (0, 255))
        assert images.labels[row] == values[inside][counts[inside].argmax()] - 1


def test_the_masks_here_have_the_published_colours(tmp_path):
    place = pascal(tmp_path)
    with Image.open(place / "SegmentationClass" / "2007_000033.png") as mask:
        assert mask.mode == "P"
        colours = np.array(mask.getpalette()).reshape(-1, 3)
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128),
                20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {index: tuple(colours[index]) for index in expected} == expected


def test_the_categories_are_the_published_twenty_in_their_order():
    assert len(voc.CATEGORIES) == 20
    assert tuple(sorted(voc.CATEGORIES)) == voc.CATEGORIES
    assert [voc.CATEGORIES[i] for i in (0, 10, 14, 19)] == [
        "aeroplane", "diningtable", "person", "tvmonitor",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "base",
    ["VOC/VOCdevkit/VOC2012", "pascal/VOCdevkit/VOC2012", "VOCdevkit/VOC2012/VOC2012", "VOC2012"],
)
def test_copies_that_lie_elsewhere_are_the_same_dataset(tmp_path, base):
    pascal(tmp_path / "a")
    pascal(tmp_path / "b", base)
    usual = voc.read_segmentation(PASCAL, "test", tmp_path / "a")
    other = voc.read_segmentation(PASCAL, "test", tmp_path / "b")
    assert other.fingerprint == usual.fingerprint


@pytest.mark.parametrize(
    ("values", "fault"),
    [([0] * 12 + [255] * 12, "shows no category"), ([1] * 23 + [21], "has the value 21")],
)
def test_a_mask_without_a_category_or_with_a_strange_one_is_refused(tmp_path, values, fault):
    path = pascal(tmp_path) / "SegmentationClass" / "2007_000033.png"
    write_mask(path, values)
    with pytest.raises(BadImageError, match=f"2007_000033.png {fault}"):
        voc.read_segmentation(PASCAL, "train", tmp_path)


def test_a_mask_of_colours_a_broken_one_and_a_missing_one_are_named(tmp_path):
    path = pascal(tmp_path) / "SegmentationClass" / "2007_000033.png"
    with Image.open(path) as mask:
        coloured = mask.convert("RGB")
    coloured.save(path)
    with pytest.raises(BadImageError, match="2007_000033.png has RGB pixels"):
        voc.read_segmentation(PASCAL, "train", tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadImageError, match="2007_000033.png is no mask"):
        voc.read_segmentation(PASCAL, "train", tmp_path)
    path.unlink()
    with pytest.raises(MissingDatasetError, match="mask .*2007_000033.png is not there"):
        voc.read_segmentation(PASCAL, "train", tmp_path)


def test_a_missing_image_and_a_missing_list_are_named(tmp_path):
    place = pascal(tmp_path)
    (place / "JPEGImages" / "2011_003256.jpg").unlink()
    with pytest.raises(MissingDatasetError, match="2011_003256.jpg"):
        voc.read_segmentation(PASCAL, "test", tmp_path)
    (place / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(MissingDatasetError, match="Segmentation/val.txt"):
        voc.read_segmentation(PASCAL, "test", tmp_path)


IDS = {"train": ["000012", "000017", "000023"], "val": ["000005"], "test": ["000001", "000002"]}
# What the lists say of these images: 1, or 0 for difficult instances only; all else is -1.
SAID = {
    ("car", "000012"): 1,
    ("person", "000017"): 1,
    ("horse", "000017"): 1,
    ("bicycle", "000023"): 1,
    ("person", "000023"): 0,
    ("chair", "000005"): 1,
    ("tvmonitor", "000001"): 0,
    ("dog", "000001"): 1,
    ("train", "000002"): 1,
}


def voc2007(root, base="VOCdevkit/VOC2007", splits=("train", "val", "test")):
    place = root / base
    listing = place / "ImageSets" / "Main"
    listing.mkdir(parents=True)
    for split in splits:
        write_images(place, IDS[split])
        (listing / f"{split}.txt").write_bytes("\r\n".join(IDS[split]).encode())
        for category in voc.CATEGORIES:
            rows = [f"{one} {SAID.get((category, one), -1):>2}" for one in reversed(IDS[split])]
            (listing / f"{category}_{split}.txt").write_text("\n".join(rows) + "\n")
    return place


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(("option", "difficult"), [({}, 0), ({"difficult": "negative"}, 0),
                                                   ({"difficult": "ignore"}, -1)])  # fmt: skip
def test_each_image_has_a_label_for_each_category(tmp_path, split, option, difficult):
    voc2007(tmp_path)
    assert (
        "000023  0\n"
        in (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/person_train.txt").read_text()
    )
    asked = dataclasses.replace(VOC2007, options=option)
    images = voc.read_classification(asked, split, tmp_path)
    assert images.sample_ids == tuple(f"JPEGImages/{one}.jpg" for one in IDS[split])
    assert (images.labels.shape, images.labels.dtype) == ((len(IDS[split]), 20), np.int8)
    meaning = {1: 1, 0: difficult, -1: 0}
    for row, one in enumerate(IDS[split]):
        for column, category in enumerate(images.categories):
            assert images.labels[row, column] == meaning[SAID.get((category, one), -1)]
    assert images.read(0).size == (6, 4)


def test_what_difficult_means_is_part_of_the_fingerprint(tmp_path):
    voc2007(tmp_path)
    prints = {
        voc.read_classification(
            dataclasses.replace(VOC2007, options={"difficult": option}), "train", tmp_path,
        ).fingerprint
        for option in ("negative", "ignore")
    }  # fmt: skip
    assert len(prints) == 2


def test_an_unknown_meaning_of_difficult_is_refused(tmp_path):
    asked = dataclasses.replace(VOC2007, options={"difficult": "maybe"})
    with pytest.raises(
        CatalogueError, match="difficult = 'maybe'; its reader knows negative, ignore"
    ):
        voc.read_classification(asked, "train", tmp_path)


def test_a_list_of_a_category_that_is_missing_or_cut_is_named(tmp_path):
    listing = voc2007(tmp_path) / "ImageSets" / "Main"
    path = listing / "sofa_train.txt"
    path.write_text("000012 -1\n000017 -1\n")
    with pytest.raises(BadImageError, match="sofa_train.txt says None of the image 000023"):
        voc.read_classification(VOC2007, "train", tmp_path)
    path.write_text("000012 -1\n000017 -1\n000023 2\n")
    with pytest.raises(BadImageError, match="sofa_train.txt says 2 of the image 000023"):
        voc.read_classification(VOC2007, "train", tmp_path)
    path.unlink()
    with pytest.raises(MissingDatasetError, match="sofa_train.txt"):
        voc.read_classification(VOC2007, "train", tmp_path)


def test_the_test_archive_that_was_not_unpacked_is_said(tmp_path):
    voc2007(tmp_path, "VOC2007/VOCdevkit/VOC2007", ("train", "val"))
    assert len(voc.read_classification(VOC2007, "train", tmp_path)) == 3
    with pytest.raises(MissingDatasetError, match="Main/test.txt"):
        voc.read_classification(VOC2007, "test", tmp_path)
