"""The child's half of a lock job: write the files of a version.

The frames are read where they lie, through a memory map, one member at a time. The results of the readiness tests are kept with
the version: all of them in a report of its own, the statuses in the manifest, the checklist in the catalog.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amp_core.admission import assemble
from amp_core.digests import digest_of
from amp_core.progress import Progress
from amp_core.readiness import TEST_IDS, skip_report
from amp_core.strict_json import read_json
from amp_core.verify.checklist import outcome
from ampref_workers.members import load_and_check, open_members
from ampref_workers.protocol import (
    TESTS_OFF,
    VERIFICATION,
    VERSION_FOLDER,
    LockedFile,
    LockReport,
    LockRequest,
)

__all__ = ["handle"]


def handle(job_dir: Path, request: LockRequest, report: Progress) -> LockReport:
    """Check the members and write the version's files into `VERSION_FOLDER`.

    Raises:
      IntegrityError: a feature is not finite, or a member is not as it was scored.
      AmprefError: as `load_and_check`.
    """
    members = open_members(job_dir)
    robot, checks = load_and_check(request.robot, members, lambda share, text: report(0.5 * share, text))
    verification = _read_verification(job_dir, request)
    folder = job_dir / VERSION_FOLDER
    folder.mkdir()
    bundle, full_report = assemble(
        members,
        folder,
        name=request.name,
        version=request.version,
        robot=robot,
        select=request.select,
        waivers=request.waivers,
        checks=checks,
        verification=verification,
        report_name=request.report_name,
        progress=lambda frames, total: report(0.5 + 0.5 * frames / max(total, 1), "writing the frames"),
    )
    data = (folder / request.report_name).read_bytes()
    # The catalog keeps it without the figures, which fill megabytes.
    checklist = {key: full_report[key] for key in ("ready", "groups", "waivers")}
    return LockReport(
        files=tuple(LockedFile(file.name, file.size, file.sha256) for file in bundle.files),
        manifest=bundle.manifest.name,
        verification=LockedFile(request.report_name, len(data), digest_of(data)),
        dataset_hash=bundle.dataset_hash,
        feature_code_hash=bundle.feature_code_hash,
        num_clips=bundle.num_clips,
        num_frames=bundle.num_frames,
        readiness=checks | checklist | {"tests": outcome(verification), "duplicates": list(bundle.duplicates)},
        coverage=bundle.coverage,
        duplicates=bundle.duplicates,
    )


def _read_verification(job_dir: Path, request: LockRequest) -> dict[str, Any]:
    """The report of the readiness tests; where none was to run, one with every test skipped."""
    if request.verified:
        report: dict[str, Any] = read_json((job_dir / VERIFICATION).read_bytes())
        return report
    subject = {"robot": request.robot.name, "dataset": request.name, "version": request.version}
    return {"status": "SKIP", "subject": subject, "tests": [skip_report(test, TESTS_OFF) for test in TEST_IDS]}
