"""Folders of images: their layouts, odd files, seeded splits, and what is refused by name."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from featstore.datasets.files import FileImages, file_split, image_files, load_folder
from featstore.errors import BadImageError, MissingDatasetError


def picture(seed, size=(12, 9), mode="RGB"):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def pixels(image):
    return np.asarray(image).astype(int)


def write(path, seed=0, *, kind=None, mode="RGB", size=(12, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size, mode).save(path, kind, **options)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes in all three splits, three images of each in train and two elsewhere."""
    root = tmp_path / "tree"
    for number, split in enumerate(("train", "val", "test")):
        for label, category in enumerate(("ant", "bee")):
            for i in range(3 if split == "train" else 2):
                write(root / split / category / f"{i}.png", 100 * number + 10 * label + i)
    return root


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "flat"
    for label, count in enumerate((20, 10, 3)):
        for i in range(count):
            write(root / f"class{label}" / f"{i:02}.png", 50 * label + i)
    return root


def test_a_folder_with_splits_gives_each_with_the_classes_of_its_folders(tree):
    splits = load_folder("folder:tree", tree)
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "val": 4, "test": 4}
    train = splits["train"]
    assert (train.dataset, train.name, train.categories) == ("folder:tree", "train", ("ant", "bee"))
    assert train.sample_ids == tuple(f"train/{c}/{i}.png" for c in ("ant", "bee") for i in range(3))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == np.int64
    expected = picture(11)  # class 1, image 1
    np.testing.assert_array_equal(np.asarray(train.read(4)), np.asarray(expected))


def test_labels_follow_the_code_points_of_names_with_spaces_and_unicode(tmp_path):
    names = ["zebra", "Zebra", "a b", "a_b", "Ökapi", "蝴蝶", "a", "10", "9", "@own", "50% #1"]
    for i, name in enumerate(names):
        write(tmp_path / "train" / name / "one image.png", i)
    train = load_folder("folder:x", tmp_path)["train"]
    by_code_point = sorted(names, key=lambda name: [ord(letter) for letter in name])
    assert list(train.categories) == by_code_point
    for row, sample in enumerate(train.sample_ids):
        category = sample.split("/")[1]
        assert train.categories[train.labels[row]] == category
        np.testing.assert_array_equal(
            np.asarray(train.read(row)), np.asarray(picture(names.index(category)))
        )


def test_a_test_split_that_lacks_a_class_keeps_the_labels_of_train(tree):
    shutil.rmtree(tree / "test" / "ant")
    test = load_folder("folder:tree", tree)["test"]
    assert test.labels.tolist() == [1, 1]
    assert test.categories == ("ant", "bee")


@pytest.mark.parametrize(
    "name", ["a.png", "a.PNG", "a.jpg", "a.JPG", "a.JPEG", "a.Jpeg", "a.bmp", "a.webp", "a.TIF"]
)
def test_an_image_is_found_by_its_extension_in_any_case(tmp_path, name):
    write(tmp_path / "c" / name, kind="PNG")
    assert image_files(tmp_path) == [tmp_path / "c" / name]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_an_image_is_decoded_by_its_content_whatever_its_extension(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path / "a.jpg", 3, kind=kind, **options)
    read = FileImages((str(path),))(0)
    assert read.mode == "RGB"
    if kind == "GIF":  # 256 colours hold 108 pixels exactly, but Pillow makes the palette
        assert np.abs(pixels(read) - pixels(picture(3))).max() < 40
    else:
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture(3)))


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("L", "PNG", {}),
        ("L", "JPEG", {"quality": 95}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("P", "PNG", {"transparency": bytes(range(0, 256))}),
        ("P", "GIF", {"transparency": 3}),
        ("LA", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("CMYK", "JPEG", {"quality": 95}),
        ("CMYK", "TIFF", {}),
    ],
)
def test_every_colour_mode_becomes_rgb_without_a_warning(tmp_path, mode, kind, options):
    path = write(tmp_path / "a.jpg", 5, kind=kind, mode=mode, size=(16, 16), **options)
    read = FileImages((str(path),))(0)
    assert (read.mode, read.size) == ("RGB", (16, 16))
    original = picture(5, (16, 16), mode).convert("RGB")
    assert np.abs(pixels(read) - pixels(original)).mean() < (25 if kind == "JPEG" else 1e-9)


def test_hidden_files_are_ignored_and_others_that_are_no_images_are_named(tmp_path, caplog):
    write(tmp_path / "train" / "ant" / "a.png")
    write(tmp_path / "train" / "ant" / ".hidden.png")
    write(tmp_path / "train" / ".git" / "b.png")
    write(tmp_path / "train" / "__MACOSX" / "ant" / "c.png")
    write(tmp_path / "train" / "ant" / ".cache" / "d.png")
    for name in ("notes.txt", "Thumbs.db", "labels.csv", "zz.tmp"):
        (tmp_path / "train" / "ant" / name).write_text("no image")
    with caplog.at_level(logging.WARNING):
        train = load_folder("folder:x", tmp_path)["train"]
    assert train.sample_ids == ("train/ant/a.png",)
    assert train.categories == ("ant",)
    assert "notes.txt" in caplog.text
    assert "labels.csv" in caplog.text
    assert "and 1 more" in caplog.text  # three are named
    assert ".hidden.png" not in caplog.text


def test_images_deeper_in_a_class_folder_belong_to_it(tmp_path):
    write(tmp_path / "train" / "ant" / "x" / "y" / "a.png")
    write(tmp_path / "train" / "ant" / "b.png")
    train = load_folder("folder:x", tmp_path)["train"]
    assert train.sample_ids == ("train/ant/b.png", "train/ant/x/y/a.png")
    assert train.categories == ("ant",)


def test_a_class_folder_may_be_a_link(tmp_path):
    write(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root" / "train").mkdir(parents=True)
    (tmp_path / "root" / "train" / "ant").symlink_to(tmp_path / "elsewhere")
    assert len(load_folder("folder:x", tmp_path / "root")["train"]) == 1


def test_val_is_scored_where_there_is_no_test_and_that_is_said(tree, caplog):
    expected = load_folder("folder:tree", tree)["val"]
    shutil.rmtree(tree / "test")
    with caplog.at_level(logging.WARNING):
        splits = load_folder("folder:tree", tree)
    assert set(splits) == {"train", "test"}
    assert splits["test"].sample_ids == expected.sample_ids
    assert splits["test"].name == "test"
    assert "scored as test" in caplog.text
    assert str(tree) in caplog.text


def test_a_flat_folder_is_split_class_by_class_and_that_is_said(flat, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load_folder("folder:flat", flat)
    train, test = splits["train"], splits["test"]
    assert np.bincount(test.labels).tolist() == [4, 2, 1]  # a fifth of 20, of 10 and of 3
    assert np.bincount(train.labels).tolist() == [16, 8, 2]
    files = {path.relative_to(flat).as_posix() for path in flat.rglob("*.png")}
    assert {*train.sample_ids} | {*test.sample_ids} == files
    assert not {*train.sample_ids} & {*test.sample_ids}
    assert train.categories == test.categories == ("class0", "class1", "class2")
    assert "26 images into train and 7 into test" in caplog.text


def test_the_split_of_a_flat_folder_is_drawn_once_for_all(flat, tmp_path):
    first = load_folder("folder:flat", flat)
    np.random.seed(5)  # the global state must play no part
    shutil.copytree(flat, tmp_path / "copy")
    again = load_folder("folder:copy", tmp_path / "copy")
    assert first["test"].sample_ids == again["test"].sample_ids
    # Written down: a release that drew otherwise would tear stored features from their splits.
    assert first["test"].sample_ids[:4] == tuple(f"class0/{i:02}.png" for i in (2, 3, 11, 13))


def test_a_class_of_one_image_goes_to_train(tmp_path):
    for name in ("one/a.png", "two/a.png", "two/b.png"):
        write(tmp_path / name)
    splits = load_folder("folder:x", tmp_path)
    assert np.bincount(splits["train"].labels).tolist() == [1, 1]
    assert splits["test"].labels.tolist() == [1]


def test_a_missing_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDatasetError) as caught:
        load_folder("folder:nowhere", tmp_path.relative_to(tmp_path) / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "Check the path" in str(caught.value)


@pytest.mark.parametrize("name", ["", "train", "train/ant"])
def test_a_folder_without_any_image_is_refused_and_the_layouts_are_told(tmp_path, name):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(BadImageError, match=r"holds no images\. Expected .*CLASS/IMAGE\.png"):
        load_folder("folder:x", tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_an_image_is_named(tree, split):
    (tree / split / "ant" / "note.txt").write_text("no image")
    for path in (tree / split / "ant").glob("*.png"):
        path.unlink()
    with pytest.raises(BadImageError) as caught:
        load_folder("folder:tree", tree)
    assert str(tree / split / "ant") in str(caught.value)
    assert "1 of 2 classes are empty" in str(caught.value)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_named(tree, split):
    write(tree / split / "wasp" / "a.png")
    with pytest.raises(BadImageError) as caught:
        load_folder("folder:tree", tree)
    for part in ("'wasp'", str(tree / split), str(tree / "train")):
        assert part in str(caught.value)


@pytest.mark.parametrize("left", ["val", "test"])
def test_held_out_images_without_train_do_not_pass_for_a_class(tree, left):
    for name in {"train", "val", "test"} - {left}:
        shutil.rmtree(tree / name)
    with pytest.raises(BadImageError, match=rf"has {left}/ and no train/"):
        load_folder("folder:tree", tree)


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test/a.png", "test/b.png", "rest/a.png", "rest/b.png"):
        write(tmp_path / name)
    assert load_folder("folder:x", tmp_path)["train"].categories == ("rest", "test")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_named_when_it_is_read_and_not_before(tree, keep):
    path = write(tree / "train" / "ant" / "cut.jpg", size=(64, 64), quality=95)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    train = load_folder("folder:tree", tree)["train"]
    position = train.sample_ids.index("train/ant/cut.jpg")
    with pytest.raises(BadImageError) as caught:
        train.read(position)
    assert str(path) in str(caught.value)
    assert "truncated" in str(caught.value)
    assert "--skip-errors" in str(caught.value)
    assert train.read(0).size == (12, 9)  # its neighbours are none the worse


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named_when_it_is_read(tree, content):
    path = tree / "train" / "ant" / "0.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        load_folder("folder:tree", tree)["train"].read(0)
    assert str(path) in str(caught.value)
    assert "--skip-errors" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_damage_to_any_byte_raises_nothing_but_the_error_that_names_the_file(tmp_path, kind):
    path = write(tmp_path / "a.jpg", kind=kind)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.integers(min(80, len(whole)))] = rng.integers(256)  # headers sit there
        path.write_bytes(broken[: rng.integers(len(whole) // 2, len(whole) + 1)])
        try:
            FileImages((str(path),))(0)
        except BadImageError as error:
            messages.append(str(error))
        except Image.DecompressionBombWarning:  # an absurd size; a warning to users, an error here
            messages.append(str(path))
    assert len(messages) > 5
    assert all(str(path) in message for message in messages)


def test_a_listed_file_that_is_absent_is_named(tmp_path):
    here, gone = write(tmp_path / "a.png"), tmp_path / "gone.png"
    with pytest.raises(MissingDatasetError) as caught:
        file_split("some", "test", tmp_path, [here, gone], [0, 0], ["x"])
    assert str(gone) in str(caught.value)
    assert "some test" in str(caught.value)


def fingerprint(root):
    return load_folder(f"folder:{root}", root)["train"].fingerprint


def add(root):
    write(root / "train" / "bee" / "extra.png")


def rename(root):
    (root / "train" / "bee" / "0.png").rename(root / "train" / "bee" / "00.png")


def resize(root):
    write(root / "train" / "bee" / "0.png", 10, size=(24, 18))


def relabel(root):
    (root / "train" / "bee" / "2.png").rename(root / "train" / "ant" / "3.png")


def rename_class(root):
    for split in ("train", "val", "test"):
        (root / split / "bee").rename(root / split / "bumblebee")


def remove(root):
    (root / "train" / "bee" / "0.png").unlink()


@pytest.mark.parametrize("change", [add, rename, resize, relabel, rename_class, remove])
def test_the_fingerprint_changes_with_the_images_their_names_and_their_labels(tree, change):
    before = fingerprint(tree)
    change(tree)
    assert fingerprint(tree) != before


def test_the_fingerprint_of_labels_alone_differs(tree):
    paths = sorted((tree / "train" / "ant").glob("*.png"))
    one, other = (file_split("d", "train", tree, paths, ls, "ab") for ls in ([0, 0, 1], [0, 1, 1]))
    assert one.content == other.content
    assert one.fingerprint != other.fingerprint


def test_the_fingerprint_is_the_same_wherever_the_folder_lies(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "deep" / "other name")
    assert fingerprint(tree) == fingerprint(tmp_path / "deep" / "other name")


def test_sixteen_bit_greys_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, axis=0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    shown = np.asarray(FileImages((str(tmp_path / "deep.png"),))(0))
    np.testing.assert_array_equal(shown[..., 0], ramp >> 8)
    assert shown.shape == (8, 64, 3)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_pixels_of_no_known_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "odd.tiff")
    with pytest.raises(BadImageError, match=r"odd.tiff has . pixels of no known range"):
        FileImages((str(tmp_path / "odd.tiff"),))(0)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(BadImageError, match=r"gone.png is a link that leads nowhere"):
        image_files(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, which is how it should be
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0 and then nothing that it should be", None])
def test_files_are_read_as_they_lie_whatever_their_exif_says(tmp_path, exif):
    # As torchvision's readers do: the studies' images were never turned.
    path = tmp_path / "a.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(3).save(path, quality=95, exif=exif or turned)
    plain = tmp_path / "b.jpg"
    picture(3).save(plain, quality=95)
    found = FileImages((str(path),))(0)
    assert found.size == (12, 9)
    np.testing.assert_array_equal(pixels(found), pixels(Image.open(plain).convert("RGB")))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Train", "Test"), "has Test, Train, which read like splits"),
        (("training", "validation"), "has training, validation, which"),
        (("train", "valid"), "has valid, which read like splits. Name them train, val and test"),
    ],
)
def test_splits_under_other_names_are_not_taken_for_classes(tmp_path, names, said):
    for name in names:
        for category in ("ant", "bee"):
            write(tmp_path / name / category / "0.png")
    with pytest.raises(BadImageError, match=said):
        load_folder("folder:x", tmp_path)


def test_classes_may_have_the_names_of_splits(tmp_path):
    for name in ("Train", "Plane"):
        for i in range(5):
            write(tmp_path / name / f"{i}.png", i)
    assert load_folder("folder:x", tmp_path)["train"].categories == ("Plane", "Train")
