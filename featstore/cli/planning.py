"""The command that says what an extraction would take."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.cli.options import (
    STORE,
    AsJson,
    DataRoot,
    Datasets,
    Dtype,
    Models,
    Modes,
    Splits,
    StorePath,
    Variant,
    Views,
    Weights,
    WeightsSeed,
    app,
)
from featstore.cli.terminal import table
from featstore.keys import BNMode

if TYPE_CHECKING:
    from featstore.plan import Line, Plan
    from featstore.plan.missing import Missing, Room


@app.command(epilog="Example: featstore plan -m marks2024 -d marks2024 --rate 900")
def plan(
    model: Models,
    dataset: Datasets,
    split: Splits = None,
    bn_mode: Modes = [BNMode.EVAL],
    views: Views = 0,
    weights: Weights = "pretrained",
    seed: WeightsSeed = 0,
    variant: Variant = "",
    store: StorePath = STORE,
    data_root: DataRoot = None,
    dtype: Dtype = "float16",
    rate: Annotated[
        float | None,
        typer.Option(help="images/s through one model [default: as measured by extractions]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an extraction would take: cells, passes, bytes, hours, and what is missing."""
    from featstore.plan import plan as make

    made = make(
        model, dataset, splits=split or (), bn_modes=bn_mode, views=views, weights=weights,
        seed=seed, variant=variant, store=store, data_root=data_root, dtype=dtype, rate=rate,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({**asdict(made), "total": asdict(made.total)}))
        return
    header = ["dataset", "cells", "done", "images", "passes", "embeddings", "GB", "hours"]
    table(header, [_row(line) for line in made.lines] + [_total(made)])
    for room in made.rooms:
        typer.echo(_say_room(room))
    typer.echo(made.rate or "no extraction into this store was timed yet: give --rate for hours")
    if made.missing:
        typer.echo("\nmissing:")
        table(["", "status", "GB", "licence", "from"], [_say_missing(one) for one in made.missing])


def _row(line: Line) -> list[str]:
    sizes = ["unknown"] * 4
    if line.images is not None:
        size = f"{line.bytes / 1e9:.2f}"
        sizes = [f"{line.images:,}", f"{line.passes}", f"{line.embeddings:,}", size]
    hours = "unknown" if line.seconds is None else f"{line.seconds / 3600:.1f}"
    return [line.dataset, f"{line.cells}", f"{line.done}", *sizes, hours]


def _total(made: Plan) -> list[str]:
    """Row of the sum, marked where something is left out of it."""
    row = _row(made.total)
    unknown = [line.images is None for line in made.lines]
    if any(unknown):
        row[3:7] = ["unknown" if all(unknown) else f"{cell}+" for cell in row[3:7]]
    return row


def _say_room(room: Room) -> str:
    lack = "" if room.enough else ", NOT ENOUGH for all that goes there"
    free = f"{room.free / 1e9:.0f} GB free{lack}"
    size = f"{'' if room.exact else 'at least '}{room.bytes / 1e9:.2f} GB"
    if room.what == "features":
        return f"to write: {size} of features to {room.place}; {free}"
    hint = "more once unpacked"
    if room.what == "weights":
        size, hint = f"about {room.bytes / 1e9:.2f} GB", "counted as the backbones in float32"
    return f"to fetch: {size} of {room.what} ({room.count} missing; {hint}) to {room.place}; {free}"


def _say_missing(one: Missing) -> list[str]:
    size = f"{'~' if one.kind == 'weights' else ''}{one.bytes / 1e9:.2f}" if one.bytes else ""
    return [one.what, one.status, size, one.licence, one.source]
