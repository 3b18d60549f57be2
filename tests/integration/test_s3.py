"""The service on a real S3 server, over plain HTTP."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import obstore
import psutil
import pytest
from starlette.testclient import TestClient
from workerkit import CHILD, Bench, environment, settings_for, wait_until

from amp_core.client import DatasetWarning, pull
from amp_core.digests import digest_of
from amp_core.errors import Unavailable
from ampref_service.app import create_app
from ampref_service.blobs import ObjectBlobStore, open_blobs
from ampref_service.blobs.store import blob_key
from ampref_service.catalog import clips, datasets, locking
from ampref_service.catalog.records import Select, Version
from ampref_service.garbage import delete_unreferenced
from ampref_workers.runner import Runner
from bench.servers import S3Server, free_port


@pytest.fixture
def bench(tmp_path: Path, s3_url: str) -> Iterator[Bench]:
    with contextlib.closing(Bench(settings_for(tmp_path, blob_url=s3_url))) as bench:
        yield bench


def lock(bench: Bench, version: str) -> Version:
    """Score a clip and lock it, by the real worker."""
    with bench.catalog.session() as session:
        if not clips.count(session)["total"]:
            bench.submit_score("walk")
    with bench.catalog.begin() as session:
        locking.begin_version(session, "walk", version, Select(robot="wildrobot"))
    runner = Runner(bench.settings, bench.catalog, bench.blobs, command=CHILD)
    while runner.run_once() != "idle":
        pass
    with bench.catalog.session() as session:
        return datasets.get_version(session, "walk", version)


def rot(bench: Bench, digest: str) -> None:
    assert isinstance(bench.blobs, ObjectBlobStore)
    data = bytearray(bench.blobs.read_bytes(digest))
    data[len(data) // 2] ^= 1
    obstore.put(bench.blobs._store, blob_key(digest), bytes(data))


def test_a_version_is_scored_locked_served_damaged_healed_and_pulled(bench: Bench, tmp_path: Path) -> None:
    version = lock(bench, "1.0.0")
    features = next(file for file in version.files if "features" in file.name)
    url = f"/v1/datasets/walk/versions/1.0.0/files/{features.name}"
    with TestClient(create_app(bench.settings)) as http:
        whole = http.get(url)
        assert (whole.status_code, digest_of(whole.content)) == (200, features.digest)
        assert whole.headers["etag"] == f'"{features.digest.removeprefix("sha256:")}"'
        part = http.get(url, headers={"range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, whole.content[100:300])
        head = http.head(url)
        assert (head.status_code, head.headers["content-length"]) == (200, str(features.size))
        assert head.headers["repr-digest"] == whole.headers["repr-digest"]
        assert http.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
        assert http.get("/readyz").json()["status"] == "ready"

        rot(bench, features.digest)
        for answer in (http.get(url), http.get(url, headers={"range": "bytes=0-9"}), http.head(url)):
            assert answer.status_code == 500
        assert "walk==1.0.0" in http.get(url).json()["what"]
        # The same members give the same features, whatever the version is called.
        lock(bench, "1.0.1")
        assert digest_of(http.get(url).content) == features.digest

    assert isinstance(bench.blobs, ObjectBlobStore)
    bench.blobs.put_bytes(b"of a clip that was never committed")
    assert delete_unreferenced(bench.catalog, bench.blobs) == [], "what is young may still be committed"
    for file in version.files:
        bench.blobs.verify(file.digest)

    # From here on the bytes come from the store itself.
    settings = bench.settings.model_copy(update={"redirect_downloads": True})
    with TestClient(create_app(settings), follow_redirects=False) as http:
        origin = http.get("/v1/datasets/walk/versions/1.0.0").json()["download_origin"]
        answer = http.get(url)
        assert (answer.status_code, answer.headers["cache-control"], "etag" in answer.headers) == (307, "no-store", False)
        location = answer.headers["location"]
        assert location.startswith(f"{origin}/")
        assert digest_of(httpx2.get(location).content) == features.digest
        part = httpx2.get(location, headers={"range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, whole.content[100:300])
        assert httpx2.get(location.replace(blob_key(features.digest), blob_key(version.files[-1].digest))).status_code == 403
        assert http.head(url).status_code == 200
        assert http.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    command = [sys.executable, str(Path(__file__).with_name("api") / "server.py"), str(bench.settings.data_dir)]
    command.append("redirect_downloads=true")
    with subprocess.Popen([*command, f"blob_url={bench.settings.blob_url}"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with pytest.warns(DatasetWarning, match="not ready"):
                local = pull("walk==1.0.0", url=address, cache_dir=tmp_path / "cache")
            digests = {digest_of(path.read_bytes()) for path in local.files}
            assert digests == {file.digest for file in version.files}
        finally:
            server.kill()


def test_a_bucket_that_is_not_there_is_named(s3_url: str) -> None:
    with pytest.raises(Unavailable, match="the blob store s3://nowhere/x has no bucket"):
        list(open_blobs("s3://nowhere/x").iter_digests())


def test_what_the_store_says_is_in_the_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_blobs(s3_url).check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Unavailable, match="AMPREF_BLOB_URL, its credentials"):
        open_blobs(s3_url).check()


def test_a_dead_endpoint_is_an_error_within_seconds(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    start = time.monotonic()
    store = open_blobs(s3_url)
    for call in (store.check, lambda: store.put_bytes(b"x")):
        with pytest.raises(Unavailable, match="the blob store s3://ampref/"):
            call()
    # Not a matter of speed: without bounds of our own it takes the library three minutes.
    assert time.monotonic() - start < 60


def test_a_frozen_endpoint_fails_the_check(s3_server: S3Server, s3_url: str) -> None:
    store = open_blobs(s3_url)
    store.check()
    s3_server.process.send_signal(signal.SIGSTOP)
    try:
        # On a busy machine its threads run on for a moment.
        process = psutil.Process(s3_server.process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the server is stopped")
        with pytest.raises(Unavailable, match="the blob store s3://ampref/"):
            store.check()
    finally:
        s3_server.process.send_signal(signal.SIGCONT)
    store.check()


@pytest.mark.parametrize("verb", ["up", "api"])
def test_nothing_is_up_whose_store_cannot_be_reached(tmp_path: Path, s3_url: str, verb: str) -> None:
    settings = settings_for(tmp_path, blob_url=s3_url, port=0)
    settings.data_dir.mkdir(parents=True)
    variables = environment(settings) | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "amp_core.cli", verb]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode != 0
    assert "the blob store s3://ampref/" in ended.stderr
    assert "ampref is up" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
