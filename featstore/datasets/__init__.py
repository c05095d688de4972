"""Datasets: a name leads to labelled images in splits, and to what analysis wants to know.

Names and catalogue are loaded at once; what needs PyTorch, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featstore.datasets.names import Entry, catalogue, default_data_root, expand, split_transform

if TYPE_CHECKING:
    from featstore.datasets.image_split import ArrayImages, ImageSplit
    from featstore.datasets.load import Dataset, load_dataset
    from featstore.datasets.transforms import Transform

_HOMES = {
    "ArrayImages": "image_split",
    "Dataset": "load",
    "ImageSplit": "image_split",
    "Transform": "transforms",
    "load_dataset": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featstore.datasets' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


__all__ = [
    "ArrayImages",
    "Dataset",
    "Entry",
    "ImageSplit",
    "Transform",
    "catalogue",
    "default_data_root",
    "expand",
    "load_dataset",
    "split_transform",
]
