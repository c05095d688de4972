"""The program, and the options that several of its commands share."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from featstore import __version__
from featstore.keys import BNMode

app = typer.Typer(
    name="featstore",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Benchmark vision backbones: embed images once, probe the store, correlate the protocols.",
    epilog="Example: featstore extract -m tiny -d tiny && featstore probe && featstore report",
)

Models = Annotated[
    list[str],
    typer.Option("--model", "-m", help="model or set of models, such as tiny; repeatable"),
]
Datasets = Annotated[
    list[str],
    typer.Option("--dataset", "-d", help="dataset or set of datasets, such as tiny; repeatable"),
]
Modes = Annotated[
    list[BNMode],
    typer.Option("--bn-mode", help="statistics of the backbone's BatchNorm layers; repeatable"),
]
StorePath = Annotated[Path, typer.Option("--store", help="where features are kept")]
ResultsPath = Annotated[Path, typer.Option("--results", help="folder of the results' records")]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="where datasets lie [default: FEATSTORE_HOME/datasets]"),
]
SkipErrors = Annotated[
    bool, typer.Option("--skip-errors", help="leave out damaged records, and name them")
]
AsJson = Annotated[bool, typer.Option("--json", help="one line of JSON on stdout")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N")]
Weights = Annotated[str, typer.Option(help="pretrained, random, or the path of a weights file")]
Splits = Annotated[
    list[str] | None, typer.Option(help="train, val or test; repeatable [default: all]")
]
Views = Annotated[int, typer.Option(help="random views of each train split besides")]
WeightsSeed = Annotated[int, typer.Option("--seed", help="of random weights")]
Variant = Annotated[str, typer.Option(help="keep the features apart as MODEL~VARIANT")]
Dtype = Annotated[str, typer.Option(help="stored as float16 or float32")]
Codec = Annotated[str, typer.Option(help="none, zstd or bitround:N (lossy)")]
ChunkRows = Annotated[int, typer.Option(help="most rows in a chunk")]

STORE = Path("data/features.zarr")
RESULTS = Path("data/results")


def refuse_idle(context: typer.Context, used: Collection[str], why: str) -> None:
    """Refuse options that were given and have no effect here: all but those of the names `used`."""
    idle = [
        option.opts[0]
        for option in context.command.params
        if option.name not in used
        and (source := context.get_parameter_source(option.name or ""))
        and source.name == "COMMANDLINE"
    ]
    if idle:
        raise ValueError(f"{why}: leave out {', '.join(idle)}")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"featstore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, no remarks")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False,
) -> None:
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(format="featstore: %(message)s", level=logging.ERROR, handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it prints its remarks itself
    logging.getLogger("featstore").setLevel(level)


class _Once(logging.Filter):
    """Lets a remark pass once: a damaged record is met by each analysis that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._made: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._made
        self._made.add(text)
        return is_new


def parse_size(text: str) -> int:
    """Bytes of such as 8GB, 500 MB or 8GiB.

    Raises
    ------
    ValueError
        It has another form.
    """
    found = re.fullmatch(r"([0-9.]+) *([kMGT]?)(i?)B", text)
    try:
        number, prefix, binary = found.groups() if found else ("", "", "")
        return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(prefix or " "))
    except ValueError as error:
        raise ValueError(f"a size is written as 8GB or 500MiB, got {text!r}") from error
