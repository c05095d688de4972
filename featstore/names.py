"""What models, datasets and protocols have in common as named things: sets, near matches, files."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from featstore.errors import UnknownNameError


class Named(Protocol):
    """An entry of a catalogue, which may belong to sets such as a study's."""

    @property
    def sets(self) -> Iterable[str]:
        """Names of the sets that it belongs to."""


E = TypeVar("E", bound=Named)


def read_catalogue(path: Path, entry: Callable[..., E]) -> dict[str, E]:
    """Entries of a TOML file that has one table for each, in its order."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: entry(name, **table) for name, table in tables.items()}


def expand_sets(
    names: Iterable[str], entries: Mapping[str, Named], own_name: Callable[[str], str]
) -> list[str]:
    """Names with each set's name replaced by its members, in order and none twice.

    `all` is a set of every entry; `own_name` gives the full name of what is no set, or refuses it.
    """
    known_sets = {"all", *(one for entry in entries.values() for one in entry.sets)}
    found: dict[str, None] = {}
    for name in names:
        if name in known_sets:
            members = (n for n, entry in entries.items() if name == "all" or name in entry.sets)
            found |= dict.fromkeys(members)
        else:
            found[own_name(name)] = None
    return list(found)


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> UnknownNameError:
    """Error for a name that does not exist, with those that come near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}.{guess} {listing}")
