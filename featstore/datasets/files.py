"""Images in files: reading one, listing those of a folder, dividing a list that has no splits."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from featstore.datasets.image_split import ImageSplit
from featstore.datasets.lists import subfolders
from featstore.errors import BadImageError, MissingDatasetError
from featstore.keys import canonical_json

log = logging.getLogger(__name__)

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_SHARE_OF_TEST = 0.2
_SPLIT_SEED = 0
# What Pillow's decoders raise on data that are cut or changed.
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error)


def decode(source: str | BinaryIO, name: str, *, upright: bool = False) -> Image.Image:
    """RGB image of a file or of its bytes, by their content; raises BadImageError with the name.

    `upright` turns it as its EXIF orientation says, which image files' readers mostly do not.
    """
    try:
        with Image.open(source) as opened:
            image = ImageOps.exif_transpose(opened) if upright else opened
            if image.mode.startswith("I;16"):  # Pillow would cut all above 255 to white
                grey = np.asarray(image).astype(np.uint16) >> 8
                return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise BadImageError(
                    f"{name} has {image.mode} pixels of no known range. Save it with 8 or 16 "
                    f"bits, or go on without it by --skip-errors"
                )
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")  # straight to RGB, Pillow warns
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = str(error).replace(f" {source!r}", "")  # a path said twice, or a buffer's address
        raise BadImageError(
            f"{name} is no image that can be read ({reason}). Replace it, or go on without it "
            f"by --skip-errors"
        ) from error
    except _BROKEN as error:
        raise BadImageError(
            f"{name} is truncated or broken ({error}). Replace it, or go on without it by "
            f"--skip-errors"
        ) from error


@dataclass(frozen=True)
class FileImages:
    """Reader of image files, each decoded by its content, whatever its extension."""

    paths: tuple[str, ...]

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position; raises BadImageError, naming its file."""
        path = self.paths[position]
        return decode(path, path)

    @property
    def content(self) -> str:
        """SHA-256 over file sizes, in hex: cheap, and changed by nearly every edit of an image."""
        return hashlib.sha256(
            canonical_json([Path(path).stat().st_size for path in self.paths])
        ).hexdigest()

    def bytes_digest(self) -> str:
        """SHA-256 over the files' bytes, in hex; raises BadImageError, naming a file."""
        return digest_encoded(read_encoded(path) for path in self.paths)


def read_encoded(path: str | Path) -> bytes:
    """An image file's bytes; raises BadImageError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImageError(f"{path} cannot be read ({error.strerror})") from error


def digest_encoded(images: Iterable[bytes]) -> str:
    """SHA-256 over images as they are encoded, in hex."""
    hasher = hashlib.sha256()
    for content in images:
        hasher.update(f"{len(content)}\n".encode())  # else a byte could pass to the next image
        hasher.update(content)
    return hasher.hexdigest()


def image_files(folder: Path) -> list[Path]:
    """Image files below a folder, by extension, sorted by path; others are named in the log.

    Raises
    ------
    BadImageError
        A folder below it may not be read, or a link leads nowhere.
    """

    def refuse(error: OSError) -> None:
        raise BadImageError(f"{error.filename} cannot be read ({error.strerror})") from error

    files = []
    for place, folders, found in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in found if not name.startswith(".")]
    files.sort()
    broken = [path for path in files if not path.exists()]
    if broken:
        raise BadImageError(f"{broken[0]} is a link that leads nowhere. Mend it or remove it")
    other = [path for path in files if path.suffix.lower() not in EXTENSIONS]
    if other:
        names = ", ".join(str(path) for path in other[:3])
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        log.warning("left out, not image files by their extension: %s%s", names, more)
    return [path for path in files if path.suffix.lower() in EXTENSIONS]


def split_by_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a seeded 80/20 split into train and test, class by class, each in order.

    A class of one image goes to train. Drawn from the raw stream of PCG64, which NumPy promises to
    keep, unlike `permutation`.
    """
    draws = np.random.PCG64(_SPLIT_SEED).random_raw(len(labels))
    test: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        wanted = max(1, round(_SHARE_OF_TEST * len(members))) if len(members) > 1 else 0
        test.extend(members[np.argsort(draws[members], kind="stable")][:wanted].tolist())
    in_test = np.zeros(len(labels), bool)
    in_test[test] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def check_labels(
    dataset: str, ids: Sequence[str], labels: np.ndarray, categories: Sequence[str]
) -> None:
    """Refuse labels of no category.

    Raises
    ------
    BadImageError
        A label lies outside 0..len(categories)-1; names its image.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= len(categories)))
    if len(outside):
        raise BadImageError(
            f"{dataset}: {ids[outside[0]]} has the label {labels[outside[0]]}, counted from 0, and "
            f"there are {len(categories)} categories. Labels and classes do not fit together"
        )


def file_split(
    dataset: str,
    name: str,
    root: Path,
    paths: Sequence[str | Path],
    labels: Iterable[int] | np.ndarray,
    categories: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
) -> ImageSplit:
    """Split of image files; a sample's name is its path below `root`, unless `ids` names it.

    A file that is listed again is a sample again, named `PATH#2`. An (n, c) array of labels is
    kept as it is: many labels for one image.

    Raises
    ------
    MissingDatasetError
        A file is absent.
    BadImageError
        A label lies outside 0..len(categories)-1.
    """
    read = FileImages(tuple(str(path) for path in paths))
    missing = next((path for path in read.paths if not Path(path).exists()), None)
    if missing:
        raise MissingDatasetError(
            f"{dataset} {name} lists {missing}, which is not there. Fetch the dataset again"
        )
    names = _distinct(ids or [Path(path).relative_to(root).as_posix() for path in paths])
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        return ImageSplit(dataset, name, names, labels, tuple(categories), read, read.content)
    label = np.fromiter((int(one) for one in labels), np.int64, len(names))
    check_labels(dataset, names, label, categories)
    return ImageSplit(dataset, name, names, label, tuple(categories), read, read.content)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names, of which the second of two equal ones ends in #2."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(found)


def load_folder(dataset: str, root: Path) -> dict[str, ImageSplit]:
    """Splits of a folder: `{train,val,test}/<class>/` or a flat `<class>/`, by their names.

    A flat folder gets a seeded 80/20 split; where there is no `test/`, `val/` is scored.

    Raises
    ------
    MissingDatasetError
        There is no such folder.
    BadImageError
        It holds no image, a class without one, a class in test that train lacks, or splits under
        other names.
    """
    if not root.is_dir():
        raise MissingDatasetError(f"{dataset}: no folder at {root.absolute()}. Check the path")
    odd = sorted(one.name for one in root.iterdir() if _is_odd_split(one))
    if odd:  # else they would pass for classes, or for nothing
        raise BadImageError(
            f"{root} has {', '.join(odd)}, which read like splits. Name them train, val and test; "
            f"classes of such names need a train/ above them"
        )
    if not (root / "train").is_dir():
        held_out = [name for name in ("val", "test") if _has_folders(root / name)]
        if held_out:  # else its classes would pass for one class, called `test`
            raise BadImageError(
                f"{root} has {held_out[0]}/ and no train/. Add {root}/train/CLASS/IMAGE.png, or "
                f"give {root / held_out[0]} as a dataset of its own"
            )
        return _load_flat(dataset, root)
    found = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "test" not in found and "val" in found:
        log.warning("%s has no test/: its val/ is scored as test", root)
        found["test"] = found.pop("val")
    if "test" not in found:
        log.warning("%s has neither test/ nor val/: it can be embedded, not scored", root)
    classes = {name: read_classes(folder) for name, folder in found.items()}
    categories = sorted(classes["train"])
    for name, members in classes.items():
        strangers = sorted(set(members) - set(categories))
        if strangers:
            raise BadImageError(
                f"{found[name]} has the class {strangers[0]!r}, which {found['train']} lacks. "
                f"Give train images of it, or move it away"
            )
    return {
        name: file_split(dataset, name, root, *flatten(members, categories), categories)
        for name, members in classes.items()
    }


def _is_odd_split(folder: Path) -> bool:
    """Whether a folder of folders has a name that means a split, and is not ours for it."""
    words = ("train", "training", "val", "valid", "validation", "test", "testing")
    ours = ("train", "val", "test")
    return folder.name.lower() in words and folder.name not in ours and _has_folders(folder)


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(child.is_dir() for child in folder.iterdir())


def _load_flat(dataset: str, root: Path) -> dict[str, ImageSplit]:
    members = read_classes(root)
    categories = sorted(members)
    paths, labels = flatten(members, categories)
    train, test = split_by_class(np.array(labels))
    log.warning(
        "%s has no train/: a seeded split puts %d images into train and %d into test, class by "
        "class",
        root,
        len(train),
        len(test),
    )
    return {
        name: file_split(
            dataset, name, root, [paths[i] for i in rows], [labels[i] for i in rows], categories
        )
        for name, rows in (("train", train), ("test", test))
        if len(rows)
    }


def flatten(members: dict[str, list[Path]], categories: list[str]) -> tuple[list[Path], list[int]]:
    """Files of all classes, class by class, and their labels: positions in `categories`."""
    pairs = [
        (path, categories.index(category))
        for category in sorted(members)
        for path in members[category]
    ]
    return [path for path, _ in pairs], [label for _, label in pairs]


def read_classes(folder: Path) -> dict[str, list[Path]]:
    """Image files of each class folder, by the folder's name.

    Raises
    ------
    BadImageError
        A class folder holds no image, or there is none.
    """
    classes = {name: image_files(folder / name) for name in subfolders(folder)}
    if not any(classes.values()):
        raise BadImageError(
            f"{folder} holds no images. Expected {folder}/CLASS/IMAGE.png, or train/ and test/ "
            f"above the classes"
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise BadImageError(
            f"{folder / empty[0]} holds no image. Fill it or remove it "
            f"({len(empty)} of {len(classes)} classes are empty)"
        )
    return classes
