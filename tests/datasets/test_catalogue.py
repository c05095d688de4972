"""What the catalogue says of the published datasets, and that each can be asked for."""

import inspect

import pytest
import torchvision.datasets as tv

from featstore.datasets import catalogue, cifar, expand, fetching, load_dataset
from featstore.datasets.load import READERS
from featstore.errors import MissingDatasetError, UnknownNameError

PUBLISHED = {name: e for name, e in catalogue().items() if "tiny" not in e.sets}
READABLE = [name for name, entry in PUBLISHED.items() if entry.task != "dense"]
DENSE = ["voc_detection", "nyuv2_normals", "ade20k"]

# As the studies have them: categories, and images by split where they are published.
MARKS = {
    "imagenet": (1000, [1281167, 50000]), "inaturalist": (1103, [500000, 100000]),
    "cub": (200, [5994, 5794]), "pascal": (20, [1464, 1449]), "cifar100": (100, [50000, 10000]),
    **{f"domainnet_{one}": (345, None)
       for one in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")},
}  # fmt: skip
ERICSSON = {
    "fgvc_aircraft": (100, [3334, 3333, 3333]), "caltech101": (102, None),
    "stanford_cars": (196, [8144, 8041]), "cifar10": (10, [50000, 10000]),
    "cifar100": (100, [50000, 10000]), "dtd": (47, [1880, 1880, 1880]),
    "flowers102": (102, [1020, 1020, 6149]), "food101": (101, [75750, 25250]),
    "oxford_pets": (37, [3680, 3669]), "sun397": (397, [19850, 19850]),
    "voc2007": (20, [2501, 2510, 4952]),
}  # fmt: skip
FEW_SHOT = {
    **{name: facts for name, facts in ERICSSON.items() if name != "voc2007"},
    "crop_diseases": (38, None), "eurosat": (10, None), "isic2018": (7, None), "chestx": (7, None),
}  # fmt: skip
EXTRA = {"inaturalist_genus": (1103, [55150, 11030]), "inaturalist_species": (1103, [55150, 11030]),
         "caltech256": (257, [24485, 6122])}  # fmt: skip
SETS = {
    "marks2024": MARKS, "marks2024-extra": EXTRA, "ericsson2021": ERICSSON,
    "ericsson2021-fewshot": FEW_SHOT,
}  # fmt: skip


def test_the_studies_have_as_many_datasets_as_they_published():
    sizes = {
        "marks2024": 11, "marks2024-extra": 3, "ericsson2021": 11, "ericsson2021-fewshot": 14,
        "ericsson2021-dense": 3,
    }  # fmt: skip
    found = {one: sum(one in e.sets for e in PUBLISHED.values()) for one in sizes}
    assert found == sizes
    assert {one for e in PUBLISHED.values() for one in e.sets} == set(sizes)
    assert len(PUBLISHED) >= 29


@pytest.mark.parametrize("study", SETS)
def test_a_study_s_datasets_have_the_categories_and_images_that_it_had(study):
    members = {name: e for name, e in PUBLISHED.items() if study in e.sets}
    assert set(members) == set(SETS[study])
    for name, (categories, images) in SETS[study].items():
        assert members[name].categories == categories
        if images is not None:
            assert [members[name].n_images[split] for split in members[name].splits] == images


def test_pools_of_few_shot_learning_have_the_sizes_that_were_published():
    pools = {"crop_diseases": 43456, "eurosat": 27000, "isic2018": 10015, "chestx": 25848}
    assert {name: sum(PUBLISHED[name].n_images.values()) for name in pools} == pools
    lesions = [1113, 6705, 514, 327, 1099, 115, 142]
    assert PUBLISHED["isic2018"].n_images["test"] == sum(round(n / 5) for n in lesions)


def test_metrics_are_those_of_the_study():
    per_class = {"fgvc_aircraft", "caltech101", "flowers102", "oxford_pets"}
    for name in ERICSSON:
        wanted = "mean_per_class" if name in per_class else "map11" if name == "voc2007" else "top1"
        assert PUBLISHED[name].metric == wanted


@pytest.mark.parametrize("study", SETS)
def test_a_study_s_set_carries_its_transform(study):
    transform = {"marks2024-extra": "marks", "ericsson2021-fewshot": "ericsson-fewshot"}.get(
        study, study.removesuffix("2024").removesuffix("2021")
    )
    assert set(expand([study])) == {f"{name}@{transform}" for name in SETS[study]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_says_what_a_user_wants_to_know(name):
    entry = PUBLISHED[name]
    assert entry.licence
    assert entry.description
    assert entry.metric
    assert entry.shift
    assert entry.urls or entry.by_hand
    assert entry.categories > 1
    assert {"train", "test"} <= set(entry.splits) == set(entry.n_images)
    assert all(count > 0 for count in entry.n_images.values())
    assert entry.size > 0 or entry.unverified or entry.by_hand
    assert "\n" not in entry.licence + entry.by_hand + entry.note + entry.description
    assert entry.square in ("pad", "crop", "")


@pytest.mark.parametrize("name", READABLE)
def test_an_entry_has_a_reader_and_without_its_files_one_line_says_where_to_get_them(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    entry = PUBLISHED[name]
    assert entry.reader in READERS
    dataset = load_dataset(name)  # the name alone touches no disk
    assert dataset.info["source"]
    for split in dataset.splits:
        with pytest.raises(MissingDatasetError) as caught:
            dataset.split(split)
        said = str(caught.value)
        assert "\n" not in said
        assert said.startswith(f"{name} is not below {tmp_path}/datasets")
        assert (entry.by_hand or entry.urls[0]) in said
        by_program = not entry.by_hand or entry.name == "caltech101"  # whose lists are by hand
        assert ("--download" in said) == by_program
    assert not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("name", DENSE)
def test_what_cannot_be_embedded_is_listed_and_refused_clearly(name):
    assert PUBLISHED[name].sets == ["ericsson2021-dense"]
    assert PUBLISHED[name].task == "dense"
    with pytest.raises(UnknownNameError, match=f"{name} is listed for detection and dense"):
        load_dataset(name)
    assert name not in expand(["all"])


def test_addresses_and_sums_are_those_that_torchvision_knows():
    known = fetching._known()

    def summed(name):
        return [(url, known[url].get("md5")) for url in PUBLISHED[name].urls]

    for name, theirs in (("cifar10", tv.CIFAR10), ("cifar100", tv.CIFAR100)):
        ours = cifar.SOURCES[name]
        assert summed(name) == [(theirs.url, theirs.tgz_md5)]
        assert list(ours.splits["train"].items()) == list(map(tuple, theirs.train_list))
        assert list(ours.splits["test"].items()) == list(map(tuple, theirs.test_list))
        assert (ours.meta, ours.names) == (theirs.meta["filename"], theirs.meta["key"])
    sets = {
        "country211": tv.Country211, "dtd": tv.DTD, "fgvc_aircraft": tv.FGVCAircraft,
        "food101": tv.Food101, "rendered_sst2": tv.RenderedSST2,
    }  # fmt: skip
    for name, theirs in sets.items():
        assert summed(name) == [(theirs._URL, getattr(theirs, "_MD5", None))]
    assert (tv.SUN397._DATASET_URL, tv.SUN397._DATASET_MD5) in summed("sun397")
    assert summed("stl10") == [(tv.STL10.url, tv.STL10.tgz_md5)]
    assert summed("oxford_pets") == list(tv.OxfordIIITPet._RESOURCES)
    assert summed("svhn") == [(url, md5) for url, _, md5 in
                              (tv.SVHN.split_list[s] for s in ("train", "test"))]  # fmt: skip
    prefix, files = tv.Flowers102._download_url_prefix, tv.Flowers102._file_dict
    assert summed("flowers102") == [(prefix + file, md5) for file, md5 in files.values()]
    for name, theirs in (("mnist", tv.MNIST), ("fashion_mnist", tv.FashionMNIST)):
        mirror = theirs.mirrors[0]
        assert summed(name) == [(mirror + file, md5) for file, md5 in theirs.resources]
    for name, theirs in {
        "gtsrb": tv.GTSRB, "eurosat": tv.EuroSAT, "caltech101": tv.Caltech101,
        "caltech256": tv.Caltech256,
    }.items():  # fmt: skip
        source = inspect.getsource(theirs)  # it has no attributes that say so
        for url, md5 in summed(name):
            assert url.rpartition("/")[2] in source
            assert md5 in source
