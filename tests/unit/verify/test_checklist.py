"""The training-readiness checklist, from made-up findings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from verificationkit import failed, report, verification, warned

from amp_core.verify import FAIL, PASS, SKIP, WARN, Row
from amp_core.verify.checklist import WAIVED, checklist, decisive_row, document, is_ready, outcome, quote_decisive_row, row_text
from amp_core.verify.report import check

LOCKED = {"normalization_stats": "stats.json sha256:1", "manifest": "manifest.json sha256:2", "feature_code_hash": "sha256:3"}


def criteria(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for group in groups for one in group["criteria"]}


def test_a_locked_version_that_passed_everything_is_ready() -> None:
    groups = checklist(verification(), locked=LOCKED)
    assert [group["name"] for group in groups] == [
        "Feature parity",
        "Reference quality gates",
        "Determinism & sanity",
        "Artifacts locked",
    ]
    assert {one["status"] for one in criteria(groups).values()} == {PASS}
    assert is_ready(groups)
    found = criteria(groups)
    assert found["All components MAE < 0.0001"]["evidence"].startswith("mae.root_lin_vel 5e-05 m/s (< 0.0001 m/s), clip squat")
    assert found["Tier 0 clips identified"]["evidence"] == "2 of 2 clips are Tier 0"
    assert found["Load support >= 85 % mean"]["evidence"] == "mean_sum_fn_over_mg 0.97 (>= 0.85), clip walk"
    assert found["Dataset version manifest"]["evidence"] == LOCKED["manifest"]
    assert json.loads(json.dumps(groups, allow_nan=False)) == groups


def test_every_test_decides_something() -> None:
    asked = {one["test"] for one in criteria(checklist(verification())).values()}
    assert asked == {"1A", "1B", "1C", "2", "3", "4", "5", "6", "7", "smoke", None}


def test_nothing_is_ready_before_it_is_locked() -> None:
    groups = checklist(verification())
    assert not is_ready(groups)
    assert [one["status"] for one in groups[-1]["criteria"]] == [SKIP] * 3


@pytest.mark.parametrize("test", ["1A", "1B", "1C", "2", "3", "4", "5", "6", "7", "smoke"])
def test_a_failure_or_a_test_that_was_not_run_stands_against_it(test: str) -> None:
    for one in (failed(test), report(test, SKIP, "JAX is missing")):
        groups = checklist(verification(one), locked=LOCKED)
        assert not is_ready(groups), one.status
        told = [c for c in criteria(groups).values() if c["test"] == test]
        assert one.status in {c["status"] for c in told}
        assert any(one.reason in c["evidence"] for c in told)


def test_a_criterion_looks_at_its_own_rows_alone() -> None:
    rows = (check("mae.joint_pos", 1e-6, "<", 1e-4), check("corr.joint_vel", 0.5, ">", 0.99))
    found = criteria(checklist(verification(report("1A", FAIL, "correlation", rows))))
    assert found["All components MAE < 0.0001"]["status"] == PASS
    assert found["Velocity correlation > 0.99"]["status"] == FAIL


def test_a_waived_failure_is_told_and_borne() -> None:
    groups = checklist(verification(failed("6")), [{"test": "6", "reason": "two clips only"}], LOCKED)
    found = criteria(groups)["Distribution sanity"]
    assert (found["status"], found["waiver"]) == (WAIVED, "two clips only")
    assert next(group for group in groups if found in group["criteria"])["status"] == WAIVED
    assert is_ready(groups)


def test_a_waiver_of_what_passed_changes_nothing() -> None:
    assert checklist(verification(), [{"test": "6", "reason": "x"}]) == checklist(verification())


def test_a_warning_is_no_obstacle() -> None:
    groups = checklist(verification(warned("2")), locked=LOCKED)
    assert criteria(groups)["Yaw invariance verified"]["status"] == WARN
    assert is_ready(groups)


def test_what_is_not_tier_0_is_no_training_data() -> None:
    found = verification()
    found.subject["clips"][0]["tier"] = 1
    groups = checklist(found, locked=LOCKED)
    line = criteria(groups)["Tier 0 clips identified"]
    assert (line["status"], line["evidence"]) == (FAIL, "1 of 2 clips are Tier 0; not clip0 (Tier 1)")
    assert not is_ready(groups)
    waived = criteria(checklist(found, [{"test": "7", "reason": "a curriculum"}], LOCKED))["Tier 0 clips identified"]
    assert (waived["status"], waived["waiver"]) == (WAIVED, "a curriculum")


def test_a_robot_on_the_ground_is_told_by_the_criterion_of_the_tiers() -> None:
    rows = (check("max_tilt_deg", 95.0, "<=", 60.0, unit="deg", where="clip walk"),)
    line = criteria(checklist(verification(report("7", FAIL, "fallen", rows))))["Tier 0 clips identified"]
    assert line["status"] == FAIL
    assert "max_tilt_deg 95 deg (<= 60 deg), clip walk" in line["evidence"]


@pytest.mark.parametrize(
    ("name", "row", "status"),
    [
        ("Load support >= 85 % mean", check("mean_sum_fn_over_mg", 0.7, ">=", 0.6), FAIL),
        ("Load support >= 85 % mean", check("mean_sum_fn_over_mg", 0.86, ">=", 0.6), PASS),
        ("Load support >= 85 % mean", check("mean_sum_fn_over_mg", float("nan"), ">=", 0.6), FAIL),
        ("Harness contribution <= 15 % at p90", check("p90_stab_force_over_mg", 0.3, "<=", 0.4), FAIL),
        ("Unloaded frames <= 10 %", check("unloaded_frame_rate", 0.2, "<=", 0.3), FAIL),
    ],
)
def test_a_criterion_keeps_the_limit_in_its_name_for_tier_1_too(name: str, row: Row, status: str) -> None:
    line = criteria(checklist(verification(report("7", PASS, "", (row,)))))[name]
    assert line["status"] == status
    assert any(limit in line["evidence"] for limit in ("(>= 0.85)", "(<= 0.15)", "(<= 0.1)"))


def test_no_clip_of_tier_0_is_a_failure() -> None:
    found = verification()
    found.subject["clips"][0]["tier"] = found.subject["clips"][1]["tier"] = 1
    assert criteria(checklist(found))["Tier 0 clips identified"]["status"] == FAIL


def test_the_figure_that_is_quoted_is_the_one_nearest_to_its_threshold() -> None:
    rows = [
        check("small", 0.1, "<=", 1.0).to_dict(),
        check("large", 0.9, "<=", 1.0).to_dict(),
        check("least", 2.0, ">=", 1.0).to_dict(),
        check("same", 0, "==", 0).to_dict(),
        Row("told", 5.0, PASS).to_dict(),
    ]
    assert decisive_row(rows) == rows[1]
    assert quote_decisive_row(rows) == "large 0.9 (<= 1); the worst of 4 figures"
    worse = [*rows, check("bad", float("nan"), "<=", 1.0).to_dict(), check("beyond", 1.5, "<=", 1.0).to_dict()]
    assert decisive_row(worse) == worse[5]
    assert decisive_row([]) is None
    assert quote_decisive_row([]) == ""
    assert row_text(rows[4]) == "told 5"


def test_the_document_is_strict_json() -> None:
    odd = report("smoke", figures={"loss": [1.0, float("nan"), float("inf")]})
    made = document(verification(odd), [{"test": "6", "reason": "x"}], LOCKED)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["tests"][-1]["figures"]["loss"] == [1.0, None, None]
    assert made["ready"] is True
    assert made["waivers"] == [{"test": "6", "reason": "x"}]
    assert outcome(made)[0] == {"id": "1A", "name": "1A feature assembly", "status": PASS, "reason": ""}
