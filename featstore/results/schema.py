"""What a record must say to be taken for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from featstore.kernels.metrics import N_BINS
from featstore.keys import BNMode, encode_part

_KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "dataset": str,
    "bn_mode": str,
    "protocol": str,
    "seed": int,
    "features": str,
    "headline": str,
    "outcomes_sha256": str,
    "created": str,
    "n_categories": int,
    "transductive": bool,
    "metrics": dict,
    "certificate": dict,
    "settings": dict,
    "splits": dict,
    "model_info": dict,
    "dataset_info": dict,
    "versions": dict,
}
COUNTS = ("n_train", "n_test", "n_skipped", "seconds")
CERTIFIED = ("converged",)  # 1 or 0; NaN for protocols that do not iterate
RELIABILITY = ("count", "confidence", "accuracy")
_ENDS = ("value", "low", "high")
_MODES = {str(mode) for mode in BNMode}
_encoded = lru_cache(encode_part)


def fault(document: Mapping[str, Any], path: PurePath) -> str:
    """What is wrong with a record of the format that is read, in words; "" if nothing is.

    Parameters
    ----------
    path : where it lies; it must be of the cell that the record is of
    """
    for name, kind in _KINDS.items():
        if not isinstance(document.get(name), kind):
            return f"its {name!r} is {_found(document, name)}"
    for name in COUNTS:
        if not _number(document.get(name)):
            return f"its {name!r} is {_found(document, name)}"
    for check in (_of_place, _of_metrics, _of_certificate, _of_descriptions):
        if found := check(document, path):
            return found
    return ""


def _of_place(document: Mapping[str, Any], path: PurePath) -> str:
    if document["bn_mode"] not in _MODES:
        return f"its BN mode is {document['bn_mode']!r}"
    names = ("model", "dataset", "bn_mode", "protocol")
    try:
        place = tuple(_encoded(document[name]) for name in names)
    except ValueError as error:
        return str(error)
    file = f"{document['seed']}-{document['features'][:12]}.json"
    if (*place, file) != path.parts[-5:]:
        return f"it is of another place, {'/'.join((*place, file))}"
    return ""


def _of_metrics(document: Mapping[str, Any], _: PurePath) -> str:
    metrics = document["metrics"]
    if document["headline"] not in metrics:
        return f"its headline {document['headline']!r} is none of its metrics"
    for name, ends in metrics.items():
        known = isinstance(ends, dict) and set(_ENDS) <= set(ends)
        if not known or not all(_number(ends[end], none=True) for end in _ENDS):
            return f"its metric {name!r} is {_found(metrics, name)}"
    return ""


def _of_certificate(document: Mapping[str, Any], _: PurePath) -> str:
    certificate = document["certificate"]
    for name in CERTIFIED:
        if not _number(certificate.get(name, 0)):
            return f"its {name!r} is {_found(certificate, name)}"
    bins = certificate.get("reliability", {})
    if bins == {}:
        return ""
    if not isinstance(bins, dict) or set(bins) != set(RELIABILITY):
        return f"its 'reliability' is {_found(certificate, 'reliability')}"
    for name, column in bins.items():
        whole = isinstance(column, list) and len(column) == N_BINS
        if not whole or not all(_number(one, none=True) for one in column):
            return f"its reliability's {name!r} is {_found(bins, name)}"
    return ""


def _of_descriptions(document: Mapping[str, Any], _: PurePath) -> str:
    kinds: list[tuple[str, str, Callable[[Any], bool]]] = [
        ("model_info", "bn_free", lambda one: isinstance(one, bool)),
        ("model_info", "pretraining", lambda one: isinstance(one, list)),
        ("dataset_info", "source", lambda one: isinstance(one, str)),
        ("versions", "featstore", lambda one: isinstance(one, str)),
    ]
    for name, part, fits in kinds:
        if not fits(document[name].get(part)):
            return f"its {name}'s {part!r} is {_found(document[name], part)}"
    if not all(isinstance(digest, str) for digest in document["splits"].values()):
        return f"its 'splits' is {_found(document, 'splits')}"
    return ""


def _number(value: Any, *, none: bool = False) -> bool:
    """Whether it is a number that fits a double, or NaN; with `none`, whether it may be missing."""
    if value is None:
        return none
    if isinstance(value, int):  # of any length
        return abs(value) < 2**63
    return isinstance(value, float) and not math.isinf(value)


def _found(where: Mapping[str, Any], name: str) -> str:
    return repr(where[name])[:40] if name in where else "missing"
