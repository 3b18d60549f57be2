"""Events: what happened, for whoever follows the stream.

Revision: 0013; follows 0012.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("number", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", _text(40), nullable=False),
        sa.Column("position", _BIG, nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", _text(40), nullable=False),
        sa.Column("dataset", _text(100), nullable=True),
        sa.Column("robot", _text(200), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
        sa.UniqueConstraint("id", name=op.f("uq_events_id")),
        sa.UniqueConstraint("position", name=op.f("uq_events_position")),
    )
    condition = sa.text("position IS NULL")
    op.create_index("ix_events_unplaced", "events", ["number"], sqlite_where=condition, postgresql_where=condition)
    stream = op.create_table(
        "event_stream",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_position", _BIG, nullable=False),
        sa.Column("purged_through", _BIG, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_event_stream_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_stream")),
    )
    op.bulk_insert(stream, [{"id": 1, "last_position": 0, "purged_through": 0}])


def downgrade() -> None:
    op.drop_table("event_stream")
    op.drop_table("events")
