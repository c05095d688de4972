"""The tiny study's datasets: real images that ship inside scikit-learn and scikit-image.

Nothing is downloaded and nothing is kept on disk: a set is built in memory, in well under a second,
byte for byte the same every time. All arithmetic on pixels is on integers or is Pillow's own, so
neither thread counts nor BLAS libraries change a byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from featstore.datasets.image_split import ArrayImages, ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import UnknownNameError

SIZE = 32
"""Side of every image in pixels, the input size of the tiny models: no resizing follows."""

_DIGITS_PER_CLASS = 100  # of each digit to train, 1000 in all; the other 797 are the test split
_FEW_PER_CLASS = 25  # labelled images of each digit in the train split of a shifted set
_PATCHES = {"train": 25, "test": 60}  # of each picture
_SPLITS = ("train", "test")
_SEED = 20240712

_PICTURES = (
    "brick",
    "cell",
    "chelsea",
    "coins",
    "grass",
    "gravel",
    "ihc",
    "motorcycle_left",
    "page",
    "text",
)
# Only PNG files: what a JPEG decodes to depends on the version of the decoder.
_BACKGROUNDS = ("brick", "coins", "grass", "gravel")

Pixels = np.ndarray  # (n, SIZE, SIZE) uint8, or one (SIZE, SIZE) of it
Shift = Callable[[Pixels, np.random.Generator], Pixels]


def read(entry: Entry, split: str, _root: Path) -> ImageSplit:
    """Split of a catalogue entry; nothing need be fetched."""
    return load_split(entry.name, split)


@cache
def load_split(dataset: str, split: str) -> ImageSplit:
    """One split of a tiny dataset, in memory.

    `digits` trains on 1000 images, 100 of each; its shifts show 250 of these and the same 797
    test images, changed; `textures` shares no image with them.

    Raises
    ------
    UnknownNameError
        There is no such dataset, or no such split of it.
    """
    if dataset not in NAMES:
        raise UnknownNameError(
            f"no tiny dataset is called {dataset!r}; there are {', '.join(NAMES)}"
        )
    if split not in _SPLITS:
        raise UnknownNameError(f"{dataset} has no split {split!r}, only {' and '.join(_SPLITS)}")
    if dataset == "textures":
        return _textures(split)
    pixels, labels = _digits()
    rows = _digit_rows(split, labels, few=dataset != "digits")
    if dataset != "digits":
        pixels = _shifted(dataset)
    return _image_split(
        dataset,
        split,
        pixels[rows],
        labels[rows],
        ids=tuple(f"digit-{row:04d}" for row in rows),
        categories=tuple(str(digit) for digit in range(10)),
    )


def _image_split(
    dataset: str,
    split: str,
    pixels: Pixels,
    labels: np.ndarray,
    *,
    ids: tuple[str, ...],
    categories: tuple[str, ...],
) -> ImageSplit:
    for array in (pixels, labels):  # the cache hands the same arrays to everyone
        array.setflags(write=False)
    images = ArrayImages(pixels)
    return ImageSplit(dataset, split, ids, labels, categories, images, images.content)


@cache
def _digits() -> tuple[Pixels, np.ndarray]:
    """All 1797 handwritten digits as (1797, SIZE, SIZE) uint8, white on black, and their labels.

    They are 8 x 8 with 17 grey levels. They are enlarged once, here, because the shifts (edges,
    rotation, a texture behind) need finer pixels than the digits have.
    """
    images, labels = load_digits(return_X_y=True)
    small = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for one in small
    ]
    return np.stack(large), labels.astype(np.int64)


def _digit_rows(split: str, labels: np.ndarray, *, few: bool) -> np.ndarray:
    """Rows of the split in ascending order; a `few` train split lies within the whole one."""
    rng = np.random.default_rng(_SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    if split == "test":
        return np.sort(np.concatenate([rows[_DIGITS_PER_CLASS:] for rows in shuffled]))
    per_class = _FEW_PER_CLASS if few else _DIGITS_PER_CLASS
    return np.sort(np.concatenate([rows[:per_class] for rows in shuffled]))


@cache
def _shifted(dataset: str) -> Pixels:
    """Every digit, changed as the set's name says; an image's change does not depend on splits."""
    rng = np.random.default_rng([_SEED, NAMES.index(dataset)])
    return _SHIFTS[dataset](_digits()[0], rng)


def _edges(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Outlines as of a pencil: dark on paper, a pixel or two wide, broken here and there."""
    wide = np.pad(pixels.astype(np.int64), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]
    down = wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]
    line = (across**2 + down**2) > 70**2
    pressure = rng.integers(90, 221, size=(len(pixels), 1, 1))
    # Gaps in 4 x 4 pixel cells, as where a pencil is lifted.
    gaps = rng.integers(0, 8, size=(len(pixels), SIZE // 4, SIZE // 4)) == 0
    gaps = gaps.repeat(4, axis=1).repeat(4, axis=2)
    paper = 235 + rng.integers(-12, 13, size=pixels.shape)
    return _to_uint8(paper - pressure * (line & ~gaps))


def _inverted(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Dark digits on a light, uneven, noisy ground."""
    noise = rng.integers(-50, 51, size=pixels.shape)
    ramp = np.linspace(-60, 60, SIZE).astype(np.int64)
    slope = rng.integers(-1, 2, size=(2, len(pixels), 1, 1))
    light = slope[0] * ramp[:, None] + slope[1] * ramp
    return _to_uint8(200 - pixels.astype(np.int64) * 5 // 8 + light + noise)


def _texture(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Digits on a patch of brick, coins, grass or gravel, which shines through them."""
    pictures = [_picture(name) for name in _BACKGROUNDS]
    out = np.empty_like(pixels)
    for row, digit in enumerate(pixels.astype(np.int64)):
        ground = _window(pictures[rng.integers(len(pictures))], SIZE, rng).astype(np.int64)
        ink = digit * 4 // 5  # of 255; the ground shines through the rest
        out[row] = _to_uint8((ground * (255 - ink) + 240 * ink) // 255)
    return out


def _blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Digits out of focus, in fog: little contrast on a ground of any grey, and some grain."""
    radius = rng.integers(2, 5, size=len(pixels))
    soft = [
        np.asarray(Image.fromarray(one).filter(ImageFilter.BoxBlur(int(r))))
        for one, r in zip(pixels, radius, strict=True)
    ]
    contrast = rng.integers(15, 41, size=(len(pixels), 1, 1))  # percent
    ground = rng.integers(20, 121, size=(len(pixels), 1, 1))
    grain = rng.integers(-8, 9, size=pixels.shape)
    return _to_uint8(ground + np.stack(soft).astype(np.int64) * contrast // 100 + grain)


def _rotated(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Digits turned by up to 60 degrees either way, at 60 to 90 % of their size, off centre."""
    angle = rng.integers(-60, 61, size=len(pixels))
    percent = rng.integers(60, 91, size=len(pixels))
    offset = rng.integers(-4, 5, size=(len(pixels), 2))
    turned = [
        _turn(one, math.radians(int(a)), int(p) / 100, (int(x), int(y)))
        for one, a, p, (x, y) in zip(pixels, angle, percent, offset, strict=True)
    ]
    return np.stack(turned)


def _turn(pixels: Pixels, angle: float, scale: float, offset: tuple[int, int]) -> Pixels:
    cosine, sine, centre = math.cos(angle) / scale, math.sin(angle) / scale, SIZE / 2
    x, y = -centre - offset[0], -centre - offset[1]
    inverse = (  # Pillow wants the map from where a pixel goes to where it comes from
        cosine,
        sine,
        cosine * x + sine * y + centre,
        -sine,
        cosine,
        -sine * x + cosine * y + centre,
    )
    image = Image.fromarray(pixels)
    how = Image.Transform.AFFINE
    return np.asarray(image.transform((SIZE, SIZE), how, inverse, Image.Resampling.BILINEAR))


def _textures(split: str) -> ImageSplit:
    """Patches of pictures, train from the left half of each and test from the right.

    Colour and mean brightness, which would give a picture away, are taken out.
    """
    rng = np.random.default_rng([_SEED, NAMES.index("textures"), _SPLITS.index(split)])
    patches, labels, ids = [], [], []
    for label, name in enumerate(_PICTURES):
        picture = _picture(name)
        middle = picture.shape[1] // 2
        half = picture[:, :middle] if split == "train" else picture[:, middle:]
        for number in range(_PATCHES[split]):
            patches.append(_patch(half, rng))
            labels.append(label)
            ids.append(f"{name}-{split}-{number:02d}")
    return _image_split(
        "textures",
        split,
        np.stack(patches),
        np.array(labels, dtype=np.int64),
        ids=tuple(ids),
        categories=_PICTURES,
    )


def _patch(picture: np.ndarray, rng: np.random.Generator) -> Pixels:
    """A square of 48 to 80 pixels, some mirrored, brought to SIZE, in light of its own."""
    while True:
        window = _window(picture, int(rng.integers(48, 81)), rng)
        window = window[:, :: int(rng.integers(2)) * 2 - 1]
        image = Image.fromarray(np.ascontiguousarray(window))
        patch = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int64)
        contrast = int(rng.integers(70, 121))  # percent
        deviation = patch - patch.sum() // patch.size
        if (deviation**2).sum() >= 16 * patch.size:  # an empty stretch could be of any picture
            return _to_uint8(int(rng.integers(110, 146)) + deviation * contrast // 100)


def _window(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    top = rng.integers(picture.shape[0] - side + 1)
    left = rng.integers(picture.shape[1] - side + 1)
    return picture[top : top + side, left : left + side]


@cache
def _picture(name: str) -> np.ndarray:
    """A picture of scikit-image's as (height, width) uint8 grey."""
    # The file itself, since skimage.data's functions may reach for the network.
    path = Path(skimage.__file__).parent / "data" / f"{name}.png"
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def _to_uint8(values: np.ndarray) -> Pixels:
    clipped: np.ndarray = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


_SHIFTS: dict[str, Shift] = {
    "digits-blur": _blur,
    "digits-edges": _edges,
    "digits-inverted": _inverted,
    "digits-rotated": _rotated,
    "digits-texture": _texture,
}

NAMES = ("digits", *_SHIFTS, "textures")
"""Every tiny dataset."""
