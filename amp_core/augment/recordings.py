"""A clip's recorded controls in its variants: mirrored and turned with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from amp_core import rotations
from amp_core.augment.augmentation import Augmentation
from amp_core.augment.poses import Array
from amp_core.augment.symmetry import symmetry_of
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Motion
from amp_core.formats.recording import Recording
from amp_core.motion.recording import bind_recording, order_actuators
from amp_core.robot import Robot

__all__ = ["augment_recording"]

_REFLECTION = np.array([1.0, -1.0, 1.0])


def augment_recording(motion: Motion, robot: Robot, augmentation: Augmentation) -> Recording | None:
    """The controls of a variant; None where the clip has none that fit the robot, or none that would make the variant.

    A mirror image and a turn are the same motion of a robot elsewhere. Another tempo or ground takes other controls, and a
    loop states that were never reached.

    Args:
      motion: with its joints in the robot's order.

    Raises:
      InputRefused: the robot has no left-right symmetry.
    """
    if augmentation.level or augmentation.time_warp != 1.0 or augmentation.loop > 1 or not motion.has_controls:
        return None
    try:
        bind_recording(motion, robot)
    except MotionRefused:
        return None
    recording = motion.recording
    assert recording is not None
    if augmentation.mirror and robot.model.nq != 7 + len(robot.joint_names):
        # Of a joint that no clip lists no partner is known.
        return None
    recording = replace(recording, ctrl=order_actuators(motion.name, recording, robot), actuator_names=None)
    if augmentation.mirror:
        recording = _mirror(recording, robot)
    if augmentation.heading != 0.0:
        place = motion.root_pos[0] * (_REFLECTION if augmentation.mirror else 1.0)
        recording = _turn(recording, robot, math.radians(augmentation.heading), place)
    return recording


def _mirror(recording: Recording, robot: Robot) -> Recording:
    """The mirror image about the world's xz plane: a turn rate is a pseudovector, whose image has the signs -, +, -."""
    symmetry, q, v = symmetry_of(robot), robot.root_qpos_adr, robot.root_qvel_adr

    def mirror_states(qpos: Array) -> Array:
        result = qpos.copy()
        result[:, q : q + 3] *= _REFLECTION
        result[:, q + 3 : q + 7] = rotations.to_wxyz(rotations.mirror_y(robot.root_rotation(qpos)))
        result[:, robot.qpos_adr] = symmetry.mirror_joints(qpos[:, robot.qpos_adr])
        return result

    qvel = recording.initial_qvel.copy()
    qvel[v : v + 3] *= _REFLECTION
    qvel[v + 3 : v + 6] *= -_REFLECTION
    rates = symmetry.sign * qvel[robot.qvel_adr]
    qvel[robot.qvel_adr[symmetry.partner]] = rates
    ctrl = recording.ctrl.reshape(-1, recording.ctrl.shape[2]).copy()
    ctrl[:, robot.ctrl_adr] = symmetry.mirror_joints(ctrl[:, robot.ctrl_adr])
    states = recording.recorded_qpos
    return replace(
        recording,
        ctrl=ctrl.reshape(recording.ctrl.shape),
        initial_qpos=mirror_states(recording.initial_qpos[None])[0],
        initial_qvel=qvel,
        recorded_qpos=None if states is None else mirror_states(states),
    )


def _turn(recording: Recording, robot: Robot, angle: float, place: Array) -> Recording:
    """The recording turned by `angle` rad about the vertical through `place`; controls and rates in the body's frame stay."""
    q, v = robot.root_qpos_adr, robot.root_qvel_adr

    def turn_states(qpos: Array) -> Array:
        result = qpos.copy()
        result[:, q : q + 3] = rotations.rotate_about_vertical(qpos[:, q : q + 3], angle, place)
        result[:, q + 3 : q + 7] = rotations.to_wxyz(rotations.rotate_yaw(robot.root_rotation(qpos), angle))
        return result

    qvel = recording.initial_qvel.copy()
    qvel[v : v + 3] = rotations.rotate_about_vertical(qvel[None, v : v + 3], angle)[0]
    states = recording.recorded_qpos
    return replace(
        recording,
        initial_qpos=turn_states(recording.initial_qpos[None])[0],
        initial_qvel=qvel,
        recorded_qpos=None if states is None else turn_states(states),
    )
