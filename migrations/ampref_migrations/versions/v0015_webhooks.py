"""Webhooks: addresses that events are sent to.

Revision: 0015; follows 0014.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", _text(40), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("secret", _text(100), nullable=False),
        sa.Column("kinds", sa.JSON(), nullable=False),
        sa.Column("dataset", _text(100), nullable=True),
        sa.Column("robot", _text(200), nullable=True),
        sa.Column("bound_datasets", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("bound_robots", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("owner", _text(200), nullable=False),
        sa.Column("key_id", _text(40), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("state", _text(20), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("position", _BIG, nullable=False),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_failure", sa.String(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("test", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("test_due", sa.Integer(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.CheckConstraint("state IN ('active', 'quarantined')", name=op.f("ck_webhooks_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )


def downgrade() -> None:
    op.drop_table("webhooks")
