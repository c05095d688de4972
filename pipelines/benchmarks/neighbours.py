"""Exact nearest neighbours beside faiss and scikit-learn, and beside the product they are made of.

    python pipelines/benchmarks/neighbours.py [--small] [--json FILE]

10,000 queries in 50,000 rows, k = 200. Ours are made in double precision from the pairs that a
screen leaves; faiss stays in single precision. All that is made of the bank is in our time, but for
the rows that say so. What a search holds beside bank and queries is to stay below 300 MiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
import torch
from common import Row, clusters, compare, run, seconds
from sklearn.neighbors import KNeighborsClassifier

from featstore import kernels

SCREENS = kernels.screens.SCREENS


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def against_faiss(n: int, q: int, d: int, k: int, repeats: int) -> list[Row]:
    """Every screen, all made anew and with what the bank was made into kept."""
    search, of = kernels.search.search, kernels.search.Bank.of_array
    bank, queries = (unit(clusters(m, d, 100, apart=0.3, seed=s)[0]) for m, s in ((n, 0), (q, 1)))

    def theirs(kind: str = "IndexFlatIP") -> None:
        index = getattr(faiss, kind)(d)
        index.add(bank)
        index.search(queries, k)

    size = f"{q:,} in {n:,} x {d}, k = {k}"
    fastest = kernels.screens.fastest().name
    rows = []
    for name, goal in (("float32", 0.95), ("bfloat16", 0.45), ("int8", 0.45)):
        note = f"{extra_memory(n, q, d, k, name):.0f} MiB beside bank and queries"
        note = f"the one chosen here; {note}" if name == fastest else note
        rows.append(compare(
            f"inner product, {name} screen, {size}",
            lambda name=name: search(of(bank, "inner", screen=SCREENS[name]()), queries, k=k),
            "faiss IndexFlatIP", theirs, goal=goal, repeats=repeats, note=note,
        ))  # fmt: skip
    kept = of(bank, "inner", keep=True)
    search(kept, queries, k=k)
    rows.append(compare(
        f"inner product, {fastest} screen kept, {size}", lambda: search(kept, queries, k=k),
        "faiss IndexFlatIP", theirs, goal=0.35, repeats=repeats,
    ))  # fmt: skip
    rows.append(compare(
        f"squared Euclidean, {size}", lambda: search(of(bank, "euclidean"), queries, k=k),
        "faiss IndexFlatL2", lambda: theirs("IndexFlatL2"), goal=0.45, repeats=repeats,
    ))  # fmt: skip
    return rows


def extra_memory(n: int, q: int, d: int, k: int, name: str) -> float:
    """Most MiB that a search holds beside its bank and queries, results included.

    In a process of its own, since a peak covers all that came before it.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_extra_memory, (n, q, d, k, name, torch.get_num_threads()))


def _extra_memory(n: int, q: int, d: int, k: int, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    sides = []
    for seed, count in enumerate((n, q)):
        rows = np.empty((count, d), np.float32)
        for i in range(0, count, 1000):  # so that the making of it is no peak
            some = clusters(min(1000, count - i), d, 100, apart=0.3, seed=2 * i + seed)[0]
            rows[i : i + 1000] = unit(some)
        sides.append(rows)
    bank, queries = sides
    search, of = kernels.search.search, kernels.search.Bank.of_array
    screen = SCREENS[name]()
    search(of(bank[:2000], "inner", screen=screen), queries[:50], k=20)  # libraries are loaded
    before = resident()
    search(of(bank, "inner", screen=screen), queries, k=k)
    return (resident() - before) * 1024


def against_scikit_learn(n: int, q: int, d: int) -> Row:
    """As the study calls it, to predictions."""
    x, y = clusters(n, d, 100, apart=0.3)
    z, _ = clusters(q, d, 100, apart=0.3, seed=1)
    votes = kernels.votes

    def ours() -> None:
        value, index = kernels.search.search(kernels.search.Bank.of_array(x, "euclidean"), z, k=20)
        weights = votes.inverse_distance_weights(value, xp=_namespace())
        votes.winners(y[index], weights, ks=[20])

    def theirs() -> None:
        KNeighborsClassifier(20, weights="distance").fit(x, y).predict(z)

    size = f"{q:,} in {n:,} x {d}, k = 20"
    return compare(f"kNN classifier, {size}", ours, "KNeighborsClassifier(20, weights='distance')",
                   theirs, goal=0.1, repeats=1)  # fmt: skip


def _namespace() -> object:
    import array_api_compat.numpy as xp

    return xp


def predictions(q: int, categories: int, repeats: int) -> Row:
    """Predictions of 7 k and 3 weightings from lists of 200."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, categories, (q, 200))
    similarity = -np.sort(-rng.random((q, 200)), axis=1)
    weightings = np.stack(
        [np.ones_like(similarity), np.exp(similarity / 0.07), 1 / (1.001 - similarity)]
    )
    ks = [1, 5, 10, 20, 50, 100, 200]

    def ours() -> None:
        kernels.votes.winners(labels, weightings, ks=ks)

    def theirs() -> None:
        rows = np.arange(q)[:, None] * categories
        for weights in weightings:
            for k in ks:
                flat = (rows + labels[:, :k]).ravel()
                total = np.bincount(flat, weights[:, :k].ravel(), minlength=q * categories)
                total.reshape(q, categories).argmax(axis=1)

    return compare(f"votes, 7 k x 3 weightings, {q:,} x 200, {categories:,} categories", ours,
                   "a bincount each", theirs, goal=0.2, repeats=repeats)  # fmt: skip


def larger_than_memory(n: int, q: int, d: int, k: int) -> Row:
    """A float16 bank in a file, beside its products in single precision alone."""
    queries = clusters(q, d, 100, apart=0.3, seed=1)[0]
    step = 8192
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.f16"
        with path.open("wb") as file:
            for start in range(0, n, step):
                rows = clusters(min(step, n - start), d, 100, apart=0.3, seed=start + 2)[0]
                rows.astype(np.float16).tofile(file)

        def read(i: int) -> np.ndarray:
            count = min(step, n - i * step)
            return np.fromfile(path, np.float16, count * d, offset=i * step * d * 2).reshape(-1, d)

        sizes = [min(step, n - i) for i in range(0, n, step)]
        before = resident()
        took = seconds(
            lambda: kernels.search.search(kernels.search.Bank(sizes, read, "inner"), queries, k=k)
        )
        most = resident()
    tile = clusters(2048, d, 100, apart=0.3)[0]
    out = np.empty((q, 2048), np.float32)
    np.matmul(queries, tile.T, out=out)
    product = seconds(lambda: [np.matmul(queries, tile.T, out=out) for _ in range(8)]) / 8
    note = f"resident at most {most:.1f} GiB, {before:.1f} before; baseline from 8 tiles"
    return Row(f"bank in a file, {q:,} in {n:,} x {d} float16, k = {k}", took,
               "its products in float32", product * n / 2048, 1.3, 1, note)  # fmt: skip


def resident() -> float:
    """Most GiB that this process has held in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says here begins with what the parent held
        (most,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(most.split()[1]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All of it."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    if arguments.small:
        return [
            larger_than_memory(20_000, 50, 32, 10),
            *against_faiss(3000, 200, 64, 20, 1),
            against_scikit_learn(2000, 200, 32),
            predictions(200, 50, 1),
        ]
    return [
        larger_than_memory(1_281_167, 2000, 2048, 200),  # first, so that it alone holds memory
        *against_faiss(50_000, 10_000, 768, 200, 3),
        *against_faiss(50_000, 10_000, 2048, 200, 1),
        against_scikit_learn(50_000, 10_000, 768),
        predictions(10_000, 1000, 3),
    ]


if __name__ == "__main__":
    run(measure, __doc__ or "")
