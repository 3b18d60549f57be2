"""What kind of motion a clip is, and which gates of a profile it cannot pass however well it is followed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.metrics import CHORD_SEC, GRAVITY, TRAVELLED_SHARE, TRAVELLING_SPEED
from amp_core.motion.findings import Finding, rounded
from amp_core.motion.plausibility import SWAY_SEC
from amp_core.motion.readings import find_pairs
from amp_core.motion.resampling import FRAME_EPS
from amp_core.recipe import GATE_PROFILE
from amp_core.tiers import CLIP_CODES, GateProfile, gate_profile

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

START_SHARE = 0.07
"""Of the height: a clip whose first frames have all feet higher than this above its ground starts in the air."""

START_SEC = 1.0
LEAST_STEPS = 3
FASTEST_STEPS = 1.1
"""√(leg / g) · steps per second: people walk at 0.5 to 0.65, run at up to 1; no leg swings faster by gravity and muscle."""

HIGH_SHARE = 0.10
"""Of the height: so high above the ground no foot pushes any more."""

FALL_TOLERANCE = 1.8
LEAST_FLIGHT_SEC = 0.12
BACKWARD_SHARE = 0.02

STILL_RAD, MOVING_RAD = 1e-6, 0.1
"""A joint that is recorded or retargeted moves by more than the first; one that takes part in a motion by the second."""


@dataclass(frozen=True)
class Course:
    """A clip at the control rate, with its leading frames dropped; N frames.

    Args:
      times: (N,) frames of the file, fractions included.
      slide, push, in_flight, ground: as `footing.Footing` has them.
      heights: (N, F) m, the lowest point of each foot.
      height: m, the robot's; lengths are compared with it.
    """

    times: Array
    fps: float
    root_pos: Array
    root_rot: Array
    dof_pos: Array
    slide: Array
    push: Array
    in_flight: Flags
    ground: Array
    heights: Array
    height: float

    @property
    def duration_sec(self) -> float:
        return (len(self.times) - 1) / self.fps

    def frames(self, where: Flags) -> tuple[int, int] | None:
        """The first and the last frame of the file that a mask covers."""
        rows = np.flatnonzero(where)
        return (math.floor(self.times[rows[0]]), math.ceil(self.times[rows[-1]] - FRAME_EPS)) if len(rows) else None


def measure_course(course: Course) -> dict[str, float | None]:
    """The measures of a clip, by name; None where it has none."""
    from amp_core.footing import still_frames  # noqa: PLC0415 - reading a motion needs no MuJoCo

    h = course.height
    still_rate = still_frames(course.root_pos, course.root_rot, course.dof_pos, 1.0 / course.fps, h).mean()
    path = np.diff(course.root_pos[:, :2], axis=0)
    stride = max(1, round(SWAY_SEC * course.fps))
    chords = np.diff(course.root_pos[::stride, :2], axis=0)
    speed = float(np.linalg.norm(chords, axis=1).sum()) / max(course.duration_sec, 1e-9)
    forward = float((path * rotations.heading_direction(course.root_rot[:-1])).sum()) / max(course.duration_sec, 1e-9)
    steps = _count_steps(course.heights, 0.02 * h)
    step_rate = steps / course.duration_sec if steps >= LEAST_STEPS else None
    standing_rows = course.slide[np.isfinite(course.slide)]
    ground = course.ground[np.isfinite(course.ground)]
    joint_speed = np.diff(course.dof_pos, axis=0) * course.fps
    return {
        "speed": rounded(speed),
        "forward_speed": rounded(forward),
        "step_rate": None if step_rate is None else rounded(step_rate),
        "step_length": None if step_rate is None else rounded(speed / step_rate),
        "relative_step_rate": None if step_rate is None else rounded(step_rate * math.sqrt(h / GRAVITY)),
        "froude": rounded(speed**2 / (GRAVITY * h)),
        "joint_speed_rms": rounded(math.sqrt(float((joint_speed**2).mean()))),
        "joint_speed_max": rounded(float(np.abs(joint_speed).max())),
        "clip_still_rate": rounded(float(still_rate)),
        "clip_max_tilt_deg": rounded(math.degrees(float(rotations.tilt(course.root_rot).max()))),
        "clip_foot_slide": rounded(float(np.median(standing_rows))) if len(standing_rows) else None,
        "clip_path_ratio": _compare_paths(course),
        "clip_flight_rate": rounded(float(course.in_flight.mean())),
        "clip_ground_range_m": rounded(float(np.ptp(ground))) if len(ground) else None,
        "fall_acceleration": _fall_acceleration(course, h),
    }


NO_BOUNDS: dict[str, Any] = dict.fromkeys(CLIP_CODES, math.inf) | {"clip_path_ratio": (-math.inf, math.inf)}
"""What a profile without these gates allows."""


def describe_motion(course: Course, robot: Robot, measures: dict[str, float | None], profile: GateProfile) -> list[Finding]:
    """The findings about a clip's kind.

    Args:
      profile: its gates on the clip decide what excludes a clip.
    """
    h = course.height
    usual, limits = (
        NO_BOUNDS | {gate.name: gate.resolve(robot.height_range) for gate in gates}
        for gates in (gate_profile(GATE_PROFILE).gates, profile.gates)
    )
    # Uneven ground is worth knowing where the profile has no gate on it, too.
    uneven = usual["clip_ground_range_m"]
    return [
        *_find_tilt(course, measures, limits["clip_max_tilt_deg"]),
        *_find_slide(course, measures, limits["clip_foot_slide"], limits["clip_path_ratio"]),
        *_find_flight(course, measures, limits["clip_flight_rate"], uneven),
        *_find_start(course, h),
        *_find_ground(course, measures, limits["clip_ground_range_m"], uneven),
        *_find_rate(course, measures, h),
        *_find_manner(course, measures, h, limits["clip_still_rate"]),
        *_find_still_joints(course, robot),
    ]


def _find_tilt(course: Course, measures: dict[str, float | None], limit: float) -> Iterator[Finding]:
    tilt = np.degrees(rotations.tilt(course.root_rot))
    over = tilt > limit
    if not over.any():
        return
    first, last = course.frames(over) or (0, 0)
    share = float(over.mean())
    upright_ends = not over[0] and not over[-1]
    kind = (
        "it turns over" if tilt.max() > 120.0 and upright_ends
        else "it goes down and comes up again" if upright_ends
        else "it gets up" if over[0] and not over[-1]
        else "it lies down" if over[-1] and not over[0]
        else "it lies or crawls"
    )  # fmt: skip
    yield Finding(
        "clip_not_upright", "excludes",
        f"the clip itself is not upright between frames {first} and {last} ({share:.0%} of its frames, up to "
        f"{tilt.max():.0f} degrees): {kind}, or its root has another frame",
        key="root_rot", frames=(first, last), value=measures["clip_max_tilt_deg"], limit=limit, unit="deg",
        expected=f"a root that leans by at most {limit:g} degrees (gate clip_max_tilt_deg)",
        remedy="Cut the part that is upright, or score it with a profile for such motion",
    )  # fmt: skip


def _compare_paths(course: Course) -> float | None:
    from amp_core.footing import chord_lengths, least_chords, path_ratio  # noqa: PLC0415 - reading a motion needs no MuJoCo

    chord = max(1, round(CHORD_SEC * course.fps))
    if len(course.root_pos) <= chord:
        return None
    root, feet = (float(chord_lengths(path, chord).sum()) for path in (course.root_pos, np.cumsum(course.push, axis=0)))
    slowest = TRAVELLING_SPEED * chord / course.fps
    least = least_chords(slowest, TRAVELLED_SHARE * course.height, len(course.root_pos) - chord, chord)
    ratio = path_ratio(root, feet, least)
    return None if ratio is None else rounded(ratio)


def _find_slide(
    course: Course, measures: dict[str, float | None], limit: float, path_range: tuple[float, float]
) -> Iterator[Finding]:
    slide, ratio = measures["clip_foot_slide"], measures["clip_path_ratio"]
    path_fits = ratio is None or path_range[0] <= ratio <= path_range[1]
    if slide is None or (slide <= limit and path_fits):
        return
    comparison, remedy = "", "Retarget it with a foot-contact constraint, and check fps, the heading and the unit of root_pos"
    value, threshold, unit = slide, limit, "m/s"
    expected = f"a standing foot that stays where it is (gate clip_foot_slide, {limit:g} m/s)"
    if ratio is not None and not path_fits:
        steps = np.diff(course.root_pos[:, :2], axis=0)
        distance = float(np.linalg.norm(steps, axis=1).sum())
        comparison = f": the root travels {distance:.2f} m, {ratio:.2g} times as far as the standing feet take it"
        slides = np.linalg.norm(steps / max(ratio, 0.01) - course.push[1:], axis=1)[~course.in_flight[1:]] * course.fps
        if float(np.median(slides)) < 0.5 * slide:
            remedy = (
                f"Multiply root_pos's x and y by {1.0 / ratio:.2g}, which was tried: the foot then slides at "
                f"{np.median(slides):.2g} m/s (the performer's legs are not the robot's, or fps is another)"
            )
        if slide <= limit:
            value, threshold, unit = ratio, path_range[ratio > path_range[1]], "times"
            expected = "a root that travels as its standing feet take it (gate clip_path_ratio, "
            expected += f"{path_range[0]:g} to {path_range[1]:g})"
    yield Finding(
        "clip_feet_slide", "excludes",
        f"the clip's standing foot slides at {slide:.2f} m/s (median){comparison}",
        key="root_pos", frames=course.frames(course.slide > min(slide, limit)), value=value, limit=threshold, unit=unit,
        expected=expected, remedy=remedy,
    )  # fmt: skip


def _find_flight(course: Course, measures: dict[str, float | None], limit: float, uneven: float) -> Iterator[Finding]:
    rate = measures["clip_flight_rate"] or 0.0
    if rate <= limit:
        return
    is_level = (measures["clip_ground_range_m"] or 0.0) <= uneven  # Who climbs stairs does not jump.
    yield Finding(
        "flight", "excludes", f"no foot is on the ground in {rate:.0%} of the frames: the clip runs, jumps or floats",
        key="root_pos", frames=course.frames(course.in_flight), value=rate, limit=limit, unit="share",
        expected=f"a foot on the ground in all but {limit:.0%} of the frames (gate clip_flight_rate)",
        remedy="Cut the part with a foot on the ground" + ", or score it by the profile amp-0.12-dynamic" * is_level,
    )  # fmt: skip


def _find_start(course: Course, height: float) -> Iterator[Finding]:
    """A clip that begins with all feet in the air: the robot would be dropped."""
    count = max(1, round(START_SEC * course.fps))
    standing_rows = np.flatnonzero(~course.in_flight)
    if not len(standing_rows):
        return
    floor = float(np.median(course.heights.min(axis=1)[standing_rows]))
    is_high = course.heights.min(axis=1) > floor + START_SHARE * height
    if not is_high[0]:
        return
    landed = int(np.argmin(is_high)) if not is_high.all() else len(is_high)
    if landed > count or landed < 2:
        return
    frame = math.ceil(course.times[landed] - FRAME_EPS)
    gap = float(course.heights[0].min()) - floor
    yield Finding(
        "starts_in_air", "warns", f"the clip starts {gap:.2f} m in the air; a foot is on the ground from frame {frame} on",
        key="root_pos", frames=(math.floor(course.times[0]), frame), value=rounded(gap),
        limit=rounded(START_SHARE * height), unit="m",
        expected="a first frame in which the robot can stand", remedy=f"ampref cut CLIP --frames {frame}: keeps the rest",
    )  # fmt: skip


def _find_ground(course: Course, measures: dict[str, float | None], limit: float, uneven: float) -> Iterator[Finding]:
    value, is_gated = measures["clip_ground_range_m"], math.isfinite(limit)
    limit = limit if is_gated else uneven
    if value is None or value <= limit:
        return
    ground = course.ground
    rows = np.flatnonzero(np.isfinite(ground))
    quarter = max(1, len(rows) // 8)
    rise = float(np.median(ground[rows[-quarter:]]) - np.median(ground[rows[:quarter]]))
    distance = float(np.linalg.norm(course.root_pos[rows[-1], :2] - course.root_pos[rows[0], :2]))
    kind = f"they {'rise' if rise > 0 else 'sink'} by {abs(rise):.2f} m over {distance:.2f} m of path"
    if abs(rise) < 0.5 * value:
        kind = "they are on several levels"
    yield Finding(
        "ground_not_flat", "excludes" if is_gated else "warns",
        f"the ground of this clip is not flat: its standing feet are on heights that differ by {value:.2f} m; {kind} (a slope, "
        "stairs, a box, or a drift of the recording)",
        key="root_pos", frames=(math.floor(course.times[rows[0]]), math.ceil(course.times[rows[-1]] - FRAME_EPS)),
        value=value, limit=rounded(limit), unit="m",
        expected="standing feet on one height" + f" (gate clip_ground_range_m, {limit:.3g} m)" * is_gated,
        remedy="Of a drift: ampref augment --level takes it out; slopes and stairs have no flat floor",
    )  # fmt: skip


def _find_rate(course: Course, measures: dict[str, float | None], height: float) -> Iterator[Finding]:
    """A frame rate that gravity contradicts, or a cadence that no leg has."""
    fall = measures["fall_acceleration"]
    if fall is not None and not 1.0 / FALL_TOLERANCE < fall / GRAVITY < FALL_TOLERANCE:
        rate = math.sqrt(GRAVITY / fall)
        yield Finding(
            "rate", "warns",
            f"in flight the root falls at {fall:.3g} m/s² instead of {GRAVITY:g}: the clip is probably played at "
            f"{1 / rate:.2g} times its speed",
            key="fps", value=fall, limit=GRAVITY, unit="m/s²", expected="the rate of the recording",
            remedy=f"Check fps: gravity would agree with {rate:.2g} times the rate that the file says",
        )  # fmt: skip
        return
    relative = measures["relative_step_rate"]
    if relative is not None and relative > FASTEST_STEPS:
        yield Finding(
            "rate", "warns",
            f"{measures['step_rate']:.3g} steps a second at {measures['speed']:.2g} m/s: {relative:.2g} of what a leg of this "
            "length swings by itself, where people walk at 0.6 and sprint at 1; joints move at up to "
            f"{measures['joint_speed_max']:.3g} rad/s",
            key="fps", value=relative, limit=FASTEST_STEPS, unit="√(h/g) · steps/s", expected="the rate of the recording",
            remedy="Check whether fps is that of the recording (30, 50, 60, 120 are easily confused)",
        )  # fmt: skip


def _find_manner(course: Course, measures: dict[str, float | None], height: float, most_still: float) -> Iterator[Finding]:
    forward, speed = measures["forward_speed"] or 0.0, measures["speed"] or 0.0
    unit = math.sqrt(GRAVITY * height)
    if forward < -BACKWARD_SHARE * unit and -forward > 0.7 * speed:
        yield Finding("walks_backward", "notes", f"the root moves backwards at {-forward:.2f} m/s on average", key="root_pos",
                      value=rounded(forward), unit="m/s")  # fmt: skip
    rate = measures["clip_still_rate"] or 0.0
    if rate > most_still:
        yield Finding(
            "stands_still", "excludes", f"nothing moves to speak of: the clip holds a pose in {rate:.0%} of its frames",
            key="dof_pos", value=rate, limit=most_still, unit="share",
            expected=f"a motion in more than {1 - most_still:.0%} of the frames (gate clip_still_rate)",
            remedy="Leave it out, or cut the part that moves: there is no motion in a held pose to learn",
        )  # fmt: skip
    elif course.heights.shape[1] == 2:
        lifted = course.heights - course.heights.min(axis=1, keepdims=True) > 0.05 * height
        share = lifted.mean(axis=0)
        foot = int(share.argmax())
        if share[foot] > 0.6 and share[1 - foot] < 0.01:
            yield Finding("one_leg", "notes", f"the clip stands on one leg in {share[foot]:.0%} of its frames", key="dof_pos",
                          value=rounded(float(share[foot])), unit="share")  # fmt: skip


def _find_still_joints(course: Course, robot: Robot) -> Iterator[Finding]:
    """A joint that no retargeter moved: it stays where it is while its counterpart and the rest of its side move."""
    names, pairs = robot.joint_names, find_pairs(list(robot.joint_names))
    travel = np.ptp(course.dof_pos, axis=0)
    for side in (pairs, [(j, i) for i, j in pairs]):
        stands_out = any(travel[i] > MOVING_RAD for i, _ in side)
        for i, j in ((i, j) for i, j in side if stands_out and travel[i] <= STILL_RAD and travel[j] > MOVING_RAD):
            yield Finding(
                "joint_still", "warns",
                f"{names[i]} is {course.dof_pos[0, i]:.3g} rad in every frame, while {names[j]} moves by "
                f"{travel[j]:.2g} rad",
                key="dof_pos", joint=names[i], value=0.0, limit=STILL_RAD, unit="rad",
                expected="a joint that moves as its counterpart on the other side does",
                remedy="Check that the retargeter maps this joint, and that the file has its column",
            )  # fmt: skip


def _count_steps(heights: Array, least: float) -> int:
    """How often another foot becomes the lowest, by more than `least` m."""
    if heights.shape[1] < 2:
        return 0
    order = np.sort(heights, axis=1)
    lowest = heights.argmin(axis=1)[order[:, 1] - order[:, 0] > least]
    return int((np.diff(lowest) != 0).sum())


def _fall_acceleration(course: Course, height: float) -> float | None:
    """m/s²: the root's downward acceleration in the longest flight that is a parabola; None where there is none.

    A fifth of the flight is left out at either end, where the foot may still push.
    """
    lowest = course.heights.min(axis=1)
    is_high = (
        lowest
        > float(np.median(lowest[~course.in_flight]) if not course.in_flight.all() else lowest.min()) + HIGH_SHARE * height
    )
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_high, [False]]).astype(np.int8)))
    flights = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda flight: flight[0] - flight[1])
    for start, stop in flights[:5]:
        margin = (stop - start) // 5
        path = course.root_pos[start + margin : stop - margin, 2]
        if len(path) < 6 or len(path) / course.fps < LEAST_FLIGHT_SEC:
            return None
        seconds = np.arange(len(path)) / course.fps
        parabola = np.polyfit(seconds, path, 2)
        residual = float(np.sqrt(((np.polyval(parabola, seconds) - path) ** 2).mean()))
        fall = -2.0 * float(parabola[0])
        sag = fall * (len(path) / course.fps) ** 2 / 8.0
        if fall > 0.0 and residual < 0.05 * sag:
            return rounded(fall)
    return None
