"""The readiness tests before a lock: what is asked of the child, and what the child does.

`request`, `blocked` and `refused` run in the worker, `handle` in a child of its own before the one that writes the version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp_core.errors import Conflict
from amp_core.readiness import TEST_IDS

if TYPE_CHECKING:
    from amp_core.verify import Verification
    from ampref_service.catalog.records import SelectedRollout
    from ampref_service.catalog.sources import RolloutSource
    from ampref_service.settings import Settings
    from ampref_workers.child import Report

__all__ = ["REPORT", "TURNED_OFF", "blocked", "handle", "refused", "request"]

REPORT = "verification.json"
"""What the tests found, in the job folder."""

TURNED_OFF = "turned off by the operator's setting AMPREF_LOCK_TESTS"

_CHECKING = 0.02  # of the bar; hashing the arrays is quick beside testing them
_REASON_SHOWN = 400
_FAILURES_SHOWN = 5


def request(
    members: Sequence[SelectedRollout],
    sources: Mapping[str, RolloutSource],
    files: Mapping[str, Path],
    *,
    name: str,
    version: str,
    robot: str,
    settings: Settings,
) -> dict[str, Any]:
    """What the child needs to know to test a version's members.

    Args:
      sources: by rollout id.
      files: the exports and the uploaded bytes, by digest.
    """
    return {
        "kind": "verify",
        "name": name,
        "version": version,
        "robot": robot,
        "robots": [str(path) for path in settings.robots],
        "only": list(settings.lock_test_ids),
        "threads": settings.job_threads,
        "limits": {
            "max_bytes": settings.max_upload_bytes,
            "max_duration_sec": settings.max_duration_sec,
            "max_fps": settings.max_fps,
        },
        "members": [_member(member, sources[member.rollout_id], files) for member in members],
    }


def _member(member: SelectedRollout, source: RolloutSource, files: Mapping[str, Path]) -> dict[str, Any]:
    options = source.read_options
    return asdict(member) | {
        "path": str(files[member.arrays_digest]),
        "source": str(files[source.blob_digest]),
        "recipe": dict(source.recipe),
        "attempt": source.attempt,
        "reading": {
            "format": source.source_format,
            "fps": options.get("fps"),
            "quat_order": options.get("quat_order"),
        },
    }


def handle(job_dir: Path, request: dict[str, Any], report: Report) -> dict[str, Any]:
    """In the child: test the members and leave the whole report as `verification.json`.

    Returns:
      `failed`: `{id, name, reason}` of each test that failed.
    """
    from ampref_workers import locking

    robot, _ = locking.checked(request, lambda share, text: report(_CHECKING * share, text))

    from amp_core.formats import Limits
    from amp_core.verify import Subject, verify
    from amp_core.verify.checklist import plain
    from amp_core.verify.stored import stored_clip

    limits = Limits(**request["limits"])
    clips = [
        stored_clip(
            name=member["name"],
            tier=member["tier"],
            recipe=member["recipe"],
            attempt=member["attempt"],
            arrays=member["path"],
            ranges=[tuple(window) for window in member["ranges"]],
            source=member["source"],
            source_digest=member["source_digest"],
            reading=member["reading"],
            limits=limits,
        )
        # In the order in which the version will have them.
        for member in sorted(request["members"], key=lambda one: (one["name"], one["source_digest"], one["recipe_digest"]))
    ]
    subject = Subject(robot, tuple(clips), facts={"dataset": request["name"], "version": request["version"]})
    found = verify(
        subject,
        only=request["only"],
        nthread=request["threads"],
        progress=lambda share, text: report(_CHECKING + (1.0 - _CHECKING) * share, f"test {text}"),
    )
    found = _told_why(found, request["only"])
    text = json.dumps(plain(found.to_dict()), allow_nan=False, ensure_ascii=False)
    (job_dir / REPORT).write_text(text, encoding="utf-8")
    return {"failed": [{"id": test.id, "name": test.name, "reason": test.reason} for test in found.failed]}


def _told_why(found: Verification, asked: Sequence[str]) -> Verification:
    """With the reason of the tests that were not asked for: here it is the operator who did not."""
    tests = tuple(test if test.id in asked else replace(test, reason=TURNED_OFF) for test in found.tests)
    return replace(found, tests=tests)


def blocked(failed: Sequence[Mapping[str, str]], waivers: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The failures that nobody waived."""
    waived = {waiver["test"] for waiver in waivers}
    return [test for test in failed if test["id"] not in waived]


def refused(name: str, version: str, failures: Sequence[Mapping[str, str]]) -> Conflict:
    """Why a version is not locked: the tests that failed, and what can be done."""
    said = "; ".join(f"{test['name']}: {_short(test['reason'])}" for test in failures[:_FAILURES_SHOWN])
    more = f"; and {len(failures) - _FAILURES_SHOWN} more" if len(failures) > _FAILURES_SHOWN else ""
    options = " ".join(f'--waive {test["id"]}="REASON"' for test in failures)
    count = f"{len(failures)} test{'s' * (len(failures) > 1)}"
    return Conflict(
        f"{name}=={version} was not locked, because {count} of {len(TEST_IDS)} failed: {said}{more}",
        key="verification",
        expected="no test that fails, or a waiver for each that does",
        remedy=f"Mend what they name, or leave the clips out; or lock it again with {options} (waivers in the request's body)",
    )


def _short(text: str) -> str:
    return text if len(text) <= _REASON_SHOWN else text[: _REASON_SHOWN - 1] + "…"
