"""The store against numpy: what was written comes back, and nothing else does."""

import gc
import json
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from featstore.errors import CorruptStoreError, MissingFeaturesError, StoreMismatchError
from featstore.keys import BNMode, FeatureKey, Recipe
from featstore.store import Rows, Store, chunk_rows_for, create, parse_codec
from featstore.store.claims import acquire

KEY = FeatureKey("timm:x@cls", "folder:/a b", BNMode.EVAL)


def fill(
    root, *, n=25, width=6, chunk_rows=10, dtype="float16", codec="none", finish=True, chunks=None
):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, width)).astype(np.float32)
    valid = np.ones(n, bool)
    valid[3] = False
    rows = Rows(
        [f"é/{i}.png" for i in range(n)], np.arange(n)[::-1], np.arange(n) % 3, ["a", "b", "c"]
    )
    writer = create(
        root, KEY, "train", Recipe({"weights": "abc"}), rows,
        width=width, dtype=dtype, codec=codec, chunk_rows=chunk_rows, notes={"model": {}},
    )  # fmt: skip
    for chunk in writer.missing() if chunks is None else chunks:
        span = writer.split.span(chunk)
        assert writer.claim(chunk)
        writer.write(chunk, features[span.start : span.stop], valid[span.start : span.stop])
    if finish:
        writer.finish()
    return writer, features, valid


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_was_written_comes_back(tmp_path, dtype, codec):
    _, features, valid = fill(tmp_path, dtype=dtype, codec=codec)
    split = Store(tmp_path).open(KEY)["train"]
    stored = np.concatenate([split.chunk(i) for i in range(3)])
    np.testing.assert_array_equal(stored, features.astype(dtype))
    np.testing.assert_array_equal(split.valid, valid)
    np.testing.assert_array_equal(split.label, np.arange(25) % 3)
    assert split.verify() == []
    used = stored[valid].astype(np.float64)
    np.testing.assert_allclose(split.array("mean"), used.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(split.array("variance"), used.var(axis=0), rtol=1e-12)


def test_lossy_rounding_is_within_its_bits(tmp_path):
    _, features, _ = fill(tmp_path, dtype="float32", codec="bitround:7")
    split = Store(tmp_path).open(KEY)["train"]
    stored = np.concatenate([split.chunk(i) for i in range(3)])
    assert np.abs(stored / features - 1).max() <= 2.0**-8
    assert not np.array_equal(stored, features)
    assert split.verify() == []


def test_uncompressed_chunks_are_raw_c_order_bytes(tmp_path):
    _, features, _ = fill(tmp_path)
    path = Store(tmp_path).open(KEY)["train"].path / "embedding" / "c" / "1" / "0"
    assert path.read_bytes() == features[10:20].astype("<f2").tobytes()


def test_xarray_opens_a_split_without_a_warning(tmp_path):
    _, features, _ = fill(tmp_path)
    split = Store(tmp_path).open(KEY)["train"]
    with xr.open_zarr(split.path) as opened:
        assert dict(opened.sizes) == {"sample": 25, "feature": 6, "chunk": 3}
        assert opened.chunks["sample"] == (10, 10, 5)
        np.testing.assert_array_equal(opened.embedding, features.astype("float16"))
        assert str(opened.sample_id.values[4]) == "é/4.png"
    inside = str(split.path.relative_to(tmp_path))
    with xr.open_zarr(tmp_path, group=inside, consolidated=False) as opened:
        assert opened.attrs["recipe"] == {"weights": "abc"}


def test_other_zarr_tools_can_walk_the_whole_store(tmp_path):
    fill(tmp_path)
    names = [name for name, _ in zarr.open_group(tmp_path, mode="r").members(max_depth=None)]
    assert len([name for name in names if name.endswith("/embedding")]) == 1


def test_a_chunk_of_zeros_counts_as_written(tmp_path):
    rows = Rows(["a", "b"], np.arange(2), np.zeros(2, int), ["x"])
    writer = create(
        tmp_path, KEY, "train", Recipe({}), rows,
        width=3, dtype="float16", codec="none", chunk_rows=1, notes={},
    )  # fmt: skip
    writer.write(0, np.zeros((1, 3)), np.zeros(1, bool))  # Zarr stores no such chunk at all
    assert writer.missing() == [1]


def test_unfinished_features_are_missing_and_say_how_far_they_came(tmp_path):
    fill(tmp_path, finish=False, chunks=[0, 2])
    with pytest.raises(
        MissingFeaturesError, match=r"stopped at row 15 of 25.*featstore extract -m"
    ):
        Store(tmp_path).open(KEY)
    assert [s.verify() for s in Store(tmp_path).splits()] == [["unfinished: 15 of 25 rows"]]


def test_a_writer_goes_on_where_another_stopped(tmp_path):
    fill(tmp_path, finish=False, chunks=[0, 2])
    writer, features, _ = fill(tmp_path)
    assert writer.missing() == []
    stored = [Store(tmp_path).open(KEY)["train"].chunk(i) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(stored), features.astype("float16"))


def test_another_recipe_is_refused_with_the_fields_that_differ(tmp_path):
    fill(tmp_path)
    rows = Rows(["a"], np.arange(1), np.zeros(1, int), ["x"])
    with pytest.raises(StoreMismatchError, match=r"weights: stored 'abc', now 'xyz'.*--variant"):
        create(tmp_path, KEY, "train", Recipe({"weights": "xyz"}), rows,
               width=6, dtype="float16", codec="none", chunk_rows=10, notes={})  # fmt: skip
    assert Store(tmp_path).open(KEY)["train"].verify() == []


def test_a_store_of_another_format_version_is_refused(tmp_path):
    zarr.open_group(tmp_path, mode="w", attributes={"featstore_format": 99})
    with pytest.raises(StoreMismatchError, match="format version 99, this featstore reads 1"):
        Store(tmp_path)


def files_of(root):
    return sorted(p for p in root.rglob("*") if p.is_file())


def test_a_flipped_bit_anywhere_in_a_split_is_noticed(tmp_path):
    fill(tmp_path)
    place = Store(tmp_path).open(KEY)["train"].path
    rng = np.random.default_rng(0)
    for path in files_of(place):
        before = path.read_bytes()
        for _ in range(4):
            data = bytearray(before)
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            if path.suffix == ".json" and same_json(before, data):
                continue  # a space that became another: the meaning is what was written
            splits = list(Store(tmp_path).splits()) if readable(tmp_path) else []
            assert not splits or splits[0].verify(), f"{path} was changed, and nobody noticed"
        path.write_bytes(before)
    assert Store(tmp_path).open(KEY)["train"].verify() == []


def same_json(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False


def readable(root):
    try:
        list(Store(root).splits())
    except CorruptStoreError:
        return False  # noticed even sooner
    return True


def test_a_damaged_chunk_is_refused_by_its_name(tmp_path):
    fill(tmp_path)
    split = Store(tmp_path).open(KEY)["train"]
    path = split.path / "embedding" / "c" / "1" / "0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match=r"folder:/a b eval train.*chunk 1 "):
        split.chunk(1)
    assert split.chunk(0).shape == (10, 6)


def test_removing_leaves_nothing_of_the_key_and_all_of_the_others(tmp_path):
    fill(tmp_path)
    other = FeatureKey("other", "set", BNMode.EVAL)
    rows = Rows(["a"], np.arange(1), np.zeros(1, int), ["x"])
    create(tmp_path, other, "train", Recipe({}), rows,
           width=1, dtype="float16", codec="none", chunk_rows=1, notes={})  # fmt: skip
    Store(tmp_path).remove(KEY)
    assert Store(tmp_path).keys() == [other]
    assert not (tmp_path / "timm%3Ax@cls").exists()


def test_creation_that_was_cut_off_starts_anew(tmp_path):
    writer, _, _ = fill(tmp_path, finish=False, chunks=[])
    document = writer.split.path / "zarr.json"
    bare = json.loads(document.read_text())
    bare["attributes"] = {}  # as after a kill between the arrays and the recipe
    document.write_text(json.dumps(bare))
    assert list(Store(tmp_path).splits()) == []
    fill(tmp_path)
    assert Store(tmp_path).open(KEY)["train"].verify() == []


class CutOffError(Exception):
    pass


def test_creation_cut_off_at_any_write_leaves_a_whole_split_or_none(tmp_path, monkeypatch):
    left = [10_000]  # writes until there are no more

    def limited(write):
        def limited_write(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise CutOffError
            return write(*arguments)

        return limited_write

    for name in ("set", "set_if_not_exists"):
        monkeypatch.setattr(LocalStore, name, limited(getattr(LocalStore, name)))
    writer, _, _ = fill(tmp_path / "whole", n=5, finish=False, chunks=[])
    expected = dict(writer.split.attrs)
    assert set(expected) == {"recipe", "digest", "categories", "model"}
    writes = 10_000 - left[0]
    assert writes > 15
    for number in range(writes):
        root, left[0] = tmp_path / str(number), number
        with pytest.raises(CutOffError):
            fill(root, n=5, finish=False, chunks=[])
        found = list(Store(root).splits()) if (root / "zarr.json").exists() else []
        assert found == []
        for claim in root.rglob(".claims/*"):
            claim.unlink()  # as of a process that is dead
        left[0] = 10_000
        fill(root, n=5)
        split = Store(root).open(KEY)["train"]
        assert {name: split.attrs[name] for name in expected} == expected
        assert split.verify() == []


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 3000))
def test_chunks_are_even_and_none_is_a_stub(n, most):
    rows = chunk_rows_for(n, most)
    n_chunks = -(-n // rows)
    assert rows <= most
    assert n_chunks <= -(-n // most)  # no more chunks than needed
    last = n - (n_chunks - 1) * rows
    assert last >= 1
    assert n_chunks == 1 or last >= rows - n_chunks


@pytest.mark.parametrize("codec", ["bitround", "bitround:0", "bitround:11", "lz4", "bitround:x"])
def test_unknown_codecs_are_refused(codec):
    with pytest.raises(ValueError, match="codec must be none, zstd or bitround"):
        parse_codec(codec, "float16")


def test_a_claim_is_held_until_its_owner_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from featstore.store.claims import acquire\n"
        "print(acquire(Path(sys.argv[1]), '7') is not None, flush=True)\n"
        "time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "True\n"
        assert acquire(tmp_path, "7") is None
        assert acquire(tmp_path, "8") is not None
        child.kill()
    assert acquire(tmp_path, "7") is not None
    assert acquire(tmp_path, "7") is None  # now it is ours


def test_of_many_who_try_at_once_one_gets_the_claim(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from featstore.store.claims import acquire\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "got = [acquire(Path(sys.argv[1]), str(i)) is not None for i in range(50)]\n"
        "print(sum(got), flush=True); sys.stdin.read()"
    )
    at = str(time.time() + 3)
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), at],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]  # fmt: skip
    got = [int(child.stdout.readline()) for child in children]
    for child in children:
        child.communicate("")
    assert sum(got) == 50


def test_a_claim_of_another_machine_expires(tmp_path):
    claim = acquire(tmp_path, "1")
    owner = json.loads(claim.path.read_text()) | {"host": "elsewhere"}
    claim.path.write_text(json.dumps(owner))
    assert acquire(tmp_path, "1") is None
    claim.path.write_text(json.dumps(owner | {"time": time.time() - 10_000}))
    assert acquire(tmp_path, "1") is not None


def test_rows_are_the_valid_ones_of_the_chunks_asked_for(tmp_path):
    _, features, valid = fill(tmp_path)
    split = Store(tmp_path).open(KEY)["train"]
    for threads in (1, 2, 64):
        expected = features.astype("float16")[valid]
        np.testing.assert_array_equal(split.rows(threads=threads), expected)
        tail = split.rows(range(1, 3), threads=threads)
        np.testing.assert_array_equal(tail, features[10:].astype("float16"))
    buffer = np.zeros((20, 6), "float16")
    assert np.shares_memory(split.rows(range(2, 3), out=buffer), buffer)
    np.testing.assert_array_equal(buffer[:5], features[20:].astype("float16"))
    assert not buffer[5:].any()


@pytest.mark.parametrize("height", [1, 10, 20, 29, 1000])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_tiles_are_the_rows_in_order_each_where_it_says(tmp_path, height, codec):
    _, features, valid = fill(tmp_path, codec=codec)
    expected = features.astype("float16")[valid]
    before = 0
    for start, tile in Store(tmp_path).open(KEY)["train"].tiles(height):
        assert start == before
        assert len(tile) <= max(height, 10)
        np.testing.assert_array_equal(tile, expected[start : start + len(tile)])
        before += len(tile)
    assert before == len(expected)


def test_a_bank_larger_than_memory_is_read_in_a_few_tiles_of_it(tmp_path):
    fill(tmp_path, n=4000, width=500, chunk_rows=100)  # 4 MB
    split = Store(tmp_path).open(KEY)["train"]
    split.valid, split.chunk_digest  # noqa: B018  # small, and kept
    tracemalloc.start()
    for _, tile in split.tiles(200):  # 200 kB
        tile.sum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_who_stops_at_a_tile_leaves_no_thread_behind(tmp_path):
    fill(tmp_path)
    for _ in Store(tmp_path).open(KEY)["train"].tiles(1):
        break
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("featstore-read")]


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("damage", ["short", "flip", "gone"])
def test_of_many_chunks_the_damaged_one_is_named(tmp_path, codec, damage):
    fill(tmp_path, codec=codec)
    split = Store(tmp_path).open(KEY)["train"]
    path = split.path / "embedding" / "c" / "1" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(path.read_bytes()[:-1] if damage == "short" else data)
    if damage == "gone":
        path.unlink()
    for read in (lambda: split.rows(threads=64), lambda: list(split.tiles(1000, threads=64))):
        with pytest.raises(CorruptStoreError, match=r"folder:/a b eval train.*chunk 1 "):
            read()


def test_several_chunks_written_at_once_are_those_written_one_by_one(tmp_path):
    _, features, valid = fill(tmp_path / "a")
    writer, _, _ = fill(tmp_path / "b", finish=False, chunks=[0])
    writer.write(1, features[10:], valid[10:])
    writer.finish()
    places = [Store(tmp_path / name).open(KEY)["train"].path for name in "ab"]
    for one, other in zip(*map(files_of, places), strict=True):
        assert same_json(one.read_bytes(), other.read_bytes()) or (
            one.read_bytes() == other.read_bytes()
        )


def test_validity_left_by_a_write_that_was_cut_off_is_overwritten(tmp_path):
    writer, *_ = fill(tmp_path, finish=False, chunks=[0])
    zarr.open_group(writer.split.path, mode="r+")["valid"][10:20] = False  # and then it was killed
    fill(tmp_path)
    np.testing.assert_array_equal(Store(tmp_path).open(KEY)["train"].valid, np.arange(25) != 3)


def test_what_the_process_has_set_of_zarr_stays(tmp_path):
    before = zarr.config.get("codec_pipeline.path")
    fill(tmp_path)
    assert zarr.config.get("codec_pipeline.path") == before
