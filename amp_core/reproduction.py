"""Whether a recording reproduces: the states of its own simulation, or else its clip's frames, against those of this one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core import rotations
from amp_core.engine import mujoco
from amp_core.formats import Motion
from amp_core.motion import BoundRecording, reorder_joints
from amp_core.robot import Robot
from amp_core.rollout import Rollout
from amp_core.strict_json import json_data

__all__ = ["PARTS_JOINT_RAD", "PARTS_ROOT_M", "Reproduction", "measure_reproduction"]

Array = npt.NDArray[np.float64]

PARTS_ROOT_M = 0.01
"""m; from a greater distance of the root on, a recording parts."""

PARTS_JOINT_RAD = 0.05
"""rad; from a greater difference of a joint, or of the root's rotation, on."""

_TIMESTEP_ROUNDING = 1e-6


@dataclass(frozen=True)
class Reproduction:
    """How far a simulation of recorded controls is from what was recorded.

    Args:
      against: `recorded_qpos`, or `clip` for the frames of the file's kinematics.
      rows: `after` or `before`: whether frame k of the kinematics shows the state after or before its controls.
      rows_reason: how that is known, in words.
      frames, controls_per_frame, steps_per_control: of the file; and the robot's physics steps that each control is held.
      dropped_sec: s at the end of the recording that are not simulated.
      clipped_controls: share of the controls that are beyond their actuator's range.
      start_offset_m: m between the root of the initial state and that of the conditioned clip's first row.
      compared_states: how many states both have.
      exact: whether all of them are the same bit for bit; false where none could be compared.
      parts_at_frame, parts_at_sec: the first frame of the file, and its time, at which the two are apart; None for never.
      parts_by: what is apart then: `root_pos`, `root_rot` or a joint.
      max_root_m, max_root_rad, max_joint_rad: the greatest differences; None where no state could be compared.
      worst_joint: the joint with the greatest.
      final_root_m, final_joint_rad: in the last compared state.
      causes: what the file says of its own simulation and is otherwise in this one, in words.
    """

    against: str
    rows: str
    rows_reason: str
    frames: int
    controls_per_frame: int
    steps_per_control: int
    dropped_sec: float
    clipped_controls: float
    start_offset_m: float
    compared_states: int
    exact: bool
    parts_at_frame: int | None
    parts_at_sec: float | None
    parts_by: str | None
    max_root_m: float | None
    max_root_rad: float | None
    max_joint_rad: float | None
    worst_joint: str | None
    final_root_m: float | None
    final_joint_rad: float | None
    causes: tuple[str, ...]

    @property
    def parts(self) -> bool:
        return self.parts_at_frame is not None

    def explain(self) -> str:
        """The figures in one sentence without a full stop."""
        subject = "the states that were recorded" if self.against == "recorded_qpos" else "the clip's own frames"
        if not self.compared_states:
            return f"no state of this simulation is reached at the time of {subject}, so the two could not be compared"
        assert self.max_root_m is not None
        assert self.max_joint_rad is not None
        if self.exact:
            return f"its {self.compared_states} states are {subject}, bit for bit"
        greatest = f"at most {self.max_root_m:.2g} m (root) and {self.max_joint_rad:.2g} rad ({self.worst_joint})"
        if not self.parts:
            return f"it follows {subject}: {greatest}, in {self.compared_states} states"
        text = f"it parts from {subject} at {self.parts_at_sec:.2f} s (frame {self.parts_at_frame}, by {self.parts_by}): "
        text += f"{greatest}, {self.final_root_m:.2g} m and {self.final_joint_rad:.2g} rad at the end"
        causes = "; ".join(self.causes) or "another time step, servo gains, model or engine are the usual causes"
        if self.against == "clip":
            causes += ", or a controller that was only to follow these frames: the file has no recorded_qpos"
        return f"{text}; {causes}"

    def to_dict(self) -> dict[str, object]:
        """The object `recording` of an `ingest`, JSON-ready."""
        document: dict[str, object] = json_data(self)
        return document


def measure_reproduction(motion: Motion, recording: BoundRecording, rollout: Rollout, robot: Robot) -> Reproduction:
    """How far a rollout in mode `recorded` is from its recording.

    Args:
      motion: as its file has it.
      recording: that the rollout was simulated with.
    """
    states = _recorded_states(motion, recording, robot)
    first = 1 if recording.source.recorded_qpos is not None or recording.rows == "after" else 0
    # A state of the file has a row where a control step of the robot ends with it.
    steps = (np.arange(len(states)) + first) * recording.frame_steps
    frames = np.flatnonzero((steps > 0) & (steps % robot.substeps == 0) & (steps // robot.substeps <= len(rollout.qpos)))
    rows = steps[frames] // robot.substeps - 1
    columns = np.concatenate([robot.root_qpos_adr + np.arange(7), robot.qpos_adr])
    expected, actual = states[frames][:, columns], rollout.qpos[rows][:, columns]
    root = np.linalg.norm(actual[:, :3] - expected[:, :3], axis=1)
    turn = rotations.angle_between(*(rotations.normalize(rotations.to_xyzw(array[:, 3:7])) for array in (expected, actual)))
    joints = np.abs(actual[:, 7:] - expected[:, 7:])
    is_apart = (root > PARTS_ROOT_M) | (turn > PARTS_JOINT_RAD) | (joints.max(axis=1) > PARTS_JOINT_RAD)
    parts_at, parts_by, any_states = None, None, len(frames) > 0
    if is_apart.any():
        place = int(np.argmax(is_apart))
        parts_at = int(frames[place])
        shares = [root[place] / PARTS_ROOT_M, turn[place] / PARTS_JOINT_RAD, *(joints[place] / PARTS_JOINT_RAD)]
        parts_by = ("root_pos", "root_rot", *robot.joint_names)[int(np.argmax(shares))]
    low, high = robot.ctrl_range
    controls = recording.ctrl
    first_root = recording.initial_qpos[robot.root_qpos_adr : robot.root_qpos_adr + 3]
    return Reproduction(
        against="clip" if recording.source.recorded_qpos is None else "recorded_qpos",
        rows=recording.rows,
        rows_reason=recording.rows_reason,
        frames=len(recording.source.ctrl),
        controls_per_frame=recording.source.ctrl.shape[1],
        steps_per_control=recording.steps_per_control,
        dropped_sec=recording.dropped_steps * robot.sim_dt,
        clipped_controls=float(((controls < low) | (controls > high)).mean()),
        start_offset_m=float(np.linalg.norm(rollout.reference_root_pos[0] - first_root)) if len(rollout.qpos) else 0.0,
        compared_states=len(frames),
        exact=any_states and bool((expected == actual).all()),
        parts_at_frame=parts_at,
        parts_at_sec=None if parts_at is None else float(steps[parts_at] * robot.sim_dt),
        parts_by=parts_by,
        max_root_m=float(root.max()) if any_states else None,
        max_root_rad=float(turn.max()) if any_states else None,
        max_joint_rad=float(joints.max()) if any_states else None,
        worst_joint=robot.joint_names[int(joints.max(axis=0).argmax())] if any_states else None,
        final_root_m=float(root[-1]) if any_states else None,
        final_joint_rad=float(joints[-1].max()) if any_states else None,
        causes=tuple(_find_causes(recording, rollout, robot)),
    )


def _recorded_states(motion: Motion, recording: BoundRecording, robot: Robot) -> Array:
    """(N, nq) the states of the file, before any conditioning: they are in the recording's world."""
    if recording.source.recorded_qpos is not None:
        return recording.source.recorded_qpos
    motion, _ = reorder_joints(motion, robot)
    return robot.poses(motion.root_pos, motion.root_rot, motion.dof_pos)


def _find_causes(recording: BoundRecording, rollout: Rollout, robot: Robot) -> list[str]:
    """What the file says of its simulation and this one has otherwise."""
    source, causes = recording.source, []
    if source.timestep is not None and abs(source.timestep - robot.sim_dt) > _TIMESTEP_ROUNDING * robot.sim_dt:
        causes.append(f"it was recorded at a time step of {source.timestep:g} s, and this model has {robot.sim_dt:g} s")
    if source.mujoco_version is not None and source.mujoco_version != mujoco.__version__:
        causes.append(f"it was recorded with MuJoCo {source.mujoco_version}, and this is {mujoco.__version__}")
    if source.harness_force > 0.0:
        causes.append(f"a harness of up to {source.harness_force:.3g} N acted there, and none acts here")
    if not rollout.recipe.physics.is_identity:
        causes.append(f"it was simulated at {rollout.recipe.physics.name}")
    return causes
