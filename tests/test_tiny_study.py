"""The tiny study is a benchmark: it tells models apart, and marks what is transductive."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import featstore

SCRIPT = Path(__file__).parents[1] / "pipelines" / "tiny.py"

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


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    dims = ("model", "dataset", "bn_mode", "protocol")
    score = rng.uniform(0.2, 0.9, (6, 2, 1, 4))
    return xr.Dataset(
        {
            "score": (dims, score),
            "seconds": (dims, score),
            "transductive": (dims[2:], [[False, True, False, False]]),
        },
        {
            "model": [f"m{i}" for i in range(6)],
            "dataset": ["digits", "edges"],
            "bn_mode": ["eval"],
            "protocol": ["knn-marks", "knn-marks-zscore-own", "logreg", "finetune-tiny"],
            "kind": ("protocol", ["knn", "knn", "linear", "finetune"]),
            "shift": ("dataset", ["in-domain", "edges"]),
            "stage": ("model", ["late"] * 6),
        },
    )


def test_transductive_protocols_are_marked_in_what_is_printed(tiny, results, capsys):
    for show in (
        lambda found: tiny.print_correlations(found, "independent"),
        lambda found: tiny.print_predictors(found, "finetune-tiny"),
    ):
        show(results)
        printed = capsys.readouterr().out
        assert "knn-marks-zscore-own \N{DAGGER} " in printed
        assert "knn-marks \N{DAGGER}" not in printed
        assert printed.splitlines()[-1].startswith("\N{DAGGER} transductive: sees all test")
        show(results.isel(protocol=[0, 2, 3]))
        assert "\N{DAGGER}" not in capsys.readouterr().out
