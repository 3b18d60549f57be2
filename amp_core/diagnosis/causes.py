"""The findings of causes: faults of the clip itself, and strain and slip before the robot tips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from amp_core.diagnosis.evidence import Evidence, find_span, readable
from amp_core.diagnosis.findings import Finding
from amp_core.metrics import SLIP_SPEED
from amp_core.runs import find_runs
from amp_core.tiers import CLIP_CODES, clip_failures

_JOINTS = 3  # findings of one code that concern different joints
_SATURATED_SHARE = 0.1  # of one joint before the robot tips; `triage.SATURATED_SHARE` is of all actuators and frames
_FAST = 3.0  # rad/s; below this speed, what looks like lag is load
_FOLLOWED_SHARE = 0.75
_LAG_RAD = 0.15
_EXCESS_RAD = 0.05
_EXCESS_SHARE = 0.05
_STANCE_SEC = 0.1
_SLIPPING_SHARE = 0.15
_SLIP_SEC = 0.5  # a share of less stance than this is a frame or two


def describe_clip_gates(evidence: Evidence) -> Iterator[Finding]:
    """The gates that the clip itself fails, which no controller and no plan can change."""
    series = evidence.series
    tilted = find_span(series.clip_tilt > evidence.threshold("clip_max_tilt_deg"))
    over = f" from {evidence.time(tilted[0])} to {evidence.time(tilted[1] - 1)}" if tilted else ""
    texts: dict[str, tuple[str, str, tuple[int, int] | None]] = {
        "clip_max_tilt_deg": (f"the clip itself leans up to {{:.0f}}°{over}", "deg", tilted),
        "clip_flight_rate": (
            "no foot of the clip is on the ground in {:.0%} of the frames: it runs or jumps",
            "1",
            find_span(series.clip_flight),
        ),
        "clip_ground_range_m": (
            "the ground under the clip's feet is not flat: it rises or falls by {:.2f} m (a slope, stairs, or drift)",
            "m",
            None,
        ),
        "clip_foot_slide": ("the clip's own standing foot slides at {:.2f} m/s (median)", "m/s", None),
        "clip_still_rate": ("the clip holds a pose in {:.0%} of its frames: nothing moves to speak of", "1", None),
        "clip_path_ratio": ("the clip's root travels {:.2f} times as far as its standing feet take it", "1", None),
    }
    failures = {gate.name: gate for gate in clip_failures(evidence.failed_gates.values())}
    for name, (text, unit, frames) in texts.items():
        gate = failures.get(name)
        if gate is None:
            continue
        assert gate.value is not None
        message = f"{text.format(gate.value)}; {evidence.rollout.recipe.gate_profile} excludes it"
        limit = gate.threshold[gate.value > gate.threshold[1]] if isinstance(gate.threshold, tuple) else gate.threshold
        yield Finding(CLIP_CODES[name], "fatal", message, None, None, frames, gate.value, limit, unit)


def describe_clip(evidence: Evidence) -> Iterator[Finding]:
    """Faults of the clip itself: its height above the ground and its joint limits."""
    report, off_ground = evidence.clip.report, evidence.off_ground
    clearance = report.initial_clearance_m
    if clearance > off_ground:
        message = f"the clip starts {clearance:.2f} m above the ground, so the robot drops first"
        yield Finding("starts_in_air", "cause", message, frames=(0, 1), value=clearance, limit=off_ground, unit="m")
    heights = evidence.clip_feet.heights
    shortest = max(2, round(_STANCE_SEC / (evidence.stride * evidence.dt)))
    for i, foot in enumerate(evidence.robot.feet):
        for code, is_off, place in (
            (
                "feet_above_ground",
                evidence.is_still[:, i] & (heights[:, i] > off_ground),
                "above the ground where it should stand",
            ),
            ("feet_below_ground", heights[:, i] < -off_ground, "under the ground"),
        ):
            runs = [run for run in find_runs(is_off) if run[1] - run[0] >= shortest]
            if not runs:
                continue
            start, stop = max(runs, key=lambda run: float(np.abs(heights[run[0] : run[1], i]).mean()))
            value = float(max(heights[start:stop, i], key=abs))
            frames = (start * evidence.stride, min(stop * evidence.stride, evidence.clip.num_frames))
            message = f"the clip's {readable(foot.name)} is {abs(value):.2f} m {place} at {evidence.period(*frames)}"
            message += f", {len(runs)} times in all" if len(runs) > 1 else ""
            yield Finding(code, "cause", message, foot=foot.name, frames=frames, value=value, limit=off_ground, unit="m")
    excesses = [
        joint
        for joint in report.joints_clipped
        if joint.max_excess_rad >= _EXCESS_RAD and joint.frames >= _EXCESS_SHARE * report.frames_in
    ]
    for excess in sorted(excesses, key=lambda joint: -joint.max_excess_rad)[:_JOINTS]:
        message = f"the clip bends the {readable(excess.joint)} up to {excess.max_excess_rad:.2f} rad beyond its limit "
        message += f"({excess.frames} of {report.frames_in} source frames); it was clipped"
        yield Finding("joint_limit", "cause", message, joint=excess.joint, value=excess.max_excess_rad, limit=0.0, unit="rad")


def describe_strain(evidence: Evidence) -> Iterator[Finding]:
    """Torque and speed of the joints, before the robot tips over."""
    if evidence.onset < 5:
        return
    robot, rollout, upright = evidence.robot, evidence.rollout, evidence.upright
    limits = robot.force_limit
    for joint, share in list(evidence.strained_joints(upright, _SATURATED_SHARE).items())[:_JOINTS]:
        message = f"torque saturated at the {readable(joint)} for {share:.0%} of the frames"
        message += " before it tips" if evidence.fell is not None else ""
        message += f" (limit {limits[robot.joint_names.index(joint)]:g} N·m)"
        frames = (0, evidence.onset)
        yield Finding("torque_saturated", "cause", message, joint, None, frames, share, _SATURATED_SHARE, "1")
    clip_speed = evidence.clip_joint_speed[upright]
    lag = np.abs(rollout.reference_dof_pos - rollout.dof_pos)[upright]
    slow: list[tuple[float, Finding]] = []
    for j, (joint, peak) in enumerate(zip(robot.joint_names, clip_speed.argmax(axis=0).tolist(), strict=True)):
        near = slice(max(0, peak - 3), peak + 4)
        peak_speed, speed = float(np.abs(rollout.dof_vel[upright][near, j]).max()), float(clip_speed[peak, j])
        behind = lag[near, j].max()
        if speed >= _FAST and peak_speed < _FOLLOWED_SHARE * speed and behind >= _LAG_RAD:
            message = f"the clip moves the {readable(joint)} at {speed:.1f} rad/s at {evidence.time(peak)}, the servo reaches "
            message += f"{peak_speed:.1f} and is {behind:.2f} rad behind"
            frames = (near.start, min(near.stop, evidence.onset))
            slow.append(
                (peak_speed / speed, Finding("joint_speed", "cause", message, joint, None, frames, speed, peak_speed, "rad/s"))
            )
    for _, finding in sorted(slow, key=lambda entry: entry[0])[:_JOINTS]:
        yield finding


def describe_slip(evidence: Evidence) -> Iterator[Finding]:
    """Feet that slide while they carry weight, before the robot tips over."""
    for i, foot in enumerate(evidence.robot.feet):
        carries_load, speed = evidence.loaded[evidence.upright, i], evidence.rollout.foot_speed[evidence.upright, i]
        slipping = carries_load & (speed > SLIP_SPEED)
        if carries_load.sum() < _SLIP_SEC / evidence.dt:
            continue
        share = float(slipping.sum() / carries_load.sum())
        if share >= _SLIPPING_SHARE:
            message = f"the {readable(foot.name)} slides in {share:.0%} of its stance"
            message += " before the robot tips" if evidence.fell is not None else ""
            message += f", at up to {speed[slipping].max():.2f} m/s"
            frames = find_span(slipping)
            yield Finding("slips", "note", message, None, foot.name, frames, share, _SLIPPING_SHARE, "1")
