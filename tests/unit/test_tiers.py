"""Tiers: validity first, every failed gate named, thresholds exactly where the profile puts them."""

from __future__ import annotations

import json
import math

import pytest

from amp_core.errors import RecipeRefused
from amp_core.metrics import METRICS
from amp_core.recipe import GATE_PROFILE
from amp_core.strict_json import json_data
from amp_core.tiers import (
    DYNAMIC_PROFILES,
    GATE_PROFILES,
    MODE_GATE,
    SUPERSEDED_PROFILES,
    Classification,
    GateProfile,
    GateSpec,
    HeightShare,
    Tier,
    best_tier,
    classify,
    gate_profile,
    merit_order,
)

PROFILE = GATE_PROFILES["amp-0.11"]
RANGE = (0.35, 0.55)

GOOD: dict[str, float | int | None] = {
    **{metric.name: 0.0 for metric in METRICS},
    "mean_sum_fn_over_mg": 1.0,
    "contact_rate": 0.6,
    "height_std": 0.01,
    "height_min": 0.42,
    "height_max": 0.47,
    "finite_frame_rate": 1.0,
    "fell_at_frame": None,
}


def judged(mode: str = "rollout", **changed: float | None) -> Classification:
    return classify({**GOOD, **changed}, PROFILE, mode, height_range=RANGE)


def up(value: float) -> float:
    return math.nextafter(value, math.inf)


def down(value: float) -> float:
    return math.nextafter(value, -math.inf)


def test_a_good_clip_is_tier_0() -> None:
    verdict = judged()
    assert (verdict.tier, verdict.tier_reason) == (0, "All Tier 0 gates passed")
    assert all(gate.passed for gate in verdict.gates)
    assert 0 < verdict.score <= 1


def test_what_passes_all_tier_0_gates_needs_none_of_tier_1() -> None:
    gates = (GateSpec("contact_rate", ">=", 0.5, Tier.TIER_0), GateSpec("slip_rate", "<=", 0.1, Tier.TIER_1))
    profile = GateProfile("amp-test", gates)
    verdict = classify({**GOOD, "slip_rate": 0.2}, profile, "rollout", height_range=RANGE)
    assert (verdict.tier, verdict.tier_reason) == (Tier.TIER_0, "All Tier 0 gates passed")
    verdict = classify({**GOOD, "slip_rate": 0.2, "contact_rate": 0.4}, profile, "rollout", height_range=RANGE)
    assert verdict.tier == Tier.REJECTED


def test_the_order_of_merit_is_not_that_of_the_values() -> None:
    assert [tier.value for tier in Tier] == [0, 1, -1]
    assert sorted(Tier, key=lambda tier: tier.rank) == list(Tier)
    assert [tier.label for tier in Tier] == ["Tier 0", "Tier 1", "Rejected"]
    assert Tier.best([-1, 1]) is Tier.TIER_1
    assert Tier.worst([0, -1, 1]) is Tier.REJECTED
    assert json.dumps({"tier": Tier.REJECTED, str(Tier.TIER_1): Tier.TIER_0}) == '{"tier": -1, "1": 0}'


def test_the_best_rollout_of_a_clip() -> None:
    best_first = [
        merit_order(0, "rollout", 0),
        merit_order(0, "teacher_forced", 0),
        merit_order(1, "tracked", 80),
        merit_order(1, "rollout", 20),
        merit_order(1, "teacher_forced", 90),
        merit_order(-1, "rollout", 50),
        merit_order(-1, "rollout", 0),
        merit_order(0, "rollout", 0, profile="amp-0.11"),
        merit_order(-1, "rollout", 0, profile="amp-0.11"),
        merit_order(0, "tracked", 0, scaled=True),
    ]
    assert sorted(best_first) == best_first
    # A rollout that is Tier 0 as a whole is no better for the windows in it.
    assert merit_order(0, "rollout", 10) == merit_order(0, "tracked", 0)
    # The profiles of this release are for different motions, and the better verdict stands; of equals the usual one's.
    for_running = merit_order(0, "rollout", 0, profile="amp-0.12-dynamic")
    assert merit_order(0, "rollout", 0) < for_running < merit_order(1, "rollout", 0)


def test_every_profile_is_superseded_or_of_this_release() -> None:
    current = {GATE_PROFILE, DYNAMIC_PROFILES[GATE_PROFILE]}
    assert GATE_PROFILES.keys() - set(SUPERSEDED_PROFILES) == current
    assert set(SUPERSEDED_PROFILES) < GATE_PROFILES.keys()


# (metric, the last value that passes, the first that does not)
TIER_0_EDGES = [
    ("mean_sum_fn_over_mg", 0.85, down(0.85)),
    ("p90_stab_force_over_mg", 0.15, up(0.15)),
    ("unloaded_frame_rate", 0.10, up(0.10)),
    ("contact_rate", 0.3, down(0.3)),
    ("contact_rate", 0.95, up(0.95)),
    ("height_std", up(0.001), 0.001),
]
VALIDITY_EDGES = [
    ("max_tilt_deg", 60.0, up(60.0)),
    ("p95_pitch_deg", 30.0, up(30.0)),
    ("p95_roll_deg", 30.0, up(30.0)),
    ("height_min", 0.35, down(0.35)),
    ("height_max", 0.55, up(0.55)),
    ("nonfoot_contact_rate", 0.0, 0.001),
    ("finite_frame_rate", 1.0, down(1.0)),
    ("solver_warnings", 0.0, 1.0),
]
TIER_1_EDGES = [
    ("mean_sum_fn_over_mg", 0.60, down(0.60)),
    ("p90_stab_force_over_mg", 0.40, up(0.40)),
    ("unloaded_frame_rate", 0.30, up(0.30)),
]


@pytest.mark.parametrize(("name", "passes", "fails"), TIER_0_EDGES)
def test_a_missed_tier_0_gate_leaves_tier_1(name: str, passes: float, fails: float) -> None:
    assert judged(**{name: passes}).tier == 0
    verdict = judged(**{name: fails})
    assert verdict.tier == 1
    assert verdict.tier_reason.startswith(f"Tier 1, not Tier 0: {name} ")
    assert [gate.name for gate in verdict.gates if not gate.passed] == [name]
    assert verdict.score == 0.0


@pytest.mark.parametrize(("name", "passes", "fails"), TIER_1_EDGES)
def test_a_missed_tier_1_gate_rejects(name: str, passes: float, fails: float) -> None:
    assert judged(**{name: passes}).tier == 1
    verdict = judged(**{name: fails})
    assert verdict.tier == -1
    assert "(Tier 1)" in verdict.tier_reason


@pytest.mark.parametrize("mode", ["rollout", "teacher_forced"])
@pytest.mark.parametrize(("name", "passes", "fails"), VALIDITY_EDGES)
def test_an_invalid_clip_is_rejected_whatever_its_load(name: str, passes: float, fails: float, mode: str) -> None:
    assert judged(mode, **{name: passes}).tier == (0 if mode == "rollout" else 1)
    verdict = judged(mode, **{name: fails})
    assert verdict.tier == -1
    assert verdict.tier_reason.startswith(f"Rejected: {name} ")


def test_a_teacher_forced_clip_is_tier_1_at_best_and_says_why() -> None:
    verdict = judged("teacher_forced")
    assert verdict.tier == 1
    assert "teacher_forced" in verdict.tier_reason
    assert [gate.name for gate in verdict.gates if not gate.passed] == [MODE_GATE]


def test_fidelity_is_asked_of_tracked_clips_only() -> None:
    far = {"joint_rmse_rad": 0.3, "root_drift_m": 2.0}
    assert judged("rollout", **far).tier == 0
    verdict = judged("tracked", **far)
    assert verdict.tier == 1
    assert "joint_rmse_rad 0.3 is over 0.25" in verdict.tier_reason
    assert "root_drift_m 2 is over 0.25" in verdict.tier_reason


def test_the_reason_names_every_failed_gate_with_value_and_threshold() -> None:
    verdict = judged(max_tilt_deg=92.34, nonfoot_contact_rate=0.5, mean_sum_fn_over_mg=0.4, contact_rate=0.99)
    for part in (
        "max_tilt_deg 92.3 is over 60",
        "nonfoot_contact_rate 0.5 is not 0",
        "mean_sum_fn_over_mg 0.4 is below 0.6 (Tier 1) and 0.85 (Tier 0)",
        "contact_rate 0.99 is outside [0.3, 0.95] (Tier 0)",
    ):
        assert part in verdict.tier_reason
    assert verdict.tier_reason.index("max_tilt") < verdict.tier_reason.index("mean_sum_fn")


def test_a_metric_that_fails_for_both_tiers_is_named_once() -> None:
    verdict = judged(mean_sum_fn_over_mg=0.4, unloaded_frame_rate=0.5, p90_stab_force_over_mg=None)
    assert verdict.tier_reason == (
        "Rejected: mean_sum_fn_over_mg 0.4 is below 0.6 (Tier 1) and 0.85 (Tier 0); "
        "p90_stab_force_over_mg has no value (Tier 1 and Tier 0); "
        "unloaded_frame_rate 0.5 is over 0.3 (Tier 1) and 0.1 (Tier 0)"
    )
    # One that fails for Tier 0 alone says so in a Rejected clip.
    assert (
        "unloaded_frame_rate 0.2 is over 0.1 (Tier 0)" in judged(mean_sum_fn_over_mg=0.4, unloaded_frame_rate=0.2).tier_reason
    )


def test_a_value_close_to_its_threshold_is_not_rounded_onto_it() -> None:
    assert "0.1000000001 is over 0.1" in judged(unloaded_frame_rate=0.1000000001).tier_reason


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_gate_without_a_value_fails(value: float | None) -> None:
    assert judged(contact_rate=value).tier == 1
    assert judged(max_tilt_deg=value).tier == -1


def test_a_gate_is_json_with_its_threshold() -> None:
    gates = [gate.to_dict() for gate in judged().gates]
    assert json.loads(json.dumps(gates, allow_nan=False)) == gates
    by_name = {(gate["name"], gate["tier"]): gate for gate in gates}
    assert by_name["contact_rate", 0]["threshold"] == [0.3, 0.95]
    assert by_name["height_min", "validity"]["threshold"] == 0.35
    assert set(gates[0]) == {"name", "value", "threshold", "op", "passed", "tier"}


def test_the_score_grows_with_the_margins() -> None:
    better = judged(unloaded_frame_rate=0.02, p95_pitch_deg=5.0)
    worse = judged(unloaded_frame_rate=0.08, p95_pitch_deg=25.0)
    assert 0 < worse.score < better.score < 1


def test_profiles_are_data_over_known_metrics() -> None:
    names = {metric.name for metric in METRICS} | {MODE_GATE}
    for name, profile in GATE_PROFILES.items():
        assert profile.name == name
        assert {gate.name for gate in profile.gates} <= names
        json.dumps(json_data(profile), allow_nan=False)
    with pytest.raises(RecipeRefused, match=r"amp-0\.11"):
        gate_profile("amp-9")


def test_the_gates_of_amp_0_11_are_for_good() -> None:
    gates = [(gate.name, gate.op, gate.threshold, str(gate.tier), gate.modes) for gate in GATE_PROFILES["amp-0.11"].gates]
    validity, tracked = "validity", ("tracked",)
    assert gates == [
        ("finite_frame_rate", ">=", 1.0, validity, None),
        ("solver_warnings", "==", 0.0, validity, None),
        ("max_tilt_deg", "<=", 60.0, validity, None),
        ("p95_pitch_deg", "<=", 30.0, validity, None),
        ("p95_roll_deg", "<=", 30.0, validity, None),
        ("height_min", ">=", "robot.height_low", validity, None),
        ("height_max", "<=", "robot.height_high", validity, None),
        ("nonfoot_contact_rate", "==", 0.0, validity, None),
        ("mean_sum_fn_over_mg", ">=", 0.85, "0", None),
        ("p90_stab_force_over_mg", "<=", 0.15, "0", None),
        ("unloaded_frame_rate", "<=", 0.10, "0", None),
        ("contact_rate", "in", (0.3, 0.95), "0", None),
        ("height_std", ">", 0.001, "0", None),
        ("joint_rmse_rad", "<=", 0.25, "0", tracked),
        ("root_drift_m", "<=", 0.25, "0", tracked),
        ("mode", "==", 0.0, "0", None),
        ("mean_sum_fn_over_mg", ">=", 0.60, "1", None),
        ("p90_stab_force_over_mg", "<=", 0.40, "1", None),
        ("unloaded_frame_rate", "<=", 0.30, "1", None),
    ]


def test_a_threshold_may_be_a_share_of_the_robots_height_and_a_gate_optional() -> None:
    height = GateSpec("height_error_m", "<=", HeightShare(0.07), Tier.TIER_0)
    assert height.resolve((0.35, 0.55)) == pytest.approx(0.0315)
    assert height.resolve((0.6, 0.9)) == pytest.approx(0.0525)
    assert json.loads(json.dumps(json_data(height)))["threshold"] == {"height_share": 0.07}
    travel = GateSpec("speed_ratio", "in", (0.7, 2.0), Tier.TIER_0, optional=True)
    outcomes = [travel.evaluate({"speed_ratio": value}, "rollout", (0.35, 0.55)).passed for value in (None, 1.0, 0.6)]
    assert outcomes == [True, True, False]


def test_a_clip_that_excludes_itself_is_told_apart_from_a_robot_that_is_off() -> None:
    profile = GATE_PROFILES["amp-0.12"]
    good = GOOD | {"speed_ratio": 1.0, "clip_path_ratio": 1.0}
    assert classify(good, profile, "rollout", height_range=(0.35, 0.55)).tier == Tier.TIER_0
    off = classify(good | {"heading_error_deg": 43.0}, profile, "rollout", height_range=(0.35, 0.55))
    assert off.tier_reason == "Tier 1, not Tier 0: stands, but is not the clip's motion: heading_error_deg 43 is over 20"
    runs = classify(good | {"clip_flight_rate": 0.36}, profile, "rollout", height_range=(0.35, 0.55))
    assert runs.tier_reason == "Tier 1, not Tier 0: by amp-0.12 this clip cannot be Tier 0: clip_flight_rate 0.36 is over 0.15"


def test_a_reason_says_first_that_the_clip_excludes_itself() -> None:
    def reason(**values: float) -> str:
        metrics = GOOD | {"speed_ratio": 1.0, "clip_path_ratio": 1.0} | values
        return classify(metrics, GATE_PROFILES["amp-0.12"], "rollout", height_range=(0.35, 0.55)).tier_reason

    clip = "by amp-0.12 this clip cannot be Tier 0: clip_flight_rate 0.36 is over 0.15"
    assert reason(clip_flight_rate=0.36, height_error_m=0.05) == (
        f"Tier 1, not Tier 0: {clip}; it stands, but is not the clip's motion: height_error_m 0.05 is over 0.0315"
    )
    assert reason(clip_flight_rate=0.36, unloaded_frame_rate=0.2, heading_error_deg=43.0) == (
        f"Tier 1, not Tier 0: {clip}; also unloaded_frame_rate 0.2 is over 0.1; heading_error_deg 43 is over 20"
    )
    assert reason(clip_flight_rate=0.36, max_tilt_deg=92.0, unloaded_frame_rate=0.4) == (
        f"Rejected: {clip} (Tier 0); also max_tilt_deg 92 is over 60; "
        "unloaded_frame_rate 0.4 is over 0.3 (Tier 1) and 0.1 (Tier 0)"
    )
    assert reason(clip_max_tilt_deg=180.0, clip_flight_rate=0.36) == (
        "Rejected: by amp-0.12 this clip cannot be Tier 0: clip_max_tilt_deg 180 is over 60; "
        "clip_flight_rate 0.36 is over 0.15 (Tier 0)"
    )


def test_the_best_tier_is_what_the_gates_of_the_clip_and_of_the_mode_permit() -> None:
    def best(mode: str = "tracked", **values: float) -> Tier:
        metrics = GOOD | {"speed_ratio": 1.0, "clip_path_ratio": 1.0, "max_tilt_deg": 92.0} | values
        return best_tier(classify(metrics, GATE_PROFILES["amp-0.12"], mode, height_range=(0.35, 0.55)).gates)

    assert best() == Tier.TIER_0
    assert best(clip_flight_rate=0.36) == Tier.TIER_1
    assert best(clip_flight_rate=0.36, clip_max_tilt_deg=90.0) == Tier.REJECTED
    # Of a simulation that stopped, the rest of the clip was not measured.
    assert best(clip_flight_rate=0.36, finite_frame_rate=0.6) == Tier.TIER_0
    assert best("assisted") == best("assisted", clip_flight_rate=0.36) == Tier.TIER_1
