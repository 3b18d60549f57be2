"""The ten tests by name: which of them run before a lock, and which failures are waived.

Only the standard library is needed here, so that the settings and the API know a test's name without loading the physics;
`amp_core.verify` has the tests themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amp_core.errors import InputRefused

__all__ = ["MAX_REASON", "TEST_IDS", "TEST_TITLES", "check_waivers", "parse_tests", "skip_report"]

TEST_TITLES: Mapping[str, str] = {
    "1A": "feature assembly",
    "1B": "physics integration",
    "1C": "generator determinism",
    "2": "yaw invariance",
    "3": "quaternion sign flip",
    "4": "batch coverage",
    "5": "contact consistency",
    "6": "distribution sanity",
    "7": "harness contribution",
    "smoke": "micro-train",
}
"""The subject of each test, by its id in the specification, in that order."""

TEST_IDS: tuple[str, ...] = tuple(TEST_TITLES)

MAX_REASON = 500
"""The most characters of a waiver's reason."""


def parse_tests(text: str) -> tuple[str, ...]:
    """The ids that `all`, `none` or a comma list names, in the specification's order.

    Raises:
      InputRefused: an unknown id, or nothing between two commas.
    """
    word = text.strip().lower()
    if word == "all":
        return TEST_IDS
    if word == "none":
        return ()
    ids = [part.strip() for part in text.split(",")]
    for test in ids:
        _check_id(test)
    return tuple(test for test in TEST_IDS if test in ids)


def check_waivers(waivers: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], ...]:
    """Waivers as `{test, reason}`, in the specification's order, with nothing else in them.

    Raises:
      InputRefused: an unknown test, one that is waived twice, or a reason that is empty or too long.
    """
    reasons: dict[str, str] = {}
    for waiver in waivers:
        test, reason = waiver.get("test"), waiver.get("reason")
        _check_id(test)
        assert isinstance(test, str)
        if test in reasons:
            raise InputRefused(f"test {test} is waived twice", key="waivers", expected="each test once, with one reason")
        reasons[test] = " ".join(reason.split()) if isinstance(reason, str) else ""
        length = len(reasons[test])
        if not 0 < length <= MAX_REASON:
            raise InputRefused(
                f"the waiver of test {test} has {f'a reason of {length} characters' if length else 'no reason'}",
                key="waivers.reason",
                expected=f"1 to {MAX_REASON} characters: why its failure is borne, for those who train on the version",
            )
    return tuple({"test": test, "reason": reasons[test]} for test in TEST_IDS if test in reasons)


def skip_report(test: str, reason: str) -> dict[str, Any]:
    """The report of a test that was not run, in the form of `TestReport.to_dict()`."""
    name = f"{test} {TEST_TITLES[test]}"
    empty: dict[str, Any] = {"measured": "", "rows": [], "figures": {}, "wall_sec": 0.0}
    return {"id": test, "name": name, "status": "SKIP", "reason": reason} | empty


def _check_id(test: object) -> None:
    if test not in TEST_TITLES:
        raise InputRefused(f"there is no test {str(test)[:40]!r}", key="test", expected=f"one of {', '.join(TEST_IDS)}")
