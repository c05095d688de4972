"""Scores that train nothing, as protocols: the kernels have tests of their own."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

import featstore
from featstore import probes
from featstore.errors import NotApplicableError
from featstore.kernels import transferability
from featstore.kernels.ridge import gram_block
from featstore.probes.scores import STATISTICS

from .conftest import make_data, make_task
from .test_prototypes import run


def test_every_statistic_is_a_protocol_of_the_set_free():
    assert {p.statistic for p in probes.PROTOCOLS.values() if p.kind == "statistic"} == set(
        STATISTICS
    )
    assert set(probes.expand(["free"])) == {
        *(name.replace("_", "-") for name in STATISTICS), "retrieval", "kmeans",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("logme", transferability.log_evidence),
        ("hscore", transferability.h_score),
        ("label-cka", transferability.label_alignment),
        ("rankme", transferability.rank_me),
        ("participation-ratio", transferability.participation_ratio),
    ],
)
def test_statistics_of_sums_are_the_kernels_on_all_train_rows(data, name, expected):
    x, y, z, t = data
    import array_api_compat.numpy as xp

    whole = gram_block(x.astype(np.float64), y, n_categories=4, xp=xp)
    found = run(name, make_task(x, y, z, t, train_edges=(17, 100))).metrics
    (ends,) = found.values()
    assert ends["value"] == pytest.approx(expected(whole, xp=xp))
    assert (ends["low"], ends["high"]) == (None, None)


@pytest.mark.parametrize("name", ["transrate", "gbc", "nleep"])
def test_statistics_of_rows_look_at_some_where_there_are_many(data, name):
    x, y, z, t = data
    value = [
        run(f"{name}+most_rows={most}", make_task(x, y, z, t, train_edges=(17,))).metrics
        for most in (0, 500, 60)
    ]
    assert value[0] == value[1] != value[2]
    kernel = {
        "transrate": transferability.coding_gain,
        "gbc": transferability.bhattacharyya_overlap,
        "nleep": lambda x, y: transferability.mixture_leep(x, y, n_categories=4),
    }[name]
    assert value[0][name]["value"] == pytest.approx(kernel(x.astype(np.float64), y))


@pytest.mark.parametrize("name", ["gbc", "nleep", "label-cka", "participation-ratio"])
@pytest.mark.parametrize("value", [0.1, 0.0])
def test_scores_of_spread_do_not_apply_where_there_is_none(data, name, value):
    x, y, z, t = data
    constant = np.full_like(x, value)
    with pytest.raises(NotApplicableError, match=f"{name} needs features that vary, and all train"):
        run(name, make_task(constant, y, z, t))
    with pytest.raises(NotApplicableError, match="all train rows are equal"):
        featstore.score(constant, y, z, t, protocol=name)


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_a_statistic_that_is_no_number_is_none(data, scale):
    x, y, z, t = data
    task = make_task(x * np.float64(scale), y, z, t)
    with (
        pytest.raises(NotApplicableError, match="participation-ratio is nan for these features"),
        np.errstate(all="ignore"),
    ):
        run("participation-ratio", task)


def test_rankme_needs_a_feature_that_is_not_0(data):
    x, y, z, t = data
    with pytest.raises(probes.ProbeError, match="rankme: features must not all be 0, and they are"):
        run("rankme", make_task(x * 0, y, z, t))


def test_alpha_req_needs_enough_directions(data):
    with pytest.raises(probes.ProbeError, match=r"alpha-ReQ needs eigenvalues 11\.\.13"):
        run("alpha-req", make_task(*data))
    wide = make_data(width=40)
    assert np.isfinite(run("alpha-req", make_task(*wide)).metrics["alpha_req"]["value"])


def test_retrieval_is_average_precision_within_the_list(data):
    x, y, z, t = data
    measured = run("retrieval", make_task(x, y, z, t, train_edges=(50,), test_edges=(20,)))
    similarity = cosine_similarity(z.astype(np.float64), x.astype(np.float64))
    expected = []
    for row, label in zip(similarity, t, strict=True):
        near = np.argsort(-row, kind="stable")[:100]
        hits = y[near] == label
        # scikit-learn divides by the hits it sees, the protocol by those that there could be
        precision = average_precision_score(hits, -np.arange(100)) if hits.any() else 0.0
        expected.append(precision * hits.sum() / min(100, (y == label).sum()))
    np.testing.assert_allclose(measured.outcomes["average_precision"], expected, atol=1e-6)
    assert measured.metrics["map"]["value"] == pytest.approx(np.mean(expected))
    first = y[similarity.argmax(axis=1)] == t
    assert measured.metrics["recall1"]["value"] == pytest.approx(first.mean())
    assert measured.metrics["recall10"]["value"] >= measured.metrics["recall5"]["value"]


def test_retrieval_reads_the_lists_of_knn(data, monkeypatch):
    searched = []
    real = probes.neighbour_lists.search

    def counted(bank, queries, **options):
        searched.append(options["k"])
        return real(bank, queries, **options)

    monkeypatch.setattr(probes.neighbour_lists, "search", counted)
    names = ["retrieval", "knn-dino-k200", "knn-dino-k10"]
    list(probes.run([probes.get(n) for n in names], make_task(*data)))
    assert searched == [200]


def test_kmeans_is_scikit_learns_agreement(data):
    x, y, z, t = data
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    clusters = KMeans(4, n_init=10, random_state=1).fit_predict(unit)
    expected = adjusted_mutual_info_score(t, clusters)
    found = run("kmeans", make_task(x, y, z, t, seed=1, test_edges=(33,)))
    assert found.metrics["ami"]["value"] == pytest.approx(expected, abs=1e-6)
