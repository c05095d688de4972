"""What models, datasets and protocols have in common as named things: sets, near matches, files."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from featstore.errors import CatalogueError, UnknownNameError

_FORM = "Write a table [{0}.NAME] for each of your {0}"


class Named(Protocol):
    """An entry of a catalogue, which may belong to sets such as a study's."""

    @property
    def sets(self) -> Iterable[str]:
        """Names of the sets that it belongs to."""


E = TypeVar("E", bound=Named)


def read_catalogue(
    files: Iterable[Path], entry: Callable[..., E], *, user: Path | None = None, kind: str = ""
) -> dict[str, E]:
    """Entries of TOML files that have one table for each, in their order.

    A table whose name begins with _ is no entry: others of its file take its fields by `like`.
    Of the user's file, if there is one, those below `[kind.NAME]` follow, with the field `folder`
    set to the place of that file, since their paths are relative to it.

    Raises
    ------
    CatalogueError
        The user's file cannot be read, names what is known already, or has a field that no entry
        has or a value of another type.
    """
    found = {name: entry(name, **table) for path in files for name, table in _tables(path).items()}
    if user is None or not user.is_file():
        return found
    try:
        own = tomllib.loads(user.read_text(encoding="utf-8")).get(kind, {})
        pairs = [(str(name), dict(table)) for name, table in own.items()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CatalogueError(f"{user} is no catalogue ({error}). {_FORM.format(kind)}") from error
    for name, table in pairs:
        if name in found:
            raise CatalogueError(f"{user}: {kind} {name!r} is known already; use another name")
        try:
            found[name] = entry(name, folder=str(user.parent), **table)
        except (TypeError, ValueError) as error:
            reason = str(error).rpartition("__init__() ")[2]
            raise CatalogueError(f"{user}: [{kind}.{name}]: {reason}") from error
    return found


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    """Tables of a catalogue that are entries, by name, with what they take from others."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: tables[table.pop("like")] | table if "like" in table else table
        for name, table in tables.items()
        if not name.startswith("_")
    }


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
