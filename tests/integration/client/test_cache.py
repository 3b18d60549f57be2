"""The cache without a service, damaged, full, and shared between processes."""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clientkit import DEAD, QUICK, SPEC, files_in, partials, same_files
from datasetkit import LAYOUT, Site, make_bundle

from amp_core.client import DatasetWarning, pull
from amp_core.client.partials import machine_key
from amp_core.errors import IntegrityError, NotFound, Unavailable

# Offline


def test_a_whole_cache_serves_without_a_service(site: Site, small: Any, get: Any, load: Any, caplog: Any) -> None:
    site.add(small)
    get("walk")
    asked = len(site.requests)
    assert load(offline=True).features.shape[0] == small.num_frames
    assert len(site.requests) == asked
    # The same service (its address is the references' key), now silent.
    site.before = lambda handler: setattr(handler, "close_connection", True) or True
    with caplog.at_level(logging.WARNING, "amp_core.client"):
        assert same_files(get(), small)
    assert "using the cache" in caplog.text
    with pytest.warns(DatasetWarning, match=r"last meant version 0\.11\.0; write walk==0\.11\.0"):
        assert same_files(get("walk"), small)


def test_a_pinned_version_needs_no_particular_service(site: Site, small: Any, get: Any, load: Any) -> None:
    site.add(small)
    get()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(url=DEAD, manifest_sha256=small.manifest.sha256).features.shape[0] == small.num_frames
        assert load(url=DEAD, offline=True, manifest_sha256=small.manifest.sha256).features.shape[0] == small.num_frames


def test_offline_by_environment(site: Site, small: Any, get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add(small)
    get()
    asked = len(site.requests)
    monkeypatch.setenv("AMPREF_OFFLINE", "1")
    assert get().downloaded_bytes == 0
    assert len(site.requests) == asked


def test_offline_without_a_whole_cache_says_what_to_do(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    with pytest.raises(NotFound, match=r"ampref pull walk==0\.11\.0.*same cache"):
        get(offline=True)
    get()
    features = tmp_path / "cache" / "blobs" / "sha256" / small.features.sha256[7:9] / small.features.sha256[7:]
    features.unlink()
    with pytest.raises(NotFound, match="missing and no service"):
        get(offline=True)


def test_no_service_and_no_cache(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot be reached.*AMPREF_URL"):
        pull(SPEC, url=DEAD, cache_dir=tmp_path, retry=QUICK)


# Damaged, read-only and full caches


def test_a_damaged_cache_is_noticed_and_mended(
    site: Site, large: Any, get: Any, load: Any, tmp_path: Path, caplog: Any
) -> None:
    site.add(large)
    get()
    for file in large.files:
        blob = tmp_path / "cache" / "blobs" / "sha256" / file.sha256[7:9] / file.sha256[7:]
        blob.chmod(0o644)
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        with pytest.raises(IntegrityError, match="damaged and no service"):
            load(offline=True)
        with caplog.at_level(logging.WARNING, "amp_core.client"):
            assert load().pulled.downloaded_bytes == file.size
        assert "is damaged; downloading it again" in caplog.text
        assert blob.read_bytes() == file.path.read_bytes()


def test_what_a_power_failure_has_emptied_is_downloaded_again(
    site: Site, small: Any, get: Any, load: Any, tmp_path: Path
) -> None:
    site.add(small)
    get().wait_for_disk()
    for path in [*files_in(tmp_path / "cache" / "blobs"), *files_in(tmp_path / "cache" / "refs")]:
        path.chmod(0o644)
        path.write_bytes(b"")
    assert load().pulled.downloaded_bytes == sum(file.size for file in small.files)
    assert load(offline=True).features.shape == (small.num_frames, LAYOUT.dim)


def test_what_was_downloaded_is_synced_before_a_load_returns(
    site: Site, small: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.05)
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", slow)
    site.add(small)
    load()
    written = [*files_in(tmp_path / "cache" / "blobs"), *files_in(tmp_path / "cache" / "refs")]
    assert {path.stat().st_ino for path in written} <= synced
    assert {path.parent.stat().st_ino for path in written} <= synced


def test_what_the_disk_does_not_take_is_not_kept(
    site: Site, small: Any, get: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    site.add(small)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="cannot be written"):
            load()
        assert files_in(tmp_path / "cache" / "blobs") == []
        with pytest.raises(Unavailable, match="cannot be written"):
            get().wait_for_disk()
    assert load().pulled.downloaded_bytes > 0


def pull_without_privileges(url: str, cache: Path, out: Any) -> None:
    """Pull what is cached and what is not, as somebody to whom the permissions of folders apply."""
    if os.geteuid() == 0:
        # Root without capabilities is an ordinary owner (capset(2), version 3, everything cleared).
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capset(ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0)), ctypes.create_string_buffer(24))
    pulled = pull(SPEC, url=url, cache_dir=cache, retry=QUICK)
    try:
        pull("walk==0.12.0", url=url, cache_dir=cache, retry=QUICK)
        said = "nothing"
    except Unavailable as error:
        said = str(error)
    out.put((pulled.downloaded_bytes, said))


def test_a_cache_that_cannot_be_written_serves_what_it_holds(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    get()
    site.add(make_bundle(tmp_path / "other", version="0.12.0", seed=3), "0.12.0")
    folders = [tmp_path / "cache", *(path for path in (tmp_path / "cache").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        downloaded, said = in_child(pull_without_privileges, site.url, tmp_path / "cache")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert downloaded == 0
    assert re.search(r"cache cannot be written.*AMPREF_CACHE", said)


def in_child(function: Callable[..., None], *args: Any) -> Any:
    """What the function puts into its queue, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=function, args=(*args, out), daemon=True)
    process.start()
    result = out.get(timeout=60)
    process.join()
    return result


def limited_pull(url: str, cache: Path, out: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, 6 << 20))
    try:
        pull(SPEC, url=url, cache_dir=cache, retry=QUICK)
    except Unavailable as error:
        out.put(str(error))


def test_a_cache_without_room_says_so_and_keeps_nothing(site: Site, large: Any, tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: both make a write fail."""
    site.add(large)
    said = in_child(limited_pull, site.url, tmp_path / "cache")
    assert re.search(r"no room for [\d,]+ bytes.*Make room.*AMPREF_CACHE", said)
    assert partials(tmp_path) == []


# Many processes, and processes that die


def pull_in_child(url: str, cache: Path, out: Any, gate: Any) -> None:
    gate.wait()
    pulled = pull(SPEC, url=url, cache_dir=cache, retry=QUICK)
    out.put((pulled.manifest_sha256, pulled.downloaded_bytes, np.load(pulled.features)["features"].shape[0]))


def test_many_processes_share_one_cache(site: Site, large: Any, tmp_path: Path) -> None:
    site.add(large)
    context = multiprocessing.get_context("spawn")
    out, gate = context.Queue(), context.Event()
    processes = [
        context.Process(target=pull_in_child, args=(site.url, tmp_path / "cache", out, gate), daemon=True) for _ in range(3)
    ]
    for process in processes:
        process.start()
    gate.set()
    results = [out.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert {(digest, rows) for digest, _, rows in results} == {(large.manifest.sha256, large.num_frames)}
    assert partials(tmp_path) == []
    assert len(files_in(tmp_path / "cache" / "blobs")) == 3


def test_a_download_that_was_killed_is_taken_over(site: Site, large: Any, get: Any, tmp_path: Path) -> None:
    site.add(large)
    release = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> bool:
        """Send 9 MB of the features, then nothing more."""
        if not handler.path.endswith(".npz"):
            return False
        data = site.contents[f"0.11.0/{large.features.name}"]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:9_000_000])
        release.wait(60)
        handler.close_connection = True
        return True

    site.before = stall
    context = multiprocessing.get_context("spawn")
    gate, out = context.Event(), context.Queue()
    gate.set()
    child = context.Process(target=pull_in_child, args=(site.url, tmp_path / "cache", out, gate), daemon=True)
    child.start()
    deadline = time.monotonic() + 60
    folder = tmp_path / "cache" / "partial"
    prefix = large.features.sha256.removeprefix("sha256:")
    while sum(p.stat().st_size for p in folder.glob(f"{prefix}.*")) < 8 << 20 if folder.exists() else True:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
    child.join()
    release.set()
    site.before = None
    before = len(site.file_requests)
    assert same_files(get(), large)
    [(name, given)] = site.file_requests[before:]
    assert name == large.features.name
    assert int(given[6:-1]) >= 8 << 20  # type: ignore[index]
    assert partials(tmp_path) == []


def test_parts_that_nobody_has_touched_for_a_day_are_swept(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "partial"
    folder.mkdir(parents=True)
    elsewhere = "0123456789ab"
    old, young = f"{'a' * 64}.{elsewhere}.77.0123456789ab", f"{'b' * 64}.{elsewhere}.77.0123456789ab"
    stranger = "somebody's notes"
    for name, days in ((old, 1.1), (young, 0.9), (stranger, 30.0)):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (time.time() - 86_400 * days,) * 2)
    site.add(small)
    get()
    assert {path.name for path in partials(tmp_path)} == {young, stranger}


def test_waiting_for_a_peer_ends_with_its_file(site: Site, large: Any, get: Any, tmp_path: Path) -> None:
    """While another process of this machine downloads a file, this one waits for it and downloads nothing."""
    site.add(large)
    get()
    blob = tmp_path / "cache" / "blobs" / "sha256" / large.features.sha256[7:9] / large.features.sha256[7:]
    aside = tmp_path / "aside"
    blob.rename(aside)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        peer = tmp_path / "cache" / "partial" / f"{blob.name}.{machine_key()}.{sleeper.pid}.00"
        peer.write_bytes(b"x")

        def finish() -> None:
            time.sleep(0.5)
            os.replace(aside, blob)
            peer.unlink()

        thread = threading.Thread(target=finish)
        thread.start()
        before = len(site.file_requests)
        assert get().downloaded_bytes == 0
        assert len(site.file_requests) == before
        thread.join()
    finally:
        sleeper.kill()
        sleeper.wait()
