"""One HTML file that shows results whole: it loads nothing and can be mailed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from markupsafe import Markup

from featstore.analysis import plots, style
from featstore.analysis.resampling import FEWEST_MODELS
from featstore.reporting import figures
from featstore.reporting.sections import SECTIONS
from featstore.reporting.study import Study
from featstore.reporting.text import FILTERS


def report(
    results: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    reference: str | None = None,
    similarity: xr.Dataset | None = None,
    records: str | os.PathLike[str] | None = None,
    skip_errors: bool = False,
) -> Path:
    """Path of a self-contained HTML report, written whole or not at all.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    path : where to write; an existing file is replaced
    reference : protocol that the others are drawn against; by default the first linear one
    similarity : of `open_similarity()`; with it, the report says how alike
        models' features are, and how far BN modes move them
    records : folder of the records; with it, models are compared on the same test images
    skip_errors : of these, leave out damaged ones, and say which

    Raises
    ------
    ValueError
        These are no results, there is none at all, or no protocol of the name `reference`.
    CorruptStoreError
        A record, or what it keeps of each test image, is damaged: it is named.
    """
    study = Study.of(
        results,
        reference=reference,
        similarity=similarity,
        records=None if records is None else Path(records),
        skip_errors=skip_errors,
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featstore.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    environment.globals |= _of_all_sections(study)
    sections = []
    for section in SECTIONS:
        content = section.content(study)
        if content is not None:
            text = environment.get_template(f"{section.name}.html").render(content)
            sections.append((section, Markup(text)))  # escaped by its template
    page = environment.get_template("page.html").render(
        title=results.attrs.get("title", "featstore results"),
        shades=Markup(style.shades_css()),
        sections=sections,
    )

    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
    return final


def _of_all_sections(study: Study) -> dict[str, Any]:
    """What every template may print."""
    return {
        "study": study,
        "results": study.results,
        "sizes": study.results.sizes,
        "baseline": study.baseline,
        "reference": study.reference,
        "labels": study.labels,
        "n_independent": study.n_independent,
        "mode_label": plots.mode_label,
        "dagger": plots.DAGGER,
        "fewest": FEWEST_MODELS,
        "legend": figures.legend(study.results),
        "most_pictures": figures.MOST,
    }
