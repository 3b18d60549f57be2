"""Clips are counted by robot, mode, gate profile and tier within one index.

Revision: 0017; follows 0016.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_COLUMNS = ["robot", "mode", "gate_profile", "tier", "best", "best_in_mode", "best_by_profile"]


def upgrade() -> None:
    op.create_index("ix_curriculum_facets", "curriculum", _COLUMNS, unique=False)
    op.drop_index("ix_curriculum_robot", table_name="curriculum")


def downgrade() -> None:
    op.create_index("ix_curriculum_robot", "curriculum", ["robot"], unique=False)
    op.drop_index("ix_curriculum_facets", table_name="curriculum")
