"""That a worker is there, and whether its machine can do the work.

A worker has a row that others read (who is there, with which robots, paused why), and a lock on a file that the kernel releases
when it dies, so that the next worker in the same data folder knows at once whose jobs are nobody's.

What fails before a child works is the machine's fault: a scratch folder that cannot be written, no descriptors, a blob store
that is away, a child that cannot import. After a few in a row the worker claims nothing more, says why, and tries by itself,
with growing pauses, whether it can again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from amp_core.cpus import machine_cpus
from amp_core.robot import load_robots
from amp_core.version import __version__
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, worker_rows
from ampref_service.catalog.engine import new_id
from ampref_service.catalog.records import Worker
from ampref_service.jobs import JobQueue
from ampref_service.settings import Settings
from ampref_workers import sandbox
from ampref_workers.protocol import NoReport, ProbeReport, ProbeRequest, SandboxLimits

__all__ = ["Presence"]

log = structlog.get_logger("ampref_workers.presence")

FAULTS_TO_PAUSE = 3
"""Faults of the machine in a row after which a worker takes no more jobs. Before its first child that worked it is one."""

_REFRESH_SEC = 5.0
FIRST_PROBE_SEC, _LONGEST_PROBE_SEC = 5.0, 60.0
_PROBE_TIMEOUT_SEC = 120.0
_LOCK_FILE = re.compile(r".+-worker_[0-9a-z]+")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Presence:
    """One worker process; its threads share it.

    Args:
      robots: names and digests of what it has installed; None: what `settings` name is loaded.
      command: what the sandbox starts for a probe.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        blobs: BlobStore,
        queue: JobQueue,
        *,
        name: str,
        command: Sequence[str],
        robots: Mapping[str, str] | None = None,
    ) -> None:
        self.id = new_id("worker")
        if robots is None:
            robots = {robot.name: robot.digest for robot in load_robots(settings.robots).values()}
        self.robots = robots
        self.threads = settings.job_threads
        self._settings = settings
        self._catalog = catalog
        self._blobs = blobs
        self._queue = queue
        self._name = name
        self._command = tuple(command)
        self._machine = _machine()
        self._lock = threading.Lock()
        self._refresh_lock = threading.Lock()
        self._is_proven = False
        self._faults_in_row = self._jobs = self._host_faults = 0
        self._reason: str | None = None
        self._is_stopping = False
        self._pause_sec = FIRST_PROBE_SEC
        self._probe_at = 0.0
        self._saved_at: float | None = None
        self._file: int | None = None

    @property
    def reason(self) -> str | None:
        """Why it is paused; None while it takes jobs."""
        return self._reason

    def enter(self) -> None:
        """Show that this worker is there; take the jobs of those that died in this data folder; try the scratch folder once."""
        try:
            self._write_scratch()
        except OSError as error:
            self.note_fault(_describe(error))
        folder = self._settings.data_dir / "workers"
        with contextlib.suppress(OSError):  # Without the folder, jobs of dead workers wait for the end of their leases.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(folder / f"{self._machine}-{self.id}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_from_dead(folder)
        self.refresh()

    def refresh(self) -> bool:
        """Keep the row up to date, and try again whether a paused worker can work; True once it can again.

        It does nothing when it was called a moment ago, and raises nothing: a database that is away is the jobs' concern.
        """
        if not self._refresh_lock.acquire(blocking=False):
            return False
        try:
            is_back = (
                self._reason is not None and not self._is_stopping and time.monotonic() >= self._probe_at and self._probe()
            )
            if is_back or self._saved_at is None or time.monotonic() - self._saved_at >= _REFRESH_SEC:
                self._save()
            return is_back
        finally:
            self._refresh_lock.release()

    def leave(self) -> None:
        """Take the row away: the worker has ended in order."""
        with contextlib.suppress(Exception), self._catalog.begin() as session:
            worker_rows.remove(session, [self.id])
        if self._file is not None:
            (self._settings.data_dir / "workers" / f"{self._machine}-{self.id}").unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def stop(self) -> None:
        """Say that no more jobs are taken."""
        self._is_stopping = True
        self._save()

    def note_end(self) -> None:
        """A job came to an end that says nothing against this machine."""
        with self._lock:
            self._jobs += 1
            self._faults_in_row, self._is_proven = 0, True

    def note_fault(self, reason: str) -> None:
        """A job had to be given back because of this machine."""
        with self._lock:
            self._host_faults += 1
            self._faults_in_row += 1
            if self._reason is not None or self._faults_in_row < (FAULTS_TO_PAUSE if self._is_proven else 1):
                return
            self._reason = reason
            self._pause_sec = FIRST_PROBE_SEC
            self._probe_at = time.monotonic() + self._pause_sec
        log.error("worker_paused", reason=reason, faults_in_a_row=self._faults_in_row, tried_again_in_sec=self._pause_sec)
        self._save()

    def _probe(self) -> bool:
        """Whether the machine can work again: a file is written, a child starts and imports, the blob store answers."""
        try:
            self._write_scratch()
            self._blobs.check()
            self._start_child()
        except Exception as error:
            with self._lock:
                self._reason = _describe(error)
                self._pause_sec = min(2 * self._pause_sec, _LONGEST_PROBE_SEC)
                self._probe_at = time.monotonic() + self._pause_sec
            log.info("worker_still_paused", reason=self._reason, tried_again_in_sec=self._pause_sec)
            self._saved_at = None
            return False
        with self._lock:
            self._reason, self._faults_in_row, self._is_proven = None, 0, True
        log.warning("worker_resumed")
        return True

    def _write_scratch(self) -> None:
        work = self._settings.data_dir / "work"
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=work, prefix="probe-") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())

    def _start_child(self) -> None:
        folder = Path(tempfile.mkdtemp(dir=self._settings.data_dir / "work", prefix="probe-"))
        try:
            limits = SandboxLimits(_PROBE_TIMEOUT_SEC, self._settings.job_memory_mb, nice=self._settings.job_nice)
            outcome = sandbox.run(
                folder, ProbeRequest(), ProbeReport, limits, should_stop=lambda: self._is_stopping, command=self._command
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(outcome, NoReport):
            raise OSError(getattr(outcome, "reason", None) or "a probe was stopped")

    def _save(self) -> None:
        settings = self._settings
        state = "stopping" if self._is_stopping else "working" if self._reason is None else "paused"
        row = Worker(
            id=self.id,
            name=self._name[:200],
            host=platform.node()[:200],
            machine=self._machine,
            pid=os.getpid(),
            release=__version__,
            robots=dict(self.robots),
            concurrency=settings.worker_concurrency,
            state=state,
            reason=self._reason,
            jobs=self._jobs,
            host_faults=self._host_faults,
        )
        try:
            with self._catalog.begin() as session:
                worker_rows.save(session, row)
                rows = worker_rows.list_workers(session)
        except Exception as error:
            log.warning("worker_row_not_written", error=str(error))
            return
        self._saved_at = time.monotonic()
        neighbours = sum(worker.concurrency for worker in rows if worker.live and worker.machine == self._machine)
        # A container's own share may be smaller than an equal part of the machine.
        self.threads = max(1, min(settings.job_threads, machine_cpus() // max(1, neighbours)))

    def _take_from_dead(self, folder: Path) -> None:
        """Give back the jobs of workers of this machine that died: whose lock the kernel has released."""
        dead: dict[str, Path] = {}
        with contextlib.ExitStack() as stack:
            for path in folder.iterdir():
                machine, _, worker_id = path.name.rpartition("-")
                if not _LOCK_FILE.fullmatch(path.name):
                    continue
                if machine != self._machine:
                    # Of another boot of this machine, or of another machine, whose locks this one may not see.
                    if time.time() - path.stat().st_mtime > 24 * 3600:
                        path.unlink(missing_ok=True)
                    continue
                if worker_id == self.id:
                    continue
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    dead[worker_id] = path
            if not dead:
                return
            try:
                report = self._queue.take_from(list(dead))
            except Exception as error:
                log.warning("jobs_of_dead_workers_wait", error=str(error))
                return
            if report.requeued or report.cancelled:
                log.warning("jobs_of_dead_workers_taken_back", requeued=report.requeued, cancelled=report.cancelled)
            for path in dead.values():
                path.unlink(missing_ok=True)


def _machine() -> str:
    """This boot of this machine, the same in all its containers."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return platform.node()


def _describe(error: Exception) -> str:
    """One line for people."""
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
