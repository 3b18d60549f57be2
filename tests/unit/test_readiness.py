"""The tests' names, and what may be said of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from amp_core.errors import InputRefused
from amp_core.readiness import MAX_REASON, TEST_IDS, TEST_TITLES, check_waivers, parse_tests, skip_report
from amp_core.verify import SKIP, TESTS, TestReport


def test_the_names_are_those_of_the_tests() -> None:
    assert {test.id: test.title for test in TESTS} == dict(TEST_TITLES)
    assert [test.id for test in TESTS] == list(TEST_IDS)


def test_a_skipped_test_is_reported_as_any_other() -> None:
    assert skip_report("1A", "no reason") == TestReport("1A", TEST_TITLES["1A"], SKIP, "no reason").to_dict()


@pytest.mark.parametrize(
    ("text", "ids"),
    [("all", TEST_IDS), (" None ", ()), ("7,1A", ("1A", "7")), ("smoke", ("smoke",)), ("1A, 1A", ("1A",))],
)
def test_tests_are_named_by_all_none_or_ids(text: str, ids: tuple[str, ...]) -> None:
    assert parse_tests(text) == ids


@pytest.mark.parametrize("text", ["", "8", "1A,,2", "1a", "all,none"])
def test_a_test_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(InputRefused, match="there is no test"):
        parse_tests(text)


def test_waivers_come_in_the_order_of_the_tests_and_hold_nothing_else() -> None:
    given = [{"test": "smoke", "reason": " a\ttiny  set ", "by": "me"}, {"test": "6", "reason": "x" * MAX_REASON}]
    assert check_waivers(given) == ({"test": "6", "reason": "x" * MAX_REASON}, {"test": "smoke", "reason": "a tiny set"})


@pytest.mark.parametrize(
    ("waivers", "said"),
    [
        ([{"test": "9", "reason": "x"}], "there is no test '9'"),
        ([{"reason": "x"}], "there is no test"),
        ([{"test": "6", "reason": "  "}], "the waiver of test 6 has no reason"),
        ([{"test": "6"}], "the waiver of test 6 has no reason"),
        ([{"test": "6", "reason": "x" * (MAX_REASON + 1)}], "a reason of 501 characters"),
        ([{"test": "6", "reason": "a"}, {"test": "6", "reason": "b"}], "test 6 is waived twice"),
    ],
)
def test_a_waiver_that_means_nothing_is_refused(waivers: list[dict[str, str]], said: str) -> None:
    with pytest.raises(InputRefused, match=said):
        check_waivers(waivers)


def test_naming_a_test_loads_no_physics() -> None:
    code = "import sys, amp_core.readiness; assert not {'mujoco', 'numpy', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
