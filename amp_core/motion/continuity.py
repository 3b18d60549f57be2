"""Faults in a clip's numbers: jumps, spikes, jitter and frames that repeat, by the clip's own statistics.

A step is compared with the largest of the steps within `WINDOW` frames on either side, its own neighbours left out, and at
least with a floor below which motion is noise. What is faster than everything around it, for a frame or two, was not moved by a
body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.motion.findings import Finding, rounded

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

WINDOW, WINDOW_SEC = 15, 0.45
LEAST_FRAMES = 16
EXCLUDED = 5
"""Frames on either side of a step that are not compared with it: a fault of a few frames must not excuse itself."""

# Floors and ratios; docs/check.md has the figures of good and faulty clips that chose them.
SPEED_FLOOR, SPEED_RATIO = 0.3, 4.5  # m/s
ACCELERATION_FLOOR, ACCELERATION_RATIO = 6.0, 7.5  # m/s²
TURN_FLOOR, TURN_RATIO = 1.0, 8.0  # rad/s
JOINT_SPEED_FLOOR, JOINT_SPEED_RATIO = 2.0, 4.0  # rad/s
JOINT_RESIDUAL_FLOOR, JOINT_RESIDUAL_RATIO, ONE_JOINT_RATIO = 0.02, 8.0, 11.0  # rad

JITTER_RATIO, JITTER_FPS = 1.2, 30.0
"""Second differences over first, each as the third quartile over the frames: √3 for white noise."""
JITTER_SPEED = 1.0  # rad/s
JITTER_LEAST_FPS, SPIKE_LEAST_FPS = 24.0, 18.0
"""At lower rates a movement is as quick as the frames."""


EQUAL = 1e-7
FROZEN_SEC = 0.15
FROZEN_SPEED, MOVING_SPEED = 1.0, 0.3  # rad/s
REPEATED_SHARE = 0.1
LONGEST_PERIOD = 5  # frames
GOING_ON = 0.3


class Frames(NamedTuple):
    """A clip's arrays as the checks read them: `root_pos` (N, 3) m, `root_rot` (N, 4) unit xyzw, `dof_pos` (N, n) rad."""

    root_pos: Array
    root_rot: Array
    dof_pos: Array
    fps: float
    joint_names: Sequence[str]


def find_discontinuities(frames: Frames, max_speed: float, max_turn_rate: float) -> list[Finding]:
    """What is wrong with a clip's numbers, the gravest first; frames are counted from the first row of the arrays.

    Args:
      max_speed, max_turn_rate: m/s and rad/s that no root reaches, whatever is around it.
    """
    if len(frames.root_pos) < LEAST_FRAMES:
        # Too little to compare with; the absolute bounds still hold.
        return [*_find_root_jumps(frames, max_speed), *_find_root_flips(frames, max_turn_rate)]
    repeated = _find_repeated(frames)
    jitter = [] if repeated else find_jitter(frames)
    joint_spikes = [] if jitter or repeated or frames.fps < SPIKE_LEAST_FPS else _find_joint_spikes(frames)
    return [
        *_find_root_jumps(frames, max_speed),
        *_find_root_flips(frames, max_turn_rate),
        *jitter,
        *joint_spikes,
        *_find_frozen(frames),
        *repeated,
    ]


def shift_frames(findings: Sequence[Finding], offset: int) -> list[Finding]:
    """The findings with their frames counted from `offset` frames earlier."""
    return [
        finding if finding.frames is None else replace(finding, frames=(finding.frames[0] + offset, finding.frames[1] + offset))
        for finding in findings
    ]


def local_ratio(steps: Array, floor: float, fps: float) -> Array:
    """(N, …) each row over the largest of the rows around it, or over `floor` where that is more.

    The rows within `EXCLUDED` are left out, those within `WINDOW`, or within `WINDOW_SEC` where that is more, compared with.
    """
    window = max(WINDOW, round(WINDOW_SEC * fps))
    width = window - EXCLUDED
    rest = [(0, 0)] * (steps.ndim - 1)
    later = _sliding_maximum(np.pad(steps, [(0, window + width), *rest]), width)
    earlier = _sliding_maximum(np.pad(steps, [(window, width), *rest]), width)
    around = np.maximum(earlier[: len(steps)], later[EXCLUDED + 1 : EXCLUDED + 1 + len(steps)])
    return np.asarray(steps / np.maximum(around, floor))


def _step_ratio(steps: Array, floor: float, fps: float) -> Array:
    """`local_ratio`, or zeros for a clip that is too short to tell."""
    return local_ratio(steps, floor, fps) if len(steps) + 1 >= LEAST_FRAMES else np.zeros(len(steps))


def _sliding_maximum(values: Array, width: int) -> Array:
    """Row k: the maximum of the rows k ≤ i < k + width, as far as there are rows; in log2(width) passes."""
    result, reach = values, 1
    while reach < width:
        step = min(reach, width - reach)
        result = np.maximum(result[: len(result) - step], result[step:])
        reach += step
    return result


def _longest_part(is_fault: Flags) -> tuple[int, int]:
    """The longest run of frames without a fault, as `start, stop`."""
    edges = np.concatenate([[-1], np.flatnonzero(is_fault), [len(is_fault)]])
    longest = int(np.argmax(np.diff(edges)))
    return int(edges[longest]) + 1, int(edges[longest + 1])


def _cut_remedy(start: int, stop: int) -> str:
    return f"ampref cut CLIP --frames {start}:{stop} keeps the longest part without it"


def _find_jumps(
    steps: Array, ratio: Array, allowed: float, bound: float, describe: Callable[[int, float, float], Finding]
) -> Iterator[Finding]:
    """One finding for the steps that are over the ratio or the absolute bound; the largest step is described."""
    is_fault = (ratio > allowed) | (steps > bound)
    if not is_fault.any():
        return
    worst = int(np.argmax(np.where(is_fault, steps, 0.0)))
    # A step between k and k + 1 ends a part at frame k; the part after it begins at frame k + 1.
    edges = np.concatenate([[0], np.flatnonzero(is_fault) + 1, [len(steps) + 1]])
    longest = int(np.argmax(np.diff(edges)))
    start, stop = int(edges[longest]), int(edges[longest + 1])
    finding = describe(worst, float(steps[worst]), float(steps[worst] / max(ratio[worst], 1e-9)))
    more = int(is_fault.sum()) - 1
    yield replace(
        finding,
        message=finding.message + (f"; {more} more such step{'s' if more > 1 else ''}" if more else ""),
        frames=(worst + 1, worst + 1),
        value=rounded(steps[worst]),
        remedy=f"{finding.remedy}; {_cut_remedy(start, stop)}",
    )


def _find_root_jumps(frames: Frames, max_speed: float) -> Iterator[Finding]:
    path = np.diff(frames.root_pos, axis=0)
    speed = np.linalg.norm(path, axis=1) * frames.fps
    change = np.linalg.norm(np.diff(path, axis=0), axis=1) * frames.fps**2
    ratio = _step_ratio(speed, SPEED_FLOOR, frames.fps)
    if len(speed) >= LEAST_FRAMES:
        # A jump of one step changes the velocity at both of its ends; neither alone would be a jump.
        sudden = local_ratio(change, ACCELERATION_FLOOR, frames.fps) > ACCELERATION_RATIO
        both = np.zeros(len(speed), dtype=bool)
        both[1:-1] = sudden[:-1] & sudden[1:]
        ratio = np.where(both, np.maximum(ratio, SPEED_RATIO * 1.01), ratio)

    def describe(step: int, value: float, largest: float) -> Finding:
        distance = value / frames.fps
        message = (
            f"the root jumps {distance:.3g} m between frames {step} and {step + 1}, that is {value:.3g} m/s where the steps "
            f"around it have at most {largest:.3g} m/s"
        )
        expected = f"at most {max_speed:g} m/s, and no step that stands out from its neighbours"
        return Finding(
            "root_jump", "refuses", message, key="root_pos", limit=rounded(min(max_speed, SPEED_RATIO * largest)), unit="m/s",
            expected=expected, remedy="Two takes joined, or a lost marker: repair root_pos there"
        )  # fmt: skip

    return _find_jumps(speed, ratio, SPEED_RATIO, max_speed, describe)


def _find_root_flips(frames: Frames, max_turn_rate: float) -> Iterator[Finding]:
    rate = rotations.angle_between(frames.root_rot[:-1], frames.root_rot[1:]) * frames.fps

    def describe(step: int, value: float, largest: float) -> Finding:
        message = (
            f"the root turns by {np.degrees(value / frames.fps):.0f} degrees between frames {step} and {step + 1}, that is "
            f"{value:.3g} rad/s where the steps around it have at most {largest:.3g} rad/s"
        )
        expected = f"at most {max_turn_rate:g} rad/s, and no step that stands out from its neighbours"
        return Finding(
            "root_flip", "refuses", message, key="root_rot", limit=rounded(min(max_turn_rate, TURN_RATIO * largest)),
            unit="rad/s", expected=expected, remedy="Repair root_rot there (Euler angles that wrapped, a lost marker)"
        )  # fmt: skip

    return _find_jumps(rate, _step_ratio(rate, TURN_FLOOR, frames.fps), TURN_RATIO, max_turn_rate, describe)


def _interpolation_residual(values: Array) -> Array:
    """(N, n) how far each frame lies from the cubic through two frames on either side of it; 0 at the ends."""
    residual = np.zeros_like(values)
    if len(values) > 4:
        middle = (4.0 * (values[1:-3] + values[3:-1]) - values[:-4] - values[4:]) / 6.0
        residual[2:-2] = np.abs(values[2:-2] - middle)
    return residual


def _find_joint_spikes(frames: Frames) -> list[Finding]:
    """Frames in which a joint is thrown away from its path, and steps in which the whole pose changes at once."""
    residual = _interpolation_residual(frames.dof_pos)
    speed = np.abs(np.diff(frames.dof_pos, axis=0)) * frames.fps
    all_residual = local_ratio(residual.max(axis=1), JOINT_RESIDUAL_FLOOR, frames.fps)
    all_speed = local_ratio(speed.max(axis=1), JOINT_SPEED_FLOOR, frames.fps)
    one_residual = local_ratio(residual, JOINT_RESIDUAL_FLOOR, frames.fps).max(axis=1)
    step_fault = np.concatenate([all_speed, [0.0]]) > JOINT_SPEED_RATIO
    frame_fault = (all_residual > JOINT_RESIDUAL_RATIO) | (one_residual > ONE_JOINT_RATIO)
    is_fault = step_fault | frame_fault
    if not is_fault.any():
        return []
    size = np.maximum(residual.max(axis=1), np.concatenate([speed.max(axis=1), [0.0]]) / frames.fps)
    worst = int(np.argmax(np.where(is_fault, size, 0.0)))
    joint = int(np.argmax(residual[worst] if frame_fault[worst] else speed[worst]))
    name = frames.joint_names[joint]
    around = speed[max(0, worst - 1) : worst + 1]
    fastest = float(around[:, joint].max())
    ratio = max(float(all_residual[worst]), float(one_residual[worst]), float(all_speed[min(worst, len(all_speed) - 1)]))
    # The residual reaches two frames to either side, so that the frames next to a fault look faulty too.
    start, stop = _longest_part(is_fault)
    message = (
        f"{name} leaves its path at frame {worst} by {float(residual[worst, joint]):.3g} rad ({fastest:.3g} rad/s), "
        f"{ratio:.3g} times what the frames around it do"
    )
    return [
        Finding(
            "joint_spike",
            "refuses",
            message,
            key="dof_pos",
            joint=name,
            frames=(worst, worst),
            value=rounded(ratio),
            limit=JOINT_RESIDUAL_RATIO,
            unit="times",
            expected="joints that move on from frame to frame",
            remedy=f"Fill the frame from its neighbours where the clip is made; {_cut_remedy(start, stop)}",
        )
    ]


def find_jitter(frames: Frames) -> list[Finding]:
    """Joints that tremble from frame to frame all over the clip."""
    steps = np.diff(frames.dof_pos, axis=0)
    if len(steps) < 8 or frames.fps < JITTER_LEAST_FPS:
        return []
    changes = np.diff(steps, axis=0)
    # By the third quartile of the frames: a few spikes are no jitter.
    first, second = (float(np.percentile(np.sqrt((values**2).mean(axis=1)), 75)) for values in (steps, changes))
    # A quick step changes more from frame to frame where there are fewer frames.
    limit = JITTER_RATIO * max(1.0, JITTER_FPS / frames.fps)
    if first * frames.fps < JITTER_SPEED or second <= limit * first:
        return []
    joint = int(np.argmax((steps**2).mean(axis=0)))
    amplitude = float(np.sqrt((changes[:, joint] ** 2).mean() / 6.0))
    name = frames.joint_names[joint]
    message = (
        f"the joints tremble from frame to frame, {name} the most, by about {amplitude:.2g} rad: the differences of "
        f"neighbouring steps are {second / first:.2f} times the steps"
    )
    return [
        Finding(
            "jitter",
            "refuses",
            message,
            key="dof_pos",
            joint=name,
            frames=(0, len(steps)),
            value=rounded(second / first),
            limit=rounded(limit),
            unit="times",
            expected="a ratio of at most 0.7, as good clips have; white noise has 1.73",
            remedy="Smooth dof_pos over 3 to 7 frames (scipy.signal.savgol_filter), or retarget with a smoothness cost",
        )
    ]


def _runs(flags: Flags) -> list[tuple[int, int]]:
    """The runs of true values, as `start, stop`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _find_frozen(frames: Frames) -> list[Finding]:
    """Runs of equal poses that are entered or left in the middle of a movement."""
    joint_speed = np.abs(np.diff(frames.dof_pos, axis=0)) * frames.fps
    speed = joint_speed.max(axis=1)
    is_equal = speed < EQUAL * frames.fps
    moving = speed[~is_equal]
    if not len(moving):
        return []
    bound = max(FROZEN_SPEED, 0.5 * float(np.median(moving)))
    findings = []
    for start, stop in _runs(is_equal):
        if (stop - start) / frames.fps < FROZEN_SEC:
            continue
        ends = [step for step in (start - 1, stop) if 0 <= step < len(speed)]
        fastest = max(ends, key=lambda step: speed[step])
        # One joint may stop dead, as an actuator at its limit does; a body in movement does not.
        if speed[fastest] <= bound or (joint_speed[fastest] > MOVING_SPEED).sum() < 2:
            continue
        arrest = float(speed[fastest])
        is_tail, is_head = stop == len(speed), start == 0
        word = f"from frame {start} on" if is_tail else f"up to frame {stop}" if is_head else f"from frame {start} to {stop}"
        parts = [(0, start + 1), (stop, len(speed) + 1)]
        begin, end = max(parts, key=lambda part: part[1] - part[0])
        message = f"no joint changes {word} ({stop - start + 1} equal frames), in a movement of {arrest:.3g} rad/s"
        findings.append(
            Finding(
                "frozen_tail" if is_tail else "frozen",
                "refuses",
                message,
                key="dof_pos",
                frames=(start, stop),
                value=rounded(arrest),
                limit=rounded(bound),
                unit="rad/s",
                expected="frames that move on, or a movement that comes to rest",
                remedy=f"Padding or a dropped recording: ampref cut CLIP --frames {begin}:{end}",
            )
        )
    return findings[:1]


def _find_repeated(frames: Frames) -> list[Finding]:
    """A clip whose rate was raised by repeating frames: short repetitions all over it, between steps that move."""
    steps = np.abs(np.diff(frames.dof_pos, axis=0)).max(axis=1) + np.abs(np.diff(frames.root_pos, axis=0)).max(axis=1)
    moving = np.flatnonzero(steps >= EQUAL)
    if len(moving) < 12:
        return []
    begin, stop = int(moving[0]), int(moving[-1]) + 1
    is_equal = steps[begin:stop] < EQUAL
    count = int(is_equal.sum())
    for period in range(2, LONGEST_PERIOD + 1):
        classes = [float(is_equal[phase::period].mean()) for phase in range(period)]
        # Some steps of each period are always repetitions, and some never are: no movement stops and goes on like that.
        if max(classes) > 0.9 and min(classes) < 0.3 and count >= REPEATED_SHARE * len(is_equal):
            break
    else:
        return []
    # A movement that turns round rests for a frame as well, but comes back; one that is repeated goes on.
    path = np.diff(frames.dof_pos[begin : stop + 1], axis=0)
    runs = [(start, end) for start, end in _runs(is_equal) if start and end < len(path)]
    earlier, later = path[[start - 1 for start, _ in runs]], path[[end for _, end in runs]]
    lengths = np.linalg.norm(earlier, axis=1) * np.linalg.norm(later, axis=1)
    if not runs or float((earlier * later).sum()) < GOING_ON * float(lengths.sum()):
        return []
    first = begin + int(np.argmax(is_equal))
    share = count / len(is_equal)
    true_rate = frames.fps * (1.0 - share)
    message = f"{count} frames repeat the one before them, all over the clip: its rate was raised by repetition"
    return [
        Finding(
            "duplicate_frames",
            "warns",
            message,
            key="dof_pos",
            frames=(first, first + 1),
            value=rounded(share),
            limit=REPEATED_SHARE,
            unit="share",
            expected="frames that were interpolated, or the rate of the recording",
            remedy=f"Drop the repeated frames and write the recording's rate, about {true_rate:.3g} fps",
        )
    ]
