"""Sections on how sure a study's findings are: what differs, what settles it, what it foretells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from featstore.analysis.beside import compare_published
from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.critical import critical_difference
from featstore.analysis.differences import compare_models
from featstore.analysis.families import family_gap
from featstore.analysis.forecast import forecast
from featstore.analysis.images import correlate_images
from featstore.analysis.influence import influence
from featstore.analysis.published import NAMES
from featstore.analysis.ranking_plots import critical_difference_plot, ranking_plot
from featstore.analysis.resampling import FEWEST_MODELS
from featstore.analysis.selection import ENDS
from featstore.analysis.stability import fewer_labels, ranking_stability
from featstore.analysis.study_plots import (
    family_gaps,
    predicted_against_true,
    stability_curves,
)
from featstore.errors import CorruptStoreError, FeatStoreError
from featstore.reporting.figures import MOST, canvas
from featstore.reporting.study import Study
from featstore.reporting.svg import inline_svg
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
            rows, letters = found.sizes["model"], max(map(len, found["model"].values))
            ax = ranking_plot(found, ax=canvas(5.2, 0.27 * rows))
            alt = f"Rank of each of {rows} models with the ranks that it may have"
            content |= {
                "rows": _compared_rows(found),
                "facts": found.attrs,
                "n_open": int((~found["separable_from_best"]).sum()),
                "picture": inline_svg(ax, f"ranks-{letters}", alt),
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
            "critical_rows": list(
                zip(
                    critical["model"].values.tolist(),
                    critical["mean_rank"].values.tolist(),
                    critical["separable_from_best"].values.tolist(),
                    strict=True,
                )
            ),
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
    scores = np.stack([found[f"score{end}"].values for end in ENDS], axis=1).tolist()
    return [
        dict(zip((*columns, "score"), (*row, score), strict=True))
        for row, score in zip(values, scores, strict=True)
    ]


def stability(study: Study) -> Content | None:
    """How much it takes to know which models are best."""
    results = study.results
    home = study.homes[0] if study.homes else str(results["dataset"].values[0])
    asked: list[tuple[_Over, xr.Dataset, str]] = [("datasets", results, study.reference)]
    with_fewer = [name for name in (study.reference, *study.labels) if _has_fewer(study, name)]
    asked += [("labels", results, name) for name in with_fewer[:1]]
    if study.records is not None:
        try:
            outcomes = open_outcomes(
                study.records, dataset=home, protocols=[study.reference],
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
        "home": home,
        "reasons": reasons,
    }


def _has_fewer(study: Study, protocol: str) -> bool:
    """Whether others are the same with fewer labels, and it is none of them."""
    try:
        return protocol not in fewer_labels(list(study.labels), protocol).values()
    except ValueError:  # so it says that there are none
        return False


def gap(study: Study) -> Content | None:
    """How families of models differ, and how much of that their backbones explain."""
    known = study.results.coords.get("paradigm")
    if known is None or not set(_GROUPS) <= {str(one) for one in known.values}:
        return None
    try:
        found = family_gap(study.results, groups=_GROUPS, **study.how)
    except ValueError:  # none of them independent
        return None
    names = ("p", "p_smallest", "n_arrangements", "exact", "n", "n_within")
    columns = {name: found[name].values.tolist() for name in names}
    for name in ("pooled", "within", "explained"):
        columns[name] = np.stack([found[f"{name}{end}"].values for end in ENDS], axis=1).tolist()
    rows = [
        dict(zip(columns, row, strict=True)) | {"protocol": str(protocol)}
        for protocol, *row in zip(found["protocol"].values, *columns.values(), strict=True)
    ]
    rows = [row for row in rows if row["n"] >= FEWEST_MODELS]
    if not rows:
        return None
    some = [row["protocol"] for row in rows][:MOST]
    drawn = found.sel(protocol=some)
    drawn = drawn.assign_coords(protocol=[study.labels[name] for name in some])
    ax = family_gaps(drawn, ax=canvas(5.6, 0.4 * len(some)))
    alt = f"Gap between {_GROUPS[0]} and {_GROUPS[1]} models, pooled and within backbones"
    count = found["n_cell"].max("protocol").transpose("group", "held")
    taught = found["n_clip"].max("protocol").transpose("group", "held")
    return {
        "rows": rows,
        "groups": _GROUPS,
        "held": found["held"].values.tolist(),
        "counts": count.values.astype(int).tolist(),
        "taught": taught.values.astype(int).tolist(),
        "taught_names": [str(one) for one in study.results["model"].values[_taught(study.results)]],
        "picture": inline_svg(ax, "gap", alt),
        "drawn": len(some),
    }


def _taught(results: xr.Dataset) -> Any:
    """(model,) whether it was taught by CLIP."""
    if "teacher" not in results.coords:
        return np.zeros(results.sizes["model"], bool)
    return np.array([str(one) == "clip" for one in results["teacher"].values])


def forecasts(study: Study) -> Content | None:
    """Whether scores elsewhere can be foretold from cheap ones in-domain."""
    if not study.homes or study.results.sizes["dataset"] < 2:
        return None
    target = str(study.targets[0].attrs["target"])
    found, reasons = {}, []
    for leave in ("model", "dataset"):
        try:
            found[leave] = forecast(
                study.results, target=target, leave=leave, in_domain=study.homes[0], **study.how
            )
        except ValueError as error:
            reasons.append(str(error))
    found = {leave: one for leave, one in found.items() if one["mae_mean"].notnull()}
    if not found:
        return {"rows": [], "reasons": list(dict.fromkeys(reasons)), "target": target}
    rows = [
        {
            "leave": leave,
            "baseline": str(baseline),
            "mae": float(one["mae_mean"]),
            "mae_naive": float(one["mae_naive_mean"].sel(baseline=baseline)),
            "skill": [float(one[f"skill{end}"].sel(baseline=baseline)) for end in ENDS],
            "spearman": float(one["spearman_mean"]),
            "n": int(one["n"].sum()),
        }
        for leave, one in found.items()
        for baseline in one["baseline"].values
    ]
    pictures = {}
    for leave, one in found.items():
        alt = f"True against foretold scores by {study.labels[target]}, each {leave} left out"
        ax = predicted_against_true(one, ax=canvas(2.8, 2.55))
        pictures[leave] = inline_svg(ax, f"foretold-{leave}", alt)
    used = next(iter(found.values()))["predictor"].values.tolist()
    return {
        "rows": rows,
        "pictures": pictures,
        "target": target,
        "home": study.homes[0],
        "naive_in_domain": next(iter(found.values())).attrs["naive_in_domain"],
        "predictors": [study.labels[str(name)] for name in used],
        "reasons": reasons,
    }


def images(study: Study) -> Content | None:
    """How much of the agreement of protocols is the luck of shared test images."""
    if study.records is None:
        return None
    home = study.homes[0] if study.homes else str(study.results["dataset"].values[0])
    try:
        found = correlate_images(
            study.records, datasets=[home], resamples=500, skip_errors=study.skip_errors,
            **study.how,
        )  # fmt: skip
    except CorruptStoreError:
        raise
    except FeatStoreError:  # no cell of this dataset keeps what images were told to be
        return None
    found = found.sel(dataset=home)
    names = [str(name) for name in found["protocol"].values]
    first, second = np.triu_indices(len(names), 1)
    columns = ("pearson_same_half", "pearson_split", "pearson_disattenuated", "n")
    values = {name: found[name].values[first, second].tolist() for name in columns}
    ends = [found[f"pearson{end}"].values[first, second] for end in ENDS]
    whole = np.stack(ends, axis=1).tolist()
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
        "home": home,
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
    columns = [
        np.stack([one[f"pearson{end}"].values[first, second] for end in ENDS], axis=1).tolist()
        for one in (whole, found)
    ]
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


def beside(study: Study) -> Content | None:
    """Own numbers beside published ones, where any cell is shared."""
    tables = []
    for name in NAMES:
        try:
            found = compare_published(study.results, name, **study.how)
        except FeatStoreError:  # nothing is shared
            continue
        table = found[["ours", "ours_low", "ours_high", "theirs", "difference", "inside"]]
        frame = table.drop_vars(
            [one for one in table.coords if one not in ("model", "dataset", "protocol")]
        ).to_dataframe()
        frame = frame[frame["difference"].notna()].reset_index()
        rows = frame.to_dict("records")
        texts = found["differences"].values.ravel().tolist()
        tables.append(
            {
                "study": name,
                "rows": rows,
                "n_inside": int(np.nansum(frame["inside"])),
                "n_with": int(frame["inside"].notna().sum()),
                "mean": float(frame["difference"].abs().mean()),
                "differences": list(dict.fromkeys(str(one) for one in texts if one)),
            }
        )
    return {"tables": tables} if tables else None
