"""Models of the catalogue that turn out to have the same weights, as mixed-up files would."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from featstore.home import home
from featstore.models.names import Entry, catalogue

log = logging.getLogger(__name__)


def warn_of_twins(entry: Entry, weights: str) -> None:
    """Log a warning if another training run of the catalogue has the same weights.

    What each model had when it was last loaded stands in `weights.json` below `home()`.

    Parameters
    ----------
    weights : SHA-256 over the model's tensors, in hex
    """
    known = catalogue()
    if entry.name not in known:
        return
    record = home() / "weights.json"
    seen = _read(record)
    for name, other in seen.items():
        if other == weights and name in known and known[name].lineage != entry.lineage:
            log.warning(
                "%s has the very weights of %s: one of their files is not what it is named",
                entry.name,
                name,
            )
    if seen.get(entry.name) != weights:
        _write(record, seen | {entry.name: weights})


def _read(record: Path) -> dict[str, str]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or cut off: written anew
        return {}
    return found if isinstance(found, dict) else {}


def _write(record: Path, seen: dict[str, str]) -> None:
    partial = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(seen, indent=1), encoding="utf-8")
        partial.replace(record)
    except OSError as error:  # a home that cannot be written costs a warning, and no model
        log.debug("%s: %s", record, error)
