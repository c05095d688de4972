"""What goes to the terminal: progress, tables, facts."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer


@contextmanager
def progress(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr with the rate and the time left; silent when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    hidden = not console.is_terminal or logging.getLogger("featstore").level >= logging.ERROR
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            counted = "MiB" if what.endswith("(MiB)") else unit
            name = {"cells": "probing", "splits": "merging"}.get(counted, what)
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, rate="")
            speed = bar.tasks[tasks[name]].speed
            rate = f"{speed:.0f} {counted}/s" if speed else ""
            bar.update(tasks[name], completed=done, total=total, rate=rate, refresh=False)

        try:
            yield advance
        except KeyboardInterrupt:  # typer would end the program without a word
            raise InterruptedRunError from None


class InterruptedRunError(Exception):
    """Ctrl-C during long work."""


def tell_left_out(cells: Sequence[Any]) -> None:
    """Say how many cells were left out, by the reason that each has as its `error`."""
    for reason, count in Counter(one.error for one in cells).items():
        typer.echo(f"featstore: left out {count} cells: {reason}", err=True)


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts, one a line."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {text(value)}")


def text(value: Any) -> str:
    """A value as a person writes it."""
    return ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain columns, which grep and awk can read as well as people."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())
