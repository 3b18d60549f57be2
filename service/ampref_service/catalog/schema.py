"""Bringing a database to this code's schema: one Alembic history for SQLite and PostgreSQL, run from code.

Alembic takes 0.2 s to import, so that only a database that has to be changed loads it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING

from sqlalchemy import Connection, exc, inspect, text

from amp_core.errors import Unavailable
from ampref_service.catalog.engine import Catalog

if TYPE_CHECKING:
    from alembic.config import Config

# Any number will do, as long as every process of this product takes the same one.
_ADVISORY_LOCK = 0x616D70726566


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration: the migrations of the installed package, on a connection that is in a transaction."""
    from alembic.config import Config  # noqa: PLC0415 - see above

    configuration = Config()
    configuration.set_main_option("script_location", str(files("ampref_migrations")).replace("%", "%%"))
    if connection is not None:
        configuration.attributes["connection"] = connection
    return configuration


def upgrade(url: str, revision: str = "head") -> str:
    """Migrate a database up, making it when it is an SQLite file that does not exist. Returns the revision it has now.

    It is one transaction: it happens or it does not. Of several processes at a time one migrates and the others wait.
    """
    with exclusive(url) as connection:
        if revision != "head" or current(connection) != head():
            from alembic import command  # noqa: PLC0415 - see above

            command.upgrade(config(connection), revision)
        return current(connection) or "base"


def downgrade(url: str, revision: str) -> str:
    """Migrate a database down to a revision (`base` is empty). Data that the older schema has no place for is lost."""
    from alembic import command  # noqa: PLC0415 - see above

    with exclusive(url) as connection:
        command.downgrade(config(connection), revision)
        return current(connection) or "base"


@functools.cache
def _list_revisions() -> list[str]:
    """The history's revisions from the first to the last, by the names of their files."""
    names = [re.fullmatch(r"v(\d{4})_\w+\.py", file.name) for file in (files("ampref_migrations") / "versions").iterdir()]
    return sorted(name[1] for name in names if name)


def head() -> str:
    """The revision that this code needs."""
    return _list_revisions()[-1]


def is_known(revision: str) -> bool:
    """Whether this release has a revision in its history."""
    return revision in _list_revisions()


def current(connection: Connection) -> str | None:
    """The revision that a database has, None when it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision


def check(catalog: Catalog, *, exact: bool = False) -> None:
    """Raise `Unavailable` unless the database answers and has the schema of this code, or a newer one that it can live with.

    While an upgrade is rolled out, this release's processes go on beside those of the next one, which has migrated.

    Args:
      exact: refuse a newer schema as well, for what must know every table.
    """
    with catalog.session() as session:
        revision = current(session)
    needed = head()
    if revision == needed:
        return
    if revision is None or is_known(revision):
        raise Unavailable(
            f"the database has schema {revision or 'none'}, this release needs {needed}",
            remedy="Run `ampref migrate`, with the same AMPREF_DATABASE_URL",
        )
    if exact or _series(revision) != _series(needed):
        raise Unavailable(
            f"the database has schema {revision}, of a newer release than this one, which needs {needed}",
            remedy="Install the release that the database was migrated by",
        )


def _series(revision: str) -> str:
    """What a revision has in common with those whose code can work on it: all but the last two digits."""
    return revision[:-2]


@contextlib.contextmanager
def exclusive(url: str) -> Iterator[Connection]:
    """A transaction in which the schema may change, without foreign keys on SQLite until its end; others wait for it."""
    catalog = Catalog.open(url)
    try:
        if catalog.dialect == "sqlite":
            with _without_foreign_keys(catalog) as connection:
                yield connection
        else:
            with catalog.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                yield connection
    except (exc.OperationalError, exc.DatabaseError) as error:
        raise Unavailable(
            f"the database cannot be migrated: {str(error.orig).splitlines()[0][:300]}",
            remedy="Check AMPREF_DATABASE_URL and try again",
        ) from error
    finally:
        catalog.close()


@contextlib.contextmanager
def _without_foreign_keys(catalog: Catalog) -> Iterator[Connection]:
    """A write transaction on SQLite, where a table that is rebuilt would take the rows that refer to it along.

    The switch has no effect inside a transaction.
    """
    with catalog.engine.connect() as connection:
        raw = connection.connection
        raw.execute("PRAGMA foreign_keys=OFF")
        try:
            connection.execution_options(ampref_write=True)
            with connection.begin():
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                if broken:
                    raise Unavailable(f"the migration would break {len(broken)} references", remedy="Restore a backup")
        finally:
            if not connection.invalidated:  # As a signal in the middle of a statement makes it.
                raw.execute("PRAGMA foreign_keys=ON")
