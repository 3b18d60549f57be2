"""The job table is the queue. A broker's message only wakes a worker; what is to be done, and by whom, is a row.

A worker claims a job and owns it until its lease ends. Every claim raises the job's token; a write must carry the token of
the claim
that it belongs to, so a worker that was believed dead and wakes up again changes nothing (`LeaseLost`).

    queued ──claim──▶ running ──complete──▶ succeeded
      ▲  │               │ ├────fail, for good──────▶ failed
      │  └─cancel─┐      │ ├────fail, last attempt──▶ quarantined
      └──pause────┼──────┘ └────cancel, at a heartbeat
                  ▼              ▼
               cancelled     cancelled

`release` and `postpone` bring a running job back to the queue, too, and the attempt does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select, update

from amp_core.errors import AmprefError, Conflict
from ampref_service.catalog import audit, clips, datasets, job_rows, rollouts
from ampref_service.catalog.engine import Catalog, Session, now
from ampref_service.catalog.records import Job, NewRollout, Rollout
from ampref_service.catalog.tables import jobs

KINDS = ("rollout", "lock")


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
class Swept:
    """What a sweep did; `wake` are the jobs that a worker should be told of."""

    requeued: tuple[str, ...]
    quarantined: tuple[str, ...]
    cancelled: tuple[str, ...]
    wake: tuple[str, ...]


class JobQueue:
    """The queue over a catalog. Every method but `enqueue` and `get` is a transaction of its own.

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

    def enqueue(self, session: Session, kind: str, **what: Any) -> tuple[Job, bool]:
        """Add a job in the caller's transaction; see `ampref_service.catalog.job_rows.enqueue`."""
        return job_rows.enqueue(session, kind, max_attempts=self.max_attempts, **what)

    def get(self, session: Session, job_id: str) -> Job:
        """A job by id; raises `NotFound`. Its `revision` tells a watcher whether anything changed."""
        return job_rows.get(session, job_id)

    def claim(self, worker: str, *, kinds: Sequence[str] = KINDS, lease_sec: float | None = None) -> Claim | None:
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
                    lease_until=at + (lease_sec or self.lease_sec),
                    progress=0.0,
                    message=None,
                    revision=jobs.c.revision + 1,
                )
            )
            job = job_rows.get(session, job_id)
        return Claim(job, job.token, worker)

    def heartbeat(
        self, claim: Claim, progress: float | None = None, message: str | None = None, *, lease_sec: float | None = None
    ) -> bool:
        """Renew a lease and report progress (0 to 1). True while the work is wanted, False once somebody asked to cancel it.

        Raises `LeaseLost` when the job is not this claim's any more: kill the child and forget the job.
        """
        with self.catalog.begin() as session:
            job = self._own(session, claim)
            at = now(session)
            values: dict[str, Any] = {"lease_until": at + (lease_sec or self.lease_sec)}
            if progress is not None:
                values["progress"] = min(max(float(progress), 0.0), 1.0)
            if message is not None:
                values["message"] = message[:500]
            if any(getattr(job, name) != values[name] for name in ("progress", "message") if name in values):
                values |= {"revision": jobs.c.revision + 1, "updated_at": at}
            session.execute(update(jobs).where(jobs.c.id == job.id).values(values))
        return not job.cancel_requested

    def cancel_requested(self, claim: Claim) -> bool:
        """Whether the next heartbeat would say that the work is not wanted any more; only reads, and takes no lock."""
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
        with self.catalog.begin() as session:
            self._own(session, claim)
            told = dict(result or {})
            if work is not None:
                told |= work(session) or {}
            self._finish(session, claim.job.id, "succeeded", progress=1.0, result=told, message=None, error=None)
            return job_rows.get(session, claim.job.id)

    def complete_rollout(
        self, claim: Claim, *new: NewRollout, shown: int = 0, triage: Mapping[str, Any] | None = None
    ) -> Rollout:
        """Finish a rollout job: its rollouts, their segments, the curriculum and the job change together, or nothing does.

        Where the clip has a result for a recipe already, that one stays. Raises `LeaseLost`.

        Args:
          new: what the job made: one rollout, but in mode `auto` one for each mode that was tried, in order.
          shown: which of them is the job's answer; it is returned.
          triage: what mode `auto` found that the clip lacks; kept in the job's result, with the ids of all its rollouts.
        """
        job = claim.job
        if job.clip_id is None or job.recipe_digest is None:
            raise ValueError(f"{job.id} is not a rollout job")
        stored: list[Rollout] = []
        clip_id, recipe_digest = job.clip_id, job.recipe_digest

        def work(session: Session) -> Mapping[str, Any]:
            for one in new:
                if one.recipe is not None:
                    clips.add_recipe(session, one.recipe)
                digest = recipe_digest if one.recipe is None else one.recipe.digest
                stored.append(rollouts.add(session, clip_id, digest, one, actor=job.actor)[0])
            answer = {"rollout_id": stored[shown].id, "tier": stored[shown].tier}
            if triage is None:
                return answer
            tried = [{"rollout_id": one.id, "mode": one.mode, "tier": one.tier} for one in stored]
            return answer | {"triage": dict(triage), "tried": tried}

        self.complete(claim, work=work)
        return stored[shown]

    def fail(self, claim: Claim, error: AmprefError | Mapping[str, Any], *, retry: bool = True) -> Job:
        """End an attempt that failed.

        With `retry` the job is queued again after a pause, or quarantined with its reason after the last attempt; without,
        it has
        failed for good: the input is bad, and no attempt would be better. Raises `LeaseLost`.
        """
        facts = error.to_dict() if isinstance(error, AmprefError) else dict(error)
        with self.catalog.begin() as session:
            job = self._own(session, claim)
            if job.cancel_requested:
                self._finish(session, job.id, "cancelled", error=facts)
            elif not retry:
                self._finish(session, job.id, "failed", error=facts)
            elif job.attempts >= job.max_attempts:
                self._finish(session, job.id, "quarantined", error=facts)
            else:
                self._requeue(session, job, facts)
            return job_rows.get(session, job.id)

    def release(self, claim: Claim) -> Job:
        """Give a job back unharmed (the worker is told to stop): it is queued at once and the attempt does not count."""
        with self.catalog.begin() as session:
            job = self._own(session, claim)
            if job.cancel_requested:
                self._finish(session, job.id, "cancelled")
            else:
                self._requeue(session, job, None, attempts=job.attempts - 1, pause=0.0)
            return job_rows.get(session, job.id)

    def postpone(self, claim: Claim, error: AmprefError, pause: float) -> Job:
        """Give a job back that this machine cannot do now (its disk is full): the attempt does not count, the reason is kept.

        Args:
          pause: seconds before it is due again.

        Raises `LeaseLost`.
        """
        with self.catalog.begin() as session:
            job = self._own(session, claim)
            if job.cancel_requested:
                self._finish(session, job.id, "cancelled", error=error.to_dict())
            else:
                self._requeue(session, job, error.to_dict(), attempts=job.attempts - 1, pause=pause)
                # Whoever follows the job sees why it waits.
                session.execute(update(jobs).where(jobs.c.id == job.id).values(message=error.what[:500]))
            return job_rows.get(session, job.id)

    def cancel(self, job_id: str, *, actor: str = audit.ANONYMOUS) -> Job:
        """Cancel a job: a queued one at once, a running one at its worker's next heartbeat. Raises `NotFound`, `Conflict`."""
        with self.catalog.begin() as session:
            job = self._lock(session, job_id)
            if job.finished:
                if job.state == "cancelled":
                    return job
                raise Conflict(f"the job {job_id} has {job.state} already", remedy="There is nothing left to cancel")
            if job.state == "queued":
                self._finish(session, job_id, "cancelled", message="cancelled before it began")
            elif not job.cancel_requested:
                session.execute(
                    update(jobs)
                    .where(jobs.c.id == job_id)
                    .values(cancel_requested=1, revision=jobs.c.revision + 1, updated_at=now(session))
                )
            audit.record(session, actor, "job.cancel", f"job:{job_id}")
            return job_rows.get(session, job_id)

    def cancelled(self, claim: Claim) -> Job:
        """The worker has stopped a job whose heartbeat returned False. Raises `LeaseLost`."""
        with self.catalog.begin() as session:
            job = self._own(session, claim)
            self._finish(session, job.id, "cancelled", message="cancelled while it ran")
            return job_rows.get(session, job.id)

    def retry(self, job_id: str, *, actor: str = audit.ANONYMOUS) -> Job:
        """Queue a job again that failed, was quarantined or cancelled, with fresh attempts. Raises `NotFound`, `Conflict`."""
        with self.catalog.begin() as session:
            job = self._lock(session, job_id)
            if job.kind != "rollout" or job.state not in ("failed", "quarantined", "cancelled"):
                raise Conflict(f"the {job.kind} job {job_id} is {job.state}", expected="a rollout job that did not succeed")
            again, _ = self.enqueue(
                session, job.kind, clip_id=job.clip_id, recipe_digest=job.recipe_digest, payload=job.payload, actor=actor
            )
            return again

    def sweep(self) -> Swept:
        """Take jobs away from ampref_workers that fell silent, and name the jobs that a worker should be told of.

        That is every due job that nobody was told of, or not for `ring_again_sec`: a broker that lost its messages is made
        good here.
        Any number of processes may sweep at a time.
        """
        requeued: list[str] = []
        quarantined: list[str] = []
        cancelled: list[str] = []
        with self.catalog.session() as session:
            silent = list(
                session.execute(
                    select(jobs.c.id).where(jobs.c.state == "running", jobs.c.lease_until < now(session)).limit(1000)
                ).scalars()
            )
        for job_id in silent:
            # One transaction a job: a sweep that dies half-way has done what it has done.
            with self.catalog.begin() as session:
                query = select(jobs).where(jobs.c.id == job_id).with_for_update(skip_locked=True)
                row = session.execute(query).mappings().one_or_none()
                if row is None or row["state"] != "running" or row["lease_until"] >= now(session):
                    continue
                job = job_rows.to_job(row)
                lost = {
                    "type": "worker-lost",
                    "title": "The worker fell silent",
                    "detail": f"worker {job.worker} sent no heartbeat in attempt {job.attempts} of {job.max_attempts}; "
                    "it was killed, lost its machine or ran out of memory",
                }
                if job.cancel_requested:
                    self._finish(session, job_id, "cancelled", message="cancelled; its worker fell silent")
                    cancelled.append(job_id)
                elif job.attempts >= job.max_attempts:
                    self._finish(session, job_id, "quarantined", error=lost)
                    quarantined.append(job_id)
                else:
                    self._requeue(session, job, lost)
                    requeued.append(job_id)
        return Swept(tuple(requeued), tuple(quarantined), tuple(cancelled), tuple(self._to_wake()))

    def _to_wake(self) -> list[str]:
        with self.catalog.session() as session:
            # Asked first without the write lock, which an idle queue need not take every few seconds.
            if session.execute(self._unrung(now(session)).limit(1)).first() is None:
                return []
        with self.catalog.begin() as session:
            at = now(session)
            ids = list(session.execute(self._unrung(at).limit(1000).with_for_update(skip_locked=True)).scalars())
            if ids:
                session.execute(update(jobs).where(jobs.c.id.in_(ids)).values(rung_at=at))
        return ids

    def _unrung(self, at: float) -> Any:
        return (
            select(jobs.c.id)
            .where(
                jobs.c.state == "queued",
                jobs.c.not_before <= at,
                or_(jobs.c.rung_at.is_(None), jobs.c.rung_at < at - self.ring_again_sec),
            )
            .order_by(jobs.c.created_at, jobs.c.id)
        )

    def mark_rung(self, job_ids: Sequence[str]) -> None:
        """Note that workers were told of some jobs."""
        with self.catalog.begin() as session:
            session.execute(update(jobs).where(jobs.c.id.in_(list(job_ids))).values(rung_at=now(session)))

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with self.catalog.session() as session:
            return job_rows.counts(session)

    def oldest_due(self) -> float:
        """Seconds for which the job that has been due the longest has waited for a worker; 0 when none is due."""
        with self.catalog.session() as session:
            first = session.execute(select(func.min(jobs.c.not_before)).where(jobs.c.state == "queued")).scalar_one()
            return 0.0 if first is None else max(0.0, now(session) - float(first))

    def next_due(self) -> float | None:
        """Seconds until a queued job is due (0 when one is), None when nothing is queued."""
        with self.catalog.session() as session:
            first = session.execute(select(func.min(jobs.c.not_before)).where(jobs.c.state == "queued")).scalar_one()
            return None if first is None else max(0.0, float(first) - now(session))

    def _lock(self, session: Session, job_id: str) -> Job:
        session.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        return job_rows.get(session, job_id)

    def _own(self, session: Session, claim: Claim) -> Job:
        """The claim's job, locked; the lease may be over, as long as nobody else has taken it."""
        job = self._lock(session, claim.job.id)
        if job.state != "running" or job.token != claim.token:
            raise LeaseLost(
                f"the job {job.id} is {job.state} under token {job.token}, this worker's is {claim.token}",
                remedy="Nothing is to be done: its result comes from the worker that has it now, or is not wanted any more",
            )
        return job

    def _requeue(
        self,
        session: Session,
        job: Job,
        error: Mapping[str, Any] | None,
        *,
        attempts: int | None = None,
        pause: float | None = None,
    ) -> None:
        at = now(session)
        if pause is None:
            pause = min(self.backoff_sec * 2 ** (job.attempts - 1), 300.0)
        session.execute(
            update(jobs)
            .where(jobs.c.id == job.id)
            .values(
                state="queued",
                attempts=job.attempts if attempts is None else attempts,
                # The token grows on every change of owner, so that the old owner is refused from now on and not only from the
                # next claim.
                token=jobs.c.token + 1,
                not_before=at + pause,
                lease_until=None,
                rung_at=None,
                error=error,
                progress=0.0,
                updated_at=at,
                revision=jobs.c.revision + 1,
            )
        )

    def _finish(self, session: Session, job_id: str, state: str, **values: Any) -> None:
        at = now(session)
        session.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(
                state=state,
                finished_at=at,
                updated_at=at,
                lease_until=None,
                token=jobs.c.token + 1,
                revision=jobs.c.revision + 1,
                **values,
            )
        )
        job = job_rows.get(session, job_id)
        if state != "succeeded":
            audit.record(session, job.worker or job.actor, f"job.{state}", f"job:{job_id}", {"error": dict(job.error or {})})
            if job.kind == "lock" and job.version_id is not None:
                datasets.abandon_version(session, job.version_id, reason=state)
