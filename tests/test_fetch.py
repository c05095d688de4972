"""Fetching against real servers on the loopback: broken, changed, forged, cut, full."""

import contextlib
import hashlib
import http.server
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

import pytest

from featstore import fetch as module
from featstore import web
from featstore.errors import FetchError
from featstore.fetch import fetch, inside

OLD = bytes(range(256)) * 4000  # 1 MB
NEW = OLD[::-1]

# Self-signed for 127.0.0.1, made for this test; it signs nothing else.
PAIR = """\
-----BEGIN CERTIFICATE-----
MIIBlzCCAT2gAwIBAgIBBzAKBggqhkjOPQQDAjAZMRcwFQYDVQQDDA5mZWF0c3Rv
cmUgdGVzdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowGTEXMBUG
A1UEAwwOZmVhdHN0b3JlIHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASh
tVXfpQptTuTRpimGwG7249Tj99lLulHwJ9YZBzqnGtb8jCQx7RnWGPHAjoduN2Xv
GUsAkDBBsObzmkSVf187o3QwcjAPBgNVHREECDAGhwR/AAABMA8GA1UdEwEB/wQF
MAMBAf8wDgYDVR0PAQH/BAQDAgKEMB0GA1UdDgQWBBTQ1NpeAaZImpIAv9+SkYiZ
kumMITAfBgNVHSMEGDAWgBTQ1NpeAaZImpIAv9+SkYiZkumMITAKBggqhkjOPQQD
AgNIADBFAiEA/KBG4Ci+FzXCt4pXo9jraM5Pf8MEjew8VPftFj4jUyUCIHM6XiZT
8eEun5FjerXdnZI8GEOWCM/vCFdElm4/BxXQ
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglVjg9ONMPsYkvYI6
pb/MoVEa06L+ihczZLXX4ofxvtShRANCAAShtVXfpQptTuTRpimGwG7249Tj99lL
ulHwJ9YZBzqnGtb8jCQx7RnWGPHAjoduN2XvGUsAkDBBsObzmkSVf187
-----END PRIVATE KEY-----
"""


class Site:
    """What a server has and how it behaves; `asked` is what it was asked for.

    Attributes
    ----------
    files : content by path ; etag, kind : headers sent with each, "" for none
    ranges : whether it gives parts ; sized : whether it says how long a file is
    cuts : after so many bytes of each of the next answers the connection ends
    faults : statuses of the next answers ; headers : sent with those
    moved : place that a path points to ; more : headers sent with every file
    resets : how many of the next answers end midway by a reset instead
    shift : how far from where it was asked a part begins
    gate : what an answer waits for once its first bytes are sent
    """

    def __init__(self):
        self.files = {"/weights.pth": OLD}
        self.etag, self.kind, self.ranges, self.sized = (
            '"1"',
            "application/octet-stream",
            True,
            True,
        )
        self.cuts, self.faults, self.headers, self.moved, self.more = [], [], {}, {}, {}
        self.shift = self.resets = 0
        self.gate = threading.Event()
        self.gate.set()
        self.asked = []

    @property
    def parts(self):
        """Where each request began."""
        return [int(start) for _, start in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        site.asked.append((self.path, start))
        if site.faults:
            return self.head(site.faults.pop(0), 0, site.headers)
        if self.path in site.moved:
            return self.head(302, 0, {"Location": site.moved[self.path]})
        if self.path not in site.files:
            return self.head(404, 0)
        data = site.files[self.path]
        headers = {"Content-Type": site.kind} | ({"ETag": site.etag} if site.etag else {})
        headers |= site.more
        part = start and site.ranges
        if part and start >= len(data):
            return self.head(416, 0, {"Content-Range": f"bytes */{len(data)}"})
        if part:
            start += site.shift
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self.head(206 if part else 200, len(data) if site.sized else None, headers)
        if site.cuts:
            data = data[: site.cuts.pop(0)]
        self.wfile.write(data[:300_000])
        if site.resets:
            site.resets -= 1
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return self.connection.close()
        site.gate.wait(20)
        return self.wfile.write(data[300_000:])

    def head(self, status, length, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # a client that was killed, or that refused the certificate


@contextlib.contextmanager
def serving(context=None):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.site = Site()
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.site.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.site
        finally:
            server.site.gate.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def site():
    with serving() as found:
        yield found


@pytest.fixture
def secure_site(tmp_path):
    (tmp_path / "pair.pem").write_text(PAIR)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    with serving(context) as found:
        yield found


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds that were slept; no second goes by."""
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    for name in ("FEATSTORE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return slept


@pytest.fixture
def to(tmp_path):
    return tmp_path / "weights" / "weights.pth"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def left(to):
    """Names beside the file."""
    return sorted(path.name for path in to.parent.iterdir())


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(OLD)
    assert module.sha256(tmp_path / "x") == sha256(OLD)


def test_a_file_is_there_with_its_bytes_and_nothing_beside_it(site, to):
    seen = []
    url = f"{site.url}/weights.pth"
    assert fetch([url], to, progress=lambda *facts: seen.append(facts)) == to
    assert to.read_bytes() == OLD
    assert left(to) == ["weights.pth"]
    assert seen[-1] == ("weights.pth", len(OLD), len(OLD))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_a_file_that_is_there_is_not_fetched_again(site, to):
    to.parent.mkdir()
    to.write_bytes(OLD)
    fetch([f"{site.url}/weights.pth"], to)
    fetch([f"{site.url}/weights.pth"], to, sha256=sha256(OLD).upper())
    with pytest.raises(FetchError, match=f"SHA-256 is {sha256(OLD)}, not {sha256(NEW)}.*Delete it"):
        fetch([f"{site.url}/weights.pth"], to, sha256=sha256(NEW))
    assert site.asked == []
    assert to.read_bytes() == OLD


@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_off_goes_on_where_it_stopped_if_the_server_can(site, to, ranges):
    site.ranges, site.cuts = ranges, [400_000, 262_144 + 100]  # the last of it a few bytes
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD
    assert site.parts == [0, 400_000, 662_244 if ranges else 262_244]


def test_what_breaks_off_again_and_again_goes_on_while_bytes_come(site, to):
    site.cuts = [100_000] * 9
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD


def test_a_connection_that_is_reset_is_made_anew(site, to):
    site.resets = 2
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD
    assert len(site.asked) == 3


def test_a_server_that_falls_silent_is_asked_anew(site, to, monkeypatch):
    monkeypatch.setattr(web, "_TIMEOUT", 0.2)
    site.gate.clear()  # it gives 300 kB and then waits
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD
    assert len(site.asked) == 4


@pytest.mark.parametrize(
    ("code", "waits"), [(socket.EAI_NONAME, []), (socket.EAI_AGAIN, [1, 2, 4])]
)
def test_a_host_that_does_not_exist_is_asked_for_once(to, monkeypatch, pauses, code, waits):
    def unknown(*_, **__):
        raise socket.gaierror(code, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch(["http://weights.example/x"], to)
    assert pauses == waits


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(site, to):
    site.cuts = [400_000, 0, 0, 0]
    with pytest.raises(FetchError, match="broke off after 400000 of 1024000 bytes"):
        fetch([f"{site.url}/weights.pth"], to)
    assert not to.exists()
    site.asked.clear()
    fetch([f"{site.url}/weights.pth"], to)
    assert (to.read_bytes(), site.parts) == (OLD, [400_000])
    assert left(to) == ["weights.pth"]


def give_up_midway(site, to, **hashes):
    site.cuts = [400_000, 0, 0, 0]
    with pytest.raises(FetchError):
        fetch([f"{site.url}/weights.pth"], to, **hashes)
    site.asked.clear()


def test_the_beginning_of_an_older_version_is_not_gone_on_with(site, to):
    give_up_midway(site, to)
    site.files["/weights.pth"], site.etag = NEW, '"2"'  # as long as the old one
    fetch([f"{site.url}/weights.pth"], to)
    assert (to.read_bytes(), site.parts) == (NEW, [400_000, 0])


def test_without_a_tag_or_a_hash_nothing_tells_versions_apart_so_all_is_fetched(site, to):
    site.etag = ""
    give_up_midway(site, to)
    site.files["/weights.pth"] = NEW
    fetch([f"{site.url}/weights.pth"], to)
    assert (to.read_bytes(), site.parts) == (NEW, [0])


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_pieces_of_two_versions_are_told_by_their_hash_and_fetched_whole(site, to, kind):
    site.etag = ""
    known = {kind: hashlib.new(kind, NEW).hexdigest()}
    give_up_midway(site, to, **known)
    site.files["/weights.pth"] = NEW
    fetch([f"{site.url}/weights.pth"], to, **known)
    assert (to.read_bytes(), site.parts) == (NEW, [400_000, 0])


def test_a_beginning_from_one_address_is_not_gone_on_with_from_another(site, to):
    give_up_midway(site, to)
    site.files["/mirror.pth"] = NEW
    fetch([f"{site.url}/mirror.pth"], to)
    assert (to.read_bytes(), site.parts) == (NEW, [0])


def test_a_part_that_was_not_asked_for_is_not_joined(site, to):
    site.cuts, site.shift = [400_000], 1
    with pytest.raises(FetchError, match="answers 206 without the bytes from 400000 on"):
        fetch([f"{site.url}/weights.pth"], to)
    assert not to.exists()


def test_a_beginning_longer_than_the_file_is_thrown_away(site, to):
    give_up_midway(site, to)
    site.files["/weights.pth"] = NEW[:1000]
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == NEW[:1000]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_fault_that_may_pass_is_waited_for(site, to, status, pauses):
    site.faults, site.headers = [status, status], {"Retry-After": "7"}
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD
    assert pauses == [7, 7]


def test_a_server_cannot_make_us_wait_for_ever(site, to, pauses):
    site.faults, site.headers = [503], {"Retry-After": "86400"}
    fetch([f"{site.url}/weights.pth"], to)
    assert pauses == [60]


def test_mirrors_are_tried_in_order_and_each_failure_is_told(site, to):
    site.files["/mirror.pth"] = OLD
    urls = [f"{site.url}/gone.pth", f"{site.url}/mirror.pth"]
    fetch(urls, to)
    assert [path for path, _ in site.asked] == ["/gone.pth", "/mirror.pth"]
    to.unlink()
    site.faults = [500] * 99
    with pytest.raises(FetchError) as caught:
        fetch([*urls, "http://127.0.0.1:1/x", "ftp://127.0.0.1/x", "http:///x"], to)
    text = str(caught.value)
    assert "\n" not in text
    told = (
        *("gone.pth: answers 500", "mirror.pth: answers 500", ":1/x: cannot be reached"),
        *("ftp://127.0.0.1/x: is no http", "http:///x: ", f"place it at {to} by hand"),
    )
    for part in told:
        assert part in text
    assert left(to) == []


def test_what_is_not_there_is_not_asked_for_twice(site, to, pauses):
    with pytest.raises(FetchError, match="answers 404"):
        fetch([f"{site.url}/gone.pth"], to)
    assert (len(site.asked), pauses) == (1, [])


def test_another_file_than_was_asked_for_is_refused(site, to):
    site.files["/mirror.pth"] = NEW
    urls = [f"{site.url}/weights.pth", f"{site.url}/mirror.pth"]
    with pytest.raises(FetchError) as caught:
        fetch(urls[:1], to, sha256=sha256(NEW))
    assert f"its SHA-256 is {sha256(OLD)}, not {sha256(NEW)}" in str(caught.value)
    assert left(to) == []
    fetch(urls, to, sha256=sha256(NEW))
    assert to.read_bytes() == NEW


PAGE = b"<!DOCTYPE html><html><head><title>Can't scan for viruses</title></head></html>"


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (PAGE, "application/octet-stream"),
        (b"\n  <!-- x --><HTML>" + PAGE, "application/octet-stream"),
        (b"please log in", "text/html; charset=utf-8"),
    ],
)
def test_a_web_page_in_place_of_the_file_is_refused(site, to, page, kind):
    site.files["/weights.pth"], site.kind = page, kind
    with pytest.raises(FetchError, match="a web page came in place of the file"):
        fetch([f"{site.url}/weights.pth"], to)
    assert left(to) == []


def test_a_file_that_comes_packed_unasked_is_refused(site, to):
    site.more = {"Content-Encoding": "gzip"}
    with pytest.raises(FetchError, match="the server packs the file by gzip, unasked"):
        fetch([f"{site.url}/weights.pth"], to)
    assert left(to) == []


def test_a_web_page_midway_spoils_nothing(site, to):
    give_up_midway(site, to)
    site.kind, site.ranges, site.files["/weights.pth"] = "text/html", False, PAGE
    with pytest.raises(FetchError, match="a web page"):
        fetch([f"{site.url}/weights.pth"], to)
    site.kind, site.ranges, site.files["/weights.pth"] = "", True, OLD
    site.asked.clear()
    fetch([f"{site.url}/weights.pth"], to)
    assert (to.read_bytes(), site.parts) == (OLD, [400_000])


def test_an_empty_file_is_refused(site, to):
    site.files["/weights.pth"] = b""
    with pytest.raises(FetchError, match="sends an empty file"):
        fetch([f"{site.url}/weights.pth"], to)


def test_a_server_that_does_not_say_how_long_a_file_is_gives_it(site, to):
    site.sized = False
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD


@pytest.mark.parametrize("variable", ["FEATSTORE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_and_the_way_by_hand_is_told(site, to, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    url = f"{site.url}/weights.pth"
    with pytest.raises(FetchError) as caught:
        fetch([url], to, sha256=sha256(OLD))
    for part in (url, str(to), sha256(OLD), variable):
        assert part in str(caught.value)
    assert site.asked == []
    to.parent.mkdir()
    to.write_bytes(OLD)
    assert fetch([url], to, sha256=sha256(OLD)) == to


def test_a_certificate_that_nobody_vouches_for_is_refused(secure_site, to, pauses):
    with pytest.raises(FetchError, match="its certificate is not valid: self-signed"):
        fetch([f"{secure_site.url}/weights.pth"], to)
    assert (secure_site.asked, pauses) == ([], [])


def test_a_certificate_is_for_one_host_and_trusted_there(secure_site, to, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pair.pem"))
    elsewhere = secure_site.url.replace("127.0.0.1", "localhost")
    with pytest.raises(FetchError, match="its certificate is not valid: Hostname mismatch"):
        fetch([f"{elsewhere}/weights.pth"], to)
    fetch([f"{secure_site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD


def test_a_redirect_is_followed_but_not_out_of_https_nor_to_a_local_file(
    site, secure_site, to, tmp_path, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pair.pem"))
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    site.moved = {"/new": "/weights.pth", "/mine": f"file://{secret}", "/round": "/round"}
    secure_site.moved = {"/new": f"{site.url}/weights.pth"}
    for url in (f"{secure_site.url}/new", f"{site.url}/mine", f"{site.url}/round"):
        with pytest.raises(FetchError):
            fetch([url], to)
    with pytest.raises(FetchError, match="leads from https to http:"):
        fetch([f"{secure_site.url}/new"], to)
    fetch([f"{site.url}/new"], to)
    assert to.read_bytes() == OLD


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../../x", "/etc/x", "\\x", "..\\x", "C:\\x", "C:x", "a\0b"]
)
def test_a_name_cannot_lead_out_of_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="must be the name of a file in"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x.pth", "a/x.pth", "a b", "..x", "x.pth.tar"])
def test_a_name_within_its_folder_is_taken(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


def test_one_address_as_a_string_is_a_mistake(to):
    with pytest.raises(ValueError, match="list of addresses"):
        fetch("http://127.0.0.1/x", to)


CALL = """
import logging, sys
from pathlib import Path
from featstore.fetch import fetch
logging.basicConfig(format="%(message)s", stream=sys.stdout)
fetch([sys.argv[1]], Path(sys.argv[2]))
"""


def start(site, to, before=""):
    arguments = [sys.executable, "-u", "-c", before + CALL, f"{site.url}/weights.pth", str(to)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing happened for 20 s"
        threading.Event().wait(0.01)


def test_a_killed_process_leaves_a_beginning_that_the_next_goes_on_with(site, to):
    site.gate.clear()
    partial = to.with_name("weights.pth.partial")
    with start(site, to) as process:
        wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
        os.kill(process.pid, signal.SIGKILL)
    site.gate.set()
    assert not to.exists()
    size = partial.stat().st_size
    site.asked.clear()
    fetch([f"{site.url}/weights.pth"], to)
    assert (to.read_bytes(), site.parts) == (OLD, [size])
    assert left(to) == ["weights.pth"]


def test_of_two_processes_one_fetches_and_the_other_waits(site, to):
    site.gate.clear()
    with start(site, to) as first:
        wait_for(lambda: site.asked)
        with start(site, to) as second:
            assert "waits for another process" in second.stdout.readline()
            site.gate.set()
            assert second.wait(20) == 0
        assert first.wait(20) == 0
    assert (to.read_bytes(), site.parts) == (OLD, [0])
    assert left(to) == ["weights.pth"]


def test_after_a_killed_process_the_one_that_waits_goes_on(site, to):
    site.gate.clear()
    partial = to.with_name("weights.pth.partial")
    with start(site, to) as first:
        wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
        with start(site, to) as second:
            assert "waits for another process" in second.stdout.readline()
            os.kill(first.pid, signal.SIGKILL)
            site.gate.set()
            assert second.wait(20) == 0
    assert to.read_bytes() == OLD
    assert site.parts[0] == 0 < site.parts[1]


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
"""


def test_where_no_more_fits_what_came_is_kept_and_gone_on_with(site, to):
    with start(site, to, FULL) as process:
        errors = process.communicate(timeout=20)[1]
    assert f"FetchError: {to} could not be written (no room for more)" in errors
    assert not to.exists()
    site.asked.clear()
    fetch([f"{site.url}/weights.pth"], to)
    assert to.read_bytes() == OLD
    assert 0 < site.parts[0] <= 500_000


def test_a_place_that_cannot_be_written_is_named(site, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match=r"file/x could not be written \((File exists|Not a dir)"):
        fetch([f"{site.url}/weights.pth"], tmp_path / "file" / "x")
