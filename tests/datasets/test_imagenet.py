"""ImageNet in miniature: a development kit, torchvision's folders, flat val, text lists."""

import dataclasses
import io
import logging
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as tv
from PIL import Image

from featstore.datasets import catalogue, imagenet, load_dataset
from featstore.errors import BadImageError, MissingDatasetError

# ILSVRC2012_ID, WNID, words, number of children: ids are not in the order of the WordNet ids.
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n03126707", "crane", 0),
    (3, "n01440764", "tench, Tinca tinca", 0),
    (4, "n02012849", "crane", 0),
    (1001, "n00001740", "entity", 3),
]
WNIDS = ["n01440764", "n02012849", "n02119789", "n03126707"]
VAL = [3, 1, 2, 4, 3, 2]  # ILSVRC2012_ID of validation images 1 to 6
VAL_LABELS = [0, 2, 3, 1, 0, 3]
TRAIN = {"n01440764": (10026, 18), "n02012849": (7,), "n02119789": (5, 31), "n03126707": (9,)}
KIT = "ILSVRC2012_devkit_t12"
ENTRY = dataclasses.replace(catalogue()["imagenet"], categories=4, n_images={})


def kit_files():
    dtype = [(name, object) for name in (
        "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
        "num_train_images",
    )]  # fmt: skip
    synsets = np.empty((len(SYNSETS), 1), dtype)
    for row, (number, wnid, words, children) in enumerate(SYNSETS):
        synsets[row, 0] = (number, wnid, words, "a gloss", children, np.zeros(children), 0, 1300)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in VAL).encode()
    return {
        f"{KIT}/data/meta.mat": stream.getvalue(),
        f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }


def with_archive(place):
    with tarfile.open(place / f"{KIT}.tar.gz", "w:gz") as tar:
        for name, data in kit_files().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def with_folder(place):
    for name, data in kit_files().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def with_bin(place):
    words = {wnid: tuple(words.split(", ")) for _, wnid, words, children in SYNSETS if not children}
    by_id = {number: wnid for number, wnid, *_ in SYNSETS}
    torch.save((words, [by_id[number] for number in VAL]), place / "meta.bin")


def with_lists(place):
    (place / "meta").mkdir()
    rows = [f"{w}/{w}_{i}.JPEG {WNIDS.index(w)}" for w, numbers in TRAIN.items() for i in numbers]
    (place / "meta" / "train.txt").write_text("\n".join(rows))
    rows = [f"{val_name(i)} {label}" for i, label in enumerate(VAL_LABELS, 1)]
    (place / "meta" / "val.txt").write_text("\r\n".join(rows))


def with_nothing(place):
    pass


FORMS = [with_archive, with_folder, with_bin, with_lists, with_nothing]


def val_name(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def picture(path, value, mode="RGB", kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (value, 60, 0)).convert(mode).save(path, kind)


def write(root, form, base="imagenet", flat=True):
    place = root / base
    for wnid, numbers in TRAIN.items():
        for number in numbers:
            odd = {18: {"kind": "PNG"}, 31: {"mode": "CMYK"}, 9: {"mode": "L"}}.get(number, {})
            picture(place / "train" / wnid / f"{wnid}_{number}.JPEG", number % 250, **odd)
    for number, label in enumerate(VAL_LABELS, 1):
        folder = place / "val" if flat else place / "val" / WNIDS[label]
        picture(folder / val_name(number), 30 * number)
    form(place)
    return place


def read(root, split, entry=ENTRY):
    return imagenet.read(entry, split, root)


@pytest.mark.parametrize("form", FORMS)
def test_the_label_is_the_position_among_the_sorted_wordnet_ids(tmp_path, form):
    write(tmp_path, form)
    train = read(tmp_path, "train")
    expected = [  # files by code point
        ("n01440764_10026", 0), ("n01440764_18", 0), ("n02012849_7", 1), ("n02119789_31", 2),
        ("n02119789_5", 2), ("n03126707_9", 3),
    ]  # fmt: skip
    assert [one.split("/")[-1] for one in train.sample_ids] == [f"{n}.JPEG" for n, _ in expected]
    assert train.labels.tolist() == [label for _, label in expected]
    assert train.sample_ids[0] == "train/n01440764/n01440764_10026.JPEG"
    assert {train.read(row).mode for row in range(6)} == {"RGB"}
    assert np.asarray(train.read(1))[0, 0].tolist() == [18, 60, 0]  # the PNG, exactly


@pytest.mark.parametrize("form", [with_archive, with_folder, with_bin])
def test_two_categories_of_one_name_are_told_apart_by_their_ids(tmp_path, form):
    write(tmp_path, form)
    assert read(tmp_path, "train").categories == (
        "n01440764 tench", "n02012849 crane", "n02119789 kit fox", "n03126707 crane",
    )  # fmt: skip


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_validation_images_have_their_labels_in_both_forms(tmp_path, form, flat):
    write(tmp_path, form, flat=flat)
    if form is with_nothing and flat:
        with pytest.raises(MissingDatasetError, match=f"Place {KIT}.tar.gz or meta/val.txt in"):
            read(tmp_path, "test")
        return
    test = read(tmp_path, "test")
    assert test.sample_ids == tuple(f"val/{val_name(number)}" for number in range(1, 7))
    assert test.labels.tolist() == VAL_LABELS
    assert np.asarray(test.read(3))[0, 0, 0] == pytest.approx(120, abs=4)


def test_flat_and_foldered_validation_images_are_one_dataset(tmp_path):
    write(tmp_path / "a", with_bin, flat=True)
    write(tmp_path / "b", with_archive, flat=False)
    assert read(tmp_path / "a", "test").fingerprint == read(tmp_path / "b", "test").fingerprint


@pytest.mark.parametrize(("split", "official"), [("train", "train"), ("test", "val")])
def test_labels_are_torchvisions(tmp_path, split, official):
    place = write(tmp_path, with_bin, flat=False)
    theirs = tv.ImageNet(str(place), split=official)
    ours = read(tmp_path, split)
    pairs = dict(zip(ours.read.paths, ours.labels.tolist(), strict=True))
    assert pairs == dict(theirs.samples)
    assert theirs.wnids == [one.split()[0] for one in ours.categories]


@pytest.mark.parametrize("form", [with_archive, with_bin, with_lists])
def test_an_absent_folder_shifts_no_label(tmp_path, form):
    place = write(tmp_path, form)
    shutil.rmtree(place / "train" / "n02012849")
    assert read(tmp_path, "train").labels.tolist() == [0, 0, 2, 2, 3]


def test_folders_alone_must_be_those_of_all_categories(tmp_path):
    place = write(tmp_path, with_nothing, flat=False)
    shutil.rmtree(place / "train" / "n02012849")
    assert read(tmp_path, "train").labels.tolist() == [0, 0, 2, 2, 3]  # val has it yet
    shutil.rmtree(place / "val" / "n02012849")
    with pytest.raises(MissingDatasetError, match="folders of 3 categories.*all 4.*shift"):
        read(tmp_path, "train")


@pytest.mark.parametrize("form", FORMS[:4])
def test_the_published_thousand_categories_are_asked_for(tmp_path, form):
    write(tmp_path, form)
    with pytest.raises(BadImageError, match="has 4 categories, imagenet has 1000"):
        read(tmp_path, "train", catalogue()["imagenet"])


def test_fewer_images_than_published_are_said_with_both_numbers(tmp_path, caplog):
    write(tmp_path, with_bin)
    entry = dataclasses.replace(ENTRY, n_images=catalogue()["imagenet"].n_images)
    with caplog.at_level(logging.WARNING):
        read(tmp_path, "train", entry)
    assert "has 6 images here, 1281167 were published" in caplog.text


@pytest.mark.parametrize(
    "base", ["ILSVRC2012", "imagenet/imagenet", "imagenet/ILSVRC2012", "ILSVRC/Data/CLS-LOC", "."]
)
def test_copies_that_lie_elsewhere_are_the_same_dataset(tmp_path, base):
    write(tmp_path / "a", with_bin)
    write(tmp_path / "b", with_bin, base)
    for split in ("train", "test"):
        usual, other = read(tmp_path / "a", split), read(tmp_path / "b", split)
        assert other.fingerprint == usual.fingerprint


def test_folders_unpacked_one_too_deep_are_read(tmp_path):
    place = write(tmp_path, with_bin)
    (place / "val").rename(place / "val2")
    (place / "val").mkdir()
    (place / "val2").rename(place / "val" / "val")
    assert read(tmp_path, "test").labels.tolist() == VAL_LABELS


def test_a_folder_train_in_the_common_root_is_not_taken_for_imagenet(tmp_path):
    write(tmp_path, with_nothing, ".")
    with pytest.raises(MissingDatasetError, match="imagenet is not below"):
        read(tmp_path, "train")


def test_what_is_nowhere_or_not_unpacked_is_said_with_the_step(tmp_path):
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("imagenet@marks", data_root=tmp_path, download=True).split("train")
    assert "image-net.org" in str(caught.value)
    shutil.rmtree(write(tmp_path, with_bin) / "val")
    with pytest.raises(MissingDatasetError, match=r"Unpack ILSVRC2012_img_val.tar into it"):
        read(tmp_path, "test")


def test_an_absent_validation_image_is_named(tmp_path):
    (write(tmp_path, with_archive) / "val" / val_name(4)).unlink()
    with pytest.raises(MissingDatasetError, match=val_name(4)):
        read(tmp_path, "test")


def test_a_folder_of_no_category_is_refused(tmp_path):
    place = write(tmp_path, with_bin)
    picture(place / "train" / "n99999999" / "a.JPEG", 0)
    with pytest.raises(BadImageError, match="n99999999 is the folder of no category"):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("val", f"{val_name(1)} 4", r"the label 4; labels lie in 0\.\.3"),
        ("val", "ILSVRC2012_val_00000099.JPEG 0", "00000099.JPEG, which is not there"),
        ("train", "n02012849/n02012849_7.JPEG 3\nn01440764/a.JPEG 0", "by their sorted ids"),
    ],
)
def test_a_damaged_text_list_is_refused(tmp_path, name, line, fault):
    place = write(tmp_path, with_lists)
    (place / "meta" / f"{name}.txt").write_text(line)
    with pytest.raises((BadImageError, MissingDatasetError), match=fault):
        read(tmp_path, "test")


def test_a_damaged_kit_or_meta_file_is_named_and_no_code_in_it_runs(tmp_path):
    place = write(tmp_path, with_archive)
    (place / f"{KIT}.tar.gz").write_bytes((place / f"{KIT}.tar.gz").read_bytes()[:200])
    with pytest.raises(BadImageError, match=f"{KIT}.tar.gz is no development kit"):
        read(tmp_path, "test")
    torch.save((Trap(), []), place / "meta.bin")
    with pytest.raises(BadImageError, match="meta.bin is not torchvision's meta.bin"):
        read(tmp_path, "test")
    (place / "meta.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadImageError, match="meta.bin is not torchvision's meta.bin"):
        read(tmp_path, "test")


class Trap:
    """What must not be unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code in a data file was run",))
