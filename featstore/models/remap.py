r"""From the names in a weights file to those in a module, by rules that a catalogue states.

Rules hold in order, for one name at a time. A regular expression begins with ^ and is matched from
the start of the name, so that no rule can hit the middle of one by chance.

=============================  ====================================================================
``keep REGEX``                 names that do not match are left out
``drop REGEX``                 names that match are left out
``sub REGEX -> REPLACEMENT``   what matches is replaced, or stripped if empty; ``\1`` is a group
``copy NAME -> NAME NAME ..``  one tensor under several names; ``blocks.{0..11}.x`` are twelve
``fresh REGEX``                names of the module that may keep their initial value
``use NAME``                   the rules of that name in ``catalogue/rules.toml``
=============================  ====================================================================
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from featstore.errors import BadCheckpointError, CatalogueError

PLAIN = (r"sub ^module\. ->",)
"""Rules where none are stated: only the prefix that DataParallel leaves is taken off."""

_FORMS = {
    "keep": "keep REGEX",
    "drop": "drop REGEX",
    "sub": "sub REGEX -> REPLACEMENT",
    "copy": "copy NAME -> NAME NAME ..",
    "fresh": "fresh REGEX",
    "use": "use NAME",
}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class _Rule:
    verb: str
    pattern: re.Pattern[str]
    replacement: str = ""
    copies: tuple[str, ...] = ()

    def __call__(self, name: str) -> list[str]:
        """What becomes of a name: nothing, itself, another, or several."""
        found = self.pattern.match(name)
        if self.verb == "keep":
            return [name] if found else []
        if self.verb == "drop":
            return [] if found else [name]
        if self.verb == "copy":
            return list(self.copies) if found else [name]
        if self.verb == "sub" and found:
            return [found.expand(self.replacement) + name[found.end() :]]
        return [name]


def remap(names: Iterable[str], rules: Sequence[str], path: Path) -> dict[str, str]:
    """For each name in the module, the name in the file whose tensor it gets.

    Parameters
    ----------
    names : in the file ; path : of the file, for messages

    Raises
    ------
    CatalogueError
        A rule cannot be understood.
    BadCheckpointError
        Two names of the file end on one name of the module.
    """
    parsed = _parsed(tuple(rules))
    sources: dict[str, str] = {}
    for source in names:
        targets = [source]
        for rule in parsed:
            targets = [one for target in targets for one in rule(target)]
        for target in targets:
            if target in sources:
                raise BadCheckpointError(
                    f"{path}: both {sources[target]} and {source} become {target}. Leave one out "
                    f"by a rule, keep or drop"
                )
            sources[target] = source
    return sources


def fresh(names: Iterable[str], rules: Sequence[str]) -> list[str]:
    """Those names of a module that may keep their initial value, by the rules.

    Raises
    ------
    CatalogueError
        A rule cannot be understood.
    """
    patterns = [rule.pattern for rule in _parsed(tuple(rules)) if rule.verb == "fresh"]
    return [name for name in names if any(pattern.match(name) for pattern in patterns)]


@cache
def _parsed(rules: tuple[str, ...]) -> tuple[_Rule, ...]:
    return tuple(parsed for rule in rules for parsed in _parse(rule))


def _parse(rule: str) -> tuple[_Rule, ...]:
    verb, _, rest = (rule if isinstance(rule, str) else repr(rule)).strip().partition(" ")
    rest = rest.strip()
    if verb not in _FORMS:
        raise CatalogueError(f"rule {rule!r}: there is no {verb!r}, only {', '.join(_FORMS)}")
    left, arrow, right = (part.strip() for part in rest.partition("->"))
    if not left or bool(arrow) != (verb in ("sub", "copy")):
        raise CatalogueError(f"rule {rule!r} does not read {_FORMS[verb]}")
    if verb == "use":
        if left not in _shared():
            raise CatalogueError(f"rule {rule!r}: there are the rules {', '.join(_shared())}")
        return _parsed(_shared()[left])
    if verb == "copy":
        copies = tuple(name for word in right.split() for name in _spelled_out(word))
        if not copies or " " in left:
            raise CatalogueError(f"rule {rule!r} does not read {_FORMS[verb]}")
        return (_Rule(verb, re.compile(re.escape(left) + r"\Z"), copies=copies),)
    if not left.startswith("^"):
        raise CatalogueError(f"rule {rule!r}: its regular expression must begin with ^")
    try:
        pattern = re.compile(left)
        pattern.sub(right, "")  # refuses a replacement that names a group which is not there
    except (re.error, IndexError) as error:
        raise CatalogueError(f"rule {rule!r} is no regular expression ({error})") from error
    return (_Rule(verb, pattern, right),)


def _spelled_out(word: str) -> list[str]:
    found = _RANGE.search(word)
    if not found:
        return [word]
    numbers = range(int(found[1]), int(found[2]) + 1)
    ends = _spelled_out(word[found.end() :])
    return [f"{word[: found.start()]}{number}{end}" for number in numbers for end in ends]


@cache
def _shared() -> dict[str, tuple[str, ...]]:
    """Rules that several entries have in common, by name."""
    path = Path(__file__).with_name("catalogue") / "rules.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: tuple(rules) for name, rules in tables.items()}
