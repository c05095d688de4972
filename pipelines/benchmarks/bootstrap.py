"""The paired bootstrap of all pairs of models beside rows taken one resample at a time.

python pipelines/benchmarks/bootstrap.py [--small] [--json FILE]
"""

from __future__ import annotations

import argparse

import numpy as np
from common import Row, compare, run

from featstore import kernels


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Accuracies of every resample, and differences, intervals and p-values of all pairs."""
    n, models, resamples = (500, 4, 50) if arguments.small else (50_000, 26, 2_000)
    rng = np.random.default_rng(0)
    hard = rng.random((n, 1), dtype=np.float32)
    correct = (rng.random((n, models), dtype=np.float32) + hard) / 2 < np.linspace(0.4, 0.8, models)

    def ours() -> kernels.resample.PairedDifferences:
        accuracies = kernels.resample.bootstrap_accuracies(
            correct, resamples=resamples, rng=np.random.default_rng(0)
        )
        return kernels.resample.paired_differences(correct.mean(axis=0), accuracies)

    def theirs() -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [correct[rng.integers(n, size=n)].mean(axis=0) for _ in range(resamples)]

    what = f"bootstrap, {models} models, {n} rows, {resamples} resamples"
    note = "goal 10 s; the loop makes accuracies alone"
    return [
        compare(what, ours, "correct[rows].mean() in a loop", theirs, note=note,
                repeats=1 if arguments.small else 3)
    ]  # fmt: skip


if __name__ == "__main__":
    run(measure, __doc__ or "")
