"""A version whose features are in shards: pulled in parallel, mapped as one, each file verified by itself."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clientkit import partials, same_files
from datasetkit import LAYOUT, Site, make_bundle

from amp_core.errors import IntegrityError, Unavailable


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
    site.contents[name] = large.shards[5].path.read_bytes()
    num_requests = len(site.file_requests)
    assert same_files(get(), large)
    fetched = {file for file, _ in site.file_requests[num_requests:]}
    assert large.shards[5].name in fetched
    assert large.shards[0].name not in fetched, "it was complete"
    assert partials(tmp_path) == []


def test_a_failure_ends_the_other_downloads(site: Site, large: Any, get: Any) -> None:
    """The service is gone for one shard, and trickles the others: nobody waits for them."""
    site.add(large)

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        if large.shards[0].name in handler.path:
            handler.send_error(503)
            return True
        if "-of-" in handler.path:
            handler.send_response(200)
            handler.send_header("Content-Length", str(large.shards[0].size))
            handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b"x" * 1024)
                handler.wfile.flush()
                time.sleep(0.1)
        return False

    site.before = answer
    started = time.monotonic()
    with pytest.raises(Unavailable):
        get()
    assert time.monotonic() - started < 30
