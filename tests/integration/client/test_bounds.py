"""A server that trickles, never ends or sends too much costs the client neither time nor memory without bound."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from clientkit import QUICK, partials, same_files
from datasetkit import Site, send_json

from amp_core.client import ApiClient, Retry
from amp_core.client.http import JSON_LIMIT
from amp_core.errors import AmprefError, IntegrityError, Unavailable

HASTY = Retry(attempts=3, timeout=0.5, wait_initial=0.01, wait_max=0.02, connect=2, read=5)
Answer = Callable[[BaseHTTPRequestHandler], bool]


@pytest.fixture
def trickle() -> Iterator[Callable[..., Answer]]:
    """Makes answers that come a byte at a time, for some 3 s. They are complete and right then."""
    over = threading.Event()

    def make(data: bytes, *, where: str = "", head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> bool:
            if where not in handler.path:
                return False
            handler.close_connection = True
            step = max(1, len(data) // 60)
            with suppress(ConnectionError):
                handler.wfile.write(head)
                for start in range(0, len(data), step):
                    handler.wfile.write(data[start : start + step])
                    over.wait(0.05)
            return True

        return answer

    yield make
    over.set()


def robots(site: Site, retry: Retry = QUICK) -> list[dict[str, Any]]:
    with ApiClient(site.url, retry=retry) as api:
        return api.list_robots()


def test_a_trickled_answer_is_given_up(site: Site, trickle: Any) -> None:
    site.before = trickle(json.dumps({"items": []}).encode().ljust(60))
    with pytest.raises(Unavailable, match=r"/v1/robots was given up: \d+ bytes in 0\.\d s; expected all in 0\.5 s"):
        robots(site, HASTY)
    assert len(site.requests) == 1  # There is no time for another try.


def test_trickled_headers_are_given_up(site: Site, trickle: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX-Fill: " + b"a" * 40
    site.before = trickle(head + b'\r\n\r\n{"items":[]}', head=b"")
    with pytest.raises(Unavailable, match="was given up: no whole answer in"):
        robots(site, HASTY)


def test_a_trickled_file_is_given_up_and_its_beginning_kept(
    site: Site, small: Any, get: Any, trickle: Any, tmp_path: Path
) -> None:
    site.add(small)
    site.before = trickle(site.contents[f"0.11.0/{small.features.name}"], where=".npz")
    with pytest.raises(Unavailable, match=r"bytes in 0\.\d s; expected 1 MiB in each 0\.5 s"):
        get(retry=HASTY)
    assert [path.stat().st_size > 0 for path in partials(tmp_path)] == [True]
    site.before = None
    assert same_files(get(), small)


def test_a_file_that_moves_forward_may_take_longer(site: Site, large: Any, get: Any) -> None:
    data = large.features.path.read_bytes()
    pause = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> bool:
        if not handler.path.endswith(".npz"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for start in range(0, len(data), 2 << 20):
            handler.wfile.write(data[start : start + (2 << 20)])
            pause.wait(0.3)
        return True

    site.add(large)
    site.before = slow
    assert same_files(get(retry=replace(QUICK, timeout=1.2)), large)
    assert len([name for name, _ in site.file_requests if name == large.features.name]) == 1


def test_a_trickling_stream_of_events_does_not_extend_the_wait(site: Site, trickle: Any) -> None:
    job: dict[str, Any] = {
        "id": "job_1",
        "kind": "rollout",
        "state": "running",
        "progress": 0.5,
        "attempts": 1,
        "max_attempts": 3,
    }
    job["result"] = None
    done = f"event: done\ndata: {json.dumps(job | {'state': 'succeeded'})}\n\n".encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    events = trickle(b": ping\n\n" * 60 + done, where="/events", head=head)
    site.before = lambda handler: events(handler) or send_json(handler, job) is None
    with ApiClient(site.url, retry=QUICK) as api, pytest.raises(Unavailable, match=r"not finished within 0\.5 s"):
        api.wait_for_job("job_1", timeout=0.5, poll=0.01)


def test_a_gzip_bomb_is_refused(site: Site) -> None:
    bomb = gzip.compress(b" " * (JSON_LIMIT + 1) + b"[]", 1)

    def explode(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        with suppress(ConnectionError):
            handler.wfile.write(bomb)
        return True

    site.before = explode
    with pytest.raises(Unavailable, match=r"answered more than 67,108,864 bytes of JSON"):
        robots(site)


def test_a_compressed_answer_is_read(site: Site) -> None:
    site.before = lambda handler: _send_gzip(handler, gzip.compress(b'{"items": []}'))
    assert robots(site) == []
    site.before = lambda handler: _send_gzip(handler, b"no gzip at all")
    with pytest.raises(Unavailable, match="answered something that is not JSON"):
        robots(site)


def _send_gzip(handler: BaseHTTPRequestHandler, data: bytes) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
    return True


@pytest.mark.parametrize("length", [None, 1 << 40], ids=["endless", "declared"])
def test_an_answer_that_is_too_long_is_refused(site: Site, length: int | None) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.close_connection = True
        if length:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        with suppress(ConnectionError):
            for _ in range(200):
                handler.wfile.write(b" " * (1 << 20))
        return True

    site.before = endless
    with pytest.raises(Unavailable, match="answered more than 67,108,864 bytes of JSON"):
        robots(site)


@pytest.mark.parametrize("name", ["features_v0.11.0.npz", "normalization_stats_v0.11.0.json", "dataset_manifest_v0.11.0.json"])
def test_a_file_that_is_longer_than_declared_is_refused_before_its_bytes(
    site: Site, small: Any, get: Any, tmp_path: Path, name: str
) -> None:
    def longer(handler: BaseHTTPRequestHandler) -> bool:
        if not handler.path.endswith(name):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(site.contents[f"0.11.0/{name}"]) + 1))
        handler.end_headers()  # And no byte: who waits for one waits in vain.
        return True

    site.add(small)
    site.before = longer
    with pytest.raises(IntegrityError, match="more bytes than the file has"):
        get()
    assert partials(tmp_path) == []


NINES = b"9" * 5000


@pytest.mark.parametrize(
    ("status", "header", "words"),
    [
        (b"503", b"Retry-After: \xb2", "answered 503"),
        (b"503", b"Retry-After: " + NINES, "answered 503"),
        (b"503", b"Retry-After: " + NINES[:4000], "answered 503"),
        (b"503", b"Retry-After: nan", "answered 503"),
        (b"503", b"Retry-After: -5", "answered 503"),
        (b"503", b"X-\xe9\xff: \xff", "answered 503"),
        (b"503 \xff", b"Set-Cookie: \xff=\xfe; Path=\xfd", "answered 503"),
        (b"302", b"Location: \xff", "redirects more than 5 times"),
        (b"302", b"Location: http://\xff/", "redirects to"),
        (b"302", b"Location: http://[\xff/", "answered 302"),
        (b"200", b"Content-Encoding: \xff", "not JSON"),
        (b"200", b"Content-Type: text/\xff; charset=\xff", "not JSON"),
        (b"200", b"Content-Length: " + NINES, "answered more than"),
        (b"200", b"Content-Length: \xb2", "not JSON"),
    ],
)
def test_a_header_that_is_no_text_or_no_number_is_no_traceback(site: Site, status: bytes, header: bytes, words: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> bool:
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 " + status + b"\r\n" + header + b"\r\n\r\nbody")
        return True

    site.before = answer
    with pytest.raises(AmprefError, match=words):
        robots(site)


@pytest.mark.parametrize(
    ("status", "header", "words"),
    [
        (b"206", b"Content-Range: bytes " + NINES + b"-", "another byte range"),
        (b"200", b"Content-Length: " + NINES, "ended the file after"),
    ],
)
def test_a_number_of_thousands_of_digits_in_a_files_headers_is_refused(
    site: Site, large: Any, get: Any, status: bytes, header: bytes, words: str
) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> bool:
        if handler.headers.get("Range") is None:
            return False
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 " + status + b"\r\n" + header + b"\r\n\r\n")
        return True

    site.add(large)
    site.break_after = [6_000_000]
    site.before = answer
    with pytest.raises(Unavailable, match=words):
        get()
