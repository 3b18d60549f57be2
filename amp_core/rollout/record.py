"""The record of one simulated clip, and its replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.errors import PhysicsFailed
from amp_core.metrics import SATURATED_FROM
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.tracking import Plan

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Failure:
    """Why a simulation stopped.

    Args:
      frame: the first frame that could not be simulated.
      reason: in words.
      warnings: MuJoCo's warnings by name, how often each was raised.
    """

    frame: int
    reason: str
    warnings: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Rollout:
    """One simulated clip: n joints, C channels, F feet, N rows. Arrays are read-only.

    Args:
      name, source_digest: the clip's.
      recipe: the settings that generated it.
      clip_frames: frames of the conditioned clip; N, unless the simulation failed.
      failure: why there are fewer rows, or None.
      features: (N, 2n+7+C) float32, canonical layout.
      foot_contacts: (N, C) float32 0/1: the channel's normal force in the last substep is above the recipe's threshold. An
        environment reads the same after stepping.
      channel_loads: (N, C) N, normal force on each channel, mean over the frame's substeps.
      sum_fn_per_frame: (N,) N, its sum over the channels.
      sum_fn_last_substep: (N,) N, the same sum in the last substep alone.
      dof_pos, dof_vel: (N, n) rad, rad/s, in feature order.
      root_pos: (N, 3) m; root_rot: (N, 4) xyzw; root_lin_vel: (N, 3) m/s; root_ang_vel: (N, 3) rad/s. All in the world frame.
      qpos, qvel: (N, nq), (N, nv) as MuJoCo has them.
      ctrl: (N, nu) rad. stab_force: (N,) N, signed, positive is up.
      initial_qpos, initial_qvel: (nq,), (nv,) the state before the first control step.
      forced_qpos: (N, nq) the pose written into `qpos` before each control step; None unless the mode is `teacher_forced`.
      reference_root_pos, reference_root_rot (xyzw), reference_dof_pos: (N, …) the clip's frames.
      reference_dof_pos_raw: (N, n) rad, the clip's joints before they were clipped to their limits.
      reference_contacts: (N, F) bool, the feet that stand in the clip (`kinematics.kinematic_contacts`).
      nonfoot_contact: (N,) bool, anything but a foot touched the ground in any substep.
      actuator_force: (N, nu) N·m (N for a slide), of each actuator in the last substep.
      foot_speed: (N, F) m/s, of `kinematics.FootTracker.speeds`.
      plan: the planned controls; None unless the mode is `tracked`.
      dt: s, a frame.
      ctrl_substeps: (N, substeps, nu) rad, the controls of each physics step where they change within a frame, of which `ctrl`
        is the last; else None.
    """

    name: str
    source_digest: str
    recipe: Recipe
    clip_frames: int
    failure: Failure | None
    # The export holds these arrays in this order.
    features: npt.NDArray[np.float32]
    foot_contacts: npt.NDArray[np.float32]
    dof_pos: Array
    dof_vel: Array
    root_pos: Array
    root_rot: Array
    root_lin_vel: Array
    root_ang_vel: Array
    qpos: Array
    qvel: Array
    ctrl: Array
    stab_force: Array
    sum_fn_per_frame: Array
    sum_fn_last_substep: Array
    channel_loads: Array
    initial_qpos: Array
    initial_qvel: Array
    reference_root_pos: Array
    reference_root_rot: Array
    reference_dof_pos: Array
    reference_dof_pos_raw: Array
    reference_contacts: npt.NDArray[np.bool_]
    nonfoot_contact: npt.NDArray[np.bool_]
    actuator_force: Array
    foot_speed: Array
    # The rest is not exported, but for `forced_qpos` and `ctrl_substeps` where there are such.
    forced_qpos: Array | None
    plan: Plan | None
    dt: float
    ctrl_substeps: Array | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def solver_warnings(self) -> int:
        """The number of warnings that MuJoCo raised."""
        return sum(self.failure.warnings.values()) if self.failure else 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The export, in its order: all that the metrics are measured from (`quality.FrameSeries.from_export`).

        `clip_frames` and `solver_warnings` are numbers, of shape (). `forced_qpos` is there in mode `teacher_forced` only,
        `ctrl_substeps` only in mode `recorded`, for controls that change within a frame.
        """
        names = [entry.name for entry in fields(self)]
        export = names[names.index("features") : names.index("forced_qpos")]
        arrays: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in export}
        # The specification's name for the series, beside this project's.
        arrays["stab_force_per_frame"] = np.abs(self.stab_force)
        arrays |= {name: np.array(getattr(self, name), dtype=np.int64) for name in ("clip_frames", "solver_warnings")}
        if self.forced_qpos is not None:
            arrays["forced_qpos"] = self.forced_qpos
        if self.ctrl_substeps is not None:
            arrays["ctrl_substeps"] = self.ctrl_substeps
        return arrays


def saturated_actuators(model: Any, force: Array) -> npt.NDArray[np.bool_]:
    """(N, nu) which actuators are at the limit of their force, from their forces (N, nu).

    The limit is the actuator's own (`forcerange`) or that of its joint (`actuatorfrcrange`), whichever is nearer. The second
    one cuts what arrives at the joint, so that the actuator's own force may be beyond it.
    """
    joints = model.actuator_trnid[:, 0]
    servo = np.where(model.actuator_forcelimited[:, None], model.actuator_forcerange, (-np.inf, np.inf))
    joint = np.where(model.jnt_actfrclimited[joints, None], model.jnt_actfrcrange[joints], (-np.inf, np.inf))
    low, high = np.maximum(servo[:, 0], joint[:, 0]), np.minimum(servo[:, 1], joint[:, 1])
    # A side whose limit is 0 cannot push that way at all; being there is no sign of strain. Nor is a finite force at none.
    at_high = (high > 0) & (force >= SATURATED_FROM * high)
    at_low = (low < 0) & (force <= SATURATED_FROM * low)
    return np.asarray(at_high | at_low)


def replay(robot: Robot, rollout: Rollout | Mapping[str, npt.NDArray[Any]], recipe: Recipe) -> tuple[Array, Array]:
    """Run the recorded controls again, from a fresh `MjData`, on the robot's own model.

    The data starts at `initial_qpos` and `initial_qvel`. Every row k writes `forced_qpos[k]` into `qpos` where the rollout has
    it, sets `ctrl` and the root's vertical `qfrc_applied`, and steps `substeps` times; where the rollout has `ctrl_substeps`,
    each step has its own controls. The **replay certificate** is that the result equals the recorded `qpos` and `qvel` bit for
    bit.

    Args:
      rollout: a rollout, or the arrays of its export.
      recipe: of the rollout, for its physics scale.

    Returns:
      (N, nq) and (N, nv).

    Raises:
      PhysicsFailed: an array is missing.
    """
    arrays = rollout if isinstance(rollout, Mapping) else rollout.arrays()
    required_keys = ("initial_qpos", "initial_qvel", "ctrl", "stab_force")
    for key in (*required_keys, *(("forced_qpos",) if recipe.mode == "teacher_forced" else ())):
        if key not in arrays:
            raise PhysicsFailed("the export lacks an array that the replay needs", key=key, expected=", ".join(required_keys))
    model = robot.scaled_model(recipe.physics)
    data = mujoco.MjData(model)
    data.qpos[:] = arrays["initial_qpos"]
    data.qvel[:] = arrays["initial_qvel"]
    forced_qpos, ctrl_substeps = arrays.get("forced_qpos"), arrays.get("ctrl_substeps")
    rows = len(arrays["ctrl"])
    qpos, qvel = np.empty((rows, model.nq)), np.empty((rows, model.nv))
    for k in range(rows):
        if forced_qpos is not None:
            data.qpos[:] = forced_qpos[k]
        data.ctrl[:] = arrays["ctrl"][k]
        data.qfrc_applied[robot.root_qvel_adr + 2] = arrays["stab_force"][k]
        if ctrl_substeps is None:
            mujoco.mj_step(model, data, nstep=robot.substeps)
        else:
            for ctrl in ctrl_substeps[k]:
                data.ctrl[:] = ctrl
                mujoco.mj_step(model, data)
        qpos[k], qvel[k] = data.qpos, data.qvel
    return qpos, qvel
