"""Opening the results of a large study: 50 models, 30 datasets, 20 protocols, 30,000 cells.

python pipelines/benchmarks/analyses.py [--small] [--json data/benchmarks/analyses.json]

The records are those of a small probe, written again under other names and with other scores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from common import Row, compare, run

import featstore

SIZES = (50, 30, 20)
_FIRST = (
    "import sys, time, xarray; t = time.perf_counter(); "
    "xarray.open_zarr(sys.argv[1]).load(); print(time.perf_counter() - t)"
)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """From `results.zarr`, and from the records themselves."""
    sizes, repeats = ((4, 3, 5), 1) if arguments.small else (SIZES, 5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        write(root, *sizes)
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
        ]  # fmt: skip


def parse(root: Path) -> list[Any]:
    """What the records hold, all of it."""
    return [json.loads(path.read_bytes()) for path in root.glob("*/*/*/*/*.json")]


def write(root: Path, models: int, datasets: int, protocols: int) -> None:
    """Records of made-up scores: good models, easy datasets, and chance."""
    seed = root.with_name("seed")
    store = seed / "features.zarr"
    featstore.extract(["tiny-vit-random"], ["textures"], store=store, device="cpu")
    featstore.probe(
        protocols=["knn-marks", "logreg", "lda"], store=store, results=seed / "r", scheduler="sync",
        device="cpu",
    )  # fmt: skip
    kinds = [json.loads(path.read_bytes()) for path in sorted(seed.glob("r/*/*/*/*/*.json"))]
    kept = [path.with_suffix(".npz") for path in sorted(seed.glob("r/*/*/*/*/*.json"))]
    rng = np.random.default_rng(0)
    size = models, datasets, protocols
    good, easy, apt = (rng.normal(0, 0.7, count) for count in size)
    logits = good[:, None, None] + easy[:, None] + apt + rng.normal(0, 0.3, size)
    for (model, dataset, protocol), logit in np.ndenumerate(logits):
        kind = protocol % len(kinds)
        document = kinds[kind] | {
            "model": f"model-{model}", "dataset": f"set-{dataset}",
            "protocol": f"protocol-{protocol}",
            "features": hashlib.sha256(f"{model} {dataset}".encode()).hexdigest(),
        }  # fmt: skip
        score = 1 / (1 + math.exp(-logit))
        ends = {"value": score, "low": score - 0.02, "high": score + 0.02}
        document["metrics"] = kinds[kind]["metrics"] | {document["headline"]: ends}
        document["splits"] = dict.fromkeys(document["splits"], document["features"])
        document["model_info"] = kinds[kind]["model_info"] | {
            "lineage": f"model-{model}", "family": f"family-{model % 5}", "stage": "late",
            "backbone": ("resnet", "vit")[model % 2],
        }  # fmt: skip
        shift = "other" if dataset else "in-domain"
        document["dataset_info"] = kinds[kind]["dataset_info"] | {"shift": shift}
        folder = root / f"model-{model}" / f"set-{dataset}" / "eval"
        place = folder / f"protocol-{protocol}" / f"0-{document['features'][:12]}.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(document, indent=1, sort_keys=True))
        shutil.copyfile(kept[kind], place.with_suffix(".npz"))
        (folder / "features.json").write_text(json.dumps(document["splits"], indent=1))


if __name__ == "__main__":
    run(measure, __doc__ or "")
