import subprocess
import sys
import time

import numpy as np
import pytest

from featstore.backend import gpu_available
from featstore.cuda import READERS, Cuda
from featstore.kernels.cuda_neighbours import nearest_cuda


@pytest.fixture
def cuda():
    if not gpu_available():
        pytest.skip("no GPU")
    return Cuda()


def test_importing_it_imports_no_cupy():
    code = "import sys, featstore.cuda; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["nt", "tn"])
@pytest.mark.parametrize("depth", [64, 4096])
def test_products_keep_to_the_bound_that_the_screen_counts_on(cuda, form, depth):
    rng = np.random.default_rng(0)
    shapes = {"nt": ((40, depth), (56, depth)), "tn": ((depth, 40), (depth, 56))}
    a, b = (np.abs(rng.normal(size=shape)).astype(np.float16) for shape in shapes[form])
    out = cuda.xp.full((40, 72), 7, dtype=np.float32)
    left, right = cuda.xp.asarray(a), cuda.xp.asarray(b)
    cuda.product(left, right, out[:, :56], form=form, scale=0.5)
    cuda.product(left, right, out[:, :56], form=form, scale=0.5, add=True)
    a, b = a.astype(np.float64), b.astype(np.float64)
    expected = a @ b.T if form == "nt" else a.T @ b
    axis = 1 if form == "nt" else 0
    lengths = np.linalg.norm(a, axis=axis)[:, None] * np.linalg.norm(b, axis=axis)
    error = np.abs(out.get()[:, :56] - expected)
    assert (error <= 4 * (depth + 64) * 2.0**-24 * lengths).all()
    np.testing.assert_array_equal(out.get()[:, 56:], 7)


@pytest.mark.gpu
def test_staged_rows_are_those_that_were_read_whichever_is_slower(cuda):
    rows = np.arange(64 * 3000, dtype=np.float32).reshape(3000, 64)
    spans = [(i, min(i + 200, 3000)) for i in range(0, 3000, 200)]
    assert len(spans) > 2 * READERS

    def fill(start, stop, out):
        time.sleep(0.01 * (start // 200 % 3))
        out[...] = rows[start:stop]

    large = cuda.xp.ones((2048, 2048), dtype=np.float32)
    found = []
    for block in cuda.stage(fill, spans, (200, 64), np.float32):
        large = large @ large / 2048  # so that the copy would be early
        found.append(block.copy())
    np.testing.assert_array_equal(cuda.xp.concatenate(found).get(), rows)


@pytest.mark.gpu
def test_what_reading_raises_leaves_the_stage(cuda):
    def fill(start, stop, out):
        raise OSError("no such chunk")

    with pytest.raises(OSError, match="no such chunk"):
        list(cuda.stage(fill, [(0, 8)], (8, 8), np.float32))


@pytest.mark.gpu
def test_a_search_keeps_within_its_memory(cuda):
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(200_000, 256)).astype(np.float16)
    memory, pool = 2**27, cuda.xp.cuda.MemoryPool()
    with cuda.xp.cuda.using_allocator(pool.malloc):
        nearest_cuda(bank, bank[:5000], k=20, metric="cosine", memory=memory)
    assert pool.total_bytes() < 1.25 * memory  # the pool rounds up, and keeps what has no use now
