"""Commands that compute: extract, probe."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from featstore.cli.options import (
    RESULTS,
    STORE,
    AsJson,
    ChunkRows,
    Codec,
    DataRoot,
    Datasets,
    Device,
    Dtype,
    Models,
    Modes,
    ResultsPath,
    Splits,
    StorePath,
    Variant,
    Views,
    Weights,
    WeightsSeed,
    app,
    parse_size,
)
from featstore.cli.planning import plan
from featstore.cli.terminal import progress, tell_left_out
from featstore.errors import UnknownNameError
from featstore.keys import BNMode


@app.command(
    epilog="Example: featstore extract -m timm:resnet50 -m timm:vit_small_patch16_224@cls "
    "-d folder:photos --bn-mode eval --bn-mode adapt"
)
def extract(
    model: Models,
    dataset: Datasets,
    split: Splits = None,
    bn_mode: Modes = [BNMode.EVAL],
    views: Views = 0,
    weights: Weights = "pretrained",
    variant: Variant = "",
    seed: WeightsSeed = 0,
    store: StorePath = STORE,
    data_root: DataRoot = None,
    batch_size: Annotated[int, typer.Option(help="most images in a forward pass")] = 64,
    num_workers: Annotated[
        int | None, typer.Option(help="processes that decode [default: as many as cores]")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or autocast to bf16 or fp16")] = "fp32",
    dtype: Dtype = "float16",
    codec: Codec = "none",
    chunk_rows: ChunkRows = 2048,
    fingerprint: Annotated[
        str, typer.Option(help="of images: names (with sizes), or full, which reads every byte")
    ] = "names",
    download: Annotated[bool, typer.Option(help="fetch datasets that are missing")] = False,
    overwrite: Annotated[bool, typer.Option(help="delete what is stored first")] = False,
    skip_errors: Annotated[
        bool, typer.Option(help="mask images that cannot be read, and count them")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what it would take, as `plan` does, and stop")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run every model over every dataset once, keeping the embeddings; goes on where it stopped."""
    if dry_run:
        plan(
            model, dataset, split, bn_mode, views, weights, seed, variant, store, data_root, dtype,
            as_json=as_json,
        )  # fmt: skip
        return
    from featstore.extraction import extract as run

    with progress("images") as advance:
        done = run(
            model, dataset, splits=split or (), bn_modes=bn_mode, views=views, weights=weights,
            variant=variant, seed=seed, store=store, data_root=data_root, batch_size=batch_size,
            num_workers=num_workers, device=device, precision=precision, dtype=dtype, codec=codec,
            chunk_rows=chunk_rows, fingerprint=fingerprint, download=download, overwrite=overwrite,
            skip_errors=skip_errors, progress=advance,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        rate = f", {done.images / done.seconds:.0f} images/s" if done.images else ""
        left = f"; {len(done.failed)} models or datasets left out, as said" if done.failed else ""
        typer.echo(
            f"{done.filled} splits filled, {done.up_to_date} up to date; {done.images} images "
            f"decoded in {done.seconds:.1f} s{rate} -> {store}{left}"
        )
    if done.failed:
        raise typer.Exit(1)


@app.command(epilog="Example: featstore probe -p knn-marks -p logreg -d digits")
def probe(
    protocol: Annotated[
        list[str], typer.Option("--protocol", "-p", help="protocol, or set; repeatable")
    ] = ["core"],
    model: Models = [],
    dataset: Datasets = [],
    bn_mode: Modes = [],
    seed: Annotated[list[int], typer.Option(help="of draws and initialisations; repeatable")] = [0],
    store: StorePath = STORE,
    results: ResultsPath = RESULTS,
    device: Device = "auto",
    device_memory: Annotated[
        str, typer.Option(help="most of a GPU's memory to use, such as 8GB [default: 4/5 of it]")
    ] = "",
    scheduler: Annotated[
        str, typer.Option(help="processes, threads, sync, local:N or tcp://HOST:PORT")
    ] = "processes",
    overwrite: Annotated[bool, typer.Option(help="fill cells again that are there")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill every missing cell off the store; without -m and -d, for all that is stored."""
    from featstore.sweep import probe as run

    try:
        with progress("cells") as advance:
            done = run(
                model, dataset, protocols=protocol, bn_modes=bn_mode, seeds=seed, store=store,
                results=results, device=device, scheduler=scheduler, overwrite=overwrite,
                device_memory=parse_size(device_memory) if device_memory else None,
                progress=advance,
            )  # fmt: skip
    except UnknownNameError:
        from featstore.finetuning import PROTOCOLS as TRAINED

        for name in protocol:
            if name.split("+")[0] in TRAINED:
                raise UnknownNameError(
                    f"{name} trains on images. Run: "
                    f"featstore finetune -p {name} -m MODEL -d DATASET"
                ) from None
        raise
    tell_left_out(done.not_applicable)
    for failure in done.failed:
        typer.echo(f"featstore: {failure.what}: {failure.error}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        typer.echo(
            f"{done.filled} cells filled, {done.up_to_date} up to date, {len(done.failed)} failed "
            f"in {done.seconds:.1f} s -> {done.results or results}"
        )
    if done.failed or not done.filled + done.up_to_date:
        raise typer.Exit(1)
