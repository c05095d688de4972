"""Sections on how sure findings are: which models differ, what settles that, what r hangs on."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.critical import critical_difference
from featstore.analysis.differences import compare_models
from featstore.analysis.images import correlate_images
from featstore.analysis.influence import influence
from featstore.analysis.ranking_plots import critical_difference_plot, ranking_plot
from featstore.analysis.resampling import FEWEST_MODELS
from featstore.analysis.stability import fewer_labels, ranking_stability
from featstore.analysis.study_plots import (
    stability_curves,
)
from featstore.errors import CorruptStoreError, FeatStoreError
from featstore.reporting.figures import canvas
from featstore.reporting.study import Study
from featstore.reporting.svg import inline_svg
from featstore.reporting.tables import ends_of
from featstore.results import open_outcomes

Content = dict[str, Any]
_Over = Literal["datasets", "labels", "images"]

_MOST_PAIRS = 20  # that hang most on one model
_GROUPS = ("discriminative", "generative")


def certainty(study: Study) -> Content | None:
    """Which models differ: on other images of these datasets, and on other datasets."""
    content: Content = {"rows": [], "why_not": "", "critical": None, "critical_why_not": ""}
    if study.records is not None:
        try:
            found = _compared(study)
            rows = found.sizes["model"]
            ax = ranking_plot(found, ax=canvas(5.2, 0.27 * rows))
            alt = f"Rank of each of {rows} models with the ranks that it may have"
            content |= {
                "rows": _compared_rows(found),
                "facts": found.attrs,
                "n_open": int((~found["separable_from_best"]).sum()),
                "picture": inline_svg(ax, "ranks", alt),
            }
        except CorruptStoreError:
            raise
        except (FeatStoreError, ValueError) as error:  # a study may have nothing to compare
            content["why_not"] = str(error)
    try:
        critical = critical_difference(study.results, protocol=study.reference, **study.how)
        ax = critical_difference_plot(critical, ax=canvas(6.4, 0.13 * critical.sizes["model"] + 1))
        alt = "Mean ranks of models over datasets, with bars over those of which no two differ"
        content |= {
            "critical": critical.attrs,
            "critical_picture": inline_svg(ax, "critical", alt),
        }
    except ValueError as error:
        content["critical_why_not"] = str(error)
    return content


def _compared(study: Study) -> xr.Dataset:
    """The answer of `compare_models` by the reference, over the datasets that most models have."""
    assert study.records is not None
    cells = study.results["score"].sel(protocol=study.reference, bn_mode=study.baseline)
    count = cells.notnull().sum("model")
    names = cells["dataset"].values[(count > 0) & (count == count.max())]
    return compare_models(
        study.records, dataset=[str(name) for name in names], protocol=study.reference,
        skip_errors=study.skip_errors, **study.how,
    )  # fmt: skip


def _compared_rows(found: xr.Dataset) -> list[Content]:
    columns = ("model", "rank", "rank_low", "rank_high", "separable_from_best")
    values = zip(*(found[name].values.tolist() for name in columns), strict=True)
    scores = ends_of(found, "score").tolist()
    return [
        dict(zip((*columns, "score"), (*row, score), strict=True))
        for row, score in zip(values, scores, strict=True)
    ]


def stability(study: Study) -> Content | None:
    """How much it takes to know which models are best."""
    results = study.results
    asked: list[tuple[_Over, xr.Dataset, str]] = [("datasets", results, study.reference)]
    with_fewer = [name for name in (study.reference, *study.labels) if _has_fewer(study, name)]
    asked += [("labels", results, name) for name in with_fewer[:1]]
    if study.records is not None:
        try:
            outcomes = open_outcomes(
                study.records, dataset=study.home, protocols=[study.reference],
                skip_errors=study.skip_errors, **study.how,
            )  # fmt: skip
            asked.append(("images", outcomes, study.reference))
        except CorruptStoreError:
            raise
        except FeatStoreError:  # the protocol keeps no category of each image
            pass
    found, reasons = {}, []
    for over, data, protocol in asked:
        try:
            found[str(over)] = ranking_stability(data, over=over, protocol=protocol, **study.how)
        except (FeatStoreError, ValueError) as error:  # too few models, or cells, for a ranking
            reasons.append(f"{over}: {error}")
    found = {over: one for over, one in found.items() if one["same_top"].notnull().any()}
    if not found:
        return None
    pictures = {}
    for name, one in found.items():
        alt = f"Agreement of the ranking by fewer {name} with that by all"
        ax = stability_curves(one, ax=canvas(2.8, 2.3))
        pictures[name] = inline_svg(ax, f"by-{name}", alt)
    names = ("size", "same_top", "overlap", "kendall", "kendall_low", "kendall_high", "spearman")
    return {
        "found": found,
        "protocols": {over: str(one.attrs["protocol"]) for over, one in found.items()},
        "tables": {
            over: [
                dict(zip(names, row, strict=True))
                for row in zip(*(one[name].values.tolist() for name in names), strict=True)
            ]
            for over, one in found.items()
        },
        "settled": {over: float(one["settled_at"]) for over, one in found.items()},
        "best": next(iter(found.values()))["best"].values.tolist(),
        "pictures": pictures,
        "home": study.home,
        "reasons": reasons,
    }


def _has_fewer(study: Study, protocol: str) -> bool:
    """Whether others are the same with fewer labels, and it is none of them."""
    try:
        return protocol not in fewer_labels(list(study.labels), protocol).values()
    except ValueError:  # so it says that there are none
        return False


def images(study: Study) -> Content | None:
    """How much of the agreement of protocols is the luck of shared test images."""
    if study.records is None:
        return None
    try:
        found = correlate_images(
            study.records, datasets=[study.home], resamples=500, skip_errors=study.skip_errors,
            **study.how,
        )  # fmt: skip
    except CorruptStoreError:
        raise
    except FeatStoreError:  # no cell of this dataset keeps what images were told to be
        return None
    found = found.sel(dataset=study.home)
    names = [str(name) for name in found["protocol"].values]
    first, second = np.triu_indices(len(names), 1)
    columns = ("pearson_same_half", "pearson_split", "pearson_disattenuated", "n")
    values = {name: found[name].values[first, second].tolist() for name in columns}
    whole = ends_of(found, "pearson")[first, second].tolist()
    rows = [
        {"a": names[i], "b": names[j], "pearson": r} | dict(zip(columns, rest, strict=True))
        for i, j, r, *rest in zip(first, second, whole, *values.values(), strict=True)
    ]
    rows = [row for row in rows if row["pearson"][0] == row["pearson"][0]]
    own = np.diag(found["pearson_split"].values)
    if not rows:
        return None
    return {
        "rows": rows,
        "home": study.home,
        "n_images": int(found["n_images"]),
        "reliability": list(zip(names, own.tolist(), strict=True)),
        "shared": float(
            np.median([row["pearson_same_half"] - row["pearson_split"] for row in rows])
        ),
    }


def partials(study: Study) -> list[Content]:
    """Pairs of protocols with r over all backbones, and within them, where there are several."""
    if len({str(one) for one in study.results["backbone"].values}) < 2:
        return []
    whole = study.correlations["independent"]
    found = correlate_protocols(study.results, partial="backbone", by_dataset=False, **study.how)
    names = [str(name) for name in whole["protocol"].values]
    first, second = np.triu_indices(len(names), 1)
    columns = [ends_of(one, "pearson")[first, second].tolist() for one in (whole, found)]
    rows = [
        {"a": names[i], "b": names[j], "pooled": pooled, "within": within}
        for i, j, pooled, within in zip(first, second, *columns, strict=True)
    ]
    return [row for row in rows if row["within"][0] == row["within"][0]]


def hinges(study: Study) -> list[Content]:
    """Pairs of protocols whose correlation hangs most on one model, and what it is without it."""
    if study.n_independent <= FEWEST_MODELS:
        return []
    found = influence(study.results, **study.how)
    change = found["pearson_change"].transpose("protocol", "other", "model").values
    names = [found[dim].values.tolist() for dim in ("protocol", "model")]
    rows = []
    for i, j in zip(*np.triu_indices(len(names[0]), 1), strict=True):
        size = np.abs(np.nan_to_num(change[i, j]))
        at = int(size.argmax()) if size.size else -1
        if at >= 0 and size[at] > 0:
            without = float(found["pearson"].values[i, j, at])
            rows.append(
                {
                    "a": names[0][i],
                    "b": names[0][j],
                    "model": names[1][at],
                    "whole": without - float(change[i, j, at]),
                    "without": without,
                    "change": float(change[i, j, at]),
                }
            )
    return sorted(rows, key=lambda row: -abs(row["change"]))[:_MOST_PAIRS]
