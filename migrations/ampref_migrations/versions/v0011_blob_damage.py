"""Blobs that were found damaged, and the round that looks for them.

Revision: 0011; follows 0010.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def _digest() -> Any:
    return sa.String(80).with_variant(sa.String(80, collation="C"), "postgresql")


def _big() -> Any:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "blob_damage",
        sa.Column("digest", _digest(), nullable=False),
        sa.Column("found_at", sa.Double(), nullable=False),
        sa.Column("fault", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=True),
        sa.Column("healed_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blob_damage")),
    )
    is_open = sa.text("healed_at IS NULL")
    op.create_index(
        "ix_blob_damage_open", "blob_damage", ["digest"], unique=False, sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_table(
        "blob_scrub",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cursor", _digest(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("blobs", _big(), nullable=False),
        sa.Column("bytes", _big(), nullable=False),
        sa.Column("damaged", _big(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("complete_started_at", sa.Double(), nullable=True),
        sa.Column("complete_finished_at", sa.Double(), nullable=True),
        sa.Column("complete_blobs", _big(), nullable=True),
        sa.Column("complete_bytes", _big(), nullable=True),
        sa.Column("complete_damaged", _big(), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_blob_scrub_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blob_scrub")),
    )


def downgrade() -> None:
    op.drop_table("blob_scrub")
    op.drop_index("ix_blob_damage_open", table_name="blob_damage")
    op.drop_table("blob_damage")
