"""The broker as a doorbell: what the API rings when a job is due, and the Celery application that workers listen with.

A message says only that a job is due; the job table is the queue. Nobody who sends one waits long for the broker.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence

import redis
import structlog
from celery import Celery  # type: ignore[import-untyped]

from amp_core.errors import InputRefused, Unavailable
from ampref_service.settings import Settings

QUEUE = "ampref"
"""The Redis list of the messages."""

RING = "ampref.ring"
"""The task's name in messages; it takes the id of the job that it was rung for, which is for the logs only."""

log = structlog.get_logger("ampref_service.broker")

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
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.worker_concurrency,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the job goes on; its lease is in the database
    )
    return app


class Doorbell:
    """Sends messages, at once and without waiting long; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_celery(settings)
        # A ring does not wait for a broker that is away: the sweeper rings again.
        self._app.conf.broker_transport_options |= {"socket_timeout": _CONNECT_SEC, "max_retries": 0}
        self._redis = _connect_redis(_broker_url(settings))

    def ring(self, job_ids: Sequence[str]) -> bool:
        """Send one message for each job, less those that wait in the queue already: they find these jobs as well.

        Returns False, and raises nothing, where the broker is away.
        """
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
        """Messages that no worker has taken yet."""
        return 0 if self._redis is None else int(self._redis.llen(QUEUE))


class Notifier:
    """Rings for jobs from a thread, so that no request waits for the broker. Called with a job's id, it returns at once."""

    def __init__(self, settings: Settings) -> None:
        self._bell = Doorbell(settings)
        self._jobs: queue.Queue[str] = queue.Queue(_BACKLOG_MAX)
        threading.Thread(target=self._ring_waiting_jobs, name="doorbell", daemon=True).start()

    def __call__(self, job_id: str) -> None:
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait(job_id)

    def _ring_waiting_jobs(self) -> None:
        while True:
            if not self._bell.ring([self._jobs.get()]):
                # The broker is away, so each ring that waits would fail in its turn: the sweeper rings for all of them.
                with self._jobs.mutex:
                    self._jobs.queue.clear()


def check_broker(settings: Settings) -> None:
    """Raise `Unavailable` unless the broker answers."""
    client = _connect_redis(_broker_url(settings))
    if client is None:
        return
    try:
        with contextlib.closing(client):
            client.ping()
    except redis.RedisError as error:
        raise Unavailable(
            f"the broker cannot be reached: {error}", remedy="Check AMPREF_BROKER_URL and that Redis is up"
        ) from error


def _broker_url(settings: Settings) -> str:
    if settings.broker_url is None:
        raise Unavailable(
            "no broker is set, and Celery needs one",
            key="AMPREF_BROKER_URL",
            expected="redis://HOST:PORT/DB",
            remedy="Set it, or use `ampref up` or `ampref worker --until-empty`, which need no broker",
        )
    return settings.broker_url


def _connect_redis(url: str) -> redis.Redis | None:
    """A client, which connects on first use; None for a broker in memory; raises `InputRefused` for the URL's options."""
    if not url.startswith(("redis://", "rediss://")):
        return None
    try:
        client = redis.Redis.from_url(url, socket_timeout=_CONNECT_SEC, socket_connect_timeout=_CONNECT_SEC)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # Reads every option, and connects to nothing.
    except (redis.RedisError, ValueError, TypeError):
        raise InputRefused(
            "an option of the broker's URL cannot be used",
            key="AMPREF_BROKER_URL",
            expected="behind ? the options of redis-py, such as ssl_cert_reqs=required",
            remedy="Correct or remove it, then start again",
        ) from None
    return client
