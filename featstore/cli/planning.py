"""The command that says what an extraction would take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.cli.options import (
    STORE,
    AsJson,
    DataRoot,
    Datasets,
    Models,
    Modes,
    StorePath,
    Weights,
    app,
)
from featstore.cli.terminal import table
from featstore.keys import BNMode

if TYPE_CHECKING:
    from featstore.plan import Line, Plan


@app.command(epilog="Example: featstore plan -m marks2024 -d marks2024 --rate 900")
def plan(
    model: Models,
    dataset: Datasets,
    split: Annotated[
        list[str] | None, typer.Option(help="train, val or test; repeatable [default: all]")
    ] = None,
    bn_mode: Modes = [BNMode.EVAL],
    views: Annotated[int, typer.Option(help="augmented passes over train")] = 0,
    weights: Weights = "pretrained",
    seed: Annotated[int, typer.Option(help="of random weights")] = 0,
    variant: Annotated[str, typer.Option(help="as for extract")] = "",
    store: StorePath = STORE,
    data_root: DataRoot = None,
    dtype: Annotated[str, typer.Option(help="as for extract")] = "float16",
    rate: Annotated[
        float | None,
        typer.Option(help="images/s through one model [default: as measured by extractions]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an extraction would take: cells, passes, bytes, hours, and what is missing."""
    show_plan(
        model, dataset, split or (), bn_mode, views, weights, seed, variant, store, data_root,
        dtype, rate, as_json,
    )  # fmt: skip


def show_plan(
    model: Sequence[str],
    dataset: Sequence[str],
    split: Sequence[str],
    bn_mode: Sequence[BNMode],
    views: int,
    weights: str,
    seed: int,
    variant: str,
    store: Path,
    data_root: Path | None,
    dtype: str,
    rate: float | None,
    as_json: bool,
) -> None:
    """Print a plan."""
    from featstore.plan import plan as make

    made = make(
        model, dataset, splits=split, bn_modes=bn_mode, views=views, weights=weights, seed=seed,
        variant=variant, store=store, data_root=data_root, dtype=dtype, rate=rate,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({**asdict(made), "total": asdict(made.total)}))
        return
    header = ["dataset", "cells", "done", "images", "passes", "embeddings", "GB", "hours"]
    table(header, [_row(line) for line in [*made.lines, made.total]])
    typer.echo(_room(made))
    if made.missing:
        typer.echo("\nmissing:")
        table(
            ["", "status", "licence", "from"],
            [[one.what, one.status, one.licence, one.source] for one in made.missing],
        )


def _row(line: Line) -> list[str]:
    hours = "unknown" if line.seconds is None else f"{line.seconds / 3600:.1f}"
    images = "unknown" if line.images is None else f"{line.images:,}"
    sizes = [f"{line.passes}", f"{line.embeddings:,}", f"{line.bytes / 1e9:.2f}", hours]
    return [line.dataset, f"{line.cells}", f"{line.done}", images, *sizes]


def _room(made: Plan) -> str:
    room = f"{made.total.bytes / 1e9:.2f} GB to be written, {made.free_bytes / 1e9:.0f} GB free"
    if made.total.bytes > made.free_bytes:
        room += ": NOT ENOUGH"
    rate = made.rate or "no extraction into this store was timed yet: give --rate for hours"
    return f"{room}; {rate}"
