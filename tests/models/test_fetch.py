"""From a catalogue entry to its weights file: fetched, placed, converted; held to a hash."""

import hashlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from featstore import fetch as transport
from featstore.errors import BadCheckpointError, CatalogueError
from featstore.models.convert import convert_entry
from featstore.models.fetch import status, weights_file
from featstore.models.names import Entry, catalogue

OLD, NEW = b"old weights" * 1000, b"new weights" * 1000
BY_HAND = "download https://example.org/weights with a browser"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("FEATSTORE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(transport, "_PAUSES", ())
    (tmp_path / "home" / "weights").mkdir(parents=True)
    return tmp_path / "home" / "weights"


@pytest.fixture
def site():
    """A server that gives `site.content`, None for nothing, and counts in `site.asked`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            content = self.server.content
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.content = 0, OLD
        server.url = f"http://127.0.0.1:{server.server_port}/pub/weights.pth?version=1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def entry(**fields):
    return Entry("mine", "resnet18", **{"file": "mine.pth", **fields})


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def change(path, data):
    """Other content, and certainly another time."""
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def test_a_file_is_fetched_once_to_the_folder_of_weights(folder, site):
    one = entry(urls=[site.url])
    assert status(one) == "fetchable"
    assert weights_file(one) == folder / "mine.pth"
    assert (folder / "mine.pth").read_bytes() == OLD
    assert weights_file(one) == folder / "mine.pth"
    assert (site.asked, status(one)) == (1, "ready")


def test_without_a_name_a_file_is_called_as_at_its_address(folder, site):
    assert weights_file(entry(urls=[site.url], file="")) == folder / "weights.pth"


def test_progress_is_told(folder, site):
    seen = []
    weights_file(entry(urls=[site.url]), progress=lambda *facts: seen.append(facts))
    assert seen[-1] == ("mine.pth", len(OLD), len(OLD))


def test_a_hash_of_the_catalogue_is_held_to_of_what_is_fetched_or_placed(folder, site, caplog):
    good = entry(urls=[site.url], sha256=sha256(OLD).upper())
    bad = replace(good, sha256=sha256(NEW))
    with pytest.raises(BadCheckpointError, match=f"{sha256(OLD)}, not {sha256(NEW)}"):
        weights_file(bad)
    assert not (folder / "mine.pth").exists()
    assert weights_file(good).read_bytes() == OLD
    assert caplog.records == []  # nothing is taken on trust
    with pytest.raises(BadCheckpointError, match=f"is {sha256(OLD)}, and {sha256(NEW)} is stated"):
        weights_file(bad)


@pytest.mark.parametrize("placed", [True, False])
def test_a_hash_that_nobody_states_is_recorded_at_first_sight_and_held_to(
    folder, site, placed, caplog
):
    path, one = folder / "mine.pth", entry(urls=[] if placed else [site.url])
    if placed:
        path.write_bytes(OLD)
    with caplog.at_level(logging.WARNING, "featstore"):
        for _ in range(3):
            weights_file(one)
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # said once
    assert sha256(OLD) in caplog.text
    assert json.loads((folder / "sha256.json").read_text())["mine.pth"]["sha256"] == sha256(OLD)

    change(path, NEW)
    for _ in range(2):  # refusing does not record
        with pytest.raises(BadCheckpointError) as caught:
            weights_file(one)
        text = str(caught.value)
        for part in (
            str(path),
            sha256(OLD),
            sha256(NEW),
            "first sight",
            "Delete it",
            "sha256.json",
        ):
            assert part in text
    change(path, OLD)
    assert weights_file(one) == path


def test_the_first_digits_of_a_hash_are_held_to_and_the_whole_is_that_of_first_sight(
    folder, site, caplog
):
    path = folder / "mine.pth"
    good = entry(urls=[site.url], sha256=sha256(OLD)[:8].upper())
    bad = replace(good, sha256=sha256(NEW)[:8])
    with pytest.raises(BadCheckpointError, match=f"{sha256(OLD)}, which does not begin with"):
        weights_file(bad)
    assert (list(folder.iterdir()), caplog.records) == ([], [])
    assert weights_file(good) == path
    records = json.loads((folder / "sha256.json").read_text())
    assert records["mine.pth"]["sha256"] == sha256(OLD)
    with pytest.raises(BadCheckpointError, match=f"{sha256(OLD)}, and {sha256(NEW)[:8]} is stated"):
        weights_file(bad)
    path.unlink()
    with pytest.raises(BadCheckpointError, match=f"begins with {sha256(OLD)[:8].upper()}"):
        weights_file(replace(good, urls=[]))

    other = sha256(OLD)[:8] + 56 * "0"  # as if another file that begins so had been seen
    (folder / "sha256.json").write_text(json.dumps({"mine.pth": {"sha256": other}}))
    with pytest.raises(BadCheckpointError, match=f"not {other}.*first fetch"):
        weights_file(good)
    path.write_bytes(OLD)
    with pytest.raises(BadCheckpointError, match=f"{other} is recorded .* at its first sight"):
        weights_file(good)
    (folder / "sha256.json").unlink()
    assert weights_file(good) == path
    assert caplog.records == []  # nothing is taken on trust


@pytest.mark.parametrize("stated", ["0676ba6", "0676ba6x", 65 * "0", "sha256:0676ba61"])
def test_what_is_no_hash_is_refused(folder, stated):
    with pytest.raises(CatalogueError, match="mine: sha256 = .* 8 to 64 hexadecimal digits"):
        weights_file(entry(sha256=stated))


def test_a_file_deleted_is_fetched_again_but_only_the_same_one(folder, site):
    one = entry(urls=[site.url])
    weights_file(one).unlink()
    site.content = NEW
    with pytest.raises(BadCheckpointError) as caught:
        weights_file(one)
    for part in (sha256(OLD), sha256(NEW), "first fetch", "sha256.json"):
        assert part in str(caught.value)
    site.content = OLD
    assert weights_file(one).read_bytes() == OLD


def test_a_file_touched_is_hashed_again_and_an_untouched_one_is_not(folder, monkeypatch):
    path = folder / "mine.pth"
    path.write_bytes(OLD)
    weights_file(entry())
    hashed = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(a[0].name) or real(*a))
    weights_file(entry())
    assert hashed == []
    os.utime(path, ns=(1, 1))
    weights_file(entry())
    weights_file(entry())
    assert hashed == [str(path)]


def test_a_file_that_is_still_copied_to_its_place_is_not_recorded(folder, monkeypatch):
    path = folder / "mine.pth"
    path.write_bytes(OLD)
    real = hashlib.file_digest

    def slow(*arguments):
        found = real(*arguments)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    with pytest.raises(BadCheckpointError, match="is being written to"):
        weights_file(entry())
    assert not (folder / "sha256.json").exists()


def test_what_no_program_can_fetch_is_told_with_place_source_and_hash(folder):
    one = entry(by_hand=BY_HAND)
    assert status(one) == "by hand"
    with pytest.raises(BadCheckpointError) as caught:
        weights_file(one)
    for part in ("mine", str(folder / "mine.pth"), BY_HAND, "not known, will be recorded"):
        assert part in str(caught.value)
    with pytest.raises(BadCheckpointError, match=sha256(OLD)):
        weights_file(replace(one, sha256=sha256(OLD)))
    (folder / "mine.pth").write_bytes(OLD)
    assert weights_file(one) == folder / "mine.pth"


def test_a_dead_address_leads_to_the_way_by_hand(folder, site):
    site.content = None
    with pytest.raises(BadCheckpointError) as caught:
        weights_file(entry(urls=[site.url], by_hand=BY_HAND))
    text = str(caught.value)
    for part in (site.url, "answers 404", str(folder / "mine.pth"), BY_HAND):
        assert part in text
    assert "\n" not in text


def test_offline_nothing_is_asked(folder, site, monkeypatch):
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    with pytest.raises(BadCheckpointError, match="FEATSTORE_OFFLINE"):
        weights_file(entry(urls=[site.url]))
    assert site.asked == 0


@pytest.mark.parametrize("name", ["../x.pth", "/x.pth", "", "sha256.json", "sha256.json.lock"])
def test_a_name_that_is_no_weights_file_s_is_refused(folder, name):
    with pytest.raises(CatalogueError, match="mine: .*file"):
        weights_file(entry(file=name))
    assert status(entry(file=name)) == "incomplete"


def test_records_that_cannot_be_read_stop_the_load(folder):
    (folder / "mine.pth").write_bytes(OLD)
    for broken in ("{", "[]", '{"mine.pth": 1}'):
        (folder / "sha256.json").write_text(broken)
        with pytest.raises(BadCheckpointError, match=r"sha256.json cannot be read.*Delete it"):
            weights_file(entry())


RECORD = """
import sys
from featstore.models.fetch import weights_file
from featstore.models.names import Entry
for i in range(int(sys.argv[1]), 40, 2):
    weights_file(Entry("mine", "resnet18", file=f"{i}.pth"))
"""


def test_two_processes_lose_none_of_each_other_s_records(folder):
    for i in range(40):
        (folder / f"{i}.pth").write_bytes(b"%d" % i)
    both = [
        subprocess.Popen([sys.executable, "-c", RECORD, str(i)], stderr=subprocess.DEVNULL)
        for i in range(2)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    records = json.loads((folder / "sha256.json").read_text())
    assert {n: r["sha256"] for n, r in records.items()} == {
        f"{i}.pth": sha256(b"%d" % i) for i in range(40)
    }


def save(path, value=1.0):
    torch.save({"state_dict": {"a": torch.full((2,), value)}, "args": {1, 2}}, path)
    return path.read_bytes()


@pytest.fixture
def original(folder):
    """An entry that must be converted, with its file in place."""
    save(folder / "mine.pth")
    return entry(converts=True, nest="state_dict")


def test_a_file_that_must_be_converted_is_fetched_and_the_next_command_told(folder, site):
    one = entry(urls=[site.url], converts=True)
    assert status(one) == "convert"
    with pytest.raises(BadCheckpointError, match="featstore convert mine"):
        weights_file(one)
    assert (folder / "mine.pth").read_bytes() == OLD
    assert (site.asked, status(one)) == (1, "convert")
    assert status(replace(one, urls=[])) == "convert"
    (folder / "mine.pth").unlink()
    assert status(replace(one, urls=[])) == "by hand"


def test_a_file_that_was_converted_is_taken_and_recorded_with_both_hashes(folder, original):
    source = (folder / "mine.pth").read_bytes()
    done = convert_entry(original)
    path = folder / "mine.safetensors"
    assert weights_file(original) == done.path == path
    assert load_file(path)["a"].tolist() == [1.0, 1.0]
    assert status(original) == "ready"
    record = json.loads((folder / "sha256.json").read_text())["mine.safetensors"]
    assert (record["source"], record["source_sha256"]) == ("mine.pth", sha256(source))
    assert record["sha256"] == sha256(path.read_bytes()) == done.sha256
    (folder / "mine.pth").unlink()  # to save room
    assert (weights_file(original), status(original)) == (path, "ready")


def test_a_safetensors_file_that_was_not_converted_here_does_not_pass_for_it(folder, original):
    save_file({"a": torch.zeros(2)}, folder / "mine.safetensors")
    assert status(original) == "convert"
    with pytest.raises(BadCheckpointError, match=r"was not converted here.*featstore convert mine"):
        weights_file(original)


def test_a_converted_file_that_changed_is_refused(folder, original):
    convert_entry(original)
    save_file({"a": torch.zeros(2)}, folder / "mine.safetensors")
    with pytest.raises(BadCheckpointError, match="is not the file that it should be"):
        weights_file(original)


def test_what_was_converted_from_another_file_is_refused(folder, original):
    convert_entry(original)
    for digits in (sha256(NEW), sha256(NEW)[:8]):
        with pytest.raises(BadCheckpointError, match=f"should have {digits}.*featstore convert"):
            weights_file(replace(original, sha256=digits))
    right = sha256((folder / "mine.pth").read_bytes())
    for digits in (right, right[:8]):
        found = weights_file(replace(original, sha256=digits))
        assert found == folder / "mine.safetensors"
    records = json.loads((folder / "sha256.json").read_text())
    (folder / "sha256.json").write_text(json.dumps({"mine.safetensors": records[found.name]}))
    assert weights_file(replace(original, sha256=right[:8])) == found


def test_the_states_of_what_needs_no_file_here(folder, monkeypatch):
    users = entry(weights="own.pth", folder=str(folder))
    assert status(users) == "by hand"
    (folder / "own.pth").write_bytes(OLD)
    assert status(users) == "ready"
    assert status(entry(weights="random:3", folder=str(folder))) == "ready"
    assert status(entry(weights="tiny/x.safetensors")) == "ready"


@pytest.mark.parametrize(
    ("arch", "repo"),
    [
        ("resnet50.a1_in1k", "models--timm--resnet50.a1_in1k"),
        (
            "vit_base_patch16_clip_quickgelu_224.openai",
            "models--timm--vit_base_patch16_clip_224.openai",
        ),
    ],
)
def test_weights_of_the_hub_are_ready_once_its_cache_has_them(tmp_path, arch, repo):
    code = (
        "import sys; from featstore.models.fetch import status; "
        "from featstore.models.names import Entry; "
        "print(status(Entry('x', sys.argv[1], 'hub')), 'torch' in sys.modules)"
    )

    def found():
        return subprocess.run(
            [sys.executable, "-c", code, arch],
            env=os.environ | {"HF_HUB_CACHE": str(tmp_path)},
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip

    assert found() == ["fetchable", "False"]
    snapshot = tmp_path / repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / repo / "refs").mkdir()
    (tmp_path / repo / "refs" / "main").write_text("0123")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert found() == ["ready", "False"]


def test_every_model_of_the_catalogue_has_a_state_and_its_state_a_way(folder):
    for one in catalogue().values():
        found = status(one)
        assert found in ("ready", "fetchable", "convert", "by hand")
        if found == "by hand":
            assert one.by_hand, one.name
