"""The catalog's rows as files that either database writes and either reads: gzipped JSON lines, a file a table.

The first line is a list of `[column, kind]`, each other line the values of a row. A column of kind `json` has its JSON as the
text that the database keeps, so that no byte of it changes on the way; `bytes` is base64; any other is `value`.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy import Connection, LargeBinary, Table, Text, cast, insert, select, text, type_coerce
from sqlalchemy.dialects.postgresql import REGCLASS

from amp_core.strict_json import format_json
from ampref_service.catalog.engine import Session

_BATCH = 500
_LEVEL = 4  # Of gzip: the JSON of a rollout shrinks to a fifth at the speed of a disk.


def write_lines(path: Path, lines: Iterable[list[Any]]) -> int:
    """Write lists as gzipped JSON lines into a new file; returns how many."""
    count = 0
    with gzip.open(path, "wt", compresslevel=_LEVEL, encoding="ascii", newline="\n") as file:
        for line in lines:
            file.write(format_json(line, separators=(",", ":"), ensure_ascii=True) + "\n")
            count += 1
    return count


def read_lines(path: Path) -> Iterator[list[Any]]:
    """The lists of a file of `write_lines`, one at a time; its digest has been checked by then."""
    file: IO[str]
    with gzip.open(path, "rt", encoding="ascii") as file:
        yield from map(json.loads, file)


def write_table(session: Session, table: Table, path: Path) -> int:
    """Write all rows of a table, in the order of its key, as this transaction sees them; returns how many."""
    kinds = [_kind_of(column) for column in table.c]
    # JSON as text, untouched: SQLite keeps it as text anyway.
    as_text = cast if session.dialect.name == "postgresql" else type_coerce
    columns = [as_text(column, Text) if kind == "json" else column for column, kind in zip(table.c, kinds, strict=True)]
    rows = session.execute(select(*columns).order_by(*table.primary_key), execution_options={"yield_per": _BATCH})
    lines = ([_to_json(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in rows)
    header: list[Any] = [[column.name, kind] for column, kind in zip(table.c, kinds, strict=True)]
    return write_lines(path, chain([header], lines)) - 1


def _kind_of(column: sa.Column[Any]) -> str:
    if isinstance(column.type, sa.JSON):
        return "json"
    return "bytes" if isinstance(column.type, LargeBinary) else "value"


def _to_json(value: Any, kind: str) -> Any:
    return base64.b64encode(value).decode("ascii") if kind == "bytes" and value is not None else value


def load_tables(connection: Connection, paths: Iterable[tuple[str, Path]]) -> dict[str, int]:
    """Replace the rows of tables, which have the columns that the files name, by those of the files; returns how many each has.

    Triggers are off meanwhile: they would refuse the members of a locked version, which are only ever written before the lock.

    Args:
      paths: each table with its file, a table that others refer to before those.
    """
    paths = list(paths)
    with _without_triggers(connection):
        # Migrations may have put rows of their own there.
        for name, _ in reversed(paths):
            connection.execute(sa.delete(sa.table(name)))
        counts = {name: _load_table(connection, name, path) for name, path in paths}
    if connection.dialect.name == "postgresql":
        _advance_sequences(connection)
    return counts


def _load_table(connection: Connection, name: str, path: Path) -> int:
    lines = read_lines(path)
    header = next(lines)
    # Without types of its own, since the table is that of the backup's release and not of this one.
    table = sa.table(name, *(sa.column(column) for column, _ in header))
    is_json = connection.dialect.name == "postgresql"
    values = {
        column: cast(sa.bindparam(column, type_=Text), sa.JSON) if kind == "json" and is_json else sa.bindparam(column)
        for column, kind in header
    }
    count = 0
    while batch := list(islice(lines, _BATCH)):
        rows = [
            {
                column: base64.b64decode(value) if kind == "bytes" and value is not None else value
                for (column, kind), value in zip(header, row, strict=True)
            }
            for row in batch
        ]
        connection.execute(insert(table).values(values), rows)
        count += len(rows)
    return count


@contextlib.contextmanager
def _without_triggers(connection: Connection) -> Iterator[None]:
    if connection.dialect.name == "postgresql":
        names = sa.inspect(connection).get_table_names()
        quote = connection.dialect.identifier_preparer.quote
        for switch in ("DISABLE", "ENABLE"):
            for name in names:
                connection.execute(text(f"ALTER TABLE {quote(name)} {switch} TRIGGER USER"))
            if switch == "DISABLE":
                yield
        return
    triggers = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
    for name, _ in triggers:
        connection.execute(text(f'DROP TRIGGER "{name}"'))
    yield
    for _, statement in triggers:
        connection.exec_driver_sql(statement)


def _advance_sequences(connection: Connection) -> None:
    """Let numbers that PostgreSQL hands out go on after the highest that was loaded; SQLite does it by itself."""
    columns = connection.execute(
        text(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND (column_default LIKE 'nextval(%' OR is_identity = 'YES')"
        )
    ).all()
    for table, column in columns:
        highest: int | None = connection.execute(
            select(sa.func.max(sa.column(column))).select_from(sa.table(table))
        ).scalar_one()
        if highest is not None:
            sequence = sa.func.pg_get_serial_sequence(table, column)
            connection.execute(select(sa.func.setval(cast(sequence, REGCLASS), highest)))


def is_empty(connection: Connection) -> bool:
    """Whether a database has no table of another kind, and a catalog in it has neither a clip nor a change that was logged.

    Migrations put rows of their own into tables.
    """
    names = set(sa.inspect(connection).get_table_names()) - {"alembic_version"}
    if not names & {"clips", "audit_events"}:
        return not names
    return not any(
        connection.execute(select(text("1")).select_from(sa.table(name)).limit(1)).first() for name in ("clips", "audit_events")
    )
