"""The notebook of the paper's figures runs in its folder, and shows the paper's numbers."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "pipelines" / "notebooks" / "ericsson2021.ipynb"


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs the tests, whatever kernels the user has installed."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="this Python", language="python")


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_papers_figures_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": NOTEBOOK.parent}},
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert not [output for output in outputs if output.get("name") == "stderr"]
    shown = "".join(
        output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs
    )
    for printed in ("-0.77", "-0.59", "-0.90", "-0.51", "-0.69", "-0.57", "-0.56", "-0.11"):
        assert f"<td>{printed}</td>" in shown
    assert "many-shot, linear      a self-supervised model beats supervision on 10 of 11" in shown


def test_the_notebook_is_committed_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
