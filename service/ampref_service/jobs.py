"""The job table is the queue. A broker's message only wakes a worker; what is to be done, and by whom, is a row.

A worker claims a job and owns it until its lease ends. Every claim raises the job's token; a write must carry the token of the
claim that it belongs to, so a worker that was believed dead and wakes up again changes nothing (`LeaseLost`).

    queued ──claim──▶ running ──complete──▶ succeeded
      ▲  │               │ ├────fail, for good──────▶ failed
      │  └─cancel─┐      │ ├────fail, last attempt──▶ quarantined
      └──pause────┼──────┘ └────cancel, at a heartbeat
                  ▼              ▼
               cancelled     cancelled

`release` and `postpone` bring a running job back to the queue, too, and the attempt does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, case, func, or_, select, update

from amp_core.errors import AmprefError, Conflict
from ampref_service.catalog import audit, events, job_rows, locking, recipes, rollouts
from ampref_service.catalog.engine import Catalog, Session, now
from ampref_service.catalog.records import Job, JobTerms, Key, NewRollout, Rollout
from ampref_service.catalog.tables import jobs

KINDS = ("rollout", "lock")
_LONGEST_PAUSE_SEC = 300.0
_SWEEP_BATCH = 1000


class LeaseLost(Conflict):
    """The job is another worker's by now, or was cancelled; nothing was written."""

    slug = "lease-lost"
    title = "The job is no longer this worker's"


@dataclass(frozen=True)
class Claim:
    """A job that this worker owns while it sends heartbeats."""

    job: Job
    token: int
    worker: str


@dataclass(frozen=True)
class SweepReport:
    """The jobs that a sweep took from silent workers, and those to ring for (`wake`)."""

    requeued: tuple[str, ...]
    quarantined: tuple[str, ...]
    cancelled: tuple[str, ...]
    wake: tuple[str, ...]


class JobQueue:
    """The queue over a catalog. Every method is a transaction of its own.

    Args:
      lease_sec: how long a claim lasts without a heartbeat.
      max_attempts: claims of one job before it is quarantined.
      backoff_sec: pause before the second attempt; it doubles with each one, to at most 5 minutes.
      ring_again_sec: how long a queued job waits before the sweep has it announced again.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        lease_sec: float = 30.0,
        max_attempts: int = 3,
        backoff_sec: float = 2.0,
        ring_again_sec: float = 30.0,
    ) -> None:
        self.catalog = catalog
        self.lease_sec = lease_sec
        self.max_attempts = max_attempts
        self.backoff_sec = backoff_sec
        self.ring_again_sec = ring_again_sec

    def claim(self, worker: str, *, kinds: Sequence[str] = KINDS) -> Claim | None:
        """Take the oldest job that is due, or None. An attempt counts from here: a worker that dies has used it up."""
        with self.catalog.begin() as session:
            at = now(session)
            due = (
                select(jobs.c.id)
                .where(jobs.c.state == "queued", jobs.c.not_before <= at, jobs.c.kind.in_(kinds))
                .order_by(jobs.c.created_at, jobs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            job_id = session.execute(due).scalar_one_or_none()
            if job_id is None:
                return None
            session.execute(
                update(jobs)
                .where(jobs.c.id == job_id)
                .values(
                    state="running",
                    worker=worker[:200],
                    attempts=jobs.c.attempts + 1,
                    token=jobs.c.token + 1,
                    started_at=at,
                    updated_at=at,
                    lease_until=at + self.lease_sec,
                    progress=0.0,
                    message=None,
                    revision=jobs.c.revision + 1,
                )
            )
            job = job_rows.get(session, job_id)
        return Claim(job, job.token, worker)

    def heartbeat(self, claim: Claim, progress: float | None = None, message: str | None = None) -> bool:
        """Renew a lease and report progress (0 to 1). True while the work is to go on, False once the job is to be cancelled.

        Raises `LeaseLost` when the job is not this claim's any more: kill the child and forget the job.
        """
        with self._select_claimed(claim) as (session, job):
            at = now(session)
            values: dict[str, Any] = {"lease_until": at + self.lease_sec}
            if progress is not None:
                values["progress"] = min(max(float(progress), 0.0), 1.0)
            if message is not None:
                values["message"] = message[:500]
            if any(getattr(job, name) != values[name] for name in ("progress", "message") if name in values):
                values |= {"revision": jobs.c.revision + 1, "updated_at": at}
            session.execute(update(jobs).where(jobs.c.id == job.id).values(values))
        return not job.cancel_requested

    def cancel_requested(self, claim: Claim) -> bool:
        """Whether the next heartbeat would end the work; only reads, and takes no lock."""
        with self.catalog.session() as session:
            job = job_rows.get(session, claim.job.id)
        return job.cancel_requested or job.token != claim.token

    def complete(
        self,
        claim: Claim,
        result: Mapping[str, Any] | None = None,
        work: Callable[[Session], Mapping[str, Any] | None] | None = None,
    ) -> Job:
        """Finish a job: `work` writes the result, in the same transaction; what it returns is added to `result`.

        Raises `LeaseLost`, and then nothing was written.
        """
        with self._select_claimed(claim) as (session, job):
            document = dict(result or {})
            if work is not None:
                document |= work(session) or {}
            return self._finish(session, job, "succeeded", progress=1.0, result=document, message=None, error=None)

    def complete_rollout(
        self, claim: Claim, *new: NewRollout, answer: int = 0, triage: Mapping[str, Any] | None = None
    ) -> Rollout:
        """Finish a rollout job: its rollouts, their segments, the curriculum and the job change together, or nothing does.

        Where the clip has a result for a recipe already, that result stays. Raises `LeaseLost`.

        Args:
          new: what the job made: one rollout, but in mode `auto` one for each mode that was tried, in order.
          answer: which of them is the job's answer; it is returned.
          triage: what mode `auto` found that the clip lacks; kept in the job's result, with the ids of all its rollouts.
        """
        job = claim.job
        if job.clip_id is None or job.recipe_digest is None:
            raise ValueError(f"{job.id} is not a rollout job")
        rows: list[Rollout] = []
        clip_id, recipe_digest = job.clip_id, job.recipe_digest

        def store(session: Session) -> Mapping[str, Any]:
            for rollout in new:
                if rollout.recipe is not None:
                    recipes.add(session, rollout.recipe)
                digest = recipe_digest if rollout.recipe is None else rollout.recipe.digest
                rows.append(rollouts.add(session, clip_id, digest, rollout, actor=job.actor)[0])
            events.record_score(session, job, rows[answer])
            result = {"rollout_id": rows[answer].id, "tier": rows[answer].tier}
            if triage is None:
                return result
            attempts = [{"rollout_id": row.id, "mode": row.mode, "tier": row.tier} for row in rows]
            return result | {"triage": dict(triage), "tried": attempts}

        self.complete(claim, work=store)
        return rows[answer]

    def fail(self, claim: Claim, error: AmprefError | Mapping[str, Any], *, retry: bool = True) -> Job:
        """End an attempt that failed.

        With `retry` the job is queued again after a pause, or quarantined with its reason after the last attempt; without, it
        has failed for good: the input is bad, and no attempt would be better. Raises `LeaseLost`.
        """
        reason = error.to_dict() if isinstance(error, AmprefError) else dict(error)
        with self._select_claimed(claim) as (session, job):
            if retry or job.cancel_requested:
                return self._end_attempt(session, job, reason)
            return self._finish(session, job, "failed", error=reason)

    def release(self, claim: Claim) -> Job:
        """Give a job back unharmed (the worker is to stop): it is queued at once and the attempt does not count."""
        return self._give_back(claim, 0.0, None)

    def postpone(self, claim: Claim, error: AmprefError, pause: float) -> Job:
        """Give a job back that this machine cannot do now (its disk is full): the attempt does not count, the reason is kept.

        Args:
          pause: seconds before it is due again.

        Raises `LeaseLost`.
        """
        # The message is for whoever follows the job.
        return self._give_back(claim, pause, error.to_dict(), message=error.what[:500])

    def _give_back(self, claim: Claim, pause: float, error: Mapping[str, Any] | None, **values: Any) -> Job:
        with self._select_claimed(claim) as (session, job):
            if job.cancel_requested:
                return self._finish(session, job, "cancelled", **({} if error is None else {"error": error}))
            return self._requeue(session, job, error, attempts=job.attempts - 1, pause=pause, **values)

    def cancel(self, job_id: str, *, actor: str = audit.ANONYMOUS) -> Job:
        """Cancel a job: a queued one at once, a running one at its worker's next heartbeat. Raises `NotFound`, `Conflict`."""
        with self.catalog.begin() as session:
            job = self._lock_job(session, job_id)
            if job.finished:
                if job.state == "cancelled":
                    return job
                raise Conflict(f"the job {job_id} has {job.state} already", remedy="There is nothing left to cancel")
            if job.state == "queued":
                self._finish(session, job, "cancelled", message="cancelled before it began")
            elif not job.cancel_requested:
                session.execute(
                    update(jobs)
                    .where(jobs.c.id == job_id)
                    .values(cancel_requested=1, revision=jobs.c.revision + 1, updated_at=now(session))
                )
            audit.record(session, actor, "job.cancel", f"job:{job_id}")
            return job_rows.get(session, job_id)

    def confirm_cancel(self, claim: Claim) -> Job:
        """The worker has stopped a job whose heartbeat returned False. Raises `LeaseLost`."""
        with self._select_claimed(claim) as (session, job):
            return self._finish(session, job, "cancelled", message="cancelled while it ran")

    def retry(self, job_id: str, *, owner: str | None = None, key: Key | None = None, actor: str = audit.ANONYMOUS) -> Job:
        """Queue a job again that failed, was quarantined or cancelled, with fresh attempts. Raises `NotFound`, `Conflict`.

        Args:
          owner: whose job the new one is; by default the old one's.
          key: whose quotas hold for it; None: none do.
        """
        with self.catalog.begin() as session:
            job = self._lock_job(session, job_id)
            if job.kind != "rollout":
                raise Conflict(
                    f"the job {job_id} is a {job.kind} job, which is not queued again",
                    expected="a rollout job that did not succeed",
                    remedy="Lock the version again: ampref dataset lock NAME VERSION",
                )
            if job.state not in ("failed", "quarantined", "cancelled"):
                raise Conflict(f"the rollout job {job_id} is {job.state}", expected="a rollout job that did not succeed")
            return job_rows.enqueue(
                session,
                job.kind,
                clip_id=job.clip_id,
                recipe_digest=job.recipe_digest,
                payload=job.payload,
                robot=job.robot,
                robot_digest=job.robot_digest,
                limit_sec=job.limit_sec,
                terms=JobTerms(self.max_attempts, job.owner if owner is None else owner, job.priority, key=key),
                actor=actor,
            )[0]

    def sweep(self) -> SweepReport:
        """Take jobs away from workers that fell silent, and list the jobs to ring for.

        Those are the due jobs that no worker was rung for, or not for `ring_again_sec`: a broker that lost its messages is made
        good here. Any number of processes may sweep at a time.
        """
        with self.catalog.session() as session:
            silent = select(jobs.c.id).where(jobs.c.state == "running", jobs.c.lease_until < now(session))
            job_ids = list(session.execute(silent.limit(_SWEEP_BATCH)).scalars())
        states: dict[str, list[str]] = {"queued": [], "quarantined": [], "cancelled": []}
        for job_id in job_ids:
            # One transaction a job: a sweep that dies half-way has done what it has done.
            with self.catalog.begin() as session:
                query = select(jobs).where(jobs.c.id == job_id).with_for_update(skip_locked=True)
                row = session.execute(query).mappings().one_or_none()
                if row is None or row["state"] != "running" or row["lease_until"] >= now(session):
                    continue
                job = job_rows.to_job(row)
                if job.cancel_requested:
                    self._finish(session, job, "cancelled", message="cancelled; its worker fell silent")
                    states["cancelled"].append(job_id)
                    continue
                reason = {
                    "type": "worker-lost",
                    "title": "The worker fell silent",
                    "detail": f"worker {job.worker} sent no heartbeat in attempt {job.attempts} of {job.max_attempts}; "
                    "it was killed, lost its machine or ran out of memory",
                }
                states[self._end_attempt(session, job, reason).state].append(job_id)
        requeued_ids, quarantined_ids, cancelled_ids = map(tuple, states.values())
        return SweepReport(requeued_ids, quarantined_ids, cancelled_ids, self._list_to_wake())

    def _list_to_wake(self) -> tuple[str, ...]:
        """The due jobs to ring for, which count as rung for from now on."""
        with self.catalog.session() as session:
            # A look without the write lock first, which an idle queue need not take every few seconds.
            if session.execute(self._select_unrung(now(session)).limit(1)).first() is None:
                return ()
        with self.catalog.begin() as session:
            at = now(session)
            query = self._select_unrung(at).limit(_SWEEP_BATCH).with_for_update(skip_locked=True)
            job_ids = tuple(session.execute(query).scalars())
            if job_ids:
                session.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(rung_at=at))
        return job_ids

    def _select_unrung(self, at: float) -> Select[Any]:
        unrung = or_(jobs.c.rung_at.is_(None), jobs.c.rung_at < at - self.ring_again_sec)
        query = select(jobs.c.id).where(jobs.c.state == "queued", jobs.c.not_before <= at, unrung)
        return query.order_by(jobs.c.created_at, jobs.c.id)

    def oldest_due(self) -> float:
        """Seconds for which the job that has been due the longest has waited for a worker; 0 when none is due."""
        with self.catalog.session() as session:
            at = now(session)
            # A job is due since it was queued, or since its pause was over.
            since = func.min(case((jobs.c.not_before > jobs.c.updated_at, jobs.c.not_before), else_=jobs.c.updated_at))
            first = session.execute(select(since).where(jobs.c.state == "queued", jobs.c.not_before <= at)).scalar_one()
            return 0.0 if first is None else max(0.0, at - float(first))

    def _lock_job(self, session: Session, job_id: str) -> Job:
        session.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        return job_rows.get(session, job_id)

    @contextmanager
    def _select_claimed(self, claim: Claim) -> Iterator[tuple[Session, Job]]:
        """A transaction with the claim's job, locked; the lease may be over, as long as no other worker has claimed it."""
        with self.catalog.begin() as session:
            job = self._lock_job(session, claim.job.id)
            if job.state != "running" or job.token != claim.token:
                raise LeaseLost(
                    f"the job {job.id} is {job.state} under token {job.token}, this worker's is {claim.token}",
                    remedy="Nothing is to be done: its result comes from the worker that has it now, or is not wanted any more",
                )
            yield session, job

    def _end_attempt(self, session: Session, job: Job, error: Mapping[str, Any]) -> Job:
        """After an attempt that came to nothing: cancel, quarantine or queue the job."""
        if job.cancel_requested or job.attempts >= job.max_attempts:
            return self._finish(session, job, "cancelled" if job.cancel_requested else "quarantined", error=error)
        pause = min(self.backoff_sec * 2 ** (job.attempts - 1), _LONGEST_PAUSE_SEC)
        return self._requeue(session, job, error, attempts=job.attempts, pause=pause)

    def _requeue(
        self, session: Session, job: Job, error: Mapping[str, Any] | None, *, attempts: int, pause: float, **values: Any
    ) -> Job:
        at = now(session)
        due = {"attempts": attempts, "not_before": at + pause, "rung_at": None, "error": error, "progress": 0.0}
        return self._change_owner(session, job, "queued", at, values | due)

    def _finish(self, session: Session, job: Job, state: str, **values: Any) -> Job:
        at = now(session)
        job = self._change_owner(session, job, state, at, values | {"finished_at": at})
        if state != "succeeded":
            audit.record(session, job.worker or job.actor, f"job.{state}", f"job:{job.id}", {"error": dict(job.error or {})})
            events.record_job_end(session, job)
            if job.kind == "lock" and job.version_id is not None:
                locking.abandon_version(session, job.version_id, reason=state)
        return job

    def _change_owner(self, session: Session, job: Job, state: str, at: float, values: Mapping[str, Any]) -> Job:
        """Take a job from its worker. The token grows, so that the worker is refused at once and not from the next claim on."""
        common = {"state": state, "lease_until": None, "updated_at": at}
        counters: dict[str, Any] = {"token": jobs.c.token + 1, "revision": jobs.c.revision + 1}
        if job.state == "running" and job.started_at is not None:
            # Within what an attempt may take: a clock that jumped is nobody's work.
            counters["worked_sec"] = jobs.c.worked_sec + min(max(at - job.started_at, 0.0), job.limit_sec or math.inf)
        session.execute(update(jobs).where(jobs.c.id == job.id).values({**values, **common, **counters}))
        return job_rows.get(session, job.id)
