"""Tests 2 and 3: features must not depend on the robot's heading, nor on the sign of its quaternion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.consistency import ROUNDING, relative_error
from amp_core.formats import WIDE_LIMITS
from amp_core.motion import condition
from amp_core.verify.context import REPLAYED_FRAMES, Context, describe_sample
from amp_core.verify.policy_side import NO_JAX, PATHS, PolicyInputs
from amp_core.verify.report import PASS, SKIP, Findings, Peak, Row, TestReport
from amp_core.verify.states import (
    SUSPICIOUS,
    Drive,
    Loop,
    Trace,
    compute_features,
    flip_quaternions,
    has_pyramidal_cone,
    heading_length,
    max_magnitude,
    rotate_states,
    simulate,
    with_elliptic_cone,
)
from amp_core.verify.subject import stack_rows

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

YAW_SIMULATED = 1e-5
"""From the specification: a rotated simulation's features from the original's, until contact chaos."""

SPAN = 50
"""Frames that a rotated simulation must agree for without a break, on one clip at least (or that clip's whole length)."""

ANEW_FRAMES = 50
"""Frames after which a simulation is rotated anew. Rounding grows to 1e-5 within some 300 frames, so it cannot in these."""

TURNED_FRAMES = 6_000
"""Frames that test 2 simulates in each heading; a larger version is sampled."""

HALF_TURN = 180.0
QUARTER_TURNS = (90.0, -90.0)
HEADINGS = (37.0, -123.4)
"""°; other angles of rotation."""

_EQUAL_STATES = 1e-6
"""Relative, of float32 features: two simulations that differ by no more have agreed so far."""


# --- 2 --------------------------------------------------------------------------------------------------------------------


def yaw_invariance(context: Context) -> TestReport:
    """2: features do not depend on the heading, neither in their assembly nor in a simulation that starts rotated."""
    findings = Findings("2")
    clips = context.subject.nonempty_clips
    if not clips:
        return findings.skip("no clip has a frame")
    robot, side = context.subject.robot, context.policy_side
    qpos, qvel, contacts = (stack_rows(clips, key) for key in ("qpos", "qvel", "foot_contacts"))
    inputs = PolicyInputs.of(robot, clips)

    def features_by_path(qpos: Array, qvel: Array) -> dict[str, Floats]:
        features = {"extract": compute_features(robot, qpos, qvel, contacts)}
        if side is not None:
            for path in PATHS:
                features[path] = side.features(side.observations(path, qpos, qvel), inputs, robot.control_dt)
        return features

    expected = features_by_path(qpos, qvel)
    certainty = heading_length(robot, qpos)
    peaks = {path: Peak() for path in expected}
    angles = (*QUARTER_TURNS, HALF_TURN, *HEADINGS)
    for angle in angles:
        rotated_features = features_by_path(*rotate_states(robot, qpos, qvel, math.radians(angle)))
        for path, features in rotated_features.items():
            error = relative_error(features, expected[path])
            if path == "observe":
                error *= certainty[:, None]
            dimension = robot.layout.names[int(np.argmax(np.nan_to_num(error, nan=np.inf).max(axis=0)))]
            peaks[path].record(float(error.max()), f"turned by {angle:g}°, dimension {dimension}")
    for path, peak in peaks.items():
        limit = SUSPICIOUS if path == "observe" else ROUNDING
        note = "relative; in float32, times the heading's length on the ground" if path == "observe" else "relative"
        reason = (
            f"the features of {path} change when the robot is {peak.place}: they depend on the heading. Is a velocity left in "
            "the world frame, or the yaw taken from something that knows only some headings?"
        )
        findings.check(f"assembly.{path}", peak.value, "<=", limit, where=peak.place, note=note, reason=reason)
    simulation_text = check_rotated_simulations(findings, context, clips)
    path = "" if side is not None else f" (the policy's paths were left out: {NO_JAX})"
    return findings.report(
        f"every recorded state of {len(clips)} clips turned by {', '.join(f'{angle:g}°' for angle in angles)} and assembled "
        f"again{path}; {simulation_text}"
    )


def check_rotated_simulations(findings: Findings, context: Context, clips: Sequence[Clip]) -> str:
    """Every clip simulated in every heading, beside the original; the sentence for the report."""
    robot = context.subject.robot
    pairs = context.sample(clips, TURNED_FRAMES)
    pyramidal = has_pyramidal_cone(robot.model)
    # (friction cone, heading in °, whether agreement is required)
    plans: list[tuple[str, float, bool]] = [("own", angle, True) for angle in (HALF_TURN, *QUARTER_TURNS)]
    plans += [("own", angle, not pyramidal) for angle in HEADINGS]
    if pyramidal:
        plans += [("elliptic", angle, True) for angle in (QUARTER_TURNS[0], *HEADINGS)]
    evidence: list[dict[str, Any]] = []
    originals: dict[tuple[str, int], Original] = {}
    for number, (cone, angle, is_required) in enumerate(plans):
        comparisons = []
        for n, (clip, frames) in enumerate(pairs):
            context.progress((number + n / len(pairs)) / len(plans), f"{clip.name} turned by {angle:g}°")
            if (cone, n) not in originals:
                model = robot.scaled_model(clip.recipe.physics)
                model = with_elliptic_cone(model) if cone == "elliptic" else model
                originals[cone, n] = Original(robot, model, Drive.of(clip, frames))
            comparison = compare_rotated(originals[cone, n], math.radians(angle), restart=is_required)
            comparisons.append(comparison)
            evidence.append(
                {
                    "clip": clip.name,
                    "cone": cone,
                    "heading_deg": angle,
                    "frames": comparison.frames,
                    "alone_until": comparison.alone_until,
                    "longest_span": comparison.span,
                    "contact_chaos": comparison.chaos,
                    "robot_touching_itself": comparison.crosswise,
                }
            )
        name = f"simulated.{cone}.{angle:g}deg"
        note = (
            "frames until a simulation that was turned once and left alone differs; rounding grows, too"
            if is_required
            else "told, not asked: the sides of MuJoCo's friction pyramid lie in fixed directions of the world, so that a "
            "robot turned by other than quarter turns meets other friction"
        )
        alone_frames = float(np.median([comparison.alone_until for comparison in comparisons]))
        place = f"median of {len(comparisons)} clips"
        findings.add(Row(f"{name}.alone", alone_frames, PASS, unit="frame", where=place, note=note))
        if is_required:
            check_agreement(findings, name, angle, [clip.name for clip, _ in pairs], comparisons)
    findings.figures["turned"] = evidence
    elsewhere = ", with the elliptic cone on both sides where the pyramid has a direction" if pyramidal else ""
    return (
        f"{describe_sample(pairs, context.subject.clips)} simulated again in every heading, turned anew every {ANEW_FRAMES} "
        f"frames and after every break{elsewhere}"
    )


@dataclass
class Comparison:
    """A simulation of one clip beside the same in another heading.

    Args:
      frames: compared.
      alone_until: frames until a simulation that is rotated once and then left alone differs.
      agreed: frames within the tolerance.
      span: the longest run of those without a break.
      chaos: breaks after collision detection chose other contacts while the states still agreed.
      crosswise: breaks after geoms of the robot touched each other, in a heading that rotates a friction pyramid between them.
      unexplained: (frame, difference, dimension) of the first other break, or None.
    """

    frames: int
    alone_until: int
    agreed: int = 0
    span: int = 0
    chaos: int = 0
    crosswise: int = 0
    unexplained: tuple[int, float, str] | None = None


def check_agreement(
    findings: Findings, name: str, angle: float, clips: Sequence[str], comparisons: Sequence[Comparison]
) -> None:
    """Rows and reasons of one heading."""
    breaks = [(clip, c.unexplained) for clip, c in zip(clips, comparisons, strict=True) if c.unexplained is not None]
    chaos, crosswise = sum(c.chaos for c in comparisons), sum(c.crosswise for c in comparisons)
    note = f"clips that leave {YAW_SIMULATED:g} where no contact explains it; explained: {chaos} breaks by contacts"
    note += f", {crosswise} after the robot touched itself" if crosswise else ""
    place = f"clip {breaks[0][0]}" if breaks else ""
    findings.check(f"{name}.unexplained", len(breaks), "==", 0, where=place, note=note)
    if breaks and not any("simulated again" in reason for reason in findings.reasons):
        clip, (frame, difference, dimension) = breaks[0]
        findings.add_reason(
            f"clip {clip}, turned by {angle:g}° and simulated again, differs by {difference:.2g} in {dimension} at frame "
            f"{frame}, and no contact explains it: the physics or the controls know a direction (wind, a tilted floor, a force "
            "that pulls sideways?)"
        )
    agreement = sum(c.agreed for c in comparisons) / max(1, sum(c.frames for c in comparisons))
    longest, required_span = max(c.span for c in comparisons), min(SPAN, max(c.frames for c in comparisons))
    note = f"the longest run of frames within {YAW_SIMULATED:g}; {agreement:.1%} of all frames agree"
    is_pass = findings.check(f"{name}.span", longest, ">=", required_span, unit="frame", note=note, warn=crosswise > 0)
    if not is_pass and not breaks:
        findings.add_reason(f"turned by {angle:g}°, no clip agrees for {required_span} frames: too little to tell")


class Original:
    """A drive simulated as it is, to be compared with the same in other headings.

    Args:
      robot: that it is of.
      model: of the robot, at some physics scale.
      drive: N frames.
    """

    def __init__(self, robot: Robot, model: Any, drive: Drive) -> None:
        self.robot, self.model, self.drive = robot, model, drive
        self.trace = Loop(robot, model, drive).trace(len(drive.ctrl))
        self.features = self.moving_features(self.trace.qpos, self.trace.qvel)

    def moving_features(self, qpos: Array, qvel: Array) -> Floats:
        """(N, F - C) the features of states, without those of contacts."""
        channels = len(self.robot.channels)
        return compute_features(self.robot, qpos, qvel, np.zeros((len(qpos), channels)))[:, : self.robot.layout.dim - channels]

    def errors(self, start: int, turn: Trace) -> Array:
        """(n, F - C) relative differences of n rotated frames from the same ones, of which `start` is the first."""
        features = self.moving_features(turn.qpos, turn.qvel)
        return relative_error(features, self.features[start : start + len(features)])

    def differ_by_contacts(self, start: int, turn: Trace, end: int) -> bool:
        """Whether, in rotated frames before `end`, collision detection chose other contacts while the states still agreed."""
        first = start * self.robot.substeps
        for s in range(min(len(turn.contacts), end * self.robot.substeps - first)):
            if not self.trace.has_same_contacts(first + s, turn, s):
                expected, actual = (
                    self.moving_features(trace.substep_qpos[i : i + 1], trace.substep_qvel[i : i + 1])
                    for trace, i in ((self.trace, first + s), (turn, s))
                )
                if float(relative_error(actual, expected).max()) <= _EQUAL_STATES:
                    return True
        return False

    def touches_itself(self, start: int, end: int) -> bool:
        """Whether geoms of the robot touch each other in the frames from `start` to before `end`."""
        substeps = range(start * self.robot.substeps, end * self.robot.substeps)
        return any(self.trace.touches_itself(s, self.robot.ground_geom) for s in substeps)


def compare_rotated(original: Original, angle: float, restart: bool) -> Comparison:
    """Simulate a drive rotated by `angle` rad, and compare it with the original.

    Args:
      restart: rotate the state anew every `ANEW_FRAMES` frames, so that rounding has no time to grow, and after every break;
        else the comparison ends with the first difference.
    """
    robot, model, drive = original.robot, original.model, original.drive
    frames = len(drive.ctrl)
    result = Comparison(frames, alone_until=frames)
    loop, start = Loop(robot, model, drive.rotate_yaw(robot, angle)), 0
    while start < frames and result.alone_until == frames:
        count = min(ANEW_FRAMES, frames - start)
        differing = ~(original.errors(start, loop.trace(count)).max(axis=1) <= YAW_SIMULATED)
        if differing.any():
            result.alone_until = start + int(np.argmax(differing))
        start += count
    if not restart:
        agreed = result.alone_until
        return Comparison(min(agreed + 1, frames), alone_until=agreed, agreed=agreed, span=agreed)
    pyramid_rotates = has_pyramidal_cone(model) and abs(math.cos(angle)) < 1.0 - 1e-12
    begin = span = 0
    while begin < frames:
        rest = drive if begin == 0 else drive.tail(begin, original.trace)
        loop = Loop(robot, model, rest.rotate_yaw(robot, angle))
        start, end = begin, min(begin + ANEW_FRAMES, frames)
        traces: list[tuple[int, Trace]] = []
        broken: Array | None = None
        while start < end and broken is None:
            # In steps that double, as most simulations either agree to the end or break soon.
            traces.append((start, loop.trace(min(max(1, start - begin), end - start))))
            errors = original.errors(*traces[-1])
            differing = ~(errors.max(axis=1) <= YAW_SIMULATED)
            broken = errors[np.argmax(differing)] if differing.any() else None
            start += int(np.argmax(differing)) if differing.any() else len(errors)
        result.agreed += start - begin
        span += start - begin
        result.span = max(result.span, span)
        if broken is not None:
            span = 0
            if any(original.differ_by_contacts(first, trace, start + 1) for first, trace in traces):
                result.chaos += 1
            elif pyramid_rotates and original.touches_itself(begin, start + 1):
                result.crosswise += 1
            elif result.unexplained is None:
                worst = int(np.argmax(np.nan_to_num(broken, nan=np.inf)))
                result.unexplained = (start, float(broken[worst]), robot.layout.names[worst])
            start += 1
        begin = start
    return result


# --- 3 --------------------------------------------------------------------------------------------------------------------


def quaternion_sign(context: Context) -> TestReport:
    """3: q and −q are the same rotation, and give the same features in every path."""
    findings = Findings("3")
    clips = context.subject.nonempty_clips
    if not clips:
        return findings.skip("no clip has a frame")
    robot, side = context.subject.robot, context.policy_side
    qpos, qvel, contacts = (stack_rows(clips, key) for key in ("qpos", "qvel", "foot_contacts"))
    flipped_qpos = flip_quaternions(robot, qpos)

    def check_equal(name: str, values: Floats, expected: Floats, names: Sequence[str] = ()) -> None:
        error = relative_error(values, expected)
        worst = int(np.argmax(np.nan_to_num(error, nan=np.inf).max(axis=0)))
        place = f"dimension {names[worst]}" if names else f"column {worst}"
        reason = (
            f"{name} gives other numbers for −q than for q, worst in {place}: the quaternion is used where only its "
            "rotation may be (a lone w or z, a half angle, an unsigned acos)"
        )
        findings.check(name, float(error.max()), "==", 0.0, where=place, reason=reason)

    names = robot.layout.names
    features, of_flipped = (compute_features(robot, poses, qvel, contacts) for poses in (qpos, flipped_qpos))
    check_equal("extract", features, of_flipped, names)
    if side is None:
        findings.add(Row("policy", None, SKIP, note=NO_JAX))
    else:
        inputs = PolicyInputs.of(robot, clips)
        observations = {path: tuple(side.observations(path, poses, qvel) for poses in (qpos, flipped_qpos)) for path in PATHS}
        for path, (obs, flipped_obs) in observations.items():
            check_equal(path, obs, flipped_obs)
        for path in PATHS:
            features, of_flipped = (side.features(obs, inputs, robot.control_dt) for obs in observations[path])
            check_equal(f"{path}+extract", features, of_flipped, names)
        estimate, of_flipped = (side.contacts(obs, inputs.height) for obs in observations["observe_host"])
        check_equal("estimate_contacts", estimate, of_flipped)
    check_flipped_motions(findings, context, clips)
    pairs = context.sample(clips, TURNED_FRAMES)
    peak = Peak()
    for number, (clip, frames) in enumerate(pairs):
        context.progress(number / len(pairs), f"simulating {clip.name} from −q")
        model, drive = robot.scaled_model(clip.recipe.physics), Drive.of(clip, frames)
        touching = clip.arrays["foot_contacts"][:frames]
        expected, from_flipped = (
            compute_features(robot, replay.qpos, replay.qvel, touching)
            for replay in (simulate(robot, model, d, with_loads=False) for d in (drive, drive.flip_sign(robot)))
        )
        peak.record(float(relative_error(from_flipped, expected).max()), f"clip {clip.name}")
    reason = f"{peak.place}: a simulation that starts from −q moves otherwise (by {peak.value:.2g})"
    findings.check("simulation", peak.value, "==", 0.0, where=peak.place, note="started from −q", reason=reason)
    path = "" if side is not None else f" (the policy's paths were left out: {NO_JAX})"
    if side is None:
        findings.add_reason(f"the numpy path alone was tested: {NO_JAX}")
    return findings.report(
        f"−q for q in every recorded state of {len(clips)} clips through every path{path}, in the motions that were "
        f"conditioned, and in the start of {describe_sample(pairs, context.subject.clips)} simulated again"
    )


def check_flipped_motions(findings: Findings, context: Context, clips: Sequence[Clip]) -> None:
    """The motions with the signs of some or all of their quaternions reversed, conditioned again."""
    robot = context.subject.robot
    motions = [(clip, clip.motion()) for clip, _ in context.sample(clips, REPLAYED_FRAMES) if clip.motion is not None]
    if not motions:
        findings.add(Row("conditioning", None, SKIP, note="no clip's source is at hand"))
        return
    peak = Peak()
    q = slice(robot.root_qpos_adr + 3, robot.root_qpos_adr + 7)
    for clip, motion in motions:
        expected = condition(motion, robot, WIDE_LIMITS)
        every_third = np.where(np.arange(motion.num_frames) % 3 == 1, -1.0, 1.0)
        for signs in (-np.ones_like(every_third), every_third):
            flipped_clip = condition(replace(motion, root_rot=motion.root_rot * signs[:, None]), robot, WIDE_LIMITS)
            rotation = flipped_clip.root_rot * np.sign((flipped_clip.root_rot * expected.root_rot).sum(axis=1, keepdims=True))
            start = flipped_clip.initial_qpos.copy()
            start[q] *= np.sign(start[q] @ expected.initial_qpos[q])
            error = max(
                max_magnitude(rotation - expected.root_rot),
                max_magnitude(flipped_clip.root_pos - expected.root_pos),
                max_magnitude(flipped_clip.dof_pos - expected.dof_pos),
                max_magnitude(start - expected.initial_qpos),
                max_magnitude(flipped_clip.initial_qvel - expected.initial_qvel),
            )
            peak.record(error, f"clip {clip.name}")
    note = "all signs turned, and those of every third frame"
    reason = f"{peak.place}: conditioning a motion with other signs gives another clip (by {peak.value:.2g})"
    findings.check("conditioning", peak.value, "==", 0.0, where=peak.place, note=note, reason=reason)
