"""Keeping a claim while its job runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from amp_core.errors import Unavailable
from ampref_service.jobs import Claim, JobQueue, LeaseLost
from ampref_service.settings import Settings

__all__ = ["Heartbeat"]

log = structlog.get_logger("ampref_workers.heartbeat")
T = TypeVar("T")

_TICK_SEC = 1.0  # How stale a job's progress may be, where its heartbeat is slower than that.


class Heartbeat:
    """Keeps a claim alive, and has the reasons to end its work: cancellation, a lost lease, a stop.

    A database that is away is no reason: the lease may run out and the job go to another worker, which the token shows later.
    """

    def __init__(self, queue: JobQueue, claim: Claim, settings: Settings, stop: Callable[[], bool]) -> None:
        self._queue = queue
        self._claim = claim
        self._stop = stop
        self._every_sec = min(settings.heartbeat_sec, settings.lease_sec / 3)
        self._lease_sec = settings.lease_sec
        self._progress: tuple[float, str] | None = None
        self.cancelled = claim.job.cancel_requested
        self.lease_lost = False

    def report(self, fraction: float, message: str) -> None:
        """Progress, which the next heartbeat carries."""
        self._progress = (fraction, message)

    def should_stop(self) -> bool:
        """Whether the work should end: cancelled, lease lost, or the worker is stopping."""
        return self.cancelled or self.lease_lost or self._stop()

    def persist(self, write: Callable[[], T], *, patience_sec: float | None = None) -> T:
        """Do a write that a result depends on, again while the other side is away, for as long as a lease by default."""
        deadline = time.monotonic() + (self._lease_sec if patience_sec is None else patience_sec)
        # Beyond a lease it is a race with the sweep, which can write again at the same moment and would count the attempt.
        longest = 5.0 if patience_sec is None else 1.0
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

    def beat(self, end: threading.Event) -> None:
        """Renew the lease until the event is set or the lease is lost; a thread does this beside the work."""
        last_progress: tuple[float, str] | None = None
        last = time.monotonic()
        while not end.wait(min(_TICK_SEC, self._every_sec)):
            progress = self._progress
            due = progress != last_progress or time.monotonic() - last >= self._every_sec - 1e-3
            if not due:
                with contextlib.suppress(Exception):  # A look, which writes nothing; the next heartbeat logs an error.
                    due = self._queue.cancel_requested(self._claim)
            if not due:
                continue
            try:
                go_on = self._queue.heartbeat(self._claim, *(progress or (None, None)))
            except LeaseLost:
                self.lease_lost = True
                return
            except Exception as error:
                log.warning("heartbeat_failed", error=str(error))
                continue
            last_progress, last = progress, time.monotonic()
            if not go_on:
                self.cancelled = True
