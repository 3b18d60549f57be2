"""What the service has open while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from amp_core.errors import NotFound, Unavailable
from amp_core.robot import Robot, load_robots
from ampref_service.answers import AnswerCache
from ampref_service.blobs import BlobStore, open_blobs
from ampref_service.catalog import Catalog, worker_rows
from ampref_service.catalog.records import JobTerms, RecipeRow
from ampref_service.damage import CatalogDamageLog
from ampref_service.jobs import JobQueue
from ampref_service.readers import ReaderPool
from ampref_service.recipes import plan_effort
from ampref_service.scenes import SceneStore
from ampref_service.settings import Settings
from ampref_service.spool import Spool

log = structlog.get_logger("ampref_service.services")

Notify = Callable[[str], None]
"""Wakes a worker for a job id. It may fail or be lost: the job table is the queue, and the sweeper calls it again."""


@dataclass(frozen=True)
class Services:
    """Everything that was opened at start-up."""

    settings: Settings
    catalog: Catalog
    blobs: BlobStore
    robots: Mapping[str, Robot]
    notify: Notify
    spool: Spool
    readers: ReaderPool
    scenes: SceneStore = field(default_factory=SceneStore)
    answers: AnswerCache = field(default_factory=AnswerCache)

    @property
    def queue(self) -> JobQueue:
        """The job queue with this service's settings."""
        return JobQueue(self.catalog, lease_sec=self.settings.lease_sec, max_attempts=self.settings.max_attempts)

    def job_terms(self, *, owner: str = "", priority: int = 0) -> JobTerms:
        """What a job is queued with, by this service's settings."""
        settings = self.settings

        def limit_rollout(duration_sec: float, recipe: RecipeRow) -> float:
            return settings.rollout_timeout(duration_sec, plan_effort(recipe.recipe))

        return JobTerms(settings.max_attempts, owner, priority, limit_rollout)

    def robot(self, name: str) -> Robot:
        """The installed robot `name`; `NotFound` lists those that there are."""
        try:
            return self.robots[name]
        except KeyError:
            raise NotFound(
                f"no robot {name!r} is installed here",
                key="robot",
                expected=f"one of {', '.join(sorted(self.robots))}",
                remedy="The operator installs robots with AMPREF_ROBOTS; they are never taken over HTTP",
            ) from None

    def close(self) -> None:
        """Close what was opened."""
        self.readers.close()
        self.catalog.close()

    def check_workers(self) -> None:
        """Raise `Unavailable` where no live worker takes jobs."""
        with self.catalog.session() as session:
            live = [worker for worker in worker_rows.list_workers(session) if worker.live]
        if not any(worker.state == "working" for worker in live):
            reasons = "".join(f"; {worker.name} is {worker.state}: {worker.reason}" for worker in live)
            raise Unavailable(f"no live worker takes jobs{reasons}", remedy="Start one, or mend what it names: ampref worker")

    def check_queue(self) -> None:
        """Raise `Unavailable` where jobs are due that no live worker can take."""
        with self.catalog.session() as session:
            reasons = worker_rows.stuck_robots(session)
        if reasons:
            raise Unavailable(
                f"a job that is due {'; another '.join(reasons)}",
                remedy="Start a worker that has the robot (AMPREF_ROBOTS), or cancel these jobs",
            )

    def ring(self, job_id: str) -> None:
        """Wake a worker for a job that was committed. A broken doorbell changes nothing: the sweeper rings again."""
        try:
            self.notify(job_id)
        except Exception as error:
            log.warning("notify_failed", job=job_id, error=f"{type(error).__name__}: {error}")


def open_services(
    settings: Settings,
    notify: Notify,
    robots: Mapping[str, Robot] | None = None,
    open_readers: Callable[[Settings, Spool], ReaderPool] = ReaderPool,
) -> Services:
    """Open the catalog, the blobs, the readers of uploads and, unless they are passed, the robots that `settings` name.

    Raises:
      RobotRefused: a robot cannot be used, or two have one name.
      Unavailable: the folder of uploads cannot be made.
    """
    robots = load_robots(settings.robots) if robots is None else robots
    catalog, spool = Catalog.open(settings.database_url), Spool(settings)
    blobs = open_blobs(settings.blob_url, CatalogDamageLog(catalog))
    return Services(settings, catalog, blobs, robots, notify, spool, open_readers(settings, spool))
