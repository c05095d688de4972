"""The feature store: one Zarr v3 hierarchy, and the only door to zarr and numcodecs.

`<store>/<model>/<dataset>/<bn_mode>/<split>/` holds one split's embeddings.
"""

from featstore.store.hierarchy import Features, Store
from featstore.store.layout import (
    SPLITS,
    chunk_rows_for,
    parse_codec,
    row_order,
    view_name,
    view_number,
)
from featstore.store.reader import Split
from featstore.store.writer import Rows, SplitWriter, create, resume

__all__ = [
    "SPLITS",
    "Features",
    "Rows",
    "Split",
    "SplitWriter",
    "Store",
    "chunk_rows_for",
    "create",
    "parse_codec",
    "resume",
    "row_order",
    "view_name",
    "view_number",
]
