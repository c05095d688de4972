"""How alike features are, as a Dataset over pairs of model and BN mode, and as files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from featstore import __version__
from featstore.errors import CorruptStoreError, FeatStoreError
from featstore.keys import BNMode
from featstore.results.cube import describe_models
from featstore.results.files import write_whole
from featstore.results.records import target_of

_MEASURES = ("cka", "cka_biased", "displacement")


@dataclass(frozen=True)
class Compared:
    """Every two of s sets of features of one dataset.

    Attributes
    ----------
    dataset : its name ; rows : images whose features were compared
    sets : s pairs of model and BN mode
    cka, cka_biased, displacement : (s, s), of a set in rows with one in columns; NaN where there is
        none
    """

    dataset: str
    rows: int
    sets: Sequence[tuple[str, str]]
    cka: np.ndarray
    cka_biased: np.ndarray
    displacement: np.ndarray


def similarity_target(root: str | Path) -> Path:
    """Where similarities are written: `<root>.similarity.zarr`, beside `<root>.zarr`."""
    beside = target_of(root)
    return beside.with_name(f"{beside.stem}.similarity.zarr")


def build_similarity(
    compared: Sequence[Compared], models: Mapping[str, Mapping[str, Any]], *, split: str
) -> xr.Dataset:
    """All comparisons as one Dataset over (dataset, model, bn_mode, other, other_mode).

    A model without BatchNorm is shown under every BN mode that the others have.

    Parameters
    ----------
    compared : one of each dataset, at least one
    models : what is stored about each model, with `bn_free` ; split : whose rows they are
    """
    free = {name for name, info in models.items() if info["bn_free"]}
    present = [place for one in compared for place in one.sets]
    with_bn = {mode for model, mode in present if model not in free}
    modes = [mode.value for mode in BNMode if mode in (with_bn or {BNMode.EVAL})]
    names = sorted({model for model, _ in present})
    shape = (len(compared), *(len(names), len(modes)) * 2)
    values = {name: np.full(shape, np.nan) for name in _MEASURES}
    for number, one in enumerate(compared):
        shown = [
            (which, names.index(model), place)
            for which, (model, own) in enumerate(one.sets)
            for place, mode in enumerate(modes)
            if model in free or mode == own
        ]
        which, model, mode = np.array(shown, dtype=int).reshape(-1, 3).T
        for name, array in values.items():
            matrix = getattr(one, name)[np.ix_(which, which)]
            array[number, model[:, None], mode[:, None], model, mode] = matrix
    dims = ("dataset", "model", "bn_mode", "other", "other_mode")
    return xr.Dataset(
        {name: (dims, array) for name, array in values.items()},
        coords={
            "dataset": [one.dataset for one in compared],
            "model": names,
            "bn_mode": modes,
            "other": names,
            "other_mode": modes,
            "rows": ("dataset", [one.rows for one in compared]),
            **describe_models([models[name] for name in names]),
        },
        attrs={
            "title": "featstore similarity",
            "featstore_version": __version__,
            "split": split,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def write_similarity(found: xr.Dataset, root: str | Path) -> Path:
    """Write similarities beside the results, whole or not at all, in place of the last ones.

    Raises
    ------
    FeatStoreError
        Something else is there.
    """
    target = similarity_target(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(lambda: found, target)
    return target


def open_similarity(root: str | Path = "data/results") -> xr.Dataset:
    """What `similarity` last found: over (dataset, model, bn_mode, other, other_mode).

    A Dataset of its own beside that of `open_results`, since its numbers are of pairs of models and
    BN modes, and no protocol gave them: none has a cell of model, dataset, BN mode and protocol.
    `cka` is debiased linear CKA of the features of `model` in `bn_mode` with those of `other` in
    `other_mode`, the one to look at; `cka_biased` is the estimator as first published.
    `displacement`, only between BN modes of one model, is the distance of the features in
    `other_mode` from those in `bn_mode`, relative to the spread of the latter. NaN where nothing
    was compared. A model without BatchNorm is shown under every BN mode. The coordinate `rows` says
    how many images of each dataset were compared.

    Parameters
    ----------
    root : folder of the results' records, beside which it lies

    Raises
    ------
    FeatStoreError
        There is none, or it cannot be read.
    """
    target = similarity_target(root)
    if not target.exists():
        raise FeatStoreError(f"no similarities at {target}. Run: featstore similarity")
    try:
        with xr.open_zarr(target) as opened:
            found: xr.Dataset = opened.load()
            return found
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptStoreError(
            f"{target} cannot be read ({error}). Delete it and run: featstore similarity"
        ) from error
