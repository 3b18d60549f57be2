"""Diagnosis: each sentence against a case in which the reason is known, because the test made it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core import motions
from amp_core.diagnosis import CODES, SUGGESTIONS, Diagnosis, Finding, Suggestion, diagnose
from amp_core.diagnosis.evidence import Evidence
from amp_core.diagnosis.gates import describe_gates, touching_geoms
from amp_core.formats import read_motion
from amp_core.motion import Conditioned, FirstFrame, JointClip, RootFrame, condition
from amp_core.quality import FrameSeries
from amp_core.recipe import Harness, Recipe
from amp_core.robot import Robot
from amp_core.rollout import Failure, Rollout, generate, saturated_actuators
from amp_core.scoring import score
from amp_core.strict_json import json_data
from amp_core.tiers import GATE_PROFILES, GateProfile, Tier
from amp_core.tracking import Plan
from amp_core.verdict import judge

ROLLOUT = Recipe.for_mode("rollout")


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def bundled(robot: Robot, name: str) -> Conditioned:
    path = next(path for path in motions.bundled_motions() if path.stem == name)
    return condition(read_motion(path, name=name), robot)


def still(robot: Robot, frames: int = 100) -> Conditioned:
    """The robot stands in the first pose of the squat."""
    squat = bundled(robot, "squat")
    rest: dict[str, Any] = {key: np.tile(getattr(squat, key)[:1], (frames, 1)) for key in ("root_pos", "root_rot", "dof_pos")}
    return dataclasses.replace(squat, initial_qvel=np.zeros_like(squat.initial_qvel), **rest)


def run(robot: Robot, clip: Conditioned, recipe: Recipe = ROLLOUT) -> Rollout:
    return generate(robot, [clip], recipe)[0]


def diagnosed(robot: Robot, rollout: Rollout, clip: Conditioned) -> Diagnosis:
    found = diagnose(rollout, clip, robot, judge(rollout, robot).classification)
    assert found is not None
    for finding in found.findings:
        assert finding.code in CODES
        assert not finding.message.endswith(".")
        assert len(finding.message) < 280
        if finding.frames is not None:
            assert 0 <= finding.frames[0] < finding.frames[1] <= clip.num_frames
    for suggestion in found.suggestions:
        assert suggestion.code in SUGGESTIONS
        assert suggestion.because
        assert set(suggestion.because) <= {finding.code for finding in found.findings}
    json.dumps(json_data(found), allow_nan=False)
    return found


def codes(found: Diagnosis) -> list[str]:
    return [finding.code for finding in found.findings]


def one(found: Diagnosis, code: str) -> Finding:
    return next(finding for finding in found.findings if finding.code == code)


def suggested(found: Diagnosis) -> dict[str, Suggestion]:
    return {suggestion.code: suggestion for suggestion in found.suggestions}


def pushed(robot: Robot, clip: Conditioned, **velocity: float) -> Conditioned:
    """The clip, started with another velocity of the root: x, y in m/s."""
    qvel = clip.initial_qvel.copy()
    for axis, value in velocity.items():
        qvel[robot.root_qvel_adr + "xyz".index(axis)] = value
    return dataclasses.replace(clip, initial_qvel=qvel)


def test_tier_0_has_no_diagnosis(robot: Robot) -> None:
    clip = bundled(robot, "march_in_place")
    rollout = run(robot, clip)
    assert diagnose(rollout, clip, robot, judge(rollout, robot).classification) is None


@pytest.mark.parametrize(
    ("push", "way"),
    [({"x": 1.2}, "falls forward"), ({"x": -1.2}, "falls backward"), ({"y": 1.2}, "left"), ({"y": -1.2}, "right")],
)
def test_a_robot_that_is_pushed_over_falls_the_way_it_is_pushed(robot: Robot, push: dict[str, float], way: str) -> None:
    clip = pushed(robot, still(robot), **push)
    rollout = run(robot, clip)
    found = diagnosed(robot, rollout, clip)
    assert found.findings[0].code == "fell"
    fall = found.findings[0]
    assert way in fall.message.partition(":")[0]
    fell = int(np.flatnonzero(FrameSeries.of(rollout, robot).fallen)[0])
    assert fall.frames is not None
    assert fall.frames[1] == fell + 1
    assert f"at {(fell + 1) * rollout.dt:.2f} s" in fall.message
    # The other gates that the fall took along are not listed beside it.
    assert not {"leans", "unloaded", "body_touches", "never_lifts"} & set(codes(found))
    assert list(suggested(found)) == ["use_tracked"]


def test_the_side_that_it_falls_to_is_its_own_and_not_the_worlds(robot: Robot) -> None:
    clip = pushed(robot, still(robot), x=1.2)
    turn = np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)])  # xyzw: it faces the world's y
    x, y, z, w = clip.root_rot[0]
    turned = np.array(
        [turn[3] * x - turn[2] * y, turn[3] * y + turn[2] * x, turn[3] * z + turn[2] * w, turn[3] * w - turn[2] * z]
    )
    qpos = clip.initial_qpos.copy()
    qpos[robot.root_qpos_adr + 3 : robot.root_qpos_adr + 7] = turned[[3, 0, 1, 2]]
    clip = dataclasses.replace(clip, root_rot=np.tile(turned, (clip.num_frames, 1)), initial_qpos=qpos)
    fall = one(diagnosed(robot, run(robot, clip), clip), "fell")
    # Pushed along the world's x, which is to its right.
    assert "to its right" in fall.message.partition(":")[0]


def test_a_fall_names_the_foot_that_carried_and_the_servos_that_gave_all(robot: Robot) -> None:
    clip = pushed(robot, still(robot), y=1.2)
    rollout = run(robot, clip)
    fall = one(diagnosed(robot, rollout, clip), "fell")
    assert "no servo was at its force limit" in fall.message or "at the force limit" in fall.message
    # The same states, as if the left knee had been at its limit all the time, and the right foot had carried nothing.
    force, loads = np.zeros_like(rollout.actuator_force), rollout.channel_loads.copy()
    knee = robot.joint_names.index("left_knee_pitch")
    force[:, robot.ctrl_adr[knee]] = 4.0
    loads[:, list(robot.feet[1].channels)] = 0.0
    loads[:, list(robot.feet[0].channels)] = robot.mg / 2
    changed = dataclasses.replace(rollout, actuator_force=force, channel_loads=loads)
    found = diagnosed(robot, changed, clip)
    fall = one(found, "fell")
    assert "on its left foot" in fall.message
    assert "the left knee pitch for 100%" in fall.message
    strained = one(found, "torque_saturated")
    assert (strained.joint, strained.value, strained.severity) == ("left_knee_pitch", 1.0, "cause")
    assert "100% of the frames before it tips (limit 4 N·m)" in strained.message
    # A joint that is held still is not helped by a slower clip.
    assert "slower" not in suggested(found)


def test_the_centre_of_mass_leaves_the_soles_before_the_robot_is_down(robot: Robot) -> None:
    clip = pushed(robot, still(robot), x=1.2)
    rollout = run(robot, clip)
    fall = one(diagnosed(robot, rollout, clip), "fell")
    assert "with its centre of mass beyond the edge of the soles from" in fall.message
    left = float(fall.message.split(" s on")[0].rsplit(" ", 1)[1])
    assert fall.frames is not None
    assert 0 < left < (fall.frames[1] - 1) * rollout.dt


def test_saturation_is_per_actuator_and_agrees_with_the_share(robot: Robot) -> None:
    clip = still(robot)
    path = clip.dof_pos.copy()
    path[40:45] += 0.5  # more than 4 N·m at 21 N·m/rad can follow at once
    rollout = run(robot, dataclasses.replace(clip, dof_pos=path))
    assert rollout.actuator_force.shape == (len(rollout.qpos), robot.model.nu)
    found = saturated_actuators(robot.model, rollout.actuator_force)
    assert found.any()
    np.testing.assert_array_equal(found.mean(axis=1), FrameSeries.of(rollout, robot).saturation)


def test_a_clip_that_never_lifts_its_feet(robot: Robot) -> None:
    clip = bundled(robot, "squat")
    found = diagnosed(robot, run(robot, clip), clip)
    assert codes(found) == ["never_lifts", "never_lifts"]
    assert [finding.foot for finding in found.findings] == [foot.name for foot in robot.feet]
    assert "the clip never lifts it" in found.findings[0].message
    assert list(suggested(found)) == ["lift_feet"]


def test_standing_still(robot: Robot) -> None:
    clip = still(robot)
    assert "stands_still" in codes(diagnosed(robot, run(robot, clip), clip))


def test_a_root_in_another_frame_is_said_first_and_alone(robot: Robot) -> None:
    clip = pushed(robot, still(robot), x=1.2)
    frame = RootFrame(True, 45.0, 56.0, 60.0, "tilted")
    clip = dataclasses.replace(clip, report=dataclasses.replace(clip.report, root_frame=frame))
    found = diagnosed(robot, run(robot, clip), clip)
    assert codes(found) == ["root_frame", "fell"]
    assert found.findings[0].severity == "fatal"
    assert "45° in the first frame and 56° on average" in found.findings[0].message
    assert list(suggested(found)) == ["fix_root_frame"]


def test_a_simulation_that_stopped(robot: Robot) -> None:
    clip = still(robot)
    rollout = run(robot, clip)
    cut: dict[str, Any] = {
        name: value[:0]
        for name, value in ((f.name, getattr(rollout, f.name)) for f in dataclasses.fields(rollout))
        if isinstance(value, np.ndarray) and len(value) == len(rollout.qpos)
    }
    for rows in (0, 1, 30):
        shorter = {name: getattr(rollout, name)[:rows] for name in cut}
        failed = dataclasses.replace(rollout, failure=Failure(rows, "MuJoCo warned: BADQACC", {"BADQACC": 1}), **shorter)
        found = diagnosed(robot, failed, clip)
        assert found.findings[0].code == "simulation_failed"
        assert "BADQACC" in found.findings[0].message


def test_teacher_forcing_and_its_harness(robot: Robot) -> None:
    clip = bundled(robot, "walk")
    found = diagnosed(robot, run(robot, clip, Recipe.for_mode("teacher_forced")), clip)
    assert codes(found)[0] == "harness_carries"
    assert "the harness carries" in found.findings[0].message
    assert "pose_overwritten" in codes(found)
    assert suggested(found)["use_tracked"].because[0] == "harness_carries"
    # The same, but with a harness that presses.
    rollout = run(robot, clip, Recipe.for_mode("teacher_forced"))
    pressed = dataclasses.replace(rollout, stab_force=-np.abs(rollout.stab_force))
    assert "presses down with" in one(diagnosed(robot, pressed, clip), "harness_carries").message


def test_a_robot_without_weight_on_its_feet(robot: Robot) -> None:
    clip = still(robot)
    rollout = run(robot, clip, dataclasses.replace(ROLLOUT, harness=Harness.none()))
    loads = rollout.sum_fn_per_frame.copy()
    loads[20:50] = 0.0
    found = diagnosed(robot, dataclasses.replace(rollout, sum_fn_per_frame=loads), clip)
    light = one(found, "unloaded")
    assert light.frames == (20, 50)
    assert light.value == 0.3
    assert "in 30% of the frames" in light.message
    assert "longest at 0.40–1.00 s" in light.message
    assert "harness" not in light.message


def test_what_touches_the_ground_is_named(robot: Robot) -> None:
    clip = pushed(robot, still(robot), x=1.2)
    rollout = run(robot, clip)
    frame = int(np.argmax(rollout.nonfoot_contact))
    # The lying pose, as if it were high and upright enough not to count as fallen.
    classification = judge(rollout, robot).classification
    evidence = Evidence(rollout, clip, robot, classification)
    touching = next(finding for finding in describe_gates(evidence) if finding.code == "body_touches")
    assert f"at {(frame + 1) * rollout.dt:.2f} s" in touching.message
    assert "something that is no foot" not in touching.message
    assert touching_geoms(evidence, rollout.qpos[frame])
    assert touching_geoms(evidence, rollout.initial_qpos) == []


@pytest.mark.parametrize(("shift", "code"), [(0.05, "feet_above_ground"), (-0.05, "feet_below_ground")])
def test_feet_that_are_not_on_the_ground_where_they_stand(robot: Robot, shift: float, code: str) -> None:
    clip = still(robot)
    found = diagnosed(robot, run(robot, clip), dataclasses.replace(clip, root_pos=clip.root_pos + np.array([0.0, 0.0, shift])))
    off = one(found, code)
    assert off.value == pytest.approx(shift, abs=0.002)
    assert "0.05 m" in off.message
    assert off.foot in {foot.name for foot in robot.feet}
    assert suggested(found)["shift_ground"].value == pytest.approx(-shift, abs=0.002)


def test_a_floor_that_is_not_level_cannot_be_shifted(robot: Robot) -> None:
    clip = still(robot)
    path = clip.root_pos.copy()
    path[70:, 2] -= 0.04
    found = diagnosed(robot, run(robot, clip), dataclasses.replace(clip, root_pos=path))
    off = one(found, "feet_below_ground")
    assert off.frames == (70, 100)
    assert "level_feet" in suggested(found)
    assert "shift_ground" not in suggested(found)


def test_a_fault_of_the_clip_after_the_fall_is_no_reason_for_it(robot: Robot) -> None:
    clip = pushed(robot, still(robot, 200), x=1.2)
    rollout = run(robot, clip)
    path = clip.root_pos.copy()
    path[150:, 2] -= 0.04
    found = diagnosed(robot, rollout, dataclasses.replace(clip, root_pos=path))
    assert codes(found)[0] == "fell"
    assert "feet_below_ground" not in codes(found)
    path = path.copy()
    path[:10, 2] -= 0.04
    found = diagnosed(robot, rollout, dataclasses.replace(clip, root_pos=path))
    assert one(found, "feet_below_ground").frames == (0, 10)


def test_what_conditioning_found(robot: Robot) -> None:
    clip = still(robot)
    beyond = (
        JointClip("left_hip_roll", 40, 0.12, "high"),
        JointClip("left_knee_pitch", 1, 0.5, "low"),
        JointClip("right_hip_roll", 90, 0.01, "high"),
    )
    report = dataclasses.replace(clip.report, frames_in=100, joints_clipped=beyond, initial_clearance_m=0.03)
    report = dataclasses.replace(report, first_frame=FirstFrame(False, False, 0, 0, 0, ""))
    found = diagnosed(robot, run(robot, clip), dataclasses.replace(clip, report=report))
    limit = one(found, "joint_limit")
    assert (limit.joint, limit.value) == ("left_hip_roll", 0.12)
    assert "0.12 rad beyond its limit (40 of 100 source frames)" in limit.message
    assert codes(found).count("joint_limit") == 1
    assert one(found, "starts_in_air").value == 0.03
    assert "mend_joints" in suggested(found)


def test_a_joint_that_is_moved_faster_than_its_servo_follows(robot: Robot) -> None:
    clip = still(robot)
    ankle = robot.joint_names.index("left_ankle_pitch")
    path = clip.dof_pos.copy()
    path[40:45, ankle] += 0.5  # there and back, a frame each: 25 rad/s
    clip = dataclasses.replace(clip, dof_pos=path)
    rollout = run(robot, clip)
    found = diagnosed(robot, rollout, clip)
    fast = one(found, "joint_speed")
    assert fast.joint == "left_ankle_pitch"
    assert fast.value == pytest.approx(25.0)
    assert fast.limit is not None
    assert fast.limit < 0.75 * 25.0
    assert f"the servo reaches {fast.limit:.1f}" in fast.message
    slower = suggested(found)["slower"]
    assert slower.value == 0.9
    assert "joint_speed" in slower.because
    assert f"would need ×{fast.limit / 25.0:.2f}" in slower.message
    # The same clip, followed to the letter, has no such finding.
    ideal = dataclasses.replace(rollout, dof_pos=rollout.reference_dof_pos)
    assert "joint_speed" not in codes(diagnosed(robot, ideal, clip))


def test_a_saturated_joint_that_moves_would_be_helped_by_a_slower_clip(robot: Robot) -> None:
    clip = still(robot)
    knee = robot.joint_names.index("right_knee_pitch")
    path = clip.dof_pos.copy()
    path[:, knee] += 0.05 * np.sin(np.arange(100) * 0.5)  # 0.8 rad/s on average
    clip = dataclasses.replace(clip, dof_pos=path)
    rollout = run(robot, clip)
    force = np.zeros_like(rollout.actuator_force)
    force[10:41, robot.ctrl_adr[knee]] = -4.0
    found = diagnosed(robot, dataclasses.replace(rollout, actuator_force=force), clip)
    strained = one(found, "torque_saturated")
    assert strained.joint == "right_knee_pitch"
    assert strained.value == pytest.approx(0.31)
    assert "31% of the frames (limit 4 N·m)" in strained.message
    assert suggested(found)["slower"].because == ("torque_saturated",)


def test_a_foot_that_slides(robot: Robot) -> None:
    clip = still(robot)
    rollout = run(robot, clip)
    speed = np.zeros_like(rollout.foot_speed)
    speed[30:50, 0] = 0.3
    speed[30:40, 1] = 0.3
    found = diagnosed(robot, dataclasses.replace(rollout, foot_speed=speed), clip)
    slides = one(found, "slips")
    assert (slides.foot, slides.frames, slides.value) == (robot.feet[0].name, (30, 50), 0.2)
    assert codes(found).count("slips") == 1  # 10 % is no finding


def test_tracking_that_is_off_the_clip(robot: Robot) -> None:
    clip = still(robot)
    rollout = run(robot, clip)
    # A rollout of no plan, judged as if a plan had made it, by a profile that does not ask whether the clip moves.
    tracked = dataclasses.replace(Recipe.for_mode("tracked"), gate_profile="amp-0.11")
    meant = np.ones((len(rollout.qpos), len(robot.feet)), dtype=bool)
    moved = rollout.reference_root_pos + np.array([0.4, 0.0, 0.0])
    joints = rollout.reference_dof_pos.copy()
    joints[:, robot.joint_names.index("left_hip_roll")] += 1.0
    changed = dataclasses.replace(
        rollout,
        recipe=tracked,
        reference_contacts=meant,
        reference_root_pos=moved,
        reference_dof_pos=joints,
        reference_dof_pos_raw=joints,
    )
    found = diagnosed(robot, changed, clip)
    assert one(found, "joints_off").joint == "left_hip_roll"
    assert one(found, "drifts").value == pytest.approx(0.4, abs=0.05)
    assert one(found, "drifts").frames == (0, 100)
    assert {"joints_off", "drifts"} <= set(suggested(found)["other_seed"].because)
    assert judge(changed, robot).quality_metrics["contact_agreement"] == 1.0


STRICT = {
    "p95_pitch_deg": 0.5,
    "p95_roll_deg": 0.25,
    "max_tilt_deg": 2.0,
    "p90_stab_force_over_mg": 0.002,
    "unloaded_frame_rate": 0.001,
    "contact_rate": (0.9, 0.92),
    "height_std": 0.5,
    "joint_rmse_rad": 0.01,
    "root_drift_m": 0.02,
}


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a profile whose every threshold differs from the usual one's."""
    gates = tuple(
        dataclasses.replace(gate, threshold=STRICT.get(gate.name, gate.threshold), modes=None)
        for gate in GATE_PROFILES["amp-0.11"].gates
        if gate.tier != Tier.TIER_1
    )
    monkeypatch.setitem(GATE_PROFILES, "strict-1", GateProfile("strict-1", gates))
    return "strict-1"


def test_a_diagnosis_quotes_the_thresholds_of_the_rollouts_own_profile(robot: Robot, strict: str) -> None:
    walk, squat = bundled(robot, "walk"), bundled(robot, "squat")
    recipe = dataclasses.replace(ROLLOUT, gate_profile=strict)
    away = dataclasses.replace(
        run(robot, walk, recipe),
        stab_force=np.full(walk.num_frames, 0.1 * robot.mg),
        sum_fn_per_frame=np.where(np.arange(walk.num_frames) < 20, 0.0, robot.mg),
    )
    away = dataclasses.replace(away, reference_root_pos=away.root_pos + np.array([0.1, 0.0, 0.0]))
    found = diagnosed(robot, away, walk)
    limits = {finding.code: finding.limit for finding in found.findings if finding.code != "leans"}
    assert {finding.limit for finding in found.findings if finding.code == "leans"} == {0.5, 0.25, 2.0}
    expected = {"harness_carries": 0.002, "unloaded": 0.001, "stands_still": 0.5, "joints_off": 0.01, "drifts": 0.02}
    assert limits.items() >= expected.items()
    assert limits["rarely_stands"] == 0.9
    assert "beyond 0.02 m" in one(found, "drifts").message
    standing = diagnosed(robot, run(robot, squat, recipe), squat)
    assert one(standing, "never_lifts").limit == 0.92
    assert "in the air for 8% of the time" in suggested(standing)["lift_feet"].message


def test_a_profile_with_a_limit_of_20_degrees_is_quoted_as_such(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = tuple(
        dataclasses.replace(gate, threshold=20.0) if gate.name == "p95_pitch_deg" else gate
        for gate in GATE_PROFILES["amp-0.11"].gates
    )
    monkeypatch.setitem(GATE_PROFILES, "upright-1", GateProfile("upright-1", gates))
    clip = still(robot)
    tilted = [math.cos(math.radians(12.5)), 0.0, math.sin(math.radians(12.5)), 0.0]  # 25° nose down
    verdicts = {}
    for profile in ("amp-0.11", "upright-1"):
        rollout = run(robot, clip, dataclasses.replace(ROLLOUT, gate_profile=profile))
        qpos = rollout.qpos.copy()
        qpos[:, robot.root_qpos_adr + 3 : robot.root_qpos_adr + 7] = tilted
        rollout = dataclasses.replace(rollout, qpos=qpos)
        verdicts[profile] = judge(rollout, robot).classification.tier_reason, diagnosed(robot, rollout, clip)
    reason, found = verdicts["upright-1"]
    assert "p95_pitch_deg 25 is over 20" in reason
    assert (one(found, "leans").limit, one(found, "leans").frames) == (20.0, (0, 100))
    reason, found = verdicts["amp-0.11"]
    assert "p95_pitch_deg" not in reason
    assert "leans" not in codes(found)


def test_a_robot_that_does_not_do_what_its_plans_expect(robot: Robot) -> None:
    clip = pushed(robot, still(robot), x=1.2)
    rollout = run(robot, clip)
    for parting, says in ((0.005, False), (0.2, True)):
        plan = Plan(ctrl=rollout.ctrl, fell_at=None, simulated_sec=1.0, parting_rad=parting)
        planned = dataclasses.replace(rollout, plan=plan, recipe=Recipe.for_mode("tracked"))
        found = diagnosed(robot, planned, clip)
        assert ("plan_parts" in codes(found)) == ("finer_plan" in suggested(found)) == says
    assert "by 0.20 rad" in one(found, "plan_parts").message


def test_a_score_carries_its_diagnosis(robot: Robot) -> None:
    chosen = [path for path in motions.bundled_motions() if path.stem in ("squat", "march_in_place")]
    scores = score([read_motion(path, name=path.stem) for path in chosen], robot, ROLLOUT)
    documents = {one.name: one.to_dict() for one in scores}
    assert documents["march_in_place"]["diagnosis"] is None
    told = documents["squat"]["diagnosis"]
    assert [finding["code"] for finding in told["findings"]] == ["never_lifts", "never_lifts"]
    assert set(told["findings"][0]) == {
        "code",
        "severity",
        "message",
        "joint",
        "foot",
        "frames",
        "value",
        "limit",
        "unit",
    }
    assert told["suggestions"][0]["because"] == ["never_lifts"]


def test_a_suggestion_that_was_followed_can_be_left_out() -> None:
    found = Diagnosis((), (Suggestion("use_tracked", "", ("fell",)), Suggestion("slower", "", ("fell",))))
    assert list(suggested(found.without("use_tracked"))) == ["slower"]


def test_another_robot_is_diagnosed_as_well() -> None:
    trileg = Robot.load(Path(__file__).parents[1] / "robots" / "trileg")
    motion = read_motion(next(path for path in motions.bundled_motions() if path.stem == "walk"), name="walk")
    frames, joints = 60, len(trileg.joint_names)
    rest = dataclasses.replace(
        motion,
        root_pos=np.tile([0.0, 0.0, sum(trileg.height_range) / 2], (frames, 1)),
        root_rot=np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1)),
        dof_pos=np.tile(np.clip(0.0, *trileg.joint_range.T), (frames, 1)).reshape(frames, joints),
    )
    clip = pushed(trileg, condition(rest, trileg), x=6.0)
    found = diagnosed(trileg, run(trileg, clip), clip)
    assert found.findings
    assert {finding.foot for finding in found.findings} <= {None, *(foot.name for foot in trileg.feet)}
