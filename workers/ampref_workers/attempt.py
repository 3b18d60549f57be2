"""One attempt at a job, as the code of its kind sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amp_core.errors import NotFound
from amp_core.progress import scale_progress
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog
from ampref_service.jobs import Claim, JobQueue
from ampref_service.settings import Settings
from ampref_service.uploads import upload_limits
from ampref_workers import sandbox
from ampref_workers.heartbeat import Heartbeat
from ampref_workers.protocol import M, Message, NoReport, Reading, SandboxLimits

__all__ = ["Attempt", "child_limits", "reading"]


@dataclass(frozen=True)
class Attempt:
    """A claimed job with what its work needs.

    Args:
      folder: private to this attempt; removed at its end.
      heartbeat: carries progress, has `should_stop`, and repeats writes.
      command: what the sandbox starts.
      threads: of the physics.
    """

    claim: Claim
    folder: Path
    heartbeat: Heartbeat
    settings: Settings
    catalog: Catalog
    blobs: BlobStore
    queue: JobQueue
    command: Sequence[str]
    threads: int

    def run_child(
        self, request: Message, report: type[M], limits: SandboxLimits, *, begin: float = 0.0, end: float = 1.0
    ) -> M | NoReport:
        """Have a child do the request and report; its progress is the job's from `begin` to `end`."""
        return sandbox.run(
            self.folder,
            request,
            report,
            limits,
            on_progress=scale_progress(self.heartbeat.report, begin, end),
            should_stop=self.heartbeat.should_stop,
            command=self.command,
        )

    def store(self, path: Path) -> str:
        """Put a file into the blob store; its digest."""
        return self.heartbeat.persist(lambda: self.blobs.put_file(path))

    def fetch(self, digest: str) -> Path:
        """A verified blob as a local file: where it lies, or a copy in the folder where blobs are remote.

        Raises:
          IntegrityError: it is missing or damaged; that was reported.
        """
        path = self.blobs.local_path(digest) if self.blobs.exists(digest) else None
        if path is not None:
            self.blobs.verify_once(digest)
            return path
        path = self.folder / "blobs" / digest.removeprefix("sha256:")
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            self.copy(digest, path)
        return path

    def copy(self, digest: str, target: Path) -> None:
        """A verified copy of a blob as a new file; raises as `fetch` does."""
        try:
            self.blobs.fetch(digest, target)
        except NotFound:
            raise self.blobs.refuse(digest, None, "is not there") from None


def child_limits(settings: Settings, timeout_sec: float, threads: int) -> SandboxLimits:
    """Of a child whose threads may all be busy all the while: the clock is to end it, as that is what should be reported."""
    cpu = int(max(2, threads) * timeout_sec) + 5
    return SandboxLimits(timeout_sec, settings.job_memory_mb, cpu_sec=cpu, nice=settings.job_nice)


def reading(settings: Settings, source_format: str, options: Mapping[str, Any]) -> Reading:
    """How an upload is read again, under the operator's limits."""
    return Reading(source_format, options.get("fps"), options.get("quat_order"), upload_limits(settings))
