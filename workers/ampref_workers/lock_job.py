"""The worker's half of a lock job: gather a version's members, test them, write its files, show the version."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import Any, NamedTuple

from amp_core.errors import Conflict, IntegrityError, Unavailable
from amp_core.readiness import TEST_IDS
from ampref_service.catalog import datasets, locking, selection
from ampref_service.catalog.engine import Session
from ampref_service.catalog.records import Job, RolloutSource, Select, SelectedRollout, VersionFile, VersionMember
from ampref_service.settings import Settings
from ampref_workers.attempt import Attempt, child_limits, reading
from ampref_workers.protocol import (
    MEMBERS,
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
    decode,
)

__all__ = ["run"]

_TESTS_SHARE = 0.9  # Of the progress: the tests take far longer than writing the version.
_LOCK_FILE_MB = 1 << 20  # 1 TiB, which is no limit in practice: the size of a version is not bounded.
_REASON_CHARACTERS = 400
_MOST_FAILURES = 5  # Quoted in an error.
_SELECTED = "selected.jsonl"
_PART = 500  # Rollouts whose sources are asked for at once.


def run(attempt: Attempt) -> NoReport | Job:
    """Lock a version, if its members pass the readiness tests or their failures are waived; the job where that has ended."""
    job, settings = attempt.claim.job, attempt.settings
    assert job.version_id is not None
    with attempt.catalog.session() as session:
        version = datasets.get_version_by_id(session, job.version_id)
        rollouts = _select(session, attempt, Select.from_dict(version.select))
    attempt.heartbeat.report(0.0, "gathering the arrays")
    if not _gather(attempt, rollouts):
        return Stopped()
    with_tests = bool(rollouts and settings.lock_test_ids)
    robot = RobotReference(version.robot, rollouts[0].robot_digest if rollouts else "", tuple(map(str, settings.robots)))
    waivers = tuple(job.payload.get("waivers") or ())
    if with_tests:
        verification = attempt.run_child(
            VerifyRequest(
                name=version.dataset,
                version=version.version,
                robot=robot,
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
            select=version.select,
            verified=with_tests,
            waivers=waivers,
            report_name=datasets.verification_name(version.version),
        ),
        LockReport,
        SandboxLimits(settings.lock_timeout_sec, settings.job_memory_mb, file_mb=_LOCK_FILE_MB, nice=settings.job_nice),
        begin=_TESTS_SHARE if with_tests else 0.0,
    )
    if isinstance(report, NoReport):
        return report
    return _publish(attempt, job.version_id, rollouts, report)


class _Rollout(NamedTuple):
    """What a worker remembers of a member; the rest is a line in a file, which begins at byte `offset`."""

    name: str
    source_digest: str
    recipe_digest: str
    offset: int
    clip_id: str
    rollout_id: str
    robot_digest: str
    ranges: tuple[tuple[int, int, int], ...]


def _select(session: Session, attempt: Attempt, criteria: Select) -> list[_Rollout]:
    """The rollouts of a version, in the order of the segments in its file, which is `lock_bundle`'s.

    Each is a `Member` in the file `_SELECTED`, with digests where paths will be.
    """
    settings, rollouts = attempt.settings, []
    with open(attempt.folder / _SELECTED, "wb") as file:
        stream = selection.select_members(session, criteria)
        while part := list(islice(stream, _PART)):
            origins = selection.get_sources(session, [row.rollout_id for row in part]) if settings.lock_test_ids else {}
            for row in part:
                identity = row.name, row.source_digest, row.recipe_digest
                rollouts.append(
                    _Rollout(*identity, file.tell(), row.clip_id, row.rollout_id, sys.intern(row.robot_digest), row.ranges)
                )
                file.write(_make_member(settings, row, origins.get(row.rollout_id)).encode() + b"\n")
    return sorted(rollouts)


def _make_member(settings: Settings, row: SelectedRollout, origin: RolloutSource | None) -> Member:
    source = None
    if origin:
        options = reading(settings, origin.source_format, origin.read_options)
        source = MemberSource(path=origin.blob_digest, reading=options, recipe=origin.recipe, attempt=origin.attempt)
    columns = {field.name for field in fields(Member)} & {field.name for field in fields(SelectedRollout)}
    return Member(path=row.arrays_digest, source=source, **{name: getattr(row, name) for name in columns})


def _gather(attempt: Attempt, rollouts: Sequence[_Rollout]) -> bool:
    """Have the files of the members here, and the members in `MEMBERS`; False where the attempt is to stop."""
    with open(attempt.folder / _SELECTED, "rb") as lines, open(attempt.folder / MEMBERS, "wb") as file:
        for rollout in rollouts:
            if attempt.heartbeat.should_stop():
                return False
            lines.seek(rollout.offset)
            member = decode(lines.readline(), Member)
            source = member.source and replace(member.source, path=str(attempt.fetch(member.source.path)))
            file.write(replace(member, path=str(attempt.fetch(member.path)), source=source).encode() + b"\n")
    (attempt.folder / _SELECTED).unlink()
    return True


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


def _publish(attempt: Attempt, version_id: str, rollouts: Sequence[_Rollout], report: LockReport) -> Job:
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

    def publish(session: Session) -> Mapping[str, Any]:
        version = locking.publish_version(
            session,
            version_id,
            members=(
                VersionMember(rollout.clip_id, rollout.rollout_id, rollout.name, start, end, tier)
                for rollout in rollouts
                if (rollout.name, rollout.source_digest, rollout.recipe_digest) not in duplicates
                for start, end, tier in rollout.ranges
            ),
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
