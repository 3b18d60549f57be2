"""Thumbnails of rollouts: which are to be made, who makes them, and which there are.

A row is there for each rollout, with a digest once its thumbnail was made. A worker claims rows for a time; what it has not
made by then is another's. A thumbnail that is lost is made again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ampref_service.catalog.engine import Session, now
from ampref_service.catalog.tables import MOST_THUMBNAIL_FAILURES, clips, rollout_thumbnails, rollouts

_ADOPTED_AT_ONCE = 2_000
_MOST_FAILURES: ColumnElement[int] = literal_column(str(MOST_THUMBNAIL_FAILURES))
"""No parameter, or SQLite could not tell that the index of what is due has all of it."""


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail that was made."""

    digest: str
    size: int


@dataclass(frozen=True)
class ThumbnailClaim:
    """A rollout whose thumbnail is to be made, with what it is made from."""

    rollout_id: str
    robot: str
    robot_digest: str
    arrays_digest: str


def add(session: Session, rollout_id: str) -> None:
    """Have a new rollout's thumbnail made."""
    session.execute(insert(rollout_thumbnails).values(rollout_id=rollout_id, failures=0, lease_until=0.0))


def adopt(session: Session) -> int:
    """Have the thumbnails made of rollouts of earlier releases, some thousand at a time, the newest first; how many."""
    missing = (
        select(rollouts.c.id)
        .outerjoin(rollout_thumbnails, rollout_thumbnails.c.rollout_id == rollouts.c.id)
        .where(rollout_thumbnails.c.rollout_id.is_(None))
        .order_by(rollouts.c.id.desc())
        .limit(_ADOPTED_AT_ONCE)
    )
    ids = list(session.execute(missing).scalars())
    if ids:
        dialect = postgresql if session.dialect.name == "postgresql" else sqlite
        rows = [{"rollout_id": rollout_id, "failures": 0, "lease_until": 0.0} for rollout_id in ids]
        # Another worker may add them at the same time.
        session.execute(dialect.insert(rollout_thumbnails).on_conflict_do_nothing(), rows)
    return len(ids)


def claim(session: Session, robot_digests: Collection[str], *, limit: int, lease_sec: float) -> list[ThumbnailClaim]:
    """Take rollouts whose thumbnails are due, the newest first, all of one robot; nobody else takes them during the lease.

    Args:
      robot_digests: of the robots that the claimant has.
    """
    time = now(session)
    due = (
        select(rollout_thumbnails.c.rollout_id, clips.c.robot, clips.c.robot_digest, rollouts.c.arrays_digest)
        .join(rollouts, rollouts.c.id == rollout_thumbnails.c.rollout_id)
        .join(clips, clips.c.id == rollouts.c.clip_id)
        .where(
            rollout_thumbnails.c.digest.is_(None),
            rollout_thumbnails.c.failures < _MOST_FAILURES,
            rollout_thumbnails.c.lease_until < time,
            clips.c.robot_digest.in_(sorted(robot_digests)),
        )
        .order_by(rollout_thumbnails.c.rollout_id.desc())
        .limit(limit)
        .with_for_update(of=rollout_thumbnails, skip_locked=True)
    )
    claims = [ThumbnailClaim(*row) for row in session.execute(due)]
    claims = [claim for claim in claims if claim.robot_digest == claims[0].robot_digest]
    _update(session, [claim.rollout_id for claim in claims], lease_until=time + lease_sec)
    return claims


def is_due(session: Session) -> bool:
    """Whether any thumbnail is to be made; costs one look at an index."""
    query = select(rollout_thumbnails.c.rollout_id).where(
        rollout_thumbnails.c.digest.is_(None),
        rollout_thumbnails.c.failures < _MOST_FAILURES,
        rollout_thumbnails.c.lease_until < now(session),
    )
    return session.execute(query.limit(1)).first() is not None


def finish(session: Session, rollout_id: str, thumbnail: Thumbnail) -> None:
    """Keep the thumbnail of a rollout, which may have been deleted meanwhile."""
    _update(session, [rollout_id], digest=thumbnail.digest, size=thumbnail.size, failures=0, lease_until=0.0)


def fail(session: Session, rollout_id: str, count: int = 1) -> None:
    """Count some failures; after `MOST_THUMBNAIL_FAILURES` the rollout has no thumbnail."""
    _update(session, [rollout_id], failures=rollout_thumbnails.c.failures + count, lease_until=0.0)


def release(session: Session, rollout_ids: Sequence[str]) -> None:
    """Give claimed rollouts back."""
    _update(session, rollout_ids, lease_until=0.0)


def _update(session: Session, rollout_ids: Sequence[str], **values: object) -> None:
    if rollout_ids:
        query = update(rollout_thumbnails).where(rollout_thumbnails.c.rollout_id.in_(rollout_ids))
        session.execute(query.values(values))


def find(session: Session, rollout_id: str) -> Thumbnail | None:
    """The thumbnail of a rollout; None until it was made."""
    query = select(rollout_thumbnails.c.digest, rollout_thumbnails.c.size).where(
        rollout_thumbnails.c.rollout_id == rollout_id, rollout_thumbnails.c.digest.is_not(None)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else Thumbnail(*row)


def list_digests(session: Session, rollout_ids: Collection[str]) -> dict[str, str]:
    """The digests of the thumbnails that some rollouts have."""
    query = select(rollout_thumbnails.c.rollout_id, rollout_thumbnails.c.digest).where(
        rollout_thumbnails.c.rollout_id.in_(rollout_ids), rollout_thumbnails.c.digest.is_not(None)
    )
    return {rollout_id: digest for rollout_id, digest in session.execute(query)}


def forget(session: Session, digests: Collection[str]) -> int:
    """Have thumbnails that are lost or damaged made again; returns of how many rollouts."""
    query = update(rollout_thumbnails).where(rollout_thumbnails.c.digest.in_(digests))
    return session.execute(query.values(digest=None, size=None, failures=0, lease_until=0.0)).rowcount
