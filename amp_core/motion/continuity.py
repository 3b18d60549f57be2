"""Faults in a clip's numbers: jumps, spikes, jitter and frames that repeat, by the clip's own statistics.

A step is compared with the largest of the steps within `WINDOW` frames on either side, its own neighbours left out, and at
least with a floor below which motion is noise. Each of those is the median of three, so that one fault does not excuse another.
What is faster than everything around it, for a frame or two, was not moved by a body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.metrics import GRAVITY
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
TURN_FLOOR, TURN_RATIO = 1.0, 7.0  # rad/s
FOOT_FLOOR, FOOT_RATIO = 0.14, 7.5  # √(g·h)
JOINT_SPEED_FLOOR, JOINT_SPEED_RATIO = 2.0, 5.0  # rad/s
JOINT_RESIDUAL_FLOOR, JOINT_RESIDUAL_RATIO, ONE_JOINT_RATIO = 0.02, 8.0, 9.5  # rad

JITTER_SEC, JITTER_QUANTILE = 0.5, 60.0
JITTER_RATIO, JITTER_RATIO_2 = 1.3, 1.6
"""Second differences over first, and third over second: √3 and √(10/3) for white noise, under 1 for what moves smoothly."""
JITTER_RAD, JITTER_TURN, JITTER_SHARE = 0.03, 0.03, 0.018
"""The least amplitude that counts, of joints [rad], of the root's rotation [rad], of its place [of h]."""
JITTER_RAD_ALL_OVER = 0.02
JITTER_FPS = 30.0
JITTER_LEAST_FPS, SPIKE_LEAST_FPS = 24.0, 18.0
"""At lower rates a movement is as quick as the frames."""


EQUAL = 1e-7
STILL_RAD = 1e-4  # rad
FROZEN_SEC = 0.15
FROZEN_SPEED, MOVING_SPEED = 0.35, 0.15  # rad/s
FIXED_ROOT, FIXED_ROOT_SEC = 1e-5, 0.3  # m and rad
ROOT_ARREST = 0.03  # √(g·h)
REPEATED_SHARE = 0.1
LONGEST_PERIOD = 5  # frames
GOING_ON = 0.3


class Frames(NamedTuple):
    """A clip's arrays as the checks read them.

    Args:
      root_pos: (N, 3) m.
      root_rot: (N, 4) unit xyzw.
      dof_pos: (N, n) rad.
      fps: frames per second.
      joint_names: n names.
      foot_steps: (S,) m, how far the foot that moves the least moves from every `foot_stride`-th frame to the next such one.
      foot_stride: frames.
      height: m, of the robot.
    """

    root_pos: Array
    root_rot: Array
    dof_pos: Array
    fps: float
    joint_names: Sequence[str]
    foot_steps: Array
    foot_stride: int
    height: float

    @property
    def speed_unit(self) -> float:
        """m/s: √(g·h)."""
        return math.sqrt(GRAVITY * self.height)


def find_discontinuities(frames: Frames, max_speed: float, max_turn_rate: float) -> list[Finding]:
    """What is wrong with a clip's numbers, the gravest first; frames are counted from the first row of the arrays.

    Args:
      max_speed, max_turn_rate: m/s and rad/s that no root reaches, whatever is around it.
    """
    if len(frames.root_pos) < LEAST_FRAMES:
        # Too little to compare with; the absolute bounds still hold.
        return [*_find_root_jumps(frames, max_speed), *_find_root_flips(frames, max_turn_rate)]
    repeated = _find_repeated(frames)
    jumps = [*_find_root_jumps(frames, max_speed), *_find_root_flips(frames, max_turn_rate)]
    jitter = [] if repeated else find_jitter(frames)
    joint_spikes = [] if jitter or repeated or frames.fps < SPIKE_LEAST_FPS else _find_joint_spikes(frames)
    if not (jumps or jitter or joint_spikes or repeated):
        jumps = list(_find_foot_jumps(frames))
    return [*jumps, *jitter, *joint_spikes, *_find_frozen(frames), *_find_fixed_root(frames), *repeated]


def shift_frames(findings: Sequence[Finding], offset: int) -> list[Finding]:
    """The findings with their frames counted from `offset` frames earlier."""
    return [
        finding if finding.frames is None else replace(finding, frames=(finding.frames[0] + offset, finding.frames[1] + offset))
        for finding in findings
    ]


def local_ratio(steps: Array, floor: float, fps: float) -> Array:
    """(N, …) each row over the largest of the rows around it, or over `floor` where that is more.

    The rows within `EXCLUDED` are left out, those within `WINDOW`, or within `WINDOW_SEC` where that is more, compared with;
    each as the median of itself and its neighbours.
    """
    window = max(WINDOW, round(WINDOW_SEC * fps))
    width = window - EXCLUDED
    rest = [(0, 0)] * (steps.ndim - 1)
    left, right = np.concatenate([steps[:1], steps[:-1]]), np.concatenate([steps[1:], steps[-1:]])
    typical = np.maximum(np.minimum(left, steps), np.minimum(np.maximum(left, steps), right))  # The median of three.
    later = _sliding_maximum(np.pad(typical, [(0, window + width), *rest]), width)
    earlier = _sliding_maximum(np.pad(typical, [(window, width), *rest]), width)
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


def _find_foot_jumps(frames: Frames) -> Iterator[Finding]:
    """Steps in which every foot moves at once, as no body does that stands on one: the root, or a hip, is thrown."""
    rate = frames.fps / frames.foot_stride
    speed = frames.foot_steps * rate
    floor = FOOT_FLOOR * frames.speed_unit
    ratio = _step_ratio(speed, floor, rate)
    is_fault = ratio > FOOT_RATIO
    if not is_fault.any():
        return
    worst = int(np.argmax(np.where(is_fault, speed, 0.0)))
    first, last = worst * frames.foot_stride, min((worst + 1) * frames.foot_stride, len(frames.root_pos) - 1)
    joint_steps = np.abs(frames.dof_pos[last] - frames.dof_pos[first])
    joint = int(joint_steps.argmax())
    turn = float(rotations.angle_between(frames.root_rot[first : first + 1], frames.root_rot[last : last + 1])[0])
    moves = {
        "root_jump": (float(np.linalg.norm(frames.root_pos[last] - frames.root_pos[first])), "root_pos"),
        "root_flip": (turn * frames.height, "root_rot"),
        "joint_spike": (float(joint_steps[joint]) * frames.height, "dof_pos"),
    }
    code = max(moves, key=lambda kind: moves[kind][0])
    parts = np.concatenate([[0], (np.flatnonzero(is_fault) + 1) * frames.foot_stride, [len(frames.root_pos)]])
    longest = int(np.argmax(np.diff(parts)))
    yield Finding(
        code,
        "refuses",
        f"all feet move at once, by at least {frames.foot_steps[worst]:.3g} m between frames {first} and {last}: "
        f"{speed[worst]:.3g} m/s, {ratio[worst]:.3g} times what they do around it",
        key=moves[code][1],
        joint=frames.joint_names[joint] if code == "joint_spike" else None,
        frames=(last, last),
        value=rounded(speed[worst]),
        limit=rounded(FOOT_RATIO * speed[worst] / ratio[worst]),
        unit="m/s",
        expected="a foot that stays where it is, or feet that leave the ground and land over several frames",
        remedy=f"Repair {moves[code][1]} there; {_cut_remedy(int(parts[longest]), int(parts[longest + 1]))}",
    )


def _tremble(values: Array, fps: float, seconds: float | None) -> tuple[float, float, int, int]:
    """How far values (N, k) tremble from frame to frame where they do so the most, and between which frames.

    White noise of amplitude a has differences of a√2, second differences of a√6 and third ones of a√20. Each is taken as a
    quantile over the frames of a window, so that a few spikes are no jitter.

    Args:
      seconds: of a window; None takes all frames as one.

    Returns:
      The amplitude, 0 where nothing trembles, the ratio of second to first differences, the first frame and the last.
    """
    third = np.diff(values, n=3, axis=0)
    count = len(third)
    width = count if seconds is None else max(10, round(seconds * fps))
    if count < max(width, 8):
        return 0.0, 0.0, 0, 0
    hop = max(1, width // 4)
    rows = (np.sqrt((np.diff(values, n=n, axis=0)[:count] ** 2).mean(axis=1)) for n in (1, 2, 3))
    steps, changes, jerks = (
        np.percentile(np.lib.stride_tricks.sliding_window_view(row, width)[::hop], JITTER_QUANTILE, axis=1) for row in rows
    )
    trembles = (changes > JITTER_RATIO * steps) & (jerks > JITTER_RATIO_2 * changes)
    worst = int(np.argmax(np.where(trembles, changes, 0.0)))
    if not trembles[worst]:
        return 0.0, 0.0, 0, 0
    ratio = float(changes[worst] / max(steps[worst], 1e-12))
    return float(changes[worst]) / math.sqrt(6.0), ratio, worst * hop, min(worst * hop + width + 2, len(values) - 1)


def find_jitter(frames: Frames) -> list[Finding]:
    """Joints, or a root, that tremble from frame to frame for half a second or more."""
    if frames.fps < JITTER_LEAST_FPS:
        return []
    # A quick step changes more from frame to frame where there are fewer frames.
    quickness = max(1.0, JITTER_FPS / frames.fps) ** 2
    rotation = 2.0 * rotations.align_signs(frames.root_rot)[0]  # A quaternion's entries change by half the angle.
    subjects = (
        ("dof_pos", "rad", frames.dof_pos, JITTER_SEC, JITTER_RAD * quickness),
        ("dof_pos", "rad", frames.dof_pos, None, JITTER_RAD_ALL_OVER * quickness),
        ("root_rot", "rad", rotation, JITTER_SEC, JITTER_TURN * quickness),
        ("root_pos", "m", frames.root_pos, JITTER_SEC, JITTER_SHARE * frames.height * quickness),
    )
    for key, unit, values, seconds, limit in subjects:
        amplitude, ratio, first, last = _tremble(values, frames.fps, seconds)
        if amplitude <= limit:
            continue
        changes = np.abs(np.diff(values[first : last + 1], n=2, axis=0))
        name = frames.joint_names[int(changes.mean(axis=0).argmax())] if key == "dof_pos" else None
        subject = f"the joints tremble, {name} the most," if name else f"{key} trembles"
        return [
            Finding(
                "jitter",
                "refuses",
                f"{subject} from frame to frame between frames {first} and {last}, by about {amplitude:.2g} {unit}: the "
                f"differences of neighbouring steps are {ratio:.2f} times the steps",
                key=key,
                joint=name,
                frames=(first, last),
                value=rounded(amplitude),
                limit=rounded(limit),
                unit=unit,
                expected="steps that are like their neighbours; white noise has a ratio of 1.73",
                remedy=f"Smooth {key} over 3 to 7 frames (scipy.signal.savgol_filter), or retarget with a smoothness cost",
            )
        ]
    return []


def _runs(flags: Flags) -> list[tuple[int, int]]:
    """The runs of true values, as `start, stop`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _find_frozen(frames: Frames) -> list[Finding]:
    """Runs of equal poses that are entered or left in the middle of a movement."""
    steps = np.abs(np.diff(frames.dof_pos, axis=0))
    joint_speed = steps * frames.fps
    speed = joint_speed.max(axis=1)
    for start, stop in _runs(steps.max(axis=1) < STILL_RAD):
        if (stop - start) / frames.fps < FROZEN_SEC:
            continue
        ends = [step for step in (start - 1, stop) if 0 <= step < len(speed)]
        if not ends:
            continue
        fastest = max(ends, key=lambda step: speed[step])
        # One joint may stop dead, as an actuator at its limit does; a body in movement does not.
        if speed[fastest] <= FROZEN_SPEED or (joint_speed[fastest] > MOVING_SPEED).sum() < 2:
            continue
        is_tail = stop == len(speed)
        message = f"no joint changes {_describe_run(start, stop, len(speed))}, in a movement of {speed[fastest]:.3g} rad/s"
        return [_describe_frozen("frozen_tail" if is_tail else "frozen", message, "dof_pos", start, stop, len(speed))]
    return []


def _find_fixed_root(frames: Frames) -> list[Finding]:
    """Runs in which the root stops dead and the joints go on."""
    path = np.linalg.norm(np.diff(frames.root_pos, axis=0), axis=1)
    turns = np.abs(np.diff(frames.root_rot, axis=0)).max(axis=1)
    moves = np.abs(np.diff(frames.dof_pos, axis=0)).max(axis=1) * frames.fps > FROZEN_SPEED
    for start, stop in _runs((path < FIXED_ROOT) & (turns < FIXED_ROOT) & moves):
        ends = [step for step in (start - 1, stop) if 0 <= step < len(path)]
        arrest = max((float(path[step]) * frames.fps for step in ends), default=0.0)
        if (stop - start) / frames.fps < FIXED_ROOT_SEC or arrest < ROOT_ARREST * frames.speed_unit:
            continue
        message = f"the root does not move {_describe_run(start, stop, len(path))}, in a movement of {arrest:.3g} m/s, and the "
        message += "joints go on"
        return [_describe_frozen("frozen", message, "root_pos", start, stop, len(path))]
    return []


def _describe_run(start: int, stop: int, steps: int) -> str:
    place = f"up to frame {stop}" if start == 0 else f"from frame {start} " + ("on" if stop == steps else f"to {stop}")
    return f"{place} ({stop - start + 1} equal frames)"


def _describe_frozen(code: str, message: str, key: str, start: int, stop: int, steps: int) -> Finding:
    # Without the frame itself that is held: of a clip that is padded with zeros it is the first of these.
    begin, end = max([(0, start), (stop + 1, steps + 1)], key=lambda part: part[1] - part[0])
    return Finding(
        code,
        "refuses",
        message,
        key=key,
        frames=(start, stop),
        value=rounded(float(stop - start + 1)),
        unit="frames",
        expected="frames that move on, or a movement that comes to rest",
        remedy=f"Padding or a dropped recording: ampref cut CLIP --frames {begin}:{end}",
    )


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
