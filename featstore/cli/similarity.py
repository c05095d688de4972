"""The command that compares features with one another."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from featstore.cli.options import (
    RESULTS,
    STORE,
    AsJson,
    Datasets,
    Device,
    Models,
    Modes,
    ResultsPath,
    StorePath,
    app,
)
from featstore.cli.terminal import progress


@app.command(epilog="Example: featstore similarity -m tiny -d digits --bn-mode eval")
def similarity(
    model: Models = [],
    dataset: Datasets = [],
    bn_mode: Modes = [],
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    rows: Annotated[int, typer.Option(help="most images of a dataset, the same for all")] = 2000,
    store: StorePath = STORE,
    results: ResultsPath = RESULTS,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare features of every two models and BN modes by CKA, in place of what was compared last.

    Without -m and -d, those of all that is stored.
    """
    from featstore.comparison import similarity as run

    with progress("sets") as advance:
        done = run(
            model, dataset, bn_modes=bn_mode, store=store, results=results, split=split, rows=rows,
            device=device, progress=advance,
        )  # fmt: skip
    for one in done.left_out:
        typer.echo(f"featstore: left out {one.what}: {one.error}", err=True)
    for one in done.failed:
        typer.echo(f"featstore: {one.what}: {one.error}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    elif done.results:
        typer.echo(
            f"{done.feature_sets} feature sets of {done.datasets} datasets compared on up to "
            f"{done.rows} {split} images in {done.seconds:.1f} s -> {done.results}"
        )
    if done.failed or not done.results:
        raise typer.Exit(1)
