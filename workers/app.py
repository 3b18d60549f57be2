"""Celery on Redis: a message is a doorbell, the job table is the queue.

    celery -A workers.app worker --pool=threads --concurrency=2      (or: ampref worker)

A message says only that a job is due. Whoever hears it claims the oldest one; a message too many finds nothing to do, and one
too few is made good by the sweeper that every worker runs. So Redis may be flushed, restarted or replaced at any time.

The physics runs in child processes, so the pool is of threads: nothing in a thread can be lost with a pool process, and SIGTERM
reaches the children through their supervisors. Importing this module reads no setting; the application is made on first use.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
import structlog
from celery import Celery, signals  # type: ignore[import-untyped]

from amp_core.errors import Unavailable
from service.blobs import BlobStore
from service.catalog import Catalog
from service.settings import Settings
from workers.runner import Runner
from workers.sandbox import CHILD
from workers.sweeper import Collector, Sweeper
from workers.tasks import RING, ring_task

__all__ = ["QUEUE", "Doorbell", "Worker", "check_broker", "check_workers", "main", "make_celery", "make_notifier", "node_name"]

QUEUE = "ampref"
"""The Redis list of the messages."""

log = structlog.get_logger("workers.app")

_CONNECT_SEC = 2.0
_MARGIN_SEC = 300
_BACKLOG_MAX = 10_000  # rings that wait to be sent; more are left to the sweeper


def make_celery(settings: Settings) -> Celery:
    """A Celery application for the broker of `settings`; it connects on first use.

    Raises `Unavailable` where no broker is set.
    """
    app = Celery("ampref", set_as_current=False)
    app.conf.update(
        broker_url=_broker_url(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker waits for its broker as long as it takes
        broker_transport_options={
            # A message that is not acknowledged after this long is delivered again, while the first delivery may still run.
            "visibility_timeout": int(settings.longest_job_sec) + _MARGIN_SEC,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": _CONNECT_SEC,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.worker_concurrency,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the job goes on; its lease is in the database
        enable_utc=True,
        timezone="UTC",
    )
    return app


class Worker:
    """What a Celery worker process has: a runner, made on first use in each process, and a sweeper in the main one.

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
        self._making = threading.Lock()
        self._stop = threading.Event()
        self._bell = Doorbell(settings)
        self._sweeping: contextlib.ExitStack = contextlib.ExitStack()
        app.task(name=RING, bind=False)(ring_task(self.run_once))
        # Celery's signals are the whole process's and hold their receivers weakly; ours live as long as `self` does.
        signals.worker_ready.connect(self._ready)
        signals.worker_shutting_down.connect(self._shutting_down)
        signals.worker_shutdown.connect(self._down)

    @property
    def runner(self) -> Runner:
        """This process's runner; a fork makes its own, since database connections do not survive one."""
        with self._making:
            if self._runner is None or self._owner != os.getpid():
                settings = self._settings
                self._runner = Runner(
                    settings, Catalog.open(settings.database_url), BlobStore.from_url(settings.blob_url), command=self._command
                )
                self._owner = os.getpid()
            return self._runner

    def run_once(self) -> str:
        """Run the oldest job that is due; what the task does."""
        if self._stop.is_set():
            return "stopping"
        ended = self.runner.run_once(self._stop.is_set)
        if ended == "released":
            self._bell.ring([""])  # for another worker, so that it need not wait for a sweep
        return ended

    def _ready(self, **_: Any) -> None:
        self._stop.clear()
        self._sweeping.enter_context(Sweeper(self.runner, self._bell.ring, every_sec=self._settings.sweep_sec))
        self._sweeping.enter_context(Collector(self.runner, every_sec=self._settings.blob_grace_sec))

    def _shutting_down(self, **_: Any) -> None:
        # With a pool of threads the running children are killed now and their jobs released.
        self._stop.set()

    def _down(self, **_: Any) -> None:
        self._sweeping.close()
        if self._runner is not None and self._owner == os.getpid():
            self._runner.catalog.close()


class Doorbell:
    """Sends messages, at once and without ever waiting long; thread-safe.

    Raises nothing for a broker that is away: `ring` returns False.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = make_celery(settings)
        # Whoever rings has better to do than to wait for a broker: the sweeper rings again.
        self._app.conf.broker_transport_options |= {"socket_timeout": _CONNECT_SEC, "max_retries": 0}
        self._redis: redis.Redis | None = None
        self._url = _broker_url(settings)

    def ring(self, job_ids: Sequence[str]) -> bool:
        """Send one message for each job, less those that wait in the queue already: they find these jobs as well."""
        try:
            waiting = self.waiting() if len(job_ids) > 1 else 0
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=_CONNECT_SEC)
                for job_id in list(job_ids)[waiting:]:
                    self._app.send_task(RING, [job_id], queue=QUEUE, connection=connection, retry=False, ignore_result=True)
        except Exception as error:  # kombu raises whatever its transport does
            log.warning("ring_failed", jobs=len(job_ids), error=str(error))
            return False
        return True

    def waiting(self) -> int:
        """Messages that nobody has taken yet."""
        if not self._url.startswith(("redis://", "rediss://")):
            return 0
        if self._redis is None:
            self._redis = _redis(self._url)
        return int(self._redis.llen(QUEUE))


class Notifier:
    """Rings for a job from a thread of its own, so that no request waits for the broker. Call it with a job's id."""

    def __init__(self, settings: Settings) -> None:
        self._bell = Doorbell(settings)
        self._jobs: queue.Queue[str] = queue.Queue(_BACKLOG_MAX)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def __call__(self, job_id: str) -> None:
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait(job_id)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._loop, name="doorbell", daemon=True)
                    self._thread.start()

    def _loop(self) -> None:
        while True:
            if not self._bell.ring([self._jobs.get()]):
                # The broker is away. What waits would be tried in vain, one after the other: the sweeper rings for all of it.
                with self._jobs.mutex:
                    self._jobs.queue.clear()


def make_notifier(settings: Settings) -> Callable[[str], None]:
    """What the API calls with the id of every new job: returns at once, whatever the broker does."""
    return Notifier(settings)


def check_broker(settings: Settings) -> None:
    """Raise `Unavailable` unless the broker answers."""
    url = _broker_url(settings)
    if not url.startswith(("redis://", "rediss://")):
        return
    try:
        with contextlib.closing(_redis(url)) as client:
            client.ping()
    except redis.RedisError as error:
        raise Unavailable(
            f"the broker cannot be reached: {error}", remedy="Check AMPREF_BROKER_URL and that Redis is up"
        ) from error


def check_workers(settings: Settings, *, hostname: str | None = None, timeout: float = 5.0) -> list[str]:
    """Names of the workers that answer through the broker; raises `Unavailable` when none does.

    Args:
      hostname: ask only this machine's workers, of which one is enough.
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
    worker.runner.catalog.check()
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


def _broker_url(settings: Settings) -> str:
    if settings.broker_url is None:
        raise Unavailable(
            "no broker is set, and Celery needs one",
            key="AMPREF_BROKER_URL",
            expected="redis://HOST:PORT/DB",
            remedy="Set it, or use `ampref up`, whose workers need no broker",
        )
    return settings.broker_url


def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=_CONNECT_SEC, socket_connect_timeout=_CONNECT_SEC)


_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    """`app`, for `celery -A workers.app`: made from the environment when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "app" not in _made:
        settings = Settings.load()
        _made["app"] = make_celery(settings)
        _made["worker"] = Worker(_made["app"], settings)
    return _made["app"]


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
