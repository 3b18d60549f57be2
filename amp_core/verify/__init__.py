"""The parity and readiness tests: functions that test a subject and return a report.

    verification = verify(subject, only=None, nthread=2, seed=0, progress=None)
    verification.status, verification.failed, verification.to_dict(), verification.summary()

`TESTS` lists them in the seed's order. What each measures, its threshold and what to do when it fails: docs/verification.md.
"""

from amp_core.verify.context import Context
from amp_core.verify.policy_side import PolicySide
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Row, TestReport, Verification
from amp_core.verify.subject import Artifacts, Clip, Subject
from amp_core.verify.suite import TESTS, Test, verify

__all__ = [
    "FAIL", "PASS", "SKIP", "TESTS", "WARN",
    "Artifacts", "Clip", "Context", "PolicySide", "Row", "Subject", "Test", "TestReport", "Verification",
    "verify",
]  # fmt: skip
