"""Torchvision's classification sets that need only a name, with their official splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from PIL import Image
from torchvision.datasets.utils import download_and_extract_archive

from featstore.datasets.files import file_split, split_by_class
from featstore.datasets.image_split import ImageSplit
from featstore.errors import MissingDatasetError

_SUN_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"


@dataclass(frozen=True)
class Source:
    """How torchvision is asked for each split of a set.

    Attributes
    ----------
    make : torchvision's class
    splits : keyword arguments by split; a set without official splits has only `all`
    """

    make: Callable[..., Any]
    splits: Mapping[str, Mapping[str, Any]]


def _named(*names: str, **other: str) -> dict[str, dict[str, str]]:
    """Splits asked for by `split=`, under our name or torchvision's own."""
    return {name: {"split": name} for name in names} | {k: {"split": v} for k, v in other.items()}


_BOOLEAN = {"train": {"train": True}, "test": {"train": False}}
_ALL: dict[str, dict[str, Any]] = {"all": {}}

SOURCES: dict[str, Source] = {
    "cifar10": Source(tv.CIFAR10, _BOOLEAN),
    "cifar100": Source(tv.CIFAR100, _BOOLEAN),
    "country211": Source(tv.Country211, _named("train", "test", val="valid")),
    "dtd": Source(tv.DTD, _named("train", "val", "test")),
    "eurosat": Source(tv.EuroSAT, _ALL),
    "fashion_mnist": Source(tv.FashionMNIST, _BOOLEAN),
    "fgvc_aircraft": Source(tv.FGVCAircraft, _named("train", "val", "test")),
    "flowers102": Source(tv.Flowers102, _named("train", "val", "test")),
    "food101": Source(tv.Food101, _named("train", "test")),
    "gtsrb": Source(tv.GTSRB, _named("train", "test")),
    "mnist": Source(tv.MNIST, _BOOLEAN),
    "oxford_pets": Source(tv.OxfordIIITPet, _named("test", train="trainval")),
    "rendered_sst2": Source(tv.RenderedSST2, _named("train", "val", "test")),
    "stanford_cars": Source(tv.StanfordCars, _named("train", "test")),
    "stl10": Source(tv.STL10, _named("train", "test")),
    "sun397": Source(tv.SUN397, _ALL),
    "svhn": Source(tv.SVHN, _named("train", "test")),
}


@dataclass(frozen=True)
class TorchvisionImages:
    """Reader of a torchvision set that holds its images in memory."""

    dataset: Any

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position."""
        image: Image.Image = self.dataset[position][0]
        return image.convert("RGB")


def split_names(name: str) -> list[str]:
    """Splits that a set has here; one without official splits gets a seeded 80/20 split."""
    splits = SOURCES[name].splits
    names = ("train", "test") if "all" in splits else ("train", "val", "test")
    return [one for one in names if "all" in splits or one in splits]


def load_split(name: str, split: str, root: Path, *, download: bool) -> ImageSplit:
    """Split of a torchvision set below `root`.

    Raises
    ------
    MissingDatasetError
        It is not there, or could not be fetched; says where it was looked for.
    """
    source = SOURCES[name]
    arguments = source.splits.get(split, source.splits.get("all", {}))
    dataset = _open(name, source.make, root, dict(arguments), download)
    labels = _labels(dataset)
    files = _files(dataset)
    categories = [str(c) for c in getattr(dataset, "classes", range(int(labels.max()) + 1))]
    if files is None:
        read = TorchvisionImages(dataset)
        ids = tuple(f"{split}/{i}" for i in range(len(labels)))
        pixels = np.ascontiguousarray(np.asarray(dataset.data))
        content = hashlib.sha256(pixels.tobytes()).hexdigest()
        return ImageSplit(name, split, ids, labels, tuple(categories), read, content)
    if "all" in source.splits:
        order = sorted(range(len(files)), key=files.__getitem__)  # torchvision's is the disk's
        files, labels = [files[i] for i in order], labels[order]
        rows = (
            _sun397_partition(split, root, files, download)
            if name == "sun397"
            else split_by_class(labels)[split == "test"]
        )
        files, labels = [files[i] for i in rows], labels[rows]
    return file_split(name, split, root, files, labels.tolist(), categories)


def _open(
    name: str, make: Callable[..., Any], root: Path, arguments: dict[str, Any], download: bool
) -> Any:
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        return make(root=str(root), download=download, **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingDatasetError(
            f"{name} could not be fetched to {root} ({reason}). Try again, or place it there by "
            f"hand"
            if download  # then there is no network, or the host is gone
            else f"{name} is not below {root} ({reason}). "
            f"Fetch it: featstore datasets {name} --download --data-root {root}"
        ) from error


def _labels(dataset: Any) -> np.ndarray:
    """(n,) int64, from whichever attribute the class keeps them in."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return np.asarray(getattr(dataset, attribute), dtype=np.int64)
    return np.array([label for _, label in dataset._samples], dtype=np.int64)


def _files(dataset: Any) -> list[str] | None:
    """Paths of the images, or None where the class holds them in memory."""
    for attribute in ("_image_files", "_images"):
        if hasattr(dataset, attribute):
            return [str(path) for path in getattr(dataset, attribute)]
    for attribute in ("samples", "_samples"):
        if hasattr(dataset, attribute):
            return [str(path) for path, _ in getattr(dataset, attribute)]
    return None


def _sun397_partition(split: str, root: Path, files: list[str], download: bool) -> list[int]:
    """Positions of the files in the first official partition, which torchvision does not read."""
    folder = root / "SUN397"
    list_name = "Training_01.txt" if split == "train" else "Testing_01.txt"
    listing = folder / list_name
    usual = (listing, folder / "Partitions" / list_name, root / "Partitions" / list_name)
    if download and not any(path.exists() for path in usual):
        try:
            download_and_extract_archive(_SUN_PARTITIONS, str(folder))
        except (RuntimeError, OSError) as error:
            raise MissingDatasetError(
                f"sun397: its official split could not be fetched to {folder} ({error}). Try "
                f"again, or unpack {_SUN_PARTITIONS} there by hand"
            ) from error
    listing = next((path for path in usual if path.exists()), listing)
    if not listing.exists():
        raise MissingDatasetError(
            f"sun397: its official split is not at {listing}. Unpack {_SUN_PARTITIONS} there, or "
            f"run: featstore datasets sun397 --download --data-root {root}"
        )
    positions = {Path(path).relative_to(folder).as_posix(): i for i, path in enumerate(files)}
    lines = (line.strip().lstrip("/") for line in listing.read_text().splitlines())
    wanted = [line for line in lines if line]
    absent = [line for line in wanted if line not in positions]
    if absent:
        raise MissingDatasetError(f"sun397 lists {absent[0]}, which is not below {folder}")
    return [positions[line] for line in wanted]
