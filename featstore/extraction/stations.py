"""What an extraction has to fill: a station for each model, BN mode and view that lacks a chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from featstore.datasets import Dataset, ImageSplit
from featstore.extraction.asked import Asked, encoder_of
from featstore.extraction.passes import Station
from featstore.extraction.targets import Options, Target, notes_of, recipe_of
from featstore.keys import BNMode, FeatureKey
from featstore.models import Encoder, Model
from featstore.store import Rows, Store, chunk_rows_for, create, resume, row_order


@dataclass(frozen=True)
class Opener:
    """Opens the stored splits of one dataset for models that share a transform.

    `encoders` keeps those that were made: one that was adapted to a dataset serves all its splits.
    """

    members: Sequence[Asked]
    dataset: Dataset
    modes: Sequence[BNMode]
    root: Path
    device: torch.device
    options: Options
    overwrite: bool
    encoders: dict[tuple[str, BNMode], Encoder] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """Stored splits that a target comes to, over models, sites and BN modes."""
        return sum(len(one.names) * len(modes_of(one.model, self.modes)) for one in self.members)

    def open(self, target: Target, train: ImageSplit | None) -> Iterator[Station]:
        """A station for each model and BN mode of which any site is unfinished.

        `train` is the train split where BN mode `adapt` is among the modes.

        Raises
        ------
        StoreMismatchError
            Features of another recipe are stored under a key.
        FeatStoreError
            A model takes images of another size only.
        """
        images = target.images
        order = row_order(images.fingerprint, len(images))
        ids = [images.sample_ids[int(i)] for i in order]
        rows = Rows(ids, order, images.labels[order], images.categories)
        for one in self.members:
            for mode in modes_of(one.model, self.modes):
                adapts = mode is BNMode.ADAPT
                writers = {}
                for site, name in one.names.items():
                    key = FeatureKey(name, self.dataset.name, mode)
                    recipe = recipe_of(
                        one.model, site, mode, target, train if adapts else None, self.options
                    )
                    if self.overwrite:
                        Store(self.root).remove(key, target.name)
                    writer = resume(
                        self.root, key, target.name, recipe, self.options.codec
                    ) or create(
                        self.root, key, target.name, recipe, rows,
                        width=one.widths[site], dtype=self.options.dtype, codec=self.options.codec,
                        chunk_rows=chunk_rows_for(len(images), self.options.chunk_rows),
                        notes=notes_of(one.model, self.dataset.info, self.device, self.options),
                    )  # fmt: skip
                    if not writer.split.complete:
                        writers[site] = writer
                if writers:
                    encoder = self._encoder(one, mode)
                    yield Station(encoder, writers, target.view or target.transform, adapts)

    def _encoder(self, one: Asked, mode: BNMode) -> Encoder:
        place = (one.model.name, mode)
        if place not in self.encoders:
            self.encoders[place] = encoder_of(
                one.model, list(one.names), mode, self.device, self.options
            )
        return self.encoders[place]


def modes_of(model: Model, modes: Sequence[BNMode]) -> list[BNMode]:
    """BN modes to compute: one model without BatchNorm is the same in all of them."""
    return [BNMode.EVAL] if model.bn_free else list(modes)
