"""Deleting what has been of no use for long: Rejected clips, clips that nothing scored, rollouts that are the best of nothing.

What a version holds, what has a live job and what is young is never a candidate. The blobs go with the collector of garbage.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select

from amp_core.tiers import Tier
from ampref_service.catalog import audit, clips
from ampref_service.catalog.engine import Catalog, Session, now
from ampref_service.catalog.records import PurgeFilter, PurgeReport
from ampref_service.catalog.tables import LIVE_STATES, curriculum, jobs, rollouts, segments, version_members, versions
from ampref_service.catalog.tables import clips as clips_table

BATCH = 100
"""Clips, or rollouts, that one transaction deletes."""

_DAY_SEC = 86_400.0
_EXAMPLES = 20
_PASSING = (int(Tier.TIER_0), int(Tier.TIER_1))


def count_candidates(session: Session, criteria: PurgeFilter) -> PurgeReport:
    """What a purge would delete now."""
    ids = _select(session, criteria)
    blobs: Any
    if criteria.unreferenced_rollouts:
        condition, clip_count, names = rollouts.c.id.in_(ids), 0, []
        blobs = select(rollouts.c.arrays_digest, rollouts.c.arrays_size).where(condition).distinct()
    else:
        condition = rollouts.c.clip_id.in_(ids)
        clip_count = session.execute(select(func.count()).select_from(ids.subquery())).scalar_one()
        oldest = (
            select(clips_table.c.name).where(clips_table.c.id.in_(ids)).order_by(clips_table.c.created_at, clips_table.c.id)
        )
        names = list(session.execute(oldest.limit(_EXAMPLES)).scalars())
        blobs = select(rollouts.c.arrays_digest, rollouts.c.arrays_size).where(condition)
        blobs = blobs.union(select(clips_table.c.blob_digest, clips_table.c.size).where(clips_table.c.id.in_(ids)))
    sizes = blobs.subquery()
    windows = select(rollouts.c.clip_id).join(segments, segments.c.rollout_id == rollouts.c.id)
    with_windows = windows.where(condition, segments.c.tier.in_(_PASSING)).distinct().subquery()
    return PurgeReport(
        clips=clip_count,
        rollouts=session.execute(select(func.count()).select_from(rollouts).where(condition)).scalar_one(),
        num_bytes=int(session.execute(select(func.coalesce(func.sum(sizes.c[1]), 0))).scalar_one()),
        with_windows=session.execute(select(func.count()).select_from(with_windows)).scalar_one(),
        names=tuple(names),
    )


def count_released(session: Session, version_id: str) -> tuple[int, int]:
    """Clips that no version but this one holds, and those of them that a purge takes once they are old enough."""
    holder = version_members.alias()
    is_held = exists().where(
        holder.c.clip_id == clips_table.c.id,
        holder.c.version_id == versions.c.id,
        versions.c.id != version_id,
        versions.c.archived_at.is_(None),
    )
    is_member = exists().where(version_members.c.clip_id == clips_table.c.id, version_members.c.version_id == version_id)
    is_passing = exists().where(rollouts.c.clip_id == clips_table.c.id, rollouts.c.tier.in_(_PASSING))
    query = select(func.count()).select_from(clips_table).where(is_member, ~is_held)
    return session.execute(query).scalar_one(), session.execute(query.where(~is_passing)).scalar_one()


def purge(catalog: Catalog, criteria: PurgeFilter, *, limit: int, actor: str = audit.ANONYMOUS) -> PurgeReport:
    """Delete candidates, the oldest first, in transactions of at most `BATCH`; each clip and rollout is in the audit log.

    Args:
      limit: clips, or rollouts, at most.

    Returns:
      What was deleted; its names are empty.
    """
    total = PurgeReport()
    count = 0
    while count < limit:
        with catalog.begin() as session:
            part = _purge_batch(session, criteria, min(BATCH, limit - count), actor)
        if part is None:
            break
        count += part.rollouts if criteria.unreferenced_rollouts else part.clips
        total = total.add(part)
    if count:
        with catalog.begin() as session:
            facts = {name: value for name, value in asdict(criteria).items() if name != "bounds"}
            audit.record(session, actor, "purge", "catalog", facts | {"clips": total.clips, "rollouts": total.rollouts})
    return total


def _purge_batch(session: Session, criteria: PurgeFilter, size: int, actor: str) -> PurgeReport | None:
    """One transaction's share; None where nothing is left."""
    column = rollouts.c.clip_id if criteria.unreferenced_rollouts else clips_table.c.id
    candidates = _select(session, criteria, column).order_by(column)
    clip_ids = sorted(set(session.execute(candidates.limit(size)).scalars()))
    # Locked, no clip gets a job, a rollout or a version meanwhile; who has got one since the first look is no candidate.
    session.execute(select(clips_table.c.id).where(clips_table.c.id.in_(clip_ids)).order_by(clips_table.c.id).with_for_update())
    ids = list(session.execute(_select(session, criteria).where(column.in_(clip_ids)).limit(size)).scalars())
    if not ids:
        return None
    if not criteria.unreferenced_rollouts:
        report = _measure(session, rollouts.c.clip_id.in_(ids), clips_table.c.id.in_(ids), len(ids))
        for clip_id in ids:
            clips.delete_clip(session, clip_id, actor=actor)
        return report
    report = _measure(session, rollouts.c.id.in_(ids))
    rows = session.execute(select(rollouts.c.id, rollouts.c.clip_id, rollouts.c.arrays_digest).where(rollouts.c.id.in_(ids)))
    for row in rows.all():
        detail = {"clip": row.clip_id, "arrays": row.arrays_digest}
        audit.record(session, actor, "rollout.delete", f"rollout:{row.id}", detail)
    session.execute(delete(rollouts).where(rollouts.c.id.in_(ids)))
    return report


def _measure(
    session: Session, condition: ColumnElement[bool], clip_condition: ColumnElement[bool] | None = None, clip_count: int = 0
) -> PurgeReport:
    num_rollouts, num_bytes = session.execute(
        select(func.count(), func.coalesce(func.sum(rollouts.c.arrays_size), 0)).where(condition)
    ).one()
    if clip_condition is not None:
        num_bytes += session.execute(select(func.coalesce(func.sum(clips_table.c.size), 0)).where(clip_condition)).scalar_one()
    return PurgeReport(clip_count, num_rollouts, int(num_bytes))


def _select(session: Session, criteria: PurgeFilter, column: Any = None) -> Select[Any]:
    """The candidates: ids of clips, or of rollouts; or another column of theirs."""
    cutoff = now(session) - criteria.older_than_days * _DAY_SEC
    is_live = exists().where(jobs.c.clip_id == clips_table.c.id, jobs.c.state.in_(LIVE_STATES))
    robots = [clips_table.c.robot == criteria.robot] if criteria.robot is not None else []
    if criteria.bounds.robots is not None:
        robots.append(clips_table.c.robot.in_(criteria.bounds.robots))
    holder = exists().where(version_members.c.version_id == versions.c.id, versions.c.archived_at.is_(None))
    if criteria.unreferenced_rollouts:
        return (
            select(rollouts.c.id if column is None else column)
            .join(clips_table, clips_table.c.id == rollouts.c.clip_id)
            .where(
                rollouts.c.tier == int(Tier.REJECTED),
                rollouts.c.created_at < cutoff,
                ~exists().where(curriculum.c.rollout_id == rollouts.c.id),
                ~holder.where(version_members.c.rollout_id == rollouts.c.id),
                ~is_live,
                *robots,
            )
        )
    # A passing rollout in other physics, or by another profile, may train something although the best of the clip is Rejected.
    result = rollouts.alias()
    is_needed = exists().where(
        result.c.clip_id == clips_table.c.id, or_(result.c.created_at >= cutoff, result.c.tier.in_(_PASSING))
    )
    tier = curriculum.c.tier.is_(None) if criteria.tier == "unscored" else curriculum.c.tier == int(Tier.REJECTED)
    return (
        select(clips_table.c.id if column is None else column)
        .join(curriculum, and_(curriculum.c.clip_id == clips_table.c.id, curriculum.c.best == 1))
        .where(
            tier,
            clips_table.c.created_at < cutoff,
            ~is_needed,
            ~holder.where(version_members.c.clip_id == clips_table.c.id),
            ~is_live,
            *robots,
        )
    )
