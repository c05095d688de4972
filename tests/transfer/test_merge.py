"""Stores merged: sets of splits, and every byte of them."""

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featstore.errors import FeatStoreError, MissingFeaturesError
from featstore.store import Store
from featstore.transfer import merge_store

MAIN = [sys.executable, "-c", "from featstore.cli import main; main()"]


def tree(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def faults(root):
    return [fault for split in Store(root).splits() for fault in split.verify()]


def test_what_is_not_here_is_copied_byte_for_byte(put):
    put("a", "m"), put("a", "m", "test"), put("a", "n")
    done = merge_store("a", store="new/b")
    assert len(done.copied) == 3
    assert tree("a") == tree("new/b")
    assert faults("new/b") == []


def test_merging_twice_is_merging_once(put):
    put("a", "m"), put("a", "n"), put("b", "o")
    merge_store("a", store="b")
    before = tree("b")
    done = merge_store("a", store="b")
    assert (done.copied, len(done.up_to_date), done.refused) == ([], 2, {})
    assert tree("b") == before


def test_the_order_of_merging_does_not_matter(put):
    put("a", "m"), put("a", "both"), put("b", "n"), put("b", "both"), put("b", "m", "test")
    for first, second in ("ab", "ba"):
        merge_store(first, store=f"{first}{second}")
        merge_store(second, store=f"{first}{second}")
    assert tree("ab") == tree("ba")
    assert len(list(Store("ab").splits())) == 4
    assert faults("ab") == []


def test_another_recipe_is_named_by_its_fields_and_left_alone(put):
    put("a", "m", recipe={"weights": "theirs"}), put("a", "n")
    put("b", "m", recipe={"weights": "mine"})
    before = tree("b/m")
    done = merge_store("a", store="b")
    assert done.copied == ["n folder:/a b eval train"]
    (reason,) = done.refused.values()
    assert "another recipe (weights: here 'mine', there 'theirs')" in reason
    assert tree("b/m") == before


def test_unfinished_splits_are_left_and_named(put):
    put("a", "m", finish=False), put("a", "n")
    done = merge_store("a", store="b")
    assert done.unfinished == ["m folder:/a b eval train: unfinished: 10 of 25 rows"]
    assert done.copied == ["n folder:/a b eval train"]
    put("c", "n", finish=False)
    done = merge_store("a", store="c")
    assert "is unfinished: 10 of 25 rows here" in done.refused["n folder:/a b eval train"]
    assert not next(Store("c").splits()).complete


def test_a_flipped_bit_anywhere_is_never_copied(put):
    split = put("a", "m", n=4, chunk_rows=2, width=2).split
    rng = np.random.default_rng(0)
    tried = 0
    for path in sorted(p for p in split.path.rglob("*") if p.is_file()):
        before = path.read_bytes()
        for bit in rng.choice(8 * len(before), min(6, 8 * len(before)), replace=False):
            data = bytearray(before)
            data[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(data)
            if path.name == "zarr.json" and same_json(before, data):
                continue
            tried += 1
            with contextlib.suppress(FeatStoreError):  # noticed even sooner
                merge_store("a", store="b")
            assert list(Store("b").splits()) == [], path
        path.write_bytes(before)
    assert tried > 50
    assert merge_store("a", store="b").copied
    assert faults("b") == []


def same_json(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False


def test_a_damaged_split_is_named_and_the_others_are_copied(put):
    bad = put("a", "m").split
    put("a", "n")
    chunk = bad.path / "embedding" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    done = merge_store("a", store="b")
    assert done.refused == {str(bad): "embedding: a file is not what was written, so not copied"}
    assert done.copied == ["n folder:/a b eval train"]
    assert faults("b") == []


def test_a_file_that_is_gone_is_noticed(put):
    split = put("a", "m").split
    shutil.rmtree(split.path / "valid")
    assert "valid" in merge_store("a", store="b").refused[str(split)]


@pytest.mark.parametrize("change", [{"../../../../outside": "0"}, {"embedding": None}])
def test_what_is_to_be_copied_is_all_arrays_and_nothing_out_of_the_split(put, change):
    split = put("a", "m").split
    document = split.path / "zarr.json"
    content = json.loads(document.read_text())
    files = content["attributes"]["complete"]["files"] | change
    kept = {name: digest for name, digest in files.items() if digest is not None}
    content["attributes"]["complete"]["files"] = kept
    document.write_text(json.dumps(content))
    assert "not what was written" in merge_store("a", store="b").refused[str(split)]


def test_stores_that_are_one_or_are_not_there_are_refused(put):
    put("a")
    with pytest.raises(ValueError, match="is the store itself"):
        merge_store("a/../a", store="a")
    with pytest.raises(MissingFeaturesError, match="no features in nowhere"):
        merge_store("nowhere", store="a")


def test_what_a_killed_copy_or_creation_left_is_replaced(put):
    split = put("a", "m").split
    place = Path("b") / split.path.relative_to("a")
    (place / "embedding" / "c").mkdir(parents=True)
    (place / "embedding" / "c" / "stale").write_text("x")
    assert merge_store("a", store="b").copied
    assert tree("a") == tree("b")


@pytest.mark.slow
def test_a_merge_that_is_killed_goes_on_to_the_same_bytes(put):
    put("a", "m", n=2000, chunk_rows=2), put("a", "n")
    arguments = [*MAIN, "import", "a", "--store", "b"]
    child = subprocess.Popen(arguments)
    deadline = time.monotonic() + 60
    while len(list(Path("b").glob("m/*/*/*/chunk_digest/c/*"))) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(Store("b").splits()) == []
    assert tree("b") != tree("a")
    found = subprocess.run(arguments, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("2 splits copied, 0 up to date, 0 unfinished, 0 refused")
    assert tree("b") == tree("a")
    assert faults("b") == []


@pytest.mark.slow
def test_processes_that_merge_at_once_do_not_disturb_each_other(put):
    for model in "mno":
        put("a", model, n=100, chunk_rows=2)
    arguments = [*MAIN, "import", "a", "--store", "b", "--json"]
    children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [json.loads(child.communicate()[0]) for child in children]
    assert sorted(what for one in said for what in one["copied"]) == sorted(
        str(split) for split in Store("a").splits()
    )
    assert tree("b") == tree("a")


def test_the_command_says_what_it_left_and_ends_with_status_1(put, call):
    put("a", "m", recipe={"weights": "theirs"}), put("a", "n"), put("a", "o", finish=False)
    put("b", "m")
    status, out, err = call("import", "a", "--store", "b")
    assert (status, out) == (1, "1 splits copied, 0 up to date, 1 unfinished, 1 refused -> b\n")
    assert "weights: here 'abc', there 'theirs'" in err
    assert "left out: o folder:/a b eval train: unfinished: 10 of 25 rows" in err


def test_a_store_whose_own_document_is_broken_is_named(put):
    put("a", "m")
    Path("a", "zarr.json").write_text("{")
    with pytest.raises(FeatStoreError, match=r"a/zarr\.json cannot be read"):
        merge_store("a", store="b")
