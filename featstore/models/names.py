"""Model names: what a user writes, what is in the catalogue, what comes near."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from featstore.errors import UnknownNameError
from featstore.home import expanded
from featstore.names import expand_sets, known_entries

_FILES = [
    Path(__file__).with_name("catalogue") / f"{name}.toml"
    for name in ("tiny", "marks2024", "ericsson2021", "modern")
]

SITES = ("cls", "avg", "cls+avg", "cls-last4")
"""Embedding sites that can be asked for; without one, the model's own pre-logits are taken."""

_INTERPOLATIONS = (
    *("", "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"),
)


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
    options : further arguments of `timm.create_model`
    weights : `random:SEED`, `hub` (fetched by timm for the tag in `arch`), a file, or "" where
        `urls` or `by_hand` say whence it comes; a file is relative to `folder`
    sets : studies that the model belongs to
    backbone, family, method : what it is, for analysis; `family` is fine (contrastive, clustering,
        self-distillation, masked image modelling, pretext, ...)
    paradigm : the coarse family: `discriminative`, `generative`, `supervised`,
        `language-supervised`, `random`
    teacher : `clip` if its targets, or the tokens that are its targets, come from a model trained
        with captions, which has seen far more than the images in `pretraining`; else ""
    stage : `late`, `early` (a checkpoint of the same run), `random` (the floor) or ""
    lineage : the training run; models of one lineage are no independent draws
    pretraining : sources of the images it was trained on
    epochs : of pretraining, 0 where not stated
    urls : where the weights file is fetched from, tried in order
    by_hand : where a person gets it, if no program can ; file : its name once fetched
    sha256 : of the file, in hex, or its first 8 digits or more; the whole is that of the first file
        that loads, and held to
    converts : the file holds more than tensors, so that `featstore convert` must read it first
    nest : keys that lead to the tensors within the file, joined by / ; "" where they lie bare, or
        below `state_dict` or `model`; `haiku` for what `models.haiku` reads
    rules : names from the file to names in the module, in order: see `models.remap`
    site : what a bare name embeds, in words ; width : features there
    mean, std : of the input, per channel, on the scale 0..1; empty: those of the architecture
    interpolation, crop_pct, image_size : of the weights' own input; empty or 0: the architecture's
    login : whether the hub gives the file only to who has accepted its licence
    licence, imagenet_top1 (in %), imagenet_source : as stated by the authors; "" or 0 if not
    unverified : what nobody has seen in the real file
    note : what a user should know
    folder : of the catalogue that it stands in, for the user's own
    """

    name: str
    arch: str
    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    backbone: str = ""
    family: str = ""
    paradigm: str = ""
    method: str = ""
    teacher: str = ""
    stage: str = ""
    lineage: str = ""
    pretraining: list[str] = field(default_factory=list)
    epochs: int = 0
    urls: list[str] = field(default_factory=list)
    by_hand: str = ""
    file: str = ""
    sha256: str = ""
    converts: bool = False
    nest: str = ""
    rules: list[str] = field(default_factory=list)
    site: str = ""
    width: int = 0
    mean: Annotated[list[float], 3] = field(default_factory=list)
    std: Annotated[list[float], 3] = field(default_factory=list)
    interpolation: Annotated[str, _INTERPOLATIONS] = ""
    crop_pct: float = 0.0
    image_size: int = 0
    licence: str = ""
    login: bool = False
    imagenet_top1: float = 0.0
    imagenet_source: str = ""
    unverified: str = ""
    note: str = ""
    description: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if any(not 0 <= one <= 1 for one in self.mean) or any(not 0 < one <= 1 for one in self.std):
            raise ValueError(
                f"mean must lie in 0..1, and std as well without 0, got {self.mean} and "
                f"{self.std}; divide by 255 what is meant for pixels up to 255"
            )
        if self.crop_pct < 0 or self.image_size < 0 or self.width < 0:
            raise ValueError("crop_pct, image_size and width must be above 0, or 0 for unknown")
        for url in self.urls:
            if not url.startswith(("https://", "http://")):
                raise ValueError(f"urls must be http or https addresses, got {url!r}")

    @property
    def whence(self) -> str:
        """Where its weights come from, in words."""
        if self.by_hand or self.urls:
            return self.by_hand or ", ".join(self.urls)
        if self.weights == "hub":
            return f"timm's hub, {self.arch}"
        if self.weights.startswith(("random:", "py:")):
            return self.weights
        place = Path(self.folder, expanded(self.weights)) if self.weights else self.file
        return f"your own file, {place}" if place else "nowhere: its entry names no weights"


def catalogue() -> dict[str, Entry]:
    """All models known by name: those that ship, and the user's own."""
    return known_entries("models", Entry, _FILES)


def expand(names: Iterable[str]) -> list[str]:
    """Model names with each set's name (`tiny`, `all`) replaced by its members, in order.

    `file:runs/*.pt#arch=NAME` is replaced by its files, `epoch9` before `epoch10`.

    Raises
    ------
    UnknownNameError
        A pattern of files matches none.
    """
    every = [one for name in names for one in _series(name)]
    return expand_sets(every, catalogue(), lambda name: str(ModelName.parse(name)))


def _series(name: str) -> list[str]:
    """Names of the files that a `file:` name with wildcards stands for; any other by itself."""
    path, mark, rest = name.removeprefix("file:").rpartition("#arch=")
    pattern = expanded(path)
    is_pattern = name.startswith("file:") and mark and re.search(r"[*?[]", path)
    if not is_pattern or pattern.exists():
        return [name]
    top = Path(pattern.anchor)
    found = sorted(map(str, top.glob(str(pattern.relative_to(top)))), key=_by_number)
    if not found:
        raise UnknownNameError(f"no file matches {pattern}. Check the pattern after file:")
    return [f"file:{one}#arch={rest}" for one in found]


def _by_number(path: str) -> list[tuple[str, int]]:
    """Sort key by which numbers within a name count as such."""
    parts = re.findall(r"(\D*)(\d*)", path)
    return [(text, int(digits or -1)) for text, digits in parts]
