"""What the benchmarks share: medians of alternating runs, rows of a table, made-up features."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what : is measured ; baseline : what it is measured beside
    seconds, baseline_seconds : medians of runs that took turns
    goal : largest ratio seconds / baseline_seconds that is good enough
    repeats : runs of each ; note : what else was found, such as an error or a count
    """

    what: str
    seconds: float
    baseline: str
    baseline_seconds: float
    goal: float | None = None
    repeats: int = 1
    note: str = ""

    @property
    def ratio(self) -> float:
        """Seconds over the baseline's."""
        return self.seconds / self.baseline_seconds

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return asdict(self) | {"ratio": self.ratio}


def compare(
    what: str,
    ours: Callable[[], object],
    baseline: str,
    theirs: Callable[[], object],
    *,
    goal: float | None = None,
    repeats: int = 3,
    note: str = "",
) -> Row:
    """Both timed in turns, so that what else the machine does falls on both."""
    mine, others = [], []
    for _ in range(repeats):
        mine.append(seconds(ours))
        others.append(seconds(theirs))
    return Row(
        what, statistics.median(mine), baseline, statistics.median(others), goal, repeats, note
    )


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one run."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def clusters(
    n: int, d: int, c: int, *, apart: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) float32 of overlapping Gaussian categories, and labels (n,) in 0..c-1.

    The centres are `apart` in each direction; `seed` draws rows, not centres.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c)
    centres = (np.random.default_rng(1).normal(size=(c, d)) * apart).astype(np.float32)
    rows = rng.normal(size=(n, d)).astype(np.float32)
    rows += centres[labels]
    return rows, labels


def show(rows: Sequence[Row]) -> None:
    """One table: what, seconds, baseline, its seconds, ratio, goal."""
    for row in rows:
        goal = "" if row.goal is None else f"  goal {row.goal:g}"
        print(
            f"{row.what:58} {row.seconds:9.3f} s   {row.baseline:44} {row.baseline_seconds:9.3f} s"
            f"   ratio {row.ratio:.3f}{goal}{'   ' + row.note if row.note else ''}",
            flush=True,
        )


def machine() -> dict[str, Any]:
    """Where it was measured."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": name, "cores": cores, "system": platform.system()}


def run(measure: Callable[[argparse.Namespace], Sequence[Row]], description: str) -> None:
    """A script: `--small` for a trial at tiny sizes, `--json FILE` for the rows."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the rows as well")
    arguments = parser.parse_args()
    rows = measure(arguments)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([row.facts for row in rows], indent=1))
