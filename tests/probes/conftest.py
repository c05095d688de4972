from itertools import pairwise

import numpy as np
import pytest

from featstore.backend import namespace
from featstore.blocks import ArrayBlock
from featstore.probes import Data, Task


def make_data(seed=0, *, n_train=240, n_test=150, width=12, n_categories=4, spread=1.3):
    """Overlapping Gaussian classes, off centre and of unequal scales."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_categories, width)) * 1.5 + 3
    scales = np.exp(rng.normal(size=width))
    parts = []
    for n in (n_train, n_test):
        labels = rng.permutation(np.arange(n) % n_categories)
        x = (centres[labels] + rng.normal(size=(n, width)) * spread) * scales
        parts += [x.astype(np.float32), labels]
    return parts


def cut(features, labels, edges):
    """The same rows as several blocks."""
    whole = Data.of_arrays(features, labels)
    places = [0, *edges, len(labels)]
    pairs = list(pairwise(places))
    return Data(
        [ArrayBlock(features[a:b], labels[a:b]) for a, b in pairs],
        [b - a for a, b in pairs],
        whole.index,
        whole.labels,
        whole.mean,
        whole.variance,
    )


def make_task(x, y, z, t, *, seed=0, train_edges=(), test_edges=(), **options):
    n_categories = int(max(y.max(), t.max())) + 1
    return Task(
        cut(x, y, train_edges),
        cut(z, t, test_edges),
        n_categories,
        seed,
        namespace("cpu"),
        **options,
    )


@pytest.fixture
def data():
    return make_data()
