"""A large study, 50 models, 30 datasets, 20 protocols: how long its numbers and its report take.

python pipelines/benchmarks/analyses.py [--small] [--json data/benchmarks/analyses.json]

The records are those of a small probe, written again under other names and with other scores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from common import Row, compare, run, seconds
from made_up import write_images, write_study

import featstore

SIZES = (50, 30, 20)
RESAMPLES = 2000
_FIRST = (
    "import sys, time, xarray; t = time.perf_counter(); "
    "xarray.open_zarr(sys.argv[1]).load(); print(time.perf_counter() - t)"
)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Opening, every statistic, the report and a table."""
    sizes, repeats = ((8, 9, 10), 1) if arguments.small else (SIZES, 5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        write_study(root, *sizes)
        smaller = Path(folder) / "first" / "results"
        of_first = (8, 3, 10) if arguments.small else (26, 11, 10)
        write_study(smaller, *of_first, modes=("eval", "batch", "adapt"))
        images = Path(folder) / "images" / "results"
        of_images = (4, 500) if arguments.small else (26, 50_000)
        write_images(images, *of_images)
        results = featstore.open_results(root)
        file, flat = Path(folder) / "results.zarr", Path(folder) / "results.nc"
        texts = [name for name in results.coords if results[name].dtype.kind == "U"]
        of_any_length = results.assign_coords({n: results[n].astype(object) for n in texts})
        with warnings.catch_warnings():  # of what the format's specification does not have yet
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            of_any_length.to_zarr(file, zarr_format=3, consolidated=True)
        results.to_netcdf(flat, engine="h5netcdf", invalid_netcdf=False)
        command = [sys.executable, "-c", _FIRST, str(file)]
        first = float(subprocess.run(command, capture_output=True, check=True).stdout)
        cells = int(results["score"].notnull().sum())
        return [
            compare(
                f"open results.zarr, {cells:,} cells", lambda: xr.open_zarr(file).load(),
                "netCDF by xarray", lambda: xr.open_dataset(flat, engine="h5netcdf").load(),
                repeats=repeats, note=f"goal 1 s; {first:.2f} s where zarr is not imported yet",
            ),
            compare(
                f"open_results, {cells:,} records", partial(featstore.open_results, root),
                "reading and parsing them", partial(parse, root), repeats=repeats, note="goal 10 s",
            ),
            *statistics(results),
            *pages(results, featstore.open_results(smaller), Path(folder)),
            compare(
                f"compare_models, {of_images[0]} x {of_images[1]:,}, {RESAMPLES:,} resamples",
                partial(
                    featstore.compare_models, images, dataset="textures", protocol="logreg",
                    models="all", resamples=RESAMPLES,
                ),
                "reading what it compares", partial(read, images), repeats=repeats,
            ),
            compare(
                "text_table, means of all protocols, with tests",
                partial(featstore.text_table, results, form="latex", root=root),
                "reading what it tests", partial(read, root), repeats=1,
            ),
        ]  # fmt: skip


def parse(root: Path) -> list[Any]:
    """What the records hold, all of it."""
    return [json.loads(path.read_bytes()) for path in root.glob("*/*/*/*/*.json")]


def read(root: Path) -> list[Any]:
    """What is kept of each image, all of it."""
    return [dict(np.load(path)) for path in root.glob("*/*/*/*/*.npz")]


def statistics(results: xr.Dataset) -> list[Row]:
    """Each analysis of one Dataset, and all of them together."""
    protocol, tuned, n = "logreg", "finetune-marks", RESAMPLES
    works: dict[str, Callable[[], object]] = {
        "correlate_protocols": lambda: featstore.correlate_protocols(results),
        f"correlate_protocols, bca, {n:,} resamples": lambda: featstore.correlate_protocols(
            results, interval="bca", resamples=n
        ),
        "correlate_domains, across": lambda: featstore.correlate_domains(results, across=True),
        "influence": lambda: featstore.influence(results),
        f"compare_predictors, {n:,} resamples": lambda: featstore.compare_predictors(
            results, tuned, resamples=n
        ),
        "rank_models": lambda: featstore.rank_models(results),
        "critical_difference": lambda: featstore.critical_difference(results, protocol=protocol),
        "family_gap": lambda: featstore.family_gap(results),
        "family_gap, by dataset": lambda: featstore.family_gap(results, by_dataset=True),
        f"ranking_stability, {n:,} draws": lambda: featstore.ranking_stability(
            results, protocol=protocol, draws=n
        ),
        "pareto": lambda: featstore.pareto(results, tuned),
        "forecast, a model left out": lambda: featstore.forecast(results, target=tuned),
        "forecast, a dataset left out": lambda: featstore.forecast(
            results, target=tuned, leave="dataset"
        ),
        "head_bn": lambda: featstore.head_bn(results),
        "backbone_bn": lambda: featstore.backbone_bn(results),
        "calibration_errors": lambda: featstore.calibration_errors(results),
    }
    taken = {what: seconds(work) for what, work in works.items()}
    taken["statistics, all of these"] = sum(taken.values())
    return [within(what, one, 60) for what, one in taken.items()]


def pages(results: xr.Dataset, first: xr.Dataset, folder: Path) -> list[Row]:
    """Reports of a large study, and of one of the size that the studies reproduced have."""
    rows = []
    for name, one in (("large", results), ("first", first)):
        path = folder / f"{name}.html"
        taken = seconds(partial(featstore.report, one, path))
        size = " x ".join(str(one.sizes[dim]) for dim in one["score"].dims)
        allowed = ", goal 5 MB" * (name == "first")
        note = f"{path.stat().st_size / 1e6:.2f} MB{allowed}"
        rows.append(within(f"report, {size}", taken, 30, note=note))
    return rows


def within(what: str, taken: float, goal: float, *, note: str = "") -> Row:
    """A row of what may take so many seconds."""
    return Row(what, taken, "goal", goal, 1.0, note=note)


if __name__ == "__main__":
    run(measure, __doc__ or "")
