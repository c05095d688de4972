"""The notebook runs from top to bottom on a small results.zarr, as a reader would run it."""

import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "pipelines" / "notebooks" / "results.ipynb"


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs the tests, whatever kernels the user has installed."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="this Python", language="python")


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


def run(results, tmp_path, monkeypatch):
    texts = [name for name in results.coords if results[name].dtype.kind == "U"]
    # Objects become strings of variable length, as in the results.zarr of featstore.
    results = results.assign_coords({name: results[name].astype(object) for name in texts})
    results.to_zarr(tmp_path / "results.zarr", consolidated=True)
    monkeypatch.setenv("FEATSTORE_RESULTS_ZARR", str(tmp_path / "results.zarr"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    return notebook


# The format's specification does not have it yet, and xarray warns when it is absent.
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")
@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_numbers_of_the_dataset(tmp_path, monkeypatch):
    results = small_results()
    notebook = run(results, tmp_path, monkeypatch)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    shown = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    )
    assert "107 of 108 cells" in shown
    late = results["score"].sel(bn_mode="eval").isel(model=slice(0, 5))
    x, y = late.sel(protocol="knn-marks"), late.sel(protocol="ridge")
    assert f"{xr.corr(x, y, dim='model').mean().item():.2f}" in shown
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_notebook_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
