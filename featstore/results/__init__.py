"""Cells: one write-once record each, and the xarray Dataset they make.

The only door to xarray below analysis.
"""

from featstore.results.checks import check_results, same_metric
from featstore.results.cube import open_results
from featstore.results.files import FORMS, check_target, export, new_file, refresh
from featstore.results.images import open_outcomes, per_class_accuracy
from featstore.results.records import Cell, mark_current, outcomes_of, record, records, target_of
from featstore.results.similarities import (
    Compared,
    build_similarity,
    open_similarity,
    similarity_target,
    write_similarity,
)

__all__ = [
    "FORMS",
    "Cell",
    "Compared",
    "build_similarity",
    "check_results",
    "check_target",
    "export",
    "mark_current",
    "new_file",
    "open_outcomes",
    "open_results",
    "open_similarity",
    "outcomes_of",
    "per_class_accuracy",
    "record",
    "records",
    "refresh",
    "same_metric",
    "similarity_target",
    "target_of",
    "write_similarity",
]
