"""iNaturalist in miniature: ranks as torchvision numbers them, subsets, the json, both names."""

import dataclasses
import json
import logging
import uuid

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image

from featstore.datasets import catalogue, inaturalist
from featstore.errors import BadImageError, MissingDatasetError

# Families are not in alphabetical order, Prunella is a bird and a plant, alba comes three times.
FOLDERS = [
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
    "00001_Animalia_Arthropoda_Arachnida_Araneae_Araneidae_Zygiella_x-notata",
    "00002_Animalia_Chordata_Aves_Passeriformes_Prunellidae_Prunella_modularis",
    "00003_Animalia_Chordata_Aves_Passeriformes_Motacillidae_Motacilla_alba",
    "00004_Animalia_Chordata_Aves_Passeriformes_Motacillidae_Anthus_pratensis",
    "00005_Animalia_Chordata_Aves_Passeriformes_Motacillidae_Motacilla_cinerea",
    "00006_Animalia_Chordata_Aves_Pelecaniformes_Ardeidae_Ardea_alba",
    "00007_Animalia_Chordata_Aves_Pelecaniformes_Ardeidae_Ardea_cinerea",
    "00008_Animalia_Chordata_Aves_Pelecaniformes_Ardeidae_Ardea_herodias",
    "00009_Plantae_Tracheophyta_Magnoliopsida_Lamiales_Lamiaceae_Prunella_vulgaris",
    "00010_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus_alba",
]
FAMILIES = [
    "Lumbricidae", "Araneidae", "Prunellidae", "Motacillidae", "Ardeidae", "Lamiaceae", "Fagaceae",
]  # fmt: skip
FAMILY_LABELS = [0, 1, 2, 3, 3, 3, 4, 4, 4, 5, 6]
PER_SPECIES = {"train": 3, "test": 1}
NAMES = {"train": ("train_mini", "2021_train_mini"), "test": ("val", "2021_valid")}


def entry(rank, categories, **fields):
    name = {"family": "inaturalist"}.get(rank, f"inaturalist_{rank}")
    return dataclasses.replace(catalogue()[name], categories=categories, n_images={}, **fields)


FAMILY = entry("family", 7)
GENUS = entry("genus", 3)
SPECIES = entry("species", 4)


def files(split):
    """File names of each folder, from a fixed stream: their order is not that of writing."""
    rng = np.random.default_rng({"train": 0, "test": 1}[split])
    return {
        folder: [f"{uuid.UUID(bytes=rng.bytes(16))}.jpg" for _ in range(PER_SPECIES[split])]
        for folder in FOLDERS
    }


def write(root, base="inaturalist", names=0, splits=("train", "test"), with_json=False):
    place = root / base
    for split in splits:
        for folder, images in files(split).items():
            for name in images:
                path = place / NAMES[split][names] / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 4), (10 * int(folder[:5]), 0, 0)).save(path)
        if with_json:
            write_json(place, split)
    return place


def write_json(place, split):
    own = NAMES[split][0]
    pairs = [(i, name) for i, f in enumerate(FOLDERS) for name in files(split)[f]]
    content = {
        "info": {"year": 2021},
        "images": [
            {"id": 1000 + row, "width": 6, "height": 4, "latitude": None, "longitude": None,
             "file_name": f"{own}/{FOLDERS[i]}/{name}"}
            for row, (i, name) in enumerate(pairs)
        ][::-1],
        "categories": [
            {"id": i, "name": " ".join(folder.split("_")[6:]), "image_dir_name": folder}
            for i, folder in enumerate(FOLDERS)
        ][::-1],
        "annotations": [
            {"id": row, "image_id": 1000 + row, "category_id": i}
            for row, (i, _) in enumerate(pairs)
        ],
        "licenses": [],
    }  # fmt: skip
    (place / f"{own}.json").write_text(json.dumps(content))


def read(asked, split, root):
    return inaturalist.read(asked, split, root)


def torchvisions(place, version, rank):
    # Its own way to open an image leaves the file open.
    return tv.INaturalist(str(place), version=version, target_type=rank, loader=lambda path: None)


def numbers_of(images):
    return [int(one.split("/")[1][:5]) for one in images.sample_ids]


@pytest.mark.parametrize("split", ["train", "test"])
def test_families_are_numbered_as_the_sorted_folders_show_them(tmp_path, split):
    place = write(tmp_path, names=1)
    images = read(FAMILY, split, tmp_path)
    assert images.categories == tuple(FAMILIES)
    assert images.labels.tolist() == list(np.repeat(FAMILY_LABELS, PER_SPECIES[split]))
    theirs = torchvisions(place, NAMES[split][1], "family")
    pairs = dict(zip(images.read.paths, images.labels.tolist(), strict=True))
    assert pairs == {
        str(place / NAMES[split][1] / FOLDERS[number] / name): theirs[row][1]
        for row, (number, name) in enumerate(theirs.index)
    }
    assert list(images.read.paths) == sorted(images.read.paths)
    assert np.asarray(images.read(len(images) - 1))[0, 0, 0] == pytest.approx(100, abs=4)


def test_the_same_images_have_the_same_names_whatever_their_folders_are_called(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", "inat2021", names=1)
    write(tmp_path / "c", "inaturalist/inaturalist", with_json=True)
    write(tmp_path / "d", ".", names=1, with_json=True)
    for split in ("train", "test"):
        prints = {read(FAMILY, split, tmp_path / copy).fingerprint for copy in "abcd"}
        assert len(prints) == 1
    assert read(FAMILY, "test", tmp_path / "b").sample_ids[0].startswith(f"val/{FOLDERS[0]}/")


def test_a_folder_unpacked_one_too_deep_is_read(tmp_path):
    write(tmp_path, "inaturalist/val", splits=["test"])
    assert len(read(FAMILY, "test", tmp_path)) == len(FOLDERS)


def test_another_datasets_val_is_not_taken_for_it(tmp_path):
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    with pytest.raises(MissingDatasetError, match="inaturalist is not below"):
        read(FAMILY, "test", tmp_path)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_the_studys_own_list_says_which_species_are_in(tmp_path, dtype):
    place = write(tmp_path)
    np.save(place / "inat_genus_ids.npy", np.array([7, 2, 4], dtype))
    np.save(place / "inat_species_ids.npy", np.array([8, 3, 6, 5], dtype))
    genus = read(GENUS, "train", tmp_path)
    assert numbers_of(genus) == list(np.repeat([2, 4, 7], 3))
    assert genus.categories == ("Prunella", "Anthus", "Ardea")
    assert genus.labels.tolist() == list(np.repeat([0, 1, 2], 3))
    species = read(SPECIES, "test", tmp_path)
    assert numbers_of(species) == [3, 5, 6, 8]
    assert species.labels.tolist() == [0, 1, 2, 3]
    assert species.categories == (
        "00003 Motacilla alba", "00005 Motacilla cinerea", "00006 Ardea alba",
        "00008 Ardea herodias",
    )  # fmt: skip


def test_the_labels_of_a_subset_are_torchvisions_numbered_anew(tmp_path):
    place = write(tmp_path, names=1)
    np.save(place / "inat_genus_ids.npy", np.array([7, 2, 4]))
    theirs = torchvisions(place, "2021_valid", "genus")
    genera = {number: theirs[row][1] for row, (number, _) in enumerate(theirs.index)}
    ours = read(GENUS, "test", tmp_path)
    kept = sorted(genera[number] for number in (2, 4, 7))
    assert ours.labels.tolist() == [kept.index(genera[one]) for one in numbers_of(ours)]


def test_without_the_list_the_species_are_chosen_by_rule_and_that_is_said(tmp_path, caplog):
    write(tmp_path)
    with caplog.at_level(logging.WARNING):
        genus, species = read(GENUS, "train", tmp_path), read(SPECIES, "train", tmp_path)
    assert "inat_genus_ids.npy is not in" in caplog.text
    assert "inat_species_ids.npy is not in" in caplog.text
    # Motacillidae and Ardeidae have three species each, the former seen first; Prunellidae one.
    assert sorted({*numbers_of(genus)}) == [3, 4, 6]
    assert genus.categories == ("Motacilla", "Anthus", "Ardea")
    # For four there are four genera. Ardea has three species, Motacilla two, but with epithets of
    # Ardea's; of the others Prunella is seen first.
    assert sorted({*numbers_of(species)}) == [2, 6, 7, 8]


def test_a_rule_that_finds_too_few_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(BadImageError, match="has 4 categories, inaturalist_genus has 1103"):
        read(entry("genus", 1103), "train", tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (np.array([2, 4, 99]), "numbers that no folder of"),
        (np.array([[2, 4, 7]]), "2-d array of int64"),
        (np.array([2.0, 4.0]), "1-d array of float64"),
        (np.array([{"a": 1}], dtype=object), "inat_genus_ids.npy is no array of numbers"),
        (np.array([2, 4]), "has 2 categories, inaturalist_genus has 3"),
    ],
)
def test_a_damaged_list_is_refused_and_no_code_in_it_runs(tmp_path, content, fault):
    np.save(write(tmp_path) / "inat_genus_ids.npy", content, allow_pickle=True)
    with pytest.raises(BadImageError, match=fault):
        read(GENUS, "train", tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [(FOLDERS[4], None), (FOLDERS[4], "00004_Anthus_pratensis"), (FOLDERS[0], FOLDERS[0][1:])],
)
def test_a_missing_or_misnamed_folder_is_refused(tmp_path, old, new):
    place = write(tmp_path) / "train_mini"
    (place / old).rename(place / new if new else tmp_path / "elsewhere")
    with pytest.raises(BadImageError, match="_KINGDOM_PHYLUM_.* should be"):
        read(FAMILY, "train", tmp_path)


def test_the_last_folder_missing_is_seen_by_the_number_of_families(tmp_path):
    place = write(tmp_path) / "train_mini"
    (place / FOLDERS[-1]).rename(tmp_path / "elsewhere")
    with pytest.raises(BadImageError, match="has 6 categories, inaturalist has 7"):
        read(FAMILY, "train", tmp_path)


def test_an_image_that_the_json_lists_and_that_is_absent_is_named(tmp_path):
    place = write(tmp_path, with_json=True)
    path = next((place / "val" / FOLDERS[3]).iterdir())
    path.unlink()
    with pytest.raises(MissingDatasetError, match=path.name):
        read(FAMILY, "test", tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"images": []}', None])
def test_a_json_of_another_kind_is_refused(tmp_path, damage):
    place = write(tmp_path, with_json=True)
    path = place / "val.json"
    if damage is None:
        content = json.loads(path.read_text())
        content["annotations"][0]["category_id"] = 5
        damage = json.dumps(content)
    path.write_text(damage)
    with pytest.raises(BadImageError, match="val.json is not the release's json"):
        read(FAMILY, "test", tmp_path)
