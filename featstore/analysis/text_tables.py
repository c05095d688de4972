"""Scores as a table for a paper, in LaTeX, or for a page, in Markdown."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from featstore.analysis.differences import compare_outcomes
from featstore.analysis.selection import Models, existing, of_models, shares
from featstore.errors import CorruptStoreError, FeatStoreError
from featstore.results import check_results, open_outcomes

logger = logging.getLogger(__name__)

_TESTED = {"top1", "mean_per_class"}
_LATEX = {
    **{sign: f"\\{sign}" for sign in "_%&#${}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_UPRIGHT = 8  # characters of a column's name; with longer ones, all are turned
_NO_WIDER = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*_[]<>|~&#$"}


@dataclass
class _Table:
    """What is printed, before it has a form.

    Attributes
    ----------
    cells : (row, column) as text, "" where there is none ; bold, underlined : the same, bool
    name : of its label ; caption : sentences
    """

    rows: list[str]
    columns: list[str]
    cells: list[list[str]]
    bold: np.ndarray
    underlined: np.ndarray
    name: str = ""
    caption: list[str] = field(default_factory=list)


def text_table(
    results: xr.Dataset,
    *,
    form: str,
    protocol: str | None = None,
    models: Models = "independent",
    bn_mode: str = "eval",
    root: str | Path | None = None,
) -> str:
    """Models in rows, scores in percent, the best of a column bold, those not separable underlined.

    Columns are datasets, of one protocol, or else protocols, of means over all datasets that any
    model has; a model that lacks one of them has no mean, since it would be of other datasets. A
    model is underlined if `compare_models` does not tell it from the best one on the same test
    images (paired, Holm-adjusted, level .05). That takes the predictions kept beside the records;
    without them nothing is underlined, and the caption says so.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    form : `latex`, for which a document needs the packages booktabs and graphicx, or `markdown`
    protocol : whose scores, on each dataset; by default means of all protocols
    models : "independent" leaves out early checkpoints and random weights
    bn_mode : the one BN mode looked at
    root : folder of the records, for tests

    Returns
    -------
    text of the table, with a caption that names protocol, metric, n and the rule for underlining

    Raises
    ------
    ValueError
        The form, protocol, BN mode or choice of models does not exist, or these are no results.
    """
    check_results(results, "stage")
    existing("form", form, ["latex", "markdown"])
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    results = of_models(results, models)
    if protocol is not None:
        existing("protocol", protocol, results["protocol"].values)
        chosen = results.sel(protocol=protocol)
        share = "scale" not in results.coords or chosen["scale"].item() == "share"
    else:
        chosen, share = shares(results), True
    chosen = chosen.sel(bn_mode=bn_mode)
    over = "protocol" if protocol is None else "dataset"
    scores = chosen["score"]
    chosen = chosen.sel({over: scores.notnull().any([dim for dim in scores.dims if dim != over])})
    sets = [str(one) for one in chosen["dataset"].values]
    columns = [str(one) for one in chosen[over].values]
    if not columns or not chosen.sizes["model"]:
        raise ValueError(
            f"there is no score to tabulate: no {models} model has a cell in BN mode {bn_mode}"
        )
    values, tests = [], {}
    for column in columns:
        own = chosen["score"].sel({over: column})
        used = [column]
        if protocol is None:
            own = own.sel(dataset=own.notnull().any("model"))
            used = [str(one) for one in own["dataset"].values]
            own = own.mean("dataset", skipna=False)
        values.append(own.values)
        names = [str(one) for one in own["model"].values[own.notnull().values]]
        if root is not None:
            tests[column] = _alike(root, names, used, protocol or column, bn_mode)
    table = _filled(chosen, columns, np.array(values).T, share, tests)
    table.name = protocol or "protocols"
    table.caption = [
        _what(chosen, protocol, bn_mode, sets, share),
        *_rule(tests, columns, root is not None, values),
        *_transductive(chosen, protocol),
    ]
    return _latex(table) if form == "latex" else _markdown(table)


def _alike(
    root: str | Path, models: list[str], datasets: list[str], protocol: str, bn_mode: str
) -> set[str]:
    """Models that are not separable from the best of them; none where no test can be made."""
    try:
        outcomes = [
            open_outcomes(root, dataset=one, protocols=[protocol], models=models, bn_mode=bn_mode)
            for one in datasets
        ]
        if not {one.attrs["metric"] for one in outcomes} <= _TESTED:
            return set()  # of such as average precision, images being right are not the score
        found = compare_outcomes(outcomes, protocol=protocol, models="all")
    except CorruptStoreError as error:
        logger.warning("not tested: %s", error)
        return set()
    except (FeatStoreError, ValueError):  # several labels an image, no classifier, one model, ...
        return set()
    return {str(name) for name in found["model"].values[~found["separable_from_best"].values]}


def _filled(
    chosen: xr.Dataset, columns: list[str], values: np.ndarray, share: bool,
    tests: dict[str, set[str]],
) -> _Table:  # fmt: skip
    """Rows of models that have a cell, the best on average first."""
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    average = filled.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    order = np.argsort(-average, kind="stable")
    order = order[there.any(axis=1)[order]]
    values, there = values[order], there[order]
    names = [str(name) for name in chosen["model"].values[order]]
    bold = there & (values == np.where(there, values, -np.inf).max(axis=0, initial=-np.inf))
    alike = [[name in tests.get(column, ()) for column in columns] for name in names]
    underlined = np.array(alike, dtype=bool).reshape(bold.shape) & there & ~bold
    text = [
        ["" if not np.isfinite(v) else f"{100 * v:.1f}" if share else f"{v:.4g}" for v in row]
        for row in values
    ]
    return _Table(names, columns, text, bold, underlined)


def _what(
    chosen: xr.Dataset, protocol: str | None, bn_mode: str, sets: list[str], share: bool
) -> str:
    """What the numbers are."""
    unit = " (%)" if share else ""
    count = chosen["score"].notnull().any([d for d in chosen["score"].dims if d != "model"])
    number = int(count.sum())
    models = f"{number} model{'s' if number != 1 else ''}"
    if protocol is None:
        metric = _metrics(chosen)
        return (
            f"{metric}{unit} of {models} by protocol, mean over {len(sets)} datasets, in BN mode "
            f"{bn_mode}; without a number where one of the datasets is missing."
        )
    text = f"{_metrics(chosen)}{unit} of {models} by {protocol} in BN mode {bn_mode}"
    if "n_test" in chosen:
        sizes = chosen["n_test"].max("model").values
        sizes = sizes[np.isfinite(sizes)].astype(int)
        if sizes.size:
            low, high = sizes.min(), sizes.max()
            text += f"; {low} test images" if low == high else f"; {low} to {high} test images"
            text += " a dataset" if len(sets) > 1 else ""
    return f"{text}."


def _metrics(chosen: xr.Dataset) -> str:
    """Names of the metrics that the scores are."""
    source = next((name for name in ("headline", "metric") if name in chosen.coords), None)
    names = (
        [] if source is None else sorted({str(one) for one in chosen[source].values.flat} - {""})
    )
    return " or ".join(names) if names else "score"


def _rule(
    tests: dict[str, set[str]], columns: list[str], given: bool, values: list[np.ndarray]
) -> list[str]:
    """By what rule cells are bold and underlined."""
    best = "The best of a column is bold"
    if not given or not any(tests.values()):
        return [f"{best}; no test was made of which others differ from it."]
    untested = [name for name in columns if not tests[name]]
    text = (
        f"{best}; underlined are those not separable from it on the same test images (paired test, "
        f"McNemar's where the score is top-1 on one dataset and by the bootstrap elsewhere, "
        f"Holm-adjusted, level .05)."
    )
    return [text, *([f"Not tested: {', '.join(untested)}."] if untested else [])]


def _transductive(chosen: xr.Dataset, protocol: str | None) -> list[str]:
    """Which protocols see all test images at once."""
    if "transductive" not in chosen:
        return []
    marks = np.atleast_1d(chosen["transductive"].values.astype(bool))
    names = [str(one) for one in np.atleast_1d(chosen["protocol"].values)[marks]]
    return [f"Statistics of the test images are used by {', '.join(names)}."] if names else []


def _escaped(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text)


def _marked(table: _Table, bold: str, underlined: str, missing: str) -> list[list[str]]:
    """Cells with their marks; `bold` and `underlined` hold a place for the number."""
    return [
        [
            (bold if b else underlined if u else "{}").format(cell or missing)
            for cell, b, u in zip(*row, strict=True)
        ]
        for row in zip(table.cells, table.bold, table.underlined, strict=True)
    ]


def _latex(table: _Table) -> str:
    cells = _marked(table, r"\textbf{{{}}}", r"\underline{{{}}}", "--")
    head, names = ([_escaped(one, _LATEX) for one in side] for side in (table.columns, table.rows))
    if max(map(len, table.columns), default=0) > _UPRIGHT:
        head = [rf"\rotatebox{{90}}{{{one}\,}}" for one in head]
    lines = [[name, *row] for name, row in zip(names, cells, strict=True)]
    label = re.sub(r"[^a-z0-9]+", "-", table.name.lower()).strip("-")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{_escaped(' '.join(table.caption), _LATEX)}}}",
            rf"\label{{tab:{label}}}",
            r"\medskip",
            _NO_WIDER,
            rf"\begin{{tabular}}{{l{'r' * len(head)}}}",
            r"\toprule",
            " & ".join(["model", *head]) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _markdown(table: _Table) -> str:
    cells = _marked(table, "**{}**", "<u>{}</u>", "–")
    head, names = (
        [_escaped(one, _MARKDOWN) for one in side] for side in (table.columns, table.rows)
    )
    lines = [["model", *head], ["---", *("---:" for _ in head)]]
    lines += [[name, *row] for name, row in zip(names, cells, strict=True)]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*rows, "", _escaped(" ".join(table.caption), _MARKDOWN), ""])
