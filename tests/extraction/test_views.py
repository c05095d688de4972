"""Random views: the same bytes however they are made, and nothing that is plain is touched."""

from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import featstore
from featstore.datasets import load_dataset
from featstore.datasets.files import FileImages
from featstore.datasets.transforms import Transform, View
from featstore.errors import FeatStoreError, MissingFeaturesError
from featstore.extraction import stored_against_now
from featstore.keys import BNMode, FeatureKey
from featstore.store import SplitWriter, Store, view_name, view_number

from .conftest import write_folder
from .test_extract import contents

RESNET = "file:none#arch=tiny-resnet"
VIT = "file:none#arch=tiny-vit"


class Pixels(nn.Module):
    """Its embedding is a twelfth of its pixels: no sum whose last digit a batch could change."""

    pretrained_cfg: ClassVar = {"input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, images):
        return images[:, :, ::4, ::3].flatten(1)


def extract(root, store, models=RESNET, **options):
    options = {"views": 2, "num_workers": 0, "dtype": "float32"} | options
    if isinstance(models, str):
        models, options = [models], {"weights": "random"} | options
    return featstore.extract(models, [f"folder:{root}"], store=store, **options)


def opened(store, root, model=f"{RESNET}~random0", mode="eval"):
    return Store(store).open(FeatureKey(model, f"folder:{root}", BNMode(mode)))


def rows(split):
    return np.concatenate([split.chunk(i) for i in range(len(split.chunk_digest))])


def arrays(root):
    """Every file but metadata, which says in what batches the rows were made."""
    return {name: data for name, data in contents(root).items() if not name.endswith(".json")}


def test_a_views_rows_are_the_models_on_the_views_pixels(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr", {"pixels": Pixels()})
    images = load_dataset(f"folder:{folder}").split("train")
    transform = Transform.own(
        {"input_size": (3, 24, 24), "interpolation": "bicubic", "crop_pct": 0.875,
         "crop_mode": "center"}
    )  # fmt: skip
    found = opened(tmp_path / "s.zarr", folder, "pixels")
    for number in range(2):
        pixels_of = View.of(transform, images.fingerprint, number).build()
        split = found[f"train+aug{number}"]
        for row, position in zip(rows(split), split.array("index"), strict=True):
            pixels = pixels_of(images.read(int(position)), int(position)).float()
            expected = (pixels / 255 - 0.5) / 0.5
            np.testing.assert_allclose(row, expected[:, ::4, ::3].flatten(), atol=1e-6)


def test_views_differ_from_each_other_and_from_the_plain_split_row_by_row(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr")
    found = opened(tmp_path / "s.zarr", folder)
    assert set(found.splits) == {"train", "test", "train+aug0", "train+aug1"}
    names = ("train", "train+aug0", "train+aug1")
    assert len(np.unique(np.concatenate([rows(found[n]) for n in names]), axis=0)) == 3 * 18
    for name in names[1:]:
        for array in ("index", "label", "sample_id"):
            np.testing.assert_array_equal(found[name].array(array), found["train"].array(array))
        assert found[name].categories == found["train"].categories
        assert found[name].verify() == []


@pytest.mark.parametrize("suffix", ["", "@marks", "@ericsson"])
def test_neither_workers_nor_batches_nor_chunks_change_a_byte(folder, tmp_path, suffix):
    made = []
    for number, options in enumerate(
        [
            {"num_workers": 0, "batch_size": 64},
            {"num_workers": 2, "batch_size": 7},
            {"num_workers": 0, "batch_size": 7, "models": {"pixels": Pixels(), "twin": Pixels()}},
        ]
    ):
        store = tmp_path / f"{number}.zarr"
        extract(f"{folder}{suffix}", store, **{"models": {"pixels": Pixels()}, **options})
        made.append({n: d for n, d in arrays(store).items() if n.startswith("pixels/")})
    assert made[0] == made[1] == made[2]
    store = tmp_path / "chunks.zarr"
    extract(f"{folder}{suffix}", store, {"pixels": Pixels()}, chunk_rows=5)
    few, many = (
        opened(tmp_path / name, f"{folder}{suffix}", "pixels") for name in ("0.zarr", "chunks.zarr")
    )
    for name in few.splits:
        np.testing.assert_array_equal(rows(few[name]), rows(many[name]))


def test_an_image_is_decoded_once_for_all_models_and_views(folder, tmp_path, monkeypatch):
    read = []
    real = FileImages.__call__

    def counted(self, position):
        read.append(self.paths[position])
        return real(self, position)

    monkeypatch.setattr(FileImages, "__call__", counted)
    root = f"{folder}@ericsson"
    done = extract(root, tmp_path / "s.zarr", {"a": Pixels(), "b": Pixels()}, views=3)
    assert len(read) == len(set(read)) == done.images == 36
    assert done.filled == 2 * (2 + 3)


def test_views_asked_for_later_are_those_asked_for_at_once(folder, tmp_path):
    for views, images, filled in ((0, 36, 2), (1, 18, 1), (3, 18, 2), (3, 0, 0)):
        done = extract(folder, tmp_path / "later.zarr", views=views)
        assert (done.images, done.filled) == (images, filled)
    assert done.up_to_date == 5
    extract(folder, tmp_path / "once.zarr", views=3)
    assert contents(tmp_path / "later.zarr") == contents(tmp_path / "once.zarr")


def test_a_store_without_views_is_the_plain_part_of_one_with_them(folder, tmp_path):
    for mode in ("eval", "batch", "adapt"):
        extract(folder, tmp_path / "with.zarr", bn_modes=[mode])
        extract(folder, tmp_path / "without.zarr", bn_modes=[mode], views=0)
    having, lacking = (contents(tmp_path / f"{one}.zarr") for one in ("with", "without"))
    assert {name: data for name, data in having.items() if "+aug" not in name} == lacking


@pytest.mark.parametrize("mode", ["eval", "adapt"])
@pytest.mark.parametrize("broken", ["train", "train+aug1"])
def test_resumed_views_are_those_of_an_undisturbed_run(folder, tmp_path, monkeypatch, mode, broken):
    real = SplitWriter.write

    def full(self, chunk, embedded, valid):
        if self.split.name == broken and chunk == 2:
            raise OSError(28, "No space left on device")
        real(self, chunk, embedded, valid)

    options = {"chunk_rows": 4, "bn_modes": [mode], "batch_size": 3}
    monkeypatch.setattr(SplitWriter, "write", full)
    with pytest.raises(FeatStoreError, match="No space left"):
        extract(folder, tmp_path / "s.zarr", **options)
    monkeypatch.undo()
    stopped = {s.name: s.rows_done for s in Store(tmp_path / "s.zarr").splits()}
    assert 0 < stopped[broken] < 18
    done = extract(folder, tmp_path / "s.zarr", **options)
    assert done.images < 36
    extract(folder, tmp_path / "whole.zarr", **options)
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "whole.zarr")


def test_models_adapt_to_the_plain_split_once(folder, tmp_path):
    seen = []
    extract(
        folder, tmp_path / "s.zarr", bn_modes=["adapt"],
        progress=lambda what, done, total: seen.append((what, done)),
    )  # fmt: skip
    assert [done for what, done in seen if what.startswith("adapting")] == [18]
    found = opened(tmp_path / "s.zarr", folder, mode="adapt")
    recipes = [found[name].recipe.fields for name in ("train", "train+aug0")]
    assert recipes[0]["adapted_to"] == recipes[1]["adapted_to"]


def test_a_broken_image_is_masked_in_every_view(folder, tmp_path):
    path = folder / "train" / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    extract(folder, tmp_path / "s.zarr", skip_errors=True)
    found = opened(tmp_path / "s.zarr", folder)
    for name in ("train", "train+aug0", "train+aug1"):
        names = found[name].array("sample_id")[~found[name].valid]
        assert [str(one) for one in names] == ["train/bee/2.png"]


def test_a_batch_without_any_readable_image_is_masked(tmp_path):
    folder = write_folder(tmp_path / "photos", per_class=2)
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"x")
    extract(folder, tmp_path / "s.zarr", skip_errors=True, splits=["train"])
    found = opened(tmp_path / "s.zarr", folder)
    assert not any(found[name].valid.any() for name in found.splits)


def test_a_sweep_gives_the_same_cells_with_views_as_without(tmp_path):
    folder = write_folder(tmp_path / "photos", per_class=12)
    tables = {}
    for name, views in (("with", 2), ("without", 0)):
        extract(folder, tmp_path / f"{name}.zarr", views=views)
        done = featstore.probe(
            protocols=["knn-marks+k=3", "ridge"], store=tmp_path / f"{name}.zarr",
            results=tmp_path / f"{name}-results", scheduler="sync",
        )  # fmt: skip
        assert (done.filled, done.failed) == (2, [])
        tables[name] = featstore.open_results(tmp_path / f"{name}-results").drop_vars(
            "seconds", errors="ignore"
        )
    xr.testing.assert_equal(tables["with"], tables["without"])
    digests = {opened(tmp_path / f"{name}.zarr", folder).digest("train", "test") for name in tables}
    assert len(digests) == 1
    again = featstore.probe(
        protocols=["ridge"], store=tmp_path / "with.zarr", results=tmp_path / "without-results",
        scheduler="sync",
    )  # fmt: skip
    assert again.up_to_date == 1


def test_why_compares_views_as_well(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr")
    key = FeatureKey(f"{RESNET}~random0", f"folder:{folder}", BNMode.EVAL)
    options = featstore.extraction.Options(dtype="float32")
    found = stored_against_now(key, store=tmp_path / "s.zarr", options=options)
    assert found == {name: {} for name in ("train", "test", "train+aug0", "train+aug1")}
    path = folder / "train" / "ant" / "0.png"
    path.write_bytes(path.read_bytes() + b"x")
    found = stored_against_now(key, store=tmp_path / "s.zarr", options=options)
    assert set(found["train+aug1"]) == {"augmentation", "images", "row_order"}


def test_a_missing_view_says_how_many_to_ask_for(folder, tmp_path):
    extract(folder, tmp_path / "s.zarr")
    with pytest.raises(MissingFeaturesError, match=r"train\+aug4 .*--bn-mode eval --views 5$"):
        opened(tmp_path / "s.zarr", folder)["train+aug4"]


def test_names_of_views_are_read_back():
    assert [view_number(view_name(number)) for number in (0, 7, 12)] == [0, 7, 12]
    assert {view_number(name) for name in ("train", "test+aug0", "train+aug", "train+aug1x")} == {
        None
    }


@pytest.mark.parametrize(
    ("options", "suffix", "message"),
    [
        ({"views": -1}, "", "views must be 0 or more, got -1"),
        ({"splits": ["test"]}, "", "views are of the train split, and splits are test"),
        ({}, "@ericsson-fewshot", "@ericsson-fewshot has no augmentation"),
    ],
)
def test_views_that_cannot_be_are_refused_before_any_work(
    folder, tmp_path, options, suffix, message
):
    with pytest.raises(ValueError, match=message):
        extract(f"{folder}{suffix}", tmp_path / "s.zarr", **options)
    assert not (tmp_path / "s.zarr").exists()


def test_the_global_generators_are_left_alone(folder, tmp_path):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    extract(folder, tmp_path / "s.zarr", {"pixels": Pixels()})
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state[1], np.random.get_state()[1])
