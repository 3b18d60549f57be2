"""Made-up verifications: what the tests might have found."""

from __future__ import annotations

from typing import Any

from amp_core.readiness import TEST_TITLES
from amp_core.verify import FAIL, PASS, SKIP, WARN, Row, TestReport, Verification
from amp_core.verify.report import check, worst

ROWS: dict[str, tuple[Row, ...]] = {
    "1A": (
        check("mae.joint_pos", 1e-7, "<", 1e-4, unit="rad", where="clip walk"),
        check("mae.root_lin_vel", 5e-5, "<", 1e-4, unit="m/s", where="clip squat"),
        check("corr.joint_vel", 0.9999, ">", 0.99),
    ),
    "6": (
        check("contact_rate.left_toe", 0.5, "<=", 0.95),
        check("std.joint_pos.left_knee", 0.2, ">", 0.01),
    ),
    "7": (
        check("mean_sum_fn_over_mg", 0.97, ">=", 0.85, where="clip walk"),
        check("p90_stab_force_over_mg", 0.04, "<=", 0.15, where="clip walk"),
        check("unloaded_frame_rate", 0.02, "<=", 0.10, where="clip walk"),
    ),
}


def report(test: str, status: str = PASS, reason: str = "", rows: tuple[Row, ...] | None = None, **more: Any) -> TestReport:
    """A test's report; without rows of its own, those of a good subject."""
    found = ROWS.get(test, (check("differing", 0, "==", 0),)) if rows is None else rows
    if status == SKIP:
        found = ()
    return TestReport(test, TEST_TITLES[test], status, reason, "what was measured", found, **more)


def verification(*changed: TestReport, clips: int = 2, **facts: Any) -> Verification:
    """A verification in which everything passed but what is given."""
    by_id = {one.id: one for one in changed}
    subject = {
        "robot": "wildrobot",
        "clips": [{"name": f"clip{i}", "tier": 0, "mode": "rollout", "frames": 50} for i in range(clips)],
        "frames": 50 * clips,
        "seconds": 1.0 * clips,
    }
    return Verification(subject | facts, tuple(by_id.get(test, report(test)) for test in TEST_TITLES))


def failed(test: str, name: str = "differing", value: float = 3.0) -> TestReport:
    """A test that failed by one row."""
    row = check(name, value, "<=", 1.0, where="clip walk")
    assert worst([row.status]) == FAIL
    return report(test, FAIL, f"{name} is wrong in clip walk: mend it", (row,))


def warned(test: str) -> TestReport:
    """A test with a warning."""
    return report(test, WARN, "look at clip walk", (check("maximum", 2.0, "<=", 1.0, warn=True),))
