"""What of a robot will not work, and why, before a clip is scored for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.augment.symmetry import symmetry_of
from amp_core.engine import mujoco
from amp_core.errors import AmprefError
from amp_core.kinematics import iterate_poses, reference_height, sole_heights
from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

STIFF = 0.5
"""ω·dt from which a step is too long for a servo: the simulation is then no longer that of the servo."""

_FLAT_M = 0.02
_LEVEL_DEG = 15.0


@dataclass(frozen=True)
class Notice:
    """One thing about a robot.

    Args:
      severity: `warns` (results will be poor or wrong) or `notes` (worth a look).
      message: what was found, as one sentence without a full stop.
      remedy: what to do.
    """

    severity: str
    message: str
    remedy: str | None = None


@dataclass(frozen=True)
class ServoRow:
    """A joint's servo.

    Args:
      kp: N·m/rad. kd: N·m·s/rad. limit: N·m, infinite where there is none. low, high: rad.
      frequency: rad/s, `Robot.servo_frequency`.
    """

    joint: str
    kp: float
    kd: float
    limit: float
    armature: float
    low: float
    high: float
    frequency: float


@dataclass(frozen=True)
class Inspection:
    """A robot that loads, and what is to be said of it.

    Args:
      standing_height: m, of the root in the reference pose, set down on its soles.
    """

    robot: Robot
    servos: tuple[ServoRow, ...]
    standing_height: float
    notices: tuple[Notice, ...]


def inspect_robot(source: str | Path) -> Inspection:
    """Load a robot and look at what loading does not refuse.

    Raises:
      RobotRefused: it cannot be loaded.
    """
    robot = Robot.load(source)
    model = robot.model
    height = reference_height(robot)
    servos = tuple(
        ServoRow(
            joint=name,
            kp=float(model.actuator_gainprm[actuator, 0]),
            kd=float(-model.actuator_biasprm[actuator, 2]),
            limit=float(limit),
            armature=float(model.dof_armature[dof]),
            low=float(low),
            high=float(high),
            frequency=float(frequency),
        )
        for name, actuator, dof, limit, (low, high), frequency in zip(
            robot.joint_names,
            robot.ctrl_adr.tolist(),
            robot.qvel_adr.tolist(),
            robot.force_limit,
            robot.joint_range,
            robot.servo_frequency,
            strict=True,
        )
    )
    notices = (*_check_servos(robot, servos), *_check_standing(robot, height), *_check_symmetry(robot))
    return Inspection(robot, servos, height, notices)


def _check_servos(robot: Robot, servos: tuple[ServoRow, ...]) -> Iterator[Notice]:
    stiffest = max(servos, key=lambda servo: servo.frequency)
    if (product := stiffest.frequency * robot.sim_dt) > STIFF:
        yield Notice(
            "warns",
            f"the servo of {stiffest.joint} is too stiff for the model's step: ω·dt is {product:.2f} "
            f"(√(kp/inertia) of {stiffest.frequency:.0f} rad/s, {1000 * robot.sim_dt:g} ms), which should be below {STIFF:g}",
            f"Set <option timestep> to at most {STIFF / stiffest.frequency:.4f} s, or lower kp, or give the joint its armature",
        )
    if no_limit := [servo.joint for servo in servos if not np.isfinite(servo.limit)]:
        yield Notice(
            "warns",
            f"{len(no_limit)} servos push without a limit: {_join(no_limit)}",
            "Give `limit` in `servos:`, or forcerange in the MJCF: a plan could use torque that the robot does not have",
        )
    if no_range := [servo.joint for servo in servos if not np.isfinite(servo.low)]:
        yield Notice(
            "notes",
            f"{len(no_range)} joints have no range: {_join(no_range)}",
            "Give them a range in the MJCF if they have one",
        )
    if no_damping := [
        servo.joint for servo in servos if servo.kd == 0.0 and robot.model.dof_damping[_dof(robot, servo)] == 0.0
    ]:
        yield Notice(
            "warns",
            f"{len(no_damping)} servos have no damping: {_join(no_damping)}",
            "Give kd in `servos:`: they will oscillate",
        )
    if no_armature := [servo.joint for servo in servos if servo.armature == 0.0]:
        yield Notice(
            "notes",
            f"{len(no_armature)} joints have no armature: {_join(no_armature)}",
            "Give the rotor's inertia times the squared gear ratio: without it light links answer too fast",
        )


def _dof(robot: Robot, servo: ServoRow) -> int:
    return int(robot.qvel_adr[robot.joint_names.index(servo.joint)])


def _check_standing(robot: Robot, height: float) -> Iterator[Notice]:
    """What is wrong with the reference pose, set down on the floor."""
    low, high = robot.height_range
    if not low < height < high:
        yield Notice(
            "warns",
            f"the root is {height:.3f} m above the soles in the reference pose, outside of height_range [{low:g}, {high:g}]",
            "Correct height_range: a rollout that leaves it is invalid",
        )
    model = robot.model
    pose = np.array(model.qpos0)[None]
    pose[0, robot.root_qpos_adr + 2] = height
    body_pose = next(iter(iterate_poses(robot.kinematic_model, pose)))
    angles = {foot.name: math.degrees(math.acos(min(1.0, np.abs(body_pose.xmat[foot.body][6:]).max()))) for foot in robot.feet}
    if leaning := [name for name, angle in angles.items() if angle > _LEVEL_DEG]:
        yield Notice(
            "warns",
            f"the frame of {_join(leaning)} leans by {max(angles.values()):.0f}° in the reference pose: a sole is taken for a "
            "box along the axes of its body's frame",
            "Turn the body's frame in the MJCF so that an axis is up where the foot is flat, and what is in it the other way",
        )
    heights = sole_heights(robot, pose)[0]
    if heights.max() > _FLAT_M:
        feet = [foot.name for foot, sole in zip(robot.feet, heights, strict=True) if sole > _FLAT_M]
        yield Notice(
            "notes", f"{_join(feet)} stands higher than the other feet in the reference pose, by {heights.max():.3f} m"
        )
    yield from _check_contacts(robot, pose[0])


def _check_contacts(robot: Robot, qpos: Array) -> Iterator[Notice]:
    """What touches the floor or another part of the robot in a pose, and should not."""
    model = robot.model
    data: Any = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    on_floor, self_contacts = set(), set()
    for pair in data.contact.geom.tolist():
        bodies = [int(model.geom_bodyid[geom]) for geom in pair if geom != robot.ground_geom]
        names = " and ".join(sorted(str(model.body(body).name) or f"body {body}" for body in bodies))
        if len(bodies) == 2:
            self_contacts.add(names)
        elif bodies[0] not in robot.foot_bodies:
            on_floor.add(names)
    if on_floor:
        yield Notice(
            "warns",
            f"in the reference pose the floor is touched by something that is no foot: {_join(sorted(on_floor))}",
            "Name every geom that stands in contact_channels, or their body: another contact counts as a fall",
        )
    if self_contacts:
        yield Notice(
            "warns",
            f"the robot touches itself in the reference pose: {_join(sorted(self_contacts))}",
            "Exclude these pairs in the MJCF (<contact><exclude>), or make the shapes smaller",
        )


def _check_symmetry(robot: Robot) -> Iterator[Notice]:
    try:
        symmetry_of(robot)
    except AmprefError as error:
        yield Notice("notes", f"clips cannot be mirrored for it: {error.what}", error.remedy)


def _join(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
