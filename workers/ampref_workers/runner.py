"""One job from claim to commit.

    claim ─▶ job folder ─▶ sandboxed child ─▶ blobs ─▶ one transaction under the claim's token
                 └─ a thread sends heartbeats all the while, and learns of cancellation and of a lost lease

The job table is the truth: a worker may be killed between any two of these steps and nothing is half done. What it leaves
behind is a folder and perhaps a blob that no row names; both are swept away later. `run_once` never raises, so that neither a
clip nor a database that is away for a minute ends a worker.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import structlog

from amp_core.errors import (
    AmprefError,
    Conflict,
    DiskFull,
    FeatureCodeMismatch,
    InputRefused,
    IntegrityError,
    NotFound,
    TooLarge,
    Unavailable,
)
from amp_core.files import NO_ROOM
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog
from ampref_service.catalog.records import Job
from ampref_service.garbage import delete_unreferenced
from ampref_service.jobs import ALONE_FROM_LOSSES, Claim, JobQueue, LeaseLost, SweepReport
from ampref_service.settings import Settings
from ampref_workers import lock_job, rollout_job
from ampref_workers.attempt import Attempt
from ampref_workers.heartbeat import Heartbeat
from ampref_workers.presence import Presence
from ampref_workers.protocol import Failed, HostFault, NoReport, NoRoom, Refused, Stopped
from ampref_workers.sandbox import CHILD
from ampref_workers.threads import running_thread

__all__ = ["RunEnding", "Runner"]

log = structlog.get_logger("ampref_workers.runner")

RunEnding = Literal[
    "idle", "paused", "unavailable", "succeeded", "failed", "quarantined", "queued", "released", "cancelled", "lost"
]
"""The end of a `run_once`. `idle`: nothing was due; `paused`: this machine cannot work at present; `queued`: there will be
another attempt; `lost`: the job was another worker's by the time there was a result; `unavailable`: the database could not be
reached."""

_JOBS: Mapping[str, Callable[[Attempt], NoReport | Job]] = {"rollout": rollout_job.run, "lock": lock_job.run}
# What the catalog and the blobs say of a job. Whatever else is raised in this process is its own fault or its machine's, as it
# never reads a clip.
_PERMANENT = (InputRefused, Conflict, TooLarge, IntegrityError, FeatureCodeMismatch)
_VERDICTS = (*_PERMANENT, NotFound)
_FOLDER_GRACE_SEC = 3600.0
_ATTEMPT_FOLDER = re.compile(r"job_[0-9a-z]+-\d+|thumbnails-[0-9a-z_]+")
NO_ROOM_PAUSE_SEC = 60.0
"""How long a job waits that found a disk full: short beside the time it takes a person to make room."""


class HostUnfit(Unavailable):
    """A worker gave a job back because of its machine; the attempt does not count."""

    slug = "host-fault"
    title = "The worker's machine could not begin"


class Runner:
    """Runs jobs, one call at a time; threads may share it.

    Args:
      settings: limits, lease and retry times.
      catalog, blobs: opened by the caller, who closes them.
      name: who holds the lease, as the job table shows it; by default host and process.
      command: what the sandbox starts; tests put a misbehaving child here.
      robots: names and digests of what this worker has installed; by default those of `settings` are loaded.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        blobs: BlobStore,
        *,
        name: str | None = None,
        command: Sequence[str] = CHILD,
        robots: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.blobs = blobs
        self.name = name or f"{platform.node()}:{os.getpid()}"
        self.jobs = JobQueue(
            catalog,
            lease_sec=settings.lease_sec,
            max_attempts=settings.max_attempts,
            backoff_sec=settings.retry_backoff_sec,
            ring_again_sec=max(3 * settings.sweep_sec, 1.0),
        )
        self.presence = Presence(settings, catalog, blobs, self.jobs, name=self.name, command=command, robots=robots)
        self.command = tuple(command)
        self._folder = settings.data_dir / "work"
        self._lock = threading.Lock()
        self._running = 0
        self._is_alone = False

    @property
    def is_busy(self) -> bool:
        """Whether a job runs here."""
        return self._running > 0

    def run_once(self, should_stop: Callable[[], bool] = lambda: False) -> RunEnding:
        """Claim the job whose turn it is and bring it to an end.

        `should_stop` is asked about ten times a second; once it is true the child is killed and the job goes back to the queue
        without having cost an attempt.
        """
        self.presence.refresh()
        if self.presence.reason is not None:
            return "paused"
        try:
            claim = self._claim()
        except Exception as error:
            log.warning("claim_failed", error=str(error))
            return "unavailable"
        if claim is None:
            return "idle"
        try:
            return self._run_claimed(claim, should_stop)
        finally:
            with self._lock:
                self._running -= 1
                self._is_alone = False

    def _claim(self) -> Claim | None:
        """Claim a job, unless one runs that is to be alone."""
        with self._lock:
            if self._is_alone:
                return None
            claim = self.jobs.claim(
                f"{self.name}:{threading.get_ident() % 100_000}",
                worker_id=self.presence.id,
                robots=set(self.presence.robots.values()),
                can_run_alone=self._running == 0,
            )
            if claim is not None:
                self._running += 1
                self._is_alone = claim.job.losses >= ALONE_FROM_LOSSES
            return claim

    def _run_claimed(self, claim: Claim, should_stop: Callable[[], bool]) -> RunEnding:
        with structlog.contextvars.bound_contextvars(job=claim.job.id, kind=claim.job.kind, attempt=claim.job.attempts):
            log.info("job_started")
            start = time.monotonic()
            try:
                heartbeat = Heartbeat(self.jobs, claim, self.settings, should_stop)
                with running_thread(heartbeat.beat, f"heartbeat {claim.job.id}"):
                    ending = self._run(claim, heartbeat)
            except LeaseLost as error:
                log.warning("lease_lost", reason=error.what)
                ending = "lost"
            except Exception as error:
                # The lease runs out, and a sweep gives the job to another worker.
                log.exception("job_abandoned", error=str(error))
                ending = "unavailable"
            log.info("job_ended", ended=ending, seconds=round(time.monotonic() - start, 3))
        return ending

    def sweep(self) -> SweepReport:
        """Take jobs from silent workers, and remove the folders of killed ones; returns for which jobs to ring."""
        swept = self.jobs.sweep()
        if swept.requeued:
            log.warning("jobs_requeued", jobs=swept.requeued, reason="their worker fell silent")
        oldest = time.time() - self.settings.longest_job_sec - _FOLDER_GRACE_SEC  # No attempt can still use these folders.
        with contextlib.suppress(OSError):
            for folder in self._folder.iterdir():
                # Whatever else is there is somebody else's: a data folder may be one's home.
                if _ATTEMPT_FOLDER.fullmatch(folder.name) and folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
        return swept

    def collect(self, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Delete the blobs that no row names and that are older than `blob_grace_sec`; returns their digests.

        Safe beside uploads, jobs and other collectors; see `ampref_service.garbage.delete_unreferenced`.
        """
        digests = delete_unreferenced(self.catalog, self.blobs, grace_sec=self.settings.blob_grace_sec, should_stop=should_stop)
        if digests:
            log.info("blobs_collected", count=len(digests))
        return digests

    def _run(self, claim: Claim, heartbeat: Heartbeat) -> RunEnding:
        """Do the work of a claimed job and commit its end; raises `LeaseLost`."""
        try:
            with self._job_folder(claim) as folder:
                run = _JOBS.get(claim.job.kind)
                if run is None:
                    raise InputRefused(f"this worker knows no job kind {claim.job.kind!r}", expected=" or ".join(_JOBS))
                attempt = Attempt(
                    claim,
                    folder,
                    heartbeat,
                    self.settings,
                    self.catalog,
                    self.blobs,
                    self.jobs,
                    self.command,
                    self.presence.threads,
                )
                return self._settle(claim, run(attempt), heartbeat)
        except LeaseLost:
            raise
        except DiskFull as error:
            return self._postpone(claim, error.what, heartbeat, file=error.file)
        except _VERDICTS as error:
            return self._fail(claim, error.to_dict(), heartbeat, retry=not isinstance(error, _PERMANENT))
        except Exception as error:  # MemoryError included: it must not end the worker.
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                return self._postpone(claim, f"no space left for jobs in {self._folder}", heartbeat)
            if not isinstance(error, AmprefError | OSError):
                log.exception("job_crashed")
            return self._give_back(claim, f"{type(error).__name__}: {error}"[:1000], heartbeat)

    def _settle(self, claim: Claim, outcome: NoReport | Job, heartbeat: Heartbeat) -> RunEnding:
        match outcome:
            case Job():
                self.presence.note_end()
                return cast(RunEnding, outcome.state)
            case Refused(error):
                return self._fail(claim, error, heartbeat, retry=False)
            case Failed():
                log.warning("attempt_failed", reason=outcome.reason)
                return self._fail(claim, outcome.problem(), heartbeat, doubtful=outcome.kind == "killed")
            case HostFault():
                return self._give_back(claim, outcome.reason, heartbeat)
            case NoRoom():
                return self._postpone(claim, outcome.reason, heartbeat)
            case Stopped() if heartbeat.lease_lost:
                return "lost"
            case Stopped() if heartbeat.cancelled:
                self.jobs.confirm_cancel(claim)
                return "cancelled"
            case Stopped():
                self.jobs.release(claim)
                return "released"

    def _fail(
        self, claim: Claim, error: Mapping[str, Any], heartbeat: Heartbeat, *, retry: bool = True, doubtful: bool = False
    ) -> RunEnding:
        log.warning("job_failed", reason=error.get("detail"), retry=retry)
        self.presence.note_end()
        job = heartbeat.persist(lambda: self.jobs.fail(claim, error, retry=retry, doubtful=doubtful))
        return cast(RunEnding, job.state)

    def _give_back(self, claim: Claim, reason: str, heartbeat: Heartbeat) -> RunEnding:
        """This machine is at fault: the job is for another one, or for later."""
        log.warning("host_fault", reason=reason)
        self.presence.note_fault(reason)
        error = HostUnfit(f"the worker {self.name} could not begin: {reason}", remedy="The job goes on by itself")
        job = heartbeat.persist(lambda: self.jobs.postpone(claim, error))
        return cast(RunEnding, job.state)

    def _postpone(self, claim: Claim, reason: str, heartbeat: Heartbeat, *, file: str | None = None) -> RunEnding:
        """A disk is full, which is not the clip's fault: the job waits for room."""
        log.warning("disk_full", reason=reason, file=file, again_in_sec=NO_ROOM_PAUSE_SEC)
        self.presence.note_fault(reason)
        error = DiskFull(reason, file=file, remedy="Make room there; the job goes on by itself within a minute or so")
        # Where it is the catalog's own disk this cannot be written either. Giving up would use up the attempt, and a worker
        # without a catalog has nothing else to do.
        job = heartbeat.persist(lambda: self.jobs.postpone(claim, error, NO_ROOM_PAUSE_SEC), patience_sec=math.inf)
        return cast(RunEnding, job.state)

    @contextlib.contextmanager
    def _job_folder(self, claim: Claim) -> Iterator[Path]:
        """A private folder for one attempt; those of the job's earlier attempts are removed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in self._folder.glob(f"{claim.job.id}-*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = self._folder / f"{claim.job.id}-{claim.token}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
