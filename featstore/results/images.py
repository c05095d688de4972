"""What models say of each test image: cells side by side, image by image."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.keys import BNMode
from featstore.results.cube import describe_models, natural, newest
from featstore.results.records import outcomes_of, records

logger = logging.getLogger(__name__)


def open_outcomes(
    root: str | Path = "data/results",
    *,
    dataset: str,
    protocols: Sequence[str] = (),
    models: Sequence[str] = (),
    bn_mode: str = "eval",
    seed: int = 0,
    skip_errors: bool = False,
) -> xr.Dataset:
    """Whether each test image was told right, of all models and protocols, image beside image.

    Only classifiers of one label an image say so. Images stand in the order of the dataset,
    whatever the order of a record. A model without BatchNorm is the same in every BN mode.

    Parameters
    ----------
    root : folder of the records
    dataset, bn_mode, seed : of the cells
    protocols : theirs; by default all that keep what each image was told to be
    models : theirs; by default all
    skip_errors : leave out records that are damaged, and say which

    Returns
    -------
    Dataset with dims (model, protocol, image)
        `correct`, float32, 1 where the true category comes first and 0 where it does not, NaN
        where there is no cell; `there` (model, protocol), whether there is one. Coordinates are
        `label` and `index` (image), the latter the place within the dataset, and what describes
        models. The attribute `metric` is what the cells' score averages, `top1` or
        `mean_per_class`.

    Raises
    ------
    FeatStoreError
        A model, protocol or dataset has no such cell; a protocol keeps no single category for each
        test image; cells are not all of the same test images, or of the same metric; a record is
        damaged.
    ValueError
        There is no such BN mode.
    """
    where = f"on {dataset} in BN mode {bn_mode} with seed {seed}"
    damaged: list[FeatStoreError] | None = [] if skip_errors else None
    documents = _cells(root, dataset, protocols, bn_mode, seed, damaged)
    documents = [one for one in documents if not models or one["model"] in models]
    for what, asked in (("model", models), ("protocol", protocols)):
        lacking = [name for name in asked if name not in {one[what] for one in documents}]
        if lacking:
            raise FeatStoreError(
                f"no cell {where} of {what} {', '.join(lacking)} in {root}. Run: featstore probe, "
                f"or finetune, or leave it out"
            )
    cells, images, useless = _read(documents, damaged)
    for fault in damaged or ():
        logger.warning("left out: %s", fault)
    if useless and (protocols or not cells):
        raise _no_categories(f"{', '.join(dict.fromkeys(useless))} {where}")
    if not cells:
        raise FeatStoreError(f"all records {where} are damaged. Probe again")
    metric = _the_one(
        {place: one.metric for place, one in cells.items()}, f"cells {where} are not of one metric"
    )
    which = _the_one(
        {place: one.images for place, one in cells.items()},
        f"cells {where} are not of the same test images",
    )
    index, label = images[which]

    names = sorted({model for model, _ in cells})
    columns = sorted({protocol for _, protocol in cells}, key=natural)
    values = np.full((len(names), len(columns), len(index)), np.nan, np.float32)
    for (model, protocol), one in cells.items():
        values[names.index(model), columns.index(protocol)] = one.correct
    infos = {document["model"]: document["model_info"] for document in documents}
    return xr.Dataset(
        {
            "correct": (("model", "protocol", "image"), values),
            "there": (("model", "protocol"), np.isfinite(values[:, :, 0])),
        },
        {
            "model": names,
            "protocol": columns,
            "label": ("image", label),
            "index": ("image", index),
            **describe_models([infos[name] for name in names]),
        },
        {"dataset": dataset, "bn_mode": bn_mode, "seed": seed, "metric": metric},
    )


def per_class_accuracy(
    root: str | Path = "data/results",
    *,
    dataset: str,
    protocol: str,
    bn_mode: str = "eval",
    seed: int = 0,
) -> xr.DataArray:
    """Share of each category's test images that every model has right, (model, category).

    A category without test images is NaN. A model without BatchNorm is the same in every BN mode.

    Parameters
    ----------
    root : folder of the records
    dataset, protocol, bn_mode, seed : of the cells

    Returns
    -------
    DataArray with dims (model, category)
        `category` counts from 0 as the labels do; the coordinate `n` (category) holds its test
        images, the most that any model has.

    Raises
    ------
    FeatStoreError
        There is no such cell, or it holds no single category for each test image.
    ValueError
        There is no such BN mode.
    """
    found = _cells(root, dataset, [protocol], bn_mode, seed)
    kept = {one["model"]: outcomes_of(one) for one in found}
    kept = {name: rows for name, rows in kept.items() if _tells(rows)}
    if not kept:
        where = f"{protocol} on {dataset} in BN mode {bn_mode} with seed {seed}"
        raise _no_categories(where)
    size = max(one["n_categories"] for one in found)
    count = np.stack([np.bincount(rows["label"], minlength=size) for rows in kept.values()])
    right = np.stack(
        [np.bincount(rows["label"][rows["rank"] == 0], minlength=size) for rows in kept.values()]
    )
    share = np.divide(right, count, out=np.full(count.shape, np.nan), where=count > 0)
    return xr.DataArray(
        share,
        {"model": list(kept), "category": np.arange(size), "n": ("category", count.max(axis=0))},
        ("model", "category"),
        name="accuracy",
        attrs={"dataset": dataset, "protocol": protocol, "bn_mode": bn_mode, "seed": seed},
    )


class _Cell(NamedTuple):
    """What one record says: of which images, as it is told, and (n,) if each was told right."""

    images: str
    metric: str
    correct: np.ndarray


def _cells(
    root: str | Path,
    dataset: str,
    protocols: Sequence[str],
    bn_mode: str,
    seed: int,
    damaged: list[FeatStoreError] | None = None,
) -> list[dict[str, Any]]:
    """Records of one dataset in one BN mode, one of each model and protocol; at least one."""
    if bn_mode not in list(BNMode):
        raise ValueError(f"bn_mode must be one of {', '.join(BNMode)}, got {bn_mode!r}")
    found = newest(
        document
        for protocol in dict.fromkeys(protocols or [""])
        for document in records(
            root, dataset=dataset, protocol=protocol, seed=seed, damaged=damaged
        )
        if document["bn_mode"] == bn_mode or document["model_info"]["bn_free"]
    )
    if not found:
        which = f"{', '.join(protocols)} on" if protocols else "any protocol on"
        options = "".join(f" -p {name}" for name in protocols) or " -p logreg"
        raise FeatStoreError(
            f"no cell of {which} {dataset} in BN mode {bn_mode} with seed {seed} in {root}. "
            f"Run: featstore probe{options} -d {dataset}, or finetune, or give another root"
        )
    found.sort(key=lambda one: bool(one["bn_mode"] == bn_mode))  # of two, the one asked for is last
    last = {(one["model"], one["protocol"]): one for one in found}
    return [last[place] for place in sorted(last)]


def _read(
    documents: Sequence[Mapping[str, Any]], damaged: list[FeatStoreError] | None
) -> tuple[
    dict[tuple[str, str], _Cell], dict[str, tuple[np.ndarray, np.ndarray]], list[str]
]:  # fmt: skip
    """Cells by model and protocol, index and label of each set of images that they are of, and
    protocols that keep no single category of an image.
    """
    cells, images, useless = {}, {}, []
    for one in documents:
        try:
            rows = outcomes_of(one, "index", "label", "rank")
            if not _tells(rows):
                useless.append(one["protocol"])
                continue
            index, label, correct = _in_order(one, rows)
        except CorruptStoreError as error:
            if damaged is None:
                raise
            damaged.append(error)
            continue
        told = _told(index, label)
        images[told] = index, label  # once each: they are the same in nearly all cells
        cells[one["model"], one["protocol"]] = _Cell(told, one["headline"], correct)
    return cells, images, useless


def _tells(rows: Mapping[str, np.ndarray]) -> bool:
    """Whether a record says of each image if its one category was the first."""
    return "rank" in rows and rows["label"].ndim == 1


def _no_categories(what: str) -> FeatStoreError:
    return FeatStoreError(
        f"{what} keeps no single category of each test image to be right about, as images of "
        f"several labels have none; classifiers of one label an image do, such as logreg"
    )


def _in_order(
    document: Mapping[str, Any], rows: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index, label and whether it was told right, of each image in the order of the dataset."""
    order = np.argsort(rows["index"], kind="stable")
    index, label, rank = (rows[name][order] for name in ("index", "label", "rank"))
    if not len(index) or (np.diff(index) == 0).any():
        raise CorruptStoreError(
            f"{document['path']} has no test image, or one twice. Delete it, and probe again"
        )
    return index, label, rank == 0


def _told(index: np.ndarray, label: np.ndarray) -> str:
    """How many images, and a digest of which they are and of what categories."""
    parts = (np.ascontiguousarray(one, np.int64).tobytes() for one in (index, label))
    return f"{len(index)} ({hashlib.sha256(b''.join(parts)).hexdigest()[:8]})"


def _the_one(of_cells: Mapping[tuple[str, str], str], fault: str) -> str:
    """What all cells have in common; if it is not the same, those that differ from most."""
    (usual, _), *others = Counter(of_cells.values()).most_common()
    if others:
        odd = [f"{' '.join(place)} {one}" for place, one in of_cells.items() if one != usual]
        raise StoreMismatchError(
            f"{fault}: most have {usual}, but {', '.join(odd[:5])}{', ...' * (len(odd) > 5)}. "
            f"Leave these out by models or protocols, or extract and probe them again"
        )
    return usual
