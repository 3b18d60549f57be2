"""A database server that is stopped in the middle of everything: its kernel goes on acknowledging, and it never answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import text
from workerkit import wait_until

from ampref_service.catalog import Catalog, schema
from bench.servers import postgres

CLIP = Path(__file__).parents[2] / "amp_core/motions/squat.json"


def processes_of(url: str) -> list[int]:
    """The process ids of a PostgreSQL server, the parent first."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # It has just ended.
        parent = parents[row[0]]
        return [parent, *(pid for pid, owner in parents.items() if owner == parent and pid != row[0])]


def is_alive(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.ConnectError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        schema.upgrade(url)
        yield url


@pytest.fixture
def freeze(server: str) -> Iterator[Callable[[], None]]:
    """Stops every process of the server; they go on when the test ends."""
    stopped: list[int] = []

    def stop() -> None:
        stopped.extend(processes_of(server))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    def resume() -> None:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        stopped.clear()

    stop.resume = resume  # type: ignore[attr-defined]
    yield stop
    resume()


@pytest.fixture
def service(server: str, tmp_path: Path) -> Iterator[str]:
    """The API over that server, in a process of its own: its address."""
    script = Path(__file__).parent / "api" / "server.py"
    command = [sys.executable, str(script), str(tmp_path), f"database_url={server}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            wait_until(lambda: is_alive(url), "the API answers")
            yield url
        finally:
            process.terminate()


def test_a_frozen_server_is_told_within_seconds_and_forgotten_when_it_goes_on(service: str, freeze: Any) -> None:
    motion = CLIP.read_bytes()

    def read() -> int:
        return client.get("/v1/clips").status_code

    def write() -> int:
        return client.post("/v1/clips", files={"file": ("squat.json", motion)}).status_code

    def ask_readiness() -> int:
        return client.get("/readyz").status_code

    calls: list[Callable[[], int]] = [read] * 40 + [write] * 4 + [ask_readiness] * 4
    with httpx2.Client(base_url=service, timeout=15) as client, ThreadPoolExecutor(len(calls)) as pool:
        # Connections are open and idle, as many as there may be.
        assert {future.result() for future in [pool.submit(call) for call in calls]} <= {200, 202}
        freeze()
        began = time.monotonic()
        futures = [pool.submit(call) for call in calls]
        assert client.get("/healthz", timeout=3).status_code == 200
        assert [future.result() for future in futures] == [503] * len(calls)
        # The bound of every answer is 5 s; they were asked for at once.
        assert time.monotonic() - began < 10
        assert [pool.submit(call).result() for call in (read, write, ask_readiness)] == [503] * 3
        freeze.resume()
        wait_until(lambda: ask_readiness() == 200, "it is ready again")
        assert (read(), write()) == (200, 200)


def test_a_slow_query_is_waited_for(server: str) -> None:
    catalog = Catalog.open(server)
    try:
        with catalog.session() as session:
            assert session.execute(text("SELECT pg_sleep(2), 7")).one()[1] == 7
    finally:
        catalog.close()
