"""Modules given from Python: what is embedded, what is refused, what stays as it was."""

import logging
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torchvision import transforms as tv

import featstore
from featstore.errors import FeatStoreError, StoreMismatchError, UnknownNameError
from featstore.extraction import stored_against_now
from featstore.keys import BNMode, FeatureKey
from featstore.store import Store

RESNET = "file:none#arch=tiny-resnet"


class Net(nn.Module):
    """A plain network: a convolution and a global pool, with BatchNorm between."""

    def __init__(self, shape=(), seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(3, 5, 7, stride=4, bias=False)
        self.conv.weight = nn.Parameter(torch.randn(5, 3, 7, 7, generator=generator))
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.shape = shape

    def forward(self, pixels):
        rows = self.drop(self.norm(self.conv(pixels)).mean(dim=(2, 3)))
        return rows.reshape(*rows.shape, *self.shape)


class Configured(Net):
    pretrained_cfg: ClassVar = {
        "input_size": (3, 40, 40), "interpolation": "bilinear", "crop_pct": 1.0,
        "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
    }  # fmt: skip


def extract(models, root, store, **options):
    options = {"dtype": "float32", "num_workers": 0} | options
    return featstore.extract(models, [f"folder:{root}"], store=store, **options)


def split_of(store, root, model="mine", mode="eval"):
    return Store(store).open(FeatureKey(model, f"folder:{root}", BNMode(mode)))["test"]


@pytest.mark.parametrize("shape", [(), (1, 1)])
@pytest.mark.parametrize("kind", [Net, Configured])
def test_a_plain_modules_output_is_its_embedding(folder, tmp_path, kind, shape):
    net = kind(shape)
    extract({"mine": net}, folder, tmp_path / "s.zarr")
    split = split_of(tmp_path / "s.zarr", folder)
    transform = (
        tv.Compose([tv.Resize(40), tv.CenterCrop(40), tv.ToTensor(),
                    tv.Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
        if kind is Configured
        else create_transform(224, interpolation="bicubic", crop_pct=0.875)  # ImageNet's
    )  # fmt: skip
    net.eval()
    for row, name in zip(split.chunk(0), split.array("sample_id"), strict=True):
        image = transform(Image.open(folder / str(name)).convert("RGB"))
        with torch.inference_mode():
            expected = net(image[None]).flatten().numpy()
        np.testing.assert_allclose(row, expected, atol=2e-5)


def test_a_timm_model_is_the_same_by_name_and_as_a_module(folder, tmp_path):
    module = featstore.create_backbone("tiny-resnet", seed=0)
    modes = ["eval", "adapt"]
    extract({"mine": module}, folder, tmp_path / "s.zarr", bn_modes=modes)
    extract([RESNET], folder, tmp_path / "s.zarr", bn_modes=modes, weights="random")
    for mode in modes:
        mine = split_of(tmp_path / "s.zarr", folder, "mine", mode)
        named = split_of(tmp_path / "s.zarr", folder, f"{RESNET}~random0", mode)
        np.testing.assert_array_equal(mine.chunk(0), named.chunk(0))
        assert set(mine.recipe.differences(named.recipe)) == {"arch"}


def test_sites_of_a_module_share_its_forward_pass(folder, tmp_path):
    module = featstore.create_backbone("tiny-vit", seed=0)
    models = {"mine@cls": module, "mine@avg": module}
    assert extract(models, folder, tmp_path / "s.zarr").images == 36
    cls = split_of(tmp_path / "s.zarr", folder, "mine@cls")
    assert cls.recipe.fields["site"] == "cls"
    assert not np.array_equal(
        cls.chunk(0), split_of(tmp_path / "s.zarr", folder, "mine@avg").chunk(0)
    )


@pytest.mark.parametrize("modes", [["eval"], ["batch"], ["adapt"]])
def test_the_callers_module_stays_as_it_was(folder, tmp_path, modes):
    net = Net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    extract({"mine": net}, folder, tmp_path / "s.zarr", bn_modes=modes)
    assert all(layer.training for layer in net.modules())
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_other_weights_under_the_same_name_are_refused(folder, tmp_path):
    extract({"mine": Net(seed=0)}, folder, tmp_path / "s.zarr")
    assert extract({"mine": Net(seed=0)}, folder, tmp_path / "s.zarr").up_to_date == 2
    with pytest.raises(StoreMismatchError, match="weights: stored"):
        extract({"mine": Net(seed=1)}, folder, tmp_path / "s.zarr")
    extract({"mine": Net(seed=1)}, folder, tmp_path / "s.zarr", variant="b")
    assert len(list(Store(tmp_path / "s.zarr").keys())) == 2


def test_what_is_assumed_of_the_input_is_logged(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "featstore")
    extract({"plain": Net(), "said": Configured()}, folder, tmp_path / "s.zarr", splits=["test"])
    lines = [record.message for record in caplog.records if "input" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith("plain does not say all of its input; taken are input_size")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"tiny-vit-simclr": Net()}, "'tiny-vit-simclr' means another model already"),
        ({"tiny": Net()}, "'tiny' means another model already"),
        ({"all": Net()}, "'all' means another model already"),
        ({"timm:resnet18": Net()}, "'timm:resnet18' means another model already"),
        ({"mine~b": Net()}, "'mine~b' must be a plain name; a variant is given by `variant`"),
        ({"": Net()}, "must be a plain name"),
        ({"mine": np.zeros(3)}, "model 'mine' must be an nn.Module, got ndarray"),
        ({"mine": Net(), "mine@avg": Net()}, "must be one module at several sites"),
    ],
)
def test_names_and_modules_that_cannot_be_are_refused(folder, tmp_path, models, message):
    with pytest.raises(ValueError, match=message):
        extract(models, folder, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_weights_are_not_given_twice(folder, tmp_path):
    with pytest.raises(ValueError, match="modules come with their weights"):
        extract({"mine": Net()}, folder, tmp_path / "s.zarr", weights="random")


def test_a_plain_module_has_no_sites(folder, tmp_path):
    with pytest.raises(
        UnknownNameError, match="Net has no forward_features .*its one embedding; leave @avg out"
    ):
        extract({"mine@avg": Net()}, folder, tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda x: x, r"shape \(2, 3, 224, 224\)"),
        (lambda x: x.mean(), r"shape \(\)"),
        (lambda x: (x.flatten(1), x), "tuple"),
        (lambda x: x.flatten(1)[:1], r"shape \(1, 150528\)"),
    ],
)
def test_an_output_that_is_no_embedding_is_said(folder, tmp_path, output, found):
    class Odd(nn.Module):
        def forward(self, pixels):
            return output(pixels)

    message = rf"Odd must return \(n, d\) or \(n, d, 1, 1\) for 2 images, got {found}"
    with pytest.raises(ValueError, match=message):
        extract({"mine": Odd()}, folder, tmp_path / "s.zarr")


def test_modules_are_probed_by_their_name_and_why_cannot_load_them(folder, tmp_path):
    store = tmp_path / "s.zarr"
    extract({"mine": Net(), "other": Net(seed=1)}, folder, store)
    done = featstore.probe(["mine"], protocols=["knn-marks+k=3"], store=store,
                           results=tmp_path / "r", scheduler="sync")  # fmt: skip
    assert (done.filled, done.failed) == (1, [])
    assert list(featstore.open_results(tmp_path / "r").model.values) == ["mine"]
    key = FeatureKey("mine", f"folder:{folder}", BNMode.EVAL)
    with pytest.raises(UnknownNameError, match="mine cannot be loaded by its name.*give it again"):
        stored_against_now(key, store=store)


def test_a_module_that_takes_no_images_is_named(tmp_path):
    with pytest.raises(FeatStoreError, match=r"flat failed on two black images of 224 x 224"):
        featstore.extract({"flat": nn.Linear(7, 3)}, ["textures"], store=tmp_path / "s.zarr")
