"""The controls of a recorded motion as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Recording", "encode_recording"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recording:
    """The controls of a motion's N frames and the state before the first: arrays are read-only float64.

    Args:
      ctrl: (N, S, nu) rad, the targets of the position servos; each is held for 1/(fps·S) s. (N, nu) are taken as (N, 1, nu).
      initial_qpos: (nq,) as MuJoCo has it: m, quaternion wxyz, rad.
      initial_qvel: (nv,) as MuJoCo has it: m/s in the world, rad/s in the body's frame, rad/s.
      recorded_qpos: (N, nq) the state after each frame's controls in the simulation that they come from, or None.
      actuator_names: of the columns of `ctrl`, or None for the model's order.
      timestep: s, the physics step of that simulation; None where the file does not say.
      mujoco_version: of that simulation; None where the file does not say.
      harness_force: N, the most that a harness pushed there, as an export says; 0 without one.
    """

    ctrl: Array
    initial_qpos: Array
    initial_qvel: Array
    recorded_qpos: Array | None = None
    actuator_names: tuple[str, ...] | None = None
    timestep: float | None = None
    mujoco_version: str | None = None
    harness_force: float = 0.0

    def __post_init__(self) -> None:
        for key in ("ctrl", "initial_qpos", "initial_qvel", "recorded_qpos"):
            value = getattr(self, key)
            if value is not None:
                array = np.array(value, dtype=np.float64, order="C")
                array.setflags(write=False)
                if key == "ctrl" and array.ndim == 2:
                    array = array[:, None]
                object.__setattr__(self, key, array)

    @property
    def size(self) -> int:
        """Numbers in all arrays."""
        return self.ctrl.size + self.initial_qpos.size + self.initial_qvel.size + getattr(self.recorded_qpos, "size", 0)

    def cut(self, stop: int) -> Recording:
        """The recording of the frames before `stop`."""
        states = self.recorded_qpos
        return replace(self, ctrl=self.ctrl[:stop], recorded_qpos=None if states is None else states[:stop])


def encode_recording(recording: Recording) -> dict[str, NDArray[Any]]:
    """The members of an npz that has the recording, beside the kinematics: `ctrl` (N, nu) where a frame has one control."""
    members: dict[str, NDArray[Any]] = {
        "ctrl": recording.ctrl[:, 0] if recording.ctrl.shape[1] == 1 else recording.ctrl,
        "initial_qpos": recording.initial_qpos,
        "initial_qvel": recording.initial_qvel,
    }
    if recording.recorded_qpos is not None:
        members["recorded_qpos"] = recording.recorded_qpos
    if recording.actuator_names is not None:
        members["actuator_names"] = np.array(recording.actuator_names)
    if recording.timestep is not None:
        members["timestep"] = np.array(recording.timestep)
    if recording.mujoco_version is not None:
        members["mujoco_version"] = np.array(recording.mujoco_version)
    return members
