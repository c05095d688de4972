"""The command that takes the tensors out of a weights file: convert."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from featstore.cli.options import AsJson, app
from featstore.cli.terminal import progress


@app.command(epilog="Example: featstore convert simsiam-resnet50")
def convert(
    model: Annotated[str, typer.Argument(help="model of the catalogue, or a weights file")],
    out: Annotated[
        Path | None, typer.Option(help="safetensors file to write [default: beside the original]")
    ] = None,
    nest: Annotated[
        str | None,
        typer.Option(
            help="keys that lead to the tensors, joined by /; haiku: a ResNet-50 of that library "
            "[default: the catalogue's; bare, state_dict or model]"
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="if it cannot be read as data, load it with all code in it"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take the tensors out of a weights file that holds more, into a safetensors file.

    Such files are pickles, and loading a pickle runs whatever code its author, or anyone who
    changed it since, put there. This command reads it as data instead and runs none of it; with
    --trust a file that cannot be read so is loaded all the same, and can then do all that you can.
    """
    from featstore.home import expanded
    from featstore.models.convert import convert as take_out
    from featstore.models.convert import convert_entry
    from featstore.models.fetch import is_converted, weights_file
    from featstore.models.names import catalogue
    from featstore.names import unknown

    entry, file = catalogue().get(model), expanded(model)
    if entry is None:
        if not file.is_file():
            raise unknown("model or file", model, catalogue(), "featstore models lists them")
        target = out or file.with_suffix(".safetensors")
        done = take_out(file, target, nest=nest or "", trust=trust)
    elif out is None and not entry.weights and is_converted(entry):
        path = weights_file(entry)
        typer.echo(json.dumps({"path": str(path)}) if as_json else f"{path} is there already")
        return
    else:
        with progress("MiB") as advance:
            done = convert_entry(
                entry,
                out=out,
                nest=nest,
                trust=trust,
                progress=lambda what, bytes_, total: advance(what, bytes_ >> 20, total >> 20),
            )
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"path": str(done.path)}))
        return
    typer.echo(f"wrote {done.path}: {done.tensors} tensors, SHA-256 {done.sha256}")
    typer.echo(f"from a file of SHA-256 {done.source_sha256}")
    if done.foreign:
        typer.echo(f"of these nothing was run, nor kept: {', '.join(done.foreign)}")
    if done.left_out:
        shown = ", ".join(done.left_out[:5]) + (", ..." if len(done.left_out) > 5 else "")
        typer.echo(f"left out, since they are no tensors: {shown}")
    if done.trusted:
        typer.echo("the file's own code was run, as --trust says")
