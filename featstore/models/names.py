"""Model names: what a user writes, what is in the catalogue, what comes near."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from featstore.errors import UnknownNameError
from featstore.names import expand_sets, read_catalogue

SITES = ("cls", "avg", "cls+avg", "cls-last4")
"""Embedding sites that can be asked for; without one, the model's own pre-logits are taken."""


@dataclass(frozen=True)
class ModelName:
    """`BASE[@SITE][~VARIANT]` taken apart.

    `base` is a catalogue name, `timm:NAME` or `file:PATH#arch=NAME`.
    """

    base: str
    site: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Name from what a user writes.

        Raises
        ------
        UnknownNameError
            The site is not one of `SITES`, or a `file:` says no architecture.
        """
        # A path may hold @ and ~ itself, so of a file: only what follows its architecture is split.
        path, mark, rest = text.rpartition("#arch=") if text.startswith("file:") else ("", "", text)
        if text.startswith("file:") and not mark:
            raise UnknownNameError(
                f"{text} says no architecture. Write file:PATH#arch=NAME, with a timm name"
            )
        rest, _, variant = rest.partition("~")
        name, _, site = rest.partition("@")
        if site and site not in SITES:
            raise UnknownNameError(
                f"unknown embedding site @{site} in {text}; there are "
                + ", ".join(f"@{known}" for known in SITES)
            )
        return cls(path + mark + name, site, variant)

    def __str__(self) -> str:
        site = f"@{self.site}" if self.site else ""
        variant = f"~{self.variant}" if self.variant else ""
        return f"{self.base}{site}{variant}"

    def with_variant(self, variant: str) -> ModelName:
        """The same model, kept apart under another variant (`a-b` of variants a and b)."""
        return replace(self, variant="-".join(part for part in (self.variant, variant) if part))


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes
    ----------
    arch : a timm name, or one of the tiny study's architectures
    weights : a file below the packaged data folder, or `random:SEED`
    sets : studies that the model belongs to
    backbone, family, method : what it is, for analysis
    stage : `late`, `early` (a checkpoint of the same run), `random` (the floor) or ""
    lineage : the training run; models of one lineage are no independent draws
    pretraining : sources of the images it was trained on
    """

    name: str
    arch: str
    weights: str
    sets: list[str] = field(default_factory=list)
    backbone: str = ""
    family: str = ""
    method: str = ""
    stage: str = ""
    lineage: str = ""
    pretraining: list[str] = field(default_factory=list)
    epochs: int = 0
    description: str = ""


@cache
def catalogue() -> dict[str, Entry]:
    """All models known by name."""
    return read_catalogue(Path(__file__).with_name("catalogue.toml"), Entry)


def expand(names: Iterable[str]) -> list[str]:
    """Model names with each set's name (`tiny`, `all`) replaced by its members, in order."""
    return expand_sets(names, catalogue(), lambda name: str(ModelName.parse(name)))
