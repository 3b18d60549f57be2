"""What can be told about a motion and a robot without simulating: the checks in their order.

First what makes the file unusable for this robot at all, then whether it is read as it is meant (`readings`), then faults in
its numbers (`continuity`), then what kind of motion it is (`gait`). The command, the HTTP API and the workers run the same
checks, so that a clip is refused everywhere with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits, Motion, check_limits
from amp_core.motion.continuity import Frames, find_discontinuities, find_jitter, shift_frames
from amp_core.motion.findings import SEVERITIES, ClipCheck, Finding, rounded
from amp_core.motion.gait import Course, describe_motion, measure_course
from amp_core.motion.joint_order import reorder_joints
from amp_core.motion.plausibility import FootMeasure, PathTurn, Plausibility, Poses
from amp_core.motion.readings import BEYOND_RAD, DEGREES_LEAST, Mended, place_elsewhere, try_readings
from amp_core.motion.recording import bind_recording
from amp_core.motion.report import FirstFrame
from amp_core.motion.resampling import FRAME_EPS, interpolate, interpolate_rotations, resampled_count
from amp_core.motion.root_frame import SUSPECT_TILT, RootFrame
from amp_core.recipe import GATE_PROFILE
from amp_core.tiers import gate_profile

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

SAMPLED_STEPS = 64
FOOT_STEP_FPS = 100.0
NORM_REPORTED = 1e-3
"""A norm this close to 1 was rounded in float16 at worst, and is not worth a finding."""

# No hinge of a legged robot is two turns away from its zero.
ABSURD_ANGLE = 4.0 * math.pi
LARGEST_ANGLE = 1e5
BEYOND_SHARE = 0.5

MOST_FOLLOWED_SEC = 20.0
"""Of a clip's path: as much tells the heading in another reading."""

ABSURD_SHIFT_M = 1.0
"""No floor is this far from where a clip has it, for robots from knee-high to grown: the unit or the axis is wrong."""


def check_motion(motion: Motion, robot: Robot, limits: Limits | None = None) -> None:
    """Refuse what can be detected in a motion for a robot without simulating, in milliseconds.

    Raises:
      MotionRefused: the first finding of `check_clip` that refuses.
    """
    refusal = check_clip(motion, robot, limits).refusal
    if refusal is not None:
        raise refusal.to_error(motion.name)


def find_refusal(name: str, arrays: Mapping[str, Array], robot: Robot) -> Finding | None:
    """The finding that refuses the clip in an export's `reference_*` arrays, if one does; one without a step has none."""
    position, rotation, joints = (arrays[f"reference_{key}"] for key in ("root_pos", "root_rot", "dof_pos_raw"))
    if len(joints) < 2:
        return None
    try:
        motion = Motion(name, round(1.0 / robot.control_dt, 9), position, rotation, joints, "", "npz")
        return check_clip(motion, robot).refusal
    except MotionRefused as error:
        return Finding.of_error(error, "unreadable")


def check_clip(motion: Motion, robot: Robot, limits: Limits | None = None, profile: str = GATE_PROFILE) -> ClipCheck:
    """Everything that can be told about a motion for a robot without simulating it.

    The work is bounded by the clip's length at the control rate and by a fixed number of poses for the readings that are tried.

    Args:
      limits: of duration, rate and plausibility; the default ones where None.
      profile: the gate profile by which a kind of motion excludes a clip from Tier 0; it changes no refusal.

    Raises:
      RecipeRefused: an unknown gate profile.
    """
    limits, gates = limits or Limits(), gate_profile(profile)
    findings: list[Finding] = []
    try:
        motion, order = reorder_joints(motion, robot)
    except MotionRefused as error:
        code = "joint_count" if error.key == "dof_pos" else "joint_names_differ"
        return ClipCheck((Finding.of_error(error, code),), {})
    if order is not None:
        findings.append(
            Finding("joints_reordered", "notes", order.message, key=order.key, expected="columns in the robot's order")
        )
    try:
        check_limits(motion, limits)
    except MotionRefused as error:
        return ClipCheck((Finding.of_error(error, "over_limits"),), {})
    if motion.duration_sec + FRAME_EPS < robot.control_dt:
        finding = Finding(
            "too_short",
            "refuses",
            f"the clip lasts {motion.duration_sec:.4g} s",
            key="root_pos",
            value=rounded(motion.duration_sec),
            limit=robot.control_dt,
            unit="s",
            expected=f"at least one control step of {robot.control_dt:g} s",
            remedy="Export the whole clip, or check fps",
        )
        return ClipCheck((finding,), {})
    if float(np.abs(motion.dof_pos).max()) > LARGEST_ANGLE:
        # Degrees are below; from so far on the sums overflow.
        return ClipCheck(tuple(_find_unreachable(Poses(motion.root_pos, motion.root_rot, motion.dof_pos), robot, 0)), {})
    norms = np.linalg.norm(motion.root_rot, axis=1)
    rotation = rotations.normalize(motion.root_rot)
    findings += _describe_recording(motion, robot)
    first = find_leading(motion, rotation, robot)
    lead = first.frames if first.trimmed else 0
    findings += _find_norms(norms[lead:], lead)
    if lead:
        findings.append(_describe_leading(first))
    poses = Poses(motion.root_pos[lead:], rotation[lead:], motion.dof_pos[lead:])

    feet = FootMeasure(robot, size=4 * SAMPLED_STEPS)
    starts = np.unique(np.linspace(0, len(poses.root_pos) - 2, SAMPLED_STEPS).astype(np.int64))
    start, end = poses.take(starts), poses.take(starts + 1)
    as_read = feet.measure(start, end, motion.fps)
    measures: dict[str, float | None] = {
        "implausibility": rounded(as_read.score),
        "mean_foot_slide": rounded(as_read.slide),
        "foot_height_spread_m": rounded(as_read.spread),
        "beyond_limits_rad": rounded(as_read.excess),
        "mean_tilt_deg": rounded(as_read.tilt),
        "mean_sole_tilt_deg": rounded(as_read.sole),
        "root_above_feet_m": rounded(as_read.height),
    }
    frames = _frames_of(poses, motion.fps, feet)
    course = _follow(poses, motion.fps, lead, feet)
    first_sec = poses.take(np.arange(min(len(poses.root_pos), math.ceil(MOST_FOLLOWED_SEC * motion.fps))))

    def measure_turn(read: Callable[[Poses], Poses]) -> PathTurn:
        return _turn_of(_follow(read(first_sec), motion.fps, lead, feet), feet)

    # Of trembling joints no reading can be told from another, and no gait; but anything trembles in degrees.
    trembles = bool(find_jitter(frames))
    is_readable = not trembles or float(np.abs(poses.dof_pos).max()) > DEGREES_LEAST
    candidates = (
        () if not is_readable else try_readings(start, end, motion.fps, feet, as_read, _turn_of(course, feet), measure_turn)
    )
    faults = shift_frames(find_discontinuities(frames, limits.max_speed, limits.max_turn_rate), lead)
    if candidates and not candidates[0].is_path:
        findings += _choose_reading(candidates, faults, poses, motion, lead, feet, limits)
    elif misplaced := _find_misplaced(poses, start, end, motion.fps, feet, as_read):
        findings.append(misplaced)
    else:
        findings += [*_find_unreachable(poses, robot, lead), *faults]
        measures |= measure_course(course)
        if not trembles:
            motion_findings = describe_motion(course, robot, measures, gates)
            if (root := RootFrame.of(poses, motion.fps, robot)).suspect:
                findings.append(_describe_root(root))
                motion_findings = [finding for finding in motion_findings if finding.code != "clip_not_upright"]
            findings += motion_findings
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return ClipCheck(tuple(ordered), measures)


def _choose_reading(
    candidates: Sequence[Mended],
    faults: Sequence[Finding],
    poses: Poses,
    motion: Motion,
    lead: int,
    feet: FootMeasure,
    limits: Limits,
) -> Sequence[Finding]:
    """The refusal of a clip by the likeliest reading, of those first that leave nothing else to refuse or exclude.

    Args:
      faults: what breaks the clip as it is. What breaks it in any reading is refused first: feet that are frozen say little.
    """
    robot, remaining = feet.robot, []
    for candidate in candidates:
        read = candidate.apply(poses)
        course = _follow(read, motion.fps, lead, feet)
        findings = _find_unreachable(read, robot, lead)
        findings += find_discontinuities(_frames_of(read, motion.fps, feet), limits.max_speed, limits.max_turn_rate)
        findings += describe_motion(course, robot, measure_course(course), gate_profile(GATE_PROFILE))
        codes = [finding.code for finding in findings if finding.severity in ("refuses", "excludes")]
        remaining.append(codes + (["heading"] if _turn_of(course, feet).is_off else []))
    is_clean = [not codes for codes in remaining]
    best = is_clean.index(True) if any(is_clean) else 0
    rivals = [candidate for i, candidate in enumerate(candidates) if i != best and is_clean[i] == is_clean[best]]
    lasting = [fault for fault in faults if fault.severity == "refuses" and all(fault.code in codes for codes in remaining)]
    return lasting or [candidates[best].to_finding(motion.num_frames, rivals, remaining[best])]


def _frames_of(poses: Poses, fps: float, feet: FootMeasure) -> Frames:
    stride = max(1, math.ceil(fps / FOOT_STEP_FPS))
    foot_steps = feet.least_steps(poses.take(np.arange(0, len(poses.root_pos), stride)))
    return Frames(*poses, fps, feet.robot.joint_names, foot_steps, stride, feet.height)


def _turn_of(course: Course, feet: FootMeasure) -> PathTurn:
    return feet.turn(course.root_pos, course.push, course.in_flight, course.fps)


def find_leading(motion: Motion, rotation: Array, robot: Robot) -> FirstFrame:
    """The leading frames that the retargeter had not solved, and whether enough is left without them.

    Args:
      rotation: (N, 4) the motion's quaternions at unit length.
    """
    first = FirstFrame.of(motion, rotation)
    remaining = resampled_count(motion.num_frames - first.frames, motion.fps, round(1.0 / robot.control_dt, 9))
    return replace(first, trimmed=first.glitch and remaining >= 2)


def _describe_root(root: RootFrame) -> Finding:
    return Finding(
        "root_frame",
        "excludes",
        root.detail,
        key="root_rot",
        value=root.mean_tilt_deg,
        limit=math.degrees(SUSPECT_TILT),
        unit="deg",
        expected="a root that stands upright where the robot does",
        remedy="Export the clip again with the robot's own root frame; nothing else can be judged before that",
    )


def _describe_recording(motion: Motion, robot: Robot) -> list[Finding]:
    """Controls that came with the clip, and whether mode `recorded` can use them: they are no fault of its kinematics."""
    if motion.recording is None and motion.recording_fault is None:
        return []
    try:
        recording = bind_recording(motion, robot)
    except MotionRefused as error:
        return [
            Finding(
                "recording_unusable",
                "warns",
                f"the controls that the file carries cannot be used: {error.key}: {error.what}",
                key=error.key,
                frames=None if error.frame is None else (error.frame, error.frame),
                expected=error.expected,
                remedy=error.remedy,
            )
        ]
    frames, per_frame, _ = recording.source.ctrl.shape
    message = f"the file carries the controls of {frames} frames, {per_frame} in each: mode recorded simulates them, and the "
    return [Finding("recording", "notes", f"{message}modes that drive or plan the clip ignore them", key="ctrl")]


def _describe_leading(first: FirstFrame) -> Finding:
    return Finding(
        "leading_frames_dropped",
        "notes",
        f"{first.detail}; dropped",
        key="root_pos",
        frames=(0, first.frames - 1),
        value=float(first.frames),
        unit="frames",
        expected="a first frame that the retargeter has solved",
        remedy="Nothing to do here; let the retargeter's solver converge on the first frame before it goes on",
    )


def _find_norms(norms: Array, lead: int) -> list[Finding]:
    error = np.abs(norms - 1.0)
    worst = int(error.argmax())
    if error[worst] <= NORM_REPORTED:
        return []
    finding = Finding(
        "quaternions_normalized",
        "notes",
        f"{int((error > NORM_REPORTED).sum())} of {len(norms)} quaternions are not of norm 1, as after filtering or averaging "
        f"({norms[worst]:.4g} at frame {lead + worst}); they were normalized",
        key="root_rot",
        frames=(lead + worst, lead + worst),
        value=rounded(norms[worst]),
        limit=1.0,
        expected="unit quaternions",
        remedy="Nothing to do here; normalize them where they are filtered",
    )
    return [finding]


def _find_misplaced(
    poses: Poses, start: Poses, end: Poses, fps: float, feet: FootMeasure, as_read: Plausibility
) -> Finding | None:
    """A root that is so far from where this robot can be that no shift of the floor explains it."""
    reading = place_elsewhere(start, end, fps, feet, as_read)
    if reading is not None:
        y, z = (float(start.root_pos[:, axis].mean()) for axis in (1, 2))
        return Finding(
            reading.kind,
            "refuses",
            f"{reading.words}: on average the root is at {z:.4g} along z and {y:.4g} along y",
            key="root_pos",
            frames=(0, 0),
            expected="metres with z up",
            remedy=reading.remedy,
        )
    low, high = feet.robot.height_range
    mean = float(poses.root_pos[:, 2].mean())
    if low - ABSURD_SHIFT_M <= mean <= high + ABSURD_SHIFT_M and abs(as_read.floor) <= ABSURD_SHIFT_M:
        return None
    return Finding(
        "off_the_floor",
        "refuses",
        f"the root is {mean:.4g} m high on average, the lowest foot point {as_read.floor:.4g} m above the floor (median)",
        key="root_pos",
        frames=(0, 0),
        value=rounded(mean),
        limit=rounded(high + ABSURD_SHIFT_M),
        unit="m",
        expected=f"metres with z up, so about {low:g} to {high:g} m for {feet.robot.name}, with feet near z = 0",
        remedy="Is it in metres, and is z up? Convert root_pos, or put the floor at z = 0, and export again",
    )


def _find_unreachable(poses: Poses, robot: Robot, lead: int) -> list[Finding]:
    """Angles that no joint of the robot reaches."""
    limits = robot.joint_range
    absurd = np.abs(poses.dof_pos) > ABSURD_ANGLE
    excess = np.maximum(limits[:, 0] - poses.dof_pos, poses.dof_pos - limits[:, 1])
    share = (excess > BEYOND_RAD).mean(axis=0)
    joint = int(share.argmax())
    if absurd.any():
        frame, joint = (int(i) for i in np.argwhere(absurd)[0])
        value = float(poses.dof_pos[frame, joint])
        code, problem = "joint_absurd", f"{robot.joint_names[joint]} is {value:.4g} rad, more than two turns"
    elif share[joint] > BEYOND_SHARE:
        frame, value = int(excess[:, joint].argmax()), float(excess[:, joint].max())
        code = "joints_beyond_limits"
        more = int((share > BEYOND_SHARE).sum()) - 1
        problem = (
            f"{robot.joint_names[joint]} is beyond its limits by over {BEYOND_RAD:g} rad in {share[joint]:.0%} of the frames, "
            f"by up to {value:.3g} rad{f', as are {more} other joints' if more else ''}"
        )
    else:
        return []
    name = robot.joint_names[joint]
    return [
        Finding(
            code,
            "refuses",
            problem,
            key="dof_pos",
            joint=name,
            frames=(lead + frame, lead + frame),
            value=rounded(value),
            limit=ABSURD_ANGLE if absurd.any() else BEYOND_RAD,
            unit="rad",
            expected=f"{name} in rad, within [{limits[joint, 0]:.3g}, {limits[joint, 1]:.3g}]",
            remedy="Check robot, joint order, unit and the joints' zeros; no order, sign or unit that was tried mends it",
        )
    ]


def _follow(poses: Poses, fps: float, lead: int, feet: FootMeasure) -> Course:
    """The clip at the control rate, with its footing."""
    from amp_core.footing import Footing  # noqa: PLC0415 - reading a motion needs no MuJoCo
    from amp_core.kinematics import FootTracker  # noqa: PLC0415

    robot = feet.robot
    fps_out = round(1.0 / robot.control_dt, 9)
    times = np.arange(resampled_count(len(poses.root_pos), fps, fps_out), dtype=np.float64) * (fps / fps_out)
    position, joints = interpolate(poses.root_pos, times), interpolate(poses.dof_pos, times)
    rotation = interpolate_rotations(rotations.align_signs(poses.root_rot)[0], times)
    qpos = robot.poses(position, rotation, joints)
    footing = Footing.of(robot, qpos)
    heights = FootTracker(robot, size=len(qpos)).heights(qpos)
    return Course(
        lead + times,
        fps_out,
        position,
        rotation,
        joints,
        footing.slide,
        footing.push,
        footing.in_flight,
        footing.ground,
        heights,
        feet.height,
    )


def forward_speed(position: Array, rotation: Array, fps: float) -> float:
    """m/s, mean over the steps, along the horizontal projection of the body's x axis; of (N, 3) m and (N, 4) unit xyzw."""
    heading = rotations.heading_direction(rotation[:-1])
    return float(np.einsum("ij,ij->i", np.diff(position[:, :2], axis=0), heading).mean() * fps)


__all__ = ["ABSURD_SHIFT_M", "check_clip", "check_motion", "find_leading", "find_refusal", "forward_speed"]
