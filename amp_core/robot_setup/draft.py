"""A first `robot.yaml` for a model: what can be read from it, and guesses, each of which is said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.errors import RobotRefused
from amp_core.formats.joint_names import split_words
from amp_core.kinematics import support
from amp_core.robot.changes import FLOOR
from amp_core.robot.model import ModelReader, compile_model, derive_name
from amp_core.robot.spec import DEFAULT_CONTROL_DT, RobotSpec, Servo

Array = npt.NDArray[np.float64]

_STANDING_KEYS = re.compile(r"stand|home|knees|init|default", re.IGNORECASE)
_HAND = re.compile(r"hand|finger|thumb|gripper|index|middle", re.IGNORECASE)
_LOWEST_SHARE = 0.03
"""Of the root's height: bodies whose lowest point is within it of the lowest of all are feet."""

_SOLE_SHARE = 0.005
"""Of the same: the geoms of a foot that are as low as its lowest one are its sole."""

_LONG_SHARE = 0.75
"""Of a sole's length: a geom that is longer belongs to toe and heel alike."""

_FREQUENCY_HZ = 10.0
_DAMPING_RATIO = 2.0
"""Of a servo whose gains nobody gave: those of BeyondMimic's G1 (Liao et al. 2025, arXiv:2508.08241), from the armature."""

_HEIGHT_SHARES = (0.5, 1.3)
"""Of the root's height in the standing pose: `height_range`."""


@dataclass
class Draft:
    """A `robot.yaml` and what was guessed for it.

    Args:
      document: its keys and values.
      guesses: by key, in words, what was guessed and by what.
    """

    document: dict[str, Any]
    guesses: dict[str, list[str]] = field(default_factory=dict)

    def guess(self, key: str, text: str) -> None:
        self.guesses.setdefault(key, []).append(text)

    def to_yaml(self) -> str:
        """The file's text, the guesses above their keys as comments."""
        lines = ["# Written by `ampref robot init`; docs/robots.md explains each key. Look at every guess."]
        for key, value in self.document.items():
            lines += [f"# {text}" for text in self.guesses.get(key, ())]
            if isinstance(value, dict):
                lines += [f"{key}:", *(f"  {_quote(name)}: {_flow(entry)}" for name, entry in value.items())]
            else:
                lines.append(f"{key}: {_flow(value)}")
        return "\n".join(lines) + "\n"


def draft_robot(model_path: Path, joints: Sequence[str] | None = None, folder: Path | None = None) -> Draft:
    """Draft the robot file of a model.

    Args:
      joints: names of the joints in the order of the clips' columns; by default all that move, in the model's order.
      folder: where the file will be; by default beside the model.

    Raises:
      RobotRefused: MuJoCo cannot compile the model, or it has no free joint, or not these joints.
    """
    folder = (folder or model_path.parent).resolve()
    path = folder / "robot.yaml"
    source = model_path.resolve()
    relative = source.relative_to(folder) if source.is_relative_to(folder) else source
    bare = RobotSpec(None, str(source), DEFAULT_CONTROL_DT, None, (), None, (0.0, 1.0), None)
    model, _ = compile_model(bare, path)
    reader = ModelReader(model, str(model_path))
    root = reader.find_free_joint()
    root_body = int(model.jnt_bodyid[root])
    draft = Draft({"model": str(relative)})
    name = bytes(model.names).split(b"\0", 1)[0].decode("utf-8", "replace")
    draft.document["name"] = derive_name("" if name == "MuJoCo Model" else name) or derive_name(model_path.stem) or "robot"
    hinges = _list_joints(model, root_body)
    welds = _choose_welds(draft, model, hinges, joints, str(model_path))
    columns = list(joints) if joints is not None else [name for name in hinges if name not in welds]
    draft.document["control_dt"] = _choose_control_dt(draft, model)
    draft.document["joints"] = columns
    data = _pose(draft, model)
    if servos := _guess_servos(draft, model, data, columns):
        draft.document["servos"] = servos
    if welds:
        draft.document["fixed"] = {name: round(float(data.joint(name).qpos[0]), 6) + 0.0 for name in welds}
    lowest = _find_feet(draft, model, data, root_body)
    _choose_ground(draft, model)
    height = float(data.xpos[root_body, 2]) - lowest
    low, high = (math.floor(100 * height * share) / 100 for share in _HEIGHT_SHARES)
    draft.document["height_range"] = [max(low, 0.01), high]
    draft.guess(
        "height_range", f"The root is {height:.3f} m above the soles in the standing pose; {_HEIGHT_SHARES} times that."
    )
    draft.document["expected_mass"] = round(float(model.body_subtreemass[root_body]), 4)
    return draft


def _list_joints(model: Any, root_body: int) -> dict[str, int]:
    """The robot's joints but the free one, by name."""
    result = {}
    for joint in range(model.njnt):
        is_own = model.body_rootid[model.jnt_bodyid[joint]] == root_body
        if is_own and model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE and model.joint(joint).name:
            result[str(model.joint(joint).name)] = joint
    return result


def _choose_welds(draft: Draft, model: Any, hinges: Mapping[str, int], joints: Sequence[str] | None, file: str) -> list[str]:
    """The joints to weld: those that no clip has; without a clip those of hands, those that do not turn, and passive ones."""
    if joints is not None:
        if missing := [name for name in joints if name not in hinges]:
            raise RobotRefused(
                f"the model has no joint {missing[0]!r}, which the clip has",
                file=file,
                key="joints",
                expected=f"some of: {', '.join(list(hinges)[:40])}",
                remedy="Use the model that the clip was retargeted to",
            )
        welds = [name for name in hinges if name not in joints]
        if welds:
            draft.guess("fixed", "Joints that the clip does not have, at their angle in the standing pose [rad].")
        draft.guess("joints", "In the order of the clip's columns.")
        return welds
    motors = {int(model.actuator_trnid[i, 0]) for i in range(model.nu)}
    is_hinge = {name: model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE for name, joint in hinges.items()}
    hands = [name for name in hinges if _HAND.search(name)]
    passive = [name for name, joint in hinges.items() if motors and joint not in motors and name not in hands]
    rest = [name for name in hinges if not is_hinge[name] and name not in hands and name not in passive]
    for names, text in (
        (hands, "Joints of hands, which motion clips rarely have."),
        (passive, "Joints that no actuator drives: {names}."),
        (rest, "Joints that slide or turn every way, which no column of a clip is: {names}."),
    ):
        if names:
            draft.guess("fixed", text.format(names=", ".join(names)))
    draft.guess("joints", "All joints that are not fixed, in the model's order. Is it the order of your clips' columns?")
    return [name for name in hinges if name in {*hands, *passive, *rest}]


def _choose_control_dt(draft: Draft, model: Any) -> float:
    timestep = float(model.opt.timestep)
    substeps = max(1, round(DEFAULT_CONTROL_DT / timestep))
    if abs(substeps * timestep - DEFAULT_CONTROL_DT) > 1e-9:
        draft.guess(
            "control_dt", f"The whole multiple of the model's timestep of {timestep:g} s next to {DEFAULT_CONTROL_DT:g} s."
        )
    return round(substeps * timestep, 9)


def _pose(draft: Draft, model: Any) -> Any:
    """The robot in its standing pose: a keyframe that is named so, else the first one, else the model's zero pose."""
    data = mujoco.MjData(model)
    keys = [str(model.key(i).name) for i in range(model.nkey)]
    standing = next((i for i, name in enumerate(keys) if _STANDING_KEYS.search(name)), 0 if keys else None)
    if standing is None:
        mujoco.mj_kinematics(model, data)
        pose = "the model's zero pose"
    else:
        mujoco.mj_resetDataKeyframe(model, data, standing)
        mujoco.mj_kinematics(model, data)
        pose = f"the keyframe {keys[standing] or standing!r}"
    draft.guess("height_range", f"The standing pose is {pose}.")
    mujoco.mj_comPos(model, data)
    return data


def _guess_servos(draft: Draft, model: Any, data: Any, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Servos for the joints that the model drives otherwise or not at all, alike ones under one pattern."""
    groups: dict[tuple[str, Servo], list[str]] = {}
    for name in names:
        joint = int(model.joint(name).id)
        actuators = [i for i in range(model.nu) if int(model.actuator_trnid[i, 0]) == joint]
        if len(actuators) == 1 and model.actuator_biastype[actuators[0]] == mujoco.mjtBias.mjBIAS_AFFINE:
            continue
        servo = _guess_servo(model, data, joint, actuators)
        groups.setdefault((_pattern_of(name), servo), []).append(name)
    if groups:
        draft.guess(
            "servos",
            f"The model has no gains. These are guesses, {_FREQUENCY_HZ:g} Hz and a damping ratio of {_DAMPING_RATIO:g} by "
            "the armature, or from the torque limit where it has none: put in those of your controller.",
        )
    result = {}
    for (pattern, servo), members in groups.items():
        values = {"kp": servo.kp, "kd": servo.kd} | ({} if servo.limit is None else {"limit": servo.limit})
        is_only = all(re.fullmatch(pattern, name) is None for name in names if name not in members)
        for key in [pattern] if is_only else members:
            result[key] = values
    return result


def _guess_servo(model: Any, data: Any, joint: int, actuators: Sequence[int]) -> Servo:
    dof = int(model.jnt_dofadr[joint])
    limit = None
    if model.jnt_actfrclimited[joint]:
        limit = float(np.abs(model.jnt_actfrcrange[joint]).max())
    for actuator in actuators:
        gear = abs(float(model.actuator_gear[actuator, 0]))
        if model.actuator_forcelimited[actuator]:
            limit = float(np.abs(model.actuator_forcerange[actuator]).max()) * gear
        elif model.actuator_ctrllimited[actuator]:
            limit = float(np.abs(model.actuator_ctrlrange[actuator]).max()) * gear
    omega = 2.0 * math.pi * _FREQUENCY_HZ
    armature = float(model.dof_armature[dof])
    if armature > 0.0:
        kp, kd = armature * omega**2, 2.0 * _DAMPING_RATIO * armature * omega
    else:
        kp = limit if limit is not None else 10.0 * float(model.body_subtreemass[model.jnt_bodyid[joint]])
        kd = kp / 20.0
    return Servo(float(f"{kp:.4g}"), float(f"{kd:.4g}"), None if limit is None else float(f"{limit:.6g}"))


def _pattern_of(name: str) -> str:
    """A pattern for a joint and its counterpart on the other side."""
    escaped = re.escape(name).replace(r"\-", "-")
    return re.sub(r"(?i)(?<![a-z])(left|right)(?![a-z])", "(left|right)", escaped, count=1)


def _find_feet(draft: Draft, model: Any, data: Any, root_body: int) -> float:
    """Choose the contact channels; the height [m] of the lowest point of the feet."""
    geoms = [
        geom
        for geom in range(model.ngeom)
        if model.body_rootid[model.geom_bodyid[geom]] == root_body
        and (model.geom_contype[geom] or model.geom_conaffinity[geom])
    ]
    if not geoms:
        raise RobotRefused(
            "the robot has no geom that can touch anything",
            key="contact_channels",
            expected="collision geoms on its feet (contype, conaffinity)",
            remedy="Add them to the MJCF",
        )
    ups = data.geom_xmat[:, 6:9]
    low = {geom: float(data.geom_xpos[geom, 2] - support(model, geom, ups[geom][None])[0]) for geom in geoms}
    lowest = min(low.values())
    height = float(data.xpos[root_body, 2]) - lowest
    feet: dict[int, list[int]] = {}
    for geom in geoms:
        if low[geom] <= lowest + _LOWEST_SHARE * height:
            feet.setdefault(int(model.body_weldid[model.geom_bodyid[geom]]), []).append(geom)
    soles = {
        weld: [geom for geom in members if low[geom] <= min(low[member] for member in members) + _SOLE_SHARE * height]
        for weld, members in feet.items()
    }
    middle = data.xpos[root_body]
    axes = data.xmat[root_body].reshape(3, 3)
    channels: dict[str, Any] = {}
    centres = {weld: (data.geom_xpos[members].mean(axis=0) - middle) @ axes for weld, members in soles.items()}
    for weld, members in soles.items():
        bodies = sorted({int(model.geom_bodyid[geom]) for geom in members})
        label = _label_foot(str(model.body(bodies[0]).name), centres[weld], list(centres.values()))
        halves = _split_sole(model, data, members, axes) if all(model.geom(geom).name for geom in members) else None
        if halves is not None:
            channels |= {f"{label}_{end}": [str(model.geom(geom).name) for geom in half] for end, half in halves.items()}
        elif len(bodies) == 1 and all(model.geom(geom).name for geom in members):
            channels[label] = [str(model.geom(geom).name) for geom in members]
        else:
            channels[label] = {"body": str(model.body(bodies[0]).name)}
    draft.document["contact_channels"] = channels
    names = ", ".join(str(model.body(weld).name) for weld in soles)
    draft.guess("contact_channels", f"The lowest bodies in the standing pose: {names}. +x is forward, +y left, of the root.")
    return lowest


def _label_foot(body: str, centre: Array, centres: Sequence[Array]) -> str:
    """A name by where a foot is: `left`, or `front_left` where there are two a side."""
    words = split_words(body)
    side = next((word for word in words if word in ("left", "right")), "left" if centre[1] > 0 else "right")
    if len(centres) <= 2:
        return side if len(centres) == 2 else "foot"
    end = "front" if centre[0] > float(np.mean([place[0] for place in centres])) else "rear"
    return f"{end}_{side}"


def _split_sole(model: Any, data: Any, geoms: Sequence[int], axes: Array) -> dict[str, list[int]] | None:
    """The geoms of the front and of the rear of a sole, parted between their centres; None where one is too long."""
    forward = axes[:, 0]
    centres, reaches = [], []
    for geom in geoms:
        rotation = data.geom_xmat[geom].reshape(3, 3)
        centres.append(float((data.geom_xpos[geom] + rotation @ model.geom_aabb[geom, :3]) @ forward))
        # How far its bounding box reaches along the root's x axis.
        reaches.append(float(np.abs(rotation.T @ forward) @ model.geom_aabb[geom, 3:]))
    low, high = np.subtract(centres, reaches), np.add(centres, reaches)
    length = float(high.max() - low.min())
    order = np.argsort(centres)
    gaps = np.diff(np.array(centres)[order])
    if not len(gaps) or 2 * max(reaches) > _LONG_SHARE * length:
        return None
    split = int(np.argmax(gaps)) + 1
    heel, toe = order[:split], order[split:]
    if high[heel].max() - low[toe].min() > (1 - _LONG_SHARE) * length:
        return None
    return {"toe": [geoms[i] for i in sorted(toe)], "heel": [geoms[i] for i in sorted(heel)]}


def _choose_ground(draft: Draft, model: Any) -> None:
    planes = [geom for geom in range(model.ngeom) if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE]
    names = [str(model.geom(geom).name) for geom in planes if model.geom(geom).name != FLOOR or len(planes) > 1]
    if len(planes) > 1 and names and names[0]:
        draft.document["ground_geom"] = names[0]
        draft.guess("ground_geom", f"The first of the planes {', '.join(names)}.")


def _quote(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) else f"'{text}'"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quote(key)}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        text = f"{value:.9f}".rstrip("0")
        return text + "0" if text.endswith(".") else text
    return _quote(str(value))
