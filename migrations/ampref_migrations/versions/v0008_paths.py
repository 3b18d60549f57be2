"""Rollouts and the curriculum have the metrics of a clip's path, its still poses and its worst second; null for older scores.

Revision: 0008; follows 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_METRICS = ("worst_second_mpjpe_m", "clip_path_ratio", "clip_still_rate")
_COVERED_COLUMNS = ("best", "mode", "tier", "robot", "duration_sec")


def upgrade() -> None:
    for name in _METRICS:
        for table in ("rollouts", "curriculum"):
            op.add_column(table, sa.Column(name, sa.Double(), nullable=True))
        op.create_index(f"ix_curriculum_{name}", "curriculum", [name, "clip_id", *_COVERED_COLUMNS], unique=False)


def downgrade() -> None:
    for name in _METRICS:
        op.drop_index(f"ix_curriculum_{name}", table_name="curriculum")
        for table in ("curriculum", "rollouts"):
            op.drop_column(table, name)
