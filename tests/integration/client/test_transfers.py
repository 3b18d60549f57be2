"""Transfers that break are resumed, and failures that pass are retried."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from clientkit import partials, same_files
from datasetkit import Site, send_json, send_problem

from amp_core.errors import NotFound, Unavailable


def test_a_broken_transfer_resumes_where_it_broke(site: Site, large: Any, get: Any) -> None:
    site.add(large)
    site.break_after = [5_000_000, 3_000_001, 64]
    pulled = get()
    assert same_files(pulled, large)
    starts = [int(given[6:-1]) if given else 0 for name, given in site.file_requests if name == large.features.name]
    assert len(starts) == 4
    # Bytes that were in flight when the connection broke may be asked for again, whole blocks may not.
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] > 7_000_000


def test_a_service_without_ranges_is_resumed_all_the_same(site: Site, large: Any, get: Any) -> None:
    site.add(large)
    site.ranges = False
    site.break_after = [5_000_000]
    assert same_files(get(), large)


def test_a_service_that_stops_for_good_is_given_up_and_resumed_later(site: Site, large: Any, get: Any, tmp_path: Path) -> None:
    site.add(large)
    site.break_after = [6_000_000] + [0] * 20
    with pytest.raises(Unavailable):
        get()
    assert [path.stat().st_size > 4_000_000 for path in partials(tmp_path)] == [True]
    site.break_after = []
    before = len(site.file_requests)
    assert same_files(get(), large)
    resumed = [given for name, given in site.file_requests[before:] if name == large.features.name]
    assert len(resumed) == 1
    assert int(resumed[0][6:-1]) > 4_000_000  # type: ignore[index]
    assert partials(tmp_path) == []


def test_a_body_in_chunks_arrives_whole(site: Site, large: Any, get: Any) -> None:
    def chunked(handler: BaseHTTPRequestHandler) -> bool:
        if not handler.path.endswith(".npz"):
            return False
        data = site.contents[f"0.11.0/{large.features.name}"]
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(data), 1_000_003):
            part = data[start : start + 1_000_003]
            handler.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")
        return True

    site.add(large)
    site.before = chunked
    assert same_files(get(), large)


def test_a_left_behind_part_with_wrong_bytes_is_not_used(site: Site, large: Any, get: Any, tmp_path: Path) -> None:
    site.add(large)
    site.break_after = [9_000_000] + [0] * 20
    with pytest.raises(Unavailable):
        get()
    [left] = partials(tmp_path)
    with open(left, "r+b") as file:
        file.seek(5_000_000)
        file.write(b"garbage")
    site.break_after = []
    assert same_files(get(), large)
    assert partials(tmp_path) == []


def test_failures_that_pass_are_retried(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    failures = iter([500, 503, 429])

    def fail(handler: BaseHTTPRequestHandler) -> bool:
        status = next(failures, None)
        if status is None or "/files/" not in handler.path:
            return False
        send_problem(handler, status, "unavailable", "busy")
        return True

    site.before = fail
    assert same_files(get(), small)


def test_retry_after_is_honoured(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    times: list[float] = []

    def busy_once(handler: BaseHTTPRequestHandler) -> bool:
        if handler.path.endswith("versions/0.11.0"):
            times.append(time.monotonic())
            if len(times) == 1:
                send_json(handler, {}, 503, Retry_After="1")
                return True
        return False

    site.before = busy_once
    get()
    assert times[1] - times[0] >= 1.0


def test_a_service_that_is_full_is_asked_again_until_the_time_is_over(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    refusals = iter(range(20))

    def full(handler: BaseHTTPRequestHandler) -> bool:
        if next(refusals, None) is None:
            return False
        send_json(handler, {"what": "all readers are at work", "type": "busy"}, 503, Retry_After="0")
        return True

    site.before = full
    assert same_files(get(), small)


def test_a_service_that_asks_for_too_much_patience_is_not_waited_for(site: Site, small: Any, get: Any) -> None:
    def busy(handler: BaseHTTPRequestHandler) -> bool:
        send_json(handler, {"what": "maintenance", "type": "unavailable"}, 503, Retry_After="86400")
        return True

    site.before = busy
    with pytest.raises(Unavailable, match="maintenance"):
        get()
    assert len(site.requests) == 1


def test_what_is_wrong_is_not_retried(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    with pytest.raises(NotFound):
        get("walk==9.9.9")
    assert len(site.requests) == 1
