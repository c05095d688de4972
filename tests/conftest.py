"""The array namespaces every kernel is held to, and a home that no test shares with the user."""

import signal
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import array_api_compat
import numpy as np
import pytest
from scipy.special import log_softmax

from featstore import cli


@pytest.fixture(params=["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    # Only cupy may be skipped: without array-api-strict a kernel is not tested, so that must fail.
    if request.param == "cupy" and not pytest.importorskip("cupy").cuda.is_available():
        pytest.skip("no GPU")
    return array_api_compat.array_namespace(import_module(request.param).empty(0))


def pytest_collection_modifyitems(items):
    """Whole studies first: the longest at the end would keep one of two processes waiting."""
    items.sort(key=lambda item: item.path.parent.name != "pipelines")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c():
    """Children heed Ctrl-C, even where the tests run as a job in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    """No test sees or writes what the user keeps."""
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path_factory.getbasetemp() / "featstore-home"))


@pytest.fixture(scope="session")
def layouts():
    """The package `models/layouts`; tests are no package, so it is found by its path."""
    if "layouts" not in sys.modules:
        folder = Path(__file__).with_name("models") / "layouts"
        spec = spec_from_file_location(
            "layouts", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["layouts"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["layouts"])
    return sys.modules["layouts"]


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


@pytest.fixture
def assert_least_loss():
    """Whether a temperature is the one of least cross-entropy, by trying its neighbours."""

    def check(temperature, log_proba, labels):
        def loss(t):
            return -log_softmax(log_proba / t, axis=1)[np.arange(len(labels)), labels].mean()

        least = loss(temperature)
        assert least < loss(1.0) or temperature == pytest.approx(1, rel=1e-3)
        assert all(least <= loss(temperature * factor) for factor in (0.5, 0.98, 1.02, 2))

    return check
