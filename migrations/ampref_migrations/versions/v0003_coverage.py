"""Versions keep their coverage figures, so that showing a version need not read its manifest.

Revision: 0003; follows 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("coverage", sa.JSON(none_as_null=True)))
    # What is locked does not change: the column's own guard, beside the one of revision 0001's columns.
    if op.get_bind().dialect.name == "sqlite":
        refuse = "BEGIN SELECT RAISE(ABORT, 'a locked version never changes'); END"
        op.execute(
            f"CREATE TRIGGER versions_coverage_fixed BEFORE UPDATE OF coverage ON versions WHEN OLD.state = 'locked' {refuse}"
        )
    else:
        refuse = "EXECUTE FUNCTION ampref_refuse('a locked version never changes')"
        op.execute(
            "CREATE TRIGGER versions_coverage_fixed BEFORE UPDATE OF coverage ON versions "
            f"FOR EACH ROW WHEN (OLD.state = 'locked') {refuse}"
        )


def downgrade() -> None:
    on = "" if op.get_bind().dialect.name == "sqlite" else " ON versions"
    op.execute(f"DROP TRIGGER versions_coverage_fixed{on}")
    op.drop_column("versions", "coverage")
