"""Workers inside the API's process: no broker, the same job table.

Each of `worker_concurrency` threads loops over `Runner.run_once`; every rollout still runs in a child process. An idle thread
is woken by `notify` at once, and looks by itself every `poll_sec`, which is how it finds the jobs of another process on the
same database. Any number of such processes may share one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from amp_core.errors import Unavailable
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog
from ampref_service.jobs import JobQueue
from ampref_service.settings import Settings
from ampref_workers.presence import Presence
from ampref_workers.runner import Runner
from ampref_workers.sandbox import CHILD
from ampref_workers.sweeper import running_beside_jobs

__all__ = ["EmbeddedWorker"]


_PATIENCE_SEC = 300.0


class Services(Protocol):
    """What the application has open, as far as a worker needs it."""

    @property
    def catalog(self) -> Catalog: ...
    @property
    def blobs(self) -> BlobStore: ...


class EmbeddedWorker:
    """Pass `notify` and `running` to `create_app(settings, notify=..., background=...)`."""

    def __init__(self, settings: Settings, *, command: Sequence[str] = CHILD, robots: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._command = command
        self._robots = robots
        self._presence: Presence | None = None
        self._stop = threading.Event()
        self._bell = threading.Condition()
        self._rings = 0

    def notify(self, job_id: str) -> None:
        """Wake an idle thread."""
        with self._bell:
            self._rings += 1
            self._bell.notify_all()

    @contextlib.contextmanager
    def running(self, services: Services) -> Iterator[None]:
        """Work until the block ends. Then children are killed, and their jobs go back to the queue unharmed."""
        settings = self._settings
        runner = Runner(settings, services.catalog, services.blobs, command=self._command, robots=self._robots)
        self._presence = runner.presence
        runner.presence.enter()
        threads = [
            threading.Thread(target=self._run_jobs, args=(runner,), name=f"worker {number}", daemon=True)
            for number in range(settings.worker_concurrency)
        ]
        self._stop.clear()
        for thread in threads:
            thread.start()
        try:
            with running_beside_jobs(runner, ring=lambda job_ids: self.notify(""), on_resume=lambda: self.notify("")):
                yield
        finally:
            runner.presence.stop()
            self._stop.set()
            self.notify("")
            for thread in threads:
                thread.join()
            runner.presence.leave()
            self._presence = None

    def run_until_empty(self, services: Services) -> None:
        """Work until no job is queued or runs, here or elsewhere, that this worker could take: a running one may come back.

        Raises:
          Unavailable: this machine could not work for `_PATIENCE_SEC`, or the catalog was away, while there was work.
        """
        queue = JobQueue(services.catalog)
        fault_at: float | None = None
        with self.running(services):
            assert self._presence is not None
            robots = set(self._presence.robots.values())
            while True:
                try:
                    if queue.is_empty(robots):
                        return
                    self.check()
                    fault_at = None
                except Unavailable:
                    fault_at = fault_at or time.monotonic()
                    if time.monotonic() - fault_at > _PATIENCE_SEC:
                        raise
                time.sleep(self._settings.poll_sec)

    def check(self) -> None:
        """Raise `Unavailable` while the workers of this process are paused."""
        if self._presence is not None and self._presence.reason is not None:
            raise Unavailable(
                f"the workers in this process are paused: {self._presence.reason}",
                remedy="Mend that; they go on by themselves within a minute",
            )

    def _run_jobs(self, runner: Runner) -> None:
        while not self._stop.is_set():
            rings = self._rings
            ending = runner.run_once(self._stop.is_set)
            with self._bell:
                # A ring since the look at the table is not missed: the count has changed.
                if ending in ("idle", "paused", "unavailable") and self._rings == rings and not self._stop.is_set():
                    self._bell.wait(self._settings.poll_sec)
