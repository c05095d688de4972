"""Where downloads and the user's own catalogue lie."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`FEATSTORE_HOME`, or `featstore` in the user's cache folder; need not exist."""
    named = os.environ.get("FEATSTORE_HOME")
    if named:
        return expanded(named)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return expanded(cache_home) / "featstore"


def expanded(path: str | Path) -> Path:
    """A path with a leading `~` or `~USER` replaced by the home folder that it means.

    Raises
    ------
    ValueError
        There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no home folder of that user is known") from error


def user_catalogue() -> Path:
    """The user's own models and datasets, `[models.NAME]` and `[datasets.NAME]` tables."""
    return home() / "catalogue.toml"


def offline() -> bool:
    """Whether nothing may be fetched: `FEATSTORE_OFFLINE` or `HF_HUB_OFFLINE` is set."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no", "off")
        for name in ("FEATSTORE_OFFLINE", "HF_HUB_OFFLINE")
    )
