"""Every notebook runs from top to bottom under nbmake, and shows the numbers of its Dataset."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr

import featstore

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "pipelines" / "notebooks").glob("*.ipynb"))


def small_results():
    rng = np.random.default_rng(0)
    dims = ("model", "dataset", "bn_mode", "protocol")
    score = rng.uniform(0.3, 0.9, (6, 3, 2, 3)) + np.linspace(-0.2, 0.1, 6)[:, None, None, None]
    score[1, 2, 0, 1] = np.nan
    return xr.Dataset(
        {
            "score": (dims, score),
            "low": (dims, score - 0.05),
            "high": (dims, score + 0.05),
            "transductive": (dims[2:], np.zeros((2, 3), dtype=bool)),
        },
        coords={
            "model": [f"model-{i}" for i in range(6)],
            "dataset": ["digits", "edges", "faces"],
            "bn_mode": ["eval", "adapt"],
            "protocol": ["knn-marks", "logreg", "ridge"],
            "backbone": ("model", ["cnn", "cnn", "cnn", "vit", "vit", "cnn"]),
            "family": ("model", ["contrastive"] * 5 + ["random"]),
            "stage": ("model", ["late"] * 5 + ["random"]),
            "bn_free": ("model", [False, False, False, True, True, False]),
            "shift": ("dataset", ["in-domain", "edges", "other"]),
            "kind": ("protocol", ["knn", "linear", "ridge"]),
        },
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Where notebooks are run."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def run(here):
    """A notebook by its name: its cells after nbmake ran it, in a copy of its folder."""
    shutil.copytree(ROOT / "pipelines", here / "pipelines")
    results = small_results()
    texts = [name for name in results.coords if results[name].dtype.kind == "U"]
    # Objects become strings of variable length, as in the results.zarr of featstore.
    results = results.assign_coords({name: results[name].astype(object) for name in texts})
    results.to_zarr(here / "results.zarr", consolidated=True)
    environment = os.environ | {
        "FEATSTORE_RESULTS_ZARR": str(here / "results.zarr"),
        "FEATSTORE_CHECKPOINT": str(ROOT / "data" / "tiny" / "resnet-barlow.safetensors"),
        "FEATSTORE_HOME": str(here / "home"),
        "FEATSTORE_OFFLINE": "1",
        "IPYTHONDIR": str(here / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this Python's kernel, whatever the user has installed
        "TMPDIR": str(here),
    }

    def run(name):
        path = here / "pipelines" / "notebooks" / name
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--nbmake",
            "--overwrite",
            "--nbmake-timeout=240",
        ]
        # Apart from this run's settings: it is the notebook that is tested, not nbmake.
        command += ["-c", os.devnull, "--rootdir", here, "-p", "no:cacheprovider", "-q", path]
        done = subprocess.run(
            command, env=environment, cwd=here, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return nbformat.read(path, as_version=4)

    return run


def shown(notebook):
    """Text and number of pictures in what cells put out; nothing of it is a warning."""
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    assert not [one for one in outputs if one.get("name") == "stderr"]
    data = [one.get("data", {}) for one in outputs]
    text = [one.get("text", "") for one in outputs] + [one.get("text/plain", "") for one in data]
    return "".join(text), sum("image/png" in one for one in data)


# The format's specification does not have it yet, and xarray warns when it is absent.
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")
@pytest.mark.slow
def test_results_are_opened_selected_ranked_and_correlated(run):
    text, pictures = shown(run("results.ipynb"))
    assert "107 of 108 cells" in text
    late = small_results()["score"].sel(bn_mode="eval").isel(model=slice(0, 5))
    x, y = late.sel(protocol="logreg"), late.sel(protocol="ridge")
    assert f"{xr.corr(x, y, dim='model').mean().item():.2f}" in text
    assert pictures == 3


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")
@pytest.mark.slow
def test_an_own_model_gets_its_place_among_others(run, here):
    notebook = run("own_model.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 10
    text, pictures = shown(notebook)
    assert pictures == 3
    (records,) = here.glob("*/results")
    score = featstore.open_results(records)["score"].sel(bn_mode="eval")
    ranks = score.stack(cell=["dataset", "protocol"]).to_pandas().rank(ascending=False)
    order = ranks.mean(axis=1).sort_values().index.tolist()
    assert f"mine is number {order.index('mine') + 1} of 6" in text
    against = order[0] if order[0] != "mine" else order[1]
    assert f"mine against {against}" in text
    difference = (score.sel(model="mine") - score.sel(model=against)).sel(dataset="digits-edges")
    assert f"{difference.sel(protocol='logreg').item():.3f}" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
