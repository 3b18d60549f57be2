"""The API as a process behind a real socket: slow and hostile clients, memory, stopping."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from serverkit import MIB, Served, plant_file, serving

from amp_core.errors import Unavailable
from ampref_service.server import listen
from ampref_service.settings import Settings


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), request_timeout_sec=2, keep_alive_sec=1) as server:
        yield server


def _read(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
    return data


def _body(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    return dict(json.loads(body))


def test_a_declared_size_over_the_limit_is_refused_before_the_body(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(
            b"POST /v1/clips HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = _read(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer
    assert _body(answer)["type"] == "urn:ampref:error:too-large"


def test_a_client_that_sends_on_after_a_refusal_still_reads_why(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"POST /v1/clips HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 4000000\r\n\r\n")
        connection.sendall(b" " * 4_000_000)
        answer = _read(connection)
    assert answer.startswith(b"HTTP/1.1 415")
    assert _body(answer)["type"] == "urn:ampref:error:unsupported-media-type"


def test_a_body_that_stops_is_given_up(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(
            b"POST /v1/clips HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\n\r\n--x"
        )
        answer = _read(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert _body(answer)["type"] == "urn:ampref:error:request-timeout"


def test_a_body_that_moves_forward_has_its_time_anew(served: Served) -> None:
    """A line that brings a MiB in the time of a whole small body is slow, and no attack."""
    with served.connect() as connection:
        connection.sendall(
            b"POST /v1/clips:batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: 4194304\r\n\r\n"
        )
        for _ in range(4):
            connection.sendall(bytes(MIB))
            time.sleep(0.8)
        answer = _read(connection)
    # Four MiB of zeros are an archive without members.
    assert not answer.startswith(b"HTTP/1.1 408"), answer


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_stop_are_given_up(served: Served, head: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(head)
        assert _read(connection) == b""


def test_headers_over_the_limit_are_refused_also_where_they_come_at_once(served: Served) -> None:
    for size, status in ((30_000, b"200"), (40_000, b"400")):
        with served.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Fill: " + b"a" * size + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            answer = _read(connection)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b"headers of at most 32,768 bytes" in answer


def test_headers_that_trickle_are_given_up(served: Served) -> None:
    count = 0
    with served.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        for count in range(400):
            connection.sendall(f"X-{count}: 1\r\n".encode())
            time.sleep(0.05)
    assert count < 399


def test_a_connection_may_be_used_again(served: Served) -> None:
    with served.connect() as connection, connection.makefile("rb") as file:
        for _ in range(3):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            head = b"".join(iter(file.readline, b"\r\n"))
            assert head.startswith(b"HTTP/1.1 200")
            length = next(line for line in head.splitlines() if line.startswith(b"content-length:"))
            assert json.loads(file.read(int(length.split()[1])))["status"] == "ok"
        assert file.read() == b""  # closed when it had been idle


def test_headers_that_stop_after_an_answer_are_given_up(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        _read(connection)
    assert 1.5 < time.monotonic() - start < 10.0


def test_requests_in_one_packet_are_answered_in_turn(served: Served) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    with served.connect() as connection:
        connection.sendall(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        assert _read(connection).count(b"HTTP/1.1 200") == 2


def test_what_is_no_http_after_an_answer_is_a_problem(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nHELO there\r\n\r\n")
        first, _, second = _read(connection).partition(b"HTTP/1.1 400")
    assert first.startswith(b"HTTP/1.1 200")
    assert b"urn:ampref:error:bad-request" in second


def test_what_is_no_http_is_a_problem_too(served: Served) -> None:
    for nonsense in (b"HELO there\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"):
        with served.connect() as connection:
            connection.sendall(nonsense)
            answer = _read(connection)
        assert answer.startswith(b"HTTP/1.1 4"), answer[:100]
        assert _body(answer)["type"] == "urn:ampref:error:bad-request"


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**27, 4)})
        for name in ("root_pos", "root_rot", "dof_pos"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header.getvalue())
                for _ in range(512):
                    member.write(b"\0" * MIB)
    return buffer.getvalue()


HOSTILE = {
    "a zip bomb": ("a.npz", _zip_bomb),
    "a pickle that asks for memory": ("a.pkl", lambda: b"\x80\x02r" + b"\xff\xff\xff\x7f" + b"." * 100),
    "a pickle of many small things": ("a.pkl", lambda: b"\x80\x04" + b"](" * (20 * MIB)),
    "deep JSON": ("a.json", lambda: b"[" * (60 * MIB)),
    "JSON of small lists": ("a.json", lambda: b"[" + b"[]," * (20 * MIB) + b"[]]"),
    "a CSV of short rows": ("a.csv", lambda: b"1,2\n" * (15 * MIB)),
    "random bytes": ("a.pkl", lambda: np.random.default_rng(0).bytes(64 * MIB - 1000)),
    "multipart line ends": ("a.pkl", lambda: b"\r\n--" * (15 * MIB)),
}


def test_hostile_uploads_stay_below_512_mib(tmp_path: Path) -> None:
    with serving(tmp_path, request_timeout_sec=120) as served, httpx2.Client(timeout=300) as client:
        for name, (filename, make) in HOSTILE.items():
            data = make()
            answer = client.post(served.url + "/v1/clips", files={"file": (filename, data)})
            assert answer.status_code == 422, f"{name}: {answer.text[:300]}"
            assert answer.json()["type"] == "urn:ampref:error:motion-refused", name
            assert served.memory_with_readers() < 512 * MIB, f"{name}: {served.memory_with_readers() / MIB:.0f} MiB"
        assert client.get(served.url + "/v1/clips").json()["items"] == []
        assert not list((tmp_path / "blobs" / "sha256").rglob("*"))


def test_large_uploads_at_once_stay_below_512_mib(tmp_path: Path) -> None:
    data = b"[" + b"[]," * (20 * MIB) + b"[]]"
    statuses: list[int] = []
    with serving(tmp_path, request_timeout_sec=120, upload_budget_mb=1024) as served:

        def post() -> None:
            statuses.append(httpx2.post(served.url + "/v1/clips", files={"file": ("a.json", data)}, timeout=300).status_code)

        clients = [threading.Thread(target=post) for _ in range(10)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert statuses == [422] * 10
        assert served.memory_with_readers() < 512 * MIB, f"{served.memory_with_readers() / MIB:.0f} MiB"


def test_stopping_with_an_open_event_stream(tmp_path: Path) -> None:
    motion = {
        "fps": 50,
        "root_pos": [[0.0, 0.0, 0.45]] * 51,
        "root_rot": [[0.0, 0.0, 0.0, 1.0]] * 51,
        "dof_pos": [[0.0] * 8] * 51,
    }
    with serving(tmp_path) as served, httpx2.Client(timeout=30) as client:
        posted = client.post(served.url + "/v1/clips", files={"file": ("a.json", json.dumps(motion).encode())})
        job = posted.json()["job"]["id"]
        with client.stream("GET", f"{served.url}/v1/jobs/{job}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("id: ") or next(lines)
            served.process.send_signal(signal.SIGTERM)
            # Well below the 10 s that open requests are given.
            assert served.process.wait(timeout=8) is not None
    assert not psutil.pid_exists(served.process.pid) or served.process.returncode is not None


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """asyncio turns Nagle's algorithm off for the connections of a listener that names its protocol, and for no other."""
    with listen(Settings(data_dir=tmp_path, port=0)) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]), listener.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nope.invalid", "the host's name cannot be resolved"),
        ("x" * 64 + ".invalid", "the host's name cannot be resolved"),
        ("192.0.2.1", "this machine has no such address"),
    ],
)
def test_a_host_that_is_not_here_is_no_port_in_use(tmp_path: Path, host: str, words: str) -> None:
    with pytest.raises(Unavailable, match=words) as refused:
        listen(Settings(data_dir=tmp_path, host=host, port=0))
    assert "--host" in (refused.value.remedy or "")


def test_a_window_that_rots_while_it_is_sent_ends_the_connection(tmp_path: Path) -> None:
    data = bytearray(np.random.default_rng(0).bytes(24 * MIB))
    with serving(tmp_path) as server:
        url, path = plant_file(server, data)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.settimeout(30)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(f"GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            head = connection.recv(64 * 1024)
            path.chmod(0o600)
            with open(path, "r+b") as file:
                file.seek(-1, io.SEEK_END)
                file.write(bytes([data[-1] ^ 1]))
            answer = bytearray(head)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(MIB):
                    answer += part
        headers, _, body = answer.partition(b"\r\n\r\n")
        assert f"content-length: {len(data)}".encode() in headers
        assert MIB < len(body) < len(data)
        assert data.startswith(body)
        assert httpx2.get(server.url + url).json()["type"] == "urn:ampref:error:integrity"
