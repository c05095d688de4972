"""Miniatures of the sets that torchvision fetches, in the formats they have on disk."""

import gzip
import json
import pickle
import re
import socket
from dataclasses import replace

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image
from scipy.io import savemat

from featstore.datasets import (
    Entry,
    catalogue,
    cifar,
    listed_sets,
    load,
    load_dataset,
    torchvision_sets,
)
from featstore.errors import (
    BadImageError,
    CatalogueError,
    FeatStoreError,
    MissingDatasetError,
    UnknownNameError,
)

SOURCES = [*torchvision_sets.SOURCES, *listed_sets.SOURCES, *cifar.SOURCES]

CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip
CIFAR100_CLASSES = [f"fine {i:02}" for i in range(100)]
CARS = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012"]


@pytest.fixture(autouse=True)
def _miniature(monkeypatch):
    """Miniatures have fewer classes than were published, which else is refused."""
    small = {name: replace(entry, categories=0) for name, entry in catalogue().items()}
    monkeypatch.setattr(load, "catalogue", lambda: small)


def colour(seed):
    """RGB of an image's only colour: what it is recognised by after JPEG or PNG."""
    return tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))


def write(path, seed, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (16, 8), colour(seed))
    image.save(path, kind, **({} if path.suffix in (".png", ".ppm") else {"quality": 95}))


def array(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def lines(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n")


def mnist(root, monkeypatch, name="MNIST", **_):
    """Big-endian IDX files: magic 2051 before images, 2049 before labels."""
    expected = {}
    for split, prefix, n, seed in (("train", "train", 30, 1), ("test", "t10k", 12, 2)):
        images, labels = array(seed, n, 28, 28), np.arange(n, dtype=np.uint8)[::-1] % 10
        raw = root / name / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        head = np.array([2051, n, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = np.array([2049, n], ">i4").tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"left by download"))
        expected[split] = labels, np.repeat(images[..., None], 3, axis=3)
    return expected, list(getattr(tv, name).classes)


def fashion_mnist(root, monkeypatch):
    return mnist(root, monkeypatch, "FashionMNIST")


def no_md5(monkeypatch, owner, **lists):
    # torchvision compares each file with the md5 of the real one, which no miniature has.
    for name, files in lists.items():
        monkeypatch.setattr(owner, name, files)


def pickled(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar10(root, monkeypatch):
    """Five training batches and one of test; rows of 1024 red, 1024 green, 1024 blue."""
    names = [f"data_batch_{i}" for i in range(1, 6)]
    folder = root / "cifar-10-batches-py"
    expected = {}
    for split, files in (("train", names), ("test", ["test_batch"])):
        rows, labels = array(len(files), 4 * len(files), 3072), np.arange(4 * len(files)) * 3 % 10
        for i, file in enumerate(files):
            part = slice(4 * i, 4 * i + 4)
            pickled(folder / file, data=rows[part], labels=labels[part].tolist(), batch_label=file)
        expected[split] = labels, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    pickled(folder / "batches.meta", label_names=CIFAR10_CLASSES)
    return expected, CIFAR10_CLASSES


def cifar100(root, monkeypatch):
    folder = root / "cifar-100-python"
    expected = {}
    for split, n in (("train", 12), ("test", 5)):
        rows, labels = array(n, n, 3072), np.arange(n) * 17 % 100
        pickled(folder / split, data=rows, fine_labels=labels.tolist(),
                coarse_labels=(labels % 20).tolist())  # fmt: skip
        expected[split] = labels, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    pickled(folder / "meta", fine_label_names=CIFAR100_CLASSES, coarse_label_names=["x"] * 20)
    return expected, CIFAR100_CLASSES


def svhn(root, monkeypatch):
    """MATLAB files; X is (32, 32, 3, n) and the digit 0 has the label 10."""
    expected = {}
    for split, n in (("train", 20), ("test", 11)):
        images = array(n, n, 32, 32, 3)
        raw = (np.arange(n) % 10 + 1).astype(np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": raw[:, None]})
        expected[split] = raw % 10, images
    no_md5(monkeypatch, tv.SVHN, split_list={
        split: ["", f"{split}_32x32.mat", None] for split in ("train", "test")
    })  # fmt: skip
    return expected, [str(i) for i in range(10)]


def stl10(root, monkeypatch):
    """Column-major images of 96 px, channel by channel; labels from 1."""
    folder = root / "stl10_binary"
    expected = {}
    for split, n in (("train", 10), ("test", 11)):
        images, raw = array(n, n, 96, 96, 3), (np.arange(n) % 10 + 1).astype(np.uint8)
        folder.mkdir(exist_ok=True)
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(raw.tobytes())
        expected[split] = raw - 1, images
    lines(folder / "class_names.txt", CIFAR10_CLASSES)
    no_md5(monkeypatch, tv.STL10, train_list=[["train_X.bin", None], ["train_y.bin", None]],
           test_list=[["test_X.bin", None], ["test_y.bin", None]])  # fmt: skip
    return expected, CIFAR10_CLASSES


def dtd(root, monkeypatch):
    """Lists of `class/file`, of ten partitions of which the first is taken."""
    expected, base = {}, root / "dtd" / "dtd"
    for number, split in enumerate(("train", "val", "test")):
        files = [
            f"{c}/{c}_{10 * number + i:04}.jpg" for c in ("zigzagged", "banded") for i in (1, 2)
        ]
        lines(base / "labels" / f"{split}1.txt", files)
        lines(base / "labels" / f"{split}2.txt", files[:1])
        for i, file in enumerate(files):
            write(base / "images" / file, 10 * number + i)
        seeds = [10 * number + i for i in range(4)]
        expected[split] = [1, 1, 0, 0], seeds, [f"dtd/dtd/images/{f}" for f in files]
    return expected, ["banded", "zigzagged"]


def flowers102(root, monkeypatch):
    """Labels 1..102 by image number, and three lists of image numbers; test is the longest."""
    base = root / "flowers-102"
    numbers = {"train": [7, 1], "val": [3, 2], "test": [6, 4, 5, 8]}
    labels = np.array([77, 1, 1, 102, 77, 102, 1, 77], np.uint8)
    for number in range(1, 9):
        write(base / "jpg" / f"image_{number:05}.jpg", number)
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    savemat(base / "setid.mat", {keys[s]: np.array([n], np.uint16) for s, n in numbers.items()})
    no_md5(monkeypatch, tv.Flowers102,
           _file_dict={k: (v[0], None) for k, v in tv.Flowers102._file_dict.items()})  # fmt: skip
    expected = {
        split: (
            [int(labels[n - 1]) - 1 for n in ns],
            ns,
            [f"flowers-102/jpg/image_{n:05}.jpg" for n in ns],
        )
        for split, ns in numbers.items()
    }
    return expected, tv.Flowers102.classes


def food101(root, monkeypatch):
    """Lists without extension; classes.txt is sorted but for cheesecake before cheese_plate."""
    base, expected = root / "food-101", {}
    lines(base / "meta" / "classes.txt", ["apple_pie", "cheesecake", "cheese_plate"])
    for number, split in enumerate(("train", "test")):
        listed = {c: [f"{c}/{10 * number + i}" for i in range(3)] for c in
                  ("cheesecake", "apple_pie", "cheese_plate")}  # fmt: skip
        lines(base / "meta" / f"{split}.json", [json.dumps(listed)])
        files = [file for members in listed.values() for file in members]
        lines(base / "meta" / f"{split}.txt", files)
        seeds = [100 * number + i for i in range(9)]
        for file, seed in zip(files, seeds, strict=True):
            write(base / "images" / f"{file}.jpg", seed)
        labels = [1, 1, 1, 0, 0, 0, 2, 2, 2]
        expected[split] = labels, seeds, [f"food-101/images/{f}.jpg" for f in files]
    return expected, ["apple_pie", "cheesecake", "cheese_plate"]


def oxford_pets(root, monkeypatch):
    """Lines of image, class from 1, species and breed; the list is sorted ignoring case."""
    base, expected = root / "oxford-iiit-pet", {}
    for number, (ours, theirs) in enumerate((("train", "trainval"), ("test", "test"))):
        rows = [(f"{c}_{10 * number + i}", label) for i in (1, 2) for c, label in
                (("Abyssinian", 1), ("american_bulldog", 2), ("Egyptian_Mau", 3))]  # fmt: skip
        lines(base / "annotations" / f"{theirs}.txt", [f"{n} {label} 1 1" for n, label in rows])
        seeds = [100 * number + i for i in range(6)]
        for (name, _), seed in zip(rows, seeds, strict=True):
            # Several of the real files are other formats under the name of a JPEG.
            write(base / "images" / f"{name}.jpg", seed, "GIF" if seed == 102 else None)
        expected[ours] = (
            [label - 1 for _, label in rows],
            seeds,
            [f"oxford-iiit-pet/images/{name}.jpg" for name, _ in rows],
        )
    return expected, ["Abyssinian", "American Bulldog", "Egyptian Mau"]


def fgvc_aircraft(root, monkeypatch):
    """Names with spaces and slashes; ids keep their leading zeros; label = line of variants.txt."""
    base, expected = root / "fgvc-aircraft-2013b" / "data", {}
    variants = ["707-320", "Boeing 717", "F-16A/B"]
    lines(base / "variants.txt", variants)
    for number, split in enumerate(("train", "val", "test")):
        rows = [(f"{100 * number + i:07}", i) for i in (2, 0, 1)]
        lines(base / f"images_variant_{split}.txt", [f"{n} {variants[i]}" for n, i in rows])
        for name, i in rows:
            write(base / "images" / f"{name}.jpg", 100 * number + i)
        expected[split] = (
            [2, 0, 1],
            [100 * number + i for i in (2, 0, 1)],
            [f"fgvc-aircraft-2013b/data/images/{n}.jpg" for n, _ in rows],
        )
    return expected, variants


def stanford_cars(root, monkeypatch):
    """MATLAB struct arrays; `class` from 1 as uint8; file numbers restart in the test folder."""
    base, expected = root / "stanford_cars", {}
    meta = np.empty(len(CARS), object)
    meta[:] = CARS
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": meta[None]})
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for number, (split, place) in enumerate(places.items()):
        classes = [3, 1, 2, 3]
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        rows = np.zeros((1, 4), [(name, object) for name in fields])
        for i, label in enumerate(classes):
            rows[0, i] = (*(np.uint16(9),) * 4, np.uint8(label), f"{i + 1:05}.jpg")
            write(base / f"cars_{split}" / f"{i + 1:05}.jpg", 10 * number + i)
        savemat(base / place, {"annotations": rows})
        names = [f"stanford_cars/cars_{split}/{i + 1:05}.jpg" for i in range(4)]
        expected[split] = [2, 0, 1, 2], [10 * number + i for i in range(4)], names
    return expected, CARS


def gtsrb(root, monkeypatch):
    """Training by folders of numbers, test by a CSV with semicolons."""
    base = root / "gtsrb"
    names = [f"GTSRB/Training/{label:05}/{i:05}.ppm" for label in range(3) for i in range(2)]
    for seed, name in enumerate(names):
        write(base / name, seed)
    rows = [("00000.ppm", 2), ("00001.ppm", 0), ("00002.ppm", 1)]
    lines(base / "GT-final_test.csv", ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
          + [f"{name};16;8;5;5;10;10;{label}" for name, label in rows])  # fmt: skip
    for seed, (name, _) in enumerate(rows):
        write(base / "GTSRB" / "Final_Test" / "Images" / name, 10 + seed)
    test = [f"gtsrb/GTSRB/Final_Test/Images/{name}" for name, _ in rows]
    return {
        "train": ([0, 0, 1, 1, 2, 2], range(6), [f"gtsrb/{name}" for name in names]),
        "test": ([2, 0, 1], [10, 11, 12], test),
    }, ["0", "1", "2"]


def by_folder(root, base, folders, classes, suffix):
    expected = {}
    for number, (split, folder) in enumerate(folders.items()):
        names = [f"{base}/{folder}/{c}/{i}{suffix}" for c in classes for i in (1, 2)]
        seeds = [100 * number + i for i in range(len(names))]
        for name, seed in zip(names, seeds, strict=True):
            write(root / name, seed)
        expected[split] = np.repeat(range(len(classes)), 2), seeds, names
    return expected, classes


def country211(root, monkeypatch):
    folders = {"train": "train", "val": "valid", "test": "test"}
    return by_folder(root, "country211", folders, ["AD", "AE", "ZW"], ".jpg")


def rendered_sst2(root, monkeypatch):
    folders = {"train": "train", "val": "valid", "test": "test"}
    return by_folder(root, "rendered-sst2", folders, ["negative", "positive"], ".png")


def sun397(root, monkeypatch):
    """Classes of one or two levels in ClassName.txt; the lists start each line with a slash."""
    base = root / "SUN397"
    classes = ["abbey", "apartment_building/outdoor", "jail/indoor", "jail_cell"]
    lines(base / "ClassName.txt", [f"/{c[0]}/{c}" for c in classes])
    files = [f"{c[0]}/{c}/sun_{letter}.jpg" for c in classes for letter in "zyxw"]
    for seed, file in enumerate(files):
        write(base / file, seed, "PNG" if seed == 3 else "GIF" if seed == 5 else None)
    train = [0, 5, 4, 8, 12, 13]
    test = [15, 2, 6, 9]
    for name, rows in (("Training", train), ("Testing", test)):
        (base / f"{name}_01.txt").write_text("\r\n".join(f"/{files[i]}" for i in rows))
        lines(base / f"{name}_02.txt", [f"/{files[0]}"])
    expected = {
        split: ([i // 4 for i in rows], rows, [f"SUN397/{files[i]}" for i in rows])
        for split, rows in (("train", train), ("test", test))
    }
    return expected, classes


MINIATURES = {
    make.__name__: make
    for make in (
        cifar10, cifar100, country211, dtd, fashion_mnist, fgvc_aircraft, flowers102, food101,
        gtsrb, mnist, oxford_pets, rendered_sst2, stanford_cars, stl10, sun397, svhn,
    )
}  # fmt: skip
IN_MEMORY = {"cifar10", "cifar100", "fashion_mnist", "mnist", "stl10", "svhn"}
LISTED = set(MINIATURES) - IN_MEMORY - {"country211", "rendered_sst2"}  # whose folders list them


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_is_read_with_its_official_splits_labels_names_and_pixels(
    name, tmp_path, monkeypatch
):
    expected, categories = MINIATURES[name](tmp_path, monkeypatch)
    dataset = load_dataset(name, data_root=tmp_path)
    assert set(dataset.splits) == set(expected)
    for split, (labels, pixels, *ids) in expected.items():
        images = dataset.split(split)
        assert (images.dataset, images.name) == (name, split)
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == list(labels)
        assert list(images.categories) == categories
        assert list(images.sample_ids) == (
            ids[0] if ids else [f"{split}/{i}" for i in range(len(labels))]
        )
        for row, wanted in enumerate(pixels):
            image = images.read(row)
            assert image.mode == "RGB"
            if name in IN_MEMORY:
                np.testing.assert_array_equal(np.asarray(image), wanted)
            else:
                difference = np.asarray(image).astype(int) - np.array(colour(wanted))
                assert np.abs(difference).max() <= 4  # JPEG's


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_survives_the_way_to_a_loader_process(name, tmp_path, monkeypatch):
    MINIATURES[name](tmp_path, monkeypatch)
    images = load_dataset(name, data_root=tmp_path).split("test")
    there = pickle.loads(pickle.dumps(images.read))
    np.testing.assert_array_equal(np.asarray(there(1)), np.asarray(images.read(1)))
    again = load_dataset(name, data_root=tmp_path).split("test")
    assert again.fingerprint == images.fingerprint
    assert load_dataset(name, data_root=tmp_path).split("train").fingerprint != images.fingerprint


def eurosat(root):
    classes = ["AnnualCrop", "Forest", "SeaLake"]
    names = [f"{c}/{c}_{i}.jpg" for c in classes for i in range(1, 11)]
    for seed, name in enumerate(names):
        write(root / "eurosat" / "2750" / name, seed)
    return classes, {f"eurosat/2750/{name}": seed for seed, name in enumerate(names)}


def test_eurosat_has_no_official_split_so_a_fifth_of_each_class_is_drawn(tmp_path):
    classes, seeds = eurosat(tmp_path)
    dataset = load_dataset("eurosat", data_root=tmp_path)
    train, test = dataset.split("train"), dataset.split("test")
    assert list(dataset.splits) == ["train", "test"]
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert {*train.sample_ids} | {*test.sample_ids} == set(seeds)
    for images in (train, test):
        assert list(images.categories) == classes
        for row, sample in enumerate(images.sample_ids):
            assert classes[images.labels[row]] == sample.split("/")[2]
            difference = np.asarray(images.read(row)).astype(int) - np.array(colour(seeds[sample]))
            assert np.abs(difference).max() <= 4
    assert load_dataset("eurosat", data_root=tmp_path).split("test").fingerprint == test.fingerprint


@pytest.mark.parametrize("place", ["Partitions", "SUN397/Partitions"])
def test_sun397_finds_its_lists_beside_the_images_as_well(tmp_path, monkeypatch, place):
    expected, _ = sun397(tmp_path, monkeypatch)
    (tmp_path / place).mkdir()
    for path in (tmp_path / "SUN397").glob("*ing_*.txt"):
        path.rename(tmp_path / place / path.name)
    images = load_dataset("sun397", data_root=tmp_path).split("test")
    assert list(images.sample_ids) == expected["test"][2]


def test_sun397_without_its_lists_says_where_they_belong(tmp_path, monkeypatch):
    sun397(tmp_path, monkeypatch)
    (tmp_path / "SUN397" / "Testing_01.txt").unlink()
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("sun397", data_root=tmp_path).split("test")
    assert f"{tmp_path / 'SUN397' / 'Testing_01.txt'} is missing" in str(caught.value)
    assert "SUN/download/Partitions.zip" in str(caught.value)


def test_the_partition_comes_from_the_path_below_the_root_and_not_from_the_root(
    tmp_path, monkeypatch
):
    root = tmp_path / "a" / "abbey"  # a root that looks like a class
    root.mkdir(parents=True)
    expected, _ = sun397(root, monkeypatch)
    assert (
        load_dataset("sun397", data_root=root).split("train").labels.tolist()
        == (expected["train"][0])
    )


@pytest.mark.parametrize("name", SOURCES)
def test_a_set_that_is_not_on_disk_says_where_it_was_looked_for_and_how_to_get_it(name, tmp_path):
    how = (
        "place its files there by hand"
        if name == "stanford_cars"
        else f"featstore datasets {name} --download --data-root {tmp_path / 'data sets'}"
    )
    root = tmp_path / "data sets"
    dataset = load_dataset(name, data_root=root)  # asking for the name alone touches no disk
    for split in dataset.splits:
        with pytest.raises(MissingDatasetError) as caught:
            dataset.split(split)
        assert str(caught.value).startswith(f"{name} is not below {root}")
        assert how in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not root.exists()


@pytest.mark.parametrize("name", sorted(LISTED))
def test_a_listed_image_that_is_absent_is_named(name, tmp_path, monkeypatch):
    expected, _ = MINIATURES[name](tmp_path, monkeypatch)
    gone = expected["test"][2][-1]
    (tmp_path / gone).unlink()
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset(name, data_root=tmp_path).split("test")
    assert gone.removeprefix("SUN397/") in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("FEATSTORE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "svhn", "dtd", "sun397", "eurosat"])
@pytest.mark.usefixtures("no_network")
def test_a_download_that_fails_says_so(name, tmp_path):
    dataset = load_dataset(name, data_root=tmp_path / "new", download=True)
    with pytest.raises(MissingDatasetError) as caught:
        dataset.split("train")
    assert re.match(f"{name}: .* could not be fetched .*Name or service not", str(caught.value))
    assert re.search(f"place it at {tmp_path / 'new'}/.* by hand$", str(caught.value))


@pytest.mark.usefixtures("no_network")
def test_where_the_lists_of_sun397_are_missing_they_alone_are_fetched(tmp_path, monkeypatch):
    sun397(tmp_path, monkeypatch)
    (tmp_path / "SUN397" / "Training_01.txt").unlink()
    with pytest.raises(MissingDatasetError, match=r"Partitions.zip could not be fetched"):
        load_dataset("sun397", data_root=tmp_path, download=True).split("train")


@pytest.mark.parametrize("module", [torchvision_sets, listed_sets, cifar])
def test_the_catalogue_names_what_can_be_read_and_nothing_else(module, tmp_path):
    reader = {torchvision_sets: "torchvision", listed_sets: "listed", cifar: "cifar"}[module]
    read = {name for name, entry in catalogue().items() if entry.reader == reader}
    assert read == set(module.SOURCES)
    with pytest.raises(CatalogueError, match=f"mine: the reader '{reader}' reads .*, "):
        module.read(Entry("mine", reader), "train", tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_train_and_test_are_among_the_splits_and_no_other_can_be_asked_for(name, tmp_path):
    dataset = load_dataset(name, data_root=tmp_path)
    assert {"train", "test"} <= set(dataset.splits) <= {"train", "val", "test"}
    with pytest.raises(UnknownNameError, match=f"{name} has no split 'extra'; it has train, "):
        dataset.split("extra")


def test_a_root_may_start_with_the_home_folder(tmp_path, monkeypatch):
    expected, _ = dtd(tmp_path / "home" / "sets", monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    images = load_dataset("dtd", data_root="~/sets").split("val")
    assert list(images.sample_ids) == expected["val"][2]


def test_a_root_may_be_relative(tmp_path, monkeypatch):
    expected, _ = dtd(tmp_path / "sets", monkeypatch)
    monkeypatch.chdir(tmp_path)
    images = load_dataset("dtd", data_root="sets").split("val")
    assert list(images.sample_ids) == expected["val"][2]


TORCHVISION = {
    "cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100, "dtd": tv.DTD, "fgvc_aircraft": tv.FGVCAircraft,
    "food101": tv.Food101, "stanford_cars": tv.StanfordCars,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_images_and_names_of_their_classes_are_those_that_torchvision_reads(
    name, tmp_path, monkeypatch
):
    MINIATURES[name](tmp_path, monkeypatch)
    no_md5(monkeypatch, tv.CIFAR10, train_list=[[f"data_batch_{i}", None] for i in range(1, 6)],
           test_list=[["test_batch", None]], meta={**tv.CIFAR10.meta, "md5": None})  # fmt: skip
    no_md5(monkeypatch, tv.CIFAR100, train_list=[["train", None]], test_list=[["test", None]],
           meta={**tv.CIFAR100.meta, "md5": None})  # fmt: skip
    split = {"train": False} if name.startswith("cifar") else {"split": "test"}
    theirs = TORCHVISION[name](str(tmp_path), **split)
    ours = load_dataset(name, data_root=tmp_path).split("test")
    assert len(ours) == len(theirs) > 0
    for row, (image, label) in enumerate(theirs):
        assert ours.categories[ours.labels[row]] == theirs.classes[label]
        np.testing.assert_array_equal(np.asarray(ours.read(row)), np.asarray(image.convert("RGB")))


def test_pets_have_the_names_and_labels_that_torchvision_reads(tmp_path, monkeypatch):
    oxford_pets(tmp_path, monkeypatch)
    theirs = tv.OxfordIIITPet(
        str(tmp_path), split="test"
    )  # asked for an image, it leaves a file open
    ours = load_dataset("oxford_pets", data_root=tmp_path).split("test")
    assert ours.labels.tolist() == theirs._labels
    assert list(ours.categories) == theirs.classes
    assert [tmp_path / sample for sample in ours.sample_ids] == theirs._images


LISTS = {
    "dtd": ("dtd/dtd", ["labels/test1.txt"]),
    "fgvc_aircraft": ("fgvc-aircraft-2013b/data", ["variants.txt", "images_variant_test.txt"]),
    "food101": ("food-101", ["meta/test.txt"]),
    "oxford_pets": ("oxford-iiit-pet", ["annotations/test.txt", "annotations/trainval.txt"]),
    "stanford_cars": (
        "stanford_cars", ["devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"],
    ),
    "sun397": ("SUN397", ["ClassName.txt"]),
}  # fmt: skip


def complaint(name, root, split="test", kind=FeatStoreError):
    with pytest.raises(kind) as caught:
        load_dataset(name, data_root=root).split(split)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(name)
    return str(caught.value)


@pytest.mark.parametrize(("name", "file"), [(n, f) for n, (_, fs) in LISTS.items() for f in fs])
def test_a_missing_list_file_is_named(name, file, tmp_path, monkeypatch):
    MINIATURES[name](tmp_path, monkeypatch)
    (tmp_path / LISTS[name][0] / file).unlink()
    if name == "food101":
        (tmp_path / "food-101" / "meta" / "test.json").unlink()
    said = complaint(name, tmp_path, kind=MissingDatasetError)
    assert f"{tmp_path / LISTS[name][0] / file} is missing" in said


@pytest.mark.parametrize("name", LISTS)
def test_a_folder_within_its_like_is_read(name, tmp_path, monkeypatch):
    expected, categories = MINIATURES[name](tmp_path / "new", monkeypatch)
    base = tmp_path / LISTS[name][0]
    base.mkdir(parents=True)
    (tmp_path / "new" / LISTS[name][0]).rename(base / base.name)
    images = load_dataset(name, data_root=tmp_path).split("test")
    assert images.labels.tolist() == expected["test"][0]
    assert list(images.categories) == categories


@pytest.mark.parametrize(("name", "file"), [(n, f) for n, (_, fs) in LISTS.items() for f in fs])
def test_lists_may_have_other_line_ends_and_empty_lines(name, file, tmp_path, monkeypatch):
    MINIATURES[name](tmp_path, monkeypatch)
    path = tmp_path / LISTS[name][0] / file
    before = load_dataset(name, data_root=tmp_path).split("test")
    if path.suffix == ".txt":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().strip().replace(b"\n", b"\r\n\r\n"))
    assert load_dataset(name, data_root=tmp_path).split("test").fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("name", "file", "line", "said"),
    [
        (
            "dtd",
            "labels/test1.txt",
            "spotted/spotted_0001.jpg",
            "the class 'spotted', which is non",
        ),
        (
            "fgvc_aircraft",
            "images_variant_test.txt",
            "0000200 Concorde",
            "the class 'Concorde', wh",
        ),
        ("fgvc_aircraft", "images_variant_test.txt", "0000200", "cannot be understood"),
        ("food101", "meta/test.txt", "soup/1", "the class 'soup', which is none of its 3"),
        (
            "oxford_pets",
            "annotations/test.txt",
            "Abyssinian_1 9 1 1",
            "no image has the class id 4",
        ),
        (
            "oxford_pets",
            "annotations/test.txt",
            "Abyssinian_1 0 1 1",
            "no image has the class id 4",
        ),
        (
            "oxford_pets",
            "annotations/test.txt",
            "Abyssinian_1 cat",
            "cannot be understood (invalid ",
        ),
        (
            "sun397",
            "Testing_01.txt",
            "/a/attic/sun_x.jpg",
            "the class 'attic', which is none of its 4",
        ),
    ],
)
def test_a_line_of_no_class_is_refused(name, file, line, said, tmp_path, monkeypatch):
    MINIATURES[name](tmp_path, monkeypatch)
    path = tmp_path / LISTS[name][0] / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert said in complaint(name, tmp_path, kind=BadImageError)


def cars_list(path, **changes):
    fields = {"class": np.uint8(1), "fname": "00001.jpg"} | changes
    row = np.zeros((1, 2), [(name, object) for name in fields])
    row[0, 0] = row[0, 1] = tuple(fields.values())
    savemat(path, {"annotations": row})


def test_a_car_of_no_class_is_refused_and_class_196_fits_its_eight_bits(tmp_path, monkeypatch):
    stanford_cars(tmp_path, monkeypatch)
    base = tmp_path / "stanford_cars"
    place = base / "cars_test_annos_withlabels.mat"
    for number in (0, 4, 255):
        cars_list(place, **{"class": np.uint8(number)})
        said = complaint("stanford_cars", tmp_path, kind=BadImageError)
        assert f"has the label {number - 1}, counted from 0, and there are 3 categories" in said
    names = np.empty(196, object)
    names[:] = [f"car {i}" for i in range(196)]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    cars_list(place, **{"class": np.uint8(196)})
    assert (
        load_dataset("stanford_cars", data_root=tmp_path).split("test").labels.tolist() == [195] * 2
    )


def test_the_list_of_cars_without_classes_is_told_from_that_with_them(tmp_path, monkeypatch):
    stanford_cars(tmp_path, monkeypatch)
    base = tmp_path / "stanford_cars"
    (base / "cars_test_annos_withlabels.mat").rename(base / "devkit" / "with.mat")
    row = np.zeros((1, 1), [("bbox_x1", object), ("fname", object)])
    row[0, 0] = (np.uint16(1), "00001.jpg")
    savemat(base / "cars_test_annos_withlabels.mat", {"annotations": row})
    said = complaint("stanford_cars", tmp_path, kind=BadImageError)
    assert "holds no classes" in said
    (base / "cars_test_annos_withlabels.mat").unlink()
    (base / "devkit" / "with.mat").rename(base / "devkit" / "cars_test_annos_withlabels.mat")
    labels = load_dataset("stanford_cars", data_root=tmp_path).split("test").labels
    assert labels.tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file, cut", b"\x00" * 200])
def test_a_damaged_list_of_cars_is_refused(content, tmp_path, monkeypatch):
    stanford_cars(tmp_path, monkeypatch)
    (tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat").write_bytes(content)
    said = complaint("stanford_cars", tmp_path, kind=BadImageError)
    assert "cannot be understood" in said


def test_a_damaged_mat_of_flowers_counts_as_missing(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        flowers102(tmp_path, patched)
    complaint("flowers102", tmp_path, kind=MissingDatasetError)  # the real md5s hold


def test_the_classes_of_textures_are_the_folders_whichever_a_list_names(tmp_path, monkeypatch):
    dtd(tmp_path, monkeypatch)
    listing = tmp_path / "dtd" / "dtd" / "labels" / "test1.txt"
    lines(listing, [line for line in listing.read_text().split() if line.startswith("zig")])
    images = load_dataset("dtd", data_root=tmp_path).split("test")
    assert (images.labels.tolist(), images.categories) == ([1, 1], ("banded", "zigzagged"))


def test_textures_may_lie_where_the_archive_puts_them(tmp_path, monkeypatch):
    expected, _ = dtd(tmp_path / "new", monkeypatch)
    (tmp_path / "new" / "dtd" / "dtd").rename(tmp_path / "dtd")
    images = load_dataset("dtd", data_root=tmp_path).split("test")
    assert images.labels.tolist() == expected["test"][0]


@pytest.mark.parametrize("place", ["eurosat/EuroSAT_RGB", "EuroSAT/2750", "EuroSAT/EuroSAT_RGB"])
def test_eurosat_may_have_its_other_names(place, tmp_path):
    eurosat(tmp_path / "new")
    (tmp_path / place).parent.mkdir()
    (tmp_path / "new" / "eurosat" / "2750").rename(tmp_path / place)
    assert len(load_dataset("eurosat", data_root=tmp_path).split("train")) == 24


def test_food_is_not_read_without_its_list_of_classes(tmp_path, monkeypatch):
    food101(tmp_path, monkeypatch)
    meta = tmp_path / "food-101" / "meta"
    with_classes = load_dataset("food101", data_root=tmp_path).split("test")
    (meta / "test.txt").unlink()  # the JSON says the same
    assert load_dataset("food101", data_root=tmp_path).split("test").fingerprint == (
        with_classes.fingerprint
    )
    (meta / "classes.txt").unlink()
    # Sorted names would swap cheesecake and cheese_plate.
    with pytest.raises(MissingDatasetError, match=r"meta/classes\.txt is missing"):
        load_dataset("food101", data_root=tmp_path).split("test")


def test_a_dataset_that_lacks_classes_is_refused_since_labels_would_shift(tmp_path, monkeypatch):
    food101(tmp_path, monkeypatch)
    monkeypatch.setattr(load, "catalogue", catalogue)
    with pytest.raises(BadImageError, match="has 3 categories, food101 has 101: labels would"):
        load_dataset("food101", data_root=tmp_path).split("test")


def test_another_number_of_images_than_was_published_is_said(tmp_path, monkeypatch, caplog):
    dtd(tmp_path, monkeypatch)
    load_dataset("dtd", data_root=tmp_path).split("val")
    assert "dtd val has 4 images here, 1880 were published" in caplog.text


@pytest.mark.parametrize("name", ["cifar10", "mnist", "dtd", "sun397"])
def test_nothing_is_fetched_offline(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(MissingDatasetError, match="FEATSTORE_OFFLINE or HF_HUB_OFFLINE is set"):
        load_dataset(name, data_root=tmp_path, download=True).split("train")


def test_what_is_there_is_read_offline(tmp_path, monkeypatch):
    dtd(tmp_path, monkeypatch)
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    assert len(load_dataset("dtd", data_root=tmp_path, download=True).split("train")) == 4
