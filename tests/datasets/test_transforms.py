"""Pixels equal to timm's own evaluation transform, and which models share a decoding pass."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from featstore.datasets.transforms import Transform, check_name
from featstore.errors import UnknownNameError
from featstore.models import Encoder

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CENTER = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.875,
          "crop_mode": "center", **IMAGENET}  # fmt: skip
CONFIGS = {
    "center": CENTER,
    "squash": {**CENTER, "crop_mode": "squash", "crop_pct": 0.9},
    "border": {**CENTER, "crop_mode": "border", "crop_pct": 0.95},
    "border other mean": {**CENTER, "crop_mode": "border", "mean": (0.1, 0.5, 0.9)},
    "bilinear": {**CENTER, "interpolation": "bilinear"},
    "nearest": {**CENTER, "interpolation": "nearest", "crop_pct": 1.0},
    "whole": {**CENTER, "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "oblong": {**CENTER, "input_size": (3, 24, 40)},
}
SIZES = [(70, 50), (50, 70), (32, 32), (20, 31), (33, 200)]


def photo(size):
    """Noise over a slope: any shift or other resampling changes it."""
    rng = np.random.default_rng(size[0])
    slope = np.linspace(0, 155, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    return Image.fromarray((slope + rng.integers(0, 100, slope.shape)).astype(np.uint8))


class Pixels(nn.Module):
    """A backbone whose embedding is its normalised input."""

    def forward_features(self, pixels):
        return pixels

    def forward_head(self, features, pre_logits):
        return features.flatten(1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", SIZES)
def test_transform_then_encoder_equals_timms_whole_evaluation_transform(config, size):
    pixels = Transform.own(config).build()(photo(size))
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == config["input_size"]

    encoder = Encoder(Pixels(), [""], mean=config["mean"], std=config["std"],
                      device=torch.device("cpu"))  # fmt: skip
    embedded = encoder(pixels[None])[""]

    expected = create_transform(**config, is_training=False)(photo(size))
    torch.testing.assert_close(embedded, expected.flatten()[None], rtol=1e-6, atol=1e-6)


def test_models_that_differ_in_mean_and_std_alone_share_a_transform():
    other = {**CENTER, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert Transform.own(CENTER) == Transform.own(other)
    assert len({Transform.own(CENTER), Transform.own(other)}) == 1  # they group as keys


@pytest.mark.parametrize(
    "change",
    [{"input_size": (3, 40, 40)}, {"interpolation": "bilinear"}, {"crop_pct": 0.9},
     {"crop_mode": "squash"}, {"crop_mode": "border"}],
)  # fmt: skip
def test_models_that_differ_in_geometry_do_not(change):
    assert Transform.own(CENTER) != Transform.own({**CENTER, **change})


def test_borders_are_filled_with_the_mean_so_there_it_counts():
    one, other = CONFIGS["border"], CONFIGS["border other mean"]
    assert Transform.own(one) != Transform.own({**one, "mean": other["mean"]})
    assert Transform.own(one) == Transform.own({**one, "std": (0.5,) * 3})


def test_a_configuration_read_from_json_gives_the_same_transform():
    listed = {name: list(v) if isinstance(v, tuple) else v for name, v in CENTER.items()}
    assert Transform.own(listed) == Transform.own(CENTER)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_transform_and_its_pipeline_survive_the_way_to_a_loader_process(config):
    transform = Transform.own(config)
    assert pickle.loads(pickle.dumps(transform)) == transform
    there = pickle.loads(pickle.dumps(transform.build()))
    assert torch.equal(there(photo((70, 50))), transform.build()(photo((70, 50))))


def test_only_own_is_a_name_of_a_transform():
    check_name("own")
    with pytest.raises(UnknownNameError, match="unknown transform @owm; there are own"):
        check_name("owm")
