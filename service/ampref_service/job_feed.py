"""Jobs for those who follow them: one poller a process, whatever their number."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncGenerator, Iterator

import anyio
import anyio.to_thread
import structlog

from amp_core.errors import Unavailable
from ampref_service.catalog import Catalog, job_rows
from ampref_service.catalog.records import Job

log = structlog.get_logger("ampref_service.job_feed")


class JobFeed:
    """Looks at all followed jobs with one query an interval, while there are any. Of one event loop.

    Args:
      every_sec: how often it looks.
      max_followers: how many readers there may be.
    """

    def __init__(self, catalog: Catalog, *, every_sec: float, max_followers: int) -> None:
        self._catalog = catalog
        self._every_sec = every_sec
        self._max_followers = max_followers
        self._followers: Counter[str] = Counter()  # By job.
        self._jobs: dict[str, Job | None] = {}  # As they were last read; None for one that is gone.
        self._poller: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def check_room(self) -> None:
        """Raise `Unavailable` where one more reader would be too many."""
        if (count := self._followers.total()) >= self._max_followers:
            raise Unavailable(
                f"{count} streams of jobs are open already",
                expected=f"at most {self._max_followers} (AMPREF_MAX_STREAMS)",
                remedy="Ask for the job itself now and then (GET /v1/jobs/{job_id}), or try again in a moment",
            )

    async def follow(self, job: Job) -> AsyncGenerator[Job, None]:
        """The job as it is and after each change, to its end."""
        with self._join(job):
            while True:
                yield job
                while not job.finished:
                    news, latest = self._news, self._jobs[job.id]
                    if latest is None:
                        return
                    if latest.revision != job.revision:
                        job = latest
                        break
                    await news.wait()
                else:
                    return

    async def close(self) -> None:
        """Stop looking."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])

    @contextlib.contextmanager
    def _join(self, job: Job) -> Iterator[None]:
        self._followers[job.id] += 1
        latest = self._jobs.setdefault(job.id, job)
        if latest is not None and latest.revision < job.revision:
            self._jobs[job.id] = job
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            self._followers[job.id] -= 1
            if not self._followers[job.id]:
                del self._followers[job.id], self._jobs[job.id]

    async def _poll(self) -> None:
        limiter = anyio.CapacityLimiter(1)  # A slow catalog takes no more than one thread from the requests.
        try:
            while self._followers:
                revisions = {job.id: job.revision for job in self._jobs.values() if job is not None and not job.finished}
                read = functools.partial(_read_changes, self._catalog, revisions)
                try:
                    changes = await anyio.to_thread.run_sync(read, limiter=limiter)
                except Exception as error:  # Readers wait for it: it goes on.
                    log.warning("jobs_not_read", error=str(error))
                    changes = {}
                for job_id, job in changes.items():
                    if job_id in self._jobs:
                        self._jobs[job_id] = job
                if changes:
                    self._news.set()
                    self._news = asyncio.Event()
                await asyncio.sleep(self._every_sec)
        finally:
            self._poller = None


def _read_changes(catalog: Catalog, revisions: dict[str, int]) -> dict[str, Job | None]:
    with catalog.session() as session:
        return job_rows.read_changes(session, revisions)
