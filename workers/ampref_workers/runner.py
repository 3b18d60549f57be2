"""One job from claim to commit.

    claim ─▶ job folder ─▶ sandboxed child ─▶ blobs ─▶ one transaction under the claim's token
                 └─ a thread sends heartbeats all the while, and hears of cancellation and of a lost lease

The job table is the truth: a worker may be killed between any two of these steps and nothing is half done. What it leaves
behind is a folder and perhaps a blob that no row names; both are swept away later. `run_once` never raises, so that neither a
clip nor a database that is away for a minute ends a worker.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import structlog

from amp_core.errors import (
    AmprefError,
    Conflict,
    DiskFull,
    FeatureCodeMismatch,
    InputRefused,
    IntegrityError,
    TooLarge,
    Unavailable,
)
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, clips, datasets, rollouts, sources
from ampref_service.catalog.records import Select, SelectedRollout, VersionFile, VersionMember
from ampref_service.garbage import delete_unreferenced
from ampref_service.jobs import Claim, JobQueue, LeaseLost, Swept
from ampref_service.settings import Settings
from ampref_workers import locking, sandbox, scoring, verifying
from ampref_workers.sandbox import CHILD, Failed, Limits, NoRoom, Outcome, Refused, Stopped, Succeeded

__all__ = ["Ended", "Runner"]

log = structlog.get_logger("ampref_workers.runner")
T = TypeVar("T")

Ended = Literal["idle", "unavailable", "succeeded", "failed", "quarantined", "queued", "released", "cancelled", "lost"]
"""What `run_once` came to. `idle`: nothing was due; `queued`: there will be another attempt; `lost`: the job was
another worker's by the time there was a result; `unavailable`: the database could not be reached."""

_FOR_GOOD = (InputRefused, Conflict, TooLarge, IntegrityError, FeatureCodeMismatch)
_TICK_SEC = 1.0  # How stale a job's progress may be, where its heartbeat is slower than that.
_TESTING = 0.9  # of a lock's bar: the tests take far longer than writing the version
_LOCK_FILE_MB = 1 << 20  # 1 TiB: the size of a version is its owner's business.
_FOLDER_GRACE_SEC = 3600.0
NO_ROOM_PAUSE_SEC = 60.0
"""How long a job waits that found a disk full: short beside the time it takes somebody to make room."""


def _never() -> bool:
    return False


class Runner:
    """Runs jobs, one call at a time; threads may share it.

    Args:
      settings: limits, lease and retry times.
      catalog, blobs: opened by the caller, who closes them.
      name: who holds the lease, as the job table shows it; the default tells host and process.
      command: what the sandbox starts; tests put a misbehaving child here.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        blobs: BlobStore,
        *,
        name: str | None = None,
        command: Sequence[str] = CHILD,
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
        self._command = tuple(command)
        self._folder = settings.data_dir / "work"

    def run_once(self, should_stop: Callable[[], bool] = _never) -> Ended:
        """Claim the oldest job that is due and bring it to an end.

        `should_stop` is asked about ten times a second; once it says yes the child is killed and the job goes back to the queue
        without having cost an attempt.
        """
        try:
            claim = self.jobs.claim(f"{self.name}:{threading.get_ident() % 100_000}")
        except Exception as error:
            log.warning("claim_failed", error=str(error))
            return "unavailable"
        if claim is None:
            return "idle"
        with structlog.contextvars.bound_contextvars(job=claim.job.id, kind=claim.job.kind, attempt=claim.job.attempts):
            log.info("job_started")
            began = time.monotonic()
            ended = self._run(claim, should_stop)
            log.info("job_ended", ended=ended, seconds=round(time.monotonic() - began, 3))
        return ended

    def sweep(self) -> Swept:
        """Take jobs from silent workers, and folders that killed ones left; returns which jobs a worker should be told of."""
        swept = self.jobs.sweep()
        for ids, event in ((swept.requeued, "jobs_requeued"), (swept.quarantined, "jobs_quarantined")):
            if ids:
                log.warning(event, jobs=ids, reason="their worker fell silent")
        self._drop_old_folders()
        return swept

    def collect(self, should_stop: Callable[[], bool] = _never) -> list[str]:
        """Delete the blobs that no row names and that are older than `blob_grace_sec`; returns their digests.

        Safe beside uploads, jobs and other collectors; see `ampref_service.garbage.delete_unreferenced`.
        """
        gone = delete_unreferenced(self.catalog, self.blobs, grace_sec=self.settings.blob_grace_sec, should_stop=should_stop)
        if gone:
            log.info("blobs_collected", count=len(gone))
        return gone

    # One job ---------------------------------------------------------------------------------------------------------------

    def _run(self, claim: Claim, should_stop: Callable[[], bool]) -> Ended:
        try:
            with _Watch(self.jobs, claim, self.settings, should_stop) as watch:
                try:
                    with self._job_folder(claim) as folder:
                        return self._do(claim, folder, watch)
                except LeaseLost:
                    raise
                except DiskFull as error:
                    return self._postpone(claim, error.what, watch, file=error.file)
                except AmprefError as error:
                    return self._fail(claim, error.to_dict(), watch, retry=not isinstance(error, _FOR_GOOD))
                except Exception as error:  # MemoryError included: it must not end the worker.
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        return self._postpone(claim, f"no space left for jobs in {self._folder}", watch)
                    log.exception("job_crashed")
                    said = f"{type(error).__name__}: {error}"[:1000]
                    return self._fail(claim, {"type": "worker-error", "title": "The worker failed", "detail": said}, watch)
        except LeaseLost as error:
            log.warning("lease_lost", reason=error.what)
            return "lost"
        except Exception as error:
            # The lease runs out, and a sweep gives the job to somebody else.
            log.exception("job_abandoned", error=str(error))
            return "unavailable"

    def _do(self, claim: Claim, folder: Path, watch: _Watch) -> Ended:
        do = {"rollout": self._rollout, "lock": self._lock}.get(claim.job.kind)
        if do is None:
            raise InputRefused(f"this worker knows no job kind {claim.job.kind!r}", expected="rollout or lock")
        outcome = do(claim, folder, watch)
        match outcome:
            case Succeeded():
                return "succeeded"
            case Refused(error):
                return self._fail(claim, error, watch, retry=False)
            case Failed():
                log.warning("attempt_failed", reason=outcome.reason)
                return self._fail(claim, outcome.to_dict(), watch)
            case NoRoom():
                return self._postpone(claim, outcome.reason, watch)
            case Stopped():
                return self._stopped(claim, watch)

    def _rollout(self, claim: Claim, folder: Path, watch: _Watch) -> Outcome:
        job = claim.job
        assert job.clip_id is not None
        assert job.recipe_digest is not None
        with self.catalog.session() as session:
            clip = clips.get(session, job.clip_id)
            recipe = clips.get_recipe(session, job.recipe_digest)
            known = rollouts.answer(session, job.clip_id, job.recipe_digest)
        if known is not None:
            result = {"rollout_id": known.id, "tier": known.tier}
            watch.persist(lambda: self.jobs.complete(claim, result))
            return Succeeded(result)
        self.blobs.fetch(clip.blob_digest, folder / scoring.SOURCE)
        sandbox.write_request(folder, scoring.request(clip, recipe.recipe, self.settings))
        outcome = self._in_child(folder, watch, self._rollout_limits(clip.duration_sec, scoring.plans_for(recipe.recipe)))
        if isinstance(outcome, Succeeded):
            watch.tell(1.0, "storing the arrays")
            made, found = [], outcome.result
            for number, score in enumerate(found["scores"]):
                export = folder / scoring.export_name(number)
                digest = watch.persist(partial(self.blobs.put_file, export))
                made.append(scoring.new_rollout(score, digest, export.stat().st_size))
            watch.persist(lambda: self.jobs.complete_rollout(claim, *made, shown=found["shown"], triage=found["triage"]))
        return outcome

    def _rollout_limits(self, duration_sec: float, plans: float) -> Limits:
        """What the child of a rollout job may use: planning takes its time, for every second of the clip and every plan."""
        timeout = self.settings.rollout_timeout(duration_sec, plans)
        # Every thread may be busy all the while, and where the clock is what ends it, that is what should be said.
        cpu = int(max(2, self.settings.job_threads) * timeout) + 5
        return Limits(timeout, self.settings.job_memory_mb, cpu_sec=cpu)

    def _lock(self, claim: Claim, folder: Path, watch: _Watch) -> Outcome:
        job = claim.job
        assert job.version_id is not None
        version_id = job.version_id
        with self.catalog.session() as session:
            version = datasets.get_version_by_id(session, version_id)
            members = list(datasets.select_members(session, Select.from_dict(version.select)))
            tested = bool(members and self.settings.lock_test_ids)
            origins = sources.get_sources(session, [member.rollout_id for member in members]) if tested else {}
        waivers = job.payload.get("waivers") or ()
        watch.tell(0.0, "gathering the arrays")
        arrays: dict[str, Path] = {}
        for digest in [member.arrays_digest for member in members] + [origin.blob_digest for origin in origins.values()]:
            if watch.should_stop():
                return Stopped()
            if digest not in arrays:
                arrays[digest] = self._local(digest, folder)
        if tested:
            asked = verifying.request(
                members,
                origins,
                arrays,
                name=version.dataset,
                version=version.version,
                robot=version.robot,
                settings=self.settings,
            )
            outcome = self._verify(folder, watch, asked)
            if not isinstance(outcome, Succeeded):
                return outcome
            if failures := verifying.blocked(outcome.result["failed"], waivers):
                error = verifying.refused(version.dataset, version.version, failures)
                return Refused(error.to_dict() | {"tests": list(failures)})
        sandbox.write_request(
            folder,
            locking.request(
                members,
                arrays,
                name=version.dataset,
                version=version.version,
                select=version.select,
                robot=version.robot,
                settings=self.settings,
                verification=folder / verifying.REPORT if tested else None,
                waivers=waivers,
            ),
        )
        limits = Limits(self.settings.lock_timeout_sec, self.settings.job_memory_mb, file_mb=_LOCK_FILE_MB)
        outcome = self._in_child(folder, watch, limits, begin=_TESTING if tested else 0.0)
        if isinstance(outcome, Succeeded):
            self._publish(claim, version_id, members, folder, outcome.result, watch)
        return outcome

    def _verify(self, folder: Path, watch: _Watch, request: dict[str, Any]) -> Outcome:
        """The readiness tests, in a child of their own."""
        sandbox.write_request(folder, request)
        timeout = self.settings.verify_timeout_sec
        cpu = int(max(2, self.settings.job_threads) * timeout) + 5
        limits = Limits(timeout, self.settings.job_memory_mb, cpu_sec=cpu)
        outcome = self._in_child(folder, watch, limits, end=_TESTING)
        # The next child must not be taken for this one.
        (folder / "result.json").unlink(missing_ok=True)
        return outcome

    def _publish(
        self,
        claim: Claim,
        version_id: str,
        members: Sequence[SelectedRollout],
        folder: Path,
        result: Mapping[str, Any],
        watch: _Watch,
    ) -> None:
        """Store the three files and the tests' report, then show the version: all of it in one transaction under the claim's
        token."""
        watch.tell(1.0, "storing the files")
        files = []
        for file in (*result["files"], result["verification"]):
            path = folder / locking.OUT / file["name"]
            digest = watch.persist(partial(self.blobs.put_file, path))
            if digest != file["sha256"]:
                raise Unavailable(f"{file['name']} changed between being written and being stored", remedy="Check the disk")
            media_type = "application/json" if path.suffix == ".json" else "application/octet-stream"
            files.append(VersionFile(path.name, digest, path.stat().st_size, media_type))
        # In the order of the segments in the file, which is `lock_bundle`'s.
        ranges = [
            VersionMember(member.clip_id, member.rollout_id, member.name, start, end, tier)
            for member in sorted(members, key=lambda member: (member.name, member.source_digest, member.recipe_digest))
            for start, end, tier in member.ranges
        ]
        manifest = next(file.digest for file in files if file.name == result["manifest"])

        def work(session: Any) -> Mapping[str, Any]:
            version = datasets.publish_version(
                session,
                version_id,
                members=ranges,
                files=files,
                dataset_hash=result["dataset_hash"],
                feature_code_hash=result["feature_code_hash"],
                manifest_digest=manifest,
                num_clips=result["num_clips"],
                num_frames=result["num_frames"],
                readiness=result["readiness"],
                coverage=result["coverage"],
                actor=claim.job.actor,
            )
            return {"dataset": version.dataset, "version": version.version, "dataset_hash": version.dataset_hash}

        watch.persist(lambda: self.jobs.complete(claim, work=work))

    def _in_child(self, folder: Path, watch: _Watch, limits: Limits, *, begin: float = 0.0, end: float = 1.0) -> Outcome:
        """Run the request in the folder; its progress is the job's from `begin` to `end`."""

        def tell(share: float, text: str) -> None:
            watch.tell(begin + (end - begin) * share, text)

        return sandbox.run(folder, limits, on_progress=tell, should_stop=watch.should_stop, command=self._command)

    def _local(self, digest: str, folder: Path) -> Path:
        """A blob as a local file: where it lies, or a copy where blobs are remote."""
        path = self.blobs.local_path(digest)
        if path is None:
            path = folder / "arrays" / f"{digest.removeprefix('sha256:')}.npz"
            path.parent.mkdir(exist_ok=True)
            self.blobs.fetch(digest, path)
        return path

    def _fail(self, claim: Claim, facts: Mapping[str, Any], watch: _Watch, *, retry: bool = True) -> Ended:
        log.warning("job_failed", reason=facts.get("detail"), retry=retry)
        return watch.persist(lambda: self.jobs.fail(claim, facts, retry=retry)).state  # type: ignore[return-value]

    def _postpone(self, claim: Claim, what: str, watch: _Watch, *, file: str | None = None) -> Ended:
        """A disk is full: the job waits for room, as no clip is to blame for it."""
        log.warning("disk_full", reason=what, file=file, again_in_sec=NO_ROOM_PAUSE_SEC)
        error = DiskFull(what, file=file, remedy="Make room there; the job goes on by itself within a minute or so")
        # Where it is the catalog's own disk this cannot be written either. Giving up would use up the attempt, and a worker
        # without a catalog has nothing else to do.
        return watch.persist(  # type: ignore[return-value]
            lambda: self.jobs.postpone(claim, error, NO_ROOM_PAUSE_SEC), patience=math.inf
        ).state

    def _stopped(self, claim: Claim, watch: _Watch) -> Ended:
        if watch.lost:
            return "lost"
        if watch.cancelled:
            self.jobs.cancelled(claim)
            return "cancelled"
        self.jobs.release(claim)
        return "released"

    # Folders ---------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _job_folder(self, claim: Claim) -> Iterator[Path]:
        """A private folder for one attempt, and none of the job's earlier ones."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in self._folder.glob(f"{claim.job.id}-*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = self._folder / f"{claim.job.id}-{claim.token}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _drop_old_folders(self) -> None:
        """Remove what killed workers left, once no attempt can still be using it."""
        oldest = time.time() - self.settings.longest_job_sec - _FOLDER_GRACE_SEC
        with contextlib.suppress(OSError):
            for folder in self._folder.iterdir():
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)


class _Watch:
    """Keeps a claim alive from a thread of its own, and knows why its work should end.

    A database that is away is borne: the lease may run out and the job go to somebody else, and then the token says so.
    """

    def __init__(self, jobs: JobQueue, claim: Claim, settings: Settings, stop: Callable[[], bool]) -> None:
        self._jobs = jobs
        self._claim = claim
        self._stop = stop
        self._every = min(settings.heartbeat_sec, settings.lease_sec / 3)
        self._patience = settings.lease_sec
        self._news: tuple[float, str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {claim.job.id}", daemon=True)
        self.cancelled = claim.job.cancel_requested
        self.lost = False

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def tell(self, fraction: float, message: str) -> None:
        """Progress, which the next heartbeat carries."""
        self._news = (fraction, message)

    def should_stop(self) -> bool:
        """Whether the work should end: cancelled, lease lost, or the worker is told to stop."""
        return self.cancelled or self.lost or self._stop()

    def persist(self, write: Callable[[], T], *, patience: float | None = None) -> T:
        """Do a write that a result depends on, again and again while the other side is away: for `patience` seconds, for as
        long as a lease lasts by default."""
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        # Beyond a lease it is a race with the sweep, which can write again at the same moment and would count the attempt.
        longest = 5.0 if patience is None else 1.0
        pause = 0.1
        while True:
            try:
                return write()
            except Unavailable as error:
                if time.monotonic() + pause > deadline or self._stop():
                    raise
                log.warning("write_postponed", error=str(error), seconds=pause)
                time.sleep(pause)
                pause = min(2 * pause, longest)

    def _beat(self) -> None:
        told: tuple[float, str] | None = None
        beaten = time.monotonic()
        while not self._over.wait(min(_TICK_SEC, self._every)):
            news = self._news
            if news == told and time.monotonic() - beaten < self._every - 1e-3 and not self._called_off():
                continue
            try:
                wanted = self._jobs.heartbeat(self._claim, *(news or (None, None)))
            except LeaseLost:
                self.lost = True
                return
            except Exception as error:
                log.warning("heartbeat_failed", error=str(error))
                continue
            told, beaten = news, time.monotonic()
            if not wanted:
                self.cancelled = True

    def _called_off(self) -> bool:
        """Whether somebody wants the job cancelled: a look between two heartbeats, which writes nothing."""
        try:
            return self._jobs.cancel_requested(self._claim)
        except Exception:
            return False  # The next heartbeat says what is wrong.
