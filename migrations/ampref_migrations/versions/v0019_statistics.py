"""What is computed of a version's rows for people is kept.

Revision: 0019; follows 0018.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    version_id = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
    op.create_table(
        "version_statistics",
        sa.Column("version_id", version_id, nullable=False),
        sa.Column("computed_at", sa.Double(), nullable=False),
        sa.Column("statistics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_statistics_version_id_versions")),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_version_statistics")),
    )


def downgrade() -> None:
    op.drop_table("version_statistics")
