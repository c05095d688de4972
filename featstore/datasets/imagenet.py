"""ImageNet-1k (ILSVRC 2012): folders as torchvision keeps them, flat val, or text lists."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import scipy.io
import torch

from featstore.datasets import lists
from featstore.datasets.files import file_split, image_files
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError, MissingDatasetError

_PLACES = ("imagenet", "ILSVRC2012", "imagenet1k", "ILSVRC/Data/CLS-LOC", ".")
_META = "meta.bin"
_DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_OFFICIAL = {"train": "train", "test": "val"}


@dataclass(frozen=True)
class Meta:
    """What is known of the categories beside the images.

    Attributes
    ----------
    words : WordNet id -> what it is called in the categories' names, for all categories
    val : WordNet id of each official validation image, in the order of their numbers, if known
    """

    words: Mapping[str, str]
    val: Sequence[str] = ()


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split `train`, or `test`: the official validation images.

    The label is the position of an image's WordNet id in the sorted ids of all 1,000 categories,
    which is neither ILSVRC2012_ID - 1 nor, where folders are absent, the position of its folder.
    The ids come from `meta.bin`, else the development kit (archive or folder), else
    `meta/train.txt`, else the folders, all of which must then be there. Names of categories
    begin with the id, since two are called crane and two maillot. Images of `test` stand in the
    order of their numbers, in whichever form they lie, so that both forms are one dataset.

    Raises
    ------
    MissingDatasetError
        The folder, an image by the lists, or all that could tell the categories is absent.
    BadImageError
        What tells the categories is damaged, incomplete, or lacks one that has a folder.
    """
    place = lists.find_place(entry, root, _PLACES, lambda folder: _holds(folder, root))
    if place is None:
        raise lists.absent(entry, root, "no imagenet/train")
    official = _OFFICIAL[split]
    folder = lists.unnested(place / official)
    if not folder.is_dir():
        raise MissingDatasetError(
            f"{entry.name} {split}: the folder {folder} is not there. Unpack "
            f"ILSVRC2012_img_{official}.tar into it"
        )
    meta = _read_meta(entry, place)
    lists.check_categories(entry, len(meta.words), place)
    labels = {wnid: label for label, wnid in enumerate(sorted(meta.words))}
    folders = lists.subfolders(folder)
    if folders:
        pairs = _in_folders(folder, folders, labels)
    else:
        pairs = _by_list(entry, place, folder, official, labels, meta)
    if split == "test":
        pairs.sort(key=lambda pair: pair[0].name)
    lists.check_count(entry, split, len(pairs))
    files = [path for path, _ in pairs]
    ids = [f"val/{path.name}" for path in files] if split == "test" else None
    names = [f"{wnid} {meta.words[wnid]}".strip() for wnid in labels]
    targets = [label for _, label in pairs]
    return file_split(entry.name, split, folder.parent, files, targets, names, ids=ids)


def _holds(folder: Path, root: Path) -> bool:
    """Whether a folder is ImageNet's; `train` and `val` alone say nothing of the common root."""
    marks = (_META, _DEVKIT, f"{_DEVKIT}.tar.gz")
    own = () if folder == root else _OFFICIAL.values()
    return any((folder / mark).exists() for mark in (*marks, *own))


def _in_folders(
    folder: Path, folders: Sequence[str], labels: Mapping[str, int]
) -> list[tuple[Path, int]]:
    stranger = next((name for name in folders if name not in labels), None)
    if stranger:
        raise BadImageError(f"{folder / stranger} is the folder of no category. Move it away")
    return [(path, labels[wnid]) for wnid in folders for path in image_files(folder / wnid)]


def _by_list(
    entry: Entry,
    place: Path,
    folder: Path,
    official: str,
    labels: Mapping[str, int],
    meta: Meta,
) -> list[tuple[Path, int]]:
    """Pairs (image, label) of a folder without folders of categories."""
    listing = place / "meta" / f"{official}.txt"
    if official == "val" and meta.val:
        return [
            (folder / f"ILSVRC2012_val_{number:08d}.JPEG", labels[wnid])
            for number, wnid in enumerate(meta.val, 1)
        ]
    if not listing.is_file():
        raise MissingDatasetError(
            f"{entry.name}: nothing says what the images of {folder} show. Place "
            f"{_DEVKIT}.tar.gz or {listing.relative_to(place)} in {place}, or sort them into "
            f"folders of categories"
        )
    pairs = lists.read_labelled(entry.name, listing, len(labels))
    return [(folder / name, label) for name, label in pairs]


def _read_meta(entry: Entry, place: Path) -> Meta:
    kits = (place / _DEVKIT, place / f"{_DEVKIT}.tar.gz")
    kit = next((path for path in kits if path.exists()), None)
    if (place / _META).is_file():
        return _read_bin(place / _META)
    if kit:
        return _read_kit(kit)
    listing = place / "meta" / "train.txt"
    if listing.is_file():
        pairs = lists.read_labelled(entry.name, listing, entry.categories or 1000)
        labels = {path.partition("/")[0]: label for path, label in pairs}
        if [labels[wnid] for wnid in sorted(labels)] != list(range(len(labels))):
            raise BadImageError(
                f"{listing} does not number its categories by their sorted ids, from 0 and "
                f"without gaps. Take the published list"
            )
        return Meta(dict.fromkeys(labels, ""))
    folders = {
        name
        for official in _OFFICIAL.values()
        if (place / official).is_dir()
        for name in lists.subfolders(lists.unnested(place / official))
    }
    if entry.categories and len(folders) != entry.categories:
        raise MissingDatasetError(
            f"{entry.name}: {place} has the folders of {len(folders)} categories and nothing that "
            f"tells all {entry.categories}, so labels would shift. Place {_DEVKIT}.tar.gz there"
        )
    return Meta(dict.fromkeys(folders, ""))


def _read_bin(path: Path) -> Meta:
    """What torchvision's `meta.bin` says: synonyms by id, and the ids of the val images."""
    try:
        words, val = torch.load(path, weights_only=True)
        first = {
            wnid: names if isinstance(names, str) else names[0] for wnid, names in words.items()
        }
        return Meta(first, tuple(val))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError,
            LookupError) as error:  # fmt: skip
        raise BadImageError(
            f"{path} is not torchvision's {_META} ({type(error).__name__}). Remove it, so that "
            f"the development kit is read"
        ) from error


def _read_kit(path: Path) -> Meta:
    """What the development kit says: a folder, or the archive, of which nothing is unpacked."""
    try:
        if path.is_dir():
            mat, truth = (path / "data/meta.mat").read_bytes(), (path / _TRUTH).read_text()
        else:
            with tarfile.open(path) as archive:
                mat = _member(archive, f"{_DEVKIT}/data/meta.mat")
                truth = _member(archive, f"{_DEVKIT}/{_TRUTH}").decode()
        synsets = scipy.io.loadmat(io.BytesIO(mat), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]  # the others are nodes above categories
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in leaves}
        words = {str(one["WNID"]): str(one["words"]).split(", ")[0] for one in leaves}
        return Meta(words, tuple(wnids[int(number)] for number in truth.split()))
    except (OSError, EOFError, tarfile.TarError, LookupError, ValueError, TypeError) as error:
        raise BadImageError(
            f"{path} is no development kit that can be read ({error}). Fetch it again"
        ) from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is no file")
    return stream.read()
