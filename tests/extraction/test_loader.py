import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.extraction.loader import batches_of
from featstore.store import row_order


@given(st.integers(0, 500), st.integers(1, 600), st.integers(1, 64))
def test_batches_cover_the_rows_in_order_and_are_even(start, n, batch_size):
    batches = batches_of(range(start, start + n), batch_size)
    assert [row for batch in batches for row in batch] == list(range(start, start + n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-n // batch_size)


@pytest.mark.parametrize("n", [2, 17, 65, 129])
def test_no_batch_of_one_beside_others(n):
    assert n == 1 or min(len(b) for b in batches_of(range(n), 64)) > 1


def test_row_order_is_a_permutation_fixed_by_the_fingerprint():
    order = row_order("ab" * 32, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    np.testing.assert_array_equal(order, row_order("ab" * 32, 1000))
    assert not np.array_equal(order, row_order("ac" * 32, 1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_row_order_never_changes():
    # Written down once: features stored by one version must align with those of the next.
    assert row_order("0123456789abcdef" * 4, 8).tolist() == [3, 5, 4, 6, 7, 2, 0, 1]
