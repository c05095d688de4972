"""Whole banks: every screen, degenerate data, any division, bounded memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from featstore.kernels import screens, search
from featstore.kernels.screens import SCREENS
from featstore.kernels.search import Bank

METRICS = ("euclidean", "cosine", "inner")
THREADS = torch.get_num_threads()
KINDS = {  # of size: dtype, and factors of bank and queries
    "one row of 1e25": (np.float32, np.where(np.arange(1500) == 7, 1e25, 1), 1),
    "one query of 1e25": (np.float32, 1, np.where(np.arange(12) == 3, 1e25, 1)),
    "all of 1e20": (np.float32, 1e20, 1e20),
    "all of 1e-30": (np.float32, 1e-30, 1e-30),
    "all of 1e-40": (np.float32, 1e-40, 1e-40),
    "all of 1e50": (np.float64, 1e50, 1e50),
    "all of 1e140": (np.float64, 1e140, 1e140),
    "all of 1e-140": (np.float64, 1e-140, 1e-140),
    "1e-90 and 1e90": (np.float64, np.where(np.arange(1500) % 2, 1e-90, 1e90), 1e-90),
    "all of other sizes": (np.float32, 10.0 ** np.linspace(-30, 30, 1500), 1e-3),
}


def brute_force(bank, queries, metric):
    """Distances or similarities of all pairs in double precision, by SciPy or NumPy."""
    bank, queries = bank.astype(float), queries.astype(float)
    if metric == "euclidean":
        return cdist(queries, bank)
    if metric == "cosine":
        return 1 - cdist(queries, bank, "cosine")
    return np.einsum("qd,nd->qn", queries, bank)


def check(found, bank, queries, k, metric, exact=False):
    """Values are the best ones; and no row left out is better than one that is in."""
    value, index = found
    every = brute_force(bank, queries, metric)
    key = every if metric == "euclidean" else -every
    order = np.argsort(key, axis=1, kind="stable")[:, :k]
    if exact:
        np.testing.assert_array_equal(index, order)
    size = np.abs(every).max() if metric == "inner" else 1
    np.testing.assert_allclose(
        value, np.take_along_axis(every, order, 1), rtol=1e-9, atol=1e-12 * size
    )
    np.testing.assert_allclose(
        np.take_along_axis(every, index, 1), value, rtol=1e-9, atol=1e-12 * size
    )
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.fixture(params=sorted(SCREENS))
def screen(request):
    made = SCREENS[request.param]()
    if not screens._is_right(made):
        pytest.skip(f"this processor's or torch's product of {request.param} is not exact")
    return made


def blobs(n, d, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(7, d))
    return (centres[rng.integers(0, 7, n)] + rng.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_screen_finds_what_brute_force_finds(screen, metric, dtype):
    bank, queries = blobs(3000, 40, dtype=dtype), blobs(211, 40, seed=1, dtype=dtype)
    found = search.search(Bank.of_array(bank, metric, screen=screen), queries, k=50)
    check(found, bank, queries, 50, metric, exact=True)


@pytest.mark.parametrize("metric", METRICS)
def test_far_from_the_origin_nothing_is_lost(screen, metric):
    # Massive activations: a few features that are large for every row alike.
    bank, queries = blobs(2000, 24, dtype=np.float64), blobs(60, 24, seed=1, dtype=np.float64)
    for rows in (bank, queries):
        rows[:, 3] += 4000
        rows[:, 5] *= 30
    found = search.search(Bank.of_array(bank, metric, screen=screen), queries, k=20)
    check(found, bank, queries, 20, metric)


def half_an_ulp_above(n, d, seed):
    """Unit-sized numbers just above the middle of two bfloat16, where rounding loses most."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(n, d)).astype(np.float32)).bfloat16().float().numpy()
    return (rows * np.float32(1 + 2.0**-8 + 2.0**-16)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "kind", ["all equal", "most tied", "duplicates", "half an ulp", "sorted", "one feature"]
)
@pytest.mark.parametrize("large", [False, True])  # threads share queries, or blocks of the bank
def test_degenerate_banks_stay_exact_and_within_memory(screen, metric, kind, large, monkeypatch):
    monkeypatch.setattr(search, "_KEPT", 0 if large else 2**28)
    monkeypatch.setattr(search, "_PAIRS", 20_000)
    monkeypatch.setattr(search, "_SAMPLE", 256)
    rng = np.random.default_rng(2)
    d = 1 if kind == "one feature" else 16
    bank = blobs(2500, d)
    queries = blobs(40, d, seed=3)
    if kind == "all equal":
        bank[:] = bank[0]
    elif kind == "most tied":
        bank[rng.random(2500) < 0.9] = bank[0]
        queries[:20] = bank[0]
    elif kind == "duplicates":
        bank = bank[:10][np.sort(rng.integers(0, 10, 2500))]
        queries[:10] = bank[::250]
    elif kind == "half an ulp":
        bank, queries = half_an_ulp_above(2500, d, 4), half_an_ulp_above(40, d, 5)
    elif kind == "sorted":
        bank = bank[np.argsort(bank[:, 0])]
        queries[:20, 0] += 5
    kept = []
    counted = search.by_query
    monkeypatch.setattr(
        search,
        "by_query",
        lambda of, *more: (kept.append(sum(map(len, of))), counted(of, *more))[1],
    )
    value, index = search.search(Bank.of_array(bank, metric, screen=screen), queries, k=30)
    check((value, index), bank, queries, 30, metric)
    assert max(kept) <= 20_000 + (THREADS if large else 1) * search._TILE * len(queries)
    if kind == "all equal":
        np.testing.assert_array_equal(index, np.tile(np.arange(30), (40, 1)))
    tied = np.diff(value, axis=1) == 0
    assert (np.diff(index, axis=1)[tied] > 0).all()  # ties by lower row, always


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 300),
    q=st.integers(1, 20),
    d=st.integers(1, 40),
    k=st.integers(1, 310),
    metric=st.sampled_from(METRICS),
    name=st.sampled_from(sorted(SCREENS)),
    integers=st.booleans(),
    tile=st.sampled_from([7, 64, 1024]),
    keep=st.booleans(),
    large=st.booleans(),
)
def test_no_division_order_or_screen_changes_a_bit(
    seed, n, q, d, k, metric, name, integers, tile, keep, large
):
    made = SCREENS[name]()
    if not screens._is_right(made):
        return
    rng = np.random.default_rng(seed)
    draw = (lambda *s: rng.integers(1, 4, s)) if integers else (lambda *s: rng.normal(size=s))
    bank, queries = draw(n, d).astype(np.float32), draw(q, d).astype(np.float32)
    plain = search.search(Bank.of_array(bank, metric, screen=SCREENS["float32"]()), queries, k=k)
    before = search._TILE, search._SAMPLE, search._QUERIES, search._KEPT
    search._TILE, search._SAMPLE, search._QUERIES = tile, 50, 5
    search._KEPT = 0 if large else 2**28
    try:
        sizes = [len(part) for part in np.array_split(bank, min(n, 3))]
        edges = np.cumsum([0, *sizes])
        whole = Bank(sizes, lambda i: bank[edges[i] : edges[i + 1]], metric, keep=keep, screen=made)
        shuffled = rng.permutation(q)
        first = search.search(whole, queries[shuffled], k=k)
        again = search.search(whole, queries, k=k)  # of what was kept
    finally:
        search._TILE, search._SAMPLE, search._QUERIES, search._KEPT = before
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(plain, first, strict=True):
        np.testing.assert_array_equal(one[shuffled], other)


def test_rows_of_the_bank_may_come_in_any_order():
    bank, queries = blobs(2000, 20), blobs(50, 20, seed=1)
    value, index = search.search(Bank.of_array(bank, "inner"), queries, k=25)
    order = np.random.default_rng(0).permutation(2000)
    shuffled = search.search(Bank.of_array(bank[order], "inner"), queries, k=25)
    np.testing.assert_array_equal(shuffled[0], value)
    np.testing.assert_array_equal(order[shuffled[1]], index)


def test_a_wrong_guess_is_noticed_and_made_good(screen, monkeypatch):
    bank, queries = blobs(3000, 16), blobs(64, 16, seed=1)
    honest = search._guess
    calls = []

    def wrong(bank, coded, k, wider):
        calls.append(wider)
        guess = honest(bank, coded, k, wider)
        return guess + (1e3 if wider == 1 else 1.0 if wider == 8 else 0.0)

    monkeypatch.setattr(search, "_guess", wrong)
    found = search.search(Bank.of_array(bank, "inner", screen=screen), queries, k=30)
    check(found, bank, queries, 30, "inner", exact=True)
    assert set(calls) >= {1, 8}


def test_bounds_hold_and_are_not_idle(screen):
    rng = np.random.default_rng(6)
    for rows in (
        rng.normal(size=(300, 96)),
        half_an_ulp_above(300, 96, 7),
        rng.standard_cauchy((300, 96)),
    ):
        rows = np.asarray(rows, dtype=np.float32)
        offset = rng.normal(size=200)
        queries, tile = screen.queries(rows[200:]), screen.tile(rows[:200], offset)
        found = screens.floats(screen.scores(queries, tile, {})).astype(float)
        exact = rows[200:].astype(float) @ rows[:200].astype(float).T + offset
        lift = screen.lift(queries, tile)
        output = 0 if screen.name == "float32" else 2.0**-8 * np.abs(found)
        off = found - lift - exact
        bound = screen.bound(queries, tile)[:, None] + output
        assert (off <= bound).all()
        assert (off >= -bound - lift).all()
        if np.abs(rows).max() < 100:  # else a few rows set the bound of all
            assert np.abs(off).max() > 1e-3 * (bound + lift).max()


def test_scores_are_compared_on_the_safe_side():
    rng = np.random.default_rng(8)
    exact = np.sort(rng.normal(size=(6, 400)), axis=1)
    least = np.array([-2.0, -0.5, 0.0, 1e-3, 0.7, 5.0])
    rounded = torch.from_numpy(exact).bfloat16().view(torch.int16).numpy()
    for scores in (exact.astype(np.float32), rounded):
        kept = np.zeros(exact.size, bool)
        kept[screens.above(scores, least, {})] = True
        kept = kept.reshape(exact.shape)
        assert kept[exact >= least[:, None]].all()
        assert not kept[exact < (least - 0.02 * np.abs(least) - 1e-6)[:, None]].any()


def test_threads_are_given_back():
    before = torch.get_num_threads()
    search.search(Bank.of_array(blobs(500, 8), "inner"), blobs(20, 8, seed=1), k=3)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("metric", METRICS)
def test_a_large_common_part_of_single_precision_rows_loses_no_neighbour(screen, metric):
    # The offset that an inner product has of the centre is a sum of terms that cancel.
    rng = np.random.default_rng(12)
    common = rng.choice([-1.0, 1.0], 32) * 3000
    bank = (common + rng.normal(size=(3000, 32))).astype(np.float32)
    queries = (common + rng.normal(size=(50, 32))).astype(np.float32)
    found = search.search(Bank.of_array(bank, metric, screen=screen), queries, k=25)
    check(found, bank, queries, 25, metric)


def best_of_all(bank, queries, k, metric):
    """Values and rows of brute force in extended precision, which has a range of its own."""
    x, y = bank.astype(np.longdouble), queries.astype(np.longdouble)
    products = (y[:, None] * x).sum(axis=2)
    if metric == "euclidean":
        every = np.sqrt(((y[:, None] - x) ** 2).sum(axis=2))
    elif metric == "cosine":
        norms = (np.sqrt((one**2).sum(axis=1)) for one in (x, y))
        every = products / next(norms) / next(norms)[:, None]
    else:
        every = products
    order = np.argsort(every if metric == "euclidean" else -every, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(every, order, axis=1), order


def sized(kind):
    """(1500, 16) bank and (12, 16) queries."""
    rng = np.random.default_rng(14)
    dtype, factor, other = KINDS[kind]
    bank = rng.normal(size=(1500, 16)) * np.reshape(factor, (-1, 1))
    queries = rng.normal(size=(12, 16)) * np.reshape(other, (-1, 1))
    return bank.astype(dtype), queries.astype(dtype)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", [100, 4096])  # the rows that stand out are in it, or are not
def test_neither_large_nor_small_numbers_lose_a_neighbour(
    screen, metric, kind, sample, monkeypatch
):
    monkeypatch.setattr(search, "_SAMPLE", sample)
    bank, queries = sized(kind)
    value, index = search.search(Bank.of_array(bank, metric, screen=screen), queries, k=5)
    expected = best_of_all(bank, queries, 5, metric)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(value, expected[0].astype(float), rtol=1e-9)


def test_a_bank_that_is_kept_serves_queries_of_another_size(screen):
    bank, queries = sized("one query of 1e25")
    kept = Bank.of_array(bank, "inner", screen=screen, keep=True)
    for factor in (1, 1e10, 1e-10):
        some = (queries * factor).astype(np.float32)
        _, index = search.search(kept, some, k=5)
        np.testing.assert_array_equal(index, best_of_all(bank, some, 5, "inner")[1])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("metric", METRICS)
def test_rows_whose_squares_overflow_are_refused_by_number(screen, metric, wrong, monkeypatch):
    monkeypatch.setattr(search, "_TILE", 40)
    for sample in (20, 4096):
        monkeypatch.setattr(search, "_SAMPLE", sample)
        bank, queries = blobs(200, 8, dtype=np.float64), blobs(9, 8, seed=1, dtype=np.float64)
        queries[6, 2] = wrong
        with pytest.raises(ValueError, match=r"queries must be finite and lie within .* row 6"):
            search.search(Bank.of_array(bank, metric, screen=screen), queries, k=3)
        queries[6, 2], bank[143, 5] = 1, wrong
        with pytest.raises(ValueError, match=r"the bank must be finite and lie within .* row 143"):
            search.search(Bank.of_array(bank, metric, screen=screen), queries, k=3)
    assert torch.get_num_threads() == THREADS


def test_a_bank_that_changes_as_it_is_read_gives_no_placeholder():
    rows = blobs(64, 4)
    reads = []

    def read(i):
        reads.append(i)
        return rows if len(reads) < 3 else rows * np.float32(np.nan)

    with pytest.raises(ValueError, match="finite"):
        search.search(Bank([64], read, "inner", screen=SCREENS["float32"]()), rows[:5], k=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "cos"}, "metric must be one of euclidean, cosine, inner, got 'cos'"),
        ({"k": 0}, "k must be at least 1, got 0"),
        (
            {"queries": np.zeros((2, 3), np.float32)},
            "queries must be as wide as the bank, 4, got 3",
        ),
        (
            {"queries": np.zeros(4)},
            r"queries must be a floating array \(n, d\), got float64 \(4,\)",
        ),
        ({"queries": [[0.0]]}, r"queries must be a floating array \(n, d\), got list"),
        ({"rows": np.zeros((3, 4), complex)}, r"rows must be .*, got complex128 \(3, 4\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    options = {"rows": blobs(30, 4), "queries": blobs(2, 4), "metric": "inner", "k": 2} | change
    with pytest.raises(ValueError, match=message):
        search.search(
            Bank.of_array(options["rows"], options["metric"]), options["queries"], k=options["k"]
        )


def test_an_empty_bank_has_no_neighbours():
    value, index = search.search(Bank.of_array(np.zeros((0, 4)), "inner"), blobs(2, 4), k=3)
    assert value.shape == index.shape == (2, 0)
