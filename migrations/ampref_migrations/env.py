"""Alembic's entry: runs the migrations, on the connection of `ampref_service.catalog.schema` or, from Alembic's own command
line, on the database of the settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from ampref_service.catalog.engine import Catalog
from ampref_service.catalog.tables import metadata
from ampref_service.settings import Settings


def run(connection: Connection) -> None:
    """Migrate inside the connection's transaction; on SQLite a table is changed by building it anew."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(
        dialect_name=context.get_x_argument(as_dictionary=True).get("dialect", "postgresql"),
        target_metadata=metadata,
        literal_binds=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        run(connection)
    else:
        catalog = Catalog.open(Settings.load().database_url)
        with catalog.begin() as session:
            run(session)
        catalog.close()
