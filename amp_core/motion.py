"""From a motion as its file has it to one that the robot can be driven with, and the account of everything that was changed.

`check_motion` refuses what can be told without simulating. `condition` resamples to the control rate, puts quaternions on one
hemisphere, clips joints to their limits, fits the ground, and derives the initial state. What it changes is in the
`IngestReport`; what looks wrong but is no error is there too, as a plain sentence in `notes`. Nothing is repaired in silence.

Quaternions are xyzw and take body to world, as clips have them; only `initial_qpos` is wxyz, as MuJoCo has it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits, Motion, check_limits, clean_name

if TYPE_CHECKING:
    from amp_core.robot import Robot

__all__ = [
    "Conditioned",
    "FirstFrame",
    "IngestReport",
    "JointClip",
    "Limits",
    "Motion",
    "RootFrame",
    "check_motion",
    "clean_name",
    "condition",
    "resampled_count",
]

Array = NDArray[np.float64]

# A frame counts when its time lies on the clip, give or take a rounding error of this many frames.
FRAME_EPS = 1e-6
# A norm this close to 1 is rounding in float32, and not worth reporting.
NORM_REPORTED = 1e-6

WXYZ_READ_TILT = math.radians(45.0)
WXYZ_OTHER_TILT = math.radians(30.0)
WALKING_SPEED = 0.05
SLIDE_SAMPLES = 64
SUSPECT_TILT = math.radians(30.0)

# No hinge of a legged robot is two turns away from its zero.
ABSURD_ANGLE = 4.0 * math.pi
DEGREES_BEYOND_RANGE = 1.0
DEGREES_SLACK = 0.35

GLITCH_RATIO = 5.0
GLITCH_WINDOW = 15
GLITCH_FLOOR = {"root_pos": 0.02, "root_rot": 0.1, "dof_pos": 0.1}
GLITCH_UNITS = {"root_pos": "m", "root_rot": "rad", "dof_pos": "rad"}

CLIPPED_NOTE_RAD = 0.2
CLIPPED_NOTE_SHARE = 0.2
SPREAD_NOTE_M = 0.03
# Retargeted clips need shifts of a few centimetres; this much is a clip whose height is measured from somewhere else.
SHIFT_NOTE_M = 0.1
# No floor is this far from where a clip has it, be the robot knee-high or a grown person's size: it is the unit or the axis.
ABSURD_SHIFT_M = 1.0
DEEP_M = 0.02


@dataclass(frozen=True)
class JointClip:
    """One joint that left its limits.

    Args:
      joint: its name.
      frames: source frames in which it was outside.
      max_excess_rad: rad, the farthest it was outside.
      side: `low`, `high` or `both`.
    """

    joint: str
    frames: int
    max_excess_rad: float
    side: str


@dataclass(frozen=True)
class FirstFrame:
    """How the step from frame 0 to frame 1 compares with the steps after it.

    Args:
      glitch: the first frame stands far off: in some array its step is over 5 times the largest of the next 15 and above
        2 cm or 0.1 rad.
      trimmed: the frame was dropped; true exactly where `glitch` is, unless only one frame would be left.
      root_pos_ratio, root_rot_ratio, dof_pos_ratio: first step over the largest of the next ones (0 where nothing moves).
      detail: the finding in words; empty where there is none.
    """

    glitch: bool
    trimmed: bool
    root_pos_ratio: float
    root_rot_ratio: float
    dof_pos_ratio: float
    detail: str


@dataclass(frozen=True)
class RootFrame:
    """How upright the root is.

    Args:
      suspect: mean or first tilt above 30 degrees: upright legged motion does not have it, a root in another frame does.
      first_tilt_deg, mean_tilt_deg, max_tilt_deg: deg between the root's z axis and the world's.
      detail: the finding in words; empty where there is none.
    """

    suspect: bool
    first_tilt_deg: float
    mean_tilt_deg: float
    max_tilt_deg: float
    detail: str


@dataclass(frozen=True)
class IngestReport:
    """What was found in a clip and what conditioning changed.

    Args:
      fps_in, fps_out: frames per second before and after.
      frames_in, frames_out: frame counts; `frames_in` is the file's, before any trimming.
      duration_in_sec: s from the first to the last frame of the file.
      quaternions_renormalized: source frames whose quaternion was off unit norm by more than 1e-6.
      max_norm_error: the largest deviation from unit norm.
      quaternions_flipped: source frames whose sign was changed so that neighbours lie on one hemisphere.
      joints_clipped: every joint that left its limits.
      ground_shift_m: m added to the root's height.
      foot_height_m: m above the floor of the lowest foot point before the shift: median over the frames.
      foot_height_spread_m: m, interquartile range of the same; large where the feet have no common floor.
      deepest_penetration_m: m below the floor after the shift, over all frames (0 where none).
      deep_penetration_rate: share of frames with a foot point more than 2 cm below the floor after the shift.
      initial_clearance_m: m from the floor to the lowest foot point in the first frame after the shift; negative below it.
      root_height_mean_m, root_height_min_m, root_height_max_m: m, after the shift.
      root_speed_max, root_speed_mean: m/s of the source, over its steps.
      root_turn_rate_max: rad/s of the source.
      joint_speed_max: rad/s of the source, over all joints.
      forward_speed_mean: m/s along the heading; negative for a clip that walks backwards.
      first_frame, root_frame: see there.
      notes: what a person should look at, one sentence each.
    """

    fps_in: float
    fps_out: float
    frames_in: int
    frames_out: int
    duration_in_sec: float
    quaternions_renormalized: int
    max_norm_error: float
    quaternions_flipped: int
    joints_clipped: tuple[JointClip, ...]
    ground_shift_m: float
    foot_height_m: float
    foot_height_spread_m: float
    deepest_penetration_m: float
    deep_penetration_rate: float
    initial_clearance_m: float
    root_height_mean_m: float
    root_height_min_m: float
    root_height_max_m: float
    root_speed_max: float
    root_speed_mean: float
    root_turn_rate_max: float
    joint_speed_max: float
    forward_speed_mean: float
    first_frame: FirstFrame
    root_frame: RootFrame
    notes: tuple[str, ...]

    @property
    def root_frame_suspect(self) -> bool:
        return self.root_frame.suspect

    def to_dict(self) -> dict[str, Any]:
        """The `ingest` object of a result: the fields above, JSON-ready, with `root_frame_suspect` at the top as well."""
        facts = asdict(self)
        facts["joints_clipped"] = list(facts["joints_clipped"])
        facts["notes"] = list(self.notes)
        facts["root_frame_suspect"] = self.root_frame.suspect
        return facts


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A clip at the control rate, on the floor, inside the joint limits. M frames, n joints; arrays are read-only.

    Args:
      name, source_digest: as in the `Motion`.
      fps, dt: frames per second and s per frame; `dt` is the robot's `control_dt`.
      root_pos: (M, 3) m world.
      root_rot: (M, 4) unit xyzw, neighbours on one hemisphere.
      dof_pos: (M, n) rad.
      initial_qpos: (nq,) the model's `qpos0` with the root and the listed joints of frame 0.
      initial_qvel: (nv,) MuJoCo's convention: linear velocity in the world frame, angular velocity in the body frame, joint
        rates. Integrating it over `dt` takes frame 0 to frame 1.
      report: what was found and changed.
    """

    name: str
    source_digest: str
    fps: float
    dt: float
    root_pos: Array
    root_rot: Array
    dof_pos: Array
    initial_qpos: Array
    initial_qvel: Array
    report: IngestReport

    def __post_init__(self) -> None:
        for key in ("root_pos", "root_rot", "dof_pos", "initial_qpos", "initial_qvel"):
            array = np.ascontiguousarray(getattr(self, key), dtype=np.float64)
            array.flags.writeable = False
            object.__setattr__(self, key, array)

    @property
    def num_frames(self) -> int:
        return int(self.root_pos.shape[0])

    def qpos(self, robot: Robot) -> Array:
        """(M, nq) the clip's poses as MuJoCo has them, for the robot that it was conditioned for."""
        return robot.poses(self.root_pos, self.root_rot, self.dof_pos)


def resampled_count(frames: int, fps_in: float, fps_out: float) -> int:
    """Frames at `fps_out` whose time lies within the clip: floor((N - 1) · fps_out / fps_in) + 1.

    The last source frame is at (N - 1) / fps_in; nothing is extrapolated past it. 106 frames at 33.33 fps last 3.15 s and
    give 158 frames at 50 fps.
    """
    return math.floor((frames - 1) / fps_in * fps_out + FRAME_EPS) + 1


def check_motion(motion: Motion, robot: Robot, limits: Limits | None = None) -> None:
    """Refuses what can be told about a motion and a robot without simulating. Milliseconds; no kinematics.

    Raises:
      MotionRefused: another joint count, a clip over the limits or shorter than two control steps, quaternions far off unit
        norm or in wxyz order, a root over 1 m outside the robot's height range, that teleports or flips over, joints in
        degrees or beyond any hinge.
    """
    limits = limits or Limits()
    file = motion.name
    n = len(robot.joint_names)
    if motion.dof_pos.shape[1] != n:
        raise MotionRefused(
            f"the clip has {motion.dof_pos.shape[1]} joints, the robot {robot.name!r} has {n}",
            file=file,
            key="dof_pos",
            expected=f"one column for each of {', '.join(robot.joint_names)}",
            remedy="Choose the robot that the clip was retargeted to",
        )
    check_limits(file, motion.fps, motion.root_pos, motion.root_rot, n, limits)
    if motion.duration_sec + FRAME_EPS < robot.control_dt:
        raise MotionRefused(
            f"the clip lasts {motion.duration_sec:.4g} s",
            file=file,
            key="root_pos",
            expected=f"at least one control step of {robot.control_dt:g} s",
            remedy="Export the whole clip, or check fps",
        )
    _check_order(motion)
    _check_height(motion, robot)
    _check_teleports(motion, limits)
    _check_radians(motion, robot)
    _check_order_by_feet(motion, robot)


def _check_order(motion: Motion) -> None:
    """wxyz read as xyzw, where the up axis gives it away: tilted as read, upright in the other order."""
    read = float(rotations.tilt(motion.root_rot).mean())
    if read <= WXYZ_READ_TILT:
        return
    other = float(rotations.tilt(rotations.to_xyzw(motion.root_rot)).mean())
    if other < WXYZ_OTHER_TILT:
        frame = int(np.argmax(rotations.tilt(motion.root_rot) > WXYZ_READ_TILT))
        degrees = f"{math.degrees(read):.0f} degrees on average, read as wxyz by {math.degrees(other):.0f}"
        raise _wxyz(motion, frame, f"read as xyzw the root is tilted by {degrees}")


def _check_height(motion: Motion, robot: Robot) -> None:
    """A root that is on average so far above or below where this robot can be that no shift of the floor explains it."""
    low, high = robot.height_range
    mean = float(motion.root_pos[:, 2].mean())
    if low - ABSURD_SHIFT_M <= mean <= high + ABSURD_SHIFT_M:
        return
    raise MotionRefused(
        f"the root is {mean:.4g} m high on average{_unit_guess(mean, low, high)}",
        file=motion.name,
        key="root_pos",
        frame=0,
        expected=f"metres with z up, so about {low:g} to {high:g} m for {robot.name}",
        remedy="Is it in metres, and is z up? Convert root_pos, or put the floor at z = 0, and export again",
    )


def _unit_guess(mean: float, low: float, high: float) -> str:
    for unit, metres in (("centimetres", 0.01), ("millimetres", 0.001), ("inches", 0.0254), ("feet", 0.3048)):
        if low <= mean * metres <= high:
            return f", which would be right in {unit}"
    return ""


def _check_order_by_feet(motion: Motion, robot: Robot) -> None:
    """wxyz read as xyzw by a clip that faces -x, where both readings are upright and differ by half a turn.

    Only a clip that walks backwards as read and forwards in the other order gets here. On its true heading the lowest foot
    stands still; on the reversed one it slides at twice the walking speed. A few frames are enough to tell.
    """
    other = rotations.to_xyzw(motion.root_rot)
    if float(rotations.tilt(other).mean()) >= WXYZ_OTHER_TILT:
        return
    if _forward_speed(motion.root_pos, rotations.normalize(motion.root_rot), motion.fps) > -WALKING_SPEED:
        return
    if _forward_speed(motion.root_pos, rotations.normalize(other), motion.fps) < WALKING_SPEED:
        return
    as_read, as_wxyz = (_foot_slide(motion, rotation, robot) for rotation in (motion.root_rot, other))
    if as_read > 2.0 * as_wxyz:
        raise _wxyz(
            motion,
            0,
            f"read as xyzw the root moves backwards and the standing foot slides at {as_read:.2f} m/s (median), read as "
            f"wxyz it moves forwards and the foot slides at {as_wxyz:.2f} m/s",
        )


def _wxyz(motion: Motion, frame: int, why: str) -> MotionRefused:
    return MotionRefused(
        f"the quaternions look like wxyz: {why}",
        file=motion.name,
        key="root_rot",
        frame=frame,
        expected="quaternions xyzw",
        remedy="Read it with quat_order=wxyz, or export xyzw",
    )


def _check_teleports(motion: Motion, limits: Limits) -> None:
    speed = np.linalg.norm(np.diff(motion.root_pos, axis=0), axis=1) * motion.fps
    _refuse_jump(motion, speed, limits.max_speed, "m/s", "root_pos", "moves", "the root teleports; positions are in metres")
    turn = _turns(rotations.normalize(motion.root_rot)) * motion.fps
    _refuse_jump(motion, turn, limits.max_turn_rate, "rad/s", "root_rot", "turns", "the root flips over within a frame")


def _refuse_jump(motion: Motion, rate: Array, limit: float, unit: str, key: str, verb: str, why: str) -> None:
    over = rate > limit
    if not over.any():
        return
    frame = int(np.argmax(over)) + 1
    if frame == 1 and not over[1:].any():
        remedy = "Only the first frame stands apart: drop it"
    else:
        remedy = "Cut the clip there, or check fps and the units"
    raise MotionRefused(
        f"the root {verb} at {float(rate[frame - 1]):.4g} {unit} between frames {frame - 1} and {frame} ({why})",
        file=motion.name,
        key=key,
        frame=frame,
        expected=f"at most {limit:g} {unit}",
        remedy=remedy,
    )


def _check_radians(motion: Motion, robot: Robot) -> None:
    """Degrees given as radians, where it can be told: far outside the limits as read, inside them as degrees."""
    low, high = robot.joint_range[:, 0], robot.joint_range[:, 1]
    excess = np.maximum(low - motion.dof_pos, motion.dof_pos - high)
    # Joints without limits have an excess of -inf; two turns are too many for them as well.
    far = (excess > DEGREES_BEYOND_RANGE) | (np.abs(motion.dof_pos) > ABSURD_ANGLE)
    if not far.any():
        return
    frame, joint = (int(i) for i in np.argwhere(far)[0])
    value = float(motion.dof_pos[frame, joint])
    as_degrees = np.radians(motion.dof_pos)
    plausible = bool(((as_degrees >= low - DEGREES_SLACK) & (as_degrees <= high + DEGREES_SLACK)).all())
    rows = far.any(axis=1)
    if plausible and rows.mean() >= 0.1:
        raise MotionRefused(
            f"the joint angles look like degrees: {robot.joint_names[joint]} is {value:.4g}, outside its limits as radians and "
            "plausible as degrees",
            file=motion.name,
            key="dof_pos",
            frame=frame,
            expected=f"{robot.joint_names[joint]} in rad, within [{low[joint]:.3g}, {high[joint]:.3g}]",
            remedy="Convert with np.radians and export again",
        )
    absurd = np.abs(motion.dof_pos) > ABSURD_ANGLE
    if absurd.any():
        frame, joint = (int(i) for i in np.argwhere(absurd)[0])
        raise MotionRefused(
            f"{robot.joint_names[joint]} is {float(motion.dof_pos[frame, joint]):.4g} rad, more than two turns",
            file=motion.name,
            key="dof_pos",
            frame=frame,
            expected=f"{robot.joint_names[joint]} in rad, within [{low[joint]:.3g}, {high[joint]:.3g}]",
            remedy="Check the unit, the joint order and the frame",
        )


def condition(motion: Motion, robot: Robot, limits: Limits | None = None) -> Conditioned:
    """The motion at the robot's control rate, ready to drive it, with the account of what was changed.

    In this order: a glitched first frame is dropped; quaternions are normalized and put on one hemisphere; joints are clipped
    to their limits; everything is resampled to `1 / control_dt` (slerp for the rotation, linear for the rest); the clip is
    shifted vertically so that the median over frames of the lowest foot point is at the floor; the initial state is read off
    the first two frames. Everything is float64 and sequential: the same motion gives the same bytes.

    Raises:
      MotionRefused: whatever `check_motion` refuses; feet over 1 m off the floor.
    """
    from amp_core.kinematics import sole_heights

    limits = limits or Limits()
    check_motion(motion, robot, limits)
    # Rounded so that 1 / 0.02 and its like are the rates that people mean.
    fps_out = round(1.0 / robot.control_dt, 9)

    norms = np.linalg.norm(motion.root_rot, axis=1)
    norm_error = np.abs(norms - 1.0)
    rotation, flipped = rotations.align_signs(rotations.normalize(motion.root_rot))
    position, joints = motion.root_pos, motion.dof_pos

    first = find_first_frame_glitch(motion, rotation)
    if first.glitch and resampled_count(motion.num_frames - 1, motion.fps, fps_out) >= 2:
        first = replace(first, trimmed=True)
        position, rotation, joints = position[1:], rotation[1:], joints[1:]
    joints, clipped = _clip_joints(joints, robot)

    count = resampled_count(len(position), motion.fps, fps_out)
    when = np.arange(count, dtype=np.float64) * (motion.fps / fps_out)
    position, joints, rotation = interpolate(position, when), interpolate(joints, when), interpolate_rotations(rotation, when)

    foot = sole_heights(robot, robot.poses(position, rotation, joints)).min(axis=1)
    low, height, top = (float(v) for v in np.percentile(foot, (25, 50, 75)))
    shift = -height
    if abs(shift) > ABSURD_SHIFT_M:
        raise MotionRefused(
            f"the lowest foot point is {height:.4g} m above the floor (median over the frames)",
            file=motion.name,
            key="root_pos",
            expected=f"feet within {ABSURD_SHIFT_M:g} m of the floor z = 0",
            remedy="Is root_pos in metres, and is z up? Convert it, or put the floor at z = 0, and export again",
        )
    position = position + np.array([0.0, 0.0, shift])
    clearance = foot + shift

    steps = np.linalg.norm(np.diff(motion.root_pos, axis=0), axis=1) * motion.fps
    report = IngestReport(
        fps_in=motion.fps,
        fps_out=fps_out,
        frames_in=motion.num_frames,
        frames_out=len(position),
        duration_in_sec=motion.duration_sec,
        quaternions_renormalized=int((norm_error > NORM_REPORTED).sum()),
        max_norm_error=float(norm_error.max()),
        quaternions_flipped=flipped,
        joints_clipped=clipped,
        ground_shift_m=shift,
        foot_height_m=height,
        foot_height_spread_m=top - low,
        deepest_penetration_m=max(0.0, -float(clearance.min())),
        deep_penetration_rate=float((clearance < -DEEP_M).mean()),
        initial_clearance_m=float(clearance[0]),
        root_height_mean_m=float(position[:, 2].mean()),
        root_height_min_m=float(position[:, 2].min()),
        root_height_max_m=float(position[:, 2].max()),
        root_speed_max=float(steps.max()),
        root_speed_mean=float(steps.mean()),
        root_turn_rate_max=float(_turns(rotations.normalize(motion.root_rot)).max() * motion.fps),
        joint_speed_max=float(np.abs(np.diff(motion.dof_pos, axis=0)).max() * motion.fps),
        forward_speed_mean=_forward_speed(position, rotation, fps_out),
        first_frame=first,
        root_frame=_root_frame(motion),
        notes=(),
    )
    report = replace(report, notes=_notes(report, motion, robot))
    qpos, qvel = _initial_state(position, rotation, joints, robot)
    return Conditioned(
        name=motion.name,
        source_digest=motion.source_digest,
        fps=fps_out,
        dt=robot.control_dt,
        root_pos=position,
        root_rot=rotation,
        dof_pos=joints,
        initial_qpos=qpos,
        initial_qvel=qvel,
        report=report,
    )


# --- Resampling -----------------------------------------------------------------------------------------------------------


def _bracket(count: int, when: Array) -> tuple[NDArray[np.int64], Array]:
    """The frame before each time and the fraction of a frame after it; a time on a frame (to rounding) is that frame."""
    nearest = np.rint(when)
    when = np.where(np.abs(when - nearest) < FRAME_EPS, nearest, when)
    index = np.clip(np.floor(when).astype(np.int64), 0, count - 2)
    return index, np.clip(when - index, 0.0, 1.0)


def interpolate(values: Array, when: Array) -> Array:
    """(M, k) linear interpolation of rows (N, k) at the times `when` (M,), in frames."""
    index, part = _bracket(len(values), when)
    part = part[:, None]
    # This form gives both end points exactly.
    return np.asarray((1.0 - part) * values[index] + part * values[index + 1])


def interpolate_rotations(rotation: Array, when: Array) -> Array:
    """(M, 4) spherical interpolation of unit quaternions (N, 4) at the times `when` (M,), in frames.

    Neighbours must be on one hemisphere (`rotations.align_signs`).
    """
    index, part = _bracket(len(rotation), when)
    return rotations.slerp(rotation[index], rotation[index + 1], part)


def _turns(rotation: Array) -> Array:
    """(N-1,) rad from each frame to the next."""
    return rotations.angle_between(rotation[:-1], rotation[1:])


# --- Findings -------------------------------------------------------------------------------------------------------------


def _clip_joints(joints: Array, robot: Robot) -> tuple[Array, tuple[JointClip, ...]]:
    low, high = robot.joint_range[:, 0], robot.joint_range[:, 1]
    below, above = low - joints, joints - high
    found = []
    for j, name in enumerate(robot.joint_names):
        # A few microradians are rounding in the file, not a joint outside its limits.
        under, over = below[:, j] > 1e-6, above[:, j] > 1e-6
        if under.any() or over.any():
            side = "both" if under.any() and over.any() else "low" if under.any() else "high"
            excess = float(max(below[:, j].max(), above[:, j].max()))
            found.append(JointClip(name, int((under | over).sum()), excess, side))
    return np.clip(joints, low, high), tuple(found)


def find_first_frame_glitch(motion: Motion, rotation: Array) -> FirstFrame:
    """Whether frame 0 stands apart from the frames after it, as solvers leave it that start from a rest pose."""
    steps = {
        "root_pos": np.linalg.norm(np.diff(motion.root_pos, axis=0), axis=1),
        "root_rot": _turns(rotation),
        "dof_pos": np.abs(np.diff(motion.dof_pos, axis=0)).max(axis=1),
    }
    ratios = dict.fromkeys(steps, 0.0)
    found = []
    for key, step in steps.items():
        first = float(step[0])
        if len(step) < 3:
            continue
        largest = float(step[1 : 1 + GLITCH_WINDOW].max())
        # Against a clip that stands still any step would be infinitely larger; a tenth of the floor stands in for its noise.
        ratios[key] = first / max(largest, 0.1 * GLITCH_FLOOR[key])
        if first > GLITCH_FLOOR[key] and ratios[key] > GLITCH_RATIO:
            found.append(f"{key} by {first:.3g} {GLITCH_UNITS[key]}, {ratios[key]:.1f} times the largest of the next steps")
    detail = f"the first frame stands apart from the second: {'; '.join(found)}" if found else ""
    return FirstFrame(
        glitch=bool(found),
        trimmed=False,
        root_pos_ratio=ratios["root_pos"],
        root_rot_ratio=ratios["root_rot"],
        dof_pos_ratio=ratios["dof_pos"],
        detail=detail,
    )


def _root_frame(motion: Motion) -> RootFrame:
    tilt = rotations.tilt(motion.root_rot)
    first, mean, top = float(tilt[0]), float(tilt.mean()), float(tilt.max())
    suspect = max(first, mean) > SUSPECT_TILT
    detail = ""
    if suspect:
        detail = (
            f"the root is tilted by {math.degrees(first):.0f} degrees in the first frame and {math.degrees(mean):.0f} on "
            "average; upright motion stays below 30, so its frame is probably not the robot's (z up, x forward): retarget the "
            "clip with the robot's own root frame; nothing was rotated here"
        )
    return RootFrame(suspect, math.degrees(first), math.degrees(mean), math.degrees(top), detail)


def _forward_speed(position: Array, rotation: Array, fps: float) -> float:
    """m/s, mean over the steps, along the horizontal projection of the body's x axis."""
    heading = rotations.heading_direction(rotation[:-1])
    return float(np.einsum("ij,ij->i", np.diff(position[:, :2], axis=0), heading).mean() * fps)


def _notes(report: IngestReport, motion: Motion, robot: Robot) -> tuple[str, ...]:
    notes = []
    if report.root_frame.suspect:
        notes.append(f"Root frame: {report.root_frame.detail}.")
    if report.first_frame.glitch:
        action = "it was dropped" if report.first_frame.trimmed else "it was kept, since too little would be left"
        notes.append(f"First frame: {report.first_frame.detail}; {action}.")
    often = CLIPPED_NOTE_SHARE * report.frames_in
    bad = [c for c in report.joints_clipped if c.max_excess_rad > CLIPPED_NOTE_RAD or c.frames > often]
    if bad:
        facts = ", ".join(f"{c.joint} in {c.frames} frames by up to {c.max_excess_rad:.3g} rad" for c in bad)
        notes.append(f"Joint limits: clipped {facts}; check the joint order and the retargeting.")
    if abs(report.ground_shift_m) > SHIFT_NOTE_M:
        moved = "raised" if report.ground_shift_m > 0 else "lowered"
        hint = "; the root's y stays where its height should be, so y and z may be swapped"
        swapped = hint if _looks_y_up(motion, robot) else ""
        notes.append(
            f"Ground: the whole clip was {moved} by {abs(report.ground_shift_m):.3g} m to bring its feet to the floor; "
            f"check that root_pos is in metres with z up and the floor at z = 0{swapped}."
        )
    if report.foot_height_spread_m > SPREAD_NOTE_M:
        notes.append(
            f"Ground: the lowest foot point varies by {report.foot_height_spread_m * 1e3:.0f} mm (interquartile); "
            "no vertical shift puts these feet on one floor."
        )
    if report.deep_penetration_rate > 0.02:
        notes.append(
            f"Ground: after the shift a foot is still more than 20 mm below the floor in {report.deep_penetration_rate:.0%} of "
            f"the frames, at most {report.deepest_penetration_m * 1e3:.0f} mm."
        )
    low, high = robot.height_range
    if not low <= report.root_height_mean_m <= high:
        notes.append(
            f"Height: the root is at {report.root_height_mean_m:.3f} m on average, outside the robot's {low:g} to {high:g} m; "
            "check the unit, the root frame and the robot."
        )
    if report.forward_speed_mean < -0.05:
        notes.append(
            f"Direction: the root moves backwards at {-report.forward_speed_mean:.2f} m/s on average; if the clip should walk "
            "forward, its quaternions may be wxyz or its heading reversed."
        )
    return tuple(notes)


def _looks_y_up(motion: Motion, robot: Robot) -> bool:
    low, high = robot.height_range
    y, z = motion.root_pos[:, 1], motion.root_pos[:, 2]
    return bool(((y >= low) & (y <= high)).all() and not ((z >= low) & (z <= high)).all())


# --- The robot's own kinematics -------------------------------------------------------------------------------------------


def _foot_slide(motion: Motion, rotation: Array, robot: Robot) -> float:
    """m/s: median, over at most 64 steps spread over the clip, of the horizontal speed of the lowest contact geom."""
    from amp_core.kinematics import geom_poses

    geoms = sorted({geom for channel in robot.channel_geoms for geom in channel})
    starts = np.unique(np.linspace(0, motion.num_frames - 2, SLIDE_SAMPLES).astype(np.int64))
    poses = robot.poses(motion.root_pos, rotation, motion.dof_pos)
    start, end = (geom_poses(robot.model, geoms, poses[frames])[0] for frames in (starts, starts + 1))
    rows = np.arange(len(starts)), start[:, :, 2].argmin(axis=1)
    return float(np.median(np.linalg.norm((end[rows] - start[rows])[:, :2], axis=1) * motion.fps))


def _initial_state(position: Array, rotation: Array, joints: Array, robot: Robot) -> tuple[Array, Array]:
    """qpos and qvel of frame 0, such that integrating qvel over one control step gives frame 1."""
    qvel = np.zeros(int(robot.model.nv))
    velocity, dt = robot.root_qvel_adr, robot.control_dt
    qvel[velocity : velocity + 3] = (position[1] - position[0]) / dt
    qvel[velocity + 3 : velocity + 6] = rotations.angular_velocity(rotation[0], rotation[1], dt)
    qvel[robot.qvel_adr] = (joints[1] - joints[0]) / dt
    return robot.poses(position[:1], rotation[:1], joints[:1])[0], qvel
