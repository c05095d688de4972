"""What tests of kernels share."""

from itertools import pairwise

import numpy as np
import pytest

from featstore.backend import gpu_available, to_host
from featstore.kernels.softmax import softmax_loss


@pytest.fixture(params=["host", "backwards", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where raw kernels run: on the host, there with later threads first, and on a GPU."""
    if request.param == "cuda":
        if not gpu_available():
            pytest.skip("no GPU")
        return None
    found = request.getfixturevalue("gpu")
    found.backwards = request.param == "backwards"
    return found


def problem(n=200, d=12, c=4, scale=0.6):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % c)
    return rng.normal(size=(c, d))[labels] * scale + rng.normal(size=(n, d)) + 0.5, labels


def evaluate(weight, features, labels, xp, cuts=()):
    """What a caller of the fit does: the kernel over blocks, summed on the host."""
    loss, gradient = 0.0, np.zeros_like(weight)
    edges = [0, *cuts, len(features)]
    for a, b in pairwise(edges):
        block = (xp.asarray(array) for array in (weight, features[a:b], labels[a:b]))
        part = softmax_loss(*block, xp=xp)
        loss, gradient = loss + float(part[0]), gradient + to_host(part[1])
    return loss, gradient
