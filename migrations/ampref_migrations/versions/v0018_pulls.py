"""Who pulled a version is kept.

Revision: 0018; follows 0017.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def _text(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "version_pulls",
        sa.Column("version_id", _text(40), nullable=False),
        sa.Column("caller", _text(200), nullable=False),
        sa.Column("client", _text(40), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("pulls", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_pulls_version_id_versions")),
        sa.PrimaryKeyConstraint("version_id", "caller", "client", name=op.f("pk_version_pulls")),
    )


def downgrade() -> None:
    op.drop_table("version_pulls")
