"""Conditioning: a motion at the control rate, on the floor, inside the joint limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.formats.clip import Limits, Motion
from amp_core.lineage import Lineage
from amp_core.motion.checks import check_clip, find_leading, forward_speed
from amp_core.motion.joint_order import reorder_joints
from amp_core.motion.plausibility import Poses
from amp_core.motion.recording import BoundRecording, bind_recording
from amp_core.motion.report import DEEP_M, IngestReport, JointClip, write_notes
from amp_core.motion.resampling import interpolate, interpolate_rotations, resampled_count
from amp_core.motion.root_frame import RootFrame
from amp_core.recipe import GATE_PROFILE, RECORDED

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

# A norm this close to 1 is rounding in float32, and not worth reporting.
NORM_REPORTED = 1e-6
# A joint that is this little outside its limits was rounded in the file.
EXCESS_REPORTED_RAD = 1e-6


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A clip at the control rate, on the floor, inside the joint limits. M frames, n joints; arrays are read-only.

    Args:
      name, source_digest: as in the `Motion`.
      fps, dt: frames per second and s per frame; `dt` is the robot's `control_dt`.
      root_pos: (M, 3) m world.
      root_rot: (M, 4) unit xyzw, neighbours on one hemisphere.
      dof_pos: (M, n) rad.
      dof_pos_raw: (M, n) rad, before they were clipped to the joint limits.
      initial_qpos: (nq,) the model's `qpos0` with the root and the listed joints of frame 0.
      initial_qvel: (nv,) MuJoCo's convention: linear velocity in the world frame, angular velocity in the body frame, joint
        rates. Integrating it over `dt` takes frame 0 to frame 1.
      report: what was measured and changed.
      source_format, lineage: as in the `Motion`.
      recording: the controls that came with the clip, whose times and initial state this clip then has; None for a clip that
        is not conditioned for mode `recorded`.
    """

    name: str
    source_digest: str
    fps: float
    dt: float
    root_pos: Array
    root_rot: Array
    dof_pos: Array
    dof_pos_raw: Array
    initial_qpos: Array
    initial_qvel: Array
    report: IngestReport
    source_format: str = ""
    lineage: Lineage | None = None
    recording: BoundRecording | None = None

    def __post_init__(self) -> None:
        for key in ("root_pos", "root_rot", "dof_pos", "dof_pos_raw", "initial_qpos", "initial_qvel"):
            array = np.ascontiguousarray(getattr(self, key), dtype=np.float64)
            array.flags.writeable = False
            object.__setattr__(self, key, array)

    @property
    def num_frames(self) -> int:
        return int(self.root_pos.shape[0])

    def qpos(self, robot: Robot) -> Array:
        """(M, nq) the clip's poses as MuJoCo has them, for the robot that it was conditioned for."""
        return robot.poses(self.root_pos, self.root_rot, self.dof_pos)


def condition(
    motion: Motion, robot: Robot, limits: Limits | None = None, profile: str = GATE_PROFILE, mode: str = ""
) -> Conditioned:
    """A motion at the robot's control rate, ready to drive it, with the account of what was changed.

    In this order: columns are put into the robot's order; leading frames that stand apart are dropped; quaternions are
    normalized and put on one hemisphere; joints are clipped to their limits; everything is resampled to `1 / control_dt` (slerp
    for the rotation, linear for the rest); the clip is shifted vertically so that the median over frames of the lowest foot
    point is at the floor; the initial state is read off the first two frames. Everything is float64 and sequential: the same
    motion gives the same bytes.

    In mode `recorded` no frame is dropped, frames are sampled when the recording's rows are reached, and the initial state is
    the recording's: the shift to the floor moves the clip alone.

    Args:
      limits, profile: as in `check_clip`.
      mode: of the recipe.

    Raises:
      MotionRefused: as `check_motion`.
      RecipeRefused: an unknown gate profile.
    """
    from amp_core.kinematics import sole_heights  # noqa: PLC0415 - reading a motion needs no MuJoCo

    check = check_clip(motion, robot, limits, profile)
    if check.refusal is not None:
        raise check.refusal.to_error(motion.name)
    motion, _ = reorder_joints(motion, robot)
    # Rounded so that 1 / 0.02 and its like are the rates that people mean.
    fps_out = round(1.0 / robot.control_dt, 9)

    recording = bind_recording(motion, robot) if mode == RECORDED else None
    first = find_leading(motion, rotations.normalize(motion.root_rot), robot)
    if recording is not None:
        first = replace(first, trimmed=False)
    # A frame that is dropped is no part of the clip: nothing below measures it.
    lead = first.frames if first.trimmed else 0
    position, source_rotation, joints = (values[lead:] for values in (motion.root_pos, motion.root_rot, motion.dof_pos))
    norm_error = np.abs(np.linalg.norm(source_rotation, axis=1) - 1.0)
    rotation, num_flipped = rotations.align_signs(rotations.normalize(source_rotation))
    speed = np.linalg.norm(np.diff(position, axis=0), axis=1) * motion.fps
    turn_rate = rotations.angle_between(rotation[:-1], rotation[1:]) * motion.fps
    joint_speed_max = float(np.abs(np.diff(joints, axis=0)).max() * motion.fps)
    root_frame = RootFrame.of(Poses(position, rotation, joints), motion.fps, robot)
    raw_joints, (joints, clipped_joints) = joints, _clip_joints(joints, robot)

    if recording is None:
        times = np.arange(resampled_count(len(position), motion.fps, fps_out), dtype=np.float64) * (motion.fps / fps_out)
    else:
        times = recording.sample_times(robot.substeps)
        start, root = recording.initial_qpos, robot.root_qpos_adr
        start_rotation = rotations.normalize(robot.root_rotation(start))
        position = recording.add_start(start[root : root + 3], position)
        rotation = recording.add_start(start_rotation * (-1.0 if start_rotation @ rotation[0] < 0.0 else 1.0), rotation)
        joints = recording.add_start(np.clip(start[robot.qpos_adr], *robot.joint_range.T), joints)
        raw_joints = recording.add_start(start[robot.qpos_adr], raw_joints)
    position, joints, raw_joints = (interpolate(values, times) for values in (position, joints, raw_joints))
    rotation = interpolate_rotations(rotation, times)

    sole_height = sole_heights(robot, robot.poses(position, rotation, joints)).min(axis=1)
    lower, median, upper = (float(height) for height in np.percentile(sole_height, (25, 50, 75)))
    shift = -median
    position = position + np.array([0.0, 0.0, shift])
    clearance = sole_height + shift

    report = IngestReport(
        fps_in=motion.fps,
        fps_out=fps_out,
        frames_in=motion.num_frames,
        frames_out=len(position),
        duration_in_sec=motion.duration_sec,
        quaternions_renormalized=int((norm_error > NORM_REPORTED).sum()),
        max_norm_error=float(norm_error.max()),
        quaternions_flipped=num_flipped,
        joints_clipped=clipped_joints,
        ground_shift_m=shift,
        foot_height_m=median,
        foot_height_spread_m=upper - lower,
        deepest_penetration_m=max(0.0, -float(clearance.min())),
        deep_penetration_rate=float((clearance < -DEEP_M * robot.height_factor).mean()),
        initial_clearance_m=float(clearance[0]),
        root_height_mean_m=float(position[:, 2].mean()),
        root_height_min_m=float(position[:, 2].min()),
        root_height_max_m=float(position[:, 2].max()),
        root_speed_max=float(speed.max()),
        root_speed_mean=float(speed.mean()),
        root_turn_rate_max=float(turn_rate.max()),
        joint_speed_max=joint_speed_max,
        forward_speed_mean=forward_speed(position, rotation, fps_out),
        first_frame=first,
        root_frame=root_frame,
        notes=(),
        # Frames that a recording has controls for are kept.
        findings=tuple(
            finding
            for finding in check.findings
            if recording is None or finding.code not in ("leading_frames_dropped", "recording")
        ),
    )
    report = replace(report, notes=write_notes(report, robot, is_recorded=recording is not None))
    if recording is not None:
        qpos, qvel = recording.initial_qpos, recording.initial_qvel
    else:
        qpos = robot.poses(position[:1], rotation[:1], joints[:1])[0]
        # Integrating this velocity over one control step gives frame 1.
        qvel, velocity_adr = np.zeros(int(robot.model.nv)), robot.root_qvel_adr
        qvel[velocity_adr : velocity_adr + 3] = (position[1] - position[0]) / robot.control_dt
        qvel[velocity_adr + 3 : velocity_adr + 6] = rotations.angular_velocity(rotation[0], rotation[1], robot.control_dt)
        qvel[robot.qvel_adr] = (joints[1] - joints[0]) / robot.control_dt
    return Conditioned(
        name=motion.name,
        source_digest=motion.source_digest,
        fps=fps_out,
        dt=robot.control_dt,
        root_pos=position,
        root_rot=rotation,
        dof_pos=joints,
        dof_pos_raw=raw_joints,
        initial_qpos=qpos,
        initial_qvel=qvel,
        report=report,
        source_format=motion.source_format,
        lineage=motion.lineage,
        recording=recording,
    )


def _clip_joints(joints: Array, robot: Robot) -> tuple[Array, tuple[JointClip, ...]]:
    """(N, n) rad inside the joint limits, and the joints that were not."""
    low, high = robot.joint_range[:, 0], robot.joint_range[:, 1]
    below, above = low - joints, joints - high
    clips = []
    for j, name in enumerate(robot.joint_names):
        under, over = below[:, j] > EXCESS_REPORTED_RAD, above[:, j] > EXCESS_REPORTED_RAD
        if under.any() or over.any():
            side = "both" if under.any() and over.any() else "low" if under.any() else "high"
            excess = float(max(below[:, j].max(), above[:, j].max()))
            clips.append(JointClip(name, int((under | over).sum()), excess, side))
    return np.clip(joints, low, high), tuple(clips)
