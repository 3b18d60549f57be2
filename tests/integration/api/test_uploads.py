"""Uploads that cannot take the service down: limits of readers, admission by bytes, a full disk, clients that leave."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from serverkit import MIB, Served, serving

from amp_core.errors import AmprefError, MotionRefused, TooLarge, Unavailable
from amp_core.formats import Limits
from ampref_service.readers import ReaderPool
from ampref_service.settings import Settings
from ampref_service.spool import Spool

ROBOT: Any = SimpleNamespace(name="wildrobot", digest="sha256:0")


def clip_bytes(seed: int = 0, frames: int = 51) -> bytes:
    """A clip that stands, as an npz; each seed gives other bytes."""
    buffer = io.BytesIO()
    dof = np.zeros((frames, 8))
    dof[:, 2] = 0.2 + 0.05 * np.sin(np.arange(frames) / 8 + seed)
    root_pos, root_rot = np.tile([0, 0, 0.45], (frames, 1)), np.tile([0, 0, 0, 1.0], (frames, 1))
    np.savez_compressed(buffer, fps=500.0, root_pos=root_pos, root_rot=root_rot, dof_pos=dof)
    return buffer.getvalue()


def post(url: str, data: bytes, name: str = "a.npz") -> httpx2.Response:
    return httpx2.post(url + "/v1/clips", files={"file": (name, data)}, timeout=120)


@contextlib.contextmanager
def stopping(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def wait_until(is_so: Any) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One reader, few uploads at a time; its log is `log` in its folder."""
    folder = tmp_path_factory.mktemp("served")
    with (
        (folder / "log").open("w") as log,
        serving(folder, stderr=log, upload_readers=1, max_uploads=12, upload_budget_mb=4, request_timeout_sec=60) as served,
    ):
        assert post(served.url, clip_bytes(99)).status_code == 202
        yield served


def test_a_flood_is_answered_and_the_api_parses_nothing_of_it(served: Served) -> None:
    before = served.memory()
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: post(served.url, clip_bytes(seed, 20_000)), range(24)))
    answers += [post(served.url, b"[" + b"[]," * 500_000 + b"[]]", "a.json")]
    for answer in answers:
        assert answer.status_code in (202, 422, 503), answer.text
        if answer.status_code == 503:
            assert answer.json()["type"] == "urn:ampref:error:busy"
            assert int(answer.headers["retry-after"]) > 0
    accepted = {answer.json()["clip"]["id"] for answer in answers if answer.status_code == 202}
    assert len(accepted) >= 12, "as many as there is room for are taken"
    assert accepted < {clip["id"] for clip in httpx2.get(served.url + "/v1/clips?limit=200").json()["items"]}
    assert served.memory() - before < 64 * MIB, "one such clip takes more than that to read"


def test_reads_do_not_wait_for_uploads(served: Served) -> None:
    with ThreadPoolExecutor(10) as pool:
        with stopping(served.readers()):
            uploads = [pool.submit(post, served.url, clip_bytes(seed)) for seed in range(100, 110)]
            wait_until(lambda: len(served.spooled()) == 10)
            for path in ("/healthz", "/readyz", "/v1/clips", "/v1/jobs"):
                assert httpx2.get(served.url + path, timeout=20).status_code == 200
            assert not any(upload.done() for upload in uploads)
        assert {upload.result().status_code for upload in uploads} == {202}


def test_a_client_that_left_is_not_parsed_for(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        with stopping(served.readers()):
            first = pool.submit(post, served.url, clip_bytes(200))
            wait_until(lambda: len(served.spooled()) == 1)
            form = httpx2.Request("POST", served.url, files={"file": ("left.npz", clip_bytes(201))})
            with served.connect() as leaving:
                head = f"POST /v1/clips HTTP/1.1\r\nHost: x\r\nContent-Type: {form.headers['content-type']}\r\n"
                leaving.sendall(f"{head}Content-Length: {form.headers['content-length']}\r\n\r\n".encode() + form.read())
                wait_until(lambda: len(served.spooled()) == 2)
            wait_until(lambda: len(served.spooled()) == 1)
        assert first.result().status_code == 202
    assert post(served.url, clip_bytes(202)).status_code == 202, "the reader has come to what was behind it"
    assert "left" not in {clip["name"] for clip in httpx2.get(served.url + "/v1/clips?limit=200").json()["items"]}


def test_what_arrives_counts_before_it_has_arrived(served: Served) -> None:
    head = b"POST /v1/clips HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with served.connect() as first:
        first.sendall(head + b"Content-Length: 4000000\r\n\r\n--x")
        wait_until(lambda: post(served.url, clip_bytes(1, 40_000)).status_code == 503)
        with served.connect() as second:
            second.sendall(head + b"Content-Length: 500000\r\nExpect: 100-continue\r\n\r\n")
            answer = second.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503"), "said before the body is asked for"
        assert b"retry-after: " in answer
    wait_until(lambda: post(served.url, clip_bytes(1, 40_000)).status_code == 202)


def test_a_disk_without_room_is_said_and_seen(served: Served) -> None:
    folder, big = served.folder / "uploads", clip_bytes(300, 40_000)
    process = psutil.Process(served.process.pid)
    _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (50_000, hard))
    for _ in range(3):
        answer = post(served.url, big)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, "urn:ampref:error:disk-full"), problem
        assert str(folder) in problem["detail"]
        assert "retry-after" in answer.headers
    ready = httpx2.get(served.url + "/readyz")
    assert ready.status_code == 503
    [uploads] = [component for component in ready.json()["components"] if component["name"] == "uploads"]
    assert not uploads["ok"]
    assert str(folder) in uploads["detail"]
    process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
    assert httpx2.get(served.url + "/readyz").status_code == 200
    assert post(served.url, big).status_code == 202
    lines = [json.loads(line) for line in (served.folder / "log").read_text().splitlines()]
    assert [line["event"] for line in lines].count("uploads_refused") == 1
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_gone_is_said_and_seen(served: Served) -> None:
    folder = served.folder / "uploads"
    folder.rmdir()
    answer = post(served.url, clip_bytes(400))
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:ampref:error:unavailable"), answer.text
    assert str(folder) in answer.json()["detail"]
    assert httpx2.get(served.url + "/readyz").status_code == 503
    folder.mkdir()
    assert httpx2.get(served.url + "/readyz").status_code == 200
    assert post(served.url, clip_bytes(400)).status_code == 202


def test_an_upload_waits_for_a_reader_no_longer_than_a_request_may_take_and_nothing_is_left(tmp_path: Path) -> None:
    with (
        serving(tmp_path, request_timeout_sec=1, upload_readers=1, reader_timeout_sec=60) as served,
        ThreadPoolExecutor(2) as pool,
    ):
        wait_until(lambda: post(served.url, clip_bytes()).status_code == 202)  # Once the reader is up.
        readers = served.readers()
        with stopping(readers):
            answers = [pool.submit(post, served.url, clip_bytes(seed)) for seed in (1, 2)]
            wait_until(lambda: any(answer.done() for answer in answers))
            [busy] = [answer.result() for answer in answers if answer.done()]
            assert (busy.status_code, busy.json()["type"]) == (503, "urn:ampref:error:busy")
            assert served.spooled()
            served.process.kill()
            served.process.wait()
        psutil.wait_procs(readers, timeout=60)
        assert not any(reader.is_running() for reader in readers)
    assert list((tmp_path / "uploads").iterdir()) == []


def make_pool(folder: Path, wall_factor: float) -> ReaderPool:
    settings = Settings(data_dir=folder, reader_memory_mb=256, reader_timeout_sec=0.3)
    command = (sys.executable, "-P", str(Path(__file__).with_name("misbehaving_reader.py")))
    return ReaderPool(settings, Spool(settings), command=command, wall_factor=wall_factor)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReaderPool]:
    with contextlib.closing(make_pool(tmp_path_factory.mktemp("pool"), 1000.0)) as pool:
        yield pool


def ask(pool: ReaderPool, what: str, **request: Any) -> Any:
    with open(os.devnull, "r+b") as file:
        return pool.read("misbehave", ROBOT, Limits(), [file], name="a.npz", what=what, **request).result(60)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("spin", TooLarge, "more than 0.3 s of processor time"),
        ("swallow", TooLarge, "can be read in 256 MiB"),
        ("SIGSEGV", MotionRefused, "ended with SIGSEGV"),
        ("leave", MotionRefused, "ended with status 7"),
        ("SIGKILL", Unavailable, "its reader was killed"),
        ("raise", RuntimeError, "no fault of the file"),
    ],
)
def test_a_reader_that_ends_badly_costs_its_own_upload_alone(
    pool: ReaderPool, what: str, kind: type[Exception], words: str
) -> None:
    with ThreadPoolExecutor(4) as clients:
        others = [clients.submit(ask, pool, "well") for _ in range(3)]
        with pytest.raises(kind, match=words) as raised:
            ask(pool, what)
        assert {other.result() for other in others} == {"well"}
    assert ask(pool, "well") == "well"
    if isinstance(raised.value, AmprefError) and what != "SIGKILL":
        assert raised.value.file == "a.npz"


@pytest.mark.parametrize("what", ["sleep", "SIGSTOP"])
def test_a_reader_that_stands_still_is_no_fault_of_the_file(tmp_path: Path, what: str) -> None:
    with contextlib.closing(make_pool(tmp_path, 3.0)) as pool, pytest.raises(Unavailable, match=r"not read within 0\.9 s"):
        ask(pool, what)


def test_a_reader_that_cannot_start_is_no_fault_of_the_file(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, upload_readers=1)
    with contextlib.closing(ReaderPool(settings, Spool(settings), command=(sys.executable, "-c", "no module"))) as pool:
        for _ in range(2):
            with pytest.raises(Unavailable, match="no reader of uploads can be started"):
                ask(pool, "well")


def test_a_reader_that_somebody_killed_is_no_fault_of_the_file(pool: ReaderPool, tmp_path: Path) -> None:
    assert ask(pool, "SIGKILL", once=str(tmp_path / "once")) == "well"


def test_a_reader_has_no_secrets_and_a_low_claim(pool: ReaderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_DATABASE_URL", "postgresql://user:secret@host/db")
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    environments = [ask(pool, "environment") for _ in range(4)]
    assert not any("secret" in json.dumps(environment) for environment in environments)
    assert ask(pool, "niceness") == min(os.nice(0) + 5, 19)
