"""What a fine-tuning says of its confidence."""

import numpy as np
import pytest

import featstore
from featstore.results import records

from .conftest import toy


def test_a_fine_tuning_keeps_the_bins_of_its_calibration_error(tmp_path, use):
    use(toy())
    done = featstore.finetune(
        ["tiny-resnet-random"], ["toy"], protocols=["finetune-tiny+epochs=1+batch_size=8"],
        results=tmp_path, device="cpu", num_workers=0,
    )  # fmt: skip
    assert done.filled == 1
    (document,) = records(tmp_path)
    assert sum(document["certificate"]["reliability"]["count"]) == 24
    cell = featstore.open_results(tmp_path).squeeze()
    gap = abs(cell["reliability_accuracy"] - cell["reliability_confidence"])
    error = (cell["reliability_count"] * gap).sum() / 24
    assert error.item() == pytest.approx(cell["ece"].item())
    assert np.isfinite(cell["ece"].item())
