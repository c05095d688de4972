"""Commands that show results: report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featstore.cli.options import (
    RESULTS,
    STORE,
    ResultsPath,
    SkipErrors,
    StorePath,
    app,
    refuse_idle,
)
from featstore.cli.storage import find_key
from featstore.keys import BNMode, encode_part


@app.command(epilog="Example: featstore report --out data/report.html")
def report(
    results: ResultsPath = RESULTS,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("data/report.html"),
    skip_errors: SkipErrors = False,
) -> None:
    """Write one self-contained HTML page: prediction, ranking, scores, correlations, cost, gaps.

    After `featstore similarity`, it also shows whose features are alike.
    """
    from featstore.reporting.page import report as write
    from featstore.results import open_results, open_similarity, similarity_target

    compared = open_similarity(results) if similarity_target(results).exists() else None
    found = open_results(results, skip_errors=skip_errors)
    path = write(found, out, similarity=compared, records=results, skip_errors=skip_errors)
    typer.echo(f"wrote {path}")


@app.command(
    epilog="Example: featstore export --format csv --out cells.csv; "
    "or: featstore export --out table.tex -p logreg; "
    "or: featstore export 'tiny-resnet-simclr digits eval' --split test --out test.npz"
)
def export(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(help="file to write [default: cells.csv, or KEY-SPLIT.npz, by the format]"),
    ] = None,
    key: Annotated[
        str, typer.Argument(help="'MODEL DATASET BN_MODE', as ls prints them: features, not cells")
    ] = "",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, parquet, json, netcdf; latex or markdown; of features npy, npz, parquet, h5 "
            "or safetensors [default: by the file's name]",
        ),
    ] = "",
    results: ResultsPath = RESULTS,
    seeds: Annotated[bool, typer.Option(help="a row for each seed, not their mean")] = False,
    skip_errors: SkipErrors = False,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            "-p",
            help="of a latex or markdown table, models by datasets [default: models by protocols]",
        ),
    ] = "",
    bn_mode: Annotated[
        BNMode, typer.Option("--bn-mode", help="of a latex or markdown table")
    ] = BNMode.EVAL,
    all_models: Annotated[
        bool,
        typer.Option(
            "--all-models", help="of such a table: early checkpoints and random weights as well"
        ),
    ] = False,
    split: Annotated[str, typer.Option(help="of features: train, val or test")] = "",
    order: Annotated[
        str, typer.Option(help="of features: original, as in the dataset, or stored")
    ] = "original",
    store: StorePath = STORE,
    overwrite: Annotated[bool, typer.Option(help="replace a file that is there")] = False,
) -> None:
    """Write all cells as a table or as netCDF, or one split's stored features as arrays.

    As LaTeX or Markdown: a table of scores, the best bold, those not separable from it underlined.
    """
    if key:
        used = {"out", "key", "form", "split", "order", "store", "overwrite"}
        refuse_idle(context, used, "features are exported")
        from featstore.transfer import export_features

        found = find_key(store, key)
        if out is None:
            name = "-".join(encode_part(part) for part in (*key.split(" "), split) if part)
            out = Path(f"{name}.{form or 'npz'}")
        skipped = export_features(
            found, out, split=split, form=form, order=order, store=store,
            overwrite=overwrite,
        )  # fmt: skip
        left = f", without {skipped} that were skipped" if skipped else ""
        typer.echo(f"wrote {out}{left}")
        return
    from featstore.results import export as write
    from featstore.results import new_file, open_results

    text = form or {".tex": "latex", ".md": "markdown"}.get(out.suffix if out else "", "")
    used = {"out", "form", "results", "skip_errors", "overwrite"}
    if text == "latex" or text == "markdown":
        from featstore.analysis.text_tables import text_table

        refuse_idle(context, used | {"protocol", "bn_mode", "all_models"}, "one table is exported")
        out = out or Path(f"{protocol or 'protocols'}.{'tex' if text == 'latex' else 'md'}")
        table = text_table(
            open_results(results, skip_errors=skip_errors), form=text, protocol=protocol or None,
            models="all" if all_models else "independent", bn_mode=bn_mode.value, root=results,
        )  # fmt: skip
        with new_file(out, overwrite=overwrite) as partial:
            partial.write_text(table, encoding="utf-8")
    else:
        refuse_idle(context, used | {"seeds"}, "cells are exported, not the features of a KEY")
        out = out or Path(f"cells.{'nc' if form == 'netcdf' else form or 'csv'}")
        cells = open_results(results, seeds=seeds, skip_errors=skip_errors)
        write(cells, out, form=form, overwrite=overwrite)
    typer.echo(f"wrote {out}")
