"""The parity and readiness tests: functions that test a subject and return a report.

    verification = verify(subject, only=None, nthread=2, seed=0, progress=None)
    verification.status, verification.failed, verification.to_dict(), verification.summary()

`TESTS` lists them in the specification's order. docs/verification.md says what each measures, its threshold and what to do when
it fails. The names are loaded when they are first used: a report is read and shown without the tests and the physics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amp_core.lazy import lazy_exports

if TYPE_CHECKING:
    from amp_core.verify.context import Context
    from amp_core.verify.policy_side import PolicySide
    from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Row, TestReport, Verification
    from amp_core.verify.subject import Artifacts, Clip, Subject
    from amp_core.verify.suite import TESTS, Test, verify
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "amp_core.verify.context": ("Context",),
            "amp_core.verify.policy_side": ("PolicySide",),
            "amp_core.verify.report": ("FAIL", "PASS", "SKIP", "WARN", "Row", "TestReport", "Verification"),
            "amp_core.verify.subject": ("Artifacts", "Clip", "Subject"),
            "amp_core.verify.suite": ("TESTS", "Test", "verify"),
        },
    )

__all__ = [
    "FAIL", "PASS", "SKIP", "TESTS", "WARN",
    "Artifacts", "Clip", "Context", "PolicySide", "Row", "Subject", "Test", "TestReport", "Verification",
    "verify",
]  # fmt: skip
