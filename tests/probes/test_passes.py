"""Passes over rows for logistic regression: as a GPU makes them, and what a fit makes of them."""

from dataclasses import replace

import array_api_compat.numpy
import numpy as np
import pytest

from featstore.errors import ProbeError
from featstore.kernels.logistic import fit_logistic
from featstore.probes import passes
from featstore.probes.rows import JoinedRows, prepared

from .conftest import make_data, make_task


def test_a_slice_over_blocks_reads_those_it_needs():
    whole = np.arange(40.0).reshape(20, 2)
    edges, asked = [0, 1, 1, 9, 16, 20], []

    def read(i):
        asked.append(i)
        return whole[edges[i] : edges[i + 1]]

    rows = JoinedRows(np.diff(edges).tolist(), read, 2)
    assert (rows.shape, rows.dtype) == ((20, 2), np.float64)
    for start in range(20):
        for stop in range(start + 1, 21):
            np.testing.assert_array_equal(rows[start:stop], whole[start:stop])
    assert rows[:0].shape == (0, 2)
    asked.clear()
    assert len(rows[9:16]) == 7
    assert asked == [3]


@pytest.mark.parametrize("normalisation", ["none", "l2", "zscore"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_gpu_sums_over_the_rows_that_blocks_give(gpu, normalisation, dtype, share):
    x, y, z, t = make_data()
    task = make_task(x.astype(dtype), y, z, t, train_edges=(50, 51, 200))
    keep = np.random.default_rng(0).permutation(len(y)) < share * len(y)
    blocks = prepared(task, task.train, normalisation, keep)
    sizes = [len(block.rows) for block in blocks]
    quick, xp = passes.gpu_passes(blocks, sizes, task.train, task, gpu)
    assert xp is array_api_compat.numpy
    assert quick.single == (normalisation == "none" and dtype == np.float16)
    weight = np.random.default_rng(1).normal(size=(13, 4)) * 0.1
    found = quick(weight)
    expected = passes.evaluate(weight, rows=blocks, task=task)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    scale = np.abs(x).mean(axis=0).max() * keep.sum()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5 * scale)
    np.testing.assert_allclose(found[2], expected[2], rtol=5e-3)


def test_memory_of_a_gpu_bounds_its_passes_and_moves_the_solver_to_the_host(gpu):
    x, y, z, t = make_data(width=64, n_categories=8)
    x = x.astype(np.float16)
    namespace = object()
    task = replace(make_task(x, y, z, t), xp=namespace)
    blocks = prepared(task, task.train, "none")
    sizes = [len(y)]
    solver = (passes.SOLVER_ARRAYS + 1) * 8 * 65 * 8

    def within(memory):
        made = replace(task, memory=memory)
        return passes.gpu_passes(blocks, sizes, made.train, made, gpu)

    assert within(4 * solver)[1] is namespace
    assert within(2 * solver)[1] is array_api_compat.numpy
    with pytest.raises(ProbeError, match="memory of 8750 bytes is too small for 8 categories"):
        within(10_000)


def test_a_fit_that_begins_with_fewer_digits_ends_where_one_without_them_does(gpu):
    task = make_task(*make_data())
    blocks = prepared(task, task.train, "zscore")
    quick, xp = passes.gpu_passes(blocks, [len(task.train)], task.train, task, gpu)
    rows = passes.Passes.over(blocks, task.train, task)
    options = {"n_features": 12, "n_categories": 4, "penalty": 0.1, "tolerance": 1e-9}
    expected, alone = fit_logistic(rows.exact, **options, basis=rows.basis)
    found, certificate = fit_logistic(rows.exact, **options, basis=rows.basis, quick=quick, xp=xp)
    assert certificate.converged
    assert certificate.exact
    assert certificate.objective == pytest.approx(alone.objective, rel=2e-9)
    np.testing.assert_allclose(found, expected, atol=1e-3)
