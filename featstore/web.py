"""One request over HTTP: its answer, or whether asking again may help."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError

from featstore import __version__

_BLOCK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
_PASSING = (408, 425, 429)  # refusals that may pass, as all of 5xx may
_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
_PAGE_TYPES = ("text/html", "application/xhtml+xml")


class RefusedError(Exception):
    """An address is of no use."""


class BrokenError(Exception):
    """An attempt came to nothing; another may do better."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def ask(url: str, start: int, *, timeout: float | None = None) -> Any:
    """Response to a request for the bytes from `start`; raises RefusedError, BrokenError."""
    if not url.lower().startswith(("https://", "http://")):
        raise RefusedError("is no http or https address")
    headers = {"User-Agent": f"featstore/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return _opener().open(
            urllib.request.Request(url, headers=headers), timeout=timeout or _TIMEOUT
        )
    except HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        reason = f"answers {error.code} {error.reason}"
        if error.code in _PASSING or error.code >= 500:
            after = error.headers.get("Retry-After") or ""
            raise BrokenError(reason, float(after) if after.isdecimal() else 0.0) from error
        raise RefusedError(reason) from error
    except URLError as error:
        cause = error.reason
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise RefusedError(f"its certificate is not valid: {cause.verify_message}") from error
        absent = isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
        failure = BrokenError if isinstance(cause, OSError) and not absent else RefusedError
        raise failure(f"cannot be reached: {cause}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise RefusedError(f"is no address: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(f"cannot be reached: {error or type(error).__name__}") from error


def _opener() -> urllib.request.OpenerDirector:
    """Opener of http and https alone: the usual one reads file: and ftp: addresses as well."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, url: str
    ) -> Any:
        """Request for where an answer points to, unless that leaves https."""
        if req.type == "https" and not url.lower().startswith("https://"):
            raise RefusedError(f"leads from https to {url}")
        return super().redirect_request(req, fp, code, msg, headers, url)


def read(answer: Any, *, first: bool = False) -> bytes:
    """Next bytes of an answer, none at its end.

    Raises
    ------
    RefusedError
        They are the `first` ones, and of a web page.
    BrokenError
        The connection broke.
    """
    try:
        block: bytes = answer.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(f"broke off: {error or type(error).__name__}") from error
    packed = answer.headers.get("Content-Encoding", "identity")
    if packed != "identity":
        raise RefusedError(f"the server packs the file by {packed}, unasked")
    if answer.headers.get_content_type() in _PAGE_TYPES or (first and _PAGE.match(block)):
        raise RefusedError(
            "a web page came in place of the file, to log in or to confirm; open it in a browser"
        )
    return block


def version(url: str, answer: Any) -> dict[str, str]:
    """What tells one version of the file at an address from another; its size, 0 if unknown."""
    headers = answer.headers
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return {
        "url": url,
        "etag": headers.get("ETag", ""),
        "modified": headers.get("Last-Modified", ""),
        "total": size if size.isdecimal() else "0",
    }


def first_byte(answer: Any, asked: int) -> int:
    """Where in the file an answer begins: at `asked`, or at 0 where the server gives only all.

    Raises
    ------
    RefusedError
        It begins anywhere else.
    """
    if answer.status == 200:
        return 0
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if answer.status != 206 or not found or int(found[1]) != asked:
        raise RefusedError(f"answers {answer.status} without the bytes from {asked} on")
    return asked
