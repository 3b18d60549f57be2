"""The child's half of the readiness tests that run before a lock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from amp_core.progress import Progress
from amp_core.strict_json import finite_data, format_json
from amp_core.verify import Subject, verify
from amp_core.verify.stored import stored_clip
from ampref_workers.members import load_and_check, open_members
from ampref_workers.protocol import TESTS_OFF, VERIFICATION, TestFailure, VerifyReport, VerifyRequest

__all__ = ["handle"]

_CHECKS_SHARE = 0.02  # Of the progress; hashing the arrays is quick beside testing them.


def handle(job_dir: Path, request: VerifyRequest, report: Progress) -> VerifyReport:
    """Test the members and leave the whole report as `VERIFICATION`."""
    members = open_members(job_dir)
    robot, _ = load_and_check(request.robot, members, lambda share, text: report(_CHECKS_SHARE * share, text))
    clips = []
    for member in members:
        source = member.source
        assert source is not None
        clips.append(
            stored_clip(
                name=member.name,
                tier=member.tier,
                recipe=source.recipe,
                attempt=source.attempt,
                arrays=member.path,
                ranges=member.ranges,
                source=source.path,
                source_digest=member.source_digest,
                reading={key: getattr(source.reading, key) for key in ("format", "fps", "quat_order")},
                limits=source.reading.limits,
                metrics=member.metrics,
            )
        )
    verification = verify(
        Subject(robot, tuple(clips), facts={"dataset": request.name, "version": request.version}),
        only=request.only,
        nthread=request.threads,
        progress=lambda share, text: report(_CHECKS_SHARE + (1.0 - _CHECKS_SHARE) * share, text),
    )
    # The operator left the other tests out, not the caller.
    tests = (test if test.id in request.only else replace(test, reason=TESTS_OFF) for test in verification.tests)
    verification = replace(verification, tests=tuple(tests))
    text = format_json(finite_data(verification.to_dict()))
    (job_dir / VERIFICATION).write_text(text, encoding="utf-8")
    return VerifyReport(tuple(TestFailure(test.id, test.name, test.reason) for test in verification.failed))
