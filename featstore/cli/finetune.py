"""The command that trains: finetune."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from featstore.cli.options import (
    RESULTS,
    AsJson,
    DataRoot,
    Datasets,
    Device,
    Models,
    ResultsPath,
    app,
)
from featstore.cli.terminal import progress, tell_left_out


@app.command(
    epilog="Example: featstore finetune -m tiny-vit-simclr -d digits -p finetune-tiny; "
    "or, over four GPUs: torchrun --nproc-per-node 4 --no-python featstore finetune ..."
)
def finetune(
    model: Models,
    dataset: Datasets,
    protocol: Annotated[
        list[str], typer.Option("--protocol", "-p", help="fine-tuning, or set; repeatable")
    ],
    fraction: Annotated[
        float | None, typer.Option(help="of the train images of each category")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="length, instead of the protocol's; warm-up keeps its share of it"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="length in batches; warm-up keeps its share of it")
    ] = None,
    seed: Annotated[list[int], typer.Option(help="of heads, draws and order; repeatable")] = [0],
    results: ResultsPath = RESULTS,
    data_root: DataRoot = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or autocast to bf16 or fp16")] = "fp32",
    num_workers: Annotated[
        int | None, typer.Option(help="processes that decode [default: as many as cores]")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="parts a batch goes through the model in, to save memory")
    ] = 1,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="memory layout that suits tensor cores")
    ] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile the network")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="folder to write TensorBoard's curves to")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="fill cells again that are there, from the start")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train models on datasets and score them on test; goes on from the last checkpoint.

    Settings given here change the protocol's name, as -p finetune-marks+epochs=5 does.
    """
    from featstore.finetuning import finetune as run

    with _curves(tensorboard) as callbacks, progress("images") as advance:
        done = run(
            model, dataset, protocols=protocol, seeds=seed, fraction=fraction, epochs=epochs,
            steps=steps, results=results, data_root=data_root, device=device,
            precision=precision, num_workers=num_workers, accumulate=accumulate,
            channels_last=channels_last, compile=compile_, overwrite=overwrite,
            callbacks=callbacks, progress=advance,
        )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        tell_left_out(done.not_applicable)
        for failure in done.failed:
            typer.echo(f"featstore: {failure.what}: {failure.error}", err=True)
        typer.echo(
            json.dumps(asdict(done))
            if as_json
            else f"{done.filled} cells filled, {done.up_to_date} up to date, {len(done.failed)} "
            f"failed in {done.seconds:.1f} s -> {done.results or results}"
        )
    if done.failed or not done.filled + done.up_to_date:
        raise typer.Exit(1)


@contextmanager
def _curves(folder: Path | None) -> Iterator[list[Callable[[dict[str, Any]], None]]]:
    """Callbacks that write curves for TensorBoard, if a folder is given."""
    if folder is None:
        yield []
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs it installed: pip install tensorboard") from None
    writers: dict[str, Any] = {}

    def write(record: dict[str, Any]) -> None:
        name = f"{record['cell']} {record['training']}".replace("/", "%2F")
        if name not in writers:
            writers[name] = SummaryWriter(str(folder / name))
        for curve in ("loss", "accuracy", "lr"):
            writers[name].add_scalar(curve, record[curve], record["step"])
        writers[name].flush()

    try:
        yield [write]
    finally:
        for writer in writers.values():
            writer.close()
