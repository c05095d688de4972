"""WebDataset shards: tars written by Python's own tarfile, read at their places."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from featstore.datasets import expand, load_dataset, split_transform
from featstore.errors import (
    BadImageError,
    FeatStoreError,
    MissingDatasetError,
    UnknownNameError,
)


def png(seed, kind="PNG"):
    file = io.BytesIO()
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    Image.new("RGB", (5, 4), colour).save(file, kind)
    return file.getvalue()


def pixel(seed):
    return tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))


def add(tar, name, content, **changes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def write(path, members, mode="w", form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in members:
            add(tar, name, content)
    return path


def sample(key, seed, label, field="png"):
    return [(f"{key}.{field}", png(seed)), (f"{key}.cls", str(label).encode())]


def shard(path, seeds, prefix="s", n_classes=3):
    members = [m for seed in seeds for m in sample(f"{prefix}/{seed:04}", seed, seed % n_classes)]
    return write(path, members)


def two_splits(root):
    for i in range(3):
        shard(root / f"train-{i:06}.tar", range(10 * i, 10 * i + 4))
    for i in range(2):
        shard(root / f"test-{i:06}.tar", range(100 + 10 * i, 103 + 10 * i))
    return root


def complaint(name, split="train", kind=FeatStoreError):
    with pytest.raises(kind) as caught:
        load_dataset(name).split(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PATTERNS = [
    "", "/*.tar", "/{train,test}-*.tar", "/{train-{000000..000002},test-{000000..000001}}.tar",
    "/t*-00000?.tar",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_shards_are_read_by_split_in_the_order_of_their_numbers(pattern, tmp_path):
    two_splits(tmp_path)
    dataset = load_dataset(f"wds:{tmp_path}{pattern}")
    assert dataset.name == f"wds:{tmp_path}{pattern}"
    assert dataset.splits == ("train", "test")
    train, test = dataset.split("train"), dataset.split("test")
    seeds = [*range(4), *range(10, 14), *range(20, 24)]
    assert list(train.sample_ids) == [f"s/{seed:04}" for seed in seeds]
    assert train.labels.tolist() == [seed % 3 for seed in seeds]
    assert train.categories == test.categories == ("0", "1", "2")
    assert len(test) == 6
    for row in (11, 0, 5, 5, 3):  # in any order
        assert train.read(row).getpixel((0, 0)) == pixel(seeds[row])
        assert train.read(row).mode == "RGB"


def test_one_pattern_counts_for_both_splits(tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            shard(tmp_path / f"{split}-{i:03}.tar", range(10 * i, 10 * i + 3))
    dataset = load_dataset(f"wds:{tmp_path}/{{train,test}}-{{000..001}}.tar")
    assert [len(dataset.split(split)) for split in dataset.splits] == [6, 6]


def test_shards_without_zeros_in_their_numbers_are_in_order_all_the_same(tmp_path):
    for i in (0, 2, 10, 9):
        shard(tmp_path / f"train-{i}.tar", [i])
    ids = load_dataset(f"wds:{tmp_path}").split("train").sample_ids
    assert ids == ("s/0000", "s/0002", "s/0009", "s/0010")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["birds-train-0.tar", "birds-validation-0.tar", "birds-test-0.tar"],
         ("train", "val", "test")),
        (["train/0.tar", "val/0.tar", "test/0.tar"], ("train", "val", "test")),
        (["Train_0.tar", "VALID.tar"], ("train", "test")),
        (["training000.tar", "test000.tar"], ("train", "test")),
    ],
)  # fmt: skip
def test_the_split_is_a_word_of_the_name_or_the_folder(names, splits, tmp_path, caplog):
    for i, name in enumerate(names):
        shard(tmp_path / name, range(10 * i, 10 * i + 3))
    deep = "/" in names[0]
    dataset = load_dataset(f"wds:{tmp_path}/{'*/' if deep else ''}*.tar")
    assert dataset.splits == splits
    firsts = [int(dataset.split(split).sample_ids[0][2:]) for split in splits]
    assert firsts == [10 * i for i in range(len(names))]
    assert ("those of val are scored as test" in caplog.text) == ("VALID.tar" in names)


def test_shards_that_name_no_split_are_divided_class_by_class(tmp_path, caplog):
    shard(tmp_path / "000.tar", range(15))
    shard(tmp_path / "001.tar", range(15, 30))
    dataset = load_dataset(f"wds:{tmp_path}")
    train, test = dataset.split("train"), dataset.split("test")
    assert "a seeded 80/20 split is made" in caplog.text
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert sorted(train.sample_ids + test.sample_ids) == [f"s/{i:04}" for i in range(30)]
    for images in (train, test):
        for row, key in enumerate(images.sample_ids):
            assert images.read(row).getpixel((0, 0)) == pixel(int(key[2:]))
            assert images.labels[row] == int(key[2:]) % 3


def test_some_shards_naming_a_split_and_others_none_is_refused(tmp_path):
    shard(tmp_path / "train-0.tar", [0])
    shard(tmp_path / "other-0.tar", [1])
    assert "other-0.tar names no split and" in complaint(f"wds:{tmp_path}", kind=BadImageError)


MEMBERS = [
    ("a/b/n01_1.left.jpg", "a/b/n01_1", "left.jpg"),
    ("a.b/c.JPG", "a.b/c", "jpg"),
    ("x.tar.gz", "x", "tar.gz"),
    ("./y.Cls", "./y", "cls"),
]


@pytest.mark.parametrize(("name", "key", "field"), MEMBERS)
def test_the_field_starts_at_the_first_dot_of_the_base_name(name, key, field, tmp_path):
    members = [(name, b"x"), (f"{key}.png", png(1)), (f"{key}.cls", b"0")]
    if field == "cls":
        members = [*members[1:2], (name, b"0")]
    if field == "jpg":
        members = [(name, png(1, "JPEG")), members[2]]
    write(tmp_path / "train.tar", members)
    assert load_dataset(f"wds:{tmp_path}").split("train").sample_ids == (key,)
    write(tmp_path / "train.tar", [(name, b"x")])
    if field != "jpg":
        said = complaint(f"wds:{tmp_path}", kind=BadImageError)
        assert (
            f"{key} has no image; its fields, after the first dot of the name, are {field}" in said
        )


def test_members_that_belong_to_no_sample_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "README", b"no dot")
        add(tar, "s", b"", type=tarfile.DIRTYPE)
        add(tar, ".hidden.png", b"x")
        add(tar, "s/.hidden", b"x")
        add(tar, "s/link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "s/hard.png", b"", type=tarfile.LNKTYPE, linkname="README")
        for name, content in sample("s/1", 1, 0):
            add(tar, name, content)
        add(tar, "s/._2.png", b"x")
    assert load_dataset(f"wds:{tmp_path}").split("train").sample_ids == ("s/1",)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_all_forms_of_tar_are_read(form, tmp_path):
    key = "/".join(["a" * 60, "ä" * 20 if form != tarfile.USTAR_FORMAT else "b", "c"])
    write(tmp_path / "train.tar", sample(key, 7, 0) + sample("z", 8, 1), form=form)
    images = load_dataset(f"wds:{tmp_path}").split("train")
    assert images.sample_ids == (key, "z")
    assert [images.read(i).getpixel((0, 0)) for i in range(2)] == [pixel(7), pixel(8)]


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"cls": b"2"}, 2), ({"cls": b" 2\n"}, 2), ({"json": b'{"label": 2, "x": []}'}, 2),
        ({"json": b'{"cls": 1}'}, 1), ({"cls": b"0", "json": b'{"label": 2}'}, 0),
        ({"cls": b"1", "txt": b"a bird", "npy": b"\x93NUMPY", "index": b"7"}, 1),
    ],
)  # fmt: skip
def test_the_label_is_decimal_text_or_in_the_json(fields, label, tmp_path):
    write(tmp_path / "train.tar", [("k.png", png(1)), *((f"k.{f}", c) for f, c in fields.items())])
    images = load_dataset(f"wds:{tmp_path}").split("train")
    assert images.labels.tolist() == [label]


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"txt": b"bird"}, {"cls": b""}, {"cls": b"-1"}, {"cls": b"bird"}, {"cls": b"1.0"},
        {"cls": "²".encode()}, {"json": b"{}"}, {"json": b'{"label": "bird"}'}, {"json": b"[1]"},
        {"json": b"{cut"}, {"json": b"3"}, {"json": b'{"label": -1}'}, {"cls": b"\xff"},
    ],
)  # fmt: skip
def test_a_sample_without_a_label_is_named(fields, tmp_path):
    write(tmp_path / "train.tar", [("k.png", png(1)), *((f"k.{f}", c) for f, c in fields.items())])
    said = complaint(f"wds:{tmp_path}", kind=BadImageError)
    assert "k has no label: found" in said or "k.json is no JSON table" in said
    assert str(tmp_path / "train.tar") in said


@pytest.mark.parametrize("file", ["classes.txt", "classnames.txt"])
def test_names_of_the_classes_may_lie_beside_the_shards(file, tmp_path):
    two_splits(tmp_path)
    (tmp_path / file).write_text("a bird\r\na cat\r\na dog")
    assert load_dataset(f"wds:{tmp_path}").split("test").categories == ("a bird", "a cat", "a dog")
    (tmp_path / file).write_text("a bird\na cat\n")
    said = complaint(f"wds:{tmp_path}", kind=BadImageError)
    assert "s/0002 has the label 2, counted from 0, and there are 2 categories" in said


def test_splits_share_their_categories_though_one_lacks_some(tmp_path):
    shard(tmp_path / "train-0.tar", [0, 1])
    shard(tmp_path / "test-0.tar", [0, 2])
    dataset = load_dataset(f"wds:{tmp_path}")
    assert dataset.split("train").categories == dataset.split("test").categories == ("0", "1", "2")


def test_a_repeated_field_is_an_error(tmp_path):
    write(tmp_path / "train.tar", [*sample("k", 1, 0), ("k.CLS", b"1")])
    assert "k has the field cls twice" in complaint(f"wds:{tmp_path}", kind=BadImageError)


def test_several_images_in_a_sample_are_an_error(tmp_path):
    write(tmp_path / "train.tar", [*sample("k", 1, 0), ("k.jpg", png(1))])
    assert "k has several images (jpg, png)" in complaint(f"wds:{tmp_path}", kind=BadImageError)


def test_members_of_a_sample_must_follow_each_other(tmp_path):
    a, b = sample("a", 1, 0), sample("b", 2, 1)
    write(tmp_path / "train.tar", [a[0], b[0], a[1], b[1]])
    assert "a has no label" in complaint(f"wds:{tmp_path}", kind=BadImageError)


def test_a_key_that_is_seen_twice_is_an_error_within_a_shard_and_across_shards(tmp_path):
    write(tmp_path / "train-0.tar", sample("a", 1, 0) + sample("b", 2, 1) + sample("a", 3, 0))
    said = complaint(f"wds:{tmp_path}", kind=BadImageError)
    assert f"the key a was seen before, in {tmp_path / 'train-0.tar'}" in said
    write(tmp_path / "train-0.tar", sample("a", 1, 0))
    write(tmp_path / "train-1.tar", sample("a", 1, 0))
    said = complaint(f"wds:{tmp_path}", kind=BadImageError)
    assert f"{tmp_path / 'train-1.tar'}: the key a was seen before" in said


def test_a_sample_may_not_span_shards(tmp_path):
    image, label = sample("a", 1, 0)
    write(tmp_path / "train-0.tar", [image])
    write(tmp_path / "train-1.tar", [label])
    assert "a has no label" in complaint(f"wds:{tmp_path}", kind=BadImageError)


def test_splits_may_have_the_same_keys(tmp_path):
    shard(tmp_path / "train-0.tar", [0, 1])
    shard(tmp_path / "test-0.tar", [0, 1])
    dataset = load_dataset(f"wds:{tmp_path}")
    assert dataset.split("train").sample_ids == dataset.split("test").sample_ids


@pytest.mark.parametrize("field", ["pkl", "pickle", "pyd", "pth", "PKL", "meta.pkl"])
def test_what_only_unpickling_reads_is_refused(field, tmp_path):
    write(tmp_path / "train.tar", [*sample("k", 1, 0), (f"k.{field}", pickle.dumps(1))])
    assert f"k.{field} is a pickle" in complaint(f"wds:{tmp_path}", kind=BadImageError)


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_tar_is_refused(mode, kind, tmp_path):
    write(tmp_path / "train.tar", sample("k", 1, 0), mode)
    assert f"is compressed ({kind})" in complaint(f"wds:{tmp_path}", kind=BadImageError)


@pytest.mark.parametrize("kept", [0, 300, 512, 600, 1024, 1300, 1536, 1600, 2048, 2500])
def test_a_tar_that_is_cut_off_anywhere_is_named(kept, tmp_path):
    path = write(tmp_path / "train.tar", sample("a", 1, 0) + sample("b", 2, 1))
    assert len(png(1)) <= 512  # so each member takes 1,024 bytes
    path.write_bytes(path.read_bytes()[:kept])
    said = complaint(f"wds:{tmp_path}", kind=BadImageError)
    assert f"{path} is no tar, or is cut off" in said


def test_a_tar_whose_middle_is_overwritten_is_no_shorter_one(tmp_path):
    path = write(tmp_path / "train.tar", sample("a", 1, 0) + sample("b", 2, 1))
    content = bytearray(path.read_bytes())
    content[2048:2100] = b"x" * 52
    path.write_bytes(content)
    assert "no tar, or is cut off" in complaint(f"wds:{tmp_path}", kind=BadImageError)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no tar at all" * 100, id="text"),
        # A fixed time, or two test processes would make two files, and two names.
        pytest.param(gzip.compress(b"x", mtime=0), id="gzip"),
        pytest.param(b"\0" * 10_240, id="zeros"),
    ],
)
def test_what_is_no_tar_or_an_empty_one_is_refused(content, tmp_path):
    (tmp_path / "train.tar").write_bytes(content)
    assert str(tmp_path / "train.tar") in complaint(f"wds:{tmp_path}", kind=BadImageError)


def test_a_broken_image_is_named_with_its_shard_and_others_are_read(tmp_path):
    write(tmp_path / "train.tar", [*sample("a", 1, 0), ("b.png", b"no image"), ("b.cls", b"0")])
    images = load_dataset(f"wds:{tmp_path}").split("train")
    assert images.read(0).getpixel((0, 0)) == pixel(1)
    with pytest.raises(
        BadImageError, match=r"b in .*train\.tar is no image that can be read \(can"
    ):
        images.read(1)


def test_a_missing_shard_is_named(tmp_path):
    two_splits(tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    said = complaint(f"wds:{tmp_path}/train-{{000000..000002}}.tar", kind=MissingDatasetError)
    assert f"there is no shard {tmp_path}/train-000001.tar" in said


@pytest.mark.parametrize("name", ["", "/gone", "/gone-*.tar", "/{9..3}.tar"])
def test_no_shards_at_all_is_said(name, tmp_path):
    assert "Check the path" in complaint(f"wds:{tmp_path}{name}", kind=MissingDatasetError)


@pytest.mark.parametrize("address", ["https://x.org/train-0.tar", "s3://b/t.tar", "pipe:cat t.tar"])
def test_remote_shards_are_refused(address):
    assert "Fetch them first" in complaint(f"wds:{address}", kind=MissingDatasetError)


def test_an_empty_pattern_is_refused():
    with pytest.raises(UnknownNameError, match="wds: names no shards"):
        load_dataset("wds:")


def test_a_split_that_is_not_there_is_refused(tmp_path):
    two_splits(tmp_path)
    complaint(f"wds:{tmp_path}", "val", kind=UnknownNameError)


def test_a_pattern_may_hold_an_at_sign_and_a_transform_may_follow(tmp_path):
    root = two_splits(tmp_path / "me@home")
    name = f"wds:{root}/{{train,test}}-*.tar"
    assert split_transform(f"{name}@marks") == (f"{name}@marks", "marks")
    assert load_dataset(f"{name}@marks").transform == "marks"
    assert expand([name, f"{name}@own"]) == [name]


def test_a_pattern_may_be_relative_or_start_at_home(tmp_path, monkeypatch):
    two_splits(tmp_path / "home" / "birds")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert len(load_dataset("wds:~/birds").split("test")) == 6
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("wds:home/birds").split("test")) == 6


def test_the_fingerprint_changes_with_an_image_and_not_with_the_files_dates_or_place(tmp_path):
    def prints(root):
        return load_dataset(f"wds:{root}").split("train").fingerprint

    shard(tmp_path / "a" / "train.tar", range(3))
    shard(tmp_path / "b" / "train.tar", range(3))
    assert prints(tmp_path / "a") == prints(tmp_path / "b")
    before = prints(tmp_path / "a")
    other = sample("s/0000", 0, 0)
    other[0] = (other[0][0], png(0, "BMP"))
    write(tmp_path / "a" / "train.tar", other + sample("s/0001", 1, 1) + sample("s/0002", 2, 2))
    assert prints(tmp_path / "a") != before


def test_a_reader_survives_the_way_to_a_loader_process(tmp_path):
    two_splits(tmp_path)
    images = load_dataset(f"wds:{tmp_path}").split("train")
    there = pickle.loads(pickle.dumps(images.read))
    assert there(5).getpixel((0, 0)) == pixel(11)


def test_a_catalogue_of_ones_own_may_name_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    two_splits(tmp_path / "shards")
    (tmp_path / "catalogue.toml").write_text(
        '[datasets.mine]\nreader = "webdataset"\npath = "shards"\n'
        '[datasets.more]\nreader = "webdataset"\npath = "shards"\nsplits = ["train", "val"]\n'
    )
    assert len(load_dataset("mine").split("test")) == 6
    assert "more has no shards of val; it has train, test" in complaint("more", "val")


@pytest.mark.parametrize("label", ["3000000000", "99999999999999999999"])
def test_a_label_that_counts_no_categories_is_refused(label, tmp_path):
    write(tmp_path / "train-000000.tar", sample("a", 1, label))
    with pytest.raises(BadImageError, match="labels number the categories from 0"):
        load_dataset(f"wds:{tmp_path}").split("train")


def test_names_of_classes_that_are_no_text_are_named(tmp_path):
    write(tmp_path / "train-000000.tar", sample("a", 1, 0))
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BadImageError, match=r"classes\.txt is not UTF-8 text"):
        load_dataset(f"wds:{tmp_path}").split("train")
