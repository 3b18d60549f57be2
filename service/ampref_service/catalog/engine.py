"""Opening the catalog and its transactions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine, Insert, Select, Table, event, exc, func, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool

from amp_core.errors import AmprefError, DiskFull, Unavailable
from amp_core.files import expand_home
from amp_core.strict_json import format_json
from ampref_service.urls import normalize_url

T = TypeVar("T")
Session: TypeAlias = Connection
"""One transaction on the catalog: what every query takes as its first argument."""

_BUSY_TIMEOUT_SEC = 10.0
_CONNECT_TIMEOUT_SEC = 3  # Of PostgreSQL; `?connect_timeout=` in the URL replaces it. libpq has whole seconds.
_POOL_TIMEOUT_SEC = 5.0
_SILENCE_SEC = 0.7  # After which a server that owes an answer is asked for another connection.
_DOWN_SEC = 2.0  # For so long a server that did not answer is not asked again.
_CHUNK = 500
_UNDEFINED_TABLE, _DISK_FULL = "42P01", "53100"  # SQLSTATE of PostgreSQL


def _to_json(value: Any) -> str:
    """JSON for a column: NaN and Infinity are refused, since neither database's readers could be trusted with them."""
    return format_json(value, separators=(",", ":"))


class _Server:
    """Whether a PostgreSQL server answers at all.

    The kernel of a server that is stopped, or of its machine, goes on acknowledging: no timeout of the server or of TCP ends a
    wait for an answer that does not come. A slow query must not be taken for that, so the server is asked for a new connection.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parameters: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._probe_time = self._down_time = -math.inf

    @property
    def is_down(self) -> bool:
        """Whether it did not answer, a moment ago."""
        return time.monotonic() - self._down_time < _DOWN_SEC

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection whose waits end when the server stops answering.

        Raises:
          psycopg.OperationalError: there is none; at once when the server is down.
        """
        self._parameters = arguments, options
        if self.is_down:
            raise psycopg.OperationalError(_SILENT)
        try:
            connection = _WatchedConnection.connect(*arguments, **options)
        except psycopg.errors.ConnectionTimeout:
            self._down_time = time.monotonic()
            raise
        connection.server = self
        return connection

    def is_silent(self) -> bool:
        """Ask for a connection; whoever waits for the same server at the same time shares the outcome."""
        with self._lock:
            if time.monotonic() - self._probe_time >= _SILENCE_SEC:
                arguments, options = self._parameters
                try:
                    psycopg.connect(*arguments, **options).close()
                except psycopg.errors.ConnectionTimeout:
                    self._down_time = time.monotonic()
                except psycopg.Error:
                    pass  # It refuses, so that it is there.
                self._probe_time = time.monotonic()
            return self.is_down


class _WatchedConnection(psycopg.Connection[Any]):
    """A connection that is given up when its server has stopped answering."""

    server: _Server

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        return super().wait(self._watch(gen), *arguments, **options)

    def _watch(self, gen: Any) -> Any:
        """The steps of an exchange with the server; the driver sends 0 every tenth of a second in which nothing has come."""
        end = time.monotonic() + _SILENCE_SEC
        try:
            step = next(gen)
            while True:
                ready = yield step
                if ready:
                    end = time.monotonic() + _SILENCE_SEC
                elif time.monotonic() > end:
                    if self.server.is_silent():
                        self.close()
                        raise psycopg.OperationalError(_SILENT)
                    end = time.monotonic() + _SILENCE_SEC
                step = gen.send(ready)
        except StopIteration as stop:
            return stop.value


_SILENT = "the server does not answer"


def _create_engine(url: str, server: _Server) -> Engine:
    """An engine with what this catalog relies on.

    On SQLite that is WAL, foreign keys and `BEGIN IMMEDIATE`, on PostgreSQL connections that are alive.
    """
    address = make_url(normalize_url(url))
    if address.get_backend_name() == "sqlite":
        if address.database:
            path = expand_home(Path(address.database))
            path.parent.mkdir(parents=True, exist_ok=True)
            address = address.set(database=os.path.abspath(path))
        engine = sa.create_engine(
            address,
            json_serializer=_to_json,
            pool_size=16,
            max_overflow=48,
            connect_args={"timeout": _BUSY_TIMEOUT_SEC, "check_same_thread": False},
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = sa.create_engine(
        address,
        json_serializer=_to_json,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        pool_timeout=_POOL_TIMEOUT_SEC,
        connect_args={"application_name": "ampref"}
        | ({} if "connect_timeout" in address.query else {"connect_timeout": _CONNECT_TIMEOUT_SEC}),
    )
    event.listen(engine, "do_connect", lambda dialect, record, arguments, options: server.connect(*arguments, **options))
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    # The default (4) is of spinning disks. With it the planner would rather sort thousands of clips than follow an index in
    # order and stop when the page is full.
    connection.execute("SET random_page_cost = 1.1")
    # A plan that is made once for all values does not know which ranges are narrow.
    connection.execute("SET plan_cache_mode = force_custom_plan")
    connection.commit()


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by `_begin_sqlite`, not by the driver, which would begin them late and deferred.
    connection.isolation_level = None
    with contextlib.closing(connection.cursor()) as cursor:
        # Where two processes switch a new file at once, SQLite answers one of them without its busy timeout.
        deadline = time.monotonic() + _BUSY_TIMEOUT_SEC
        while True:
            try:
                cursor.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        # Read through the page cache of the system, which every connection shares, instead of through one of its own that each
        # has to fill: a new connection's first page of the curriculum is as fast as its hundredth.
        cursor.execute("PRAGMA mmap_size=1073741824")
        cursor.execute("PRAGMA cache_size=-16384")
        cursor.execute("PRAGMA temp_store=MEMORY")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another wrote in between, whatever the busy timeout is:
    # a write takes its lock at the start.
    write = connection.get_execution_options().get("ampref_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Catalog:
    """A database that holds the catalog. Safe to share between threads; make a new one after a fork.

    Args:
      url: of the database; `ampref_service.urls` says of which kinds.
      clock: epoch seconds, for tests; the database host's clock by default, so that leases of several machines agree.
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self._server = _Server()
        self.engine = _create_engine(url, self._server)
        self._clock = clock

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] | None = None) -> Catalog:
        """Open a catalog by URL; `ampref_service.catalog.schema` makes its tables and checks that they are this release's."""
        return cls(url, clock)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction for reading: one consistent view, nothing is kept."""
        with self._connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin() as transaction:
                yield connection
                transaction.rollback()

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction for writing: committed when the block ends, rolled back when it raises."""
        with self._connect() as connection:
            connection = connection.execution_options(ampref_write=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Connection]:
        if self._server.is_down:
            raise Unavailable(f"the database cannot be used: {_SILENT}", remedy="Try again once it is up")
        with _translate_errors(self.engine), self.engine.connect() as connection:
            connection.info["ampref_clock"] = self._clock
            yield connection

    def close(self) -> None:
        """Close every connection; of SQLite, with every row in the main file."""
        if self.dialect == "sqlite" and cast(QueuePool, self.engine.pool).checkedin():
            # The last connection of all would do that by itself, but another process, or a thread, may still hold one.
            with contextlib.suppress(sqlite3.Error, exc.SQLAlchemyError), self.engine.connect() as connection:
                connection.connection.execute("PRAGMA busy_timeout=1000")
                connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.engine.dispose()


@contextlib.contextmanager
def _translate_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except exc.TimeoutError as error:
        raise Unavailable("every database connection of this process is in use", remedy="Try again in a moment") from error
    except exc.DBAPIError as error:
        translation = _translate(error, engine)
        if translation is None:
            raise
        raise translation from error


def _translate(error: exc.DBAPIError, engine: Engine) -> AmprefError | None:
    lines = str(error.orig).strip().splitlines()
    message = lines[0][:300] if lines else type(error.orig).__name__
    state = getattr(error.orig, "sqlstate", None)
    in_sqlite = message if isinstance(error.orig, sqlite3.OperationalError) else ""
    if "no such table" in in_sqlite or state == _UNDEFINED_TABLE:
        return Unavailable(f"the database has no catalog: {message}", remedy="Run `ampref migrate`")
    if "locked" in in_sqlite:
        return Unavailable(
            f"the database was busy for {_BUSY_TIMEOUT_SEC:g} s", remedy="Try again; for many writers at a time use PostgreSQL"
        )
    if "disk is full" in in_sqlite:
        return DiskFull(
            f"no space left for the catalog in {Path(engine.url.database or '.').parent}",
            remedy="Make room there; nothing was written, so try again then",
        )
    if state == _DISK_FULL:
        return DiskFull(
            f"no space left on the database server {engine.url.host or ''}: {message}".replace(" :", ":"),
            remedy="Make room on its disk; nothing was written, so try again then",
        )
    if isinstance(error, exc.OperationalError | exc.InterfaceError) or type(error) is exc.DatabaseError:
        return Unavailable(
            f"the database cannot be used: {message}",
            remedy="Check AMPREF_DATABASE_URL and that the server is up, then try again",
        )
    return None


def now(session: Session) -> float:
    """Epoch seconds by the clock that every worker shares: the database's (SQLite's is this machine's)."""
    clock = session.info.get("ampref_clock")
    if clock is not None:
        return float(clock())
    if session.dialect.name == "postgresql":
        return float(session.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


def insert_new(session: Session, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless a unique constraint forbids it; True when it was inserted.

    A rival that is inserting the same row is waited for, so that after a False a query finds the row.
    """
    statement = _insert_new(session.dialect.name, table)
    return session.execute(statement, values, execution_options={"preserve_rowcount": True}).rowcount > 0


@functools.cache
def _insert_new(dialect: str, table: Table) -> Insert:
    # The same object for every row: putting a statement together costs more than running it.
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing().inline()
    return sqlite.insert(table).on_conflict_do_nothing().inline()


def select_distinct(column: ColumnElement[Any], *conditions: ColumnElement[bool]) -> Select[Any]:
    """The different values of a column, as `value`, by one step in an index for each: DISTINCT would read every row."""
    steps = select(func.min(column).label("value")).where(*conditions).cte(recursive=True)
    following = select(func.min(column)).where(*conditions, column > steps.c.value).scalar_subquery()
    steps = steps.union_all(select(following).where(steps.c.value.is_not(None)))
    return select(steps.c.value).where(steps.c.value.is_not(None))


def match_names(column: ColumnElement[Any], patterns: Iterable[str]) -> Iterator[ColumnElement[bool]]:
    """The conditions, any of which is enough, that a column is one of some names or begins as a `prefix*`."""
    for pattern in patterns:
        yield column.startswith(pattern[:-1], autoescape=True) if pattern.endswith("*") else column == pattern


def chunked(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Parts of a list that are short enough for `IN (…)` and one answer."""
    for begin in range(0, len(items), _CHUNK):
        yield items[begin : begin + _CHUNK]


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


_id_lock = threading.Lock()
_last_number = 0


def new_id(prefix: str, after: str | None = None) -> str:
    """An id that sorts by the time it was made, like `clip_01k…`: 48 bits of milliseconds and 80 random ones in base 32.

    Where the clock stands or goes back, it is a random step after this process's last one.

    Args:
      after: an id that this one is to sort after, whatever the clock of the process that made it was.
    """
    global _last_number
    floor = 0
    for char in "" if after is None else after.rpartition("_")[2]:
        floor = floor << 5 | max(_ALPHABET.find(char), 0)
    with _id_lock:
        number = (int(time.time() * 1000) & (2**48 - 1)) << 80 | secrets.randbits(80)
        last = max(_last_number, floor & (2**128 - 1))
        if number >> 80 <= last >> 80:
            number = last + 1 + secrets.randbits(64)
        _last_number = number
    return prefix + "_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def finite(value: float | None) -> float | None:
    """A number as both databases keep it: NaN and infinities become NULL, since the databases order them differently."""
    return None if value is None or not math.isfinite(value) else float(value)
