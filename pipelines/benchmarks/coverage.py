"""How often intervals of correlations over few models hold the truth, and how wide they are.

    python pipelines/benchmarks/coverage.py [--small] [--out data/benchmarks/coverage.json]

Models are drawn again and again from a population whose correlation is known, and each method
gives its nominal 95 % interval of Pearson's, Spearman's and Kendall's coefficient. Populations:
`normal`, bivariate; `t5`, heavy tails, Student's t with 5 degrees of freedom; `saturated`, normal
on the logit scale and then accuracies, half of them above 88 %, which ranks do not notice. Besides,
`lineages`: normal, but most models come in pairs of one training run that go together by .7 in
either variable; and `datasets`: the mean of the coefficients on seven datasets, on which the same
models go together by .6.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from featstore import kernels

POPULATIONS = ("normal", "t5", "saturated")
Statistic = Literal["pearson", "spearman", "kendall"]
STATISTICS: tuple[Statistic, ...] = ("pearson", "spearman", "kendall")
SIZES = (9, 14, 26)
CORRELATIONS = (0.0, 0.3, 0.6, 0.9)
LINEAGES = np.repeat(np.arange(13), [2] * 7 + [1] * 6)  # of 20 models
ALIKE = 0.7
DATASETS = 7
ALIKE_ACROSS = 0.6
RESAMPLES = 999


@dataclass(frozen=True)
class Row:
    """What became of one method.

    Attributes
    ----------
    method : of the interval, and of what it takes for a unit
    population, n, r : drawn from, models in a sample, Pearson's r before saturation
    statistic, truth : the coefficient, and its value in the population
    coverage : share of intervals that hold the truth
    above : share of intervals that lie above it
    width : mean width
    repetitions : samples
    """

    method: str
    population: str
    n: int
    r: float
    statistic: str
    truth: float
    coverage: float
    above: float
    width: float
    repetitions: int


def sample(
    population: str, r: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two variables, each of `shape` (samples, models)."""
    x, y = rng.normal(size=(2, *shape))
    if population == "lineages":
        x, y = (
            np.sqrt(ALIKE) * rng.normal(size=shape)[:, LINEAGES] + np.sqrt(1 - ALIKE) * one
            for one in (x, y)
        )
    y = r * x + np.sqrt(1 - r * r) * y
    if population == "t5":
        scale = np.sqrt(rng.chisquare(5, size=shape) / 5)
        x, y = x / scale, y / scale
    if population == "saturated":
        x, y = (1 / (1 + np.exp(-2 - 1.2 * one)) for one in (x, y))
    return x, y


def samples(
    population: str, r: float, shape: tuple[int, int], rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two variables, each of `shape` (samples, models), for each of the datasets there are."""
    if population != "datasets":
        return [sample(population, r, shape, rng)]
    common = sample("normal", r, shape, rng)
    return [
        (
            np.sqrt(ALIKE_ACROSS) * common[0] + np.sqrt(1 - ALIKE_ACROSS) * x,
            np.sqrt(ALIKE_ACROSS) * common[1] + np.sqrt(1 - ALIKE_ACROSS) * y,
        )
        for x, y in (sample("normal", r, shape, rng) for _ in range(DATASETS))
    ]


@functools.cache
def truths(population: str, r: float, *, models: int = 4_000_000) -> dict[Statistic, float]:
    """The three coefficients of a population, in closed form or of very many models.

    Kendall's is the same for every elliptical population. Source: Kruskal, *Ordinal measures of
    association* (1958).
    """
    found: dict[Statistic, float] = {
        "pearson": r,
        "spearman": 6 / np.pi * np.arcsin(r / 2),
        "kendall": 2 / np.pi * np.arcsin(r),
    }
    if population in ("t5", "saturated"):
        many = sample(population, r, (1, models), np.random.default_rng(9))
        if population == "saturated":
            found["pearson"] = kernels.correlate.pearson(*many).item()
        else:
            found["spearman"] = kernels.correlate.spearman(*many).item()
    return {name: float(value) for name, value in found.items()}


def coefficients(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[Statistic, np.ndarray]:
    """Coefficients (samples, draws) of x, y (samples, models) without ties.

    `weights` (draws, models) says how often each model is drawn.
    """
    blocks = [_coefficients(x[i : i + 50], y[i : i + 50], weights.T) for i in range(0, len(x), 50)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in STATISTICS}


def _coefficients(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[Statistic, np.ndarray]:
    total = weights.sum(axis=0)
    x, y = (one - one.mean(axis=1, keepdims=True) for one in (x, y))
    mean_x, mean_y, xx, yy, xy = (one @ weights / total for one in (x, y, x * x, y * y, x * y))
    above_x, above_y = (np.sign(one[:, :, None] - one[:, None, :]) for one in (x, y))
    place_x, place_y = above_x @ weights, above_y @ weights  # twice the ranks in a draw, centred
    both = "smd,smd,md->sd"
    agreement = np.einsum("smd,md->sd", (above_x * above_y) @ weights, weights)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw of one model alone has none
        pearson = (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))
        spearman = np.einsum(both, place_x, place_y, weights) / np.sqrt(
            np.einsum(both, place_x, place_x, weights) * np.einsum(both, place_y, place_y, weights)
        )
        kendall = agreement / (total**2 - np.sum(weights**2, axis=0))
    return {
        "pearson": np.clip(pearson, -1, 1),
        "spearman": np.clip(spearman, -1, 1),
        "kendall": kendall,
    }


def mean_coefficients(
    pairs: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> dict[Statistic, np.ndarray]:
    """`coefficients` averaged over datasets."""
    found = [coefficients(x, y, weights) for x, y in pairs]
    return {name: np.mean([one[name] for one in found], axis=0) for name in STATISTICS}


def intervals(
    pairs: list[tuple[np.ndarray, np.ndarray]],
    lineages: np.ndarray,
    rng: np.random.Generator | None,
) -> Iterator[tuple[str, Statistic, tuple[np.ndarray, np.ndarray]]]:
    """Method, statistic and limits (samples,); bootstrap methods if there is an `rng`."""
    n, units = len(lineages), lineages.max() + 1
    member = np.eye(units)[lineages].T
    weights = [np.ones((1, n)), 1 - member]
    if rng is not None:
        weights.append(rng.multinomial(units, np.full(units, 1 / units), RESAMPLES) @ member)
    found = mean_coefficients(pairs, np.concatenate(weights))
    for name, values in found.items():
        estimate, without, draws = values[:, 0], values[:, 1 : 1 + units], values[:, 1 + units :]
        if rng is None:
            yield "fisher", name, kernels.intervals.fisher(estimate, units, statistic=name)
            if units < n:
                limits = kernels.intervals.fisher(estimate, n, statistic=name)
                yield "fisher, each model a unit", name, limits
                each = mean_coefficients(pairs, 1 - np.eye(n))[name]
                limits = kernels.intervals.jackknife(estimate, each, statistic=name)
                yield "jackknife, each model a unit", name, limits
            yield "jackknife", name, kernels.intervals.jackknife(estimate, without, statistic=name)
            scales: dict[str, Statistic | None] = {"raw": None, "artanh": "pearson"}
            scales.pop({"pearson": "artanh", "kendall": "raw"}.get(name, ""), None)  # as above
            for scale, other in scales.items():
                limits = kernels.intervals.jackknife(estimate, without, statistic=other)
                yield f"jackknife, {scale}", name, limits
        else:
            yield "percentile", name, kernels.intervals.percentile(draws)
            yield "bca", name, kernels.intervals.bca(estimate, draws, without)


def measure(population: str, n: int, r: float, repetitions: int, resampled: int) -> list[Row]:
    """Rows of one population; bootstrap methods see `resampled` samples."""
    true = truths(population, r)
    lineages = LINEAGES if population == "lineages" else np.arange(n)
    rows = []
    for count, rng in ((repetitions, None), (resampled, np.random.default_rng(n))):
        pairs = samples(population, r, (count, n), np.random.default_rng(round(1000 * r) + n))
        for method, name, (low, high) in intervals(pairs, lineages, rng):
            if population == "saturated" and name != "pearson":
                continue  # the same as of `normal`
            held = np.mean((low <= true[name]) & (true[name] <= high))
            above, width = np.mean(low > true[name]), np.mean(high - low)
            facts = (float(held), float(above), float(width), count)
            rows.append(Row(method, population, n, r, name, true[name], *facts))
    return rows


def show(rows: list[Row]) -> None:
    """For each coefficient and population a table: method by r and n, coverage in %."""
    for name in STATISTICS:
        for population in dict.fromkeys(row.population for row in rows):
            some = [row for row in rows if (row.statistic, row.population) == (name, population)]
            if not some:
                continue
            columns = list(dict.fromkeys((row.r, row.n) for row in some))
            print(f"\n{name}, {population}: coverage in % (mean width)")
            print(" " * 30 + "".join(f"{f'r {r:g}, n {n}':>14}" for r, n in columns))
            for method in dict.fromkeys(row.method for row in some):
                cells = {(row.r, row.n): row for row in some if row.method == method}
                text = [f"{100 * one.coverage:.1f} ({one.width:.2f})" for one in cells.values()]
                print(f"{method:30}" + "".join(f"{one:>14}" for one in text))


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="few samples, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to write every row as JSON")
    arguments = parser.parse_args()
    repetitions, resampled = (60, 20) if arguments.small else (20_000, 4_000)
    begun = time.perf_counter()
    rows = []
    for population in (*POPULATIONS, "lineages", "datasets"):
        fewer = 4 if population == "datasets" else 1  # seven times the work
        for r in CORRELATIONS:
            for n in (len(LINEAGES),) if population == "lineages" else SIZES:
                rows += measure(population, n, r, repetitions // fewer, resampled // fewer)
    show(rows)
    print(f"\n{time.perf_counter() - begun:.0f} s")
    if arguments.out:
        document = {
            "confidence": 0.95,
            "resamples": RESAMPLES,
            "rows": [asdict(row) for row in rows],
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
