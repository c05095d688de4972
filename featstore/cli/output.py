"""Commands that show results: report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featstore.cli.options import (
    RESULTS,
    ResultsPath,
    app,
)


@app.command(epilog="Example: featstore report --out data/report.html")
def report(
    results: ResultsPath = RESULTS,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("data/report.html"),
) -> None:
    """Write one self-contained HTML page: ranking, scores, correlations, gaps, cost."""
    from featstore.analysis.report import report as write
    from featstore.results import open_results

    typer.echo(f"wrote {write(open_results(results), out)}")


@app.command(epilog="Example: featstore export --format csv --out cells.csv")
def export(
    out: Annotated[Path, typer.Option(help="file to write")],
    form: Annotated[
        str, typer.Option("--format", help="csv, parquet or netcdf [default: by the file's name]")
    ] = "",
    results: ResultsPath = RESULTS,
    seeds: Annotated[bool, typer.Option(help="a row for each seed, not their mean")] = False,
) -> None:
    """Write all cells as a table, or the whole Dataset as netCDF."""
    from featstore.results import export as write
    from featstore.results import open_results

    form = form or {".parquet": "parquet", ".nc": "netcdf"}.get(out.suffix, "csv")
    write(open_results(results, seeds=seeds), out, form=form)
    typer.echo(f"wrote {out}")
