"""What tests of kernels share, and a GPU on the host: raw kernels run as they are, slowly."""

import ctypes
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from featstore.backend import gpu_available, to_host
from featstore.kernels.softmax import softmax_loss

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "featstore" / "kernels" / "gpu.cu"


class HostGpu:
    """A `featstore.cuda.Device` whose arrays are numpy's and whose kernels `simt.h` runs."""

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
        [compiler, *flags.split(), "-include", HERE / "simt.h", "-x", "c++", SOURCE, "-o", library],
        check=True,
    )
    return ctypes.CDLL(str(library))


@pytest.fixture
def gpu(emulated):
    """The host's GPU."""
    return HostGpu(emulated)


@pytest.fixture(params=["host", "backwards", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where raw kernels run: on the host, there with later threads first, and on a GPU."""
    if request.param == "cuda":
        if not gpu_available():
            pytest.skip("no GPU")
        return None
    found = request.getfixturevalue("gpu")
    found.backwards = request.param == "backwards"
    return found


def problem(n=200, d=12, c=4, scale=0.6):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % c)
    return rng.normal(size=(c, d))[labels] * scale + rng.normal(size=(n, d)) + 0.5, labels


def evaluate(weight, features, labels, xp, cuts=()):
    """What a caller of the fit does: the kernel over blocks, summed on the host."""
    loss, gradient = 0.0, np.zeros_like(weight)
    edges = [0, *cuts, len(features)]
    for a, b in pairwise(edges):
        block = (xp.asarray(array) for array in (weight, features[a:b], labels[a:b]))
        part = softmax_loss(*block, xp=xp)
        loss, gradient = loss + float(part[0]), gradient + to_host(part[1])
    return loss, gradient
