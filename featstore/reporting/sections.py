"""The sections of a report, in their order: what each prints, made from the study.

A section is a function here and a template of its name. The function returns what the template
prints beside the study itself, or None where there is nothing to say; then there is no section.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from featstore.analysis import style
from featstore.analysis.batchnorm import backbone_bn, head_bn
from featstore.analysis.calibration import calibration_errors
from featstore.analysis.compare import compare_protocols
from featstore.analysis.resampling import STATISTICS
from featstore.analysis.selection import shares
from featstore.analysis.similarity import bn_displacement
from featstore.reporting import certainty, facts, figures, outlook, tables
from featstore.reporting.study import Study

Content = dict[str, Any]

_KINDS = {"knn": "kNN", "linear": "linear probe", "fewshot": "few-shot", "finetune": "fine-tuning"}
_STATISTICS = {"pearson": "Pearson r", "spearman": "Spearman ρ", "kendall": "Kendall τ"}
_MOST_GAPS = 200  # rows of the table of missing cells; more than that, nobody reads
_LIBRARIES = ("numpy", "scipy", "xarray", "matplotlib")


class Section(NamedTuple):
    """A part of the page: `name` is that of its template and its anchor, `link` its short title."""

    name: str
    link: str
    content: Callable[[Study], Content | None]


def summary(study: Study) -> Content:
    """How much was measured, and the findings in words."""
    ranking, independent = study.ranking, study.correlations["independent"]
    # What is no share, as alpha-ReQ, has a sign and a scale of its own, and would lead for these.
    names = [str(name) for name in shares(study.results)["protocol"].values]
    averaged = independent.sel(protocol=names, other=names)
    counted, measured = study.counted, study.results["score"].notnull()
    leaders = [name for name in ranking["model"].values if ranking.place.sel(model=name) == 1]
    return {
        "ranking": ranking,
        "n_measured": int((measured & counted).sum()),
        "n_expected": int((xr.ones_like(measured) & counted).sum()),
        "first": leaders[0] if leaders else None,
        "floor": ranking.isel(model=ranking["stage"].values == "random"),
        "strongest": facts.extreme(averaged, largest=True),
        "weakest": facts.extreme(averaged, largest=False),
        "n_units": independent.attrs["n_units"],
        "target": study.targets[0].attrs,
        "cheapest": facts.cheap_predictor(study.targets[0]),
        "predictor": facts.best_predictor(study.domains, names),
        "several_pairs": study.results.sizes["protocol"] > 2,
    }


def prediction(study: Study) -> Content:
    """Which protocols rank models as the expensive ones do."""
    first = study.targets[0]
    rows = [tables.predictor_rows(one) for one in study.targets]
    behind = tables.behind_rows(study.rivals, rows[0])
    for row, told in zip(rows[0], behind, strict=True):
        row |= told
    return {
        "targets": list(zip(study.targets, rows, strict=True)),
        "tuned": first.attrs["target"] != study.reference,
        "rivals": study.rivals is not None,
        "n_behind": sum(row["p_holm"] < 0.05 for row in behind),
        "picture": figures.front(study),
    }


def ranking(study: Study) -> Content:
    """Models, best first."""
    transductive = study.results["transductive"].sel(bn_mode=study.baseline)
    return {
        "ranking": study.ranking,
        "ranked": tables.ranking_rows(study.ranking),
        "any_transductive": bool(transductive.any()),
    }


def scores(study: Study) -> Content | None:
    """Every score that is a share, by protocol and BN mode, the reference first."""
    results = shares(study.ordered)
    names = [str(name) for name in results["protocol"].values]
    names.sort(key=lambda name: name != study.reference)
    modes = [str(mode) for mode in results["bn_mode"].values]
    modes.sort(key=lambda mode: mode != study.baseline)
    # What does not depend on the BN mode is shown once.
    own = results.isel(model=np.flatnonzero(~results["bn_free"].values.astype(bool)))
    heat = {}
    for name in names:
        for mode in modes:
            scored = results if mode == study.baseline else own
            if scored["score"].sel(protocol=name, bn_mode=mode).notnull().any():
                heat[name, mode] = tables.heat_rows(results, name, mode)
    return {"heat": heat} if heat else None


def protocols(study: Study) -> Content:
    """How far every two protocols agree."""
    both = study.correlations
    maps: dict[str, dict[str, Any]] = {}
    for statistic in STATISTICS:
        lowest = style.colour_floor(np.stack([one[statistic].values for one in both.values()]))
        found = {
            models: tables.map_rows(both[models], statistic, lowest)
            for models in study.choices
            if both[models][statistic].notnull().any()
        }
        maps |= {statistic: found} if found else {}
    pictures = figures.pairs(study)
    return {
        "maps": maps,
        "statistics": _STATISTICS,
        "symbols": {name: _STATISTICS[name].split()[-1] for name in STATISTICS},
        "any_independent": bool(facts.extreme(both["independent"], largest=True) is not None),
        "pairs": tables.pair_rows([both[models] for models in study.choices]),
        "pictures": pictures,
        "n_others": len(shares(study.results)["protocol"]) - 1,
        "hinges": certainty.hinges(study),
        "partials": certainty.partials(study),
    }


def features(study: Study) -> Content | None:
    """Whose features are alike, if they were compared."""
    found = study.similarity
    if found is None or study.baseline not in found["bn_mode"].values:
        return None
    return {"picture": figures.alike(found, study.baseline), "n_images": int(found["rows"].max())}


def domains(study: Study) -> Content:
    """Whether in-domain scores predict those elsewhere."""
    found = study.domains
    content: Content = {"home": study.homes[0] if study.homes else None, "homes": study.homes}
    if found is None:
        return content | {"rows": [], "others": [], "models": "", "pictures": {}}
    own = found["independent"]
    models = "independent" if own["pearson_mean"].notnull().any() else "all"
    both = models == "independent" and len(study.choices) > 1
    rows = tables.domain_rows(found[models], found["all"] if both else None)
    return content | {
        "rows": rows if found[models]["pearson"].notnull().any() else [],
        "others": found[models]["dataset"].values.tolist(),
        "models": models,
        "both": both,
        "pictures": figures.domains(study),
    }


def calibration(study: Study) -> Content:
    """Whether confidences can be believed."""
    return {
        "calibrated": tables.calibration_rows(calibration_errors(study.results, **study.how)),
        "pictures": figures.reliability(study),
    }


def bn(study: Study) -> Content:
    """What BatchNorm changes, in the backbone and before the head."""
    reference = study.reference
    head, pairs = tables.head_rows(
        head_bn(study.results, bn_mode=study.baseline, reference=reference)
    )
    moved, found = {}, study.similarity
    if found is not None and study.baseline in found["bn_mode"].values:
        moved = tables.moved_rows(bn_displacement(found, baseline=study.baseline))
    return {
        "backbone": tables.backbone_rows(backbone_bn(study.results, reference=reference)),
        "moved": moved,
        "shift": study.shift,
        "picture": figures.bn_shift(study) if study.shift else None,
        "head": head,
        "head_pairs": pairs,
        "kinds": _KINDS,
    }


def linear(study: Study) -> Content | None:
    """What the linear probe's short cuts cost, where there are some."""
    rows = [
        row
        for name, others in facts.linear_forms(list(study.labels)).items()
        for row in tables.compared_rows(compare_protocols(study.results, name, others, **study.how))
    ]
    forms = {
        form: words
        for form, words in facts.LINEAR_FORMS.items()
        if any(row["protocol"].startswith(f"linear-marks{form}") for row in rows)
    }
    return {"rows": rows, "forms": forms} if rows else None


def cost(study: Study) -> Content:
    """Seconds of each protocol."""
    return {"costs": facts.costs(study.results, study.baseline)}


def missing(study: Study) -> Content:
    """Cells that are not there, that failed, and that are not to be taken at their word."""
    skipped = (study.results["n_skipped"] > 0) & study.counted
    return {
        "gaps": facts.gaps(study.results, study.baseline),
        "failed": facts.failed(study.results, study.counted),
        "unconverged": facts.unconverged(study.results, study.counted),
        "most": _MOST_GAPS,
        "n_skipped": int(skipped.sum()),
    }


def provenance(study: Study) -> Content:
    """Where the numbers come from."""
    versions = {"Python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
    return {
        "described_by": {
            dim: tables.described_rows(study.results, dim)
            for dim in ("dataset", "model", "protocol")
        },
        "digests": tables.digest_rows(study.results),
        "versions": versions,
        "n_units": study.correlations["independent"].attrs["n_units"],
    }


SECTIONS = (
    Section("summary", "Summary", summary),
    Section("prediction", "Prediction", prediction),
    Section("ranking", "Ranking", ranking),
    Section("certainty", "Certainty", certainty.certainty),
    Section("stability", "Stability", certainty.stability),
    Section("scores", "Scores", scores),
    Section("protocols", "Protocols", protocols),
    Section("images", "Images", certainty.images),
    Section("features", "Features", features),
    Section("domains", "Domains", domains),
    Section("forecasts", "Forecasts", outlook.forecasts),
    Section("gap", "Families", outlook.gap),
    Section("calibration", "Calibration", calibration),
    Section("bn", "BatchNorm", bn),
    Section("linear", "Short cuts", linear),
    Section("cost", "Cost", cost),
    Section("beside", "Published", outlook.beside),
    Section("missing", "Missing", missing),
    Section("provenance", "Provenance", provenance),
)
