"""The field's file layouts: each is recognized by its keys, and read where that is safe, or named with the mapping to write.

A layout that is read gives the four plain keys (`values.KEYS`) and the joints' names, if it has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits
from amp_core.formats.joint_names import NAME_KEYS, ROOT_COLUMNS, join_names, parse_names
from amp_core.formats.recording_keys import RECORDING_KEYS
from amp_core.formats.values import KEYS, PickledDict, RawArray, matrix, root_body

__all__ = ["FIELD_KEYS", "Layout", "find_layout", "read_layout", "unwrap_clip"]

Fields = Mapping[str, Any]
Array = NDArray[np.float64]

_UNIT_NORM = 0.05
_TILTED, _UPRIGHT = math.radians(45.0), math.radians(30.0)
_ROOT_BODY = re.compile(r"pelvis|base|root|torso|trunk|waist|hips?$", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """One way to lay out a clip in a file.

    Args:
      name: whose files have it, for errors.
      keys: all of them are there.
      order: of its quaternions; None where each file decides, or where it has none.
      read: gives the plain keys, root_rot in the layout's order.
    """

    name: str
    keys: tuple[str, ...]
    order: str | None
    read: Callable[[Fields, Limits], dict[str, Any]]


def find_layout(keys: Collection[str]) -> Layout | None:
    """The layout of a file with these keys; None for the plain one and for what is not recognized."""
    if all(key in keys for key in KEYS[1:]):
        return None
    return next((layout for layout in LAYOUTS if all(key in keys for key in layout.keys)), None)


def unwrap_clip(fields: Fields) -> Fields:
    """The clip in a dictionary that has one dictionary a clip, as PHC and ASAP write it; else `fields` themselves.

    Raises:
      MotionRefused: it holds more than one clip; names them.
    """
    nested = [value for value in fields.values() if isinstance(value, dict | PickledDict)]
    if not nested or len(nested) < len(fields):
        return fields
    # The first alone: the same dictionary may be there a million times.
    clips = [value if isinstance(value, dict) else value.fields(unique=FIELD_KEYS) for value in nested[:1]]
    if not any(key in FIELD_KEYS for key in clips[0]):
        return fields
    if len(nested) > 1:
        raise MotionRefused(
            f"it holds {len(nested)} clips: {join_names(list(fields))}",
            expected="one clip a file",
            remedy="Write each clip to a file: for name, clip in clips.items(): np.savez(name + '.npz', **clip)",
        )
    return clips[0]


def _read_qpos(fields: Fields, limits: Limits) -> dict[str, Any]:
    """MuJoCo's qpos: position, quaternion wxyz, joints; holosoma has the quaternion first."""
    qpos = matrix("qpos", fields["qpos"], limits)
    splits = fields.get("split_points")
    if isinstance(splits, RawArray) and len(splits.shape) == 1 and splits.shape[0] > 2:
        _refuse(
            "qpos",
            f"it holds {splits.shape[0] - 1} trajectories (split_points)",
            "one clip a file",
            "Write each trajectory to a file: qpos[split_points[i]:split_points[i + 1]]",
        )
    mapping = "root_pos = qpos[:, :3], root_rot = qpos[:, [4, 5, 6, 3]] (xyzw), dof_pos = qpos[:, 7:]"
    if qpos.shape[1] <= ROOT_COLUMNS:
        _refuse("qpos", f"it has {qpos.shape[1]} columns", "position (3), quaternion (4) and at least one joint", mapping)
    starts = [start for start in (3, 0) if _is_unit(qpos[:, start : start + 4])]
    if len(starts) != 1:
        place = "no quaternion in columns 4 to 7" if not starts else "a quaternion in columns 1 to 4 and in columns 4 to 7"
        _refuse("qpos", f"it has {place}", "MuJoCo's qpos: position, quaternion wxyz, joints", f"Write {mapping}")
    start = starts[0]
    position = qpos[:, :3] if start == 3 else qpos[:, 4:ROOT_COLUMNS]
    return {"root_pos": position, "root_rot": qpos[:, start : start + 4], "dof_pos": qpos[:, ROOT_COLUMNS:]}


def _read_isaaclab(fields: Fields, limits: Limits) -> dict[str, Any]:
    """IsaacLab's AMP files: bodies with names, one of which is the root."""
    bodies = fields["body_positions"]
    count = bodies.shape[1] if isinstance(bodies, RawArray) and len(bodies.shape) == 3 else 0
    names = parse_names("body_names", fields.get("body_names"))
    roots = [place for place, name in enumerate(names) if _ROOT_BODY.search(name)]
    if count > 1 and roots[:1] != [0]:
        _refuse(
            "body_names",
            f"the first of its bodies ({join_names(names) or 'without names'}) does not look like the root",
            "the root first",
            "For the root i, write root_pos = body_positions[:, i], root_rot = body_rotations[:, i][:, [1, 2, 3, 0]] (xyzw) "
            "and dof_pos = dof_positions",
        )
    return {
        "root_pos": root_body("body_positions", bodies, 0, limits),
        "root_rot": root_body("body_rotations", fields["body_rotations"], 0, limits),
        "dof_pos": matrix("dof_positions", fields["dof_positions"], limits),
    }


def _read_mjlab(fields: Fields, limits: Limits) -> dict[str, Any]:
    """BeyondMimic, mjlab and holosoma: body 0 is the root; without names, the order of the joints is unknown."""
    joints = matrix("joint_pos", fields["joint_pos"], limits)
    if not any(key in fields for key in NAME_KEYS):
        _refuse(
            "joint_names",
            "it does not name its joints: mjlab writes them in MuJoCo's order, Isaac breadth-first",
            "joint_names beside joint_pos",
            "Add the names: np.savez('clip.npz', joint_names=[…], **np.load('motion.npz'))",
        )
    counts = {len(parse_names(key, fields.get(key))) for key in NAME_KEYS}
    if joints.shape[1] - ROOT_COLUMNS in counts and _is_unit(joints[:, 3:ROOT_COLUMNS]):
        joints = joints[:, ROOT_COLUMNS:]
    return {
        "root_pos": root_body("body_pos_w", fields["body_pos_w"], 0, limits),
        "root_rot": root_body("body_quat_w", fields["body_quat_w"], 0, limits),
        "dof_pos": joints,
    }


def _read_phc(fields: Fields, limits: Limits) -> dict[str, Any]:
    return {"root_pos": fields["root_trans_offset"], "root_rot": fields["root_rot"], "dof_pos": fields["dof"]}


def _read_amp_rsl_rl(fields: Fields, limits: Limits) -> dict[str, Any]:
    return {
        "root_pos": fields["root_position"],
        "root_rot": fields["root_quaternion"],
        "dof_pos": fields["joint_positions"],
    }


def _read_protomotions(fields: Fields, limits: Limits) -> dict[str, Any]:
    return {
        "root_pos": root_body("rigid_body_pos", fields["rigid_body_pos"], 0, limits),
        "root_rot": root_body("rigid_body_rot", fields["rigid_body_rot"], 0, limits),
        "dof_pos": fields["dof_pos"],
    }


def _read_mimickit(fields: Fields, limits: Limits) -> dict[str, Any]:
    """MimicKit: position, exponential map, joints in each frame."""
    frames = matrix("frames", fields["frames"], limits)
    if frames.shape[1] <= 6:
        _refuse(
            "frames", f"it has {frames.shape[1]} columns", "position (3), exponential map (3) and joints", "Export it again"
        )
    return {
        "root_pos": frames[:, :3],
        "root_rot": rotations.from_rotation_vector(frames[:, 3:6]),
        "dof_pos": frames[:, 6:],
    }


def _refuse_deepmimic(fields: Fields, limits: Limits) -> NoReturn:
    _refuse(
        "Frames",
        "the columns of a DeepMimic clip (Frames, FrameDuration) differ from robot to robot",
        "the keys " + ", ".join(KEYS),
        "Write fps = 1 / FrameDuration, root_pos = Frames[:, :3], root_rot = Frames[:, 3:7] (check that it is xyzw), and "
        "dof_pos = the columns of the joints' angles",
    )


def _refuse_phuma(fields: Fields, limits: Limits) -> NoReturn:
    _refuse(
        "root_ori",
        "a PHUMA clip does not say the order of its quaternions",
        "the keys " + ", ".join(KEYS),
        "Write root_pos = root_trans and root_rot = root_ori in the order xyzw",
    )


def _refuse_smpl(fields: Fields, limits: Limits) -> NoReturn:
    _refuse(
        "poses",
        "this is a person's motion (AMASS, SMPL), not a robot's",
        "a clip that was retargeted to the robot",
        "Retarget it first, for example with GMR",
    )


LAYOUTS = (
    Layout("MuJoCo's qpos", ("qpos",), "wxyz", _read_qpos),
    Layout("IsaacLab AMP", ("dof_positions", "body_positions", "body_rotations"), "wxyz", _read_isaaclab),
    Layout("BeyondMimic, mjlab", ("joint_pos", "body_pos_w", "body_quat_w"), "wxyz", _read_mjlab),
    Layout("PHC, ASAP", ("root_trans_offset", "root_rot", "dof"), "xyzw", _read_phc),
    Layout("amp-rsl-rl", ("root_position", "root_quaternion", "joint_positions"), "xyzw", _read_amp_rsl_rl),
    Layout("ProtoMotions", ("rigid_body_pos", "rigid_body_rot", "dof_pos"), "xyzw", _read_protomotions),
    Layout("MimicKit", ("loop_mode", "frames"), None, _read_mimickit),
    Layout("DeepMimic", ("Frames", "FrameDuration"), None, _refuse_deepmimic),
    Layout("PHUMA", ("root_trans", "root_ori"), None, _refuse_phuma),
    Layout("AMASS, SMPL", ("poses", "trans"), None, _refuse_smpl),
)

FIELD_KEYS = (
    frozenset(KEYS)
    | frozenset(NAME_KEYS)
    | RECORDING_KEYS
    | {"body_names", "frequency", "split_points"}
    | {key for layout in LAYOUTS for key in layout.keys}
)
"""Every key that is read from some file."""


def read_layout(layout: Layout, fields: Fields, quat_order: str | None, limits: Limits) -> dict[str, Any]:
    """The plain keys of a clip in a layout, with root_rot as xyzw, and the joints' names.

    Raises:
      MotionRefused: the layout is named only, its arrays are damaged, or its quaternions look like the other order.
    """
    plain = layout.read(fields, limits)
    rotation = plain["root_rot"]
    if not isinstance(rotation, np.ndarray):
        rotation = matrix("root_rot", rotation, limits)
    order = quat_order or layout.order if layout.order else None
    if quat_order is None and order == "wxyz" and rotation.shape[1] == 4 and np.isfinite(rotation).all():
        # No other reading is tried on these later: it is known what the layout's order should be.
        as_wxyz, as_xyzw = (float(rotations.tilt(quat).mean()) for quat in (rotations.to_xyzw(rotation), rotation))
        if as_wxyz > _TILTED and as_xyzw < _UPRIGHT:
            _refuse(
                layout.keys[-1],
                f"the quaternions look like xyzw, where {layout.name} has wxyz: read as wxyz the root is tilted by "
                f"{math.degrees(as_wxyz):.0f} degrees on average, read as xyzw by {math.degrees(as_xyzw):.0f}",
                "quaternions wxyz in this layout",
                "Read it with quat_order=xyzw (--quat-order xyzw)",
            )
    plain["root_rot"] = rotations.to_xyzw(rotation) if order == "wxyz" and rotation.shape[1] == 4 else rotation
    if "fps" in fields or "frequency" in fields:
        plain["fps"] = fields["fps" if "fps" in fields else "frequency"]
    return {**plain, **{key: fields[key] for key in NAME_KEYS if key in fields}}


def _is_unit(quaternions: Array) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((np.abs(np.linalg.norm(quaternions, axis=1) - 1.0) < _UNIT_NORM).all())


def _refuse(key: str, what: str, expected: str, remedy: str) -> NoReturn:
    raise MotionRefused(what, key=key, expected=expected, remedy=remedy)
