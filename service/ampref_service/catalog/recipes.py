"""Recipes: the frozen settings of a generation, by their digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from amp_core.errors import NotFound
from amp_core.recipe import PhysicsScale
from ampref_service.catalog.engine import Session, chunked, insert_new, now
from ampref_service.catalog.records import RecipeRow
from ampref_service.catalog.tables import recipes

_BY_DIGEST = select(recipes.c.digest).where(recipes.c.digest == bindparam("digest"))


def physics_of(recipe: Mapping[str, Any]) -> PhysicsScale:
    """The bucket of a recipe, as JSON has it."""
    return PhysicsScale(**(recipe.get("physics") or {}))


def add(session: Session, recipe: RecipeRow) -> None:
    """Store a recipe, unless the catalog has it."""
    if not exists(session, recipe.digest):
        row = {
            "digest": recipe.digest,
            "mode": recipe.mode,
            "recipe": dict(recipe.recipe),
            "created_at": now(session),
            "scaled": int(not physics_of(recipe.recipe).is_identity),
        }
        insert_new(session, recipes, row)


def exists(session: Session, digest: str) -> bool:
    """Whether a clip was ever to be scored with this recipe."""
    return session.execute(_BY_DIGEST, {"digest": digest}).first() is not None


def get(session: Session, digest: str) -> RecipeRow:
    """A recipe by digest; raises `NotFound`."""
    rows = get_many(session, (digest,))
    if digest not in rows:
        raise NotFound(f"no recipe {digest[:80]!r}")
    return rows[digest]


def get_many(session: Session, digests: Iterable[str]) -> dict[str, RecipeRow]:
    """The recipes of these digests that there are, by digest."""
    query = select(recipes.c.digest, recipes.c.mode, recipes.c.recipe)
    return {
        row.digest: RecipeRow(*row)
        for part in chunked(sorted(digests))
        for row in session.execute(query.where(recipes.c.digest.in_(part)))
    }


def group_by_bucket(session: Session, buckets: Sequence[PhysicsScale] | None) -> dict[PhysicsScale, list[str]]:
    """The digests of the recipes in each bucket; in every bucket that there is, where `buckets` is None.

    Recipes of mode `auto` are left out, since no rollout is kept under one. There are few recipes, so they are grouped here
    and not in SQL: databases differ in how they read a number in JSON.
    """
    groups: dict[PhysicsScale, list[str]] = {scale: [] for scale in buckets or ()}
    query = select(recipes.c.digest, recipes.c.recipe).where(recipes.c.mode != "auto").order_by(recipes.c.digest)
    for row in session.execute(query):
        scale = physics_of(row.recipe)
        if buckets is None or scale in groups:
            groups.setdefault(scale, []).append(row.digest)
    return groups
