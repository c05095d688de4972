"""What an extraction has not got yet: whence it comes, and whether there is room for it."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featstore import datasets as datasets_
from featstore import models as models_
from featstore.datasets.names import status as dataset_status
from featstore.errors import MissingDatasetError
from featstore.home import expanded, home
from featstore.models import ModelName
from featstore.models.blueprint import blueprint
from featstore.models.fetch import original_path
from featstore.models.fetch import status as model_status
from featstore.models.hub import origin
from featstore.models.load import entry_of
from featstore.models.remap import fresh

_NEEDS_LOGIN = " (needs an account or a click)"


@dataclass(frozen=True)
class Missing:
    """What an extraction needs and has not got, and where it comes from.

    Attributes
    ----------
    kind : `weights` or `datasets` ; what : the name
    status : `fetchable`, `convert` (by `featstore convert`, once it is fetched) or `by hand`
    place : folder that it is fetched to, "" for what is the user's own
    bytes : of the download, 0 if unknown; of weights, those of the backbone alone, in float32
    """

    kind: str
    what: str
    status: str
    source: str
    licence: str = ""
    place: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Room:
    """What goes to one place, and whether there is room for it.

    Attributes
    ----------
    what : `features`, or a kind of what is missing ; count : of such, 1 of features
    bytes : at least, if not `exact` ; free : bytes on its disk
    enough : whether these suffice for all that goes to that disk
    """

    what: str
    place: str
    count: int
    bytes: int
    exact: bool
    free: int
    enough: bool


def missing_weights(models: Sequence[str], weights: str) -> Iterator[Missing]:
    """Weights that are not there; rules that nobody can read raise CatalogueError."""
    if weights not in ("pretrained", "random") and not expanded(weights).exists():
        yield Missing("weights", weights, "by hand", f"your own file, {weights}")
    if weights != "pretrained":
        return
    names = map(ModelName.parse, models_.expand(models))
    for base in dict.fromkeys(n.base for n in names if not re.match(r"random\d", n.variant)):
        entry = entry_of(base)
        fresh((), entry.rules)  # before anything is fetched
        status, source, place = model_status(entry), entry.whence, str(home() / "weights")
        if base.startswith("file:"):
            status, place = "ready" if expanded(entry.weights).exists() else "by hand", ""
        elif entry.weights == "hub":
            known = origin(entry.arch)
            status, place = "ready" if known.path else "fetchable", str(known.folder)
            source = known.source
            if not source:
                status, place = "by hand", ""
                source = "timm has none: give --weights PATH, or --weights random"
        elif entry.weights or status == "incomplete":
            place = ""
        elif original_path(entry).exists():
            source, place = f"{original_path(entry)}, by featstore convert {base}", ""
        if status != "ready":
            size = 4 * blueprint(base).parameters if place else 0
            licence = entry.licence + _NEEDS_LOGIN * entry.login
            yield Missing("weights", base, status, source, licence, place, size)


def missing_datasets(bases: dict[str, MissingDatasetError | None], root: Path) -> Iterator[Missing]:
    """Datasets that are not there: published ones by a look at folders, others by what failed."""
    for base, error in bases.items():
        entry = datasets_.catalogue().get(base)
        status = dataset_status(entry, root) if entry and not entry.folder else "ready"
        if entry and status != "ready":
            licence = entry.licence + _NEEDS_LOGIN * entry.login
            source = entry.by_hand or ", ".join(entry.urls)
            yield Missing("datasets", base, status, source, licence, str(root), entry.size)
        elif error:
            status = "fetchable" if "--download" in str(error) else "by hand"
            yield Missing("datasets", base, status, str(error).removeprefix(f"{base}: "))


def rooms(store: str, size: int, counted: bool, missing: Iterable[Missing]) -> list[Room]:
    """What goes where, and whether the disks have room for all that goes to each.

    Parameters
    ----------
    size : of the features in bytes ; counted : whether that is all of them
    """
    needs = {("features", store): {"": size}}
    for one in missing:
        if one.place:  # what two entries share is fetched once
            needs.setdefault((one.kind, one.place), {})[one.source] = one.bytes
    exact = {"features": counted, "weights": False}
    disks = {place: _nearest(Path(place).absolute()) for _, place in needs}
    asked: Counter[int] = Counter()
    for (_, place), sizes in needs.items():
        asked[disks[place].stat().st_dev] += sum(sizes.values())
    return [
        Room(
            what, place, len(sizes), sum(sizes.values()), exact.get(what, all(sizes.values())),
            free := shutil.disk_usage(disks[place]).free,
            asked[disks[place].stat().st_dev] <= free,
        )
        for (what, place), sizes in needs.items()
    ]  # fmt: skip


def _nearest(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())
