"""The array namespaces every kernel is held to, and a home that no test shares with the user."""

import sys
from importlib import import_module

import array_api_compat
import pytest

from featstore import cli


@pytest.fixture(params=["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    # Only cupy may be skipped: without array-api-strict a kernel is not tested, so that must fail.
    if request.param == "cupy" and not pytest.importorskip("cupy").cuda.is_available():
        pytest.skip("no GPU")
    return array_api_compat.array_namespace(import_module(request.param).empty(0))


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    """No test sees or writes what the user keeps."""
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path_factory.getbasetemp() / "featstore-home"))


@pytest.fixture
def call(monkeypatch, capfd):
    """A command in this process, through `main`: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["featstore", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return (status, *capfd.readouterr())

    return run
