"""Commands that list what is known by name: models, datasets, protocols."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from featstore.cli.options import (
    AsJson,
    DataRoot,
    app,
)
from featstore.cli.terminal import show, table, text
from featstore.errors import FeatStoreError

Where = Annotated[
    list[str],
    typer.Option("--where", "-w", help="FIELD=TEXT: only those whose field is that; repeatable"),
]
Sort = Annotated[str, typer.Option(help="field to sort by: numbers from the largest, text from A")]

_MODEL_COLUMNS = {
    "backbone": "backbone",
    "family": "family",
    "epochs": "epochs",
    "width": "width",
    "imagenet_top1": "top1",
    "status": "status",
    "sets": "sets",
}
_DATASET_COLUMNS = {
    "categories": "categories",
    "images": "train/val/test",
    "shift": "shift",
    "metric": "metric",
    "status": "status",
    "sets": "sets",
}


@app.command(epilog="Example: featstore models marks2024 --where family=contrastive")
def models(
    name: Annotated[str | None, typer.Argument(help="a model in full, or a set")] = None,
    where: Where = [],
    sort: Sort = "",
    as_json: AsJson = False,
) -> None:
    """List the models known by name; timm:, file:, py: names work as well."""
    from featstore.models import catalogue
    from featstore.models.fetch import status

    facts = {n: {**asdict(e), "status": status(e)} for n, e in catalogue().items()}
    _list("model", facts, name, where, sort, _MODEL_COLUMNS, as_json)


@app.command(epilog="Example: featstore datasets cifar10 --download --data-root data/downloads")
def datasets(
    name: Annotated[str | None, typer.Argument(help="a dataset in full, or a set")] = None,
    where: Where = [],
    sort: Sort = "",
    download: Annotated[bool, typer.Option(help="fetch it")] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets known by name, or fetch one; folder:, hf:, wds: names work as well."""
    from featstore.datasets import catalogue, default_data_root, load_dataset, split_transform
    from featstore.datasets.names import status
    from featstore.home import expanded

    root = expanded(data_root) if data_root else default_data_root()
    facts: dict[str, dict[str, Any]] = {}
    for one, entry in catalogue().items():
        counts = "/".join(str(entry.n_images.get(s, "")) for s in ("train", "val", "test"))
        shown = "" if counts == "//" else counts.replace("//", "/")
        facts[one] = {**asdict(entry), "images": shown, "status": status(entry, root)}
    if name is None or any(name in entry["sets"] for entry in facts.values()):
        _list("dataset", facts, name, where, sort, _DATASET_COLUMNS, as_json)
        return
    base = name.rpartition("@")[0] or name
    known = facts.get(base, {})
    if known.get("status") == "later":
        show(_said(base, known), as_json)
        return
    dataset = load_dataset(name, data_root=data_root, download=download)
    full = {**_said(base, known), **dataset.info, "name": split_transform(name)[0]}
    try:
        for split in dataset.splits:
            images = dataset.split(split)
            full[split] = f"{len(images)} images, {len(images.categories)} categories"
    except FeatStoreError as error:
        if download:
            raise
        full["on disk"] = str(error)
    show(full, as_json)


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


def _list(
    kind: str,
    facts: Mapping[str, dict[str, Any]],
    name: str | None,
    where: Sequence[str],
    sort: str,
    columns: Mapping[str, str],
    as_json: bool,
) -> None:
    """Print one entry in full, or a table of those asked for."""
    from featstore.names import unknown

    sets = {one for entry in facts.values() for one in entry["sets"]}
    if name is not None and name not in sets:
        if name not in facts:
            raise unknown(kind, name, [*facts, *sets], f"featstore {kind}s lists them")
        show(_said(name, facts[name]), as_json)
        return
    chosen = {n: f for n, f in facts.items() if name is None or name in f["sets"]}
    for condition in where:
        field, mark, wanted = condition.partition("=")
        if not mark:
            raise ValueError(f"--where takes FIELD=TEXT, got {condition!r}")
        _check_field(field, facts)
        chosen = {n: f for n, f in chosen.items() if _is(f[field], wanted)}
    if sort:
        _check_field(sort, facts)
        chosen = dict(sorted(chosen.items(), key=lambda pair: _rank(pair[1][sort])))
    if as_json:
        typer.echo(json.dumps(chosen))
        return
    table(
        ["name", *columns.values()],
        [[n, *(text(f[one] or "") for one in columns)] for n, f in chosen.items()],
    )


def _said(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of an entry, without what is not."""
    known = {field: value for field, value in facts.items() if value not in ("", 0, [], {}, False)}
    return {"name": name, **known}


def _check_field(field: str, facts: Mapping[str, dict[str, Any]]) -> None:
    known = sorted({name for entry in facts.values() for name in entry})
    if field not in known:
        raise ValueError(f"no field {field!r}; there are {', '.join(known)}")


def _is(value: Any, wanted: str) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(str(one).lower() == wanted.lower() for one in values)


def _rank(value: Any) -> tuple[float, str]:
    return (-value, "") if isinstance(value, int | float) else (0.0, text(value).lower())
