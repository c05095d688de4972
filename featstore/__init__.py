"""featstore: extract embeddings of vision backbones once, probe them off a store, correlate.

The public names below are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see
    from featstore import datasets, finetuning, kernels, models, probes, store
    from featstore.analysis.batchnorm import backbone_bn, head_bn
    from featstore.analysis.beside import compare_published
    from featstore.analysis.calibration import calibration_errors
    from featstore.analysis.compare import compare_protocols
    from featstore.analysis.correlate import correlate_domains, correlate_protocols
    from featstore.analysis.cost import pareto, seed_reliability
    from featstore.analysis.critical import critical_difference
    from featstore.analysis.differences import compare_models
    from featstore.analysis.families import family_gap
    from featstore.analysis.forecast import forecast
    from featstore.analysis.images import correlate_images
    from featstore.analysis.influence import influence
    from featstore.analysis.plots import (
        correlation_map,
        heat_map,
        reliability,
        scatter,
        scatter_grid,
    )
    from featstore.analysis.predict import predictors
    from featstore.analysis.published import published
    from featstore.analysis.rank import rank_models
    from featstore.analysis.ranking_plots import critical_difference_plot, ranking_plot
    from featstore.analysis.similarity import bn_displacement, similarity_map
    from featstore.analysis.stability import ranking_stability
    from featstore.analysis.study_plots import (
        family_gaps,
        pareto_front,
        predicted_against_true,
        stability_curves,
    )
    from featstore.analysis.text_tables import text_table
    from featstore.analysis.two_models import compare_two_models
    from featstore.analysis.versus import compare_predictors
    from featstore.comparison import similarity
    from featstore.datasets import load_dataset
    from featstore.errors import FeatStoreError
    from featstore.extraction import extract
    from featstore.finetuning import finetune
    from featstore.keys import BNMode, FeatureKey, Recipe
    from featstore.models import create_backbone, load_model
    from featstore.probes import score
    from featstore.reporting.page import report
    from featstore.results import open_outcomes, open_results, open_similarity, per_class_accuracy
    from featstore.store import Store
    from featstore.sweep import probe
    from featstore.transfer import export_features, import_features, merge_store

__version__ = "0.1.0"

_MODULES = ("datasets", "finetuning", "kernels", "models", "probes", "store")

_HOMES = {
    "BNMode": "featstore.keys",
    "FeatStoreError": "featstore.errors",
    "FeatureKey": "featstore.keys",
    "Recipe": "featstore.keys",
    "Store": "featstore.store",
    "backbone_bn": "featstore.analysis.batchnorm",
    "bn_displacement": "featstore.analysis.similarity",
    "calibration_errors": "featstore.analysis.calibration",
    "compare_models": "featstore.analysis.differences",
    "compare_predictors": "featstore.analysis.versus",
    "compare_protocols": "featstore.analysis.compare",
    "compare_published": "featstore.analysis.beside",
    "compare_two_models": "featstore.analysis.two_models",
    "correlate_domains": "featstore.analysis.correlate",
    "correlate_images": "featstore.analysis.images",
    "correlate_protocols": "featstore.analysis.correlate",
    "correlation_map": "featstore.analysis.plots",
    "create_backbone": "featstore.models",
    "critical_difference": "featstore.analysis.critical",
    "critical_difference_plot": "featstore.analysis.ranking_plots",
    "export_features": "featstore.transfer",
    "extract": "featstore.extraction",
    "family_gap": "featstore.analysis.families",
    "family_gaps": "featstore.analysis.study_plots",
    "finetune": "featstore.finetuning",
    "forecast": "featstore.analysis.forecast",
    "head_bn": "featstore.analysis.batchnorm",
    "heat_map": "featstore.analysis.plots",
    "import_features": "featstore.transfer",
    "influence": "featstore.analysis.influence",
    "load_dataset": "featstore.datasets",
    "load_model": "featstore.models",
    "merge_store": "featstore.transfer",
    "open_outcomes": "featstore.results",
    "open_results": "featstore.results",
    "open_similarity": "featstore.results",
    "pareto": "featstore.analysis.cost",
    "pareto_front": "featstore.analysis.study_plots",
    "per_class_accuracy": "featstore.results",
    "predicted_against_true": "featstore.analysis.study_plots",
    "predictors": "featstore.analysis.predict",
    "probe": "featstore.sweep",
    "published": "featstore.analysis.published",
    "rank_models": "featstore.analysis.rank",
    "ranking_plot": "featstore.analysis.ranking_plots",
    "ranking_stability": "featstore.analysis.stability",
    "reliability": "featstore.analysis.plots",
    "report": "featstore.reporting.page",
    "scatter": "featstore.analysis.plots",
    "scatter_grid": "featstore.analysis.plots",
    "score": "featstore.probes",
    "seed_reliability": "featstore.analysis.cost",
    "similarity": "featstore.comparison",
    "similarity_map": "featstore.analysis.similarity",
    "stability_curves": "featstore.analysis.study_plots",
    "text_table": "featstore.analysis.text_tables",
}

__all__ = [
    "BNMode",
    "FeatStoreError",
    "FeatureKey",
    "Recipe",
    "Store",
    "backbone_bn",
    "bn_displacement",
    "calibration_errors",
    "compare_models",
    "compare_predictors",
    "compare_protocols",
    "compare_published",
    "compare_two_models",
    "correlate_domains",
    "correlate_images",
    "correlate_protocols",
    "correlation_map",
    "create_backbone",
    "critical_difference",
    "critical_difference_plot",
    "datasets",
    "export_features",
    "extract",
    "family_gap",
    "family_gaps",
    "finetune",
    "finetuning",
    "forecast",
    "head_bn",
    "heat_map",
    "import_features",
    "influence",
    "kernels",
    "load_dataset",
    "load_model",
    "merge_store",
    "models",
    "open_outcomes",
    "open_results",
    "open_similarity",
    "pareto",
    "pareto_front",
    "per_class_accuracy",
    "predicted_against_true",
    "predictors",
    "probe",
    "probes",
    "published",
    "rank_models",
    "ranking_plot",
    "ranking_stability",
    "reliability",
    "report",
    "scatter",
    "scatter_grid",
    "score",
    "seed_reliability",
    "similarity",
    "similarity_map",
    "stability_curves",
    "store",
    "text_table",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"featstore.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'featstore' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _register(xarray: Any) -> None:
    """Give every Dataset its `featstore`; what that takes is loaded when it is first used."""

    def accessor(results: Any) -> Any:
        from featstore.reporting.accessor import Accessor

        return Accessor(results)

    if not hasattr(xarray.Dataset, "featstore"):  # as after a reload
        xarray.register_dataset_accessor("featstore")(accessor)


class _WhenImported:
    """Registers at xarray when that is imported: to import it here would take half a second."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "xarray":
            return None
        finders = (one for one in sys.meta_path if one is not cls)
        spec = next(filter(None, (one.find_spec(name, path, target) for one in finders)), None)
        if spec and spec.loader:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _register(module)

            # Of this one loader, which is made anew for each import, and of no other.
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # just that is meant
        return spec


if sys.modules.get("xarray"):  # None where somebody has forbidden it
    _register(sys.modules["xarray"])
else:
    sys.meta_path.insert(0, _WhenImported)
