"""Errors that report a state of the store or of the world, each with the next step to take."""

from __future__ import annotations


class FeatStoreError(Exception):
    """Base of all: something is not as it must be, and the message says what to do."""


class UnknownNameError(FeatStoreError, LookupError):
    """A model, dataset, protocol or split of that name does not exist."""


class MissingFeaturesError(FeatStoreError, LookupError):
    """No finished features are stored under a key."""


class StoreMismatchError(FeatStoreError):
    """What is stored was made by another recipe or format version than the one asked for."""


class CorruptStoreError(FeatStoreError):
    """Bytes in the store or the results are not those that were written."""


class BadImageError(FeatStoreError):
    """An image cannot be decoded, or a folder does not hold the images it should."""


class MissingDatasetError(FeatStoreError, LookupError):
    """A dataset is not on disk."""


class BadCheckpointError(FeatStoreError):
    """A weights file is absent, unsafe to load, or does not fit its architecture."""


class BadEmbeddingError(FeatStoreError):
    """An embedding holds NaN or infinity, or overflows the stored dtype."""


class ProbeError(FeatStoreError):
    """A protocol cannot run on these features."""


class NotApplicableError(ProbeError):
    """A protocol asks for more than these features have, such as more neighbours than rows."""


class DivergedError(FeatStoreError):
    """The loss of a training is no finite number."""


class CatalogueError(FeatStoreError):
    """The user's own catalogue cannot be understood."""


class BadArrayError(FeatStoreError):
    """A file of arrays cannot be read, or does not hold what an import needs."""


class FetchError(FeatStoreError):
    """A file could not be fetched, or what came is not the file asked for."""
