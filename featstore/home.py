"""Where downloads and the user's own catalogue lie."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`FEATSTORE_HOME`, or `featstore` in the user's cache folder; need not exist."""
    named = os.environ.get("FEATSTORE_HOME")
    if named:
        return Path(named).expanduser()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home.expanduser() / "featstore"


def user_catalogue() -> Path:
    """The user's own models and datasets, `[models.NAME]` and `[datasets.NAME]` tables."""
    return home() / "catalogue.toml"


def offline() -> bool:
    """Whether nothing may be fetched: `FEATSTORE_OFFLINE` or `HF_HUB_OFFLINE` is set."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no", "off")
        for name in ("FEATSTORE_OFFLINE", "HF_HUB_OFFLINE")
    )
