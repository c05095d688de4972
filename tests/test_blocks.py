import operator
from functools import partial

import numpy as np
import psutil
import pytest
from dask.distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from featstore.blocks import ArrayBlock, map_tasks, reduce_blocks
from featstore.errors import FeatStoreError


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
