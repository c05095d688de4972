"""CUDA through cupy: products on tensor cores, kernels of our own, rows staged from the host.

It needs numpy and cupy alone, so that kernels which import nothing else run wherever these two do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""An array of the device's namespace."""

Fill: TypeAlias = Callable[[int, int, np.ndarray], None]
"""Writes rows start..stop of something into a (stop - start, stride) array of the host."""

READERS = 4
"""Blocks that are read ahead, each by a thread of its own into page-locked memory of its own."""


class Device(Protocol):
    """What the fast kernels ask of a GPU; `Cuda` is it, and tests have one on the host."""

    xp: Any
    """Namespace of its arrays: cupy, or numpy where both do the same."""

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: int, args: Sequence[Any], shared: int = 0
    ) -> None:
        """Start a kernel of `gpu.cu`; `shared` bytes of memory for each block."""

    def product(
        self, a: Array, b: Array, out: Array, *, form: str, scale: float = 1.0, add: bool = False
    ) -> None:
        """Scale times the product of two float16 matrices, summed in float32, written or added."""

    def stage(
        self, fill: Fill, spans: Sequence[tuple[int, int]], shape: tuple[int, int], dtype: Any
    ) -> Iterator[Array]:
        """Blocks of rows on the device, each valid until the next but one is asked for."""

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""

    def to_host(self, array: Array) -> np.ndarray:
        """The same numbers as a numpy array."""


class Cuda:
    """The calling thread's current GPU.

    Raises
    ------
    ImportError
        There is no cupy, or a library it needs is absent.
    """

    def __init__(self) -> None:
        self.xp = import_module("cupy")
        # Compiled when first launched, for the GPU that is there; cupy keeps the result on disk.
        source = Path(__file__).with_name("kernels") / "gpu.cu"
        module = self.xp.RawModule(code=source.read_text(), options=("--std=c++17",))
        self._kernel = cache(module.get_function)  # which would look it up at every launch

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: int, args: Sequence[Any], shared: int = 0
    ) -> None:
        """Start a kernel on the current stream; integers arrive as `long long`."""
        typed = tuple(np.int64(arg) if isinstance(arg, int) else arg for arg in args)
        self._kernel(kernel)(grid, (block,), typed, shared_mem=shared)

    def product(
        self, a: Array, b: Array, out: Array, *, form: str, scale: float = 1.0, add: bool = False
    ) -> None:
        """Product of two float16 matrices on tensor cores, summed in float32.

        Parameters
        ----------
        a, b : (m, k) and (n, k) of form `nt`, (k, m) and (k, n) of form `tn`; rows are contiguous,
            and lengths of rows in memory are multiples of 8, which is what tensor cores want
        out : (m, n) float32; scale x a @ b.T, or scale x a.T @ b
        add : to what `out` holds
        """
        cuda = self.xp.cuda
        blas = cuda.cublas
        m, n = out.shape
        turned = form == "nt"
        depth = a.shape[1] if turned else a.shape[0]
        # cuBLAS counts by columns: it makes out.T of b and a, which it sees transposed.
        ways = (blas.CUBLAS_OP_T, blas.CUBLAS_OP_N)
        alpha, beta = np.float32(scale), np.float32(1.0 if add else 0.0)
        factors = np.array([alpha, beta])
        half, single = cuda.runtime.CUDA_R_16F, cuda.runtime.CUDA_R_32F
        blas.gemmEx(
            cuda.device.get_cublas_handle(),
            *(ways if turned else ways[::-1]),
            n,
            m,
            depth,
            factors[0:].ctypes.data,
            b.data.ptr,
            half,
            b.strides[0] // 2,
            a.data.ptr,
            half,
            a.strides[0] // 2,
            factors[1:].ctypes.data,
            out.data.ptr,
            single,
            out.strides[0] // 4,
            blas.CUBLAS_COMPUTE_32F,
            blas.CUBLAS_GEMM_DEFAULT,
        )

    def stage(
        self, fill: Fill, spans: Sequence[tuple[int, int]], shape: tuple[int, int], dtype: Any
    ) -> Iterator[Array]:
        """Blocks of rows on the device, copied while those before them are computed with.

        Threads read ahead into page-locked memory; a stream of its own copies into one of two
        buffers as soon as what was asked of that buffer's last block is done.

        Parameters
        ----------
        fill : reads a span of rows into memory; called from several threads, in no order
        spans : start and stop of each block, at most shape[0] apart
        shape, dtype : of a whole block; there are two of them on the device

        Yields
        ------
        rows : (stop - start, shape[1]); a block is overwritten once the next but one is asked for
        """
        cuda = self.xp.cuda
        here, copying = cuda.get_current_stream(), cuda.Stream(non_blocking=True)
        buffers = [self.xp.empty(shape, dtype=dtype) for _ in range(2)]
        # Memory that cupy hands out again may still be read by what was asked for before.
        copying.wait_event(here.record())
        used, copied = [cuda.Event() for _ in range(2)], [cuda.Event() for _ in range(READERS)]
        pinned = [self._pinned(shape, dtype) for _ in range(min(READERS, len(spans)))]
        with ThreadPoolExecutor(READERS) as threads:

            def read(i: int) -> Future[None]:
                start, stop = spans[i]
                return threads.submit(fill, start, stop, pinned[i % READERS][: stop - start])

            ahead = deque(read(i) for i in range(len(pinned)))
            try:
                for i, (start, stop) in enumerate(spans):
                    ahead.popleft().result()
                    source, target = pinned[i % READERS][: stop - start], buffers[i % 2]
                    if i >= 2:
                        copying.wait_event(used[i % 2])
                    target.data.copy_from_host_async(source.ctypes.data, source.nbytes, copying)
                    copied[i % READERS].record(copying)
                    here.wait_event(copied[i % READERS])
                    yield target[: stop - start]
                    used[i % 2].record(here)
                    if i + READERS < len(spans):
                        copied[i % READERS].synchronize()
                        ahead.append(read(i + READERS))
            finally:
                for future in ahead:
                    future.cancel()
                copying.synchronize()  # before the memory it reads is given back

    def _pinned(self, shape: tuple[int, int], dtype: Any) -> np.ndarray:
        count = prod(shape)
        memory = self.xp.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def free_memory(self) -> int:
        """Bytes that the driver has left and those that cupy holds and does not use."""
        free, _ = self.xp.cuda.Device().mem_info
        return int(free + self.xp.get_default_memory_pool().free_bytes())

    def to_host(self, array: Array) -> np.ndarray:
        """The same numbers as a numpy array, once all work on them is done."""
        return np.asarray(array.get())
