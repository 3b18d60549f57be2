"""Celery on Redis: a message is a doorbell, the job table is the queue.

    celery -A ampref_workers.app worker --pool=threads --concurrency=2      (or: ampref worker)

A message means only that a job is due. The worker that receives it claims the oldest one; a message too many finds nothing to
do, and for one too few the sweeper of every worker rings again. So Redis may be flushed, restarted or replaced at any time.

The physics runs in child processes, so the pool is of threads: nothing in a thread can be lost with a pool process, and SIGTERM
reaches the children through the threads that watch them. Importing this module reads no setting; the application is made on
first use.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import Celery, signals  # type: ignore[import-untyped]

from amp_core.errors import Unavailable
from ampref_service.blobs import open_blobs
from ampref_service.broker import QUEUE, RING, Doorbell, check_broker, make_celery
from ampref_service.catalog import Catalog, schema
from ampref_service.damage import CatalogDamageLog
from ampref_service.settings import Settings
from ampref_workers.runner import Runner
from ampref_workers.sandbox import CHILD
from ampref_workers.sweeper import running_beside_jobs

__all__ = ["Worker", "check_workers", "main", "node_name", "ring_task"]

log = structlog.get_logger("ampref_workers.app")


class Worker:
    """The parts of a Celery worker: a runner, made on first use in each process, and a sweeper in the main process.

    Args:
      app: from `make_celery`; its task and signals are attached here.
      command: what the sandbox starts; tests put a misbehaving child here.
    """

    def __init__(self, app: Celery, settings: Settings, *, command: Sequence[str] = CHILD) -> None:
        self._app = app
        self._settings = settings
        self._command = command
        self._runner: Runner | None = None
        self._owner = -1
        self._hostname: str | None = None
        self._is_deaf = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._bell = Doorbell(settings)
        self._sweeping: contextlib.ExitStack = contextlib.ExitStack()
        app.task(name=RING, bind=False)(ring_task(self.run_once))
        # Celery's signals are the whole process's and hold their receivers weakly: these live as long as `self` does.
        signals.worker_ready.connect(self.start)
        signals.worker_shutting_down.connect(self.stop)
        signals.worker_shutdown.connect(self.close)

    @property
    def runner(self) -> Runner:
        """This process's runner; a fork makes its own, since database connections do not survive one."""
        with self._lock:
            if self._runner is None or self._owner != os.getpid():
                settings = self._settings
                catalog = Catalog.open(settings.database_url)
                blobs = open_blobs(settings.blob_url, CatalogDamageLog(catalog))
                self._runner = Runner(settings, catalog, blobs, command=self._command)
                self._owner = os.getpid()
            return self._runner

    def run_once(self) -> str:
        """Run the oldest job that is due."""
        if self._stop.is_set():
            return "stopping"
        ending = self.runner.run_once(self._stop.is_set)
        if ending in ("released", "queued"):
            self._bell.ring([""])  # For another worker, so that it need not wait for a sweep.
        if ending == "paused" and self._hostname is not None and not self._is_deaf:
            # Messages are for workers that can work.
            self._is_deaf = True
            self._app.control.cancel_consumer(QUEUE, destination=[self._hostname])
            self._bell.ring([""])
        return ending

    def _resume(self) -> None:
        if self._is_deaf:
            self._is_deaf = False
            self._app.control.add_consumer(QUEUE, destination=[self._hostname])
        self._bell.ring([""])

    def start(self, sender: Any = None, **_: Any) -> None:
        """Begin to sweep; Celery's worker takes messages from here."""
        self._stop.clear()
        self._hostname = getattr(sender, "hostname", None)
        presence = self.runner.presence
        presence.enter()
        self._sweeping.callback(presence.leave)
        self._sweeping.enter_context(running_beside_jobs(self.runner, ring=self._bell.ring, on_resume=self._resume))

    def stop(self, **_: Any) -> None:
        """Take no more jobs. With a pool of threads the running children are killed now and their jobs released."""
        self._stop.set()
        if self._runner is not None and self._owner == os.getpid():
            self._runner.presence.stop()

    def close(self, **_: Any) -> None:
        """Stop sweeping, and close the catalog."""
        self._sweeping.close()
        if self._runner is not None and self._owner == os.getpid():
            self._runner.catalog.close()


def ring_task(run_once: Callable[[], str]) -> Callable[[str], None]:
    """The task around `run_once`. It never raises: a task that does may be delivered again, and again."""

    def ring(job_id: str = "") -> None:
        try:
            log.debug("rung", rung_for=job_id, ended=run_once())
        except Exception:  # MemoryError included, which would end the worker, and again after every restart.
            log.exception("ring_failed", rung_for=job_id)

    return ring


def check_workers(settings: Settings, *, hostname: str | None = None, timeout: float = 5.0) -> list[str]:
    """Names of the workers that answer through the broker; raises `Unavailable` when none does.

    Args:
      hostname: only of this machine; the first answer is enough.
    """
    check_broker(settings)
    only: dict[str, Any] = {} if hostname is None else {"pattern": f"*@{hostname}", "matcher": "glob"}
    with contextlib.closing(make_celery(settings)) as app:
        answers: Sequence[Mapping[str, Any]] = app.control.ping(timeout=timeout, limit=1 if hostname else None, **only)
    names = sorted(name for answer in answers for name in answer)
    if not names:
        raise Unavailable(
            f"no worker answers{f' on {hostname}' if hostname else ''} within {timeout:g} s",
            remedy="Start one with `ampref worker`; one that is busy answers all the same",
        )
    return names


def node_name() -> str:
    """This process's name among the workers of a broker, `ampref-PID@HOST`: two on one machine are two."""
    return f"ampref-{os.getpid()}@{platform.node()}"


def main(settings: Settings | None = None, *, command: Sequence[str] = CHILD, arguments: Sequence[str] = ()) -> None:
    """Run a worker until SIGTERM or Ctrl-C; `ampref worker` does this.

    The first signal kills the running children and gives their jobs back to the queue.
    """
    settings = settings or Settings.load()
    app = make_celery(settings)
    worker = Worker(app, settings, command=command)
    schema.check(worker.runner.catalog)
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={settings.worker_concurrency}",
            f"--hostname={node_name()}",
            f"--loglevel={settings.log_level}",
            "--without-gossip",
            "--without-mingle",
            *arguments,
        ]
    )


def __getattr__(name: str) -> Any:
    """`app`, for `celery -A ampref_workers.app`: made from the environment on first use."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = Settings.load()
    os.umask(0o077)  # As `ampref worker` does: what it keeps is for its user alone.
    app = make_celery(settings)
    app.ampref_worker = Worker(app, settings)  # Celery holds the receivers of its signals weakly.
    globals()["app"] = app
    return app


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
