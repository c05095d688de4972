import numpy as np
import pytest
from PIL import Image


def write_folder(root, *, per_class=6, classes=("ant", "bee", "cat"), splits=("train", "test")):
    """A folder of small random PNGs; those of a class share a tint."""
    rng = np.random.default_rng(7)
    for split in splits:
        for number, name in enumerate(classes):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., number % 3] += 100
                Image.fromarray(pixels).save(place / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "photos")
