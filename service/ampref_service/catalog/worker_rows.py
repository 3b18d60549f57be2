"""Rows of the workers: who is there, what it has installed, and whether it takes jobs.

They are for people, for health and metrics, and for where a retry goes. Whose a job is depends on its lease alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

from sqlalchemy import delete, insert, or_, select, update

from ampref_service.catalog.engine import Session, now, select_distinct
from ampref_service.catalog.records import NO_BOUNDS, Bounds, Job, Worker
from ampref_service.catalog.tables import jobs, workers

SILENT_SEC = 30.0
"""A worker that was not seen for longer is no live one."""

_FORGET_SEC = 24 * 3600.0


def save(session: Session, worker: Worker) -> None:
    """Write a worker's row, seen now; rows of workers that were last seen a day ago are dropped."""
    at = now(session)
    values = {name: value for name, value in asdict(worker).items() if name not in ("live", "started_at")} | {"seen_at": at}
    if not session.execute(update(workers).where(workers.c.id == worker.id).values(values)).rowcount:
        session.execute(insert(workers).values(values | {"started_at": at}))
        old = or_(workers.c.seen_at < at - _FORGET_SEC, workers.c.seen_at > at + _FORGET_SEC)
        session.execute(delete(workers).where(old))


def remove(session: Session, worker_ids: Iterable[str]) -> None:
    """Forget workers that have ended."""
    session.execute(delete(workers).where(workers.c.id.in_(list(worker_ids))))


def list_workers(session: Session, bounds: Bounds = NO_BOUNDS) -> list[Worker]:
    """Every worker that was seen within a day, the newest first; `live` says whether it was lately.

    Whoever reaches some robots alone learns of the workers that have one of them, and of those robots.
    """
    at = now(session)
    rows = session.execute(select(workers).order_by(workers.c.id.desc())).mappings()
    # Either way: where the clock went back, a worker that ended before was seen in the future.
    everybody = [replace(worker, live=abs(at - worker.seen_at) <= SILENT_SEC) for worker in (Worker(**row) for row in rows)]
    if bounds.robots is None:
        return everybody
    narrowed = [
        replace(worker, robots={name: worker.robots[name] for name in worker.robots if bounds.includes_robot(name)})
        for worker in everybody
    ]
    return [worker for worker in narrowed if worker.robots]


def find_other(session: Session, job: Job, worker_id: str | None) -> Worker | None:
    """A live worker that takes jobs and could take this one, other than the one that has it."""
    takers = (worker for worker in list_workers(session) if worker.id != worker_id and can_take(worker, job.robot_digest))
    return next((worker for worker in takers if worker.live and worker.state == "working"), None)


def can_take(worker: Worker, robot_digest: str) -> bool:
    """Whether a worker has a job's robot."""
    return not robot_digest or robot_digest in worker.robots.values()


def explain_waiting(session: Session, rows: Iterable[Job]) -> list[Job]:
    """The jobs as they are, but each that is queued and that nobody can take has a message that says why."""
    result = list(rows)
    if not any(job.state == "queued" for job in result):
        return result
    live = [worker for worker in list_workers(session) if worker.live]
    return [
        replace(job, message=reason)
        if job.state == "queued" and (reason := _explain(job.robot, job.robot_digest, live))
        else job
        for job in result
    ]


def stuck_robots(session: Session) -> list[str]:
    """Why queued jobs wait that no live worker can take, one sentence a robot."""
    due = (jobs.c.state == "queued", jobs.c.not_before == 0)
    live = [worker for worker in list_workers(session) if worker.live]
    reasons = []
    for digest in session.execute(select_distinct(jobs.c.robot_digest, *due)).scalars().all():
        robot = session.execute(select(jobs.c.robot).where(*due, jobs.c.robot_digest == digest).limit(1)).scalar_one_or_none()
        reasons.append(_explain(robot or "", digest, live))
    return sorted(reason for reason in reasons if reason)


def _explain(robot: str, robot_digest: str, live: list[Worker]) -> str | None:
    takers = [worker for worker in live if can_take(worker, robot_digest)]
    if any(worker.state == "working" for worker in takers):
        return None
    wish = f"a worker with robot {robot} {robot_digest}" if robot_digest else "a worker"
    idle_taker = next((worker for worker in takers if worker.state == "paused"), None)
    if idle_taker is not None:
        return f"waits for {wish}: {idle_taker.name} is paused, because {idle_taker.reason}"
    return f"waits for {wish}: no live one is known"
