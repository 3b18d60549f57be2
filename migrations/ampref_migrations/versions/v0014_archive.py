"""Versions can be archived: their features and their clips may be deleted, while their members stay in the record.

A trigger takes the place of the foreign keys that kept clips and rollouts of a version: it lets go of archived ones.

Revision: 0014; follows 0013.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_KEYS = (("clip_id", "clips"), ("rollout_id", "rollouts"))
_REASON = "a locked version that is not archived holds it"


def upgrade() -> None:
    op.add_column("versions", sa.Column("archived_at", sa.Double(), nullable=True))
    name = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
    op.add_column("versions", sa.Column("archived_by", name, nullable=True))
    op.add_column("versions", sa.Column("archive_reason", sa.String(), nullable=True))
    with op.batch_alter_table("version_members") as batch:
        for column, table in _KEYS:
            batch.drop_constraint(f"fk_version_members_{column}_{table}", type_="foreignkey")
    if op.get_bind().dialect.name == "sqlite":
        _guard_members()
        for column, table in _KEYS:
            op.execute(
                f"CREATE TRIGGER {table}_held BEFORE DELETE ON {table} WHEN EXISTS (SELECT 1 FROM version_members AS m "
                f"JOIN versions AS v ON v.id = m.version_id WHERE m.{column} = OLD.id AND v.archived_at IS NULL) "
                f"BEGIN SELECT RAISE(ABORT, '{_REASON}'); END"
            )
        return
    for column, table in _KEYS:
        op.execute(
            f"""
            CREATE FUNCTION ampref_refuse_held_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF EXISTS (
                    SELECT 1 FROM version_members AS m JOIN versions AS v ON v.id = m.version_id
                    WHERE m.{column} = OLD.id AND v.archived_at IS NULL
                ) THEN
                    RAISE EXCEPTION '{_REASON}' USING ERRCODE = 'integrity_constraint_violation';
                END IF;
                RETURN OLD;
            END $$
            """
        )
        op.execute(
            f"CREATE TRIGGER {table}_held BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION ampref_refuse_held_{table}()"
        )


def _guard_members() -> None:
    """The triggers of revision 0001, which SQLite drops with the table that is rebuilt."""
    refuse = "BEGIN SELECT RAISE(ABORT, 'a locked version never changes'); END"
    for event, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
        ids = ", ".join(f"{row}.version_id" for row in rows)
        op.execute(
            f"CREATE TRIGGER version_members_{event.lower()} BEFORE {event} ON version_members "
            f"WHEN EXISTS (SELECT 1 FROM versions WHERE id IN ({ids}) AND state = 'locked') {refuse}"
        )


def downgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for _, table in _KEYS:
        op.execute(f"DROP TRIGGER {table}_held" + ("" if is_sqlite else f" ON {table}"))
        if not is_sqlite:
            op.execute(f"DROP FUNCTION ampref_refuse_held_{table}()")
    # Members whose clips are deleted have no place in the older schema.
    orphans = " OR ".join(f"{column} NOT IN (SELECT id FROM {table})" for column, table in _KEYS)
    if is_sqlite:
        op.execute("DROP TRIGGER version_members_delete")
        op.execute(f"DELETE FROM version_members WHERE {orphans}")
    else:
        op.execute("ALTER TABLE version_members DISABLE TRIGGER version_members_fixed")
        op.execute(f"DELETE FROM version_members WHERE {orphans}")
        op.execute("ALTER TABLE version_members ENABLE TRIGGER version_members_fixed")
    with op.batch_alter_table("version_members") as batch:
        for column, table in _KEYS:
            batch.create_foreign_key(f"fk_version_members_{column}_{table}", table, [column], ["id"])
    if is_sqlite:
        _guard_members()
    for name in ("archive_reason", "archived_by", "archived_at"):
        op.drop_column("versions", name)
