"""The job table is the queue. A broker's message only wakes a worker; what is to be done, and by whom, is a row.

A worker claims a job and owns it until its lease ends. Every claim raises the job's token; a write must carry the token of the
claim that it belongs to, so a worker that was believed dead and wakes up again changes nothing (`LeaseLost`).

    queued ──claim──▶ running ──complete──▶ succeeded
      ▲  │               │ ├────fail, for good──────▶ failed
      │  └─cancel─┐      │ ├────fail, last attempt──▶ quarantined
      └──pause────┼──────┘ └────cancel, at a heartbeat
                  ▼              ▼
               cancelled     cancelled

`release`, `postpone` (the worker's machine is at fault) and a sweep (the worker is lost) bring a running job back to the queue,
too, and the attempt does not count: it is no evidence against the clip.

Owners take turns (`claim`). No order depends on a wall clock alone: what is due has `not_before` 0, and a lease or a pause that
ends further in the future than any can is over, because the clock went back.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Select, bindparam, case, func, null, or_, select, union_all, update

from amp_core.errors import AmprefError, Conflict
from ampref_service.catalog import audit, events, job_rows, locking, recipes, rollouts, worker_rows
from ampref_service.catalog.engine import Catalog, Session, chunked, now, select_distinct
from ampref_service.catalog.records import Job, JobTerms, Key, NewRollout, Rollout
from ampref_service.catalog.tables import LIVE_STATES, clips, jobs

KINDS = ("rollout", "lock")
ALONE_FROM_LOSSES = 3
"""A job with which so many workers were lost is run alone, so that it takes no other job along."""

_LONGEST_PAUSE_SEC = 300.0
_SWEEP_BATCH = 1000
_CLAIM_BATCH = 5  # Pauses that a claim ends where nothing else is due; a sweep ends all of them.
_LAST_RANK = 100  # Behind every priority.
_SEVERAL = "several"


class LeaseLost(Conflict):
    """The job is another worker's by now, or was cancelled; nothing was written."""

    slug = "lease-lost"
    title = "The job is no longer this worker's"


@dataclass(frozen=True)
class Claim:
    """A job that this worker owns while it sends heartbeats; `worker_id` is its row in `workers`."""

    job: Job
    token: int
    worker: str
    worker_id: str | None = None


@dataclass(frozen=True)
class SweepReport:
    """The jobs that a sweep took from lost workers, and those to ring for (`wake`)."""

    requeued: tuple[str, ...]
    cancelled: tuple[str, ...]
    wake: tuple[str, ...]


class JobQueue:
    """The queue over a catalog. Every method is a transaction of its own.

    Args:
      lease_sec: how long a claim lasts without a heartbeat.
      max_attempts: claims of one job before it is quarantined.
      backoff_sec: pause before the second attempt; it doubles with each one, to at most 5 minutes. Another worker that has the
        robot need not wait for it.
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

    def claim(
        self,
        worker: str,
        *,
        worker_id: str | None = None,
        robots: Collection[str] | None = None,
        kinds: Sequence[str] = KINDS,
        can_run_alone: bool = True,
    ) -> Claim | None:
        """Take a job that is due, or None.

        It is of the owner with the fewest running jobs, of these the one that was served the longest ago; and of its jobs that
        with the highest priority, then the oldest. The attempt counts from here, until it turns out to be no evidence.

        Args:
          worker: who has it, for people.
          worker_id: its row in `workers`; a job that is not to go to this worker now stays.
          robots: digests of those that it has; None for all.
          can_run_alone: False leaves the jobs that are to be run alone.
        """
        with self.catalog.begin() as session:
            at = now(session)
            job_id = self._find_due(session, at, worker_id, robots, kinds, can_run_alone)
            if job_id is None:
                return None
            facts = {"job_id": job_id, "claimant": worker[:200], "claimant_id": worker_id, "at": at}
            row = session.execute(_TAKE, facts | {"lease_end": at + self.lease_sec}).mappings().one()
            job = job_rows.to_job(row)
        return Claim(job, job.token, worker, worker_id)

    def _find_due(
        self,
        session: Session,
        at: float,
        worker_id: str | None,
        robots: Collection[str] | None,
        kinds: Sequence[str],
        can_run_alone: bool,
    ) -> str | None:
        """The id of the job that a worker is to claim, its row locked.

        The queue is lanes of one robot and owner, each in the order of an index: however long it is, a few rows are read.
        """
        lanes, last_starts, running = self._list_lanes(session, at, robots)
        # Else the sweep ends them.
        if not lanes and self._end_pauses(session, at, _CLAIM_BATCH):
            lanes, last_starts, running = self._list_lanes(session, at, robots)
        head = _select_head(worker_id is not None, tuple(kinds), can_run_alone)
        for owner in sorted(lanes, key=lambda owner: (running[owner], last_starts[owner], owner)):
            heads: list[tuple[int, float, str]] = []
            for digest in lanes[owner]:
                facts: dict[str, Any] = {"digest": digest, "lane_owner": owner}
                facts |= {} if worker_id is None else {"claimant_id": worker_id, "at": at, "latest": at + _LONGEST_PAUSE_SEC}
                heads += [(rank, created_at, job_id) for rank, created_at, job_id in session.execute(head, facts)]
            if heads:
                return min(heads)[-1]
        return None

    def _list_lanes(
        self, session: Session, at: float, robots: Collection[str] | None
    ) -> tuple[dict[str, list[str]], dict[str, float], Counter[str]]:
        """Of each owner with due jobs the digests of their robots, its last start, and how many jobs of each owner run."""
        if robots is None:
            robots = session.execute(_DUE_ROBOTS).scalars().all()
        names = {f"digest_{number}": digest for number, digest in enumerate(dict.fromkeys(("", *robots)))}
        lanes: dict[str, list[str]] = {}
        last_starts: dict[str, float] = {}
        running: Counter[str] = Counter()
        for digest, owner, started_at in session.execute(_select_lanes(len(names)), names | {"at": at}):
            if digest is None:
                running[owner] += 1
            else:
                last_starts[owner] = started_at or 0.0
                lanes.setdefault(owner, []).append(digest)
        return lanes, last_starts, running

    def _end_pauses(self, session: Session, at: float, limit: int) -> int:
        """Make jobs due whose pause is over; how many."""
        job_ids = session.execute(_OVER_PAUSES, {"at": at, "most": limit}).scalars().all()
        if job_ids:
            session.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(not_before=0.0, updated_at=at))
        return len(job_ids)

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

        A job whose cancellation was asked for is cancelled instead, and nothing of it is stored. Raises `LeaseLost`, and then
        nothing was written.
        """
        with self._select_claimed(claim) as (session, job):
            if job.cancel_requested:
                return self._finish(session, job, "cancelled", message="cancelled while it ran")
            document = dict(result or {})
            if work is not None:
                document |= work(session) or {}
            return self._finish(session, job, "succeeded", progress=1.0, result=document, message=None, error=None)

    def complete_rollout(self, claim: Claim, *new: NewRollout, answer: int = 0, triage: Mapping[str, Any] | None = None) -> Job:
        """Finish a rollout job: its rollouts, their segments, the curriculum and the job change together, or nothing does.

        Where the clip has a result for a recipe already, that result stays. Cancelled and raising `LeaseLost` as `complete`.

        Args:
          new: what the job made: one rollout, but in mode `auto` one for each mode that was tried, in order.
          answer: which of them is the job's answer.
          triage: what mode `auto` found that the clip lacks; kept in the job's result, with the ids of all its rollouts.
        """
        job = claim.job
        if job.clip_id is None or job.recipe_digest is None:
            raise ValueError(f"{job.id} is not a rollout job")
        clip_id, recipe_digest = job.clip_id, job.recipe_digest

        def store(session: Session) -> Mapping[str, Any]:
            rows: list[Rollout] = []
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

        return self.complete(claim, work=store)

    def fail(self, claim: Claim, error: AmprefError | Mapping[str, Any], *, retry: bool = True, doubtful: bool = False) -> Job:
        """End an attempt that failed: the clip is to blame, as far as can be told.

        With `retry` the job is queued again, at once for another worker that has the robot, else after a pause; or quarantined
        with its reason after the last attempt. Without, it has failed for good: the input is bad, and no attempt would be
        better. Raises `LeaseLost`.

        Args:
          doubtful: the child was killed from outside, which counts for the last attempt only where it happened on two workers,
            or where there is no second one.
        """
        reason = error.to_dict() if isinstance(error, AmprefError) else dict(error)
        with self._select_claimed(claim) as (session, job):
            if job.cancel_requested:
                return self._finish(session, job, "cancelled", error=reason)
            if not retry:
                return self._finish(session, job, "failed", error=reason)
            alternative = worker_rows.find_other(session, job, claim.worker_id)
            failed_on = claim.worker_id if job.failed_on in (None, claim.worker_id) else _SEVERAL
            attempts, pause = job.attempts, self._pause(job.attempts - 1)
            if attempts >= job.max_attempts:
                if not doubtful or failed_on == _SEVERAL or alternative is None:
                    return self._finish(session, job, "quarantined", error=reason, faults=0)
                attempts, pause = attempts - 1, _LONGEST_PAUSE_SEC
            values = {"attempts": attempts, "failed_on": failed_on, "faults": 0, "error": reason}
            return self._requeue(session, job, pause, avoid=claim.worker_id if alternative else None, **values)

    def release(self, claim: Claim) -> Job:
        """Give a job back unharmed (the worker is to stop): it is queued at once and the attempt does not count."""
        with self._select_claimed(claim) as (session, job):
            if job.cancel_requested:
                return self._finish(session, job, "cancelled")
            return self._requeue(session, job, 0.0, attempts=job.attempts - 1, error=None)

    def postpone(self, claim: Claim, error: AmprefError, pause: float | None = None) -> Job:
        """Give a job back that this machine cannot do now (its disk is full): the attempt does not count, the reason is kept.

        The first time, another worker that could take it may do so at once.

        Args:
          pause: seconds before it is due again; None: the usual pause, by how often that has happened in a row.

        Raises `LeaseLost`.
        """
        reason = error.to_dict()
        with self._select_claimed(claim) as (session, job):
            if job.cancel_requested:
                return self._finish(session, job, "cancelled", error=reason)
            alternative = worker_rows.find_other(session, job, claim.worker_id) if job.faults == 0 else None
            # The message is for whoever follows the job.
            values = {"attempts": job.attempts - 1, "faults": job.faults + 1, "error": reason, "message": error.what[:500]}
            pause = self._pause(job.faults + 1) if pause is None else pause
            return self._requeue(session, job, pause, avoid=claim.worker_id if alternative else None, **values)

    def cancel(self, job_id: str, *, actor: str = audit.ANONYMOUS) -> Job:
        """Cancel a job: a queued one at once, a running one at its worker's next heartbeat, or at once where its lease is over.

        Raises `NotFound`, `Conflict`.
        """
        with self.catalog.begin() as session:
            job = self._lock_job(session, job_id)
            if job.finished:
                if job.state == "cancelled":
                    return job
                raise Conflict(f"the job {job_id} has {job.state} already", remedy="There is nothing left to cancel")
            if job.state == "queued":
                self._finish(session, job, "cancelled", message="cancelled before it began")
            elif self._is_lease_over(job.lease_until, now(session)):
                self._finish(session, job, "cancelled", message="cancelled; its worker fell silent")
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
            # Locked until the end, so that it cannot be deleted between this look and the commit.
            clip = select(clips.c.id).where(clips.c.id == job.clip_id).with_for_update(read=True)
            if session.execute(clip).first() is None:
                raise Conflict(
                    f"the clip {job.clip_id} of the job {job_id} was deleted",
                    expected="a job whose clip is there",
                    remedy="Post the clip again: ampref submit FILE",
                )
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
        """Take jobs away from workers that fell silent, end pauses, and list the jobs to ring for.

        Those are the due jobs that no worker was rung for, or not for `ring_again_sec`: a broker that lost its messages is made
        good here. Any number of processes may sweep at a time.
        """
        with self.catalog.session() as session:
            at = now(session)
            over = or_(jobs.c.lease_until < at, jobs.c.lease_until > at + 2 * self.lease_sec)
            silent = select(jobs.c.id).where(jobs.c.state == "running", over).limit(_SWEEP_BATCH)
            job_ids = session.execute(silent).scalars().all()
            longest = select(func.max(jobs.c.not_before)).where(jobs.c.state == "queued")
            is_clock_back = (session.execute(longest).scalar_one() or 0.0) > at + _LONGEST_PAUSE_SEC
        queued_ids, cancelled_ids = self._take_back(job_ids)
        if is_clock_back:
            with self.catalog.begin() as session:
                at = now(session)
                impossible = (jobs.c.state == "queued", jobs.c.not_before > at + _LONGEST_PAUSE_SEC)
                session.execute(update(jobs).where(*impossible).values(not_before=0.0, updated_at=at))
        while True:
            with self.catalog.begin() as session:
                if self._end_pauses(session, now(session), _SWEEP_BATCH) < _SWEEP_BATCH:
                    break
        return SweepReport(queued_ids, cancelled_ids, self._list_to_wake())

    def take_from(self, worker_ids: Collection[str]) -> SweepReport:
        """Take the jobs of workers that are known to be dead, without waiting for their leases, and forget these workers."""
        with self.catalog.session() as session:
            running = select(jobs.c.id).where(jobs.c.state == "running", jobs.c.worker_id.in_(list(worker_ids)))
            job_ids = session.execute(running).scalars().all()
        queued_ids, cancelled_ids = self._take_back(job_ids, worker_ids)
        with self.catalog.begin() as session:
            worker_rows.remove(session, worker_ids)
        return SweepReport(queued_ids, cancelled_ids, ())

    def _take_back(self, job_ids: Sequence[str], worker_ids: Collection[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Queue the jobs of lost workers again: which were queued, which cancelled.

        A lost worker is no evidence against the clip, so that no attempt counts. `losses` does: the job waits longer each time,
        and from `ALONE_FROM_LOSSES` on is run alone and after the other jobs of its owner.
        """
        ids: dict[str, list[str]] = {"queued": [], "cancelled": []}
        for job_id in job_ids:
            # One transaction a job: a sweep that dies half-way has done what it has done.
            with self.catalog.begin() as session:
                query = select(jobs).where(jobs.c.id == job_id).with_for_update(skip_locked=True)
                row = session.execute(query).mappings().one_or_none()
                if row is None or row["state"] != "running":
                    continue
                if row["worker_id"] not in worker_ids and not self._is_lease_over(row["lease_until"], now(session)):
                    continue
                job = job_rows.to_job(row)
                if job.cancel_requested:
                    self._finish(session, job, "cancelled", message="cancelled; its worker fell silent")
                    ids["cancelled"].append(job_id)
                    continue
                losses = job.losses + 1
                reason = {
                    "type": "worker-lost",
                    "title": "The worker fell silent",
                    "detail": f"worker {job.worker} sent no heartbeat: it was killed, lost its machine or ran out of memory; "
                    f"workers lost with this job: {losses}, which is no attempt",
                }
                rank = _LAST_RANK * (losses >= ALONE_FROM_LOSSES) - job.priority
                values: dict[str, Any] = {"attempts": job.attempts - 1, "losses": losses, "rank": rank, "error": reason}
                self._requeue(session, job, self._pause(losses) if losses > 1 else 0.0, **values)
                ids["queued"].append(job_id)
        return tuple(ids["queued"]), tuple(ids["cancelled"])

    def _is_lease_over(self, lease_until: float | None, at: float) -> bool:
        """Whether a lease ran out, or ends later than any can: then the clock went back."""
        return lease_until is None or not at <= lease_until <= at + 2 * self.lease_sec

    def _pause(self, doublings: int) -> float:
        return min(self.backoff_sec * 2.0 ** min(doublings, 30), _LONGEST_PAUSE_SEC)

    def _list_to_wake(self) -> tuple[str, ...]:
        """The due jobs to ring for, which count as rung for from now on."""
        with self.catalog.session() as session:
            job_ids = self._find_unrung(session, now(session))
        if job_ids:
            with self.catalog.begin() as session:
                for part in chunked(job_ids):
                    session.execute(update(jobs).where(jobs.c.id.in_(part)).values(rung_at=now(session)))
        return tuple(job_ids)

    def _find_unrung(self, session: Session, at: float) -> list[str]:
        """Of the first jobs of each robot that are due those that nobody was rung for lately.

        The first are enough: any message wakes a worker, which takes the job whose turn it is.
        """
        job_ids: list[str] = []
        for digest in session.execute(_DUE_ROBOTS).scalars().all():
            order = (jobs.c.owner, jobs.c.rank, jobs.c.created_at, jobs.c.id)  # That of the index which claims use.
            first = select(jobs.c.id, jobs.c.rung_at).where(*_DUE, jobs.c.robot_digest == digest).order_by(*order)
            # A ring in the future is from before the clock went back.
            job_ids += [
                job_id
                for job_id, rung_at in session.execute(first.limit(_SWEEP_BATCH))
                if rung_at is None or not at - self.ring_again_sec <= rung_at <= at
            ]
        return job_ids

    def is_empty(self, robots: Collection[str]) -> bool:
        """Whether no job is queued or runs that a worker with robots of these digests could take."""
        live = select(jobs.c.id).where(jobs.c.state.in_(LIVE_STATES), jobs.c.robot_digest.in_(("", *robots)))
        with self.catalog.session() as session:
            return session.execute(live.limit(1)).first() is None

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

    def _requeue(self, session: Session, job: Job, pause: float, *, avoid: str | None = None, **values: Any) -> Job:
        """Queue a running job again: due after the pause, or at once for every worker but the one to avoid."""
        at = now(session)
        until = at + pause if pause > 0 else 0.0
        due = {"not_before": until} if avoid is None else {"not_before": 0.0, "avoid_worker": avoid, "avoid_until": until}
        no_pause = {"avoid_worker": None, "avoid_until": None, "rung_at": None, "progress": 0.0}
        return self._change_owner(session, job, "queued", at, no_pause | due | values)

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
            worked_sec = min(at, job.lease_until or at) - job.started_at
            counters["worked_sec"] = jobs.c.worked_sec + min(max(worked_sec, 0.0), job.limit_sec or math.inf)
        session.execute(update(jobs).where(jobs.c.id == job.id).values({**values, **common, **counters}))
        return job_rows.get(session, job.id)


# Statements of a claim, which are put together once: that takes longer than the database needs to run them.

_DUE = (jobs.c.state == "queued", jobs.c.not_before == 0)
_DUE_ROBOTS = select_distinct(jobs.c.robot_digest, *_DUE)
_OVER_PAUSES = (
    select(jobs.c.id)
    .where(jobs.c.state == "queued", jobs.c.not_before > 0, jobs.c.not_before <= bindparam("at"))
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_TAKE = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"))
    .values(
        state="running",
        worker=bindparam("claimant"),
        worker_id=bindparam("claimant_id"),
        attempts=jobs.c.attempts + 1,
        token=jobs.c.token + 1,
        started_at=bindparam("at"),
        updated_at=bindparam("at"),
        lease_until=bindparam("lease_end"),
        progress=0.0,
        message=None,
        revision=jobs.c.revision + 1,
    )
    .returning(*jobs.c)
)


@functools.cache
def _select_lanes(count: int) -> CompoundSelect[Any]:
    """Of so many robots, each lane's digest and owner, and when the owner was served the last time; and the owners of running
    jobs, without a digest."""
    # One row a job: SQLite would count by reading the whole index of owners.
    parts = [select(null(), jobs.c.owner, null()).where(jobs.c.state == "running")]
    for number in range(count):
        digest = bindparam(f"digest_{number}", type_=jobs.c.robot_digest.type)
        owners = select_distinct(jobs.c.owner, *_DUE, jobs.c.robot_digest == digest).subquery()
        # A start in the future is from before the clock went back.
        last = select(func.max(jobs.c.started_at)).where(jobs.c.owner == owners.c.value, jobs.c.started_at <= bindparam("at"))
        parts.append(select(digest, owners.c.value, last.scalar_subquery()))
    return union_all(*parts)


@functools.cache
def _select_head(is_known: bool, kinds: tuple[str, ...], can_run_alone: bool) -> Select[int, float, str]:
    """The first job of a lane that a worker may have, locked; `is_known`: a worker with a row, which a job may avoid."""
    conditions = [*_DUE, jobs.c.robot_digest == bindparam("digest"), jobs.c.owner == bindparam("lane_owner")]
    if is_known:
        pause_is_over = or_(jobs.c.avoid_until <= bindparam("at"), jobs.c.avoid_until > bindparam("latest"))
        conditions.append(or_(jobs.c.avoid_worker.is_(None), jobs.c.avoid_worker != bindparam("claimant_id"), pause_is_over))
    if kinds != KINDS:
        conditions.append(jobs.c.kind.in_(kinds))
    if not can_run_alone:
        conditions.append(jobs.c.losses < ALONE_FROM_LOSSES)
    columns = (jobs.c.rank, jobs.c.created_at, jobs.c.id)
    return select(*columns).where(*conditions).order_by(*columns).limit(1).with_for_update(skip_locked=True)
