"""What can be refused about a motion and a robot without simulating."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits, Motion, check_limits
from amp_core.motion.joint_order import reorder_joints
from amp_core.motion.resampling import FRAME_EPS

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

WXYZ_READ_TILT = math.radians(45.0)
WXYZ_OTHER_TILT = math.radians(30.0)
WALKING_SPEED = 0.05
SLIDE_SAMPLES = 64

# No hinge of a legged robot is two turns away from its zero.
ABSURD_ANGLE = 4.0 * math.pi
DEGREES_BEYOND_RANGE = 1.0
DEGREES_SLACK = 0.35

ABSURD_SHIFT_M = 1.0
"""No floor is this far from where a clip has it, for robots from knee-high to grown: the unit or the axis is wrong."""


def check_motion(motion: Motion, robot: Robot, limits: Limits | None = None) -> None:
    """Refuses what can be detected in a motion for a robot without simulating, in milliseconds.

    Raises:
      MotionRefused: another joint count or other joint names, a clip over the limits or shorter than one control step,
        quaternions far off unit norm or in wxyz order, a root over 1 m outside the robot's height range, that teleports or
        flips over, joints in degrees or beyond any hinge.
    """
    limits = limits or Limits()
    motion, _ = reorder_joints(motion, robot)
    check_limits(motion, limits)
    if motion.duration_sec + FRAME_EPS < robot.control_dt:
        expected = f"at least one control step of {robot.control_dt:g} s"
        problem = f"the clip lasts {motion.duration_sec:.4g} s"
        raise _refusal(motion, "root_pos", problem, expected, "Export the whole clip, or check fps")
    # wxyz read as xyzw, where the up axis shows it: tilted as read, upright in the other order.
    tilt = rotations.tilt(motion.root_rot)
    as_read, as_wxyz = float(tilt.mean()), float(rotations.tilt(rotations.to_xyzw(motion.root_rot)).mean())
    if as_read > WXYZ_READ_TILT and as_wxyz < WXYZ_OTHER_TILT:
        degrees = f"{math.degrees(as_read):.0f} degrees on average, read as wxyz by {math.degrees(as_wxyz):.0f}"
        problem = f"read as xyzw the root is tilted by {degrees}"
        raise _wxyz_refusal(motion, int(np.argmax(tilt > WXYZ_READ_TILT)), problem)
    _check_height(motion, robot)
    speed = np.linalg.norm(np.diff(motion.root_pos, axis=0), axis=1) * motion.fps
    _check_rate(motion, speed, limits.max_speed, "m/s", "root_pos", "moves", "the root teleports; positions are in metres")
    rotation = rotations.normalize(motion.root_rot)
    turn_rate = rotations.angle_between(rotation[:-1], rotation[1:]) * motion.fps
    _check_rate(motion, turn_rate, limits.max_turn_rate, "rad/s", "root_rot", "turns", "the root flips over within a frame")
    _check_radians(motion, robot)
    _check_order_by_feet(motion, robot)


def _check_order_by_feet(motion: Motion, robot: Robot) -> None:
    """wxyz read as xyzw by a clip that faces -x, where both readings are upright and differ by half a turn.

    Only a clip that walks backwards as read and forwards in the other order gets here. On its true heading the lowest foot
    stands still; on the reversed one it slides at twice the walking speed. A few frames are enough to tell.
    """
    wxyz_rotation = rotations.to_xyzw(motion.root_rot)
    if float(rotations.tilt(wxyz_rotation).mean()) >= WXYZ_OTHER_TILT:
        return
    if forward_speed(motion.root_pos, rotations.normalize(motion.root_rot), motion.fps) > -WALKING_SPEED:
        return
    if forward_speed(motion.root_pos, rotations.normalize(wxyz_rotation), motion.fps) < WALKING_SPEED:
        return
    as_read, as_wxyz = (_measure_foot_slide(motion, rotation, robot) for rotation in (motion.root_rot, wxyz_rotation))
    if as_read > 2.0 * as_wxyz:
        problem = f"read as xyzw the root moves backwards and the standing foot slides at {as_read:.2f} m/s (median), read as "
        raise _wxyz_refusal(motion, 0, f"{problem}wxyz it moves forwards and the foot slides at {as_wxyz:.2f} m/s")


def _wxyz_refusal(motion: Motion, frame: int, problem: str) -> MotionRefused:
    problem = f"the quaternions look like wxyz: {problem}"
    remedy = "Read it with quat_order=wxyz (--quat-order wxyz), or export xyzw"
    return _refusal(motion, "root_rot", problem, "quaternions xyzw", remedy, frame)


def _refusal(motion: Motion, key: str, problem: str, expected: str, remedy: str, frame: int | None = None) -> MotionRefused:
    return MotionRefused(problem, file=motion.name, key=key, frame=frame, expected=expected, remedy=remedy)


def _check_height(motion: Motion, robot: Robot) -> None:
    """A root that is on average so far above or below where this robot can be that no shift of the floor explains it."""
    low, high = robot.height_range
    mean = float(motion.root_pos[:, 2].mean())
    if low - ABSURD_SHIFT_M <= mean <= high + ABSURD_SHIFT_M:
        return
    units = (("centimetres", 0.01), ("millimetres", 0.001), ("inches", 0.0254), ("feet", 0.3048))
    guesses = [f", which would be right in {unit}" for unit, metres in units if low <= mean * metres <= high]
    problem = f"the root is {mean:.4g} m high on average{''.join(guesses[:1])}"
    expected = f"metres with z up, so about {low:g} to {high:g} m for {robot.name}"
    remedy = "Is it in metres, and is z up? Convert root_pos, or put the floor at z = 0, and export again"
    raise _refusal(motion, "root_pos", problem, expected, remedy, 0)


def _check_rate(motion: Motion, rate: Array, limit: float, unit: str, key: str, verb: str, reason: str) -> None:
    over = rate > limit
    if not over.any():
        return
    frame = int(np.argmax(over)) + 1
    is_first_alone = frame == 1 and not over[1:].any()
    remedy = (
        "Only the first frame stands apart: drop it" if is_first_alone else "Cut the clip there, or check fps and the units"
    )
    problem = f"the root {verb} at {float(rate[frame - 1]):.4g} {unit} between frames {frame - 1} and {frame} ({reason})"
    raise _refusal(motion, key, problem, f"at most {limit:g} {unit}", remedy, frame)


def _check_radians(motion: Motion, robot: Robot) -> None:
    """Degrees given as radians, where they can be told apart: far outside the limits as read, inside them as degrees."""
    low, high = robot.joint_range[:, 0], robot.joint_range[:, 1]
    excess = np.maximum(low - motion.dof_pos, motion.dof_pos - high)
    # Joints without limits have an excess of -inf; two turns are too many for them as well.
    absurd = np.abs(motion.dof_pos) > ABSURD_ANGLE
    far = (excess > DEGREES_BEYOND_RANGE) | absurd
    as_degrees = np.radians(motion.dof_pos)
    is_plausible = ((as_degrees >= low - DEGREES_SLACK) & (as_degrees <= high + DEGREES_SLACK)).all()

    def refusal(outside: NDArray[np.bool_], problem: str, remedy: str) -> MotionRefused:
        frame, joint = (int(i) for i in np.argwhere(outside)[0])
        name = robot.joint_names[joint]
        text = problem.format(joint=name, value=float(motion.dof_pos[frame, joint]))
        expected = f"{name} in rad, within [{low[joint]:.3g}, {high[joint]:.3g}]"
        return _refusal(motion, "dof_pos", text, expected, remedy, frame)

    if is_plausible and far.any(axis=1).mean() >= 0.1:
        problem = "the joint angles look like degrees: {joint} is {value:.4g}, outside its limits as radians and "
        raise refusal(far, problem + "plausible as degrees", "Convert with np.radians and export again")
    if absurd.any():
        problem = "{joint} is {value:.4g} rad, more than two turns"
        raise refusal(absurd, problem, "Check the unit, the joint order and the frame")


def forward_speed(position: Array, rotation: Array, fps: float) -> float:
    """m/s, mean over the steps, along the horizontal projection of the body's x axis; of (N, 3) m and (N, 4) unit xyzw."""
    heading = rotations.heading_direction(rotation[:-1])
    return float(np.einsum("ij,ij->i", np.diff(position[:, :2], axis=0), heading).mean() * fps)


def _measure_foot_slide(motion: Motion, rotation: Array, robot: Robot) -> float:
    """m/s: median, over at most 64 steps spread over the clip, of the horizontal speed of the lowest contact geom."""
    from amp_core.kinematics import geom_poses  # noqa: PLC0415 - reading a motion needs no MuJoCo

    geoms = sorted({geom for channel in robot.channel_geoms for geom in channel})
    starts = np.unique(np.linspace(0, motion.num_frames - 2, SLIDE_SAMPLES).astype(np.int64))
    poses = robot.poses(motion.root_pos, rotation, motion.dof_pos)
    start, end = (geom_poses(robot.model, geoms, poses[frames])[0] for frames in (starts, starts + 1))
    lowest = np.arange(len(starts)), start[:, :, 2].argmin(axis=1)
    return float(np.median(np.linalg.norm((end[lowest] - start[lowest])[:, :2], axis=1) * motion.fps))
