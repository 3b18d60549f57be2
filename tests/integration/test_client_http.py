"""The client against a real HTTP server: what arrives is verified, resumed, shared between processes, or refused."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from datasetkit import LAYOUT, Site, make_bundle, send_json, send_problem, serving

from amp_core.client import DatasetWarning, Retry, load_dataset, pull
from amp_core.client.http import Connection
from amp_core.client.partials import machine_key
from amp_core.errors import FeatureCodeMismatch, IntegrityError, NotFound, Unavailable
from amp_core.strict_json import canonical_json

QUICK = Retry(attempts=3, timeout=10, wait_initial=0.01, wait_max=0.02, connect=2, read=5)
DEAD = "http://127.0.0.1:9"  # The discard port: nothing listens there.
SPEC = "walk==0.11.0"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bundle(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """About 13 MB: several blocks."""
    return make_bundle(tmp_path_factory.mktemp("large"), clips=4, frames=52_000, seed=1)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


@pytest.fixture
def get(site: Site, tmp_path: Path) -> Callable[..., Any]:
    """Pulls from the site into this test's cache."""

    def call(spec: str = SPEC, **options: Any) -> Any:
        return pull(spec, **({"url": site.url, "cache_dir": tmp_path / "cache", "retry": QUICK} | options))

    return call


@pytest.fixture
def load(site: Site, tmp_path: Path) -> Callable[..., Any]:
    def call(spec: str = SPEC, **options: Any) -> Any:
        return load_dataset(spec, **({"url": site.url, "cache_dir": tmp_path / "cache", "retry": QUICK} | options))

    return call


def same_files(pulled: Any, bundle: Any) -> bool:
    return all(path.read_bytes() == file.path.read_bytes() for path, file in zip(pulled.files, bundle.files, strict=True))


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "partial").iterdir())


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# The main line


def test_a_pulled_version_is_the_locked_one_bit_for_bit(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    pulled = get(manifest_sha256=small.manifest.sha256)
    assert same_files(pulled, small)
    assert [path.name for path in pulled.files] == [file.name for file in small.files]
    assert pulled.downloaded_bytes == sum(file.size for file in small.files)
    assert partials(tmp_path) == []


def test_the_second_pull_downloads_nothing(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    get()
    before = len(site.file_requests)
    assert get().downloaded_bytes == 0
    assert len(site.file_requests) == before


def test_a_loaded_version_is_mapped_and_verified(site: Site, small: Any, load: Any) -> None:
    site.add(small)
    data = load(manifest_sha256=small.manifest.sha256)
    assert isinstance(data.features, np.memmap)
    assert not data.features.flags.writeable
    assert data.features.shape == (small.num_frames, LAYOUT.dim)
    assert np.array_equal(data.features, np.load(small.features.path)["features"])
    assert data.layout == LAYOUT.to_dict()


def test_progress_reaches_the_end(site: Site, large: Any, get: Any) -> None:
    site.add(large)
    seen: list[tuple[int, int]] = []
    get(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (large.features.size, large.features.size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 3


def test_the_lines_to_paste_load_these_bytes(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    text = get().training_config()
    code = text[text.index("from amp_core") :]
    environment = {**os.environ, "AMPREF_URL": site.url, "AMPREF_CACHE": str(tmp_path / "cache")}
    script = code + "print(data.features.shape)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str((small.num_frames, LAYOUT.dim)), done.stderr
    reference = json.loads(re.search(r"reference_data: (.*)", text)[1])  # type: ignore[index]
    assert np.load(reference)["features"].shape == (small.num_frames, LAYOUT.dim)


def test_copies_for_a_folder_have_their_own_names(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    pulled = get(to=tmp_path / "data" / "amp")
    assert sorted(os.listdir(tmp_path / "data" / "amp")) == sorted(file.name for file in small.files)
    assert same_files(pulled, small)
    assert not any(path.is_symlink() for path in pulled.files)


def test_names_for_files_come_from_the_version_and_never_from_the_service(
    site: Site, small: Any, get: Any, tmp_path: Path
) -> None:
    manifest = json.loads(small.manifest.path.read_bytes())
    for file in manifest["files"].values():
        file["name"] = "../../../../evil"
    forge(site, small, manifest)
    get()
    get(to=tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


def forge(site: Site, bundle: Any, manifest: dict[str, Any]) -> None:
    """Serve a manifest of another content, with a digest that fits it."""
    import dataclasses
    import hashlib

    site.add(bundle)
    data = canonical_json(manifest)
    record = dataclasses.replace(bundle.manifest, sha256="sha256:" + hashlib.sha256(data).hexdigest())
    site.versions["0.11.0"] = dataclasses.replace(bundle, manifest=record)
    site.contents[f"0.11.0/{bundle.manifest.name}"] = data


# What differs is refused


def test_another_manifest_than_the_pinned_one_is_refused(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    with pytest.raises(IntegrityError, match="expected sha256:00"):
        get(manifest_sha256="sha256:" + "0" * 64)
    assert not (tmp_path / "cache" / "blobs").exists()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("fault", ["flip", "short", "long"])
def test_other_bytes_than_promised_are_refused_and_not_kept(
    which: int, fault: str, site: Site, small: Any, get: Any, tmp_path: Path
) -> None:
    site.add(small)
    name = f"0.11.0/{small.files[which].name}"
    data = bytearray(site.contents[name])
    if fault == "flip":
        data[len(data) // 2] ^= 1
    site.contents[name] = bytes(data[:-1] if fault == "short" else data + b"x" if fault == "long" else data)
    with pytest.raises((IntegrityError, Unavailable), match=re.escape(small.files[which].name)):
        get()
    digests = {path.name for path in files_in(tmp_path / "cache" / "blobs")}
    assert small.files[which].sha256.removeprefix("sha256:") not in digests


def test_a_dataset_hash_that_the_rows_do_not_have_is_refused(site: Site, small: Any, load: Any) -> None:
    """The files are what the manifest says they are, and the manifest lies about the rows."""
    import dataclasses
    import hashlib

    manifest = json.loads(small.manifest.path.read_bytes())
    stats = json.loads(small.normalization_stats.path.read_bytes())
    manifest["dataset_hash"] = stats["dataset_hash"] = "sha256:" + "0" * 64
    data = canonical_json(stats)
    manifest["files"]["normalization_stats"] |= {"sha256": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}
    forge(site, dataclasses.replace(small), manifest)
    site.contents[f"0.11.0/{small.normalization_stats.name}"] = data
    with pytest.raises(IntegrityError, match="dataset_hash"):
        load()


def test_other_feature_code_is_refused_before_the_rows_are_downloaded(site: Site, small: Any, get: Any) -> None:
    manifest = json.loads(small.manifest.path.read_bytes())
    manifest["feature_code_hash"] = "sha256:" + "9" * 64
    forge(site, small, manifest)
    with pytest.raises(FeatureCodeMismatch, match=r"sha256:9999.*Install the release.*0\.11\.0"):
        get()
    assert [name for name, _ in site.file_requests] == [small.manifest.name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "other/9"}, "follows 'other/9'"),
        ({"name": "run"}, "manifest is of run==0.11.0"),
        ({"version": "9.9.9"}, "manifest is of walk==9.9.9"),
        ({"files": {}}, "does not describe its files"),
        ({"files": {"features": {"size": -1}}}, "does not describe its files"),
        ({"num_frames": "many"}, "num_frames"),
    ],
)
def test_a_manifest_of_something_else_is_refused(change: dict[str, Any], words: str, site: Site, small: Any, get: Any) -> None:
    forge(site, small, json.loads(small.manifest.path.read_bytes()) | change)
    with pytest.raises(IntegrityError, match=words):
        get()


def test_a_locked_version_that_changed_at_the_service_is_refused(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    get()
    other = make_bundle(tmp_path / "other", seed=7)
    site.add(other)
    with pytest.raises(IntegrityError, match="not what it was"):
        get()
    assert same_files(get(manifest_sha256=other.manifest.sha256), other)


def test_what_is_not_there(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    with pytest.raises(NotFound, match="Look at the list"):
        get("walk==9.9.9")
    with pytest.raises(NotFound, match="no such thing"):
        get("run==0.11.0")
    with pytest.raises(NotFound, match="'production'; expected one of latest"):
        get("walk@production")


def test_an_address_where_something_else_listens(site: Site, get: Any) -> None:
    def page(handler: BaseHTTPRequestHandler) -> bool:
        body = b"<html>"
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    site.before = page
    with pytest.raises(Unavailable, match=r"not JSON.*Check the address"):
        get()


# Aliases, yanked versions


def test_aliases_mean_what_the_service_says(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    newer = make_bundle(tmp_path / "newer", version="0.12.0", seed=3)
    site.add(small)
    site.add(newer, "0.12.0")
    site.aliases["production"] = "0.11.0"
    assert get("walk").version == "0.12.0"
    assert get("walk@latest").version == "0.12.0"
    assert get("walk@production").version == "0.11.0"


def test_a_yanked_version_is_pulled_with_a_warning_online_and_offline(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    site.yanked["0.11.0"] = "left foot was mirrored"
    for offline in (False, True):
        with pytest.warns(DatasetWarning, match=r"walk==0\.11\.0 was yanked: left foot was mirrored"):
            assert same_files(get(offline=offline), small)


# Breaks, resumption, retries


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


@pytest.fixture
def tls_site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an https server on this machine that knows one dataset, and its certificate, which nobody trusts yet."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command = [openssl, "req", "-x509", *curve, "-addext", names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            send_json(self, {"name": "walk", "latest": None, "aliases": {}})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[Any, Any]:
            connection, address = self.socket.accept()
            return context.wrap_socket(connection, server_side=True), address

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", certificate
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def redirect(handler: BaseHTTPRequestHandler, target: str) -> bool:
    handler.send_response(302)
    handler.send_header("Location", target)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_a_redirect_to_https_is_verified(site: Site, tls_site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The TLS settings are made when they are first needed; they must be the verifying ones all the same."""
    address, certificate = tls_site
    site.before = lambda handler: redirect(handler, f"{address}{handler.path}")
    impatient = QUICK.impatient()
    for url in (site.url, address):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        connection = Connection(url, retry=impatient)
        try:
            with pytest.raises(Unavailable, match=r"(?i)certificate"):
                connection.json("GET", "v1/datasets/walk")
        finally:
            connection.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        connection = Connection(url, retry=impatient)
        try:
            assert connection.json("GET", "v1/datasets/walk")[1]["name"] == "walk"
        finally:
            connection.close()


def test_tls_settings_are_made_once_and_only_for_tls(
    site: Site, small: Any, get: Any, tls_site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, certificate = tls_site
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", "")
    made, create = [], httpx2.create_ssl_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        made.append(create(*args, **options))
        return made[-1]

    monkeypatch.setattr(httpx2, "create_ssl_context", counted)
    site.add(small)
    assert get().downloaded_bytes > 0
    assert not made
    connection = Connection(address, retry=QUICK.impatient())
    try:
        for _ in range(3):
            connection.json("GET", "v1/datasets/walk")  # The server closes after each: three handshakes.
    finally:
        connection.close()
    (context,) = made
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
