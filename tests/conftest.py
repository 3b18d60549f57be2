"""What every test may ask for: real databases and a real broker, brought by wheels. A missing one fails; nothing is skipped."""

from __future__ import annotations

import functools
import gc
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from xdist.scheduler import LoadFileScheduling

from amp_core.cli import group
from bench.servers import S3Server, postgres, redis, seaweedfs

# Collecting thousands of tests makes objects that stay: looking through all of them again and again took a third of the time.
gc.disable()

# The width of a terminal that the tests have not: tables are as wide as they are in a file.
os.environ.pop("COLUMNS", None)
# Keys of whoever runs the tests.
os.environ.pop("AMPREF_TOKEN", None)
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"

# Left alone, structlog writes to stdout, which tests of the command line read; a thread that outlives its test may still log.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


# A process takes one at a time, and a long one at the end would leave the others without work.
LONGEST_FIRST = (
    *("test_openapi", "test_main_job", "browser", "test_fleet", "test_kill", "test_smoke", "test_runner", "test_parity"),
    *("test_thumbnails", "test_server", "test_celery", "test_curriculum", "test_embedded", "test_sandbox", "test_gate"),
    *("test_uploads", "test_clip_checks", "test_auto", "test_policy", "test_build", "test_tracking", "test_deployment"),
    *("test_engine", "test_migrations", "test_hostile", "test_backup", "test_bulk", "test_token", "test_s3", "test_hosts"),
)
"""Files and folders in the order in which they begin; the others follow as they are collected."""

TOGETHER = ("tests/integration/browser",)
"""Folders whose files one process takes, since they share what takes long to make: here the service before the browser."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}

    def rank(item: pytest.Item) -> int:
        return min(ranks.get(name, len(ranks)) for name in (item.path.stem, item.path.parent.name))

    items.sort(key=rank)


class FolderScheduling(LoadFileScheduling):
    """Files are dealt out one by one, but for those of some folders."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        return next((folder for folder in TOGETHER if path.startswith(f"{folder}/")), path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FolderScheduling | None:
    return FolderScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _keep_umask_and_logs() -> Iterator[None]:
    """A verb of the service, run within this process, makes the files private and logs to the stderr of its test."""
    umask = os.umask(0o022)
    os.umask(umask)
    root, configuration = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    yield
    os.umask(umask)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)
    structlog.configure(**configuration)


@pytest.fixture(scope="session", autouse=True)
def _read_entry_points_once() -> Iterator[None]:
    """A command that runs within this process looks through every installed distribution, which takes longer than most do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "entry_points", functools.cache(group.entry_points))
        yield


@pytest.fixture(scope="session")
def set_traps() -> Callable[..., Path]:
    """Put packages into a folder that raise when they are imported, as a stranger's repository may hold them."""

    def put(folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(f"raise RuntimeError('{name} of the working directory was imported')\n")
        return folder

    return put


@pytest.fixture(scope="session")
def pg_server() -> Iterator[str]:
    """URL of a real PostgreSQL server's `postgres` database: one server for each test process, stopped in the end."""
    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def pg_template(pg_server: str) -> str:
    """A database with the catalog's schema, to copy."""
    from ampref_service.catalog import schema

    url = _make_database(pg_server, "ampref_template", None)
    schema.upgrade(url)
    return url


def _make_database(server: str, name: str, template: str | None) -> str:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    return server.rpartition("/")[0] + f"/{name}"


def _drop_database(server: str, name: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def pg_empty(pg_server: str) -> Iterator[str]:
    """URL of a PostgreSQL database of the test's own, with nothing in it."""
    name = f"t_{uuid.uuid4().hex}"
    yield _make_database(pg_server, name, None)
    _drop_database(pg_server, name)


@pytest.fixture
def pg_url(pg_server: str, pg_template: str) -> Iterator[str]:
    """URL of a PostgreSQL database of the test's own, with the catalog's schema."""
    name = f"t_{uuid.uuid4().hex}"
    yield _make_database(pg_server, name, "ampref_template")
    _drop_database(pg_server, name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the catalog's schema, to copy."""
    from ampref_service.catalog import schema

    path = tmp_path_factory.mktemp("template") / "catalog.sqlite3"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """URL of an SQLite file of the test's own, with the catalog's schema."""
    return f"sqlite:///{shutil.copyfile(sqlite_template, tmp_path / 'catalog.sqlite3')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database with the catalog's schema: the test runs once on SQLite and once on PostgreSQL."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "pg_url"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same, but of a module: its tests change nothing in it."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("shared") / "catalog.sqlite3"
        yield f"sqlite:///{shutil.copyfile(request.getfixturevalue('sqlite_template'), path)}"
    else:
        server, name = request.getfixturevalue("pg_server"), f"t_{uuid.uuid4().hex}"
        request.getfixturevalue("pg_template")
        yield _make_database(server, name, "ampref_template")
        _drop_database(server, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    return str(request.getfixturevalue("pg_empty"))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a real Redis server: one for each test process, stopped in the end."""
    with redis() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """URL of an empty Redis database; emptied again after the test."""
    import redis as client

    with client.Redis.from_url(redis_server) as connection:
        connection.flushall()
        yield redis_server
        connection.flushall()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server over plain HTTP: one for each test process, stopped in the end."""
    with seaweedfs() as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a blob store of the test's own on a real S3 server; the `AWS_*` variables lead there, with nothing about TLS."""
    for name in ("AWS_ALLOW_HTTP", "AWS_ENDPOINT", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://ampref/{uuid.uuid4().hex}"
