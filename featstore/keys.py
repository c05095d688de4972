"""What identifies a set of features: the key it is stored under and the recipe it was made by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

FORMAT_VERSION = 1
"""Version of the store's layout; a reader refuses a store of any other."""

_LONGEST_PART = 240  # file systems allow 255 bytes in a name; the rest is room for suffixes


class BNMode(StrEnum):
    """Statistics that the backbone's own BatchNorm layers use while embedding."""

    EVAL = "eval"
    """Running statistics as shipped."""
    BATCH = "batch"
    """Statistics of the batch being embedded (transductive)."""
    ADAPT = "adapt"
    """Running statistics estimated anew over the target's train split, then frozen."""


def encode_part(name: str) -> str:
    """One path part for any name: percent-encoded, never empty, hidden, `.` or `..`.

    Raises
    ------
    ValueError
        The name is empty, holds a NUL, or is longer than 240 bytes once encoded.
    """
    part = quote(name, safe="@+~=,")
    if part.startswith((".", "__")):  # `.` and `..` are directions, `__` is Zarr's own
        part = f"%{ord(part[0]):02X}{part[1:]}"
    if not part or "\0" in name:
        raise ValueError(f"{name!r} cannot name a part of a store: it is empty or holds a NUL")
    if len(part) > _LONGEST_PART:
        raise ValueError(
            f"the name {name[:40]!r}... takes {len(part)} bytes in a path, the most is "
            f"{_LONGEST_PART}; use a shorter one"
        )
    return part


def decode_part(part: str) -> str:
    """The name that `encode_part` made the part of."""
    return unquote(part)


@dataclass(frozen=True, order=True)
class FeatureKey:
    """A model (with its embedding site and variant), a dataset (with its transform), a BN mode."""

    model: str
    dataset: str
    bn_mode: BNMode

    @property
    def path(self) -> str:
        """Place in the store, `<model>/<dataset>/<bn_mode>`, each part percent-encoded."""
        return "/".join(encode_part(part) for part in (self.model, self.dataset, self.bn_mode))

    @classmethod
    def from_path(cls, path: str) -> FeatureKey:
        """Key stored at `<model>/<dataset>/<bn_mode>`."""
        model, dataset, bn_mode = path.split("/")
        return cls(decode_part(model), decode_part(dataset), BNMode(decode_part(bn_mode)))

    @classmethod
    def parse(cls, text: str) -> FeatureKey:
        """Key from what `str` prints.

        Raises
        ------
        ValueError
            The text is not `MODEL DATASET BN_MODE`, three words with spaces between them.
        """
        try:
            model, rest = text.split(" ", 1)
            dataset, bn_mode = rest.rsplit(" ", 1)  # a folder's name may hold spaces
            return cls(model, dataset, BNMode(bn_mode))
        except ValueError:
            raise ValueError(f"{text!r} is no key; write 'MODEL DATASET BN_MODE'") from None

    def __str__(self) -> str:
        return f"{self.model} {self.dataset} {self.bn_mode}"


@dataclass(frozen=True)
class Recipe:
    """All that changes an embedding besides its key: weights, transform, precision, images, ...

    `fields` holds JSON values only, so that it reads the same from a store as it was written.
    """

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over the fields as canonical JSON, in hex."""
        return sha256_json(self.fields)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Fields that are not the same in both, as (here, there); an absent one is None."""
        names = sorted({*self.fields, *other.fields})
        pairs = {name: (self.fields.get(name), other.fields.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON that is the same for equal values: sorted names, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
