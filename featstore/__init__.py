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
    from featstore.analysis.calibration import calibration_errors
    from featstore.analysis.compare import compare_protocols
    from featstore.analysis.correlate import correlate_domains, correlate_protocols
    from featstore.analysis.plots import (
        correlation_map,
        heat_map,
        reliability,
        scatter,
        scatter_grid,
    )
    from featstore.analysis.predict import predictors
    from featstore.analysis.rank import rank_models
    from featstore.analysis.similarity import bn_displacement, similarity_map
    from featstore.comparison import similarity
    from featstore.datasets import load_dataset
    from featstore.errors import FeatStoreError
    from featstore.extraction import extract
    from featstore.finetuning import finetune
    from featstore.keys import BNMode, FeatureKey, Recipe
    from featstore.models import create_backbone, load_model
    from featstore.probes import score
    from featstore.reporting.page import report
    from featstore.results import open_results, open_similarity, per_class_accuracy
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
    "compare_protocols": "featstore.analysis.compare",
    "correlate_domains": "featstore.analysis.correlate",
    "correlate_protocols": "featstore.analysis.correlate",
    "correlation_map": "featstore.analysis.plots",
    "create_backbone": "featstore.models",
    "export_features": "featstore.transfer",
    "extract": "featstore.extraction",
    "finetune": "featstore.finetuning",
    "head_bn": "featstore.analysis.batchnorm",
    "heat_map": "featstore.analysis.plots",
    "import_features": "featstore.transfer",
    "load_dataset": "featstore.datasets",
    "load_model": "featstore.models",
    "merge_store": "featstore.transfer",
    "open_results": "featstore.results",
    "open_similarity": "featstore.results",
    "per_class_accuracy": "featstore.results",
    "predictors": "featstore.analysis.predict",
    "probe": "featstore.sweep",
    "rank_models": "featstore.analysis.rank",
    "reliability": "featstore.analysis.plots",
    "report": "featstore.reporting.page",
    "scatter": "featstore.analysis.plots",
    "scatter_grid": "featstore.analysis.plots",
    "score": "featstore.probes",
    "similarity": "featstore.comparison",
    "similarity_map": "featstore.analysis.similarity",
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
    "compare_protocols",
    "correlate_domains",
    "correlate_protocols",
    "correlation_map",
    "create_backbone",
    "datasets",
    "export_features",
    "extract",
    "finetune",
    "finetuning",
    "head_bn",
    "heat_map",
    "import_features",
    "kernels",
    "load_dataset",
    "load_model",
    "merge_store",
    "models",
    "open_results",
    "open_similarity",
    "per_class_accuracy",
    "predictors",
    "probe",
    "probes",
    "rank_models",
    "reliability",
    "report",
    "scatter",
    "scatter_grid",
    "score",
    "similarity",
    "similarity_map",
    "store",
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

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "xarray" in sys.modules:
    _register(sys.modules["xarray"])
else:
    sys.meta_path.insert(0, _WhenImported)
