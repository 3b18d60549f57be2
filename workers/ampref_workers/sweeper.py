"""What runs beside the jobs: taking jobs from silent workers, collecting blobs that no row names, reading those
that one does, purging old events, drawing thumbnails."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import structlog

from ampref_service.catalog import Catalog
from ampref_service.event_feed import purge_events
from ampref_service.integrity import scrub
from ampref_service.webhooks import Deliverer
from ampref_workers.presence import Presence
from ampref_workers.runner import Runner
from ampref_workers.threads import running_thread
from ampref_workers.thumbnails import Thumbnailer, ThumbnailsOff

__all__ = [
    "collecting_blobs",
    "delivering_events",
    "keeping_presence",
    "making_thumbnails",
    "purging_events",
    "running_beside_jobs",
    "scrubbing_blobs",
    "sweeping_jobs",
]

log = structlog.get_logger("ampref_workers.sweeper")

_DELIVERERS = 4
_LOOK_SEC = 1.0
_PRESENCE_SEC = 1.0
_THUMBNAILS_SEC = 2.0
_BUSY_THUMBNAILS_SEC = 30.0
_THUMBNAILS_PAUSE_SEC = 60.0


@contextmanager
def running_beside_jobs(
    runner: Runner, *, ring: Callable[[Sequence[str]], object], on_resume: Callable[[], object]
) -> Iterator[None]:
    """Everything that a worker process does beside its jobs, while the block runs.

    Args:
      ring: takes the jobs that are due.
      on_resume: called when a paused worker can work again.
    """
    settings = runner.settings
    with (
        keeping_presence(runner.presence, on_resume),
        sweeping_jobs(runner, ring, every_sec=settings.sweep_sec),
        collecting_blobs(runner, every_sec=settings.blob_grace_sec),
        delivering_events(runner.catalog, allowed_hosts=settings.webhook_allow),
        scrubbing_blobs(runner),
        making_thumbnails(runner),
        purging_events(runner.catalog, days=settings.event_days, every_sec=settings.blob_grace_sec),
    ):
        yield


def sweeping_jobs(runner: Runner, ring: Callable[[Sequence[str]], object], *, every_sec: float) -> AbstractContextManager[None]:
    """Sweep the job table at once and then every `every_sec`, while the block runs; `ring` takes the jobs that are due."""

    def sweep(_end: threading.Event) -> None:
        wake = runner.sweep().wake
        if wake:
            ring(wake)

    return _repeating(sweep, "sweeper", every_sec, 0.0)


def collecting_blobs(runner: Runner, *, every_sec: float, first_after_sec: float | None = None) -> AbstractContextManager[None]:
    """Collect garbage blobs every `every_sec`, while the block runs; it has its own thread, as it may outlast a lease."""
    # Not at once: many services start together, and none of them should begin with reading a large store.
    first = min(every_sec, 60.0) if first_after_sec is None else first_after_sec
    return _repeating(lambda end: runner.collect(end.is_set), "collector", every_sec, first)


def scrubbing_blobs(runner: Runner, *, first_after_sec: float = 60.0, every_sec: float = 60.0) -> AbstractContextManager[None]:
    """Read all blobs again and again, slowly, while the block runs; of all processes on one catalog one does."""
    settings = runner.settings
    if not settings.scrub_mb_per_sec:
        return nullcontext()

    def work(end: threading.Event) -> None:
        scrub(runner.catalog, runner.blobs, mb_per_sec=settings.scrub_mb_per_sec, round_days=settings.scrub_days, end=end)

    return _repeating(work, "scrub", every_sec, first_after_sec)


def making_thumbnails(runner: Runner, *, every_sec: float = _THUMBNAILS_SEC) -> AbstractContextManager[None]:
    """Make the thumbnails that are due, while the block runs; where that cannot be done, it is said once."""
    if not runner.settings.thumbnails:
        return nullcontext()
    thumbnailer = Thumbnailer(runner.settings, runner.catalog, runner.blobs, runner.presence.robots, runner.command)
    resume_at, batch_at = 0.0, time.monotonic() + _BUSY_THUMBNAILS_SEC

    def should_rest() -> bool:
        """Beside jobs there is a batch now and then: even where it only fills gaps, its start costs them something."""
        nonlocal batch_at
        if runner.is_busy and time.monotonic() < batch_at:
            return True
        batch_at = time.monotonic() + _BUSY_THUMBNAILS_SEC
        return False

    def work(end: threading.Event) -> None:
        nonlocal resume_at
        if time.monotonic() < resume_at or runner.presence.reason is not None:
            return
        try:
            thumbnailer.make_due(end.is_set, should_rest)
        except ThumbnailsOff as error:
            resume_at = math.inf
            log.warning("thumbnails_off", reason=error.what, remedy=error.remedy)
        except Exception:
            resume_at = time.monotonic() + _THUMBNAILS_PAUSE_SEC
            raise

    return _repeating(work, "thumbnails", every_sec, every_sec)


def purging_events(catalog: Catalog, *, days: float, every_sec: float) -> AbstractContextManager[None]:
    """Purge the events that are older than `days`, every `every_sec`, while the block runs."""
    return _repeating(lambda end: purge_events(catalog, days=days), "purger", every_sec, every_sec)


@contextmanager
def delivering_events(catalog: Catalog, *, allowed_hosts: Collection[str]) -> Iterator[None]:
    """Deliver events to webhooks while the block runs; a receiver that hangs delays a few others at most."""
    deliverer = Deliverer(catalog, allowed_hosts)
    with ExitStack() as stack:
        for number in range(_DELIVERERS):
            name = f"deliverer_{number}"
            stack.enter_context(_repeating(lambda end: deliverer.deliver_due(end.is_set), name, _LOOK_SEC, _LOOK_SEC))
        yield


def keeping_presence(presence: Presence, ring: Callable[[], object]) -> AbstractContextManager[None]:
    """Keep a worker's row up to date while the block runs; `ring` is called when a paused worker can work again."""

    def refresh(_end: threading.Event) -> None:
        if presence.refresh():
            ring()

    return _repeating(refresh, "presence", _PRESENCE_SEC, _PRESENCE_SEC)


def _repeating(
    work: Callable[[threading.Event], object], name: str, every_sec: float, first_after_sec: float
) -> AbstractContextManager[None]:
    """A thread that repeats `work`; it outlives every error."""

    def repeat(end: threading.Event) -> None:
        pause = first_after_sec
        while not end.wait(pause):
            try:
                work(end)
            except Exception as error:
                log.warning(f"{name}_failed", error=str(error))
            pause = every_sec

    return running_thread(repeat, name)
