"""The kinds of observation terms, each a formula over the robot's state and the clip.

docs/tracking-policies.md has the table of names, sizes, frames and units. Definitions follow those that trackers of this field
are trained with: projected gravity and velocities in the body's frame, and the clip's anchor in the robot's anchor, as in
BeyondMimic (Liao et al., 2025). Angles are in rad, lengths in m, velocities in rad/s and m/s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.onnx_policy.reference import ClipReference
from amp_core.onnx_policy.state import RobotState
from amp_core.rotations import pitch_roll_tilt, to_xyzw

__all__ = ["COMMON_OPTIONS", "KINDS", "ROTATIONS", "Kind", "Moment", "Operands", "Term"]

Array = npt.NDArray[np.float64]

COMMON_OPTIONS = ("name", "kind", "scale", "clip", "history", "delay", "order", "start")
ROTATIONS = ("6d_row_major", "6d_column_major", "quat_wxyz", "quat_xyzw")


@dataclass(frozen=True)
class Term:
    """One term of an observation, with every option at its value or its default.

    Args:
      joints, bodies: what it is of, in its order.
      frames: frames ahead of the observed frame of the clip; their values stand one after another.
      rotation: one of `ROTATIONS`.
      body: whose velocity or tilt it is; `point`: (3,) m, in that body's frame, whose velocity it is.
      frame: where bodies of the clip are seen from: the anchor of the clip's own robot (`reference`) or of the robot (`robot`).
      form: of the phase: `share` or `sin_cos`.
      value: of a constant.
      scale: a factor for all numbers, or one for each.
      clip: bounds, before the scale.
      history: how many control steps it holds; `delay`: how many of the newest it leaves out.
      newest_first: the order of the history.
      starts_with_zeros: what stands for the time before the first step: zeros, or the first value.
    """

    name: str
    kind: str
    joints: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    frames: tuple[int, ...] = (0,)
    rotation: str = "6d_row_major"
    body: str = ""
    point: tuple[float, float, float] = (0.0, 0.0, 0.0)
    frame: str = "reference"
    form: str = "share"
    value: tuple[float, ...] = ()
    scale: tuple[float, ...] = (1.0,)
    clip: tuple[float, float] | None = None
    history: int = 1
    delay: int = 0
    newest_first: bool = False
    starts_with_zeros: bool = False


@dataclass(frozen=True)
class Operands:
    """A term with its names as indices: columns of the robot's joints, ids of bodies, and the default angles of its joints."""

    term: Term
    columns: npt.NDArray[np.int64]
    bodies: npt.NDArray[np.int64]
    body: int
    anchor: int
    default_pose: Array


@dataclass(frozen=True)
class Moment:
    """What an observation is made of, before control step `step`.

    Args:
      step: of the control steps, from 0.
      frame: of the clip, that a term's frame 0 is; beyond the clip's ends its first or last frame holds.
      last_action: (A,) what the policy answered before; zeros before the first step.
    """

    state: RobotState
    reference: ClipReference
    step: int
    frame: int
    last_action: Array

    def clamp(self, look_ahead: int) -> int:
        """The clip's frame so many frames ahead."""
        return min(max(self.frame + look_ahead, 0), self.reference.num_frames - 1)


Compute = Callable[[Operands, Moment, int], Array]
"""The values of a term; the last argument is the clip's frame, which counts for kinds of the clip alone."""


@dataclass(frozen=True)
class Kind:
    """A kind of term.

    Args:
      compute: the values.
      options: of the term, besides the common ones.
      needs_default: whether it is relative to the default pose.
    """

    compute: Compute
    options: tuple[str, ...] = ()
    needs_default: bool = False


def _encode_rotation(matrices: Array, encoding: str) -> Array:
    """(M, 3, 3) rotation matrices as one row of numbers; a quaternion has a non-negative real part."""
    if encoding == "6d_row_major":
        return matrices[:, :, :2].ravel()
    if encoding == "6d_column_major":
        return matrices[:, :, :2].swapaxes(1, 2).ravel()
    quat = np.empty((len(matrices), 4))
    for row, matrix in zip(quat, matrices, strict=True):
        mujoco.mju_mat2Quat(row, matrix.ravel())
    quat *= np.where(quat[:, :1] < 0.0, -1.0, 1.0)
    return (quat if encoding == "quat_wxyz" else to_xyzw(quat)).ravel()


def _roll_pitch(quat: Array) -> Array:
    pitch, roll, _ = pitch_roll_tilt(quat[None])
    return np.array([roll[0], pitch[0]])


def _relate_anchor_pos(o: Operands, m: Moment, frame: int) -> Array:
    offset = m.reference.body_pos[frame, o.anchor] - m.state.body_pos[o.anchor]
    return np.asarray(offset @ m.state.body_axes[o.anchor])


def _relate_anchor_rotation(o: Operands, m: Moment, frame: int) -> Array:
    relative = m.state.body_axes[o.anchor].T @ m.reference.body_axes[frame, o.anchor]
    return _encode_rotation(relative[None], o.term.rotation)


def _body_pos(o: Operands, m: Moment, _: int) -> Array:
    offsets = m.state.body_pos[o.bodies] - m.state.body_pos[o.anchor]
    return np.asarray(offsets @ m.state.body_axes[o.anchor]).ravel()


def _body_rotation(o: Operands, m: Moment, _: int) -> Array:
    return _encode_rotation(m.state.body_axes[o.anchor].T @ m.state.body_axes[o.bodies], o.term.rotation)


def _find_viewpoint(o: Operands, m: Moment, frame: int) -> tuple[Array, Array]:
    """The place and the axes of the anchor that bodies of the clip are seen from."""
    if o.term.frame == "robot":
        return m.state.body_pos[o.anchor], m.state.body_axes[o.anchor]
    return m.reference.body_pos[frame, o.anchor], m.reference.body_axes[frame, o.anchor]


def _reference_body_pos(o: Operands, m: Moment, frame: int) -> Array:
    origin, axes = _find_viewpoint(o, m, frame)
    return np.asarray((m.reference.body_pos[frame, o.bodies] - origin) @ axes).ravel()


def _reference_body_rotation(o: Operands, m: Moment, frame: int) -> Array:
    _, axes = _find_viewpoint(o, m, frame)
    return _encode_rotation(axes.T @ m.reference.body_axes[frame, o.bodies], o.term.rotation)


def _phase(o: Operands, m: Moment, frame: int) -> Array:
    share = frame / max(1, m.reference.num_frames - 1)
    if o.term.form == "share":
        return np.array([share])
    return np.array([np.sin(2 * np.pi * share), np.cos(2 * np.pi * share)])


KINDS: Mapping[str, Kind] = {
    # Of the robot's state.
    "joint_pos": Kind(lambda o, m, _: m.state.joint_pos[o.columns], ("joints",)),
    "joint_pos_rel": Kind(lambda o, m, _: m.state.joint_pos[o.columns] - o.default_pose, ("joints",), needs_default=True),
    "joint_vel": Kind(lambda o, m, _: m.state.joint_vel[o.columns], ("joints",)),
    "base_lin_vel": Kind(lambda o, m, _: m.state.point_velocity(o.body, o.term.point), ("body", "point")),
    "base_ang_vel": Kind(lambda o, m, _: m.state.angular_velocity(o.body), ("body",)),
    "projected_gravity": Kind(lambda o, m, _: -m.state.body_axes[o.body][2], ("body",)),
    "roll_pitch": Kind(lambda o, m, _: _roll_pitch(m.state.root_rot)),
    "base_height": Kind(lambda o, m, _: m.state.root_pos[2:].copy()),
    "base_rotation": Kind(
        lambda o, m, _: _encode_rotation(m.state.body_axes[o.body][None], o.term.rotation), ("body", "rotation")
    ),
    "body_pos": Kind(_body_pos, ("bodies",)),
    "body_rotation": Kind(_body_rotation, ("bodies", "rotation")),
    "last_action": Kind(lambda o, m, _: m.last_action.copy()),
    # Of the clip.
    "reference_joint_pos": Kind(lambda o, m, frame: m.reference.joint_pos[frame, o.columns], ("joints", "frames")),
    "reference_joint_pos_rel": Kind(
        lambda o, m, frame: m.reference.joint_pos[frame, o.columns] - o.default_pose, ("joints", "frames"), needs_default=True
    ),
    "reference_joint_vel": Kind(lambda o, m, frame: m.reference.joint_vel[frame, o.columns], ("joints", "frames")),
    "motion_command": Kind(
        lambda o, m, frame: np.concatenate([m.reference.joint_pos[frame, o.columns], m.reference.joint_vel[frame, o.columns]]),
        ("joints", "frames"),
    ),
    "reference_base_lin_vel": Kind(lambda o, m, frame: m.reference.root_lin_vel[frame], ("frames",)),
    "reference_base_ang_vel": Kind(lambda o, m, frame: m.reference.root_ang_vel[frame], ("frames",)),
    "reference_projected_gravity": Kind(lambda o, m, frame: -m.reference.body_axes[frame, o.body][2], ("body", "frames")),
    "reference_roll_pitch": Kind(lambda o, m, frame: _roll_pitch(m.reference.root_rot[frame]), ("frames",)),
    "reference_base_height": Kind(lambda o, m, frame: m.reference.root_pos[frame, 2:], ("frames",)),
    "reference_body_pos": Kind(_reference_body_pos, ("bodies", "frame", "frames")),
    "reference_body_rotation": Kind(_reference_body_rotation, ("bodies", "frame", "frames", "rotation")),
    "phase": Kind(_phase, ("form", "frames")),
    "time_step": Kind(lambda o, m, frame: np.array([float(frame)])),
    # Of the robot and the clip.
    "joint_pos_error": Kind(
        lambda o, m, frame: m.reference.joint_pos[frame, o.columns] - m.state.joint_pos[o.columns], ("joints", "frames")
    ),
    "joint_vel_error": Kind(
        lambda o, m, frame: m.reference.joint_vel[frame, o.columns] - m.state.joint_vel[o.columns], ("joints", "frames")
    ),
    "motion_anchor_pos": Kind(_relate_anchor_pos, ("frames",)),
    "motion_anchor_rotation": Kind(_relate_anchor_rotation, ("frames", "rotation")),
    # Of neither.
    "constant": Kind(lambda o, m, _: np.array(o.term.value), ("value",)),
}
"""Every kind by its name; `amp_core.onnx_policy.observation` concatenates what each gives."""
