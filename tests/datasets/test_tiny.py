"""The tiny study's datasets: sizes, disjoint splits, and the same bytes every time."""

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from featstore.datasets import tiny
from featstore.datasets.tiny import NAMES, load_split
from featstore.errors import UnknownNameError

SHIFTS = tuple(name for name in NAMES if name.startswith("digits-"))


def pixels_of(dataset, split):
    images = load_split(dataset, split)
    return np.stack([np.asarray(images.read(row)) for row in range(len(images))])


@pytest.mark.parametrize("dataset", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_holds_rgb_images_of_32_pixels_and_a_label_for_each(dataset, split):
    images = load_split(dataset, split)
    assert (images.dataset, images.name) == (dataset, split)
    assert len(images) == len(images.labels) == len(set(images.sample_ids))
    assert images.labels.dtype == np.int64
    assert set(images.labels) == set(range(len(images.categories)))
    assert images.read(0).mode == "RGB"
    assert images.read(len(images) - 1).size == (32, 32)


@pytest.mark.parametrize("dataset", NAMES)
def test_train_has_enough_rows_for_200_neighbours_and_equally_many_per_class(dataset):
    counts = np.bincount(load_split(dataset, "train").labels)
    assert counts.sum() >= 200
    assert set(counts) == {100 if dataset == "digits" else 25}


@pytest.mark.parametrize("dataset", SHIFTS)
def test_a_shift_shows_the_digits_of_the_same_splits(dataset):
    train, test = (set(load_split(dataset, split).sample_ids) for split in ("train", "test"))
    whole = load_split("digits", "train")
    assert train < set(whole.sample_ids)
    assert test == set(load_split("digits", "test").sample_ids)
    assert len(test) == 797
    assert not test & set(whole.sample_ids)


@pytest.mark.parametrize("dataset", ["digits", *SHIFTS])
def test_labels_are_those_scikit_learn_gives_to_the_row_named_by_the_sample(dataset):
    expected = load_digits().target
    for split in ("train", "test"):
        images = load_split(dataset, split)
        rows = [int(name.removeprefix("digit-")) for name in images.sample_ids]
        np.testing.assert_array_equal(images.labels, expected[rows])


def test_digits_enlarged_are_still_the_digits():
    images = load_split("digits", "test")
    rows = [int(name.removeprefix("digit-")) for name in images.sample_ids]
    small = pixels_of("digits", "test")[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4)) * 16 / 255
    assert np.abs(small - load_digits().images[rows]).mean() < 1


def test_texture_patches_of_train_and_test_share_no_pixels():
    train, test = pixels_of("textures", "train"), pixels_of("textures", "test")
    assert not {one.tobytes() for one in train} & {one.tobytes() for one in test}


def test_mean_brightness_alone_does_not_tell_the_textures():
    train, test = (pixels_of("textures", split).mean((1, 2, 3)) for split in ("train", "test"))
    labels = [load_split("textures", split).labels for split in ("train", "test")]
    score = KNeighborsClassifier(20).fit(train[:, None], labels[0]).score(test[:, None], labels[1])
    assert score < 2 / len(tiny._PICTURES)


@pytest.mark.parametrize("dataset", SHIFTS)
def test_a_shift_changes_every_image_and_no_two_shifts_are_the_same(dataset):
    plain = pixels_of("digits", "test").astype(float)
    shifted = pixels_of(dataset, "test").astype(float)
    assert np.abs(plain - shifted).mean((1, 2, 3)).min() > 2
    for other in SHIFTS:
        if other != dataset:
            assert load_split(other, "test").content != load_split(dataset, "test").content


def test_the_bytes_are_the_same_in_another_process_with_another_number_of_threads():
    code = (
        "from featstore.datasets.tiny import NAMES, load_split\n"
        "print(*[load_split(n, s).fingerprint for n in NAMES for s in ('train', 'test')])"
    )
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "3")
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **threads, "PYTHONHASHSEED": "7"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    here = [load_split(name, split).fingerprint for name in NAMES for split in ("train", "test")]
    assert other.stdout.split() == here


def test_global_random_state_neither_matters_nor_changes():
    before = np.random.get_state()[1].copy()
    for cached in (load_split, tiny._digits, tiny._shifted):
        cached.cache_clear()
    first = load_split("digits-edges", "train").fingerprint
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for cached in (load_split, tiny._digits, tiny._shifted):
        cached.cache_clear()
    assert load_split("digits-edges", "train").fingerprint == first


def test_shared_images_cannot_be_written_to():
    images = load_split("digits", "train")
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1


def test_content_digests_the_pixels():
    images = load_split("textures", "train")
    pixels = np.stack([np.asarray(images.read(row))[..., 0] for row in range(len(images))])
    expected = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    assert images.content == expected


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(UnknownNameError, match=r"'digit'; there are digits, "):
        load_split("digit", "train")
    with pytest.raises(UnknownNameError, match=r"digits has no split 'val', only train and test"):
        load_split("digits", "val")


def test_the_catalogue_lists_each_set_with_one_in_domain():
    path = Path(tiny.__file__).with_name("catalogue") / "tiny.toml"
    entries = {
        name: entry
        for name, entry in tomllib.loads(path.read_text()).items()
        if "tiny" in entry.get("sets", ())
    }
    assert set(entries) == set(NAMES)
    assert all(entry["source"] == name for name, entry in entries.items())
    assert [name for name, entry in entries.items() if entry["shift"] == "in-domain"] == ["digits"]
