"""Commands that list what is known by name: models, datasets, protocols."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from featstore.cli.options import (
    AsJson,
    DataRoot,
    app,
)
from featstore.cli.terminal import show, show_all, table
from featstore.errors import FeatStoreError


@app.command(epilog="Example: featstore models tiny-resnet-simclr")
def models(
    name: Annotated[str | None, typer.Argument(help="show this one in full")] = None,
    as_json: AsJson = False,
) -> None:
    """List the models known by name; timm:NAME and file:PATH#arch=NAME work as well."""
    from featstore.models.names import catalogue
    from featstore.names import unknown

    entries = catalogue()
    if name is not None and name not in entries:
        raise unknown("model", name, entries, "featstore models lists them")
    show_all(entries, name, ("backbone", "family", "stage", "sets", "description"), as_json)


@app.command(epilog="Example: featstore datasets cifar10 --download --data-root data/downloads")
def datasets(
    name: Annotated[str | None, typer.Argument(help="show this one in full")] = None,
    download: Annotated[bool, typer.Option(help="fetch it")] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets known by name, or fetch one; folder:PATH works as well."""
    from featstore.datasets import catalogue, load_dataset

    if name is None:
        show_all(catalogue(), None, ("reader", "shift", "metric", "sets", "description"), as_json)
        return
    dataset = load_dataset(name, data_root=data_root, download=download)
    facts: dict[str, Any] = {"name": name, **dataset.info}
    try:
        for split in dataset.splits:
            images = dataset.split(split)
            facts[split] = f"{len(images)} images, {len(images.categories)} categories"
    except FeatStoreError as error:
        if download:
            raise
        facts["on disk"] = str(error)
    show(facts, as_json)


@app.command(epilog="Example: featstore protocols logreg")
def protocols(
    name: Annotated[str | None, typer.Argument(help="show this one in full")] = None,
    as_json: AsJson = False,
) -> None:
    """List the protocols, or all settings of one; NAME+k=7 changes a setting, and the name."""
    from featstore.probes import PROTOCOLS, get

    if name is not None:
        show(get(name).settings(), as_json)
        return
    settings = {known: protocol.settings() for known, protocol in PROTOCOLS.items()}
    if as_json:
        typer.echo(json.dumps(settings))
        return
    table(
        ["protocol", "kind", "normalisation", "source"],
        [[n, s["kind"], s["normalisation"], s["source"]] for n, s in settings.items()],
    )
