"""The command line: parse, call, print. Heavy imports are inside the commands: --help is quick."""

from __future__ import annotations

from typing import NoReturn

import typer

from featstore.cli import (
    catalogues,
    compare,
    convert,
    finetune,
    output,
    planning,
    similarity,
    storage,
    transfer,
    work,
)
from featstore.cli.options import app
from featstore.cli.terminal import InterruptedRunError
from featstore.errors import FeatStoreError, UnknownNameError

_ORDER = (
    *("plan", "extract", "probe", "finetune", "similarity", "report", "compare"),
    *("import", "export"),
    *("models", "datasets", "protocols", "convert"),
    *("ls", "verify", "why", "rm"),
)
app.registered_commands.sort(
    key=lambda command: _ORDER.index(command.name or getattr(command.callback, "__name__", ""))
)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"featstore: {message}", err=True)
    raise SystemExit(status)


def main() -> None:
    """Run the command line; every error leaves here, as one line and an exit status."""
    try:
        app()
    except (UnknownNameError, ValueError) as error:
        _fail(str(error), 2)
    except FeatStoreError as error:
        _fail(str(error), 1)
    except OSError as error:  # a full disk; a place that may not be read or written
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except InterruptedRunError:
        _fail("interrupted; all that was committed is kept, the same command goes on", 130)


__all__ = [
    "app",
    "catalogues",
    "compare",
    "convert",
    "finetune",
    "main",
    "output",
    "planning",
    "similarity",
    "storage",
    "transfer",
    "work",
]
