"""A version whose features are in shards: pulled in parallel, mapped as one, each file verified by itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clientkit import partials, same_files
from datasetkit import LAYOUT, Site, make_bundle, send_json

from amp_core.client import Retry
from amp_core.errors import IntegrityError


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six shards, five of 8,192 rows."""
    return make_bundle(tmp_path_factory.mktemp("large"), clips=5, frames=9_000, shard_bytes=700_000)


def test_all_shards_are_pulled_and_mapped_as_one_array(site: Site, large: Any, load: Any, get: Any, tmp_path: Path) -> None:
    site.add(large)
    seen: list[tuple[int, int]] = []
    pulled = get(manifest_sha256=large.manifest.sha256, progress=lambda amount, total: seen.append((amount, total)))
    assert same_files(pulled, large)
    assert len(pulled.shards) == 6
    size = sum(file.size for file in large.shards)
    assert seen[-1] == (size, size)
    assert [amount for amount, _ in seen] == sorted(amount for amount, _ in seen)
    data = load()
    assert data.features.shape == (large.num_frames, LAYOUT.dim)
    assert not data.features.flags.writeable
    expected = np.concatenate([np.load(file.path)["features"] for file in large.shards])
    assert np.array_equal(data.features, expected)
    # A pair whose rows lie in two shards is a transition like any other.
    first, second = data.sample_transitions(np.random.default_rng(0), 300_000)
    rows = {row.tobytes(): number for number, row in enumerate(data.features)}
    firsts = np.array([rows[row.tobytes()] for row in first])
    assert np.array_equal(second, data.features[firsts + 1])
    assert 8191 in firsts
    assert partials(tmp_path) == []


def test_shards_are_fetched_side_by_side(site: Site, large: Any, get: Any) -> None:
    """Each of the first requests is answered only when another one has come."""
    site.add(large)
    together = threading.Barrier(2, timeout=5)

    def meet(handler: BaseHTTPRequestHandler) -> bool:
        if "-of-" in handler.path:
            together.wait()
        return False

    site.before = meet
    assert same_files(get(), large)


def test_the_first_shard_alone_is_refused_as_the_features(site: Site, large: Any, get: Any) -> None:
    site.add(large)
    pulled = get()
    with pytest.raises(ValueError, match="are in 6 files: use `shards`, or `load_dataset`"):
        _ = pulled.features
    facts = pulled.to_dict()
    assert (facts["features"], facts["shards"]) == (None, [str(path) for path in pulled.shards])
    assert all(str(path) in pulled.training_config() for path in pulled.shards)


def test_copies_have_the_shards_names(site: Site, large: Any, get: Any, tmp_path: Path) -> None:
    site.add(large)
    get(to=tmp_path / "copies")
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == sorted(file.name for file in large.files)


def test_a_damaged_shard_ends_the_pull_and_the_intact_ones_stay(site: Site, large: Any, get: Any, tmp_path: Path) -> None:
    site.add(large)
    name = f"0.11.0/{large.shards[5].name}"
    data = bytearray(site.contents[name])
    data[100_000] ^= 1
    site.contents[name] = bytes(data)
    with pytest.raises(IntegrityError, match="sent other bytes"):
        get()
    blobs = {path.name for path in tmp_path.rglob("sha256/*/*")}
    complete = {file.name for file in large.shards if file.sha256.removeprefix("sha256:") in blobs}
    assert len(complete) >= 2, "four at a time: the sixth is begun when two have ended"
    site.contents[name] = large.shards[5].path.read_bytes()
    num_requests = len(site.file_requests)
    assert same_files(get(), large)
    fetched = {file for file, _ in site.file_requests[num_requests:]}
    assert large.shards[5].name in fetched
    assert not fetched & complete
    assert partials(tmp_path) == []


def stall(handler: BaseHTTPRequestHandler, data: bytes, amount: int) -> None:
    """The first bytes of an answer, and no more for half a minute."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:amount])
    handler.wfile.flush()
    time.sleep(30)


def refuse_for_long(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    send_json(handler, {"what": "maintenance"}, 503, Retry_After="30")


@pytest.mark.parametrize(
    ("answer", "sizes"),
    [
        (refuse_for_long, []),
        (lambda handler, data: stall(handler, data, 0), []),
        (lambda handler, data: stall(handler, data, 300_000), [300_000] * 4),
        (lambda handler, data: time.sleep(30), []),
    ],
    ids=["503", "no byte", "some bytes", "no headers"],
)
def test_ctrl_c_ends_a_pull_at_once_and_keeps_what_came(
    site: Site,
    large: Any,
    get: Any,
    tmp_path: Path,
    answer: Callable[[BaseHTTPRequestHandler, bytes], None],
    sizes: list[int],
) -> None:
    site.add(large)
    waiting = threading.Semaphore(0)

    def wait(handler: BaseHTTPRequestHandler) -> bool:
        if "-of-" not in handler.path:
            return False
        waiting.release()
        answer(handler, site.contents[f"0.11.0/{handler.path.rpartition('/')[2]}"])
        handler.close_connection = True
        return True

    times, end = [], time.monotonic() + 20

    def interrupt() -> None:
        for _ in range(4):
            waiting.acquire(timeout=10)
        while time.monotonic() < end and sum(path.stat().st_size for path in partials(tmp_path)) < sum(sizes):
            time.sleep(0.02)
        time.sleep(0.2)
        times.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    site.before = wait
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        get(retry=Retry(timeout=60))
    assert time.monotonic() - times[0] < 2.5
    assert not [thread for thread in threading.enumerate() if thread.name == "ampref-pull"]
    assert [path.stat().st_size for path in partials(tmp_path)] == sizes
    site.before = None
    assert same_files(get(), large)
    assert partials(tmp_path) == []


def test_a_failure_ends_the_other_downloads(site: Site, large: Any, get: Any) -> None:
    """One shard is damaged, two others stall, and one is to come back for later: nobody waits for them."""
    site.add(large)
    waiting = threading.Semaphore(0)

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        number = next((number for number, shard in enumerate(large.shards) if shard.name in handler.path), None)
        if number == 0:
            for _ in range(3):
                waiting.acquire(timeout=10)
            handler.send_response(200)
            handler.send_header("Content-Length", str(large.shards[0].size))
            handler.end_headers()
            handler.wfile.write(b"x" * large.shards[0].size)
        elif number is not None:
            waiting.release()
            if number == 3:
                refuse_for_long(handler, b"")
            else:
                stall(handler, site.contents[f"0.11.0/{large.shards[number].name}"], 1024)
        return number is not None

    site.before = answer
    started = time.monotonic()
    with pytest.raises(IntegrityError, match="sent other bytes"):
        get(retry=Retry(timeout=60))
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "ampref-pull"]
