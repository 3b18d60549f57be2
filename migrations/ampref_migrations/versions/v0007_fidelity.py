"""Rollouts and the curriculum have the metrics of fidelity; they are null for what was scored before.

Revision: 0007; follows 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_METRICS = (
    "joint_rmse_raw_rad",
    "mpjpe_m",
    "mpjpe_global_m",
    "heading_error_deg",
    "tilt_error_deg",
    "height_error_m",
    "speed_ratio",
    "contact_rate_error",
    "unloaded_excess",
    "pitch_excess_deg",
    "roll_excess_deg",
    "tilt_excess_deg",
    "nonfoot_excess",
    "clip_foot_slide",
    "clip_flight_rate",
    "clip_max_tilt_deg",
    "clip_ground_range_m",
)
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
