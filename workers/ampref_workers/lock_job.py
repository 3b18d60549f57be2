"""The worker's half of a lock job: gather a version's members, test them, write its files, show the version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from amp_core.errors import Conflict, IntegrityError, Unavailable
from amp_core.readiness import TEST_IDS
from ampref_service.catalog import datasets, locking, selection
from ampref_service.catalog.engine import Session
from ampref_service.catalog.records import Job, RolloutSource, Select, SelectedRollout, VersionFile, VersionMember
from ampref_service.settings import Settings
from ampref_workers.attempt import Attempt, child_limits, reading
from ampref_workers.protocol import (
    VERSION_FOLDER,
    LockReport,
    LockRequest,
    Member,
    MemberSource,
    NoReport,
    Refused,
    RobotReference,
    SandboxLimits,
    Stopped,
    TestFailure,
    VerifyReport,
    VerifyRequest,
)

__all__ = ["run"]

_TESTS_SHARE = 0.9  # Of the progress: the tests take far longer than writing the version.
_LOCK_FILE_MB = 1 << 20  # 1 TiB, which is no limit in practice: the size of a version is not bounded.
_REASON_CHARACTERS = 400
_MOST_FAILURES = 5  # Quoted in an error.


def run(attempt: Attempt) -> NoReport | Job:
    """Lock a version, if its members pass the readiness tests or their failures are waived; the job where that has ended."""
    job, settings = attempt.claim.job, attempt.settings
    assert job.version_id is not None
    with attempt.catalog.session() as session:
        version = datasets.get_version_by_id(session, job.version_id)
        rollouts = sorted(
            selection.select_members(session, Select.from_dict(version.select)),
            # The order of the segments in the version's file, which is `lock_bundle`'s.
            key=lambda rollout: (rollout.name, rollout.source_digest, rollout.recipe_digest),
        )
        with_tests = bool(rollouts and settings.lock_test_ids)
        origins = selection.get_sources(session, [rollout.rollout_id for rollout in rollouts]) if with_tests else {}
    attempt.heartbeat.report(0.0, "gathering the arrays")
    files: dict[str, Path] = {}
    for digest in [rollout.arrays_digest for rollout in rollouts] + [origin.blob_digest for origin in origins.values()]:
        if attempt.heartbeat.should_stop():
            return Stopped()
        if digest not in files:
            files[digest] = attempt.fetch(digest)
    members = tuple(_member(settings, rollout, files, origins.get(rollout.rollout_id)) for rollout in rollouts)
    robot = RobotReference(version.robot, members[0].robot_digest if members else "", tuple(map(str, settings.robots)))
    waivers = tuple(job.payload.get("waivers") or ())
    if with_tests:
        verification = attempt.run_child(
            VerifyRequest(
                name=version.dataset,
                version=version.version,
                robot=robot,
                members=members,
                only=settings.lock_test_ids,
                threads=attempt.threads,
            ),
            VerifyReport,
            child_limits(settings, settings.verify_timeout_sec, attempt.threads),
            end=_TESTS_SHARE,
        )
        if isinstance(verification, NoReport):
            return verification
        waived_tests = {waiver["test"] for waiver in waivers}
        failures = [test for test in verification.failed if test.id not in waived_tests]
        if failures:
            error = _refuse_lock(version.dataset, version.version, failures)
            return Refused(error.to_dict() | {"tests": [asdict(test) for test in failures]})
    report = attempt.run_child(
        LockRequest(
            name=version.dataset,
            version=version.version,
            robot=robot,
            members=members,
            select=version.select,
            verified=with_tests,
            waivers=waivers,
            report_name=datasets.verification_name(version.version),
        ),
        LockReport,
        SandboxLimits(settings.lock_timeout_sec, settings.job_memory_mb, file_mb=_LOCK_FILE_MB),
        begin=_TESTS_SHARE if with_tests else 0.0,
    )
    if isinstance(report, NoReport):
        return report
    return _publish(attempt, job.version_id, rollouts, report)


def _member(settings: Settings, rollout: SelectedRollout, files: Mapping[str, Path], origin: RolloutSource | None) -> Member:
    source = (
        MemberSource(
            path=str(files[origin.blob_digest]),
            reading=reading(settings, origin.source_format, origin.read_options),
            recipe=origin.recipe,
            attempt=origin.attempt,
        )
        if origin
        else None
    )
    columns = {field.name for field in fields(Member)} & {field.name for field in fields(SelectedRollout)}
    return Member(path=str(files[rollout.arrays_digest]), source=source, **{name: getattr(rollout, name) for name in columns})


def _refuse_lock(name: str, version: str, failures: Sequence[TestFailure]) -> Conflict:
    """Why a version is not locked: the tests that failed, and what can be done."""
    reasons = "; ".join(
        f"{test.name}: {test.reason[: _REASON_CHARACTERS - 1] + '…' if len(test.reason) > _REASON_CHARACTERS else test.reason}"
        for test in failures[:_MOST_FAILURES]
    )
    more = f"; and {len(failures) - _MOST_FAILURES} more" if len(failures) > _MOST_FAILURES else ""
    options = " ".join(f'--waive {test.id}="REASON"' for test in failures)
    count = f"{len(failures)} test{'s' * (len(failures) > 1)}"
    return Conflict(
        f"{name}=={version} was not locked, because {count} of {len(TEST_IDS)} failed: {reasons}{more}",
        key="verification",
        expected="no test that fails, or a waiver for each that does",
        remedy=f"Mend what they name, or leave the clips out; or lock it again with {options} (waivers in the request's body)",
    )


def _publish(attempt: Attempt, version_id: str, rollouts: Sequence[SelectedRollout], report: LockReport) -> Job:
    """Store the version's files and the tests' report, then show the version: one transaction under the claim's token."""
    attempt.heartbeat.report(1.0, "storing the files")
    files = []
    for file in (*report.files, report.verification):
        digest = attempt.store(attempt.folder / VERSION_FOLDER / file.name)
        if digest != file.sha256:
            raise Unavailable(f"{file.name} changed between being written and being stored", remedy="Check the disk")
        try:
            attempt.blobs.verify(digest)
        except IntegrityError as error:
            # Not the members' fault: the next attempt writes it again.
            raise Unavailable(f"{file.name} cannot be read back as it was stored", remedy="Check the disk") from error
        media_type = "application/json" if file.name.endswith(".json") else "application/octet-stream"
        files.append(VersionFile(file.name, digest, file.size, media_type))
    duplicates = {(entry["name"], entry["digest"], entry["recipe_digest"]) for entry in report.duplicates}
    ranges = [
        VersionMember(rollout.clip_id, rollout.rollout_id, rollout.name, start, end, tier)
        for rollout in rollouts
        if (rollout.name, rollout.source_digest, rollout.recipe_digest) not in duplicates
        for start, end, tier in rollout.ranges
    ]

    def publish(session: Session) -> Mapping[str, Any]:
        version = locking.publish_version(
            session,
            version_id,
            members=ranges,
            files=files,
            dataset_hash=report.dataset_hash,
            feature_code_hash=report.feature_code_hash,
            manifest_digest=next(file.digest for file in files if file.name == report.manifest),
            num_clips=report.num_clips,
            num_frames=report.num_frames,
            readiness=report.readiness,
            coverage=report.coverage,
            actor=attempt.claim.job.actor,
        )
        return {"dataset": version.dataset, "version": version.version, "dataset_hash": version.dataset_hash}

    return attempt.heartbeat.persist(lambda: attempt.queue.complete(attempt.claim, work=publish))
