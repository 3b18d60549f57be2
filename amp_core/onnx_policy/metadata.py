"""A model's metadata against the spec and the robot.

Exports of mjlab and BeyondMimic carry the joints, servos, default pose and action scales that the policy was trained with, as
lists with commas. What contradicts the spec is refused, because one of the two is wrong; servos other than the robot's are a
warning, because such a policy still answers, for another robot than it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from amp_core.errors import PolicyRefused
from amp_core.onnx_policy.spec import PolicySpec
from amp_core.robot import Robot

__all__ = ["check_metadata"]

_ROUNDING = 6e-4
"""rad, or share of a scale: exports round to three places."""
_GAIN_SHARE = 0.02
_MAX_NAMES = 3


def check_metadata(metadata: Mapping[str, str], file: str, spec: PolicySpec, robot: Robot) -> list[str]:
    """Compare what a model says of itself with the spec and the robot.

    Args:
      metadata: by the names that exports use: `joint_names`, `default_joint_pos`, `action_scale`, `anchor_body_name`,
        `body_names`, `joint_stiffness`, `joint_damping`.
      file: the model's, for errors.

    Returns:
      Warnings, with figures: servos that differ from the robot's.

    Raises:
      PolicyRefused: names, sizes, default pose, scales or the anchor contradict the spec; names the key of the metadata.
    """
    joints = _split(metadata.get("joint_names"))
    if joints:
        _check_joints(joints, file, spec)
    names = joints or list(spec.joints)
    _check_numbers(metadata, "default_joint_pos", file, dict(zip(spec.joints, spec.default_pose or (), strict=False)), names)
    _check_numbers(metadata, "action_scale", file, dict(zip(spec.action.joints, spec.action.scale, strict=True)), names)
    anchor = metadata.get("anchor_body_name", "").strip()
    uses_anchor = any(term.kind.startswith("motion_anchor") or term.bodies for term in spec.terms)
    if anchor and uses_anchor and anchor != spec.anchor_body:
        _refuse(file, "anchor_body_name", f"the policy's anchor is {anchor!r}, the spec's {spec.anchor_body!r}")
    bodies = _split(metadata.get("body_names"))
    for term in spec.terms:
        if bodies and "body" in term.kind and term.bodies and set(term.bodies) == set(bodies) and list(term.bodies) != bodies:
            _refuse(file, "body_names", f"the bodies of the term {term.name!r} are in another order than the policy's")
    return _compare_servos(metadata, file, names, robot)


def _check_joints(joints: Sequence[str], file: str, spec: PolicySpec) -> None:
    if list(joints) == list(spec.joints):
        return
    missing = [joint for joint in joints if joint not in spec.joints]
    extra = [joint for joint in spec.joints if joint not in joints]
    if missing or extra:
        problem = f"the policy has {len(joints)} joints, the spec {len(spec.joints)}"
        problem += f"; not in the spec: {', '.join(missing[:_MAX_NAMES])}" if missing else ""
        problem += f"; not in the policy: {', '.join(extra[:_MAX_NAMES])}" if extra else ""
        _refuse(file, "joint_names", problem)
    index = next(index for index, pair in enumerate(zip(joints, spec.joints, strict=True)) if pair[0] != pair[1])
    _refuse(
        file,
        "joint_names",
        f"the policy's joint {index} is {joints[index]!r}, the spec's {spec.joints[index]!r}: another order",
    )


def _check_numbers(metadata: Mapping[str, str], key: str, file: str, values: Mapping[str, float], names: Sequence[str]) -> None:
    """Refuse numbers of the metadata that are not those of the spec, joint by joint."""
    numbers = _parse(metadata, key, file)
    if not numbers or not values:
        return
    if len(numbers) == 1:
        numbers = numbers * len(names)
    if len(numbers) != len(names):
        # An action on some of the joints has as many scales.
        names = list(values)
    if len(numbers) != len(names):
        _refuse(file, key, f"it has {len(numbers)} numbers, and the spec {len(names)}")
    for name, number in zip(names, numbers, strict=True):
        expected = values.get(name, number)
        if abs(number - expected) > _ROUNDING * max(1.0, abs(expected)):
            _refuse(file, key, f"{name!r} has {number:g} in the policy and {expected:g} in the spec")


def _compare_servos(metadata: Mapping[str, str], file: str, names: Sequence[str], robot: Robot) -> list[str]:
    model, warnings = robot.model, []
    columns = [robot.joint_names.index(name) for name in names if name in robot.joint_names]
    actuators = robot.ctrl_adr[columns]
    for key, title, unit, gains in (
        ("joint_stiffness", "kp", "N·m/rad", model.actuator_gainprm[actuators, 0]),
        ("joint_damping", "kd", "N·m·s/rad", -model.actuator_biasprm[actuators, 2]),
    ):
        numbers = np.array(_parse(metadata, key, file))
        if not len(numbers) or len(numbers) != len(gains):
            continue
        differs = np.abs(numbers - gains) > np.maximum(_GAIN_SHARE * np.abs(gains), 1.1e-3)
        if differs.any():
            order = np.argsort(-np.abs(numbers - gains), kind="stable")[:_MAX_NAMES]
            worst = ", ".join(f"{names[j]} {numbers[j]:g} here {gains[j]:g}" for j in order if differs[j])
            warnings.append(
                f"{key}: the policy was trained with other servos than {robot.name} has, on {int(differs.sum())} of "
                f"{len(gains)} joints ({title} in {unit}: {worst})"
            )
    return warnings


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text and text.strip() else []


def _parse(metadata: Mapping[str, str], key: str, file: str) -> list[float]:
    try:
        return [float(part) for part in _split(metadata.get(key))]
    except ValueError:
        _refuse(file, key, "it is no list of numbers")


def _refuse(file: str, key: str, what: str) -> NoReturn:
    raise PolicyRefused(
        what,
        file=file,
        key=key,
        expected="metadata of the model that agree with the spec",
        remedy="Correct the spec by the policy, or leave the key out of the spec: then it is taken from the model",
    )
