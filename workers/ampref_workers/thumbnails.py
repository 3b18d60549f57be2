"""Thumbnails of rollouts, drawn beside the jobs: some at a time, in a child that only works where the processor is idle.

A rollout whose child crashes has failed once, and those that were to come after it are tried again. Without the extra
`[render]` or a GL nothing is drawn, which is said once.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from amp_core.errors import AmprefError, NotFound
from amp_core.render.gl import APT_REMEDY, GlProbe, NoGraphics
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, thumbnails
from ampref_service.catalog.tables import MOST_THUMBNAIL_FAILURES
from ampref_service.catalog.thumbnails import Thumbnail, ThumbnailClaim
from ampref_service.settings import Settings
from ampref_workers import sandbox
from ampref_workers.protocol import (
    Failed,
    HostFault,
    NoReport,
    NoRoom,
    Refused,
    RobotReference,
    SandboxLimits,
    Stopped,
    ThumbnailReport,
    ThumbnailRequest,
    thumbnail_name,
)

__all__ = ["Thumbnailer"]

log = structlog.get_logger("ampref_workers.thumbnails")

_BATCH = 4
_TIMEOUT_SEC = 900.0
"""Of the clock for a batch. It ends a GL that hangs: among busy jobs a child may get a hundredth of a processor."""
_LEASE_SEC = _TIMEOUT_SEC + 300.0
_CPU_SEC = 60
"""Of the processor, of which a batch takes 2 s."""
_MOST_NICE = 19
_ADOPT_SEC = 3600.0
"""How often rollouts without a row are looked for: a process of an earlier release may add some."""
_PACKAGES = ("PIL", "OpenGL")


class ThumbnailsOff(AmprefError):
    """This worker cannot draw."""

    slug = "thumbnails-off"
    title = "No thumbnails are made here"


@dataclass
class Thumbnailer:
    """Makes the thumbnails that are due; one a worker process.

    Args:
      robots: names and digests of what this worker has installed.
      command: what the sandbox starts.
    """

    settings: Settings
    catalog: Catalog
    blobs: BlobStore
    robots: Mapping[str, str]
    command: Sequence[str]
    _platform: str | None = None
    _adopt_at: float = 0.0
    _reported_ids: set[str] = field(default_factory=set)

    def make_due(self, should_stop: Callable[[], bool], should_rest: Callable[[], bool] = lambda: False) -> None:
        """Make the thumbnails that are due, until none is or `should_stop`.

        Args:
          should_rest: whether what is due waits for another call; asked before each batch.

        Raises:
          ThumbnailsOff: it never will.
        """
        self._adopt()
        while not should_stop() and not should_rest():
            with self.catalog.session() as session:
                if not thumbnails.is_due(session):
                    return
            # A worker without anything to draw does not load a GL.
            platform = self._platform = self._platform or _find_platform(self._nice)
            with self.catalog.begin() as session:
                digests = list(self.robots.values())
                claims = thumbnails.claim(session, digests, limit=_BATCH, lease_sec=_LEASE_SEC)
            if not claims:
                return
            open_ids = [claim.rollout_id for claim in claims]
            try:
                self._make(claims, open_ids, platform, should_stop)
            finally:
                with self.catalog.begin() as session:
                    thumbnails.release(session, open_ids)

    @property
    def _nice(self) -> int:
        return min(2 * self.settings.job_nice, _MOST_NICE)

    def _adopt(self) -> None:
        while time.monotonic() >= self._adopt_at:
            with self.catalog.begin() as session:
                count = thumbnails.adopt(session)
            if count:
                log.info("thumbnails_queued", count=count)
            else:
                self._adopt_at = time.monotonic() + _ADOPT_SEC

    def _make(self, claims: list[ThumbnailClaim], open_ids: list[str], platform: str, should_stop: Callable[[], bool]) -> None:
        """Draw a batch and keep what came of it; who is settled is taken from `open_ids`."""
        work = self.settings.data_dir / "work"
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(dir=work, prefix="thumbnails-"))
        try:
            exports = []
            for claim in list(claims):
                try:
                    exports.append(str(self._fetch(claim.arrays_digest, folder)))
                except AmprefError as error:
                    claims.remove(claim)
                    self._settle(claim, error.what, open_ids)
            if not exports:
                return
            robot = RobotReference(claims[0].robot, claims[0].robot_digest, tuple(map(str, self.settings.robots)))
            outcome = sandbox.run(
                folder,
                ThumbnailRequest(robot, platform, tuple(exports), is_idle=self._nice > 0),
                ThumbnailReport,
                SandboxLimits(_TIMEOUT_SEC, self.settings.job_memory_mb, cpu_sec=_CPU_SEC, nice=self._nice),
                should_stop=should_stop,
                command=self.command,
            )
            self._keep(claims, outcome, folder, open_ids)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(
        self, claims: list[ThumbnailClaim], outcome: ThumbnailReport | NoReport, folder: Path, open_ids: list[str]
    ) -> None:
        """Store what a child has drawn, and count a failure of what it could not draw, or of what it ended at."""
        faults = outcome.faults if isinstance(outcome, ThumbnailReport) else ()
        for number, claim in enumerate(claims):
            path = folder / thumbnail_name(number)
            if path.exists():
                thumbnail = Thumbnail(self.blobs.put_file(path), path.stat().st_size)
                with self.catalog.begin() as session:
                    thumbnails.finish(session, claim.rollout_id, thumbnail)
                open_ids.remove(claim.rollout_id)
            elif number < len(faults):
                self._settle(claim, faults[number], open_ids, is_permanent=True)
            elif isinstance(outcome, Failed):
                self._settle(claim, outcome.reason, open_ids)
                return
            elif isinstance(outcome, HostFault | NoRoom | Refused):
                # Not the rollout's fault: it waits for the next look.
                reason = outcome.reason if isinstance(outcome, HostFault | NoRoom) else str(outcome.error.get("detail"))
                raise OSError(reason)
            elif isinstance(outcome, Stopped):
                return

    def _settle(self, claim: ThumbnailClaim, reason: str, open_ids: list[str], *, is_permanent: bool = False) -> None:
        """Count a failure, or the last one where another attempt would change nothing; a rollout is logged once."""
        with self.catalog.begin() as session:
            thumbnails.fail(session, claim.rollout_id, count=MOST_THUMBNAIL_FAILURES if is_permanent else 1)
        open_ids.remove(claim.rollout_id)
        if claim.rollout_id not in self._reported_ids:
            self._reported_ids.add(claim.rollout_id)
            log.warning("thumbnail_failed", rollout=claim.rollout_id, reason=reason)

    def _fetch(self, digest: str, folder: Path) -> Path:
        """A verified export as a local file.

        Raises:
          IntegrityError: it is missing or damaged; that was reported.
        """
        try:
            path = self.blobs.local_path(digest)
            if path is not None:
                self.blobs.verify_once(digest)
                return path
            path = folder / f"{digest.removeprefix('sha256:')}.npz"
            if not path.exists():
                self.blobs.fetch(digest, path)
        except NotFound:
            raise self.blobs.refuse(digest, None, "is not there") from None
        return path


def _find_platform(nice: int) -> str:
    """The GL to draw with; raises `ThumbnailsOff` where there is none, or the packages are missing."""
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ThumbnailsOff(f"the package {missing[0]!r} is not installed", remedy="pip install 'ampref[render]'")
    probe = GlProbe(nice=nice)
    try:
        return probe.find_platform()
    except (NoGraphics, ModuleNotFoundError) as error:
        raise ThumbnailsOff(str(error), remedy=APT_REMEDY) from error
    finally:
        probe.close()
