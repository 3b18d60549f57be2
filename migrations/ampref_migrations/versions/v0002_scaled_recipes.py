"""Recipes say whether their physics is scaled, so that a query need not read every recipe to leave those out.

Revision: 0002; follows 0001.
"""

from __future__ import annotations

import json
from typing import Any

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
    digests = [
        row.digest for row in connection.execute(sa.select(recipes.c.digest, recipes.c.recipe)) if _is_scaled(row.recipe)
    ]
    for digest in digests:
        connection.execute(recipes.update().where(recipes.c.digest == digest).values(scaled=1))


def _is_scaled(recipe: Any) -> bool:
    facts = json.loads(recipe) if isinstance(recipe, str) else recipe
    return any(factor != 1 for factor in (facts.get("physics") or {}).values())


def downgrade() -> None:
    op.drop_column("recipes", "scaled")
