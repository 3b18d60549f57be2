"""The account of what conditioning measured in a clip and changed, with notes in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.formats.clip import Motion
from amp_core.motion.findings import Finding
from amp_core.motion.root_frame import RootFrame
from amp_core.strict_json import json_data

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

GLITCH_RATIO = 5.0
GLITCH_WINDOW = 15
MOST_LEADING = 3
"""A retargeter's solver converges within so many frames; more are no solver's."""

GLITCH_FLOOR = {"root_pos": (0.02, "m"), "root_rot": (0.1, "rad"), "dof_pos": (0.1, "rad")}

CLIPPED_NOTE_RAD = 0.2
CLIPPED_NOTE_SHARE = 0.2
# Lengths and speeds are those for WildRobot; `Robot.height_factor` takes them to another robot.
DEEP_M = 0.02
DEEP_NOTE_SHARE = 0.02
SPREAD_NOTE_M = 0.03
# Retargeted clips need shifts of a few centimetres; this much is a clip whose height is measured from somewhere else.
SHIFT_NOTE_M = 0.1
BACKWARD_NOTE = 0.05  # m/s


@dataclass(frozen=True)
class JointClip:
    """One joint that left its limits.

    Args:
      frames: source frames in which it was outside.
      max_excess_rad: the farthest it was outside.
      side: `low`, `high` or `both`.
    """

    joint: str
    frames: int
    max_excess_rad: float
    side: str


@dataclass(frozen=True)
class FirstFrame:
    """The first steps, compared with the steps that follow.

    Args:
      glitch: the first frames stand far off: in some array the step out of them is over 5 times the largest of the next 15 and
        above 2 cm or 0.1 rad.
      trimmed: the frames were dropped; true exactly where `glitch` is, unless only one frame would be left.
      root_pos_ratio, root_rot_ratio, dof_pos_ratio: the step over the largest of the next ones (0 where nothing moves).
      detail: the same in words; empty without a finding.
      frames: how many frames stand apart, at most `MOST_LEADING`.
    """

    glitch: bool
    trimmed: bool
    root_pos_ratio: float
    root_rot_ratio: float
    dof_pos_ratio: float
    detail: str
    frames: int = 0

    @classmethod
    def of(cls, motion: Motion, rotation: Array) -> FirstFrame:
        """The first steps of a motion and those that follow; a solver that starts from a rest pose leaves a glitch there.

        Args:
          rotation: (N, 4) the motion's quaternions at unit length.
        """
        end = MOST_LEADING + GLITCH_WINDOW + 1
        rotation = rotation[:end]
        steps = {
            "root_pos": np.linalg.norm(np.diff(motion.root_pos[:end], axis=0), axis=1),
            "root_rot": rotations.angle_between(rotation[:-1], rotation[1:]),
            "dof_pos": np.abs(np.diff(motion.dof_pos[:end], axis=0)).max(axis=1),
        }
        first = cls(False, False, 0.0, 0.0, 0.0, "")
        # The last step that stands apart counts: all frames before it are as little solved.
        for count in range(1, MOST_LEADING + 1):
            ratios, jumps = _compare_step(steps, count - 1)
            text = "the first frame stands" if count == 1 else f"the first {count} frames stand"
            detail = f"{text} apart from the next: {'; '.join(jumps)}" if jumps else ""
            if count == 1 or jumps:
                first = cls(bool(jumps), False, *ratios, detail=detail, frames=count if jumps else 0)
        return first


def _compare_step(steps: dict[str, Array], index: int) -> tuple[tuple[float, float, float], list[str]]:
    """For each array how a step compares with the largest of the next ones, and in words those that stand apart."""
    ratios: dict[str, float] = {}
    jumps = []
    for key, step in steps.items():
        floor, unit = GLITCH_FLOOR[key]
        if len(step) < index + 3:
            ratios[key] = 0.0
            continue
        size, largest = float(step[index]), float(step[index + 1 : index + 1 + GLITCH_WINDOW].max())
        # In a clip that stands still any step is infinitely larger; a tenth of the floor stands in for its noise.
        ratios[key] = size / max(largest, 0.1 * floor)
        if size > floor and ratios[key] > GLITCH_RATIO:
            jumps.append(f"{key} by {size:.3g} {unit}, {ratios[key]:.1f} times the largest of the next steps")
    return (ratios["root_pos"], ratios["root_rot"], ratios["dof_pos"]), jumps


@dataclass(frozen=True)
class IngestReport:
    """What conditioning measured in a clip and what it changed. Leading frames that were dropped are counted but not measured.

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
      deep_penetration_rate: share of frames with a foot point deep below the floor after the shift: by over 2 cm for WildRobot.
      initial_clearance_m: m from the floor to the lowest foot point in the first frame after the shift; negative below it.
      root_height_mean_m, root_height_min_m, root_height_max_m: after the shift.
      root_speed_max, root_speed_mean, root_turn_rate_max, joint_speed_max: m/s and rad/s of the source, over its steps.
      forward_speed_mean: m/s along the heading; negative for a clip that walks backwards.
      notes: what a person should look at, one sentence each (`write_notes`).
      findings: what `checks.check_clip` found; none of them refuses.
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
    findings: tuple[Finding, ...] = ()

    @property
    def unreachable_joints(self) -> list[JointClip]:
        """The joints that left their limits far or often."""
        many = CLIPPED_NOTE_SHARE * self.frames_in
        return [clip for clip in self.joints_clipped if clip.max_excess_rad > CLIPPED_NOTE_RAD or clip.frames > many]

    def ground_faults(self, robot: Robot) -> frozenset[str]:
        """In what the clip's feet do not fit the floor, of `shift`, `spread` and `depth`, by this robot's height."""
        factor = robot.height_factor
        return frozenset(
            fault
            for fault, value, most in (
                ("shift", abs(self.ground_shift_m), SHIFT_NOTE_M * factor),
                ("spread", self.foot_height_spread_m, SPREAD_NOTE_M * factor),
                ("depth", self.deep_penetration_rate, DEEP_NOTE_SHARE),
            )
            if value > most
        )

    def finding(self, code: str) -> Finding | None:
        return next((finding for finding in self.findings if finding.code == code), None)

    def to_dict(self) -> dict[str, Any]:
        """The `ingest` object of a result: the fields above, JSON-ready, with `root_frame_suspect` at the top as well."""
        findings = [finding.to_dict() for finding in self.findings]
        return {**json_data(self), "findings": findings, "root_frame_suspect": self.root_frame.suspect}


_NOTED = {
    "recording": "Recording",
    "recording_unusable": "Recording",
    "joints_reordered": "Joint order",
    "quaternions_normalized": "Quaternions",
    "duplicate_frames": "Frames",
    "clip_feet_slide": "Feet",
    "clip_not_upright": "Upright",
    "flight": "Flight",
    "ground_not_flat": "Ground",
    "starts_in_air": "Start",
    "rate": "Rate",
    "one_leg": "Stance",
    "stands_still": "Movement",
    "joint_still": "Joints",
}
"""The findings that no other note says, and what their notes begin with."""


def write_notes(report: IngestReport, robot: Robot, *, is_recorded: bool = False) -> tuple[str, ...]:
    """What a person should look at, one sentence each; empty for a clip without findings.

    Args:
      is_recorded: whether its frames were kept for the sake of their controls.
    """
    messages = {finding.code: finding.message for finding in report.findings}
    notes = [f"{opening}: {messages[code]}." for code, opening in _NOTED.items() if code in messages]
    if report.root_frame.suspect:
        notes.append(f"Root frame: {report.root_frame.detail}.")
    if report.first_frame.glitch:
        reason = "they have controls" if is_recorded else "too little would be left"
        action = "dropped" if report.first_frame.trimmed else f"kept, since {reason}"
        were = "it was" if report.first_frame.frames == 1 else "they were"
        notes.append(f"First frame: {report.first_frame.detail}; {were} {action}.")
    joints = report.unreachable_joints
    if joints:
        listing = ", ".join(f"{clip.joint} in {clip.frames} frames by up to {clip.max_excess_rad:.3g} rad" for clip in joints)
        notes.append(f"Joint limits: clipped {listing}; check the joint order and the retargeting.")
    low, high = robot.height_range
    faults = report.ground_faults(robot)
    if "shift" in faults:
        notes.append(
            f"Ground: the whole clip was {'raised' if report.ground_shift_m > 0 else 'lowered'} by "
            f"{abs(report.ground_shift_m):.3g} m to bring its feet to the floor; "
            "check that root_pos is in metres with z up and the floor at z = 0."
        )
    if "spread" in faults:
        notes.append(
            f"Ground: the lowest foot point varies by {report.foot_height_spread_m * 1e3:.0f} mm (interquartile); "
            "no vertical shift puts these feet on one floor."
        )
    if "depth" in faults:
        notes.append(
            f"Ground: after the shift a foot is still more than {DEEP_M * robot.height_factor * 1e3:.0f} mm below the floor in "
            f"{report.deep_penetration_rate:.0%} of the frames, at most {report.deepest_penetration_m * 1e3:.0f} mm."
        )
    if not low <= report.root_height_mean_m <= high:
        notes.append(
            f"Height: the root is at {report.root_height_mean_m:.3f} m on average, outside the robot's {low:g} to {high:g} m; "
            "check the unit, the root frame and the robot."
        )
    if report.forward_speed_mean < -BACKWARD_NOTE * math.sqrt(robot.height_factor):
        notes.append(
            f"Direction: the root moves backwards at {-report.forward_speed_mean:.2f} m/s on average; if the clip should walk "
            "forward, its heading may be reversed."
        )
    return tuple(notes)
