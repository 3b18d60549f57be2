"""Large files, which the kernel sends: the same bytes, ranges and ends of connections as of small ones."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from serverkit import MIB, Served, plant_file, serving
from workerkit import wait_until

DATA = np.random.default_rng(0).bytes(24 * MIB + 5)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str, Path]]:
    folder = tmp_path_factory.mktemp("stage")
    with open(folder / "log", "wb") as log, serving(folder, stderr=log) as server:
        url, _ = plant_file(server, DATA)
        yield server, url, folder / "log"


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        (None, 0, len(DATA)),
        ("bytes=0-", 0, len(DATA)),
        ("bytes=3-", 3, len(DATA)),
        (f"bytes={8 * MIB - 1}-{16 * MIB + 1}", 8 * MIB - 1, 16 * MIB + 2),
        (f"bytes=-{9 * MIB}", 15 * MIB + 5, len(DATA)),
        (f"bytes={7 * MIB + 1}-", 7 * MIB + 1, len(DATA)),
    ],
)
def test_the_kernel_sends_the_bytes_that_were_asked_for(
    stage: tuple[Served, str, Path], header: str | None, start: int, stop: int
) -> None:
    server, url, _ = stage
    answer = httpx2.get(server.url + url, headers={"range": header} if header else {})
    assert answer.status_code == (206 if header else 200)
    assert answer.headers["connection"] == "close", "as uvicorn has not seen the body"
    assert answer.headers["content-length"] == str(stop - start)
    assert answer.content == DATA[start:stop]


def test_other_answers_keep_the_connection(stage: tuple[Served, str, Path]) -> None:
    server, url, _ = stage
    with httpx2.Client(base_url=server.url) as client:
        head = client.head(url)
        assert (head.headers["content-length"], "connection" in head.headers) == (str(len(DATA)), False)
        small = client.get(url, headers={"range": "bytes=5-1000"})
        assert (small.content, "connection" in small.headers) == (DATA[5:1001], False)
        assert client.get(url, headers={"if-none-match": head.headers["etag"]}).status_code == 304


def test_a_request_behind_a_large_answer_does_not_cut_it(stage: tuple[Served, str, Path]) -> None:
    """Bytes that nobody reads make a kernel reset the connection, and with it what is on the way."""
    server, url, _ = stage
    request = f"GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    with server.connect() as connection:
        connection.sendall(request + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = bytearray()
        while part := connection.recv(MIB):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == DATA


def test_a_client_that_leaves_costs_nothing(stage: tuple[Served, str, Path]) -> None:
    server, url, log = stage
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(f"GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert connection.recv(MIB).startswith(b"HTTP/1.1 200")
    wait_until(lambda: process.num_fds() <= before, "files and connections are closed")
    assert httpx2.get(server.url + url).content == DATA
    assert b"Traceback" not in log.read_bytes()
    assert b"without completing" not in log.read_bytes()


def test_others_are_answered_beside_slow_readers(stage: tuple[Served, str, Path]) -> None:
    server, url, _ = stage
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(server.connect())
            connection.sendall(f"GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert httpx2.get(server.url + "/healthz", timeout=20).status_code == 200
        assert httpx2.get(server.url + "/v1/clips", timeout=20).status_code == 200
        received = [0]

        def read() -> None:
            while part := connection.recv(MIB):
                received[0] += len(part)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(60)
        assert received[0] > len(DATA), "the last of them gets all, although the others read nothing"


def test_rot_at_the_beginning_is_refused_and_later_ends_the_answer(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log, serving(tmp_path, stderr=log) as server:
        url, path = plant_file(server, DATA)
        path.chmod(0o600)
        assert httpx2.head(server.url + url).status_code == 200
        status = path.stat()
        flip(path, 20 * MIB)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(server.url + url)
        # Set aside, and put back by the next upload, here by hand.
        assert httpx2.get(server.url + url).json()["type"] == "urn:ampref:error:integrity"
        path.write_bytes(DATA)
        assert httpx2.head(server.url + url).status_code == 200
        status = path.stat()
        flip(path, 5)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        refusal = httpx2.get(server.url + url)
        assert (refusal.status_code, refusal.json()["type"]) == (500, "urn:ampref:error:integrity")
    assert b"Traceback" not in (tmp_path / "log").read_bytes()
    assert (tmp_path / "log").read_bytes().count(b"answer_broken_off") == 1


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_slow_reader_does_not_keep_a_server_from_stopping(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log, serving(tmp_path, stderr=log, shutdown_grace_sec=1) as server:
        url, _ = plant_file(server, DATA)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(f"GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=20) is not None
    assert b"Traceback" not in (tmp_path / "log").read_bytes()
