"""Inner products of chosen pairs of rows on a CPU; nothing is gathered into memory."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor


def pair_dots(left: Tensor, right: Tensor, starts: Tensor, places: Tensor) -> Tensor:
    """(p,) products of rows of `left` with rows of `right`, each of its own two rows alone.

    Parameters
    ----------
    left, right : (m, d) and (n, d), of one floating dtype
    starts : (m + 1,) int64, where in `places` each row of `left` begins
    places : (p,) int64 rows of `right`
    """
    _heard_of_sparse()
    wanted = torch.sparse_csr_tensor(
        starts,
        places,
        torch.zeros(len(places), dtype=left.dtype),
        size=(len(left), len(right)),
        check_invariants=False,
    )
    found: Tensor = torch.sparse.sampled_addmm(wanted, left, right.T, beta=0.0).values()
    return found


@cache
def _heard_of_sparse() -> None:
    """Lets torch say, once and unheard, that its sparse matrices are in beta."""
    with warnings.catch_warnings():
        # Their interface may change, which the tests would show; there is nothing to do about it.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        torch.sparse_csr_tensor([0], [], [], size=(0, 1), check_invariants=False)
