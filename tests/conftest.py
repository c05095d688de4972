"""What all tests share: the array namespaces every kernel is held to, a GPU on the host, a home."""

import ctypes
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import array_api_compat
import numpy as np
import pytest
from scipy.special import log_softmax

from featstore import cli

HERE = Path(__file__).parent
SOURCE = HERE.parent / "featstore" / "kernels" / "gpu.cu"


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


class HostGpu:
    """A `featstore.cuda.Device` with numpy's arrays; `simt.h` runs raw kernels, slowly."""

    xp = np

    def __init__(self, library):
        self.library = library
        self.backwards = False
        self.noise = None  # generator of product errors as large as the bound allows
        self.memory = 2**30
        self.launched, self.products = [], []

    def launch(self, kernel, grid, block, args, shared=0):
        assert shared <= 48 * 1024
        assert block <= 256
        self.launched.append(kernel)
        values = [arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args]
        grid = (*grid, 1)
        self.library.launch(
            ctypes.cast(getattr(self.library, kernel), ctypes.c_void_p),
            (ctypes.c_longlong * 12)(*values),
            *grid[:2],
            block,
            self.backwards,
        )

    def product(self, a, b, out, *, form, scale=1.0, add=False):
        assert a.dtype == b.dtype == np.float16
        assert out.dtype == np.float32
        assert all(array.strides[0] % 16 == 0 for array in (a, b, out))
        self.products.append((form, out.shape))
        a, b = a.astype(np.float32), b.astype(np.float32)
        a, b = (a, b.T) if form == "nt" else (a.T, b)
        with np.errstate(all="ignore"):  # as on a GPU, where infinite halves may meet
            made = a @ b
        if self.noise is not None:
            lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0)
            sign = self.noise.choice([-1.0, 1.0], size=made.shape)
            made = made + sign * 3 * a.shape[1] * 2.0**-24 * lengths
        out[...] = np.float32(scale) * made + (out if add else 0)

    def stage(self, fill, spans, shape, dtype):
        """Two buffers as on the GPU; what may be overwritten there is spoilt here."""
        buffers = [np.full(shape, np.nan, dtype) for _ in range(2)]
        for i, (start, stop) in enumerate(spans):
            rows = buffers[i % 2][: stop - start]
            fill(start, stop, rows)
            yield rows
            buffers[(i + 1) % 2][...] = np.nan

    def free_memory(self):
        return self.memory

    def to_host(self, array):
        return array


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The kernels, compiled for the host as they stand."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the raw kernels on the host with")
    library = tmp_path_factory.mktemp("kernels") / "gpu.so"
    flags = "-std=c++17 -O1 -fPIC -shared -Wall -Wextra -Werror -Wno-clobbered -Wno-unknown-pragmas"
    subprocess.run(
        [
            compiler,
            *flags.split(),
            "-include",
            HERE / "kernels" / "simt.h",
            "-x",
            "c++",
            SOURCE,
            "-o",
            library,
        ],
        check=True,
    )
    return ctypes.CDLL(str(library))


@pytest.fixture
def gpu(emulated):
    """The host's GPU."""
    return HostGpu(emulated)


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
