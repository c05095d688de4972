"""Benchmarks of the whole path: our probes beside scikit-learn's on the same arrays, in one run.

    python pipelines/benchmarks/path.py [--rows 4000] [--out data/bench.json]

Every figure is a median of several, and a ratio of two medians of the same run with the same number
of threads. Prints one table and writes one JSON. Asserts nothing: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import LabelBinarizer

import featstore

REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of several runs."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def make_rows(n: int, d: int, c: int, *, apart: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features of overlapping Gaussian categories, whose centres are `apart` in each direction."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % c)
    centres = np.random.default_rng(1).normal(size=(c, d)) * apart
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def compare_probes(n: int, d: int, c: int) -> list[dict[str, object]]:
    """Each protocol beside scikit-learn's nearest equivalent."""
    x, y = make_rows(n, d, c)
    z, t = make_rows(n // 4, d, c)
    targets = LabelBinarizer().fit_transform(y)
    grid = np.logspace(-4, 6, 21)
    cs = [10.0**e for e in range(-6, 6)]

    def sweep() -> None:
        for value in cs:  # as users write it: no warm start, one fit for each C
            LogisticRegression(C=value, max_iter=100).fit(x, y)

    references: dict[str, Callable[[], object]] = {
        "knn-marks": lambda: (
            KNeighborsClassifier(20, weights="distance", algorithm="brute").fit(x, y).predict(z)
        ),
        "ridge": lambda: RidgeCV(alphas=grid).fit(x, targets).predict(z),
        "logreg": sweep,
    }
    rows = []
    for protocol, reference in references.items():
        ours = seconds(lambda p=protocol: featstore.score(x, y, z, t, protocol=p))
        theirs = seconds(reference)
        rows.append(
            {"what": f"{protocol} {n} x {d}, {c} categories", "seconds": ours,
             "scikit-learn": theirs, "ratio": ours / theirs}
        )  # fmt: skip
    return rows


def compare_extraction() -> list[dict[str, object]]:
    """Images per second of the tiny models, alone and sharing a decoding pass."""
    rows = []
    for models in (["tiny-vit-simclr"], ["tiny-vit-simclr", "tiny-vit-mae", "tiny-vit-barlow"]):

        def run(models: list[str] = models) -> None:
            with tempfile.TemporaryDirectory() as folder:
                featstore.extract(models, ["digits"], store=f"{folder}/s.zarr", device="cpu")

        took = seconds(run)
        rows.append(
            {"what": f"extract digits, {len(models)} tiny ViT", "seconds": took,
             "images/s": 1797 / took}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("data/bench.json"))
    arguments = parser.parse_args()
    rows = compare_probes(arguments.rows, 256, 20) + compare_extraction()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "repeats": REPEATS}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    for row in rows:
        facts = "  ".join(f"{k} {v:.3g}" for k, v in row.items() if k != "what")
        print(f"{row['what']!s:44}{facts}")
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
