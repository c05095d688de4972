import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from featstore.backend import to_host
from featstore.kernels import cuda_neighbours
from featstore.kernels.cuda_neighbours import METRICS, nearest_cuda, plan_sizes
from featstore.kernels.streamed_search import LAST_ROW


def reference(bank, queries, k, metric):
    """Brute force over all pairs in float64."""
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    if metric == "inner":
        value = np.einsum("qd,nd->qn", queries, bank)
    elif metric == "cosine":
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(bank, axis=1)
        product = np.einsum("qd,nd->qn", queries, bank)
        value = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    else:
        value = cdist(queries, bank)
    order = np.argsort(value if metric == "euclidean" else -value, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(value, order, axis=1), order


def found(bank, queries, **options):
    value, index = nearest_cuda(bank, queries, **options)
    assert value.dtype == np.float64
    assert index.dtype == np.int64
    return to_host(value), to_host(index)


def lattice(rng, n, width, distinct):
    """Rows of small integers drawn from few distinct ones: exact values, many ties."""
    return rng.integers(-2, 3, size=(distinct, width))[rng.integers(0, distinct, n)].astype("f")


def small_tiles(monkeypatch, tile_rows=136, query_rows=8):
    monkeypatch.setattr(cuda_neighbours, "_TILE_ROWS", tile_rows)
    monkeypatch.setattr(cuda_neighbours, "_QUERY_ROWS", query_rows)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [8, 35])
def test_continuous_data_agree_with_brute_force(device, metric, dtype, width, monkeypatch):
    small_tiles(monkeypatch)
    rng = np.random.default_rng(width)
    bank = rng.normal(size=(500, width)).astype(dtype) + dtype(0.5)
    queries = rng.normal(size=(11, width)).astype(dtype)
    value, index = found(bank, queries, k=9, metric=metric, device=device, first=1000)
    expected = reference(bank, queries, 9, metric)
    np.testing.assert_array_equal(index, expected[1] + 1000)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("metric", ["inner", "euclidean"])
@pytest.mark.parametrize("k", [1, 6, 40])
def test_ties_go_to_the_lower_row(device, metric, k, monkeypatch):
    small_tiles(monkeypatch)
    rng = np.random.default_rng(1)
    bank, queries = lattice(rng, 420, 6, 40), lattice(rng, 9, 6, 12)
    value, index = found(bank, queries, k=k, metric=metric, device=device)
    expected = reference(bank, queries, k, metric)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_array_equal(value, expected[0])


@pytest.mark.parametrize("kind", ["sorted", "equal", "near", "far"])
def test_rows_in_the_worst_order_are_searched_for_again(gpu, kind, monkeypatch):
    """Where early thresholds mislead, or a whole tile survives, nothing is lost."""
    small_tiles(monkeypatch, tile_rows=1600, query_rows=4)
    monkeypatch.setattr(cuda_neighbours, "_SORTED", (256, 4096))
    rng = np.random.default_rng(2)
    n, k = 3000, 40
    queries = rng.normal(size=(3, 16)).astype("f")
    bank = rng.normal(size=(n, 16)).astype("f")
    if kind == "equal":  # more rows survive than there is room for, of one tile
        bank[:] = bank[0]
    elif kind != "sorted":
        away = 1e-6 * np.arange(n)[:: -1 if kind == "near" else 1, None]
        bank = (queries[:1] + away * np.sign(bank)).astype(np.float64)
        queries = queries.astype(np.float64)
    else:  # the best come first, so that what is seen early promises more than there is
        bank = bank[np.argsort(cdist(queries[:1], bank)[0])]
    value, index = found(bank, queries, k=k, metric="euclidean", device=gpu)
    expected = reference(bank, queries, k, "euclidean")
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(value, expected[0], rtol=1e-9)
    passes = sum(name.startswith("measure") for name in gpu.launched) / 2
    if kind != "far":
        assert passes > 1.5  # else this tests nothing


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 400),
    k=st.integers(1, 60),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    spacing=st.sampled_from([0.0, 1e-9, 1.0]),
    offset=st.sampled_from([0.0, 1e3]),
    tile_rows=st.integers(1, 20),
    query_rows=st.integers(1, 6),
    noisy=st.booleans(),
)
def test_no_division_changes_a_bit(
    gpu, seed, n, k, metric, dtype, spacing, offset, tile_rows, query_rows, noisy, monkeypatch
):
    """Nor does the product's error, as long as it keeps to its bound."""
    rng = np.random.default_rng(seed)
    bank = (lattice(rng, n, 11, 9) + spacing * rng.normal(size=(n, 11)) + offset).astype(dtype)
    queries = np.concatenate((lattice(rng, 5, 11, 9) + offset, bank[:3])).astype(dtype)
    options = {"k": k, "metric": metric, "device": gpu}
    gpu.noise = None
    whole = found(bank, queries, **options)
    gpu.noise = rng if noisy else None
    with monkeypatch.context() as changed:
        small_tiles(changed, tile_rows=8 * tile_rows, query_rows=query_rows)
        parts = found(bank, queries, **options)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_array_equal(parts[0], whole[0])
    assert (whole[1] < n).all()
    expected = reference(bank, queries, k, metric)[0]
    np.testing.assert_allclose(whole[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exponent", [-140, -60, -20, 60, 100])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # cupy does not warn
def test_rows_far_from_the_range_of_float16(gpu, metric, exponent):
    """Halves cannot say what these are, so that they survive the screen."""
    rng = np.random.default_rng(3)
    bank = rng.normal(size=(200, 9)) * 2.0 ** rng.integers(-9, 9, size=(200, 1))
    bank[::2] *= 2.0**exponent
    bank[7] = 0
    queries = rng.normal(size=(4, 9)) * np.array([[1.0], [2.0**-80], [2.0**80], [1.0]])
    value, index = found(bank, queries, k=6, metric=metric, device=gpu)
    expected = reference(bank, queries, 6, metric)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(np.sort(index), np.sort(expected[1]))


@pytest.mark.parametrize("metric", METRICS)
def test_copies_that_lack_half_a_unit_everywhere_are_within_the_bound(gpu, metric):
    rng = np.random.default_rng(5)
    ulp = 2.0**-10
    bank = 1 + ulp * (rng.integers(0, 40, size=(700, 24)) + 0.5)  # in the middle of two halves
    queries = 1 + ulp * (rng.integers(0, 40, size=(5, 24)) + 0.5)
    gpu.noise = rng
    value, index = found(bank, queries, k=8, metric=metric, device=gpu)
    expected = reference(bank, queries, 8, metric)
    np.testing.assert_allclose(value, expected[0], rtol=1e-13)
    if metric != "inner":  # whose products tie
        np.testing.assert_array_equal(index, expected[1])


def test_memory_divides_queries_and_tiles_and_changes_no_bit(gpu):
    rng = np.random.default_rng(4)
    bank, queries = rng.normal(size=(600, 24)).astype("f"), rng.normal(size=(300, 24)).astype("f")
    whole = found(bank, queries, k=3, metric="cosine", device=gpu)
    before = len(gpu.products)
    parts = found(bank, queries, k=3, metric="cosine", device=gpu, memory=4_000_000)
    assert len(gpu.products) - before > before
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_array_equal(parts[0], whole[0])
    with pytest.raises(ValueError, match="memory of 1000 bytes is too small to search 600 rows"):
        found(bank, queries, k=3, metric="cosine", device=gpu, memory=1000)


@settings(deadline=None)
@given(
    rows=st.integers(1, 2 * 10**6),
    width=st.integers(1, 5000),
    queries=st.integers(1, 10**5),
    k=st.integers(1, 2048),
    itemsize=st.sampled_from([2, 4, 8]),
    memory=st.integers(2**26, 2**36),
)
def test_a_plan_keeps_within_memory(rows, width, queries, k, itemsize, memory):
    try:
        plan = plan_sizes((rows, width), queries, k=k, itemsize=itemsize, memory=memory)
    except ValueError:
        assert memory < 2**30 + 16 * queries * k  # of which the answer takes the second
        return
    assert plan.bytes <= memory
    assert plan.tile_rows % 8 == plan.stride % 8 == 0
    assert 1 <= plan.query_rows <= plan.queries <= queries
    assert 2 * k <= plan.sorted <= 4096
    assert plan.stride - 8 < width <= plan.stride


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (0, 0)])
def test_no_rows_give_empty_lists(gpu, shape):
    n, q = shape
    value, index = found(np.zeros((n, 3)), np.zeros((q, 3)), k=2, metric="cosine", device=gpu)
    assert value.shape == index.shape == (q, min(n, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_values_that_are_not_finite_are_refused(gpu, bad):
    rows = np.ones((30, 4), np.float16)
    spoilt = rows.copy()
    spoilt[20, 2] = bad
    with pytest.raises(ValueError, match="rows of the bank must be finite"):
        nearest_cuda(spoilt, rows, k=2, metric="inner", device=gpu)
    with pytest.raises(ValueError, match="queries must be finite"):
        nearest_cuda(rows, spoilt, k=2, metric="inner", device=gpu)


def test_wrong_options_are_refused():
    rows = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"k must lie in 1..2048 on a GPU, got 0"):
        nearest_cuda(rows, rows, k=0, metric="inner")
    with pytest.raises(ValueError, match="metric must be one of inner, cosine, euclidean"):
        nearest_cuda(rows, rows, k=1, metric="l1")
    with pytest.raises(ValueError, match="rows of width 3, queries of 4"):
        nearest_cuda(rows, np.zeros((2, 4)), k=1, metric="inner")


def test_a_gpu_finds_what_brute_force_finds_in_an_array_of_its_own(device):
    rng = np.random.default_rng(6)
    bank, queries = rng.normal(size=(2, 300, 16)).astype("f2")
    there = bank if device else pytest.importorskip("cupy").asarray(bank)
    value, index = found(there, queries, k=20, metric="cosine", device=device)
    expected = reference(bank, queries, 20, "cosine")
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(value, expected[0], rtol=1e-12, atol=1e-13)
    assert LAST_ROW not in index
