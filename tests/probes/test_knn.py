"""The kNN probe's weightings, each beside the vote that its formula gives, and those refused."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from featstore import probes
from featstore.probes.knn import KNN

from .conftest import make_data, make_task


def accuracy(task, **settings):
    ((_, measured),) = probes.run([KNN(name="mine", **settings)], task)
    return measured.metrics["top1"]["value"]


@pytest.mark.parametrize(
    ("metric", "weighting", "message"),
    [
        ("euclidean", "softmax", "weighting must be distance or uniform with metric euclidean "),
        ("cosine", "distance", "weighting must be softmax or uniform with metric cosine "),
        ("inner", "distance", "weighting must be softmax or uniform with metric inner "),
        ("cosine", "votes", "weighting must be distance, softmax or uniform, got 'votes'"),
    ],
)
def test_a_weighting_that_favours_the_farthest_is_refused(metric, weighting, message):
    with pytest.raises(ValueError, match=message):
        KNN(name="mine", k=5, metric=metric, weighting=weighting)


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("metric", ["cosine", "inner"])
def test_softmax_is_a_vote_of_exponentials_of_similarity(metric, k, data):
    x, y, z, t = data
    bank, queries = x.astype(float), z.astype(float)
    if metric == "cosine":
        bank, queries = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (bank, queries))
    similarity = queries @ bank.T
    near = np.argsort(-similarity, axis=1)[:, :k]
    total = np.zeros((len(z), t.max() + 1))
    for row, some in enumerate(near):
        odds = np.exp((similarity[row, some] - similarity[row].max()) / 0.3)
        np.add.at(total[row], y[some], odds)
    expected = (total.argmax(axis=1) == t).mean()
    settings = {"metric": metric, "weighting": "softmax", "temperature": 0.3}
    assert accuracy(make_task(x, y, z, t), k=k, **settings) == pytest.approx(expected)


def test_an_exact_hit_takes_the_vote_by_distance(data):
    x, y, _, _ = data
    shown = np.roll(y, 1)  # of the wrong labels, so that neighbours alone would say otherwise
    task = make_task(x, shown, x, shown)
    assert accuracy(task, k=20, weighting="distance") == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_uniform_votes_are_scikit_learns(metric):
    x, y, z, t = make_data()
    model = KNeighborsClassifier(9, algorithm="brute", metric=metric).fit(x, y)
    expected = (model.predict(z) == t).mean()
    task = make_task(x, y, z, t)
    assert accuracy(task, k=9, metric=metric, weighting="uniform") == pytest.approx(expected)
