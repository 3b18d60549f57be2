"""What a `robot.yaml` changes in its model before it is compiled: fixed joints, servos, and a floor where there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.errors import RobotRefused
from amp_core.robot.spec import RobotSpec, Servo
from amp_core.strict_yaml import quote

Array = npt.NDArray[np.float64]
Setting = TypeVar("Setting", Servo, float)

FLOOR = "floor"
"""The name of the ground plane that a model without one gets."""

_JOINT_TRANSMISSIONS = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)


def change_model(model: Any, spec: RobotSpec, file: str) -> None:
    """Change an `MjSpec` as the robot file says.

    Args:
      model: the `MjSpec` of the model file as it is; changed in place.
      file: the robot file, which refusals name.

    Raises:
      RobotRefused: a pattern matches no joint, or two match one; or a joint cannot be fixed.
    """
    angles = match_joints(spec.fixed, model, "fixed", file)
    _fix_joints(model, angles, file)
    servos = match_joints(spec.servos, model, "servos", file)
    if spec.servos:
        _replace_servos(model, servos)
    if lacks_floor(model, spec):
        _add_floor(model)


def is_changed(model: Any, spec: RobotSpec) -> bool:
    """Whether the robot file changes anything in the model of this `MjSpec`."""
    return bool(spec.fixed or spec.servos) or lacks_floor(model, spec)


def lacks_floor(model: Any, spec: RobotSpec) -> bool:
    """Whether the model has no plane at all and the robot file names none, so that a floor is added."""
    planes = (geom for geom in model.geoms if geom.type == mujoco.mjtGeom.mjGEOM_PLANE)
    return spec.ground_geom is None and next(planes, None) is None


def match_joints(patterns: Iterable[tuple[str, Setting]], model: Any, key: str, file: str) -> dict[str, Setting]:
    """The settings by the names of the joints whose whole name their patterns match, in the model's order.

    Raises:
      RobotRefused: a pattern matches no joint of the model, or two match one.
    """
    names = [joint.name for joint in model.joints if joint.name and joint.type != mujoco.mjtJoint.mjJNT_FREE]
    result: dict[str, Setting] = {}
    first: dict[str, str] = {}
    for pattern, setting in patterns:
        matches = [name for name in names if re.fullmatch(pattern, name)]
        if not matches:
            raise RobotRefused(
                f"no joint of the model matches {quote(pattern)}",
                file=file,
                key=key,
                expected=f"a regular expression for the whole name of some of: {', '.join(names[:40]) or 'none'}",
                remedy="Correct the pattern, or remove it",
            )
        for name in matches:
            if name in first:
                raise RobotRefused(
                    f"the joint {quote(name)} matches both {quote(first[name])} and {quote(pattern)}",
                    file=file,
                    key=key,
                    expected="one pattern a joint",
                    remedy="Make one of them narrower",
                )
            first[name], result[name] = pattern, setting
    return {name: result[name] for name in names if name in result}


def _fix_joints(model: Any, angles: Mapping[str, float], file: str) -> None:
    """Weld joints at an angle: their bodies are turned, and joints, actuators, sensors and couplings of them removed."""
    for name, angle in angles.items():
        joint = model.joint(name)
        body = joint.parent
        first = body.joints[0]
        if first.name != name:
            raise RobotRefused(
                f"the joint {quote(name)} cannot be fixed: on its body {quote(first.name)} comes first, and moves",
                file=file,
                key="fixed",
                expected="a joint that is alone on its body, or the first of it",
                remedy="Fix both, or give each a body of its own in the MJCF",
            )
        _turn_body(model, joint, angle, file)
        for tendon in model.tendons:
            if any(wrap.type == mujoco.mjtWrap.mjWRAP_JOINT and wrap.target.name == name for wrap in tendon.path):
                raise RobotRefused(
                    f"the joint {quote(name)} cannot be fixed: the tendon {quote(tendon.name)} pulls on it",
                    file=file,
                    key="fixed",
                    expected="a joint without a tendon",
                    remedy="Take the tendon out of the MJCF",
                )
        for element in _list_dependents(model, name):
            model.delete(element)
        model.delete(joint)
    # A keyframe has an angle for every joint; nothing here reads them.
    for key in list(model.keys) if angles else ():
        model.delete(key)


def _list_dependents(model: Any, name: str) -> list[Any]:
    """The actuators, couplings and sensors of a joint."""
    return [
        *(actuator for actuator in model.actuators if _drives(actuator, {name})),
        *(pair for pair in model.equalities if pair.type == mujoco.mjtEq.mjEQ_JOINT and name in (pair.name1, pair.name2)),
        *(sensor for sensor in model.sensors if sensor.objtype == mujoco.mjtObj.mjOBJ_JOINT and sensor.objname == name),
    ]


def _turn_body(model: Any, joint: Any, angle: float, file: str) -> None:
    """Put the body of a joint where the joint would at an angle [rad], or in the case of a slide at a distance [m]."""
    body, compiler = joint.parent, model.compiler
    rotation, place = np.array(body.quat), np.array(body.pos)
    if body.alt.type != mujoco.mjtOrientation.mjORIENTATION_QUAT:
        quat = model.resolve_orientation(degree=compiler.degree, sequence=compiler.eulerseq, orientation=body.alt)
        rotation = np.array(quat)
        body.alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT
    rotation /= np.linalg.norm(rotation)
    axis = np.array(joint.axis) / np.linalg.norm(joint.axis)
    shift = np.zeros(3)
    if joint.type == mujoco.mjtJoint.mjJNT_HINGE:
        turn = np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, axis, angle - (math.radians(joint.ref) if compiler.degree else joint.ref))
        new_anchor = np.zeros(3)
        mujoco.mju_rotVecQuat(new_anchor, np.array(joint.pos), turn)
        shift = np.array(joint.pos) - new_anchor
        quat = np.zeros(4)
        mujoco.mju_mulQuat(quat, rotation, turn)
        body.quat = quat
    elif joint.type == mujoco.mjtJoint.mjJNT_SLIDE:
        shift = axis * (angle - joint.ref)
        body.quat = rotation
    elif angle != 0.0:
        raise RobotRefused(
            f"the ball joint {quote(joint.name)} cannot be fixed at {angle:g}", file=file, key="fixed", expected="0"
        )
    step = np.zeros(3)
    mujoco.mju_rotVecQuat(step, shift, rotation)
    body.pos = place + step


def _replace_servos(model: Any, servos: Mapping[str, Servo]) -> None:
    """Give each of these joints one position servo, in place of what drives it now."""
    limits = {name: _read_limit(model, name) for name in servos}
    for actuator in list(model.actuators):
        if _drives(actuator, servos):
            model.delete(actuator)
    for joint in list(model.joints):
        servo = servos.get(joint.name)
        if servo is None:
            continue
        actuator = model.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=servo.kp, kv=servo.kd)
        actuator.ctrllimited = mujoco.mjtLimited.mjLIMITED_FALSE
        limit = servo.limit or limits[joint.name]
        if limit is not None:
            actuator.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
            actuator.forcerange = [-limit, limit]
        if servo.armature is not None:
            joint.armature = servo.armature


def _read_limit(model: Any, name: str) -> float | None:
    """N·m, the most that the model's own actuator of a joint can push; None where it has none, or no limit."""
    for actuator in model.actuators:
        if not _drives(actuator, {name}):
            continue
        gear = abs(float(actuator.gear[0]))
        force = float(np.abs(actuator.forcerange).max()) * gear
        control = float(np.abs(actuator.ctrlrange).max()) * abs(float(actuator.gainprm[0])) * gear
        # A motor's control is a force; that of a servo is an angle.
        is_motor = actuator.biastype == mujoco.mjtBias.mjBIAS_NONE
        return force or (control if is_motor else 0.0) or None
    return None


def _drives(actuator: Any, names: Iterable[str]) -> bool:
    return actuator.trntype in _JOINT_TRANSMISSIONS and actuator.target in names


def _add_floor(model: Any) -> None:
    """A plane at z = 0 that touches every geom that can touch anything."""
    solid = [geom for geom in model.geoms if geom.contype or geom.conaffinity]
    plane = model.worldbody.add_geom(name=FLOOR, type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05])
    plane.contype = 1 | int(np.bitwise_or.reduce([geom.conaffinity for geom in solid] or [0]))
    plane.conaffinity = 1 | int(np.bitwise_or.reduce([geom.contype for geom in solid] or [0]))
