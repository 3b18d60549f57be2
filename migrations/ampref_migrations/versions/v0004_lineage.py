"""Clips know what they were made from: parent, ancestor and augmentation of a variant.

Revision: 0004; follows 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


_COLUMNS = (("parent_id", 40), ("parent_digest", 80), ("ancestor_digest", 80), ("augmentation", 200))


def upgrade() -> None:
    for table in ("clips", "curriculum"):
        for name, length in _COLUMNS:
            text = sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
            op.add_column(table, sa.Column(name, text, nullable=True))
    op.create_index("ix_clips_parent_digest", "clips", ["parent_digest"], unique=False)
    op.create_index("ix_clips_parent_id", "clips", ["parent_id"], unique=False)
    op.create_index("ix_curriculum_parent_id", "curriculum", ["scope", "parent_id", "clip_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_curriculum_parent_id", table_name="curriculum")
    op.drop_index("ix_clips_parent_id", table_name="clips")
    op.drop_index("ix_clips_parent_digest", table_name="clips")
    for table in ("clips", "curriculum"):
        for name, _ in _COLUMNS:
            op.drop_column(table, name)
