"""From an image to the (3, h, w) uint8 pixels that a model takes, before normalisation.

Normalisation is the encoder's, on its device: models that differ only in mean and std thereby
share a decoding pass, and a batch travels in a quarter of the bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import InterpolationMode, functional

from featstore.keys import canonical_json

_GEOMETRY = ("input_size", "interpolation", "crop_pct", "crop_mode")

_STUDIES: dict[str, dict[str, Any]] = {
    "marks": {"resize": 256, "interpolation": "bilinear"},
    "ericsson": {"resize": 224, "interpolation": "bicubic"},
    # Both sides, whatever the aspect: the published code, not the paper's short side of 224.
    "ericsson-fewshot": {"resize": (257, 257), "interpolation": "bilinear"},
}
_INPUT_SIZE = (3, 224, 224)

AUGMENTATION = "random-resized-crop+flip"
"""Name of the one augmentation there is, as the recipe of a view has it."""

_RANDOM = {"crop": "random", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}
_TRIES = 10  # to draw a box that fits, before the largest one in the middle is taken
_DRAWS = 2 * _TRIES + 3  # area and aspect of each try, the place of the box, the flip


@dataclass(frozen=True)
class Transform:
    """A model's own evaluation transform (`own`), as timm builds it, or that of a study.

    `spec` says all of it and is part of the recipe; two models whose specs are equal share a
    decoding pass.
    """

    spec: tuple[tuple[str, Any], ...]

    @classmethod
    def own(cls, data_config: Mapping[str, Any]) -> Transform:
        """Transform from timm's data configuration of some weights."""
        values = {name: data_config[name] for name in _GEOMETRY}
        values["input_size"] = tuple(values["input_size"])
        if values["crop_mode"] == "border":  # the only mode whose pixels depend on the mean
            values["mean"] = tuple(data_config["mean"])
        return cls(tuple(sorted(values.items())))

    @classmethod
    def study(cls, name: str, *, square: str = "") -> Transform:
        """Transform of a study: `marks`, `ericsson` or `ericsson-fewshot`.

        Parameters
        ----------
        square : what `marks` does first: `pad` to a square with black, `crop` to one, or ""
        """
        if name not in _STUDIES or square not in ("", "pad", "crop"):
            raise ValueError(f"study must be one of {', '.join(_STUDIES)}, got {name!r} {square!r}")
        values = {"study": name, "input_size": _INPUT_SIZE, "crop": "center", **_STUDIES[name]}
        if name == "marks":
            values["square"] = square
        return cls(tuple(sorted(values.items())))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out, in pixels."""
        _, height, width = dict(self.spec)["input_size"]
        return height, width

    def augmented(self) -> Transform:
        """The same up to a crop of random area, aspect and place, half of them flipped.

        Raises
        ------
        ValueError
            The study publishes no augmentation.
        """
        values = dict(self.spec)
        if values.get("study") == "ericsson-fewshot":
            raise ValueError("@ericsson-fewshot has no augmentation, so no views. Leave them out")
        kept = {"input_size", "interpolation", "study", "square"}
        if values.get("study") == "marks":
            kept.add("resize")
        values = {name: value for name, value in values.items() if name in kept} | _RANDOM
        return Transform(tuple(sorted(values.items())))

    def build(self) -> Callable[[Image.Image], torch.Tensor]:
        """The transform itself, picklable for loader processes.

        Raises
        ------
        ValueError
            It is an augmented one, which a `View` builds.
        """
        values = dict(self.spec)
        if values.get("crop") == "random":
            raise ValueError("an augmented transform draws at random; build a View of it")
        if "study" in values:
            return partial(_evaluate, values)
        pipeline: Callable[[Image.Image], torch.Tensor] = create_transform(
            **values, is_training=False, normalize=False
        )
        return pipeline


@dataclass(frozen=True)
class View:
    """One random view of each image of a split, the same whoever makes it, and when.

    Attributes
    ----------
    transform : augmented
    number : from 0 ; seed : of all draws, in hex
    """

    transform: Transform
    number: int
    seed: str

    @classmethod
    def of(cls, transform: Transform, fingerprint: str, number: int) -> View:
        """View of a split by its fingerprint, augmenting its plain transform."""
        seed = hashlib.sha256(canonical_json([fingerprint, "view", number])).hexdigest()[:32]
        return cls(transform.augmented(), number, seed)

    @property
    def facts(self) -> dict[str, Any]:
        """What the recipe says of the draws, as JSON values."""
        return {"name": AUGMENTATION, "view": self.number, "seed": self.seed}

    def build(self) -> Callable[[Image.Image, int], torch.Tensor]:
        """The transform of an image and its position in the split, picklable."""
        return partial(_augment, dict(self.transform.spec), int(self.seed, 16))


def draw_box(
    draws: Sequence[float],
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box, with the law of torchvision's crop.

    Its share of the area is uniform, its aspect log-uniform; where ten such do not fit, it is the
    largest in the middle with an aspect within `ratio`.

    Parameters
    ----------
    draws : 22 numbers, uniform in [0, 1)
    width, height : of the image, in pixels
    scale : least and greatest share of the area ; ratio : of width to height
    """
    low, high = map(math.log, ratio)
    for share, aspect in zip(draws[: 2 * _TRIES : 2], draws[1 : 2 * _TRIES : 2], strict=True):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * share)
        odds = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(area * odds)), round(math.sqrt(area / odds))
        if 0 < w <= width and 0 < h <= height:
            top = int(draws[2 * _TRIES] * (height - h + 1))
            return top, int(draws[2 * _TRIES + 1] * (width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _draws(seed: int, position: int) -> list[float]:
    """Uniform numbers in [0, 1) of one image.

    From the raw stream of PCG64, which NumPy promises to keep, unlike `random`.
    """
    raw = np.random.PCG64([seed, position]).random_raw(_DRAWS)
    return [float(one) * 2.0**-53 for one in raw >> np.uint64(11)]


def _evaluate(values: Mapping[str, Any], image: Image.Image) -> torch.Tensor:
    size = list(values["input_size"][1:])
    return _pixels(functional.center_crop(_prepare(values, image), size))


def _augment(
    values: Mapping[str, Any], seed: int, image: Image.Image, position: int
) -> torch.Tensor:
    prepared = _prepare(values, image)
    draws = _draws(seed, position)
    box = draw_box(draws, *prepared.size, scale=values["scale"], ratio=values["ratio"])
    mode = InterpolationMode(values["interpolation"])
    cut = functional.resized_crop(prepared, *box, list(values["input_size"][1:]), mode)
    return _pixels(functional.hflip(cut) if draws[-1] < values["flip"] else cut)


def _pixels(image: Image.Image) -> torch.Tensor:
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels


def _prepare(values: Mapping[str, Any], image: Image.Image) -> Image.Image:
    """The image made square and resized, where the transform says so."""
    sides = {"pad": max, "crop": min}
    if values.get("square"):
        image = functional.center_crop(image, [sides[values["square"]](image.size)] * 2)
    if values.get("resize"):
        size = values["resize"]
        image = functional.resize(
            image,
            [size] if isinstance(size, int) else list(size),
            InterpolationMode(values["interpolation"]),
        )
    return image
