"""Jobs for those who follow them: one poller a process, whatever their number."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import AsyncGenerator, Iterator

import anyio
import anyio.to_thread

from ampref_service.catalog import Catalog, job_rows
from ampref_service.catalog.records import Job
from ampref_service.poller import Poller


class JobFeed(Poller):
    """Looks at all followed jobs with one query an interval."""

    streams = "streams of jobs"
    remedy = "Ask for the job itself now and then (GET /v1/jobs/{job_id}), or try again in a moment"
    failure_event = "jobs_not_read"

    def __init__(self, catalog: Catalog, *, every_sec: float, max_followers: int) -> None:
        super().__init__(every_sec=every_sec, max_followers=max_followers)
        self._catalog = catalog
        self._followers: Counter[str] = Counter()  # By job.
        self._jobs: dict[str, Job | None] = {}  # As they were last read; None for one that is gone.
        self._thread: anyio.CapacityLimiter | None = None

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

    @contextlib.contextmanager
    def _join(self, job: Job) -> Iterator[None]:
        self._followers[job.id] += 1
        latest = self._jobs.setdefault(job.id, job)
        if latest is not None and latest.revision < job.revision:
            self._jobs[job.id] = job
        self._start()
        try:
            yield
        finally:
            self._followers[job.id] -= 1
            if not self._followers[job.id]:
                del self._followers[job.id], self._jobs[job.id]

    def _count_followers(self) -> int:
        return self._followers.total()

    async def _look(self) -> None:
        # A slow catalog takes no more than one thread from the requests.
        self._thread = self._thread or anyio.CapacityLimiter(1)
        revisions = {job.id: job.revision for job in self._jobs.values() if job is not None and not job.finished}
        read = functools.partial(_read_changes, self._catalog, revisions)
        changes = await anyio.to_thread.run_sync(read, limiter=self._thread)
        for job_id, job in changes.items():
            if job_id in self._jobs:
                self._jobs[job_id] = job
        if changes:
            self._announce()


def _read_changes(catalog: Catalog, revisions: dict[str, int]) -> dict[str, Job | None]:
    with catalog.session() as session:
        return job_rows.read_changes(session, revisions)
