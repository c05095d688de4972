import operator
import os
import threading
import time
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from dask.distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from featstore.blocks import (
    ArrayBlock,
    cpu_count,
    limit_own_threads,
    limit_threads,
    map_tasks,
    read_rows,
    reduce_blocks,
    stored_blocks,
)
from featstore.errors import FeatStoreError
from featstore.keys import BNMode, FeatureKey, Recipe
from featstore.store import Rows, create


@given(st.lists(st.text(max_size=3), min_size=1, max_size=20), st.booleans())
def test_merges_keep_the_order_of_the_blocks(words, parallel):
    # Joining words is associative and not commutative: any change of order would show.
    found = reduce_blocks(str.upper, words, operator.add, parallel=parallel)
    assert found == "".join(words).upper()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_threads_give_the_same_sum_bit_for_bit(n):
    rng = np.random.default_rng(0)
    blocks = [ArrayBlock(rng.normal(size=(5, 3)), np.zeros(5, int)) for _ in range(n)]

    def total(block):
        return block.read()[0].sum(axis=0)

    one = reduce_blocks(total, blocks, np.add)
    many = reduce_blocks(total, blocks, np.add, parallel=True)
    np.testing.assert_array_equal(one, many)
    np.testing.assert_allclose(one, np.sum([b.features.sum(axis=0) for b in blocks], axis=0))


def test_no_block_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        reduce_blocks(len, [], operator.add)


def power(base, exponent):
    return base**exponent


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes", "local:1"])
def test_tasks_are_all_done_on_every_scheduler(scheduler):
    found = map_tasks(partial(power, exponent=3), [1, 2, 3, 4], scheduler=scheduler)
    assert sorted(found) == [1, 8, 27, 64]


def test_two_at_once_are_no_trouble_and_nobody_else_is_listened_to():
    """As on a machine that two people share: no port is fixed, none is open to the network."""
    listening = []

    def look(value):
        listening.extend(
            c.laddr.ip for p in family() for c in p.net_connections() if c.status == "LISTEN"
        )
        return value

    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:8787", host="127.0.0.1"):
        for _ in map_tasks(abs, [1, 2, 3], scheduler="processes"):
            look(0)
    assert set(listening) == {"127.0.0.1"}


def family():
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def test_a_scheduler_that_does_not_answer_is_named():
    with pytest.raises(FeatStoreError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        list(map_tasks(abs, [1, 2], scheduler="tcp://127.0.0.1:9"))


def threads_in_use():
    """Threads of torch and of each BLAS here."""
    counts = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    return {torch.get_num_threads(), *counts}


def job(shared, _):
    """As a job of a sweep does: who works, and how many threads its libraries have."""
    with limit_own_threads(1) if shared else limit_threads(1):
        time.sleep(0.02)  # so that no worker takes all
        openmp = [i["num_threads"] for i in threadpool_info() if i["user_api"] == "openmp"]
        return (os.getpid(), threading.get_ident()), threads_in_use() | set(openmp)


@pytest.mark.parametrize("scheduler", ["threads", "processes", "local:64"])
def test_workers_and_threads_of_their_libraries_add_up_to_the_cores(scheduler):
    shared = scheduler == "threads"
    with limit_threads(1 if shared else None):
        found = list(map_tasks(partial(job, shared), range(4 * cpu_count()), scheduler=scheduler))
    assert 1 <= len({worker for worker, _ in found}) <= cpu_count()
    assert set.union(*(counts for _, counts in found)) == {1}


def test_kernels_in_threads_have_one_thread_each():
    before = threads_in_use()
    with limit_threads(2):
        found = reduce_blocks(
            lambda _: {(threading.get_ident(), *threads_in_use())},
            range(32), operator.or_, parallel=True,
        )  # fmt: skip
        assert threads_in_use() == {2}
    assert {count for _, *counts in found for count in counts} == {1}
    assert len({worker for worker, *_ in found}) <= 2
    assert threads_in_use() == before


def test_all_rows_at_once_are_those_of_the_blocks(tmp_path):
    split, features, labels = stored(tmp_path)
    more = ArrayBlock(features[:3], labels[:3])
    chunks = stored_blocks(split)
    for blocks in (chunks, chunks[1:], chunks[::-1], [*chunks[:2], more, chunks[2]], [more]):
        x, y = read_rows(blocks)
        np.testing.assert_array_equal(x, np.concatenate([block.read()[0] for block in blocks]))
        np.testing.assert_array_equal(y, np.concatenate([block.read()[1] for block in blocks]))
    x, y = read_rows(chunks)
    np.testing.assert_array_equal(x, np.delete(features, 3, axis=0))
    np.testing.assert_array_equal(y, np.delete(labels, 3))


def stored(root):
    """A split of three chunks, whose fourth sample was skipped."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(25, 6)).astype(np.float32), np.arange(25) % 3
    writer = create(
        root, FeatureKey("m", "d", BNMode.EVAL), "train", Recipe({}),
        Rows([str(i) for i in range(25)], np.arange(25), labels, ["a", "b", "c"]),
        width=6, dtype="float32", codec="none", chunk_rows=10, notes={},
    )  # fmt: skip
    writer.write(0, features, np.arange(25) != 3)
    return writer.split, features, labels
