"""Pixels equal to timm's and torchvision's own transforms, and which models share a pass."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data import create_transform
from torch import nn
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode

from featstore.datasets import transforms
from featstore.datasets.transforms import Transform, View, draw_box
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


BILINEAR, BICUBIC = InterpolationMode.BILINEAR, InterpolationMode.BICUBIC


class Square:
    """Centre crop to the longer (`pad`) or the shorter side (`crop`), by torchvision."""

    def __init__(self, side):
        self.side = {"pad": max, "crop": min}[side]

    def __call__(self, image):
        return tv.CenterCrop(self.side(image.size))(image)


STUDIES = {
    ("marks", ""): [tv.Resize(256, BILINEAR), tv.CenterCrop(224)],
    ("marks", "pad"): [Square("pad"), tv.Resize(256, BILINEAR), tv.CenterCrop(224)],
    ("marks", "crop"): [Square("crop"), tv.Resize(256, BILINEAR), tv.CenterCrop(224)],
    ("ericsson", ""): [tv.Resize(224, BICUBIC), tv.CenterCrop(224)],
    ("ericsson-fewshot", ""): [tv.Resize((257, 257), BILINEAR), tv.CenterCrop(224)],
}
PHOTOS = [(500, 333), (331, 500), (224, 224), (256, 1000), (97, 31), (13, 1), (1, 13), (1, 1)]


@pytest.mark.parametrize(("study", "square"), STUDIES)
@pytest.mark.parametrize("size", PHOTOS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_studys_pixels_are_those_of_torchvisions_pipeline(study, square, size, mode):
    image = photo(size).convert(mode).convert("RGB")  # as readers hand out a grey file
    pixels = Transform.study(study, square=square).build()(image)
    expected = tv.Compose([*STUDIES[study, square], tv.PILToTensor()])(image)
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (3, 224, 224)
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("size", [(500, 300), (300, 500)])
def test_pad_puts_black_around_and_crop_cuts_by_pillow_alone(size):
    image = photo(size)
    left, top = ((500 - side) // 2 for side in size)
    padded = Image.new("RGB", (500, 500))
    padded.paste(image, (left, top))
    cut = image.crop((100, 0, 400, 300) if size[0] > size[1] else (0, 100, 300, 400))
    for square, expected in (("pad", padded), ("crop", cut)):
        resized = expected.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
        pixels = Transform.study("marks", square=square).build()(image)
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(resized))


def test_studies_differ_in_their_specs_and_name_their_size():
    made = {Transform.study(study, square=square) for study, square in STUDIES}
    assert len(made) == len(STUDIES)
    assert {one.size for one in made} == {(224, 224)}
    assert Transform.own(CONFIGS["oblong"]).size == (24, 40)


@pytest.mark.parametrize(("study", "square"), [("own", ""), ("mark", ""), ("marks", "trim")])
def test_a_study_that_is_none_is_a_wrong_argument(study, square):
    with pytest.raises(ValueError, match="study must be one of marks, ericsson, ericsson-fewshot"):
        Transform.study(study, square=square)


AUGMENTED = {
    "marks": (Transform.study("marks"), [tv.Resize(256, BILINEAR)], (224, 224), BILINEAR),
    "marks pad": (
        Transform.study("marks", square="pad"),
        [Square("pad"), tv.Resize(256, BILINEAR)],
        (224, 224),
        BILINEAR,
    ),
    "ericsson": (Transform.study("ericsson"), [], (224, 224), BICUBIC),
    "own": (Transform.own(CONFIGS["oblong"]), [], (24, 40), BICUBIC),
    "own squash": (
        Transform.own({**CONFIGS["squash"], "interpolation": "bilinear"}),
        [],
        (32, 32),
        BILINEAR,
    ),
}


@pytest.mark.parametrize("name", AUGMENTED)
@pytest.mark.parametrize("size", [(500, 333), (97, 131), (40, 1), (1, 1)])
def test_a_views_pixels_are_torchvisions_given_the_same_box_and_flip(name, size, monkeypatch):
    plain, before, out, mode = AUGMENTED[name]
    view = View.of(plain, "ab" * 32, 3)
    image, flips = photo(size), set()
    for position in range(6):
        draws = transforms._draws(int(view.seed, 16), position)
        width, height = tv.Compose(before)(image).size
        box = draw_box(draws, width, height, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        monkeypatch.setattr(tv.RandomResizedCrop, "get_params", lambda *_, box=box: box)
        flip = float(draws[-1] < 0.5)
        pipeline = [*before, tv.RandomResizedCrop(out, interpolation=mode)]
        expected = tv.Compose([*pipeline, tv.RandomHorizontalFlip(flip), tv.PILToTensor()])(image)
        assert torch.equal(view.build()(image, position), expected)
        flips.add(flip)
    assert flips == {0.0, 1.0}


def boxes_of_torchvision(size, n):
    image = Image.new("RGB", size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return np.array(
            [tv.RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(n)]
        )


@pytest.mark.parametrize("size", [(341, 256), (60, 90), (300, 110)])
def test_boxes_have_the_law_of_torchvisions(size):
    n = 3000
    width, height = size
    ours = np.array(
        [
            draw_box(transforms._draws(7, i), width, height, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
            for i in range(n)
        ]
    )
    theirs = boxes_of_torchvision(size, n)
    for of in (
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: box[:, 3] / box[:, 2],  # aspect
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 1] + box[:, 3] / 2 - box[:, 0],  # place and size together
    ):
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(400, 10), (10, 400), (3000, 7), (9, 2000)])
def test_where_no_box_fits_the_largest_in_the_middle_is_taken_as_by_torchvision(size):
    box = draw_box([0.5] * 22, *size, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
    assert box == tuple(boxes_of_torchvision(size, 1)[0])


def test_half_of_the_images_are_flipped_and_draws_are_uniform():
    draws = np.array([transforms._draws(5, i) for i in range(4000)])
    assert 0 <= draws.min() < draws.max() < 1
    assert abs((draws[:, -1] < 0.5).mean() - 0.5) < 4 * 0.5 / 4000**0.5
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=4 * (1 / 12 / 4000) ** 0.5)
    correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 5 / 4000**0.5


def test_a_view_depends_on_split_number_and_position_alone():
    plain, image = Transform.study("marks"), photo((300, 200))
    one = View.of(plain, "ab" * 32, 0).build()
    first = [one(image, position) for position in range(5)]
    again = View.of(plain, "ab" * 32, 0).build()
    assert all(torch.equal(again(image, i), first[i]) for i in reversed(range(5)))
    others = [one(image, 6), View.of(plain, "ab" * 32, 1).build()(image, 0),
              View.of(plain, "ac" * 32, 0).build()(image, 0)]  # fmt: skip
    assert not any(torch.equal(other, first[0]) for other in others)


def test_draws_never_change():
    # Written down once: a view resumed by another version must go on as it was begun.
    seed = View.of(Transform.study("marks"), "0123456789abcdef" * 4, 2).seed
    assert seed == "8f884351a3a9d023826889b6c5163c8f"
    draws = transforms._draws(int(seed, 16), 11)
    expected = [0.21466444398498485, 0.3805989190698106, 0.8723272128691083]
    np.testing.assert_allclose(draws[:3], expected, rtol=0, atol=1e-15)
    assert draw_box(draws, 341, 256, scale=(0.08, 1), ratio=(3 / 4, 4 / 3)) == (84, 186, 161, 150)


def test_a_study_without_augmentation_has_no_views():
    with pytest.raises(ValueError, match="@ericsson-fewshot has no augmentation"):
        View.of(Transform.study("ericsson-fewshot"), "ab" * 32, 0)


def test_an_augmented_transform_is_built_by_a_view_only():
    with pytest.raises(ValueError, match="build a View"):
        Transform.study("marks").augmented().build()


def test_views_survive_the_way_to_a_loader_process():
    view = View.of(Transform.study("ericsson"), "ab" * 32, 1)
    assert pickle.loads(pickle.dumps(view)) == view
    there = pickle.loads(pickle.dumps(view.build()))
    assert torch.equal(there(photo((70, 50)), 3), view.build()(photo((70, 50)), 3))
