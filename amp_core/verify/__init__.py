"""The parity and readiness tests: functions that look at a subject and return a report.

    found = verify(subject, only=None, nthread=2, seed=0, progress=None)
    found.status, found.failed, found.to_dict(), found.summary()

`TESTS` lists them in the seed's order. What each measures, its threshold and what to do when it fails: docs/verification.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from amp_core.errors import InputRefused
from amp_core.verify import coverage, parity, sanity, symmetry
from amp_core.verify.context import Context, PolicySide, Test
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Row, TestReport, Verification
from amp_core.verify.subject import Artifacts, Clip, Subject

__all__ = [
    "FAIL", "PASS", "SKIP", "TESTS", "WARN",
    "Artifacts", "Clip", "Context", "PolicySide", "Row", "Subject", "Test", "TestReport", "Verification",
    "verify",
]  # fmt: skip


def _smoke(context: Context) -> TestReport:
    from amp_core.verify import smoke

    report: TestReport = smoke.run(context)
    return report


TESTS: tuple[Test, ...] = (
    Test("1A", "feature assembly", parity.feature_assembly),
    Test("1B", "physics integration", parity.physics_integration),
    Test("1C", "generator determinism", parity.generator_determinism),
    Test("2", "yaw invariance", symmetry.yaw_invariance),
    Test("3", "quaternion sign flip", symmetry.quaternion_sign),
    Test("4", "batch coverage", coverage.batch_coverage),
    Test("5", "contact consistency", coverage.contact_consistency),
    Test("6", "distribution sanity", sanity.distribution_sanity),
    Test("7", "harness contribution", sanity.harness_contribution),
    Test("smoke", "micro-train", _smoke),
)
"""Every test, in the seed's order."""

# About how long each takes beside the others on a version of a minute, for the bar alone.
_WEIGHT = {"1A": 1.0, "1B": 4.0, "1C": 6.0, "2": 8.0, "3": 2.0, "4": 1.0, "5": 1.0, "6": 4.0, "7": 0.2, "smoke": 60.0}


def verify(
    subject: Subject,
    only: Collection[str] | None = None,
    nthread: int = 2,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
    **seams: Any,
) -> Verification:
    """Run the tests on a subject.

    Args:
      only: ids of the tests to run; the others are SKIP with the reason `not asked for`.
      nthread: threads that may be used; no outcome depends on it.
      seed: of what the tests draw.
      progress: called with the share that is done, in [0, 1], and a few words; what it raises stops the work and is passed on.
      **seams: other fields of `Context`: another policy or generator in the place of the real one.

    Raises:
      InputRefused: `only` names a test that there is not.
    """
    ids = [test.id for test in TESTS]
    unknown = [name for name in only or () if name not in ids]
    if unknown:
        raise InputRefused(f"there is no test {unknown[0]!r:.40}", key="only", expected=f"of {', '.join(ids)}")
    chosen = [test for test in TESTS if only is None or test.id in only]
    context = Context(subject=subject, nthread=nthread, seed=seed, **seams)
    whole = sum(_WEIGHT[test.id] for test in chosen)
    reports, done = [], 0.0
    for test in TESTS:
        if test not in chosen:
            reports.append(TestReport(id=test.id, title=test.title, status=SKIP, reason="not asked for"))
            continue
        part = _Part(progress, done / whole, _WEIGHT[test.id] / whole, test.id)
        part(0.0, test.title)
        reports.append(_run(test, replace(context, progress=part), part))
        done += _WEIGHT[test.id]
    if progress is not None:
        progress(1.0, "verified")
    return Verification(subject=_facts(subject), tests=tuple(reports))


class _Part:
    """One test's part of the bar; it remembers what the one who watches raised, which is no finding of the test's."""

    def __init__(self, whole: Callable[[float, str], None] | None, begin: float, length: float, name: str) -> None:
        self._whole, self._begin, self._length, self._name = whole, begin, length, name
        self.raised: BaseException | None = None

    def __call__(self, share: float, text: str) -> None:
        if self._whole is None:
            return
        try:
            self._whole(min(1.0, self._begin + self._length * share), f"{self._name}: {text}")
        except BaseException as error:
            self.raised = error
            raise


def _run(test: Test, context: Context, part: _Part) -> TestReport:
    """A test's report; an error in it is a FAIL, not an end of the verification."""
    began = time.perf_counter()
    try:
        return test.run(context)
    except Exception as error:
        if part.raised is error:
            raise
        return TestReport(
            id=test.id,
            title=test.title,
            status=FAIL,
            reason=f"the test itself failed: {type(error).__name__}: {error}",
            wall_sec=time.perf_counter() - began,
        )


def _facts(subject: Subject) -> dict[str, Any]:
    """What was tested, JSON-ready."""
    from amp_core.engine import mujoco
    from amp_core.features import feature_code_hash
    from amp_core.version import GENERATOR_VERSION

    taken = [_frames(clip) for clip in subject.clips]
    return {
        "robot": subject.robot.name,
        "robot_digest": subject.robot.digest,
        "clips": [
            {
                "name": clip.name,
                "tier": clip.tier,
                "mode": clip.recipe.mode,
                "recipe_digest": clip.recipe.digest,
                "frames": frames,
                "ranges": [list(window) for window in clip.ranges],
            }
            for clip, frames in zip(subject.clips, taken, strict=True)
        ],
        "frames": sum(taken),
        "seconds": sum(taken) * subject.robot.control_dt,
        "feature_code_hash": feature_code_hash(),
        "generator_version": GENERATOR_VERSION,
        "mujoco_version": mujoco.__version__,
        **subject.facts,
    }


def _frames(clip: Clip) -> int:
    """How many frames are taken of a clip: none of one that cannot be read, which every test has told by its failure."""
    try:
        return len(clip.taken)
    except Exception:
        return 0
