"""featstore: extract embeddings of vision backbones once, probe them off a store, correlate.

The public names below are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see
    from featstore.analysis.correlate import correlate_domains, correlate_protocols
    from featstore.analysis.plots import correlation_map, heat_map, scatter, scatter_grid
    from featstore.analysis.rank import rank_models
    from featstore.analysis.report import report
    from featstore.datasets import load_dataset
    from featstore.errors import FeatStoreError
    from featstore.extraction import extract
    from featstore.keys import BNMode, FeatureKey, Recipe
    from featstore.models import create_backbone, load_model
    from featstore.probes import score
    from featstore.results import open_results
    from featstore.store import Store
    from featstore.sweep import probe
    from featstore.transfer import export_features, import_features, merge_store

__version__ = "0.1.0"

_HOMES = {
    "BNMode": "featstore.keys",
    "FeatStoreError": "featstore.errors",
    "FeatureKey": "featstore.keys",
    "Recipe": "featstore.keys",
    "Store": "featstore.store",
    "correlate_domains": "featstore.analysis.correlate",
    "correlate_protocols": "featstore.analysis.correlate",
    "correlation_map": "featstore.analysis.plots",
    "create_backbone": "featstore.models",
    "export_features": "featstore.transfer",
    "extract": "featstore.extraction",
    "heat_map": "featstore.analysis.plots",
    "import_features": "featstore.transfer",
    "load_dataset": "featstore.datasets",
    "load_model": "featstore.models",
    "merge_store": "featstore.transfer",
    "open_results": "featstore.results",
    "probe": "featstore.sweep",
    "rank_models": "featstore.analysis.rank",
    "report": "featstore.analysis.report",
    "scatter": "featstore.analysis.plots",
    "scatter_grid": "featstore.analysis.plots",
    "score": "featstore.probes",
}

__all__ = [
    "BNMode",
    "FeatStoreError",
    "FeatureKey",
    "Recipe",
    "Store",
    "correlate_domains",
    "correlate_protocols",
    "correlation_map",
    "create_backbone",
    "export_features",
    "extract",
    "heat_map",
    "import_features",
    "load_dataset",
    "load_model",
    "merge_store",
    "open_results",
    "probe",
    "rank_models",
    "report",
    "scatter",
    "scatter_grid",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featstore' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
