"""Looping a clip: finding the two frames that are alike enough to close a cycle, and playing the cycle several times."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.augment.poses import Array, Poses
from amp_core.errors import MotionRefused
from amp_core.kinematics import sole_heights
from amp_core.robot import Robot

MIN_CYCLE_SEC = 0.5
MAX_SEAM_FRAMES = 1200
"""Frames that are compared with each other; a longer clip is thinned first and its seam then refined at full rate."""

SEAM_LIMITS: dict[str, tuple[float, str]] = {
    "joint angles": (0.1, "rad RMS"),
    "joint velocities": (1.0, "rad/s RMS"),
    "root height": (0.01, "m"),
    "root tilt": (0.05, "rad"),
    "root velocity": (0.15, "m/s"),
    "turn rate": (0.6, "rad/s"),
    "foot heights": (0.015, "m"),
}
"""What two frames may differ by in each quantity at a seam, for a robot of WildRobot's height (`seam_limit` for another one).

A residual is the largest difference in units of these.
"""


def seam_limit(quantity: str, robot: Robot) -> float:
    """What two frames of this robot may differ by in a quantity of `SEAM_LIMITS`: lengths and speeds go with its height."""
    limit, unit = SEAM_LIMITS[quantity]
    factor = {"m": robot.height_factor, "m/s": math.sqrt(robot.height_factor)}.get(unit, 1.0)
    return limit * factor


@dataclass(frozen=True)
class Seam:
    """Where a loop closes: frame `end` of the source is followed by frame `start`.

    Args:
      start, end: source frames (after a glitched first frame was dropped) at the clip's own rate; of a warped clip at the
        warped one's.
      cycle_sec: s, of one repetition.
      residual: the largest difference of the two frames in units of `seam_limit`; at most 1.
      worst: the quantity of `SEAM_LIMITS` with that difference.
      blend_sec: s over which the two are blended.
    """

    start: int
    end: int
    cycle_sec: float
    residual: float
    worst: str
    blend_sec: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {name: round(getattr(self, name), 6) for name in ("cycle_sec", "residual")}


def loop(poses: Poses, count: int, blend_sec: float, fps: float, robot: Robot, name: str) -> tuple[Poses, Seam]:
    """The lead-in, the best cycle `count` times, and the rest; every seam is blended over `blend_sec`.

    Each repetition starts where and in the heading in which the last one ended.

    Raises:
      MotionRefused: the clip is too short, or no two of its frames are alike enough; says in what they differ and by how much.
    """
    poses = poses._replace(root_rot=rotations.align_signs(poses.root_rot)[0])
    blend = max(1, round(blend_sec * fps))
    seam = find_seam(poses, fps, robot, blend, name)
    start, end = seam.start, seam.end
    yaw = np.unwrap(rotations.yaw(poses.root_rot))
    turn = float(yaw[end] - yaw[start])
    start_pos, end_pos = poses.root_pos[start], poses.root_pos[end]
    # From 0 to 1 with no velocity and no acceleration at either end.
    fraction = np.arange(blend) / blend
    weight = (fraction**3 * (10.0 - 15.0 * fraction + 6.0 * fraction**2))[:, None]

    sections = [poses.frames(0, end)]
    current = poses
    for repetition in range(1, count):
        # One repetition onwards: the motion over the floor that takes the root of `start` to that of `end`.
        position = rotations.rotate_about_vertical(current.root_pos, turn, start_pos)
        position[:, :2] += end_pos[:2] - start_pos[:2]
        following = Poses(position, rotations.rotate_yaw(current.root_rot, turn), poses.dof_pos)
        a, b = current.frames(end, end + blend), following.frames(start, start + blend)
        sections.append(
            Poses(
                (1.0 - weight) * a.root_pos + weight * b.root_pos,
                rotations.nlerp(a.root_rot, b.root_rot, weight),
                (1.0 - weight) * a.dof_pos + weight * b.dof_pos,
            )
        )
        sections.append(following.frames(start + blend, end if repetition < count - 1 else None))
        current = following
    root_pos, root_rot, dof_pos = (np.concatenate(arrays) for arrays in zip(*sections, strict=True))
    return Poses(root_pos, rotations.align_signs(root_rot)[0], dof_pos), seam


def find_seam(poses: Poses, fps: float, robot: Robot, blend: int, name: str) -> Seam:
    """The pair of frames to loop between.

    All pairs that leave room for the blend and a cycle of half a second are compared, at the seam, in the middle of the blend
    and at its end. Of those within a fifth of the best (or below a quarter of the limit) the longest cycle is taken, since it
    keeps most of the clip's variety; then the better one; then the earlier.

    Args:
      poses: neighbouring quaternions on one hemisphere.
      blend: frames over which the seam is blended.

    Raises:
      MotionRefused: the clip is too short, or its best pair differs too much; says in what and by how much.
    """
    count = poses.num_frames
    shortest = max(blend, math.ceil(MIN_CYCLE_SEC * fps))
    if count < shortest + blend + 2:
        raise MotionRefused(
            f"the clip of {count} frames is too short to loop",
            file=name,
            key="root_pos",
            expected=f"at least {shortest + blend + 2} frames: a cycle of {MIN_CYCLE_SEC:g} s and the blend behind it",
            remedy="Choose a longer clip, or a shorter blend",
        )
    quantities = _seam_quantities(poses, fps, robot)
    stride = -(-count // MAX_SEAM_FRAMES)
    frames = np.arange(0, count, stride)
    best = _best_pair(quantities, frames, frames, blend, shortest)
    if stride > 1 and best is not None:
        near = [np.arange(max(0, frame - stride), min(count, frame + stride + 1)) for frame in best[2:]]
        best = _best_pair(quantities, near[0], near[1], blend, shortest) or best
    assert best is not None
    residual, _, start, end = best
    differences = [
        (float(_differences({quantity: values}, np.array([start + shift]), np.array([end + shift]))[0, 0]), quantity)
        for quantity, values in quantities.items()
        for shift in (0, blend // 2, blend)
    ]
    worst = max(differences)[1]
    if residual > 1.0:
        limit, unit = seam_limit(worst, robot), SEAM_LIMITS[worst][1]
        raise MotionRefused(
            f"no two frames are alike enough to loop: of the best pair ({start} and {end}) the {worst} differ by "
            f"{residual * limit:.3g} {unit}",
            file=name,
            key="loop",
            frame=start,
            expected=f"at most {limit:g} {unit}; the residual is {residual:.2f} and may be 1",
            remedy="Loop a clip that repeats itself, such as steady walking",
        )
    return Seam(start, end, (end - start) / fps, residual, worst, blend / fps)


def _seam_quantities(poses: Poses, fps: float, robot: Robot) -> dict[str, Array]:
    """The compared quantities of each frame, rows (N, k) in units of `seam_limit`; independent of place and heading."""
    yaw = np.unwrap(rotations.yaw(poses.root_rot))
    share = 1.0 / math.sqrt(poses.dof_pos.shape[1])
    values = {
        "joint angles": poses.dof_pos * share,
        "joint velocities": np.gradient(poses.dof_pos, axis=0) * (fps * share),
        "root height": poses.root_pos[:, 2:3],
        "root tilt": rotations.up_in_body(poses.root_rot),
        "root velocity": rotations.world_to_heading(yaw, np.gradient(poses.root_pos, axis=0) * fps),
        "turn rate": (np.gradient(yaw) * fps)[:, None],
        "foot heights": sole_heights(robot, robot.poses(*poses)),
    }
    return {quantity: np.asarray(value / seam_limit(quantity, robot)) for quantity, value in values.items()}


def _best_pair(
    quantities: dict[str, Array], starts: NDArray[np.int64], ends: NDArray[np.int64], blend: int, shortest: int
) -> tuple[float, int, int, int] | None:
    """(residual, -cycle, start, end) of the best pair by the rule of `find_seam`, or None where no pair has room."""
    count = len(quantities["turn rate"])
    starts, ends = starts[starts < count - blend], ends[ends < count - blend]
    if not len(starts) or not len(ends):
        return None
    cost = _differences(quantities, starts, ends)
    for shift in sorted({blend // 2, blend} - {0}):
        np.maximum(cost, _differences(quantities, starts + shift, ends + shift), out=cost)
    cost[ends[None, :] - starts[:, None] < shortest] = math.inf
    least = float(cost.min())
    if not math.isfinite(least):
        return None
    good = np.argwhere(cost <= min(max(1.2 * least, 0.25), max(1.0, least)))
    pairs = ((float(cost[i, j]), -int(ends[j] - starts[i]), int(starts[i]), int(ends[j])) for i, j in good)
    return min(pairs, key=lambda pair: (pair[1], pair[0], pair[2]))


def _differences(quantities: dict[str, Array], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
    """(rows, columns): the largest difference of each pair of frames. Summed coordinate by coordinate: the same everywhere."""
    largest = np.zeros((len(rows), len(columns)))
    for quantity, values in quantities.items():
        a, b = values[rows], values[columns]
        if quantity == "foot heights":
            for i in range(values.shape[1]):
                np.maximum(largest, np.abs(a[:, i, None] - b[None, :, i]), out=largest)
            continue
        square = np.zeros_like(largest)
        for i in range(values.shape[1]):
            square += (a[:, i, None] - b[None, :, i]) ** 2
        np.maximum(largest, np.sqrt(square), out=largest)
    return largest
