"""What a version holds: frame ranges of rollouts, each in the bucket of its recipe's physics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields

from sqlalchemy import distinct, func, select, union

from amp_core.recipe import PhysicsScale
from ampref_service.catalog import recipes
from ampref_service.catalog.engine import Session, chunked
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


def list_members_of(session: Session, version_id: str, clip_ids: Sequence[str]) -> list[VersionMember]:
    """A version's members of some clips, those of each clip in their order."""
    columns = [version_members.c[field.name] for field in fields(VersionMember)]
    query = select(*columns).where(version_members.c.version_id == version_id).order_by(version_members.c.position)
    return [
        VersionMember(*row)
        for part in chunked(clip_ids)
        for row in session.execute(query.where(version_members.c.clip_id.in_(part)))
    ]


def list_differing_clips(session: Session, old_id: str, new_id: str) -> list[str]:
    """The clips of which two versions do not hold the same frames of the same rollouts, in order."""
    names = ("clip_id", "rollout_id", "name", "start", "end", "tier")
    old, new = (
        select(*(version_members.c[name] for name in names)).where(version_members.c.version_id == version_id)
        for version_id in (old_id, new_id)
    )
    parts = [first.except_(second).subquery() for first, second in ((old, new), (new, old))]
    clip_ids = union(*(select(part.c.clip_id) for part in parts)).subquery()
    return list(session.execute(select(clip_ids.c.clip_id).order_by(clip_ids.c.clip_id)).scalars())


def count_shares(session: Session, version_id: str) -> int:
    """How many clips a version holds, each as often as there are buckets that it is in."""
    counts = (
        select(func.count(distinct(version_members.c.rollout_id)), func.count(distinct(version_members.c.clip_id)))
        .select_from(version_members.outerjoin(rollouts, rollouts.c.id == version_members.c.rollout_id))
        .where(version_members.c.version_id == version_id)
    )
    # Of a rollout that was purged the bucket is not known: such members of a clip are one.
    num_rollouts = session.execute(counts.where(rollouts.c.id.is_not(None))).one()[0]
    return int(num_rollouts) + int(session.execute(counts.where(rollouts.c.id.is_(None))).one()[1])


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


def get_bucket_names(session: Session, rollout_ids: Iterable[str]) -> dict[str, str]:
    """The bucket of each of some rollouts, where it is in the catalog, by its id."""
    query = select(rollouts.c.id, rollouts.c.recipe_digest)
    parts = chunked(list(dict.fromkeys(rollout_ids)))
    rows = [row for part in parts for row in session.execute(query.where(rollouts.c.id.in_(part)))]
    scales = _scales(session, {row.recipe_digest for row in rows})
    return {row.id: scales[row.recipe_digest].name for row in rows}


def _scales(session: Session, digests: Iterable[str]) -> dict[str, PhysicsScale]:
    return {digest: recipes.physics_of(row.recipe) for digest, row in recipes.get_many(session, digests).items()}
