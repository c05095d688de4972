"""Parquet files with image columns, and what the package `datasets` keeps in its cache."""

import io
import json
import pickle
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image

from featstore.datasets import expand, huggingface, load_dataset, split_transform
from featstore.errors import (
    BadImageError,
    FeatStoreError,
    MissingDatasetError,
    UnknownNameError,
)

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["a bird", "a cat", "a dog"]


def pixel(seed):
    return tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))


def png(seed, kind="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), pixel(seed)).save(file, kind, **options)
    return file.getvalue()


def metadata(image="image", label="label", names=NAMES):
    features = {
        image: {"_type": "Image"},
        label: {"names": names, "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def rows(seeds):
    return [{"bytes": png(seed), "path": f"{seed:04}.png"} for seed in seeds]


def write(path, images, labels, meta=True, image="image", label="label", kind=IMAGE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [image, label, "text"]
    columns = [pa.array(images, kind), pa.array(labels), pa.array(["x"] * len(labels))]
    table = pa.table(columns, names)
    if meta:
        table = table.replace_schema_metadata(metadata(image, label))
    pq.write_table(table, path, row_group_size=3, **options)
    return path


def two_splits(root, folder="data", **options):
    for split, n, start in (("train", 4, 0), ("test", 2, 100)):
        for i in range(n):
            seeds = [start + 10 * i + j for j in range(5)]
            file = root / folder / f"{split}-{i:05}-of-{n:05}.parquet"
            write(file, rows(seeds), [seed % 3 for seed in seeds], **options)
    return root


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path_factory.mktemp("home")))


def complaint(name, split="train", kind=FeatStoreError):
    with pytest.raises(kind) as caught:
        load_dataset(name).split(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_shards_are_read_by_split_in_the_order_of_their_numbers(
    folder, meta, compression, tmp_path
):
    two_splits(tmp_path, folder, meta=meta, compression=compression)
    dataset = load_dataset(f"hf:{tmp_path}")
    assert (dataset.name, dataset.splits) == (f"hf:{tmp_path}", ("train", "test"))
    train, test = dataset.split("train"), dataset.split("test")
    seeds = [10 * i + j for i in range(4) for j in range(5)]
    assert list(train.sample_ids) == [f"{seed:04}.png" for seed in seeds]
    assert train.labels.tolist() == [seed % 3 for seed in seeds]
    assert train.labels.dtype == np.int64
    assert train.categories == test.categories == tuple(NAMES if meta else "012")
    assert len(test) == 10
    for row in (19, 0, 7, 7, 4, 5):  # in any order
        assert train.read(row).getpixel((0, 0)) == pixel(seeds[row])
        assert train.read(row).mode == "RGB"


def test_what_the_library_itself_writes_is_read(tmp_path):
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=NAMES)}
    )
    images = [Image.new("RGB", (4, 3), pixel(i)) for i in range(4)]
    table = datasets.Dataset.from_dict({"img": images, "fine_label": [0, 2, 1, 1]}, features)
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    read = load_dataset(f"hf:{tmp_path}").split("train")
    assert (read.labels.tolist(), read.categories) == ([0, 2, 1, 1], tuple(NAMES))
    assert [read.read(i).getpixel((0, 0)) for i in range(4)] == [pixel(i) for i in range(4)]
    assert [read.read(i).size for i in range(4)] == [image["img"].size for image in table]


def test_shards_are_unpacked_once_and_again_when_they_change(tmp_path, monkeypatch):
    two_splits(tmp_path / "set")
    name = f"hf:{tmp_path / 'set'}"
    before = load_dataset(name, data_root=tmp_path / "root").split("train")
    unpacked = sorted((tmp_path / "root" / "unpacked").iterdir())
    assert len(unpacked) == 4
    dates = [path.stat().st_mtime_ns for path in unpacked]
    again = load_dataset(name, data_root=tmp_path / "root").split("train")
    assert [path.stat().st_mtime_ns for path in unpacked] == dates
    assert again.fingerprint == before.fingerprint
    write(tmp_path / "set" / "data" / "train-00001-of-00004.parquet", rows(range(50, 55)), [0] * 5)
    changed = load_dataset(name, data_root=tmp_path / "root").split("train")
    assert changed.read(5).getpixel((0, 0)) == pixel(50)
    assert changed.fingerprint != before.fingerprint


def test_a_shard_that_breaks_while_it_is_unpacked_leaves_nothing_behind(tmp_path, monkeypatch):
    path = write(tmp_path / "set" / "train.parquet", rows(range(9)), [0] * 9)
    content = bytearray(path.read_bytes())
    content[300:900] = bytes(600)
    path.write_bytes(content)
    with pytest.raises(BadImageError, match="cannot be unpacked|that can be read"):
        load_dataset(f"hf:{tmp_path / 'set'}", data_root=tmp_path / "root").split("train")
    left = tmp_path / "root" / "unpacked"
    assert not left.exists() or not list(left.iterdir())


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(tmp_path):
    prints = {
        load_dataset(f"hf:{two_splits(tmp_path / place)}").split("test").fingerprint
        for place in ("a", "b")
    }
    assert len(prints) == 1


def test_a_reader_survives_the_way_to_a_loader_process(tmp_path):
    images = load_dataset(f"hf:{two_splits(tmp_path)}").split("train")
    there = pickle.loads(pickle.dumps(images.read))
    assert there(6).getpixel((0, 0)) == pixel(11)


def test_validation_is_val_and_stands_for_a_test_that_is_not_there(tmp_path, caplog):
    for split in ("train", "validation"):
        write(tmp_path / f"{split}-00000-of-00001.parquet", rows(range(3)), [0, 1, 2])
    assert load_dataset(f"hf:{tmp_path}").splits == ("train", "test")
    assert "its validation is scored as test" in caplog.text
    write(tmp_path / "test.parquet", rows(range(3)), [0, 1, 2])
    assert load_dataset(f"hf:{tmp_path}").splits == ("train", "val", "test")


@pytest.mark.parametrize("label", [-1, None])
def test_a_label_that_is_withheld_is_an_error_that_says_what_to_score_instead(label, tmp_path):
    write(tmp_path / "train.parquet", rows(range(3)), [0, 1, 2])
    write(tmp_path / "validation.parquet", rows(range(3)), [0, 1, 2])
    write(tmp_path / "test.parquet", rows(range(3)), [0, label, label])
    said = complaint(f"hf:{tmp_path}", "test", BadImageError)
    assert "row 1 has no label, like 2 of 3: they are withheld" in said
    assert 'options = {test = "validation"}' in said
    assert len(load_dataset(f"hf:{tmp_path}").split("train")) == 3  # others are no worse for it


def own_catalogue(tmp_path, monkeypatch, text):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    (tmp_path / "catalogue.toml").write_text(
        f'[datasets.mine]\nreader = "huggingface"\npath = "set"\n{text}\n'
    )


def test_a_catalogue_of_ones_own_may_say_which_split_is_scored(tmp_path, monkeypatch):
    write(tmp_path / "set" / "train.parquet", rows(range(3)), [0, 1, 2])
    write(tmp_path / "set" / "validation.parquet", rows([7]), [2])
    write(tmp_path / "set" / "test.parquet", rows([8]), [-1])
    own_catalogue(tmp_path, monkeypatch, 'options = {test = "validation"}')
    assert load_dataset("mine").split("test").read(0).getpixel((0, 0)) == pixel(7)
    own_catalogue(tmp_path, monkeypatch, 'options = {test = "holdout"}')
    assert "mine has no split holdout; it has train, val, test" in complaint("mine", "test")


def test_a_label_beyond_the_names_is_refused(tmp_path):
    write(tmp_path / "train.parquet", rows(range(3)), [0, 1, 3])
    said = complaint(f"hf:{tmp_path}", kind=BadImageError)
    assert "0002.png has the label 3, counted from 0, and there are 3 categories" in said


def test_without_names_the_categories_are_those_of_all_splits(tmp_path):
    write(tmp_path / "train.parquet", rows(range(3)), [0, 1, 1], meta=False)
    write(tmp_path / "test.parquet", rows(range(3)), [0, 4, -1], meta=False)
    assert load_dataset(f"hf:{tmp_path}").split("train").categories == tuple("01234")


def two_labels(path, first="fine_label", second="coarse_label"):
    table = pq.read_table(write(path, rows(range(3)), [0, 1, 2], label=first))
    meta = json.loads(table.schema.metadata[b"huggingface"])
    meta["info"]["features"][second] = {"names": ["p", "q"], "_type": "ClassLabel"}
    table = table.append_column(second, pa.array([1, 0, 1]))
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(meta)}), path)


def test_of_several_labels_the_usual_one_is_taken_or_the_one_that_is_named(tmp_path, monkeypatch):
    two_labels(tmp_path / "set" / "train.parquet")
    images = load_dataset(f"hf:{tmp_path / 'set'}").split("train")
    assert (images.labels.tolist(), images.categories) == ([0, 1, 2], tuple(NAMES))
    own_catalogue(tmp_path, monkeypatch, 'options = {label = "coarse_label"}')
    images = load_dataset("mine").split("train")
    assert (images.labels.tolist(), images.categories) == ([1, 0, 1], ("p", "q"))
    two_labels(tmp_path / "set" / "train.parquet", "species", "genus")
    said = complaint(f"hf:{tmp_path / 'set'}", kind=BadImageError)
    assert "has several label columns; its columns are image, species, text, genus" in said


def test_a_column_of_plain_bytes_is_read_when_it_is_named(tmp_path, monkeypatch):
    content = [png(i) for i in range(3)]
    write(tmp_path / "set" / "train.parquet", content, [0, 1, 2], meta=False, kind=pa.binary())
    said = complaint(f"hf:{tmp_path / 'set'}", kind=BadImageError)
    assert "has no image column; its columns are image, label, text. Name it" in said
    own_catalogue(tmp_path, monkeypatch, 'options = {image = "image"}')
    images = load_dataset("mine").split("train")
    assert images.read(2).getpixel((0, 0)) == pixel(2)
    assert images.sample_ids == ("train/0", "train/1", "train/2")


def test_images_are_turned_by_their_exif_only_when_that_is_asked_for(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = {"bytes": png(1, "JPEG", exif=exif), "path": None}
    write(tmp_path / "set" / "train.parquet", [image], [0])
    assert load_dataset(f"hf:{tmp_path / 'set'}").split("train").read(0).size == (5, 4)
    own_catalogue(tmp_path, monkeypatch, "options = {exif = true}")
    assert load_dataset("mine").split("train").read(0).size == (4, 5)


def by_path(root, path):
    """A table that holds no bytes, and the file it names."""
    (root / "data" / "pictures").mkdir(parents=True)
    (root / "data" / "pictures" / "1.png").write_bytes(png(1))
    (root / "..").resolve().joinpath("outside.png").write_bytes(png(2))
    cells = [{"bytes": png(0), "path": "0.png"}, {"bytes": None, "path": path}]
    write(root / "data" / "train.parquet", cells, [0, 1])
    return f"hf:{root}"


@pytest.mark.parametrize("absolute", [False, True])
def test_an_image_may_be_named_by_a_path_within_the_dataset(absolute, tmp_path):
    root = tmp_path / "set"
    place = f"{root}/data/pictures/1.png" if absolute else "pictures/1.png"
    images = load_dataset(by_path(root, place)).split("train")
    assert [images.read(i).getpixel((0, 0)) for i in range(2)] == [pixel(0), pixel(1)]
    assert images.sample_ids == (
        ("train/0", "train/1") if absolute else ("0.png", "pictures/1.png")
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("https://x.org/1.png", "which is not on this machine"),
        ("hf://datasets/a/b/1.png", "which is not on this machine"),
        ("zip://1.png::https://x.org/1.zip", "which is not on this machine"),
        ("../../outside.png", "lies outside"), ("/etc/passwd", "lies outside"),
        ("pictures/link.png", "lies outside"), ("pictures/2.png", "there is no"),
        ("pictures", "there is no"),
    ],
)  # fmt: skip
def test_a_path_that_leads_away_or_nowhere_is_refused(path, said, tmp_path):
    name = by_path(tmp_path / "set", path)
    (tmp_path / "set" / "data" / "pictures" / "link.png").symlink_to(tmp_path / "outside.png")
    assert f"the table names {path}" in complaint(name, kind=BadImageError)
    assert said in complaint(name, kind=BadImageError)


@pytest.mark.parametrize("cell", [{"bytes": None, "path": None}, None])
def test_an_empty_cell_is_a_missing_image(cell, tmp_path):
    write(tmp_path / "train.parquet", [*rows([0]), cell], [0, 1])
    assert "row 1 of 'image' is empty" in complaint(f"hf:{tmp_path}", kind=BadImageError)


def test_a_broken_image_is_named_and_others_are_read(tmp_path):
    cells = [*rows([0]), {"bytes": b"no image", "path": "b.png"}]
    write(tmp_path / "train.parquet", cells, [0, 1])
    images = load_dataset(f"hf:{tmp_path}").split("train")
    assert images.read(0).getpixel((0, 0)) == pixel(0)
    with pytest.raises(BadImageError, match=r"b.png is no image that can be read \(cannot ident"):
        images.read(1)


def test_paths_that_repeat_are_no_names(tmp_path):
    cells = [{"bytes": png(i), "path": "image.png"} for i in range(3)]
    write(tmp_path / "train.parquet", cells, [0, 1, 2])
    ids = load_dataset(f"hf:{tmp_path}").split("train").sample_ids
    assert ids == ("train/0", "train/1", "train/2")


def test_a_missing_shard_is_said(tmp_path):
    two_splits(tmp_path)
    (tmp_path / "data" / "train-00002-of-00004.parquet").unlink()
    said = complaint(f"hf:{tmp_path}", kind=MissingDatasetError)
    assert "has 3 of 4 shards like train-00000-of-00004.parquet; number 2 is missing" in said


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_a_shard_that_is_cut_off_is_named(kept, tmp_path):
    path = write(tmp_path / "train.parquet", rows(range(9)), [0] * 9)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is no Parquet file" in complaint(f"hf:{tmp_path}", kind=BadImageError)


def test_shards_with_other_columns_are_refused(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", rows(range(3)), [0, 1, 2])
    write(tmp_path / "train-00001-of-00002.parquet", rows([5]), [0], label="other")
    assert "has no column 'label' that can be read" in complaint(f"hf:{tmp_path}")


def test_a_folder_without_parquet_says_what_to_give(tmp_path):
    said = complaint(f"hf:{tmp_path}", kind=BadImageError)
    assert "holds no Parquet files; for image files give folder:PATH" in said
    two_splits(tmp_path, "cifar100")
    assert f"give hf:{tmp_path / 'cifar100'}" in complaint(f"hf:{tmp_path}", kind=BadImageError)


def test_a_folder_that_is_not_there_is_said(tmp_path, monkeypatch):
    assert "there is no folder" in complaint(f"hf:{tmp_path}/gone", kind=MissingDatasetError)
    monkeypatch.chdir(tmp_path)
    assert "there is no folder" in complaint("hf:./gone", kind=MissingDatasetError)


@pytest.mark.parametrize("name", ["", "a b", "a/b/c/d", "https://x.org/a", "me/x!"])
def test_what_is_neither_a_folder_nor_a_name_of_the_hub_is_refused(name):
    with pytest.raises(UnknownNameError, match="neither a folder nor a name of the hub"):
        load_dataset(f"hf:{name}")


def test_a_name_may_hold_an_at_sign_and_a_transform_may_follow(tmp_path):
    name = f"hf:{two_splits(tmp_path / 'me@home')}"
    assert split_transform(f"{name}@ericsson") == (f"{name}@ericsson", "ericsson")
    assert load_dataset(f"{name}@ericsson").transform == "ericsson"
    assert expand([name, f"{name}@own"]) == [name]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The package with a cache of its own, which holds me/birds as if it had been fetched."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    files = two_splits(tmp_path / "origin")
    shards = {
        split: sorted(map(str, (files / "data").glob(f"{split}-*"))) for split in ("train", "test")
    }

    def fetch(repository, config="default"):
        owner, name = repository.split("/")
        builder = Parquet(
            cache_dir=str(tmp_path / "made"), dataset_name=name, config_name=config,
            data_files=shards,
        )  # fmt: skip
        builder.config.name = config  # as the repository's own description would call it
        builder.download_and_prepare(str(cache / f"{owner}___{name}" / config / "0.0.0" / "0123"))

    fetch("me/birds")
    huggingface._hub_shards.cache_clear()
    yield fetch
    huggingface._hub_shards.cache_clear()


def test_what_lies_in_the_hubs_cache_is_read_without_asking_the_network(hub):
    dataset = load_dataset("hf:me/birds")
    assert dataset.splits == ("train", "test")
    train = dataset.split("train")
    seeds = [10 * i + j for i in range(4) for j in range(5)]
    assert train.labels.tolist() == [seed % 3 for seed in seeds]
    assert train.categories == tuple(NAMES)
    assert list(train.sample_ids) == [f"{seed:04}.png" for seed in seeds]
    for row in (19, 0, 7):
        assert train.read(row).getpixel((0, 0)) == pixel(seeds[row])
    there = pickle.loads(pickle.dumps(train.read))
    assert there(6).getpixel((0, 0)) == pixel(11)


def test_the_hubs_images_and_those_of_the_files_have_one_fingerprint(hub, tmp_path):
    ours = load_dataset(f"hf:{tmp_path / 'origin'}").split("train")
    assert load_dataset("hf:me/birds").split("train").fingerprint == ours.fingerprint


@pytest.mark.parametrize("variable", ["FEATSTORE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_cache_is_read_though_fetching_is_asked_for(variable, hub, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert len(load_dataset("hf:me/birds", download=True).split("test")) == 10


def test_what_is_not_in_the_cache_says_how_to_fetch_it(hub):
    said = complaint("hf:me/fish", kind=MissingDatasetError)
    assert "hf:me/fish could not be read (Couldn't find cache for me/fish" in said
    assert "featstore datasets hf:me/fish --download" in said


def test_fetching_asks_for_the_configuration_and_its_failure_is_one_line(hub, monkeypatch):
    asked = []

    def load(path, name, **options):
        asked.append((path, name, options["streaming"]))
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("hf:me/fish/small", download=True)
    assert asked == [("me/fish", "small", False)]
    assert str(caught.value) == (
        "hf:me/fish/small could not be read (no). Check the name and the network"
    )


def test_a_configuration_is_the_third_part_of_the_name(hub):
    hub("me/fish", "small")
    assert len(load_dataset("hf:me/fish/small").split("test")) == 10
    assert "for config 'large'" in complaint("hf:me/fish/large", kind=MissingDatasetError)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = complaint("hf:me/birds", kind=MissingDatasetError)
    assert "pip install '.[hf]' in featstore's folder" in said


def test_a_column_of_nulls_is_a_missing_image(tmp_path):
    cells = pa.array(
        [{"bytes": None, "path": None}], pa.struct([("bytes", pa.null()), ("path", pa.string())])
    )
    pq.write_table(
        pa.table({"image": cells, "label": [0]}), tmp_path / "train-00000-of-00001.parquet"
    )
    with pytest.raises(BadImageError, match="row 0 of 'image' is empty"):
        load_dataset(f"hf:{tmp_path}").split("train")


def test_a_broken_description_of_the_columns_is_named(tmp_path):
    table = pa.table({"image": [b"x"], "label": [0]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(BadImageError, match="the description of its columns cannot be read"):
        load_dataset(f"hf:{tmp_path}").split("train")


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("files", [["train"], ["train-00000-of-00002", "train-00001-of-00002"]])
def test_a_split_without_rows_is_said_to_be_empty(tmp_path, files, meta):
    for file in files:
        write(tmp_path / f"{file}.parquet", [], pa.array([], pa.int64()), meta=meta)
    said = complaint(f"hf:{tmp_path}", kind=BadImageError)
    assert said.startswith(f"hf:{tmp_path} train is empty: {tmp_path / files[0]}.parquet holds no")


@pytest.mark.parametrize("meta", [True, False])
def test_a_shard_without_rows_among_others_does_no_harm(tmp_path, meta):
    write(tmp_path / "train-00000-of-00002.parquet", [], pa.array([], pa.int64()), meta=meta)
    write(tmp_path / "train-00001-of-00002.parquet", rows([1, 2]), [0, 2], meta=meta)
    images = load_dataset(f"hf:{tmp_path}").split("train")
    assert images.labels.tolist() == [0, 2]
    assert images.read(1).getpixel((0, 0)) == pixel(2)


@pytest.mark.parametrize("variable", ["FEATSTORE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_what_is_not_in_the_cache_is_said_to_be_kept_from_fetching(
    hub, monkeypatch, variable
):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("hf:me/fish", download=True)
    assert "hf:me/fish could not be read (Couldn't find cache" in str(caught.value)
    assert "HF_HUB_OFFLINE is set: unset it" in str(caught.value)
    assert "\n" not in str(caught.value)
