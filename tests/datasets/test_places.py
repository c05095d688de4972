"""Where a dataset lies: what its status says and what its reader finds are the same."""

import shutil

import pytest

from featstore.datasets import Entry, catalogue, load_dataset
from featstore.datasets.lists import find_whole
from featstore.datasets.names import status
from featstore.errors import FeatStoreError

READABLE = [n for n, e in catalogue().items() if e.task != "dense" and e.reader != "tiny"]


def labels(name, root):
    dataset = load_dataset(name, data_root=root)
    return [dataset.split(split).labels.tolist() for split in dataset.splits]


@pytest.mark.parametrize("name", READABLE)
def test_a_whole_copy_is_ready_and_empty_folders_are_not(name, tmp_path, lay):
    entry = catalogue()[name]
    absent = "fetchable" if entry.urls and not entry.by_hand else "by hand"
    assert status(entry, tmp_path / "none") == absent
    lay(name, tmp_path / "whole")
    assert status(entry, tmp_path / "whole") == "ready"
    for path in (tmp_path / "whole").iterdir():
        (tmp_path / "empty" / (path.name if path.is_dir() else "")).mkdir(
            parents=True, exist_ok=True
        )
    for one in entry.found_by:
        (tmp_path / "empty" / one.rpartition("//")[0]).mkdir(parents=True, exist_ok=True)
    assert status(entry, tmp_path / "empty") == absent
    with pytest.raises(FeatStoreError):
        load_dataset(name, data_root=tmp_path / "empty").split("test")


@pytest.mark.parametrize("name", READABLE)
def test_wherever_a_copy_is_ready_it_is_read(name, tmp_path, lay):
    entry = catalogue()[name]
    lay(name, tmp_path / "usual")
    wanted = labels(name, tmp_path / "usual")
    base = find_whole(entry, tmp_path / "usual")
    places = [one.rpartition("//")[0] for one in entry.found_by]
    last = tmp_path / places[-1]
    spots = [*places, f"{name}/{places[-1]}"]
    if places[-1]:
        spots.append(f"{places[-1]}/{last.name}")
    for number, place in enumerate(dict.fromkeys(spots)):
        root = tmp_path / str(number)
        shutil.copytree(base, root / place)
        if (name, place) == ("caltech101", ""):  # no lists are taken from the common root
            continue
        assert status(entry, root) == "ready", place
        assert labels(name, root) == wanted, place


def own(tmp_path, reader, path, **fields):
    return Entry("mine", reader, path=path, folder=str(tmp_path), **fields)


@pytest.mark.parametrize(
    ("reader", "path", "file"),
    [
        ("folder", "mine", "mine/train/a/0.png"),
        ("webdataset", "mine", "mine/train-0.tar"),
        ("webdataset", "mine/{train,test}-{00..02}.tar", "mine/train-01.tar"),
        ("webdataset", "mine/*.tar", "mine/train-01.tar"),
        ("huggingface", "./mine", "mine/train-00000-of-00001.parquet"),
        ("huggingface", "./mine", "mine/data/train.parquet"),
    ],
)
def test_a_dataset_of_ones_own_is_ready_where_its_files_are(tmp_path, reader, path, file):
    entry = own(tmp_path, reader, path)
    assert status(entry, tmp_path / "root") == "by hand"
    (tmp_path / file).parent.mkdir(parents=True)
    assert status(entry, tmp_path / "root") == ("ready" if file.count("/") > 2 else "by hand")
    (tmp_path / file).touch()
    assert status(entry, tmp_path / "root") == "ready"


@pytest.mark.parametrize("place", ["me___my_birds/default", "me___my_birds/small"])
def test_what_lies_on_the_hub_is_fetchable_until_it_is_in_its_cache(tmp_path, monkeypatch, place):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    entry = own(tmp_path, "huggingface", "me/MyBirds/small")
    assert status(entry, tmp_path) == "fetchable"
    (tmp_path / "cache" / place).mkdir(parents=True)
    assert status(entry, tmp_path) == ("ready" if place.endswith("small") else "fetchable")
