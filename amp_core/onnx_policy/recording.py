"""Run a policy on a clip in the robot's own model, and keep what it did: the clip with the controls."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.errors import PhysicsFailed, PolicyRefused
from amp_core.formats import Recording
from amp_core.formats.recording import encode_recording
from amp_core.metrics import FALLEN_TILT_DEG
from amp_core.motion import Conditioned
from amp_core.npz import write_npz
from amp_core.onnx_policy.model_file import ModelFile
from amp_core.onnx_policy.observation import Observer, TermSlice
from amp_core.onnx_policy.ports import ModelPorts
from amp_core.onnx_policy.reference import ClipReference
from amp_core.onnx_policy.session import PolicySession
from amp_core.onnx_policy.spec import PolicySpec
from amp_core.robot import Robot
from amp_core.rotations import tilt
from amp_core.strict_json import canonical_json
from amp_core.version import __version__

__all__ = ["PolicyRun", "record"]

Array = npt.NDArray[np.float64]

_FALLEN_RAD = np.deg2rad(FALLEN_TILT_DEG)


@dataclass(frozen=True, eq=False)
class PolicyRun:
    """What a policy did on a clip of N frames. Row k is the state after control k, and so the time of the clip's frame k + 1.

    Args:
      clip: as it was conditioned for the robot.
      ctrl: (N, nu) rad, in the model's order of actuators, inside their range.
      qpos: (N, nq) as MuJoCo has it.
      slices: of the observation.
      facts: what made it: digests of the policy, the spec, the robot and the clip, and versions.
    """

    robot: Robot
    clip: Conditioned
    ctrl: Array
    qpos: Array
    slices: tuple[TermSlice, ...]
    facts: Mapping[str, Any]

    @property
    def fell_at(self) -> int | None:
        """The first frame with a tilt over 60° or a root outside the robot's heights, below; None if it never fell."""
        root = self.robot.root_qpos_adr
        is_fallen = (tilt(self.robot.root_rotation(self.qpos)) > _FALLEN_RAD) | (
            self.qpos[:, root + 2] < self.robot.height_range[0]
        )
        return int(np.argmax(is_fallen)) if is_fallen.any() else None

    @property
    def joint_rmse(self) -> float:
        """rad, root mean square difference from the clip's joint angles, over joints and frames, as mode `recorded` has it."""
        return float(np.sqrt(np.mean((self.qpos[:-1, self.robot.qpos_adr] - self.clip.dof_pos[1:]) ** 2)))

    @property
    def root_drift(self) -> float:
        """m, greatest horizontal distance of the root from the clip's."""
        root = self.robot.root_qpos_adr
        return float(np.linalg.norm(self.qpos[:-1, root : root + 2] - self.clip.root_pos[1:, :2], axis=1).max())

    def to_bytes(self) -> bytes:
        """The clip as an npz that `read_motion` reads, with its controls. The same run gives the same bytes."""
        clip, model = self.clip, self.robot.model
        actuator_names = tuple(str(model.actuator(index).name) for index in range(model.nu))
        controls = Recording(
            ctrl=self.ctrl[:, None],
            initial_qpos=clip.initial_qpos,
            initial_qvel=clip.initial_qvel,
            recorded_qpos=self.qpos,
            actuator_names=actuator_names if all(actuator_names) else None,
            timestep=self.robot.sim_dt,
            mujoco_version=mujoco.__version__,
        )
        members: dict[str, Any] = {
            "fps": np.float64(clip.fps),
            "root_pos": clip.root_pos,
            "root_rot": clip.root_rot,
            "dof_pos": clip.dof_pos_raw,
            "joint_names": np.array(self.robot.joint_names),
            **encode_recording(controls),
            "recording": np.frombuffer(canonical_json(dict(self.facts)), np.uint8),
        }
        stream = io.BytesIO()
        write_npz(stream, members)
        return stream.getvalue()


def record(
    robot: Robot,
    clip: Conditioned,
    spec: PolicySpec,
    model: ModelFile,
    session: PolicySession,
    progress: Callable[[int], None] | None = None,
) -> PolicyRun:
    """Run a policy on a clip.

    The simulation starts from the clip's first frame and its velocity. Before each control step the policy sees the state and
    the clip's frame of the same number; its targets are held over the step's physics substeps. There is no harness.

    Args:
      clip: conditioned for this robot.
      progress: called with the number of frames that are done.

    Raises:
      PolicyRefused: sizes or rates of spec, model and robot contradict each other; or an answer is not finite: names the frame.
      PhysicsFailed: MuJoCo warned, or a state is not finite: names the frame.
    """
    reference = ClipReference.of(clip, robot)
    observer = Observer(spec, robot, reference)
    ports = ModelPorts(spec, model, observer)
    hold = _count_held_steps(spec, robot)
    action_spec = spec.action
    columns = np.array([robot.joint_names.index(joint) for joint in action_spec.joints], dtype=np.int64)
    scale = np.array(action_spec.scale)
    default_pose = robot.model.qpos0[robot.qpos_adr].copy()  # Of joints that the policy does not know.
    for joint, angle in zip(spec.joints, spec.default_pose or (), strict=False):
        default_pose[robot.joint_names.index(joint)] = angle

    data = mujoco.MjData(robot.model)
    data.qpos[:], data.qvel[:] = clip.initial_qpos, clip.initial_qvel
    ctrl, qpos = np.zeros((clip.num_frames, robot.model.nu)), np.empty((clip.num_frames, robot.model.nq))
    action = np.zeros(len(columns))
    targets = np.zeros(len(robot.joint_names))
    for frame in range(clip.num_frames):
        if frame % hold == 0:
            observation = observer.observe(data.qpos, data.qvel, frame, action)
            clip_frame = min(max(frame + spec.frame_offset, 0), clip.num_frames - 1)
            action = ports.ask(session, observation, clip_frame, frame)
            targets = (clip.dof_pos[clip_frame] if action_spec.other_joints == "reference" else default_pose).copy()
            offset = {"reference": clip.dof_pos[clip_frame], "default_pose": default_pose, "zero": np.zeros_like(targets)}
            values = action if action_spec.clip is None else np.clip(action, *action_spec.clip)
            targets[columns] = offset[action_spec.offset][columns] + scale * values
        ctrl[frame, robot.ctrl_adr] = targets
        np.clip(ctrl[frame], *robot.ctrl_range, out=ctrl[frame])
        data.ctrl[:] = ctrl[frame]
        mujoco.mj_step(robot.model, data, nstep=robot.substeps)
        warnings = [mujoco.mjtWarning(w).name.removeprefix("mjWARN_") for w, count in enumerate(data.warning.number) if count]
        if warnings or not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            reason = f"MuJoCo warned: {', '.join(warnings)}" if warnings else "the state is not finite"
            raise PhysicsFailed(
                f"the simulation cannot go on under this policy: {reason}",
                file=model.file,
                frame=frame,
                expected="actions that the robot can follow",
                remedy="Compare scale, offset and order of the joints with how the policy was trained",
            )
        qpos[frame] = data.qpos
        if progress is not None:
            progress(frame + 1)
    facts = {
        "clip": {"name": clip.name, "source_digest": clip.source_digest},
        "generator": f"ampref {__version__}",
        "mujoco": mujoco.__version__,
        "onnxruntime": session.runtime_version,
        "policy_digest": model.digest,
        "robot": {"name": robot.name, "digest": robot.digest},
        "spec_digest": spec.digest,
    }
    return PolicyRun(robot, clip, ctrl, qpos, observer.slices, facts)


def _count_held_steps(spec: PolicySpec, robot: Robot) -> int:
    """Control steps of the robot that one answer of the policy is held for."""
    if spec.control_rate is None:
        return 1
    steps = 1.0 / (spec.control_rate * robot.control_dt)
    if abs(steps - round(steps)) > 1e-3 * steps or round(steps) < 1:
        raise PolicyRefused(
            f"the policy answers at {spec.control_rate:g} Hz, and {robot.name} is controlled at {1.0 / robot.control_dt:g} Hz",
            file=spec.file,
            key="control_rate",
            expected="the robot's rate, or a whole fraction of it",
            remedy=f"Set control_dt: {1.0 / spec.control_rate:g} in a robot.yaml of your own (docs/robots.md)",
        )
    return round(steps)
