"""Rows of the job table: what the catalog's own transactions need of the queue. `ampref_service.jobs` is the queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, case, delete, func, or_, select, update

from amp_core.errors import InputRefused, NotFound
from ampref_service.catalog import audit, keys
from ampref_service.catalog.engine import Session, chunked, insert_new, match_names, new_id, now
from ampref_service.catalog.records import NO_BOUNDS, USUAL_TERMS, Bounds, Job, JobTerms, Page
from ampref_service.catalog.tables import JOB_STATES, LIVE_STATES, jobs, workers

_UNSHOWN = ("rung_at", "rank", "worker_id", "avoid_worker", "avoid_until")


def to_job(row: RowMapping) -> Job:
    """A row as a record."""
    values = {name: value for name, value in row.items() if name not in _UNSHOWN}
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(**values)


def get(session: Session, job_id: str) -> Job:
    """A job by id; raises `NotFound`."""
    row = session.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id[:80]!r}", remedy="`ampref jobs` (GET /v1/jobs) lists them")
    return to_job(row)


def read_changes(session: Session, revisions: Mapping[str, int]) -> dict[str, Job | None]:
    """Of the jobs with these revisions those that have another one now; None for one that is gone."""
    current: dict[str, int] = {}
    for part in chunked(list(revisions)):
        rows = session.execute(select(jobs.c.id, jobs.c.revision).where(jobs.c.id.in_(part)))
        current |= {row.id: row.revision for row in rows}
    changes: dict[str, Job | None] = {job_id: None for job_id in revisions if job_id not in current}
    for part in chunked([job_id for job_id, revision in current.items() if revisions[job_id] != revision]):
        complete = session.execute(select(jobs).where(jobs.c.id.in_(part))).mappings()
        changes |= {row["id"]: to_job(row) for row in complete}
    return changes


def enqueue(
    session: Session,
    kind: str,
    *,
    clip_id: str | None = None,
    recipe_digest: str | None = None,
    version_id: str | None = None,
    payload: Mapping[str, Any] | None = None,
    robot: str = "",
    robot_digest: str = "",
    limit_sec: float | None = None,
    terms: JobTerms = USUAL_TERMS,
    actor: str = audit.ANONYMOUS,
) -> tuple[Job, bool]:
    """Add a job in the caller's transaction. Returns it and True, or the live one that does the same and False.

    Args:
      robot, robot_digest: what its worker must have installed; without a digest any worker will do.
      limit_sec: s that one attempt may take; None: the worker's own limit.
    """
    at = now(session)
    values: dict[str, Any] = {
        # Pages of jobs are in the order of their ids.
        "id": new_id("job", after=session.execute(select(func.max(jobs.c.id))).scalar_one()),
        "kind": kind,
        "state": "queued",
        "clip_id": clip_id,
        "recipe_digest": recipe_digest,
        "version_id": version_id,
        "payload": dict(payload or {}),
        "attempts": 0,
        "max_attempts": terms.max_attempts,
        "not_before": 0.0,  # Due whatever the clock says.
        "created_at": at,
        "updated_at": at,
        "revision": 1,
        "token": 0,
        "cancel_requested": 0,
        "progress": 0.0,
        "actor": actor,
        "owner": terms.owner,
        "priority": terms.priority,
        "rank": -terms.priority,
        "robot": robot,
        "robot_digest": robot_digest,
        "worked_sec": 0.0,
        "limit_sec": limit_sec,
        "losses": 0,
        "faults": 0,
    }
    if insert_new(session, jobs, values):
        audit.record(
            session,
            actor,
            "job.enqueue",
            f"job:{values['id']}",
            {"kind": kind, "clip": clip_id, "recipe": recipe_digest, "version": version_id},
        )
        if terms.key is not None:
            keys.check_work(session, terms.key)
        unset: dict[str, Any] = {column.name: None for column in jobs.c if column.name not in (*values, *_UNSHOWN)}
        return Job(
            **unset, **{name: value for name, value in values.items() if name not in _UNSHOWN} | {"cancel_requested": False}
        ), True
    live = select(jobs).where(jobs.c.kind == kind, jobs.c.state.in_(LIVE_STATES))
    if kind == "lock":
        live = live.where(jobs.c.version_id == version_id)
    else:
        live = live.where(jobs.c.clip_id == clip_id, jobs.c.recipe_digest == recipe_digest)
    return to_job(session.execute(live).mappings().one()), False


def _newest_first(query: Select[Any], clip_id: str, recipe_digest: str) -> Select[Any]:
    """The rollout jobs of a clip and a recipe."""
    return query.where(jobs.c.clip_id == clip_id, jobs.c.recipe_digest == recipe_digest, jobs.c.kind == "rollout").order_by(
        jobs.c.created_at.desc(), jobs.c.id.desc()
    )


def latest_for_rollout(session: Session, clip_id: str, recipe_digest: str) -> Job | None:
    """The newest job that scored, or was to score, a clip with a recipe."""
    row = session.execute(_newest_first(select(jobs), clip_id, recipe_digest).limit(1)).mappings().one_or_none()
    return None if row is None else to_job(row)


def answer(session: Session, clip_id: str, recipe_digest: str) -> str | None:
    """The id of the rollout that the newest job to succeed gave for a clip and a recipe.

    A recipe of mode `auto` has no rollout of its own: what its job made is kept under the recipes that really made it.
    """
    query = _newest_first(select(jobs.c.result), clip_id, recipe_digest).where(jobs.c.state == "succeeded")
    result = session.execute(query.limit(1)).scalar_one_or_none()
    return None if result is None else result.get("rollout_id")


def for_clip(session: Session, clip_id: str) -> list[Job]:
    """The newest 50 jobs of a clip, newest first."""
    query = select(jobs).where(jobs.c.clip_id == clip_id).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(50)
    return [to_job(row) for row in session.execute(query).mappings()]


def list_jobs(
    session: Session,
    *,
    state: str | None = None,
    kind: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    bounds: Bounds = NO_BOUNDS,
) -> Page[Job]:
    """Jobs within bounds, newest first; `cursor` is the id of the last one of the page before."""
    query = select(jobs).order_by(jobs.c.id.desc()).limit(min(max(limit, 1), 500) + 1)
    if cursor is not None:
        if not re.fullmatch(r"job_[0-9a-z]{26}", cursor):
            raise InputRefused(
                "the cursor cannot be read", key="cursor", expected="`next_cursor` of the page before, unchanged"
            )
        query = query.where(jobs.c.id < cursor)
    query = query.where(*list_conditions(bounds))
    for column, value in ((jobs.c.state, state), (jobs.c.kind, kind)):
        if value is not None:
            query = query.where(column == value)
    rows = [to_job(row) for row in session.execute(query).mappings()]
    return Page(tuple(rows[:limit]), rows[limit - 1].id if len(rows) > limit else None)


def list_conditions(bounds: Bounds) -> Iterator[ColumnElement[bool]]:
    """The conditions on `jobs` that their datasets and robots are within bounds."""
    if bounds.datasets is not None:
        dataset = jobs.c.payload["dataset"].as_string()
        yield or_(jobs.c.kind != "lock", *match_names(dataset, bounds.datasets))
    if bounds.robots is not None:
        yield jobs.c.robot.in_(bounds.robots)


def counts(session: Session, bounds: Bounds = NO_BOUNDS, states: Sequence[str] = JOB_STATES) -> dict[str, int]:
    """How many jobs within bounds there are in each of these states."""
    query = select(jobs.c.state, func.count()).where(*list_conditions(bounds)).group_by(jobs.c.state)
    if states != JOB_STATES:
        query = query.where(jobs.c.state.in_(states))
    by_state = {state: number for state, number in session.execute(query)}
    return {state: by_state.get(state, 0) for state in states}


def live_for_clips(session: Session, clip_ids: Sequence[str]) -> dict[str, Job]:
    """The newest job of each of these clips that is queued, runs, or came to no result; clips without one are left out."""
    if not clip_ids:
        return {}
    query = select(jobs).where(jobs.c.clip_id.in_(clip_ids), jobs.c.state != "succeeded").order_by(jobs.c.id)
    return {row["clip_id"]: to_job(row) for row in session.execute(query).mappings()}


def cancel_for_clip(session: Session, clip_id: str, reason: str) -> list[str]:
    """Cancel every live job of a clip at once; a worker that still runs one finds its token stale."""
    at = now(session)
    live = select(jobs.c.id).where(jobs.c.clip_id == clip_id, jobs.c.state.in_(LIVE_STATES)).with_for_update()
    ids = list(session.execute(live).scalars())
    if ids:
        session.execute(
            update(jobs)
            .where(jobs.c.id.in_(ids))
            .values(
                state="cancelled",
                message=reason,
                finished_at=at,
                updated_at=at,
                revision=jobs.c.revision + 1,
                token=jobs.c.token + 1,
                lease_until=None,
            )
        )
    return ids


def forget_workers(session: Session, reason: str) -> int:
    """Delete every worker's row and queue what they ran, due at once and without a lost attempt; returns how many jobs.

    For a catalog that was restored: its workers are those of another place or of another time.
    """
    at = now(session)
    session.execute(delete(workers))
    values: dict[str, Any] = {
        "state": "queued",
        "attempts": case((jobs.c.attempts > 0, jobs.c.attempts - 1), else_=0),
        "not_before": at,
        "updated_at": at,
        "progress": 0.0,
        "message": reason,
        **dict.fromkeys(("lease_until", "rung_at", "worker_id", "avoid_worker", "avoid_until")),
        "token": jobs.c.token + 1,
        "revision": jobs.c.revision + 1,
    }
    statement = update(jobs).where(jobs.c.state == "running").values(values)
    return session.execute(statement, execution_options={"preserve_rowcount": True}).rowcount
