"""The command that brings in what was made elsewhere: arrays of embeddings, other stores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from featstore.cli.options import (
    STORE,
    AsJson,
    ChunkRows,
    Codec,
    Dtype,
    StorePath,
    Variant,
    app,
    refuse_idle,
)
from featstore.cli.terminal import progress
from featstore.keys import BNMode


@app.command(
    "import",
    epilog="Example: featstore import X.npy y.npy --model mine --dataset birds --split train; "
    "or: featstore import colleague/features.zarr",
)
def import_(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="one file with features and labels, or one of each (.npy, .npz, .pt, .pth, "
            ".safetensors, .h5, .hdf5, .parquet); or another store"
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="name to keep them under; none of the catalogue")
    ] = "",
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="of the catalogue, or any other name")
    ] = "",
    split: Annotated[str, typer.Option(help="train, val or test")] = "train",
    bn_mode: Annotated[BNMode, typer.Option(help="in which they were made")] = BNMode.EVAL,
    ids: Annotated[
        Path | None, typer.Option(help="unique sample ids: text, one a line, or .npy")
    ] = None,
    categories: Annotated[
        str, typer.Option(help="names by label: ant,bee,... or a file, one a line, or .npy")
    ] = "",
    x_key: Annotated[str, typer.Option(help="name of the features in their file")] = "",
    y_key: Annotated[str, typer.Option(help="name of the labels in theirs")] = "",
    dtype: Dtype = "float16",
    codec: Codec = "none",
    chunk_rows: ChunkRows = 2048,
    variant: Variant = "",
    overwrite: Annotated[bool, typer.Option(help="delete what is stored first")] = False,
    store: StorePath = STORE,
    as_json: AsJson = False,
) -> None:
    """Bring your own embeddings, or another store's: whatever is here already is left alone."""
    stores = [source for source in sources if source.is_dir() or source.suffix == ".zarr"]
    if stores:
        if len(sources) > 1:
            raise ValueError(f"{stores[0]} is a store; give one store at a time, and nothing else")
        used = ("sources", "store", "as_json")
        refuse_idle(context, used, f"{stores[0]} is a store, which is copied as it is")
        _merge(stores[0], store, as_json)
        return
    if not (model and dataset):
        raise ValueError("say with --model and --dataset what the features are kept under")
    if len(sources) > 2:
        raise ValueError(f"give one or two files, features and labels, not {len(sources)}")
    from featstore.transfer import import_features

    names: Path | list[str] = [name for name in categories.split(",") if name]
    if Path(categories).is_file():
        names = Path(categories)
    with progress("images") as advance:
        done = import_features(
            *sources, model=model, dataset=dataset, split=split, bn_mode=bn_mode, ids=ids,
            categories=names, x_key=x_key, y_key=y_key, dtype=dtype, codec=codec,
            chunk_rows=chunk_rows, variant=variant, overwrite=overwrite, store=store,
            progress=advance,
        )  # fmt: skip
    _say(
        asdict(done),
        as_json,
        f"{done.key} {done.split}: {done.rows} rows of {done.features} features, "
        f"{done.categories} categories, {'imported' if done.filled else 'up to date'} -> {store}",
    )


def _merge(other: Path, store: Path, as_json: bool) -> None:
    from featstore.transfer import merge_store

    with progress("splits") as advance:
        done = merge_store(other, store=store, progress=advance)
    for what in done.unfinished:
        typer.echo(f"featstore: left out: {what}", err=True)
    for what, why in done.refused.items():
        typer.echo(f"featstore: {what}: {why}", err=True)
    _say(
        asdict(done),
        as_json,
        f"{len(done.copied)} splits copied, {len(done.up_to_date)} up to date, "
        f"{len(done.unfinished)} unfinished, {len(done.refused)} refused -> {store}",
    )
    if done.refused:
        raise typer.Exit(1)


def _say(facts: Mapping[str, Any], as_json: bool, line: str) -> None:
    typer.echo(json.dumps(facts) if as_json else line)
