"""Rollouts and the curriculum have the metric `contact_agreement`; it is null for what was scored before.

Revision: 0005; follows 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("rollouts", "curriculum"):
        op.add_column(table, sa.Column("contact_agreement", sa.Double(), nullable=True))
    op.create_index("ix_curriculum_contact_agreement", "curriculum", ["scope", "contact_agreement", "clip_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_curriculum_contact_agreement", table_name="curriculum")
    for table in ("curriculum", "rollouts"):
        op.drop_column(table, "contact_agreement")
