"""Images that lie one after another in big files, each read at its place."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featstore.datasets.files import decode, digest_encoded
from featstore.errors import BadImageError
from featstore.keys import canonical_json


@dataclass(frozen=True, eq=False)
class SliceImages:
    """Reader of encoded images by file, offset and size.

    Attributes
    ----------
    files : paths of the files
    places : (n, 3) int64: position in `files`, offset and size in bytes
    names : n names, for messages
    """

    files: tuple[str, ...]
    places: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, slices: Sequence[tuple[str, int, int, str]]) -> SliceImages:
        """Reader of (file, offset, size, name) each."""
        files = tuple(dict.fromkeys(file for file, *_ in slices))
        at = {file: i for i, file in enumerate(files)}
        places = np.array([(at[f], offset, size) for f, offset, size, _ in slices], np.int64)
        return cls(files, places.reshape(-1, 3), tuple(name for *_, name in slices))

    def __call__(self, position: int) -> Image.Image:
        """RGB image at a position; raises BadImageError, naming it and its file."""
        where = f"{self.names[position]} in {self.files[self.places[position, 0]]}"
        return decode(io.BytesIO(self._encoded(position)), where)

    def _encoded(self, position: int) -> bytes:
        file, offset, size = self.places[position].tolist()
        path = self.files[file]
        try:
            with Path(path).open("rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        except OSError as error:
            raise BadImageError(f"{path} cannot be read ({error.strerror})") from error

    @property
    def content(self) -> str:
        """SHA-256 over the images' sizes, in hex: as for image files."""
        return hashlib.sha256(canonical_json(self.places[:, 2].tolist())).hexdigest()

    def bytes_digest(self) -> str:
        """SHA-256 over the encoded images, in hex; raises BadImageError, naming a file."""
        return digest_encoded(self._encoded(i) for i in range(len(self.names)))
