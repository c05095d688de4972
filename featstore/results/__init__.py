"""Cells: one write-once record each, and the xarray Dataset they make.

The only door to xarray below analysis.
"""

from featstore.results.cube import open_results
from featstore.results.files import check_target, export, refresh, target_of
from featstore.results.records import Cell, mark_current, outcomes_of, record, records

__all__ = [
    "Cell",
    "check_target",
    "export",
    "mark_current",
    "open_results",
    "outcomes_of",
    "record",
    "records",
    "refresh",
    "target_of",
]
