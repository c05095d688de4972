"""The raw kernels compile for every GPU they are meant for, and need little beside them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from featstore import kernels

SOURCE = Path(kernels.__file__).with_name("gpu.cu")
# What comes with the package; a machine that has GPUs need not have any of it.
REST = "array_api_compat", "dask", "pandas", "scipy", "sklearn", "typer", "xarray", "zarr"


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="torch brings NVRTC along on Linux x86_64 alone",
)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_without_a_warning(architecture):
    from cuda.bindings import nvrtc  # absent is a failure: then nothing would be compiled

    def call(function, *arguments):
        error, *found = function(*arguments)
        assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
        return found[0] if found else None

    program = call(nvrtc.nvrtcCreateProgram, SOURCE.read_bytes(), b"gpu.cu", 0, [], [])
    options = [b"--gpu-architecture=" + architecture.encode(), b"--std=c++17"]
    (compiled,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    # It is written into; of length 1 it would be Python's own b" ", the one of every other module.
    log = b" " * (2 + call(nvrtc.nvrtcGetProgramLogSize, program))
    call(nvrtc.nvrtcGetProgramLog, program, log)
    assert log.strip(b" \0\n") == b""
    assert compiled == nvrtc.nvrtcResult.NVRTC_SUCCESS
    assert call(nvrtc.nvrtcGetCUBINSize, program) > 0


def imported_without(absent, names):
    """Import modules in a process that lacks some packages."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from importlib import import_module\n"
        f"for name in {names!r}:\n"
        "    import_module('featstore.kernels.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_for_a_gpu_need_numpy_and_cupy_alone():
    imported_without(REST, ["cuda_neighbours", "cuda_softmax", "logistic"])


def test_no_kernel_needs_a_store_a_scheduler_or_tables():
    imported_without(("dask", "distributed", "pandas", "typer", "xarray", "zarr"), kernels.__all__)
