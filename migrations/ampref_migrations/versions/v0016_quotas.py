"""What a key has used is counted by indices.

Revision: 0016; follows 0015.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_clips_actor", "clips", ["actor", "created_at", "size"], unique=False)
    op.create_index("ix_jobs_owner_state", "jobs", ["owner", "state"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_jobs_owner_state", table_name="jobs")
    op.drop_index("ix_clips_actor", table_name="clips")
