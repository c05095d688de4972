"""The tiny study is a benchmark: it tells models apart."""

import numpy as np
import pytest

import featstore

MODELS = ["tiny-resnet-simclr", "tiny-vit-supervised", "tiny-vit-rotation"]
SETS = ["digits-blur", "digits-edges", "digits-inverted", "digits-rotated", "digits-texture"]


@pytest.mark.slow
def test_at_least_four_sets_spread_the_models_by_ten_points_below_saturation(tmp_path):
    featstore.extract(MODELS, SETS, store=tmp_path / "s.zarr", batch_size=256, device="cpu")
    featstore.probe(
        protocols=["knn-marks"], store=tmp_path / "s.zarr", results=tmp_path / "r", scheduler="sync"
    )
    scores = featstore.open_results(tmp_path / "r").top1.isel(bn_mode=0, protocol=0)
    spread = scores.max("model") - scores.min("model")
    assert int((spread >= 0.10).sum()) >= 4, spread.values
    assert float(scores.max()) < 0.97
    assert np.isfinite(scores).all()
