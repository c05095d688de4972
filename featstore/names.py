"""What models, datasets and protocols have in common as named things: sets, near matches, files."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from featstore.errors import CatalogueError, UnknownNameError
from featstore.home import user_catalogue

_FORM = "Write a table [models.NAME] or [datasets.NAME] for each of yours"
_SIGNS = re.compile(r"[@~#:/\s\x00-\x1f\x7f]")
_WORDS = {
    str: ("a string", "strings"),
    int: ("a whole number of 0 or more", "whole numbers of 0 or more"),
    float: ("a number", "numbers"),
    bool: ("true or false", ""),
}


class Named(Protocol):
    """An entry of a catalogue, which may belong to sets such as a study's."""

    @property
    def sets(self) -> Iterable[str]:
        """Names of the sets that it belongs to."""


E = TypeVar("E", bound=Named)


def known_entries(kind: str, entry: Callable[..., E], files: Sequence[Path]) -> dict[str, E]:
    """Entries that ship, in `files`, and the user's own; read again when the user's file changes.

    Raises
    ------
    CatalogueError
        The user's file is not as it must be.
    """
    user = user_catalogue()
    changed = user.stat().st_mtime_ns if user.is_file() else 0
    return _read(kind, entry, tuple(files), user, changed)


@lru_cache(maxsize=8)
def _read(
    kind: str, entry: Callable[..., Any], files: tuple[Path, ...], user: Path, _changed: int
) -> dict[str, Any]:
    return read_catalogue(files, entry, user=user, kind=kind)


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
        A file cannot be read; a name is known already, is that of a set or holds a sign that names
        use; a table lacks a field, or has one that no entry has or a value of another type.
    """
    found: dict[str, E] = {}
    for path in files:
        for name, table in _merged(_tables(path), str(path)).items():
            found[name] = _made(entry, name, table, f"{path}: [{name}]")
    if user is None or not user.is_file():
        return found
    for name, table in _merged(_own_tables(user, kind), f"{user}: {kind}").items():
        if name in found:
            raise CatalogueError(f"{user}: {kind} {name!r} is known already; use another name")
        where = f"{user}: [{kind}.{name}]"
        made = found[name] = _made(entry, name, table, where, folder=str(user.parent))
        for one in (name, *made.sets):
            if not one or _SIGNS.search(one):
                raise CatalogueError(
                    f"{user}: {one!r} cannot name {kind} or a set: a name is not empty and holds "
                    f"no white space and none of @ ~ # : /. Use another"
                )
    for name in {"all", *(one for made in found.values() for one in made.sets)} & {*found}:
        raise CatalogueError(f"{user}: {kind} {name!r} is the name of a set as well; use another")
    return found


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"{path} is no catalogue ({error}). {_FORM}") from error


def _own_tables(user: Path, kind: str) -> dict[str, Any]:
    """Tables of one kind in the user's file."""
    every = _tables(user)
    for name, tables in every.items():
        if name not in ("models", "datasets") or not isinstance(tables, dict):
            raise CatalogueError(f"{user}: {name!r} is no table of models or datasets. {_FORM}")
    own: dict[str, Any] = every.get(kind, {})
    return own


def _merged(tables: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Tables that are entries, by name, with what they take from another of these by `like`."""
    merged = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise CatalogueError(f"{where}: {name!r} is no table, but {_shown(table)}. {_FORM}")
        if "like" in table:
            base = tables.get(table["like"]) if isinstance(table["like"], str) else None
            if not isinstance(base, dict) or "like" in base:
                raise CatalogueError(
                    f"{where} {name!r} is like {_shown(table['like'])}, which must be a table "
                    f"beside it that is like no other"
                )
            table = {field: v for field, v in (base | table).items() if field != "like"}
        if not name.startswith("_"):
            merged[name] = table
    return merged


def _made(
    entry: Callable[..., E], name: str, table: Mapping[str, Any], where: str, folder: str = ""
) -> E:
    """Entry of a table, whose values are held to the types that the fields of entries have."""
    hints = _hints(entry)
    for field, value in table.items():
        if field not in hints:
            raise CatalogueError(f"{where}: there is no field {field!r}.{_near(field, hints)}")
        if not _is(value, hints[field]):
            raise CatalogueError(
                f"{where}: {field} must be {_expected(hints[field])}, got {_shown(value)}"
            )
    try:
        return entry(name, **table, folder=folder)
    except TypeError as error:  # a field that has no default
        raise CatalogueError(f"{where}: {str(error).rpartition(': ')[2]} is missing") from error
    except ValueError as error:
        raise CatalogueError(f"{where}: {error}") from error


@cache
def _hints(entry: Callable[..., Any]) -> dict[str, Any]:
    """Types of the fields that a table may have: all but those that follow from its place."""
    hints = get_type_hints(entry, include_extras=True)
    return {field: hint for field, hint in hints.items() if field not in ("name", "folder")}


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of TOML is of a type; `Annotated` says its length, or all that it may be."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        of_type, allowed = _is(value, inside[0]), inside[1]
        return of_type and (len(value) == allowed if isinstance(allowed, int) else value in allowed)
    if kind is list:
        return isinstance(value, list) and all(_is(one, inside[0]) for one in value)
    if kind is dict:
        return isinstance(value, dict) and all(_is(one, inside[1]) for one in value.values())
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return hint is Any or (type(value) is hint and (hint is not int or value >= 0))


def _expected(hint: Any) -> str:
    """A type in words."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated and isinstance(inside[1], int):
        return _expected(inside[0]).replace(" of ", f" of {inside[1]} ")
    if kind is Annotated:
        return f"one of {', '.join(one for one in inside[1] if one)}"
    if kind in (list, dict):
        many = _WORDS[inside[-1]][1] if inside[-1] in _WORDS else "values"
        return f"a {'list' if kind is list else 'table'} of {many}"
    return _WORDS[hint][0]


def _shown(value: Any) -> str:
    return reprlib.repr(value)


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
    return UnknownNameError(f"unknown {kind} {name!r}.{_near(name, known)} {listing}")


def _near(name: str, known: Iterable[str]) -> str:
    """Question whether names that come near were meant; nothing if none does."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""
