"""Before a clip is planned for, its standing feet are made to stand, and its weight is brought over them."""

from __future__ import annotations

import numpy as np
import pytest

from amp_core.engine import mujoco
from amp_core.footing import Footing
from amp_core.formats import read_motion
from amp_core.kinematics import body_poses, foot_centres, sole_heights
from amp_core.metrics import GRAVITY
from amp_core.motion import condition
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.tracking.flight import find_falls, find_mass_height
from amp_core.tracking.footholds import stand_feet
from amp_core.tracking.model import planning_model
from amp_core.tracking.reference import Reference
from amp_core.tracking.scaling import Scaling

FRAMES = 80


@pytest.fixture(scope="module")
def g1() -> Robot:
    return Robot.load("g1")


@pytest.fixture
def standing(g1: Robot) -> np.ndarray:
    """(N, nq) the reference pose with bent knees, its soles on the floor."""
    pose = g1.model.qpos0.copy()
    for side in ("left", "right"):
        for joint, angle in (("hip_pitch", -0.3), ("knee", 0.6), ("ankle_pitch", -0.3)):
            pose[g1.qpos_adr[g1.joint_names.index(f"{side}_{joint}_joint")]] = angle
    pose[2] -= sole_heights(g1, pose[None]).min()
    return np.repeat(pose[None], FRAMES, axis=0)


def mend(robot: Robot, poses: np.ndarray, *, sways: bool = False) -> np.ndarray:
    height = find_mass_height(robot, poses)
    falls = find_falls(height, Footing.of(robot, poses).in_flight, robot.control_dt, GRAVITY)
    return stand_feet(robot, robot.model, poses, Scaling.of(robot).size, falls, height, sways=sways)


def test_a_clip_that_stands_is_left_as_it_is(g1: Robot, standing: np.ndarray) -> None:
    np.testing.assert_allclose(mend(g1, standing, sways=True), standing, atol=2e-3)


def test_feet_that_tip_hover_and_slide_while_they_stand_are_flat_and_still(g1: Robot, standing: np.ndarray) -> None:
    poses, ramp = standing.copy(), np.linspace(0.0, 1.0, FRAMES)
    for side in ("left", "right"):
        poses[:, g1.qpos_adr[g1.joint_names.index(f"{side}_ankle_pitch_joint")]] += 0.4 * ramp
    poses[:, 1] += 0.1 * ramp
    poses[:, 2] += 0.06
    result = mend(g1, poses)
    feet = [foot.body for foot in g1.feet]
    up = body_poses(g1, result)[1][:, feet].reshape(FRAMES, 2, 3, 3)[:, :, 2, 2]
    assert np.degrees(np.arccos(np.clip(up, -1.0, 1.0))).max() < 3.0, "of 23 degrees"
    assert np.abs(sole_heights(g1, result)).max() < 0.004
    assert np.ptp(foot_centres(g1, result)[:, :, :2], axis=0).max() < 0.01, "of 0.1 m"
    # The root goes most of the way with the feet, and no further.
    assert np.ptp(result[:, 1]) == pytest.approx(0.25 * 0.1, abs=0.005)
    arms = g1.qpos_adr[[i for i, name in enumerate(g1.joint_names) if "shoulder" in name or "elbow" in name]]
    np.testing.assert_array_equal(result[:, arms], poses[:, arms])


def excess(robot: Robot, poses: np.ndarray) -> float:
    """m, how far the centre of mass is beside the left sole, in the middle of the clip."""
    pose = poses[FRAMES // 2]
    data = mujoco.MjData(robot.model)
    data.qpos[:] = pose
    mujoco.mj_kinematics(robot.model, data)
    mujoco.mj_comPos(robot.model, data)
    return float(abs(data.subtree_com[robot.root_body, 1] - foot_centres(robot, pose[None])[0, 0, 1]))


def test_the_root_sways_over_the_foot_that_stands(g1: Robot, standing: np.ndarray) -> None:
    poses = standing.copy()
    # The right foot is in the air, and the weight between both.
    for joint, angle in (("hip_pitch", -0.9), ("knee", 1.2)):
        poses[:, g1.qpos_adr[g1.joint_names.index(f"right_{joint}_joint")]] = angle
    assert excess(g1, poses) > 0.07
    assert excess(g1, mend(g1, poses)) > 0.07
    swayed = mend(g1, poses, sways=True)
    assert excess(g1, swayed) < 0.035, "half of the width of a sole"
    np.testing.assert_allclose(foot_centres(g1, swayed)[:, 0], foot_centres(g1, poses)[:, 0], atol=0.012)


def test_what_no_foot_carries_is_left_as_it_is(g1: Robot, standing: np.ndarray) -> None:
    poses = standing.copy()
    time = np.arange(FRAMES) * g1.control_dt
    # Thrown up: no foot stands.
    poses[:, 2] += 3.0 * time - 0.5 * GRAVITY * time**2 + 8.0
    poses[:, 0] += 3.0 * time
    result = mend(g1, poses)
    np.testing.assert_allclose(result[:, 7:], poses[:, 7:], atol=1e-9)


def test_for_a_robot_of_few_joints_the_reference_is_the_clip() -> None:
    robot, recipe = Robot.load("wildrobot"), Recipe.for_mode("tracked")
    assert recipe.planner is not None
    clip = condition(read_motion(next(path for path in bundled_motions() if path.stem == "walk")), robot)
    reference = Reference.of(robot, clip, planning_model(robot, recipe.physics, recipe.planner), Scaling.of(robot))
    np.testing.assert_array_equal(reference.dof_pos, clip.dof_pos)
    np.testing.assert_array_equal(reference.root_pos, clip.root_pos)
