"""Recipes say whether their physics is scaled, so that a query need not read every recipe to leave those out.

Revision: 0002; follows 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("recipes", sa.Column("scaled", sa.Integer(), nullable=False, server_default="0"))
    connection = op.get_bind()
    recipes = sa.table("recipes", sa.column("digest", sa.String), sa.column("recipe", sa.JSON), sa.column("scaled", sa.Integer))
    for row in connection.execute(sa.select(recipes.c.digest, recipes.c.recipe)).all():
        if any(factor != 1 for factor in (row.recipe.get("physics") or {}).values()):
            connection.execute(recipes.update().where(recipes.c.digest == row.digest).values(scaled=1))


def downgrade() -> None:
    op.drop_column("recipes", "scaled")
