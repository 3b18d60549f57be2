"""What happened, as a stream: `record` writes an event in the transaction of the change itself.

An event has no position until it is committed. On PostgreSQL a transaction may commit after one that took a later number from
the sequence, and a reader that has passed that number would miss it. So whoever reads gives positions first (`place`): to all
that are committed and have none, in the order they were written, under the lock of the stream's one row. What has a position
can no longer be overtaken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, bindparam, delete, func, insert, or_, select, update

from ampref_service.catalog.engine import Session, match_names, new_id, now
from ampref_service.catalog.records import Event, EventFilter, EventGap, EventKind, EventPage, Job, Rollout
from ampref_service.catalog.tables import clips, event_stream, events

_BATCH = 1000
_REASON_CHARACTERS = 500
_DAY_SEC = 86400.0

_ADD = insert(events).inline()
_WITHOUT_POSITION = select(events.c.number).where(events.c.position.is_(None)).order_by(events.c.number)
_SET_POSITION = update(events).where(events.c.number == bindparam("row")).values(position=bindparam("place"))
_OLDEST = select(events.c.at, events.c.position).where(events.c.position.is_not(None)).order_by(events.c.position)
_COLUMNS = [events.c[name] for name in ("position", "id", "at", "kind", "dataset", "robot", "data")]


def record(
    session: Session, kind: EventKind, data: Mapping[str, Any], *, dataset: str | None = None, robot: str | None = None
) -> None:
    """Add an event in the transaction of the change itself, so that there is neither without the other.

    Args:
      dataset, robot: the subject, by which events are filtered and shown to those who may see it.
    """
    row = {"id": new_id("event"), "at": now(session), "kind": kind, "dataset": dataset, "robot": robot, "data": dict(data)}
    session.execute(_ADD, row)


def record_score(session: Session, job: Job, rollout: Rollout) -> None:
    """`clip.scored`: a job has given its clip this result."""
    clip = session.execute(select(clips.c.name, clips.c.robot).where(clips.c.id == rollout.clip_id)).one()
    data = {name: getattr(rollout, name) for name in ("clip_id", "mode", "gate_profile")}
    data |= {"name": clip.name, "rollout_id": rollout.id, "tier": int(rollout.tier), "job_id": job.id}
    record(session, "clip.scored", data, robot=clip.robot)


def record_job_end(session: Session, job: Job) -> None:
    """`job.failed` or `job.quarantined`, with the job's error as reason; nothing for another state."""
    if job.state not in ("failed", "quarantined"):
        return
    reason = str((job.error or {}).get("detail") or "no reason was given")
    data = {
        "job_id": job.id,
        "job_kind": job.kind,
        "clip_id": job.clip_id,
        "recipe_digest": job.recipe_digest,
        "version": job.version,
        "reason": reason[:_REASON_CHARACTERS],
    }
    kind: EventKind = "job.failed" if job.state == "failed" else "job.quarantined"
    record(session, kind, data, dataset=job.dataset, robot=job.robot or None)


def is_placing_due(session: Session) -> bool:
    """Whether a committed event has no position yet."""
    return session.execute(_WITHOUT_POSITION.limit(1)).first() is not None


def place(session: Session) -> int:
    """Give positions to up to 1,000 committed events that have none; returns how many there were.

    One transaction at a time does so. On PostgreSQL it must be READ COMMITTED, as `Catalog.begin` makes it: what was committed
    while it waited for the lock is seen after it.
    """
    last = session.execute(select(event_stream.c.last_position).with_for_update()).scalar_one()
    numbers = session.execute(_WITHOUT_POSITION.limit(_BATCH)).scalars().all()
    if numbers:
        session.execute(_SET_POSITION, [{"row": number, "place": last + i} for i, number in enumerate(numbers, 1)])
        session.execute(update(event_stream).values(last_position=last + len(numbers)))
    return len(numbers)


def list_page(session: Session, criteria: EventFilter, *, after: int | None = None, limit: int = 100) -> EventPage:
    """The events after a position, in order; only those that have been placed.

    Args:
      after: None for the oldest that are kept; then there is no gap.
    """
    stream = session.execute(select(event_stream)).one()
    gap, start = None, stream.purged_through if after is None else after
    if not stream.purged_through <= start <= stream.last_position:
        # Beyond the end it is a cursor of another catalog, such as the one that this was restored from.
        gap, start = EventGap(start, stream.purged_through + 1), stream.purged_through
    query = _select(criteria).where(events.c.position > start).order_by(events.c.position).limit(limit)
    items = tuple(Event(*row) for row in session.execute(query))
    return EventPage(items, items[-1].position if len(items) == limit else stream.last_position, gap)


def find_start(session: Session, criteria: EventFilter, last: int) -> int:
    """The position after which there are `last` events, or as many as are kept."""
    stream = session.execute(select(event_stream)).one()
    if last == 0:
        return int(stream.last_position)
    newest = _select(criteria).order_by(events.c.position.desc()).limit(last).subquery()
    first = session.execute(select(func.min(newest.c.position))).scalar_one()
    return int(stream.last_position if first is None else first - 1)


def _select(criteria: EventFilter) -> Select[Any]:
    query = select(*_COLUMNS).where(events.c.position.is_not(None))
    if criteria.kinds:
        query = query.where(events.c.kind.in_(criteria.kinds))
    if criteria.dataset is not None:
        query = query.where(events.c.dataset == criteria.dataset)
    if criteria.robot is not None:
        query = query.where(events.c.robot == criteria.robot)
    if criteria.bounds.datasets is not None:
        names = match_names(events.c.dataset, criteria.bounds.datasets)
        query = query.where(or_(events.c.dataset.is_(None), *names))
    if criteria.bounds.robots is not None:
        query = query.where(events.c.robot.in_(criteria.bounds.robots))
    return query


def is_purge_due(session: Session, days: float) -> bool:
    """Whether the oldest event is older than `days`."""
    at = session.execute(_OLDEST.limit(1)).scalars().first()
    return at is not None and at < now(session) - days * _DAY_SEC


def purge(session: Session, days: float) -> int:
    """Delete up to 1,000 of the oldest events, as far as they are older than `days`; returns how many."""
    session.execute(select(event_stream.c.id).with_for_update())
    cutoff = now(session) - days * _DAY_SEC
    rows = session.execute(_OLDEST.limit(_BATCH)).all()
    # Never past an event that is younger: what is kept has no hole, whatever clocks did.
    count = next((i for i, row in enumerate(rows) if row.at >= cutoff), len(rows))
    if count:
        position = rows[count - 1].position
        session.execute(delete(events).where(events.c.position <= position))
        session.execute(update(event_stream).values(purged_through=position))
    return count
