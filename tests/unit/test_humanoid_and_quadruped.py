"""Robots that are nothing like WildRobot, from loading to the tests of a lock: a humanoid with stiff servos, a quadruped."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from robotkit import LEGS, sway, write_humanoid, write_quadruped

from amp_core.augment import Augmentation, augment, symmetry_of
from amp_core.augment.loop import SEAM_LIMITS, seam_limit
from amp_core.consistency import find_faults
from amp_core.motion import condition
from amp_core.recipe import PhysicsScale, Planner, Recipe
from amp_core.reference import read_reference
from amp_core.robot import Robot
from amp_core.rollout import replay, saturated_actuators
from amp_core.scoring import Score, score
from amp_core.tiers import Tier
from amp_core.tracking.scaling import STEP_SHARE
from amp_core.verify import Subject, verify

WRITERS: Mapping[str, Callable[[Path], Path]] = {"humanoid": write_humanoid, "quadruped": write_quadruped}

PLANNER = Planner(samples=24, first_rounds=2, horizon_sec=0.4, branches=1, attempts=1)
# Two feet, or four, may stand all the time by this profile.
ROLLOUT = dataclasses.replace(Recipe.for_mode("rollout"), gate_profile="amp-0.12-dynamic")
TRACKED = dataclasses.replace(Recipe.for_mode("tracked"), gate_profile="amp-0.12-dynamic", planner=PLANNER)


class Case(NamedTuple):
    robot: Robot
    rollout: Score
    tracked: Score


@pytest.fixture(scope="module", params=list(WRITERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    robot = Robot.load(WRITERS[request.param](tmp_path_factory.mktemp(request.param)))
    rollout, tracked = (score([sway(robot)], robot, recipe)[0] for recipe in (ROLLOUT, TRACKED))
    return Case(robot, rollout, tracked)


def test_they_load(tmp_path: Path) -> None:
    humanoid = Robot.load(write_humanoid(tmp_path))
    assert (humanoid.mass, len(humanoid.joint_names), humanoid.layout.dim) == (pytest.approx(30.0), 19, 2 * 19 + 7 + 4)
    assert 0.007 * humanoid.servo_frequency.max() > 3 * STEP_SHARE, "the step of the default planner is far too long"
    limits = dict(zip(humanoid.joint_names, humanoid.force_limit.tolist(), strict=True))
    assert (limits["left_knee"], limits["left_elbow"]) == (90.0, 18.0), "of the servo, and of the joint"
    quadruped = Robot.load(write_quadruped(tmp_path))
    assert (quadruped.mass, len(quadruped.feet), quadruped.layout.dim) == (pytest.approx(12.0), 4, 2 * 12 + 7 + 4)
    assert quadruped.channels == tuple(leg for leg, _, _ in LEGS)
    assert quadruped.force_limit.tolist() == [20.0] * 12


def test_they_stand_on_their_feet_with_a_harness_of_their_weight(case: Case) -> None:
    robot, result = case.robot, case.rollout
    assert result.tier == Tier.TIER_0 if len(robot.feet) == 2 else Tier.TIER_1, result.tier_reason
    assert result.quality_metrics["both_feet_contact_rate"] > 0.9
    # Of two left feet none is the left one.
    assert (result.quality_metrics["left_foot_contact_rate"] is None) == (len(robot.feet) == 4)
    cap = result.provenance["harness_params"]["force_cap"]
    assert cap / robot.mg == pytest.approx(4.0 / 33.19, rel=0.01)
    assert 4.0 < np.abs(result.rollout.stab_force).max() <= cap, "more than WildRobot's"


def test_they_are_planned_for(case: Case) -> None:
    metrics = case.tracked.quality_metrics
    assert case.tracked.tier == Tier.TIER_0, case.tracked.tier_reason
    assert not case.tracked.rollout.stab_force.any()
    assert metrics["root_drift_m"] < 0.05
    assert metrics["joint_rmse_rad"] < 0.06
    assert metrics["height_error_m"] < case.rollout.quality_metrics["height_error_m"]


@pytest.mark.parametrize("mode", ["rollout", "tracked"])
def test_their_exports_replay_and_say_what_acted(case: Case, mode: str) -> None:
    result: Score = getattr(case, mode)
    file = io.BytesIO()
    result.export(file)
    qpos, qvel = replay(case.robot, result.rollout, result.rollout.recipe)
    np.testing.assert_array_equal(qpos, result.rollout.qpos)
    np.testing.assert_array_equal(qvel, result.rollout.qvel)
    reference = read_reference(io.BytesIO(file.getvalue()))
    assert reference["harness_params"] == result.provenance["harness_params"]


def test_the_ten_tests_know_them(case: Case) -> None:
    scores = [case.rollout, case.tracked] if case.rollout.tier == Tier.TIER_0 else [case.tracked]
    subject = Subject.of_scores(scores, [sway(case.robot)] * len(scores), case.robot)
    found = {test.id: test for test in verify(subject, only=["1A", "1B", "1C", "2", "3", "4", "5", "7"]).tests}
    statuses = {name: test.status for name, test in found.items() if name not in ("6", "smoke")}
    assert set(statuses.values()) == {"PASS"}, [test.reason for test in found.values() if test.status != "PASS"]


def test_their_exports_are_consistent_and_tell_another_harness(case: Case) -> None:
    file = io.BytesIO()
    case.rollout.export(file)
    with np.load(io.BytesIO(file.getvalue())) as members:
        arrays = dict(members)
    assert find_faults(arrays, case.robot) == []
    arrays["stab_force"] = arrays["stab_force"] / 2
    assert "stab_force" in {fault.member for fault in find_faults(arrays, case.robot)}


def test_lengths_and_speeds_go_with_their_height(case: Case) -> None:
    robot, motion = case.robot, sway(case.robot)
    factor = robot.height_factor
    assert factor == pytest.approx(sum(robot.height_range) / 0.9)
    assert [seam_limit(quantity, robot) / limit for quantity, (limit, _) in SEAM_LIMITS.items()] == pytest.approx(
        [1.0, 1.0, factor, 1.0, factor**0.5, 1.0, factor]
    )
    for height, is_noted in ((0.09, False), (0.11, True)):
        moved = dataclasses.replace(motion, root_pos=motion.root_pos + np.array([0.0, 0.0, height * factor]))
        report = condition(moved, robot).report
        assert (any("lowered" in note for note in report.notes), "shift" in report.ground_faults(robot)) == (is_noted, is_noted)


def test_their_sides_change_places_in_the_mirror(case: Case) -> None:
    robot, motion = case.robot, sway(case.robot)
    names = list(robot.joint_names)
    sides = (("left_", "right_"), ("FR_", "FL_"), ("RR_", "RL_"))
    swap = {a: b for pair in sides for a, b in (pair, pair[::-1])}
    symmetry = symmetry_of(robot)
    for i, name in enumerate(names):
        prefix = next((prefix for prefix in swap if name.startswith(prefix)), None)
        partner = name if prefix is None else name.replace(prefix, swap[prefix])
        assert names[symmetry.partner[i]] == partner
    assert [symmetry.feet[foot] for foot in symmetry.feet] == list(range(len(robot.feet)))
    joints = motion.dof_pos.copy()
    joints[:, 1] += 0.1
    mirrored = augment(dataclasses.replace(motion, dof_pos=joints), robot, Augmentation.parse("mirror"))
    assert not np.array_equal(mirrored.dof_pos, joints)
    twice = augment(mirrored, robot, Augmentation.parse("mirror"))
    np.testing.assert_allclose(twice.dof_pos, joints, atol=1e-12)


def test_a_bucket_changes_them_and_not_the_harness(case: Case) -> None:
    heavy = dataclasses.replace(ROLLOUT, physics=PhysicsScale(friction=0.8, mass=1.1, damping=2.0))
    (result,) = score([sway(case.robot)], case.robot, heavy)
    assert result.provenance["robot_mass_kg"] == pytest.approx(1.1 * case.robot.mass)
    assert result.provenance["harness_params"] == case.rollout.provenance["harness_params"]
    assert result.quality_metrics["mean_sum_fn_over_mg"] == pytest.approx(1.0, abs=0.1)
    assert not np.array_equal(result.rollout.qpos, case.rollout.rollout.qpos)


def test_a_joints_own_limit_saturates_its_actuator(tmp_path: Path) -> None:
    robot = Robot.load(write_humanoid(tmp_path))
    force = np.zeros((4, robot.model.nu))
    elbow, knee = (robot.ctrl_adr[robot.joint_names.index(name)] for name in ("left_elbow", "left_knee"))
    force[:, elbow] = (17.0, 17.9, -25.0, 0.0)  # beyond the joint's limit, as the actuator itself has none
    force[:, knee] = (18.0, 80.0, 89.5, -90.0)
    at_limit = saturated_actuators(robot.model, force)
    assert at_limit[:, elbow].tolist() == [False, True, True, False]
    assert at_limit[:, knee].tolist() == [False, False, True, True]
    assert at_limit.sum() == 4


def test_what_explodes_is_rejected_without_a_warning(tmp_path: Path) -> None:
    path = write_humanoid(tmp_path)
    model = tmp_path / "humanoid.xml"
    coarse = model.read_text().replace('timestep="0.002" integrator="implicitfast"', 'timestep="0.02" integrator="Euler"')
    model.write_text(coarse.replace('kp="260"', 'kp="3e5"'))
    robot = Robot.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (result,) = score([sway(robot)], robot, ROLLOUT)
    assert result.tier == Tier.REJECTED
    assert result.rollout.failure is not None
