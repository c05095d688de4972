"""Commands that list what is known by name: models, datasets, protocols."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import (
    AsJson,
    DataRoot,
    app,
)
from featstore.cli.terminal import progress, show, table, text
from featstore.errors import FeatStoreError

if TYPE_CHECKING:
    from featstore.datasets import Dataset
    from featstore.probes import Protocol

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
    """List the models of the catalogue, or one in full: of it, or a timm:, file: or py: name."""
    from featstore.models import catalogue
    from featstore.models.fetch import status

    if name and name.startswith(("timm:", "file:", "py:")):
        from featstore.models.blueprint import described

        show(described(name), as_json)
        return
    facts = {n: {**asdict(e), "status": status(e)} for n, e in catalogue().items()}
    _list("model", facts, name, where, sort, _MODEL_COLUMNS, as_json)


@app.command(epilog="Example: featstore datasets cifar10 --download --data-root data/downloads")
def datasets(
    name: Annotated[str | None, typer.Argument(help="a dataset in full, or a set")] = None,
    where: Where = [],
    sort: Sort = "",
    download: Annotated[bool, typer.Option(help="fetch it, or all of a set")] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets known by name, or fetch one; folder:, hf:, wds: names work as well."""
    from featstore.datasets import catalogue, default_data_root, split_transform
    from featstore.datasets.names import status
    from featstore.home import expanded

    root = expanded(data_root) if data_root else default_data_root()
    facts: dict[str, dict[str, Any]] = {}
    for one, entry in catalogue().items():
        counts = "/".join(str(entry.n_images.get(s, "")) for s in ("train", "val", "test"))
        shown = "" if counts == "//" else counts.replace("//", "/")
        facts[one] = {**asdict(entry), "images": shown, "status": status(entry, root)}
    if download and (name is None or where or sort):
        raise ValueError(
            "--download takes the name of a dataset or a set, and no --where or --sort"
        )
    base = name and (name.rpartition("@")[0] or name)
    members = {one: known for one, known in facts.items() if base in known["sets"]}
    if download and members:
        _fetch_all(members, data_root, as_json)
        return
    if name is None or members:
        _list("dataset", facts, base, where, sort, _DATASET_COLUMNS, as_json)
        return
    known = facts.get(str(base), {})
    if known.get("status") == "later":
        show(_said(name, known), as_json)
        return
    from featstore.datasets import load_dataset  # imports torch; a list should not

    full: dict[str, Any] = {}
    if download:
        full = _fetch(name, data_root) | ({"status": "ready"} if known else {})
    else:
        dataset = load_dataset(name, data_root=data_root)
        try:
            for split, held in _splits(dataset):
                full[split] = held
        except FeatStoreError as error:
            full["on disk"] = str(error)
        full = {**dataset.info, **full}
    show({**_said(name, known), "name": split_transform(name)[0], **full}, as_json)


def _splits(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Each split of a dataset, with what it holds; raises FeatStoreError."""
    for split in dataset.splits:
        images = dataset.split(split)
        yield split, f"{len(images)} images, {len(images.categories)} categories"


def _fetch(name: str, data_root: Path | None) -> dict[str, Any]:
    """Facts of a dataset of which what was missing has been fetched; raises FeatStoreError."""
    from featstore.datasets import load_dataset

    with progress("MiB") as advance:
        dataset = load_dataset(
            name,
            data_root=data_root,
            download=True,
            progress=lambda what, done, total: advance(what, done >> 20, total >> 20),
        )
        return dict(dataset.info) | dict(_splits(dataset))


def _fetch_all(facts: Mapping[str, dict[str, Any]], data_root: Path | None, as_json: bool) -> None:
    """Fetch what can be, one dataset after the other, each told in a line; one may fail."""
    told: dict[str, str] = {}
    failed = False
    for name, known in facts.items():
        outcome = known["status"]
        if outcome in ("by hand", "later"):
            outcome += f": {known['by_hand'] or ', '.join(known['urls'])}"
        elif known["urls"]:
            try:
                _fetch(name, data_root)
                outcome = "ready"
            except FeatStoreError as error:
                failed, outcome = True, f"failed: {error}"
        told[name] = outcome
        if not as_json:
            typer.echo(f"{name}  {outcome}", err=outcome.startswith("failed"))
    if as_json:
        typer.echo(json.dumps(told))
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: featstore protocols logreg")
def protocols(
    name: Annotated[
        str | None, typer.Argument(help="show this one in full, or list this set")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the protocols, or all settings of one; NAME+k=7 changes a setting, and the name."""
    from featstore import finetuning, probes

    known = {**probes.PROTOCOLS, **finetuning.PROTOCOLS}
    sets = {one for protocol in known.values() for one in protocol.sets}
    if name is not None and name not in sets:
        home = finetuning if name.split("+")[0] in finetuning.PROTOCOLS else probes
        show(_protocol(home.get(name)), as_json)
        return
    facts = {n: _protocol(p) for n, p in known.items() if name is None or name in p.sets}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    columns = ["command", "kind", "normalisation", "transductive", "source"]
    rows = [one | {"transductive": "yes" if one["transductive"] else ""} for one in facts.values()]
    table(["protocol", *columns], [[one[k] for k in ("name", *columns)] for one in rows])


def _protocol(protocol: Protocol) -> dict[str, Any]:
    """Facts of one: what runs it, whether scored images take part in it, every setting."""
    from featstore.finetuning import Finetune

    command = "finetune" if isinstance(protocol, Finetune) else "probe"
    return protocol.settings() | {"command": command, "transductive": protocol.transductive}


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
            listing = (
                f"featstore {kind}s lists the catalogue; timm:NAME, file: and py: need no entry"
            )
            raise unknown(kind, name, [*facts, *sets], listing)
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
