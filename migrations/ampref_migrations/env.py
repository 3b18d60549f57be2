"""Alembic's entry: runs the migrations on the connection that `ampref_service.catalog.schema` (or Alembic's own command line)
gives."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from ampref_service.catalog.tables import metadata


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
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
    else:
        from ampref_service.catalog.engine import create_engine
        from ampref_service.settings import Settings

        engine = create_engine(Settings.load().database_url)
        with engine.connect() as opened:
            opened.execution_options(ampref_write=True)
            with opened.begin():
                run(opened)
        engine.dispose()
