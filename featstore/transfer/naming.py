"""Names that features of one's own may go by, and what is known of them."""

from __future__ import annotations

import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets.names import base_of
from featstore.keys import BNMode, FeatureKey
from featstore.models import ModelName

_PREFIXES = ("timm:", "file:", "py:")  # names that say how a model is loaded


def own_key(model: str, dataset: str, bn_mode: str, variant: str) -> FeatureKey:
    """Where the features go: under no name by which something else is asked for.

    Raises
    ------
    ValueError
        The name is of the catalogue or of a set, or the dataset has no one label for each row.
    """
    name = ModelName.parse(model)
    if variant:
        name = name.with_variant(variant)
    if re.match(r"random\d", name.variant):
        raise ValueError(f"variant {name.variant!r} would read as random weights; use another name")
    known = name.base in models_.catalogue() or name.base.startswith(_PREFIXES)
    if known and not name.variant:
        raise ValueError(
            f"features under the name {model} would pass for those that featstore extracts itself; "
            f"use another name, or {model}~VARIANT"
        )
    if models_.expand([model]) != [str(ModelName.parse(model))] or re.search(r"\s", model):
        raise ValueError(f"model {model!r} is the name of a set, or holds a space; use another")
    full = datasets_.split_transform(dataset)[0]
    if datasets_.expand([dataset]) != [full]:
        raise ValueError(f"dataset {dataset!r} is the name of a set; use another")
    key = FeatureKey(str(name), full, BNMode(bn_mode))
    task = _dataset_entry(full).task
    if task != "single-label":
        raise ValueError(f"{full} is {task}, and an import takes one label for each row")
    _ = key.path  # refuses what cannot be a path
    return key


def check_counts(key: FeatureKey, split: str, rows: int, categories: int) -> None:
    """Refuse rows that would pass for a published split, which has other counts.

    A variant tells them apart, so with one anything goes.

    Raises
    ------
    ValueError
        There is no such split, or it has other counts.
    """
    entry = _dataset_entry(key.dataset)
    if ModelName.parse(key.model).variant or not entry.n_images:
        return
    if split not in entry.n_images:
        reason = f"{entry.name} has the splits {', '.join(entry.n_images)}, and no {split}"
    elif rows != entry.n_images[split]:
        reason = f"{entry.name} {split} has {entry.n_images[split]} images, and these are {rows}"
    elif categories != (entry.categories or categories):
        reason = f"{entry.name} has {entry.categories} categories, and these are {categories}"
    else:
        return
    raise ValueError(f"{reason}. Use another dataset name, or --variant NAME to keep these apart")


def _dataset_entry(name: str) -> datasets_.Entry:
    """What the catalogue says of a dataset, if anything."""
    base = base_of(name)
    return datasets_.catalogue().get(base) or datasets_.Entry(base, "")


def notes_of(key: FeatureKey, *given: Any) -> dict[str, Any]:
    """What is recorded beside the recipe: as of an extraction, as far as it is known."""
    entry = _dataset_entry(key.dataset)
    base = str(replace(ModelName.parse(key.model), site=""))
    unknown = dict.fromkeys(("backbone", "family", "paradigm", "method", "stage", "arch"), "")
    files = [Path(one).name for one in given if isinstance(one, str | Path)]
    return {
        "model": {
            **unknown, "lineage": base, "pretraining": [], "bn_free": False, "imported": True,
        },
        "dataset": {
            "shift": entry.shift, "cluster": entry.cluster or entry.name,
            "metric": entry.metric, "source": entry.source or entry.name,
        },
        "recorded": {"files": files, "python": platform.python_version()},
    }  # fmt: skip
