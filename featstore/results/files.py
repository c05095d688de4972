"""The Dataset of results as files: beside its records, and for other programs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

from featstore.errors import FeatStoreError
from featstore.results.cube import open_results
from featstore.results.records import target_of


def check_target(target: Path) -> None:
    """Refuse to replace what is no Dataset of results, such as a store of features.

    Raises
    ------
    FeatStoreError
        Something else is there.
    """
    document = target / "zarr.json"
    if not target.exists():
        return
    try:
        attributes = json.loads(document.read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        attributes = {}
    if "featstore_version" not in attributes:
        raise FeatStoreError(
            f"{target} would be replaced by the results, and is none: a store of features, or not "
            f"featstore's. Give another folder for --results"
        )


def refresh(root: str | Path, target: str | Path | None = None) -> Path:
    """Write the Dataset beside the records, as `<root>.zarr` unless told otherwise."""
    target = Path(target) if target else target_of(root)
    write_whole(lambda: open_results(root), target)
    return target


def write_whole(build: Callable[[], xr.Dataset], target: Path) -> None:
    """Write a Dataset as Zarr, in place of the one that is there.

    `xr.open_zarr` opens it, with nothing else installed.

    Built aside and swapped under a lock, so that a reader finds the old one or the new one.

    Raises
    ------
    FeatStoreError
        Something else is there.
    """
    check_target(target)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside, old = target.with_suffix(".new"), target.with_suffix(".old")
        shutil.rmtree(aside, ignore_errors=True)
        with warnings.catch_warnings():
            # Readers that do not know the extension ignore it; it makes opening one read.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            dataset = build()
            # As objects they are stored with variable length, which Zarr's specification knows.
            texts = [n for n, v in dataset.variables.items() if v.dtype.kind == "U"]
            dataset = dataset.assign_coords({n: dataset[n].astype(object) for n in texts})
            dataset.to_zarr(aside, zarr_format=3, consolidated=True)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)


FORMS = ("csv", "parquet", "json", "netcdf")


def export(dataset: xr.Dataset, path: Path, *, form: str = "", overwrite: bool = False) -> None:
    """Write the Dataset as a table of cells (`csv`, `parquet`, `json`) or as it is (`netcdf`).

    A table has no place for what has more dims than cells, such as reliability by bin; that is in
    the netCDF. Nor has it one for attributes: what is transductive in every cell, such as
    `ece_scaled`, says so in its name there, `ece_scaled_transductive`. JSON is a list of objects, a
    cell each, with null where there is no number.

    Parameters
    ----------
    form : one of these; by the file's name if empty (.csv, .parquet, .json, .nc)
    overwrite : replace a file that is there

    Raises
    ------
    ValueError
        The form is none of these, nor is the file's ending.
    FeatStoreError
        The file exists, and `overwrite` is false.
    """
    form = form or {"nc": "netcdf"}.get(path.suffix[1:], path.suffix[1:])
    if form not in FORMS:
        raise ValueError(f"format must be csv, parquet, json or netcdf, got {form!r}")
    with new_file(path, overwrite=overwrite) as partial:
        if form == "netcdf":
            dataset.to_netcdf(partial, engine="h5netcdf", invalid_netcdf=False)
            return
        more = set(dataset.dims) - set(dataset["score"].dims)
        own = dataset.drop_dims(more)
        marked = [name for name, one in own.data_vars.items() if one.attrs.get("transductive")]
        own = own.rename({name: f"{name}_transductive" for name in marked})
        table = own.to_dataframe().reset_index()
        table = table[table["score"].notna()]
        if form == "csv":
            table.to_csv(partial, index=False)
        elif form == "json":
            table.to_json(partial, orient="records", indent=1, double_precision=15)
        else:
            table.to_parquet(partial, index=False)


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A place to write to that becomes the file once it is whole.

    Raises
    ------
    FeatStoreError
        The file exists, and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise FeatStoreError(f"{path} exists. Use --overwrite, or another --out")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
