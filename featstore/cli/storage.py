"""Commands about stored features: ls, verify, why, rm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import (
    STORE,
    AsJson,
    DataRoot,
    Datasets,
    Models,
    StorePath,
    Weights,
    app,
)
from featstore.cli.terminal import table
from featstore.errors import MissingFeaturesError
from featstore.keys import FeatureKey

if TYPE_CHECKING:
    from featstore.store import Split


@app.command("ls", epilog="Example: featstore ls -d digits")
def list_store(
    model: Models = [],
    dataset: Datasets = [],
    store: StorePath = STORE,
    as_json: AsJson = False,
) -> None:
    """List what is stored: splits, rows, features, and whether they are finished."""
    from featstore.store import Store

    if model or dataset:
        from featstore import datasets as datasets_
        from featstore.models import names as models_

        model, dataset = models_.expand(model), datasets_.expand(dataset)
    rows = [
        {
            "model": split.key.model,
            "dataset": split.key.dataset,
            "bn_mode": split.key.bn_mode.value,
            "split": split.name,
            **_state(split),
        }
        for split in Store(store).splits()
        if (not model or split.key.model in model) and (not dataset or split.key.dataset in dataset)
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo(f"nothing in {store}. Run: featstore extract -m MODEL -d DATASET")
    else:
        table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


@app.command(epilog="Example: featstore verify --store data/features.zarr")
def verify(store: StorePath = STORE, as_json: AsJson = False) -> None:
    """Read every byte of the store again and check it; exit status 1 if anything is wrong."""
    from featstore.store import Store

    if not store.is_dir():
        raise MissingFeaturesError(f"no store at {store}. Give its place with --store")
    checked, faults = 0, []
    for split in Store(store).splits():
        checked += 1
        faults += [{"split": str(split), "fault": fault} for fault in split.verify()]
    if as_json:
        typer.echo(json.dumps({"checked": checked, "faults": faults}))
    else:
        for fault in faults:
            typer.echo(f"{fault['split']}: {fault['fault']}")
        typer.echo(f"{checked} splits checked, {len(faults)} faults")
    if faults:
        raise typer.Exit(1)


@app.command(epilog="Example: featstore why 'tiny-resnet-simclr digits eval'")
def why(
    key: Annotated[str, typer.Argument(help="'MODEL DATASET BN_MODE', as ls prints them")],
    store: StorePath = STORE,
    data_root: DataRoot = None,
    weights: Weights = "pretrained",
    batch_size: Annotated[int, typer.Option(help="as for extract")] = 64,
    precision: Annotated[str, typer.Option(help="as for extract")] = "fp32",
    dtype: Annotated[str, typer.Option(help="as for extract")] = "float16",
    codec: Annotated[str, typer.Option(help="as for extract")] = "none",
    chunk_rows: Annotated[int, typer.Option(help="as for extract")] = 2048,
    fingerprint: Annotated[str, typer.Option(help="as for extract")] = "names",
    as_json: AsJson = False,
) -> None:
    """Say which recipe fields of stored features differ from what would be extracted now."""
    from featstore.extraction import Options, stored_against_now
    from featstore.store import Store

    options = Options(batch_size, precision, dtype, codec, chunk_rows, fingerprint)
    wanted = find_key(store, key)
    if any(_origin(split) == "imported" for split in Store(store).splits(wanted)):
        raise ValueError(f"{wanted} was imported, not extracted: there is nothing to compare with")
    found = stored_against_now(
        wanted, store=store, data_root=data_root, weights=weights, options=options
    )
    if as_json:
        typer.echo(json.dumps(found))
        return
    for split, differences in found.items():
        if not differences:
            typer.echo(f"{split}: as it would be extracted now")
        for name, (stored, now) in differences.items():
            typer.echo(f"{split}: {name}: stored {stored!r}, now {now!r}")


@app.command("rm", epilog="Example: featstore rm 'tiny-resnet-simclr digits eval' --yes")
def remove(
    key: Annotated[str, typer.Argument(help="'MODEL DATASET BN_MODE', as ls prints them")],
    store: StorePath = STORE,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete stored features; results that were made of them stay."""
    from featstore.store import Store

    opened, wanted = Store(store), find_key(store, key)
    splits = list(opened.splits(wanted))
    if not splits:
        opened.open(wanted)  # raises, and says what is there
    if not yes:
        typer.confirm(f"Delete {len(splits)} splits of {wanted} from {store}?", abort=True)
    opened.remove(wanted)
    typer.echo(f"deleted {len(splits)} splits of {wanted}")


def find_key(store: Path, text: str) -> FeatureKey:
    """The stored key that is printed like this; names of files and folders may hold spaces."""
    from featstore.store import Store

    stored = {str(key): key for key in [*Store(store).keys()]}
    return stored[text] if text in stored else FeatureKey.parse(text)


def _origin(split: Split) -> str:
    """Where the features come from; "" where the metadata cannot be read."""
    if split.damaged:
        return ""
    return "imported" if "imported" in split.recipe.fields else "extracted"


def _state(split: Split) -> dict[str, Any]:
    """Size and state of a stored split; a damaged one is listed, so that it can be removed."""
    if split.damaged:
        sizes = {"rows": 0, "skipped": 0, "features": 0, "dtype": "", "origin": _origin(split)}
        return {**sizes, "state": "damaged"}
    return {
        "rows": split.shape[0],
        "skipped": int((~split.valid).sum()) if split.complete else 0,
        "features": split.shape[1],
        "dtype": str(split.embedding.dtype),
        "origin": _origin(split),
        "state": "complete" if split.complete else f"{split.rows_done} rows done",
    }
