"""Dataset names: what a user writes, what is in the catalogue, what each study's set stands for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from featstore.datasets.lists import is_on_hub, is_there
from featstore.errors import UnknownNameError
from featstore.home import home
from featstore.names import known_entries

_FILES = [
    Path(__file__).with_name("catalogue") / f"{name}.toml"
    for name in ("tiny", "marks2024", "ericsson2021", "torchvision")
]

TRANSFORMS = ("own", "marks", "ericsson", "ericsson-fewshot")
"""Transforms that a dataset's name may carry after @; a bare name means `own`."""

SET_TRANSFORMS = {
    "marks2024": "marks",
    "marks2024-extra": "marks",
    "ericsson2021": "ericsson",
    "ericsson2021-fewshot": "ericsson-fewshot",
}
"""Transform that the members of a study's set carry, unless the set is named with another."""

READERS = (
    *("folder", "webdataset", "huggingface", "tiny", "torchvision", "listed", "cifar", "imagenet"),
    *("inaturalist", "cub", "domainnet", "caltech101", "caltech256", "cdfsl"),
    *("voc-classification", "voc-segmentation", "none"),
)
"""Readers that an entry may name; `none` of what is listed only."""

_PLACED = READERS[:3]  # these read what lies at `path`
_METRICS = ("top1", "mean_per_class", "map11", "ap", "miou", "mean_angular_error")

LOOSE = ("folder:", "hf:", "wds:")
"""Prefixes of datasets that are in no catalogue."""


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue.

    Attributes
    ----------
    reader : who reads it from disk
    options : what else the reader is told, such as the domain
    splits : names of its splits, in their order
    sets : studies that it belongs to
    task : `single-label`, `multi-label` or `dense` (listed; not to be embedded yet)
    shift : `in-domain`, a kind of covariate shift, `other`, or "" ; cluster : sets that share
        their images' origin, such as the six domains of DomainNet, are no independent draws
    metric : the headline metric, `top1`, `mean_per_class` or `map11`; of dense tasks, their own
    source : what a model has seen that was pretrained on it
    square : what `@marks` does first: `pad` to a square, `crop` to one, or ""
    categories, n_images : how many there are, by the publication: images by split
    size : of the download in bytes ; urls, by_hand : where it is had, by program or by a person;
        of both, what stands in `by_hand` is needed besides
    licence : as stated ; login : whether that needs an account or a click
    found_by : PLACE//MARKS, any of which says that the dataset is there: a folder below the data
        root, and what only a whole copy holds in it, divided by commas, forms of one thing by |
    path : of the user's own, relative to `folder`, where the catalogue stands
    unverified : what nobody has seen in the real files
    note : what a user should know
    """

    name: str
    reader: Annotated[str, READERS]
    options: dict[str, Any] = field(default_factory=dict)
    splits: list[str] = field(default_factory=lambda: ["train", "test"])
    sets: list[str] = field(default_factory=list)
    task: Annotated[str, ("single-label", "multi-label", "dense")] = "single-label"
    shift: str = ""
    cluster: str = ""
    metric: Annotated[str, _METRICS] = "top1"
    source: str = ""
    square: Annotated[str, ("", "pad", "crop")] = ""
    categories: int = 0
    n_images: dict[str, int] = field(default_factory=dict)
    size: int = 0
    urls: list[str] = field(default_factory=list)
    by_hand: str = ""
    licence: str = ""
    login: bool = False
    found_by: list[str] = field(default_factory=list)
    path: str = ""
    unverified: str = ""
    note: str = ""
    description: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if self.reader in _PLACED and not self.path:
            raise ValueError(f"path is missing, where the reader {self.reader} looks for images")
        if self.path and self.reader not in _PLACED:
            raise ValueError(
                f"path goes with the readers {', '.join(_PLACED)}; {self.reader} reads a published "
                f"layout below the data root (--data-root), so leave it out"
            )


def catalogue() -> dict[str, Entry]:
    """All datasets known by name: those that ship, and the user's own."""
    return known_entries("datasets", Entry, _FILES)


def status(entry: Entry, root: Path) -> str:
    """`ready` where its files lie, `fetchable` by program, `by hand`, or `later` if dense.

    A look at a folder or two, no count of images.
    """
    if entry.task == "dense":
        return "later"
    if entry.reader == "tiny" or is_there(entry, root):
        return "ready"
    by_program = entry.urls and not entry.login and not entry.by_hand
    return "fetchable" if is_on_hub(entry) or by_program else "by hand"


def expand(names: Iterable[str]) -> list[str]:
    """Dataset names with each set's name replaced by its members, in order.

    A study's set gives its members the study's transform; `SET@TRANSFORM` gives them another.
    `all` is all that can be embedded.

    Raises
    ------
    UnknownNameError
        No transform has that name, or none of a set can be embedded.
    """
    entries = {name: one for name, one in catalogue().items() if one.task != "dense"}
    sets = {"all", *(one for entry in catalogue().values() for one in entry.sets)}
    found: dict[str, None] = {}
    for name in names:
        group, mark, transform = name.rpartition("@")
        if not mark or group not in sets:
            group, transform = name, SET_TRANSFORMS.get(name, "own")
        if group in sets:
            members = [n for n, one in entries.items() if group == "all" or group in one.sets]
            if not members:
                raise UnknownNameError(
                    f"the datasets of {group} are for detection and dense prediction: they are "
                    f"listed, and cannot be embedded yet"
                )
            found |= dict.fromkeys(split_transform(f"{one}@{transform}")[0] for one in members)
        else:
            found[split_transform(name)[0]] = None
    return list(found)


def split_transform(name: str) -> tuple[str, str]:
    """A dataset's name with its `@TRANSFORM` taken off where it is `own`, and the transform.

    Raises
    ------
    UnknownNameError
        No transform has that name.
    """
    base, mark, transform = name.rpartition("@")
    if name == "folder:":
        raise UnknownNameError("folder: names no folder. Write folder:PATH")
    loose = name.startswith(LOOSE)
    if not mark or (loose and transform not in TRANSFORMS):
        base, transform = name, "own"  # a folder's path may hold an @ of its own
    if transform not in TRANSFORMS:
        raise UnknownNameError(f"unknown transform @{transform}; there are {', '.join(TRANSFORMS)}")
    if name.startswith("folder:"):  # one name for `a/b/`, `./a/b` and `a/b`
        base = f"folder:{os.path.normpath(base.removeprefix('folder:'))}"
    return (base if transform == "own" else f"{base}@{transform}"), transform


def base_of(name: str) -> str:
    """A dataset's name without its transform."""
    full, transform = split_transform(name)
    return full.removesuffix(f"@{transform}")


def default_data_root() -> Path:
    """Where datasets lie unless told otherwise."""
    return home() / "datasets"
