"""What a version holds: frame ranges of rollouts, each in the bucket of its recipe's physics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields

from sqlalchemy import distinct, func, select

from amp_core.recipe import PhysicsScale
from ampref_service.catalog import recipes
from ampref_service.catalog.engine import Session
from ampref_service.catalog.records import VersionBucket, VersionMember
from ampref_service.catalog.tables import rollouts, version_members


def list_members(session: Session, version_id: str, *, after_position: int = -1, limit: int = 500) -> list[VersionMember]:
    """A version's members in their order, from the one after `after_position`."""
    columns = [version_members.c[field.name] for field in fields(VersionMember)]
    query = (
        select(*columns)
        .where(version_members.c.version_id == version_id, version_members.c.position > after_position)
        .order_by(version_members.c.position)
        .limit(limit)
    )
    return [VersionMember(*row) for row in session.execute(query)]


def get_buckets(session: Session, version_id: str) -> list[VersionBucket]:
    """What a version holds in each bucket, the robot's own physics first."""
    query = (
        select(
            rollouts.c.recipe_digest,
            func.count(distinct(version_members.c.rollout_id)).label("clips"),
            func.sum(version_members.c.end - version_members.c.start).label("frames"),
        )
        .join(rollouts, rollouts.c.id == version_members.c.rollout_id)
        .where(version_members.c.version_id == version_id)
        .group_by(rollouts.c.recipe_digest)
    )
    rows = session.execute(query).all()
    scales = _scales(session, {row.recipe_digest for row in rows})
    counts: dict[PhysicsScale, tuple[int, int]] = {}
    for row in rows:
        scale = scales[row.recipe_digest]
        clips, frames = counts.get(scale, (0, 0))
        counts[scale] = (clips + int(row.clips), frames + int(row.frames))
    return [VersionBucket(scale.name, asdict(scale), *counts[scale]) for scale in sorted(counts)]


def get_bucket_names(session: Session, version_id: str) -> dict[str, str]:
    """The bucket of each rollout in a version, by the rollout's id."""
    query = (
        select(rollouts.c.id, rollouts.c.recipe_digest)
        .join(version_members, version_members.c.rollout_id == rollouts.c.id)
        .where(version_members.c.version_id == version_id)
        .distinct()
    )
    rows = session.execute(query).all()
    scales = _scales(session, {row.recipe_digest for row in rows})
    return {row.id: scales[row.recipe_digest].name for row in rows}


def _scales(session: Session, digests: Iterable[str]) -> dict[str, PhysicsScale]:
    return {digest: recipes.physics_of(row.recipe) for digest, row in recipes.get_many(session, digests).items()}
