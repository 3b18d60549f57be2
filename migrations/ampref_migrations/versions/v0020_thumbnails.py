"""Rollouts have thumbnails, which workers make one after the other.

Rollouts of earlier releases have no row yet; the workers add them.

Revision: 0020; follows 0019.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    rollout_id = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
    digest = sa.String(80).with_variant(sa.String(80, collation="C"), "postgresql")
    is_due = sa.text("digest IS NULL AND failures < 3")
    op.create_table(
        "rollout_thumbnails",
        sa.Column("rollout_id", rollout_id, nullable=False),
        sa.Column("digest", digest, nullable=True),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"],
            ["rollouts.id"],
            name=op.f("fk_rollout_thumbnails_rollout_id_rollouts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("pk_rollout_thumbnails")),
    )
    is_made = sa.text("digest IS NOT NULL")
    op.create_index(
        "ix_rollout_thumbnails_digest", "rollout_thumbnails", ["digest"], sqlite_where=is_made, postgresql_where=is_made
    )
    op.create_index(
        "ix_rollout_thumbnails_due", "rollout_thumbnails", ["rollout_id"], sqlite_where=is_due, postgresql_where=is_due
    )


def downgrade() -> None:
    op.drop_table("rollout_thumbnails")
