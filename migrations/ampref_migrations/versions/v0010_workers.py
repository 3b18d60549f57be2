"""Jobs have an owner, a priority, a robot and a limit, and workers are rows.

An older release's API and workers go on beside it: the new columns have defaults, and the old ones mean what they meant.

Revision: 0010; follows 0009.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("owner", _text(200), nullable=False, server_default=""),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("rank", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("robot", _text(200), nullable=False, server_default=""),
        sa.Column("robot_digest", _text(80), nullable=False, server_default=""),
        sa.Column("worked_sec", sa.Double(), nullable=False, server_default="0"),
        sa.Column("limit_sec", sa.Double(), nullable=True),
        sa.Column("losses", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("faults", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("worker_id", _text(40), nullable=True),
        sa.Column("failed_on", _text(40), nullable=True),
        sa.Column("avoid_worker", _text(40), nullable=True),
        sa.Column("avoid_until", sa.Double(), nullable=True),
    ]


def upgrade() -> None:
    for column in _columns():
        op.add_column("jobs", column)
    # Of a version's members the robot's digest is not known before they are gathered: any worker may lock it, as before.
    op.execute(
        "UPDATE jobs SET robot = COALESCE((SELECT robot FROM clips WHERE clips.id = jobs.clip_id), ''), "
        "robot_digest = COALESCE((SELECT robot_digest FROM clips WHERE clips.id = jobs.clip_id), '') WHERE clip_id IS NOT NULL"
    )
    op.execute(
        "UPDATE jobs SET robot = COALESCE((SELECT robot FROM versions WHERE versions.id = jobs.version_id), '') "
        "WHERE version_id IS NOT NULL"
    )
    # Due at once, whatever the clock says that wrote it.
    op.execute("UPDATE jobs SET not_before = 0 WHERE state = 'queued'")
    op.create_index(
        "ix_jobs_claim", "jobs", ["state", "not_before", "robot_digest", "owner", "rank", "created_at", "id"], unique=False
    )
    op.create_index("ix_jobs_owner", "jobs", ["owner", "started_at"], unique=False)
    op.create_table(
        "workers",
        sa.Column("id", _text(40), nullable=False),
        sa.Column("name", _text(200), nullable=False),
        sa.Column("host", _text(200), nullable=False),
        sa.Column("machine", _text(200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("release", _text(40), nullable=False),
        sa.Column("robots", sa.JSON(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("state", _text(20), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("host_faults", sa.Integer(), nullable=False),
        sa.CheckConstraint("state IN ('working', 'paused', 'stopping')", name=op.f("ck_workers_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    op.drop_table("workers")
    op.drop_index("ix_jobs_owner", table_name="jobs")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    for column in reversed(_columns()):
        op.drop_column("jobs", column.name)
