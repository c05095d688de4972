import subprocess
import sys

import array_api_compat
import array_api_compat.numpy
import array_api_strict
import numpy as np
import pytest

from featstore import backend


def test_the_cpu_namespace_is_numpy():
    assert backend.namespace("cpu") is array_api_compat.numpy


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda0"])
def test_a_device_of_another_form_is_refused(device):
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N"):
        backend.namespace(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_without_a_gpu_the_error_says_what_to_install(monkeypatch, device):
    monkeypatch.setattr(backend, "gpu_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"pip install '.\[cuda12\]' in featstore's folder"):
        backend.namespace(device)


def test_gpu_available_is_false_without_cupy(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend.gpu_available() is False


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_gpu_available_is_false_where_cupy_is_broken(monkeypatch, error):
    def fail(name):
        raise error("libcuda.so.1")

    monkeypatch.setattr(backend, "find_spec", lambda name: name)
    monkeypatch.setattr(backend, "import_module", fail)
    assert backend.gpu_available() is False


def test_importing_the_backend_imports_no_heavy_library():
    code = "import sys, featstore.backend; print({'cupy', 'torch', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_numbers_survive_the_way_to_the_device_and_back(xp):
    numbers = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    there = backend.to_device(numbers, xp)
    assert array_api_compat.is_array_api_obj(there)
    back = backend.to_host(there)
    assert type(back) is np.ndarray
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, numbers)


def test_to_host_copies_no_numpy_array():
    numbers = np.zeros(3)
    assert backend.to_host(numbers) is numbers


def test_to_device_makes_an_array_of_the_namespace():
    assert isinstance(
        backend.to_device(np.zeros(3), array_api_strict), array_api_strict._array_object.Array
    )


def test_strips_are_small_on_the_host_and_large_on_a_gpu(xp):
    large = array_api_compat.is_cupy_namespace(xp)
    assert backend.strip_size(xp) * 8 == (64 if large else 1) * 2**20
