"""The tiny backbones behave as timm models do, and the catalogue's entries fit them."""

import tomllib
from pathlib import Path

import pytest
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from featstore.models import tiny
from featstore.models.tiny import ARCHITECTURES

CATALOGUE = {
    name: entry
    for name, entry in tomllib.loads(
        Path(tiny.__file__).with_name("catalogue").joinpath("tiny.toml").read_text()
    ).items()
    if "tiny" in entry.get("sets", ())
}


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ARCHITECTURES[request.param]().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_input_is_what_the_configuration_says(model):
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    assert config["interpolation"] == "bicubic"
    assert config["crop_pct"] == 1.0
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert create_transform(**config, is_training=False)


def test_pre_logits_are_the_output_and_as_wide_as_num_features(model, images):
    with torch.no_grad():
        pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(pre_logits, model(images))
    assert pre_logits.shape == (3, model.num_features)


def test_the_last_intermediate_comes_before_pooling(model, images):
    with torch.no_grad():
        final, blocks = model.forward_intermediates(images, output_fmt="NCHW")
        torch.testing.assert_close(final, model.forward_features(images))
    assert len(blocks) >= 4
    assert all(block.ndim == 4 and len(block) == 3 for block in blocks)


def test_the_resnet_embeds_the_mean_and_the_transformer_its_class_token(images):
    resnet, vit = (ARCHITECTURES[name]().eval() for name in ("tiny-resnet", "tiny-vit"))
    with torch.no_grad():
        torch.testing.assert_close(resnet(images), resnet.forward_features(images).mean((2, 3)))
        torch.testing.assert_close(vit(images), vit.forward_features(images)[:, 0])


def test_only_the_resnet_has_batch_norm():
    found = {
        name: any(isinstance(part, nn.BatchNorm2d) for part in build().modules())
        for name, build in ARCHITECTURES.items()
    }
    assert found == {"tiny-resnet": True, "tiny-vit": False}


def test_sizes_are_tiny(model):
    assert 150_000 < sum(weight.numel() for weight in model.parameters()) < 350_000


def test_the_catalogue_has_models_of_five_ways_two_backbones_and_all_stages():
    late = [entry for entry in CATALOGUE.values() if entry["stage"] == "late"]
    assert len(CATALOGUE) >= 12
    assert len({entry["method"] for entry in late}) == 5
    assert {entry["backbone"] for entry in late} == {"resnet", "vit"}
    assert {entry["stage"] for entry in CATALOGUE.values()} == {"late", "early", "random"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_is_consistent(name):
    entry = CATALOGUE[name]
    assert entry["arch"] in ARCHITECTURES
    assert entry["arch"] == f"tiny-{entry['backbone']}"
    assert name == f"{entry['lineage']}{'-early' * (entry['stage'] == 'early')}"
    if entry["stage"] == "random":
        assert (entry["weights"], entry["pretraining"], entry["epochs"]) == ("random:0", [], 0)
    else:
        assert entry["weights"] == f"tiny/{name.removeprefix('tiny-')}.safetensors"
        assert entry["pretraining"] == ["digits"]
    if entry["stage"] == "early":
        assert entry["epochs"] < CATALOGUE[entry["lineage"]]["epochs"]
