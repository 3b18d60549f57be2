"""Opening the catalog and its transactions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, event, exc, make_url, text
from sqlalchemy import create_engine as _create_engine

from amp_core.errors import DiskFull, InputRefused, Unavailable

Session: TypeAlias = Connection
"""One transaction on the catalog: what every query takes as its first argument."""

_BUSY_TIMEOUT_SEC = 30.0
_POSTGRESQL_DISK_FULL = "53100"


def normalize_url(url: str) -> str:
    """A database URL with its driver: `postgresql://` and `postgres://` mean psycopg 3."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("sqlite", "postgresql", "postgres"):
        raise InputRefused(
            "the database URL is of no kind that is known", expected="sqlite:///FILE or postgresql://USER@HOST/DB"
        )
    if scheme in ("postgresql", "postgres"):
        return f"postgresql+psycopg://{rest}"
    if scheme.partition("+")[0] == "sqlite" and (rest in ("", "/") or ":memory:" in rest or "mode=memory" in rest):
        raise InputRefused("an in-memory SQLite catalog cannot be shared with workers", expected="sqlite:///FILE")
    return url


def dumps(value: Any) -> str:
    """JSON for a column: NaN and Infinity are refused, since neither database's readers could be trusted with them."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def create_engine(url: str) -> Engine:
    """An engine with what this catalog relies on: WAL, foreign keys and `BEGIN IMMEDIATE` on SQLite, live connections on
    PostgreSQL."""
    parsed = make_url(normalize_url(url))
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
            parsed = parsed.set(database=os.path.abspath(Path(parsed.database).expanduser()))
        engine = _create_engine(
            parsed,
            json_serializer=dumps,
            pool_size=16,
            max_overflow=48,
            connect_args={"timeout": _BUSY_TIMEOUT_SEC, "check_same_thread": False},
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = _create_engine(
        parsed,
        json_serializer=dumps,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        connect_args={"connect_timeout": 5, "application_name": "ampref"},
    )
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    # The default (4) is of spinning disks. With it the planner would rather sort thousands of clips than follow an index in
    # order and stop when the page is full.
    connection.execute("SET random_page_cost = 1.1")
    connection.commit()


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by `_begin_sqlite`, not by the driver, which would begin them late and deferred.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        # Read through the page cache of the system, which every connection shares, instead of through one of its own that each
        # has to fill: a new connection's first page of the curriculum is as fast as its hundredth.
        cursor.execute("PRAGMA mmap_size=1073741824")
        cursor.execute("PRAGMA cache_size=-16384")
        cursor.execute("PRAGMA temp_store=MEMORY")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another wrote in between, whatever the busy timeout is:
    # a write takes its lock at the start.
    write = connection.get_execution_options().get("ampref_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Catalog:
    """A database that holds the catalog. Safe to share between threads; make a new one after a fork.

    Args:
      engine: from `create_engine`.
      clock: epoch seconds, for tests; the database host's clock by default, so that leases of several machines agree.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] | None = None) -> None:
        self.engine = engine
        self._clock = clock

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] | None = None) -> Catalog:
        """Open a catalog by URL; its schema must be there (`ampref_service.catalog.schema.upgrade`)."""
        return cls(create_engine(url), clock)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction for reading: one consistent view, nothing is kept."""
        with _clear_errors(self.engine), self.engine.connect() as connection:
            connection.info["ampref_clock"] = self._clock
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin() as transaction:
                yield connection
                transaction.rollback()

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction for writing: committed when the block ends, rolled back when it raises."""
        with _clear_errors(self.engine), self.engine.connect() as connection:
            connection.info["ampref_clock"] = self._clock
            connection = connection.execution_options(ampref_write=True)
            with connection.begin():
                yield connection

    def check(self) -> None:
        """Raise `Unavailable` unless the database answers and has this code's schema."""
        from ampref_service.catalog import schema

        schema.check(self)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextlib.contextmanager
def _clear_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except exc.TimeoutError as error:
        raise Unavailable("every database connection of this process is in use", remedy="Try again in a moment") from error
    except exc.DBAPIError as error:
        said = str(error.orig).strip().splitlines()[0][:300] if str(error.orig).strip() else type(error.orig).__name__
        if (isinstance(error.orig, sqlite3.OperationalError) and "no such table" in said) or "UndefinedTable" in type(
            error.orig
        ).__name__:
            raise Unavailable(f"the database has no catalog: {said}", remedy="Run `ampref migrate`") from error
        if isinstance(error.orig, sqlite3.OperationalError) and "locked" in said:
            raise Unavailable(
                f"the database was busy for {_BUSY_TIMEOUT_SEC:g} s",
                remedy="Try again; for many writers at a time use PostgreSQL",
            ) from error
        if isinstance(error.orig, sqlite3.OperationalError) and "disk is full" in said:
            raise DiskFull(
                f"no space left for the catalog in {Path(engine.url.database or '.').parent}",
                remedy="Make room there; nothing was written, so try again then",
            ) from error
        if getattr(error.orig, "sqlstate", None) == _POSTGRESQL_DISK_FULL:
            raise DiskFull(
                f"no space left on the database server {engine.url.host or ''}: {said}".replace(" :", ":"),
                remedy="Make room on its disk; nothing was written, so try again then",
            ) from error
        if isinstance(error, exc.OperationalError | exc.InterfaceError) or type(error) is exc.DatabaseError:
            raise Unavailable(
                f"the database cannot be used: {said}",
                remedy="Check AMPREF_DATABASE_URL and that the server is up, then try again",
            ) from error
        raise


def now(session: Session) -> float:
    """Epoch seconds by the clock that every worker shares: the database's (SQLite's is this machine's)."""
    clock = session.info.get("ampref_clock")
    if clock is not None:
        return float(clock())
    if session.dialect.name == "postgresql":
        return float(session.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """An id that sorts by the time it was made, like `clip_01k…`: 48 bits of milliseconds and 80 random ones in base 32."""
    number = (int(time.time() * 1000) & (2**48 - 1)) << 80 | secrets.randbits(80)
    return prefix + "_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def finite(value: float | None) -> float | None:
    """A number as both databases keep it: NaN and infinities become NULL, since SQLite and PostgreSQL order them
    differently."""
    return None if value is None or not math.isfinite(value) else float(value)
