"""Array namespaces and moves between host and device: the only door to cupy."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array: TypeAlias = Any
"""An array of any namespace that follows the array API standard; it has no common base class."""


def gpu_available() -> bool:
    """Whether cupy is installed, can be imported and sees a CUDA device; never raises."""
    if find_spec("cupy") is None:
        return False
    try:
        return bool(import_module("cupy").cuda.is_available())
    except (ImportError, OSError, RuntimeError):  # absent libraries; a driver that fails
        return False


def namespace(device: str) -> Any:
    """Array namespace whose arrays live on a device.

    Parameters
    ----------
    device : `cpu`, `cuda` or `cuda:N`; `cuda:N` also makes GPU N the calling thread's current one

    Raises
    ------
    ValueError
        The name has another form, or there is no GPU of that number.
    RuntimeError
        A GPU is asked for and cupy is not installed, or finds none.
    """
    if device == "cpu":
        return array_api_compat.numpy
    kind, _, number = device.partition(":")
    if kind != "cuda" or (device != kind and not number.isdecimal()):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if not gpu_available():
        raise RuntimeError(
            f"device {device!r} needs cupy and a CUDA GPU, and there is none: use cpu, or "
            "pip install '.[cuda12]' in featstore's folder ('.[cuda13]' for CUDA 13)"
        )
    if number:
        cuda = import_module("cupy").cuda
        count = cuda.runtime.getDeviceCount()
        if int(number) >= count:
            raise ValueError(f"device must be cuda:0..cuda:{count - 1}, got {device!r}")
        cuda.Device(int(number)).use()
    return import_module("array_api_compat.cupy")


def to_host(array: Array) -> np.ndarray:
    """The same numbers as a numpy array; a numpy array is returned as it is."""
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    return np.asarray(array)


def to_device(array: Array, xp: Any) -> Array:
    """The same numbers as an array of a namespace, on its current device."""
    return xp.asarray(array)


def free_unused(xp: Any) -> None:
    """Give back what cupy holds of a GPU's memory and does not use, so that torch may have it."""
    if array_api_compat.is_cupy_namespace(xp):
        import_module("cupy").get_default_memory_pool().free_all_blocks()


def strip_size(xp: Any) -> int:
    """Number of float64 values that one step of a loop over strips of an array should make.

    1 MiB on the host, so that temporaries stay in a core's cache (half the time of 8 MiB, as
    measured for 800 x 24 pairs of 128 features); 64 MiB on a GPU, where a step costs its launches.
    """
    return 2**23 if array_api_compat.is_cupy_namespace(xp) else 2**17
