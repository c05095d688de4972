"""Embeddings that were made elsewhere come in, stores are merged, stored features go out."""

from featstore.transfer.exporting import FORMATS, ORDERS, export_features
from featstore.transfer.importing import Imported, import_features
from featstore.transfer.labels import read_names
from featstore.transfer.merging import Merged, merge_store

__all__ = [
    "FORMATS",
    "ORDERS",
    "Imported",
    "Merged",
    "export_features",
    "import_features",
    "merge_store",
    "read_names",
]
