"""Workers inside the API's process: no broker, the same job table.

Each of `worker_concurrency` threads loops over `Runner.run_once`; every rollout still runs in a child process. An idle thread
is woken by `notify` at once, and looks by itself every `poll_sec`, which is how it finds the jobs of another process on the
same database. Any number of such processes may share one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import structlog

from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog
from ampref_service.settings import Settings
from ampref_workers.runner import Runner
from ampref_workers.sandbox import CHILD
from ampref_workers.sweeper import Collector, Sweeper

__all__ = ["EmbeddedWorker"]

log = structlog.get_logger("ampref_workers.embedded")


class Opened(Protocol):
    """What the application has open, as far as a worker needs it."""

    @property
    def catalog(self) -> Catalog: ...
    @property
    def blobs(self) -> BlobStore: ...


class EmbeddedWorker:
    """Hand `notify` and `running` to `create_app(settings, notify=..., background=...)`."""

    def __init__(self, settings: Settings, *, command: Sequence[str] = CHILD) -> None:
        self._settings = settings
        self._command = command
        self._stop = threading.Event()
        self._bell = threading.Condition()
        self._rung = 0

    def notify(self, job_id: str) -> None:
        """Wake an idle thread."""
        with self._bell:
            self._rung += 1
            self._bell.notify_all()

    @contextlib.contextmanager
    def running(self, services: Opened) -> Iterator[None]:
        """Work until the block ends. Then children are killed, and their jobs go back to the queue unharmed."""
        runner = Runner(self._settings, services.catalog, services.blobs, command=self._command)
        threads = [
            threading.Thread(target=self._loop, args=(runner,), name=f"worker {number}", daemon=True)
            for number in range(self._settings.worker_concurrency)
        ]
        self._stop.clear()
        sweeper = Sweeper(runner, self._ring, every_sec=self._settings.sweep_sec)
        for thread in threads:
            thread.start()
        try:
            with sweeper, Collector(runner, every_sec=self._settings.blob_grace_sec):
                yield
        finally:
            self._stop.set()
            self.notify("")
            for thread in threads:
                thread.join()

    def _ring(self, job_ids: Sequence[str]) -> None:
        self.notify("")

    def _loop(self, runner: Runner) -> None:
        while not self._stop.is_set():
            before = self._rung
            ended = runner.run_once(self._stop.is_set)
            if ended in ("idle", "unavailable"):
                with self._bell:
                    # A ring since the look at the table is not missed: the count tells.
                    self._bell.wait_for(partial(self._rung_since, before), self._settings.poll_sec)

    def _rung_since(self, count: int) -> bool:
        return self._rung != count or self._stop.is_set()
