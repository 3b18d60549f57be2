"""A motion's recorded controls, bound to a robot: its actuators, its physics steps, its states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Motion, shape_text
from amp_core.formats.joint_names import join_names, match_joint_names
from amp_core.formats.recording import Recording
from amp_core.motion.joint_order import reorder_joints
from amp_core.recipe import RECORDED

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

STEP_TOLERANCE = 1e-3
"""Relative: rates are written with four digits (33.33 fps), and a control lasts a whole number of physics steps."""

NORM_TOLERANCE = 1e-3
LEAST_ROWS = 2
SAME_POSE = 1e-3
"""m, rad: a first frame so near to the initial pose may be it, rounded to three decimals; and it is not the next one."""

SAME_POSE_SHARE = 0.1
"""… where it is by so much nearer than the second frame."""

ROUNDING = 1e-12
"""m, rad: of a quaternion that is read, compared and written in double precision."""

MISREAD_RAD, READ_RAD = 0.5, 0.1
"""A quaternion in another order is far from the first frame's, and near to it in the right one."""


@dataclass(frozen=True, eq=False)
class BoundRecording:
    """A recording for one robot: M control steps of R physics steps each, N frames in the file.

    Args:
      source: as the file has it.
      ctrl: (M, R, nu) rad in the model's actuator order, before they are clipped to the actuators' range; (M, 1, nu) where they
        are held for whole control steps.
      initial_qpos, initial_qvel: (nq,), (nv,) the state that the simulation starts with.
      steps_per_control: physics steps that each of the file's controls is held.
      frame_steps: physics steps a frame.
      rows: `after` or `before`: whether frame k shows the state after or before its controls.
      rows_reason: how that is known, in words.
      dropped_steps: physics steps at the end that are not simulated.
    """

    source: Recording
    ctrl: Array
    initial_qpos: Array
    initial_qvel: Array
    steps_per_control: int
    frame_steps: int
    rows: str
    rows_reason: str
    dropped_steps: int

    @property
    def varies(self) -> bool:
        """Whether the controls change within a control step."""
        return bool(self.ctrl.shape[1] > 1)

    def sample_times(self, substeps: int) -> Array:
        """(M,) when each row's state is reached, in frames of the poses that `add_start` gives.

        Args:
          substeps: physics steps a control step of the robot.
        """
        return np.arange(1, len(self.ctrl) + 1, dtype=np.float64) * (substeps / self.frame_steps)

    def add_start(self, initial: Array, frames: Array) -> Array:
        """(P, k) the clip's frames from time 0 on: with the `initial` one (k,) before those that stand after their controls."""
        return np.concatenate([initial[None], frames]) if self.rows == "after" else frames


def bind_recording(motion: Motion, robot: Robot) -> BoundRecording:
    """A motion's recorded controls for a robot, expanded to its physics steps.

    Args:
      motion: with its joints in the robot's order.

    Raises:
      MotionRefused: there are no controls, or they do not fit the robot or its physics step.
    """
    recording = motion.recording
    if motion.recording_fault is not None:
        fault = motion.recording_fault
        raise MotionRefused(
            fault.what, file=motion.name, key=fault.key, frame=fault.frame, expected=fault.expected, remedy=fault.remedy
        )
    if recording is None:
        raise MotionRefused(
            "the clip carries no controls, which mode recorded simulates",
            file=motion.name,
            key="ctrl",
            expected="ctrl (N, nu) or (N, S, nu), initial_qpos and initial_qvel beside the kinematics",
            remedy="Record the controls too (docs/recorded.md), or score it in mode auto, which plans them",
        )
    controls = order_actuators(motion.name, recording, robot)
    _check_state(motion, recording, robot)
    frames, per_frame, width = controls.shape
    held_steps = _count_steps(motion, per_frame, robot)
    frame_steps = per_frame * held_steps
    rows, reason = _find_rows(motion, recording, robot)
    # Of the last frame's controls no frame shows the outcome where it stands before them.
    shown_steps = frame_steps * (frames if rows == "after" else frames - 1)
    count = shown_steps // robot.substeps
    if count < LEAST_ROWS:
        raise MotionRefused(
            f"the recording lasts {shown_steps * robot.sim_dt:.4g} s",
            file=motion.name,
            key="ctrl",
            expected=f"at least {LEAST_ROWS} control steps of {robot.control_dt:g} s",
            remedy="Record the whole motion, or check fps",
        )
    steps = np.repeat(controls.reshape(-1, width), held_steps, axis=0)[: count * robot.substeps]
    steps = steps.reshape(count, robot.substeps, width)
    if (steps == steps[:, :1]).all():
        steps = steps[:, :1]
    return BoundRecording(
        source=recording,
        ctrl=steps,
        initial_qpos=recording.initial_qpos,
        initial_qvel=recording.initial_qvel,
        steps_per_control=held_steps,
        frame_steps=frame_steps,
        rows=rows,
        rows_reason=reason,
        dropped_steps=frames * frame_steps - count * robot.substeps,
    )


def order_actuators(file: str, recording: Recording, robot: Robot) -> Array:
    """(N, S, nu) the controls in the model's order of actuators.

    Raises:
      MotionRefused: another number of columns, or names that are not the robot's; names `file`.
    """
    model, columns = robot.model, recording.ctrl.shape[2]
    actuators = [str(model.actuator(i).name) for i in range(model.nu)]
    # Each listed joint has one actuator, and there is no other.
    joints = [""] * model.nu
    for joint, actuator in zip(robot.joint_names, robot.ctrl_adr.tolist(), strict=True):
        joints[actuator] = joint
    names = recording.actuator_names
    if names is not None and len(names) != columns:
        raise MotionRefused(
            f"it names {len(names)} actuators, ctrl has {columns} columns",
            file=file,
            key="actuator_names",
            expected="one name for each column of ctrl",
            remedy="Correct the names, or leave them out",
        )
    if columns != model.nu:
        raise MotionRefused(
            f"it has {columns} columns, the robot {robot.name!r} has {model.nu} actuators",
            file=file,
            key="ctrl",
            expected=f"one column for each of {join_names(joints)}",
            remedy="Choose the robot that was controlled, or write the targets of its servos alone",
        )
    if names is None:
        return recording.ctrl
    places = match_joint_names(names, actuators) or match_joint_names(names, joints)
    if places is None:
        raise MotionRefused(
            f"the file's actuators are not the robot's: it has {join_names(names)}",
            file=file,
            key="actuator_names",
            expected=f"the actuators of the robot {robot.name!r} or their joints: {join_names(joints)}",
            remedy="Choose the robot that was controlled, or write the robot's names",
        )
    return recording.ctrl if places == list(range(columns)) else recording.ctrl[:, :, places]


def _check_state(motion: Motion, recording: Recording, robot: Robot) -> None:
    """Refuse an initial state that is none of this robot, or whose quaternion is in another order."""
    model, first = robot.model, robot.root_qpos_adr + 3
    layouts = (
        ("initial_qpos", recording.initial_qpos, model.nq, "place, quaternion wxyz, joints in the model's order"),
        ("initial_qvel", recording.initial_qvel, model.nv, "the root's velocity and turn rate, the joints' rates"),
    )
    for key, state, width, layout in layouts:
        if len(state) != width:
            raise MotionRefused(
                f"its shape is {shape_text(state.shape)}",
                file=motion.name,
                key=key,
                expected=f"({width},) for the robot {robot.name!r}: {layout}, as MuJoCo has them",
                remedy="Choose the robot that was controlled, or write the whole state of its model",
            )
    quaternion = recording.initial_qpos[first : first + 4]
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1.0) > NORM_TOLERANCE:
        raise MotionRefused(
            f"the root's quaternion has the norm {norm:.4g}",
            file=motion.name,
            key="initial_qpos",
            expected=f"a unit quaternion w, x, y, z in columns {first} to {first + 3}, to {NORM_TOLERANCE:g}",
            remedy="Write MuJoCo's own data.qpos",
        )
    clip = rotations.normalize(motion.root_rot[:1])
    as_wxyz, as_xyzw = (
        float(rotations.angle_between(clip, quat)[0]) for quat in (rotations.to_xyzw(quaternion)[None], quaternion[None])
    )
    if as_wxyz > MISREAD_RAD and as_xyzw < READ_RAD:
        raise MotionRefused(
            f"its quaternion is {as_wxyz:.2f} rad from root_rot's first frame as w, x, y, z, and {as_xyzw:.2g} as x, y, z, w",
            file=motion.name,
            key="initial_qpos",
            frame=0,
            expected="MuJoCo's order w, x, y, z",
            remedy=f"Write columns {first} to {first + 3} as w, x, y, z: quat[[3, 0, 1, 2]]",
        )


def _count_steps(motion: Motion, per_frame: int, robot: Robot) -> int:
    """Physics steps of the robot that each control is held."""
    duration = 1.0 / (motion.fps * per_frame)
    steps = duration / robot.sim_dt
    count = round(steps)
    if count < 1 or abs(steps - count) > STEP_TOLERANCE * count:
        rates = sorted({1.0 / (robot.sim_dt * max(1, n)) for n in (math.floor(steps), math.ceil(steps))})
        raise MotionRefused(
            f"a control lasts {duration:.6g} s ({motion.fps:g} fps, {per_frame} a frame), which is {steps:.4g} physics steps",
            file=motion.name,
            key="fps",
            expected=f"a whole number of the robot's physics steps of {robot.sim_dt:g} s, such as "
            + " or ".join(f"{rate:.6g} controls a second" for rate in rates),
            remedy="Record at such a rate, or write the controls of every physics step as (N, S, nu)",
        )
    return count


def _find_rows(motion: Motion, recording: Recording, robot: Robot) -> tuple[str, str]:
    """Whether frame k shows the state after or before its controls, and how that is known."""
    initial = recording.initial_qpos[None]
    pose = robot.root_rotation(initial), initial[:, robot.root_qpos_adr : robot.root_qpos_adr + 3], initial[:, robot.qpos_adr]
    rotation = rotations.normalize(motion.root_rot[:2])

    def distance(i: int, quat: Array, place: Array, joints: Array) -> float:
        return max(
            float(np.abs(motion.root_pos[i] - place[0]).max()),
            float(rotations.angle_between(rotation[i : i + 1], rotations.normalize(quat))[0]),
            float(np.abs(motion.dof_pos[i] - joints[0]).max()),
        )

    start = distance(0, *pose)
    step = distance(1, rotation[:1], motion.root_pos[:1], motion.dof_pos[:1])
    if start <= max(ROUNDING, min(SAME_POSE, SAME_POSE_SHARE * step)):
        return "before", f"frame 0 is initial_qpos (to {start:.2g}), so frame k stands before its controls"
    if start <= SAME_POSE:
        reason = (
            f"frame 0 is {start:.2g} from initial_qpos and {step:.2g} from frame 1: the robot hardly moves at first, which "
        )
        return "after", reason + "leaves it open; frame k was taken to stand after its controls"
    return "after", f"frame 0 is {start:.3g} (m, rad) from initial_qpos, so frame k stands after its controls"


def check_controls(motion: Motion, robot: Robot, mode: str) -> None:
    """Refuse a motion for mode `recorded` whose controls cannot be simulated.

    Raises:
      MotionRefused: as `bind_recording`; the other modes can do without the controls.
    """
    if mode == RECORDED:
        bind_recording(reorder_joints(motion, robot)[0], robot)
