"""In the air a clip's centre of mass is made to fall freely, by as little as does it."""

from __future__ import annotations

import numpy as np
import pytest

from amp_core.kinematics import sole_heights
from amp_core.metrics import GRAVITY
from amp_core.robot import Robot
from amp_core.tracking.flight import find_course, find_falls, find_mass_height
from amp_core.tracking.footholds import stand_feet
from amp_core.tracking.scaling import Scaling

DT = 0.02
FRAMES, PART = 100, 20
IN_AIR = np.arange(FRAMES) // PART % 2 == 1
"""Two flights of 0.4 s, after and before a stance as long."""


def hop(fall: float, push: float | None = None) -> np.ndarray:
    """(N,) m, a course that accelerates by −fall in the air and by as much on the ground, the same after two parts."""
    acceleration = np.where(IN_AIR, -fall, fall if push is None else push)
    speed = -(PART - 1) / 2 * DT * fall + np.cumsum(acceleration) * DT
    return 0.8 + np.cumsum(speed) * DT


def test_only_what_falls_is_a_flight() -> None:
    assert find_falls(hop(5.0), IN_AIR, DT, GRAVITY).tolist() == IN_AIR.tolist()
    # Feet that hover while the mass goes on as before; and one frame alone has no acceleration.
    assert not find_falls(hop(1.0), IN_AIR, DT, GRAVITY).any()
    assert not find_falls(hop(5.0), np.arange(FRAMES) == 30, DT, GRAVITY).any()


@pytest.mark.parametrize("fall", [5.0, 14.0])
def test_a_flight_becomes_a_parabola_that_is_as_near_as_can_be(fall: float) -> None:
    height = hop(fall)
    course = find_course(height, np.zeros(FRAMES), IN_AIR, DT, GRAVITY)
    # Two parabolas whose accelerations differ by a are a·T²/16 apart at the least.
    least = abs(GRAVITY - fall) * ((PART - 1) * DT) ** 2 / 16
    for start in (PART, 3 * PART):
        flight = slice(start, start + PART)
        np.testing.assert_allclose(np.diff((height + course)[flight], 2) / DT**2, -GRAVITY, atol=0.2)
        assert 0.98 * least <= np.abs(course[flight]).max() < 1.2 * least
        # Between two flights it is back where it was.
        assert np.abs(course[[0, 2 * PART + PART // 2, -1]]).max() < 1e-3


def test_on_the_ground_the_course_is_what_was_asked_for() -> None:
    shift = np.full(FRAMES, 0.02)
    assert find_course(hop(5.0), shift, np.zeros(FRAMES, dtype=bool), DT, GRAVITY).tolist() == shift.tolist()
    course = find_course(hop(GRAVITY), shift, IN_AIR, DT, GRAVITY)
    np.testing.assert_allclose(course[[0, PART // 2 - 3, -1]], 0.02, atol=1e-3)
    assert np.abs(course[IN_AIR]).max() < 0.02, "in the air it is as near to the clip as can be"


def test_a_jump_that_hangs_in_the_air_falls_and_lands_on_the_floor() -> None:
    robot = Robot.load("g1")
    pose = robot.model.qpos0.copy()
    for side in ("left", "right"):
        for joint, angle in (("hip_pitch", -0.6), ("knee", 1.2), ("ankle_pitch", -0.6)):
            pose[robot.qpos_adr[robot.joint_names.index(f"{side}_{joint}_joint")]] = angle
    pose[2] -= sole_heights(robot, pose[None]).min()
    poses = np.repeat(pose[None], FRAMES, axis=0)
    # The clip's feet stay on the floor while it stands, and go with the root while it flies.
    course = hop(5.0)
    poses[:, 2] += np.where(IN_AIR, course - course[PART], 0.0)
    before = find_mass_height(robot, poses)
    result = stand_feet(robot, robot.model, poses, Scaling.of(robot).size, IN_AIR, before, sways=False)
    after = find_mass_height(robot, result)
    for start in (PART, 3 * PART):
        middle = slice(start + 5, start + PART - 5)
        np.testing.assert_allclose(np.diff(after[middle], 2) / DT**2, -GRAVITY, atol=0.5)
        assert after[middle].max() > before[middle].max() + 0.02, "it has to jump higher to be in the air for nearly as long"
        soles = sole_heights(robot, result)
        assert soles[middle].min() > 0.04
    # What it crouches for the push-off and the landing is done by the knees.
    assert soles.min() > -0.05
    assert np.ptp(result[:, 2]) > np.ptp(poses[:, 2])
