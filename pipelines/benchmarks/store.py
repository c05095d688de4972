"""The store beside np.save and np.load of the same bytes, from and into the page cache.

python pipelines/benchmarks/store.py [--small] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, compare, run

import featstore
from featstore import BNMode, FeatureKey, Recipe

KEY = FeatureKey("model", "dataset", BNMode.EVAL)
GOAL = 1 / 0.8
"""At least 0.8 of the rate of np.save and np.load."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Widths and dtypes that banks come in; a pass over a bank in tiles."""
    sizes = [(200_000, 768, "float16"), (200_000, 768, "float32"), (200_000, 2048, "float16")]
    if arguments.small:
        sizes = [(5000, 32, "float16"), (5000, 32, "float32")]
    return [row for size in sizes for row in beside(*size, 1 if arguments.small else 5)]


def beside(n: int, d: int, dtype: str, repeats: int) -> list[Row]:
    """Writing, reading all, and reading in tiles."""
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32).astype(dtype)
    size, threads = f"{n} x {d} {dtype}", torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.npy")
        valid = np.ones(n, bool)
        waiting = [created(Path(folder, str(i)), n, d, dtype) for i in range(repeats)]
        split = waiting[0].split

        def write() -> None:
            waiting.pop().write(0, x, valid)

        def read() -> None:
            replace(split).rows(threads=threads)  # a new one, which reads its digests as well

        def read_tiles() -> None:
            for _ in replace(split).tiles(threads=threads):
                pass

        save, load = partial(np.save, file, x), partial(np.load, file)
        rows = [compare(f"write {size}", write, "np.save", save, goal=GOAL, repeats=repeats)]
        np.testing.assert_array_equal(split.rows(threads=threads), x)
        return [
            *rows,
            compare(f"read {size}", read, "np.load", load, goal=GOAL, repeats=repeats),
            compare(f"tiles of {size}", read_tiles, "np.load", load, goal=GOAL, repeats=repeats),
        ]


def created(root: Path, n: int, d: int, dtype: str) -> Any:
    """Writer of an empty split."""
    store = featstore.Store and featstore.store
    ids = [str(i) for i in range(n)]
    rows = store.Rows(ids, np.arange(n), np.arange(n) % 2, ["a", "b"])
    return store.create(
        root, KEY, "train", Recipe({}), rows, width=d, dtype=dtype, codec="none",
        chunk_rows=store.chunk_rows_for(n), notes={},
    )  # fmt: skip


if __name__ == "__main__":
    run(measure, __doc__)
