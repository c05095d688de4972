"""The command that lays own results beside published ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import RESULTS, AsJson, ResultsPath, SkipErrors, app
from featstore.errors import FeatStoreError
from featstore.keys import BNMode

if TYPE_CHECKING:
    from rich.table import Table

_NUMBERS = ("ours", "ours_low", "ours_high", "theirs", "theirs_low", "theirs_high", "difference")
_AGREEMENT = (
    *("n", "n_inside", "n_with_interval", "mean_absolute_difference"),
    *("spearman", "spearman_low", "spearman_high"),
)


@app.command(epilog="Example: featstore compare --study ericsson2021 --out beside.csv")
def compare(
    study: Annotated[
        str, typer.Option(help="whose numbers: ericsson2021 or model-cards")
    ] = "ericsson2021",
    results: ResultsPath = RESULTS,
    bn_mode: Annotated[
        BNMode, typer.Option("--bn-mode", help="of our results; published numbers are of eval")
    ] = BNMode.EVAL,
    out: Annotated[Path | None, typer.Option(help="also write the cells as CSV")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a file that is there")] = False,
    skip_errors: SkipErrors = False,
    as_json: AsJson = False,
) -> None:
    """Lay results beside published numbers: ours, theirs, and whether theirs is in our interval."""
    from featstore.analysis.beside import compare_published
    from featstore.results import open_results

    if out and out.exists() and not overwrite:
        raise FeatStoreError(f"{out} exists. Use --overwrite, or another --out")
    cells_of = open_results(results, skip_errors=skip_errors)
    found = compare_published(cells_of, study, bn_mode=bn_mode.value)
    frame = found[[*_NUMBERS, "inside"]].to_dataframe(["protocol", "dataset", "model"])
    frame = frame.reset_index().dropna(subset=["ours"])
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out, index=False)
    cells: list[dict[str, Any]] = frame.to_dict("records")
    for one in cells:
        one["inside"] = {1.0: True, 0.0: False}.get(one["inside"])
    agreement: list[dict[str, Any]] = (
        found[[*_AGREEMENT, "metric", "differences"]]
        .to_dataframe(["protocol", "dataset"])
        .reset_index()
        .query("n > 0")
        .to_dict("records")
    )
    told = {
        "study": study,
        "n_cells": len(cells),
        "n_inside": sum(one["inside"] is True for one in cells),
        "n_with_interval": sum(one["inside"] is not None for one in cells),
        "mean_absolute_difference": sum(abs(one["difference"]) for one in cells) / len(cells),
    }
    if as_json:
        everything = {**told, "cells": cells, "agreement": agreement}
        typer.echo(json.dumps(_without_nan(everything | {"left_out": found.attrs["left_out"]})))
        return
    _tell(found.attrs["title"], told, cells, agreement, found.attrs["left_out"])
    if out:
        typer.echo(f"wrote {out}")


def _tell(
    title: str,
    told: dict[str, Any],
    cells: list[dict[str, Any]],
    agreement: list[dict[str, Any]],
    left_out: list[str],
) -> None:
    """Print cells by protocol, what they come to over models, and what to know about both."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # lines whole, for grep and awk
    console.print(f"{title}\n", markup=False)
    for place in agreement:
        here = [c for c in cells if all(c[k] == place[k] for k in ("protocol", "dataset"))]
        console.print(_cells_table(place, here))
        console.print()
    console.print(_agreement_table(agreement))
    for heading, lines in (
        ("Known to differ:", _differences(agreement)),
        ("Published, and not compared:", left_out),
    ):
        if lines:
            console.print(f"\n{heading}")
            for line in lines:
                console.print(f"  {line}", markup=False)
    sizes = [
        _number(len({one[dim] for one in cells}), dim) for dim in ("model", "dataset", "protocol")
    ]
    counted = told["n_with_interval"]
    inside = f"theirs lies inside our 95 % interval in {told['n_inside']} of {counted}; "
    console.print(
        f"\n{_number(told['n_cells'], 'cell')} of {', '.join(sizes)}: "
        f"{inside if counted else 'ours has no interval; '}mean absolute difference "
        f"{100 * told['mean_absolute_difference']:.2f} points"
    )


def _cells_table(place: dict[str, Any], cells: list[dict[str, Any]]) -> Table:
    """Ours and theirs of every model, in %, by one protocol on one dataset."""
    table = _columns(f"{place['protocol']} on {place['dataset']}, {place['metric']} (%)", "model")
    for name in ("ours", "95 %", "theirs", "difference", "inside"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in cells:
        table.add_row(
            *(one["model"], _percent(one["ours"])),
            *(_interval(one["ours_low"], one["ours_high"], _percent), _percent(one["theirs"])),
            f"{round(100 * one['difference'], 2) + 0:+.2f}",  # + 0: no negative zero
            {True: "yes", False: "[red]no[/red]", None: "–"}[one["inside"]],
        )
    return table


def _agreement_table(agreement: list[dict[str, Any]]) -> Table:
    """What cells come to over models, for each protocol and dataset."""
    table = _columns("over models", "protocol", "dataset")
    for name in ("models", "inside", "|difference|", "Spearman", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in agreement:
        table.add_row(
            *(one["protocol"], one["dataset"], str(one["n"])),
            f"{one['n_inside']} of {one['n_with_interval']}",
            _percent(one["mean_absolute_difference"]),
            _coefficient(one["spearman"]),
            _interval(one["spearman_low"], one["spearman_high"], _coefficient),
        )
    return table


def _columns(title: str, *names: str) -> Table:
    """A table without lines, of columns of names so far."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _differences(agreement: list[dict[str, Any]]) -> list[str]:
    """What is known to differ, once for all protocols and datasets of which the same is known."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in agreement:
        for statement in one["differences"].split("; ") if one["differences"] else ():
            found.setdefault(statement, {}).setdefault(one["protocol"], []).append(one["dataset"])
    lines = []
    for statement, by_protocol in found.items():
        names = []
        for protocol, datasets in by_protocol.items():
            everywhere = sum(one["protocol"] == protocol for one in agreement)
            names.append(
                protocol
                if len(datasets) == everywhere > 1
                else f"{protocol} on {', '.join(datasets)}"
            )
        lines.append(f"{', '.join(names)}: {statement}")
    return lines


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _coefficient(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _interval(low: float, high: float, form: Any) -> str:
    return "–" if math.isnan(low) or math.isnan(high) else f"{form(low)} .. {form(high)}"


def _without_nan(value: Any) -> Any:
    """The same with null for what is no number, as JSON has none of these."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
