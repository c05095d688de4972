from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from featstore.keys import BNMode, FeatureKey, Recipe
from featstore.store import Rows, Split, create
from featstore.transfer import spool


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spool, "BLOCK_BYTES", 100)  # so that even small files have many blocks
    return tmp_path


class Put(NamedTuple):
    split: Split
    X: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    index: np.ndarray


@pytest.fixture
def put():
    """Writes a split in a shuffled order; what it holds, in the stored order."""

    def write(
        root="s", model="m", split="train", *, n=25, width=6, dtype="float16", chunk_rows=10,
        recipe=None, y=None, skip=(), finish=True,
    ):  # fmt: skip
        rng = np.random.default_rng(0)
        X = rng.normal(size=(n, width)).astype(dtype)
        order = rng.permutation(n)
        y = rng.integers(0, 3, n) if y is None else y
        ids = np.array([f"é/{i}.png" for i in order])
        valid = ~np.isin(np.arange(n), skip)
        writer = create(
            Path(root), FeatureKey(model, "folder:/a b", BNMode.EVAL), split,
            Recipe(recipe or {"weights": "abc"}), Rows(ids.tolist(), order, y, ["ä", "b", "c"]),
            width=width, dtype=dtype, codec="none", chunk_rows=chunk_rows, notes={"model": {}},
        )  # fmt: skip
        for chunk in writer.missing()[: None if finish else 1]:
            span = writer.split.span(chunk)
            rows = slice(span.start, span.stop)
            writer.write(chunk, X[rows], valid[rows])
        if finish:
            writer.finish()
        return Put(writer.split, X[valid], y[valid], ids[valid], order[valid])

    return write
