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

import pytest
import structlog

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest files first: two processes take one at a time, and a long one at the end would leave a core without work.
    items.sort(key=lambda item: item.path.parent.name not in ("e2e", "verify"))


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
