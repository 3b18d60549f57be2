"""Where a clip's feet are, as its own kinematics have it: heights, sliding and flight, and how plausible that is.

Nothing is simulated. Lengths are compared with the robot's root height h, speeds with √(g·h), so that one set of figures serves
robots from knee-high to grown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.metrics import GRAVITY

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

NEAR_SHARE = 0.05
"""Of h: a foot that is no higher above the lowest one than this may carry weight too."""

GROUND_SHARE = 0.07
"""Of h: above the floor by more than this no foot is on the ground."""

KEPT_SHARE = 0.95
EXCESS_UNIT_RAD = 0.1
LEVEL_SOLE_DEG, SOLE_UNIT_DEG = 20.0, 10.0
"""Of the sole of the lowest foot: good walks of a retargeter that leaves the ankles alone have a mean of up to 22 degrees."""

FLAT_SHARE = 0.5
"""Of a foot's length: one that is as high at least has no sole whose tilt would mean anything."""

SWAY_SEC = 0.25
"""Over which the direction of a path is taken: the sway of the hips within a step is none."""

STANDING_SHARE = 0.3
OFF_RANGE = 0.3
"""What a root at no height of the robot adds to the score: of two readings the one with the floor at z = 0 is likelier."""


class Poses(NamedTuple):
    """Frames of a clip: `root_pos` (N, 3) m, `root_rot` (N, 4) xyzw of any length, `dof_pos` (N, n) rad."""

    root_pos: Array
    root_rot: Array
    dof_pos: Array

    def take(self, frames: NDArray[np.int64]) -> Poses:
        return Poses(*(values[frames] for values in self))


@dataclass(frozen=True)
class Steps:
    """S steps of a clip, each from one frame to the next, as F feet make them.

    Args:
      low: (S, F) m, the lowest point of each foot, the higher one of the step's two frames.
      speed: (S, F) m/s, horizontal, of each foot's slowest corner.
      sole: (S,) deg, by which the sole of the lowest foot is not level; 0 where the robot's feet are not flat.
      root_velocity: (S, 2) m/s.
      pushed: (S, 2) m/s: how the lowest foot would move the root if it stood still.
    """

    low: Array
    speed: Array
    sole: Array
    root_velocity: Array
    pushed: Array

    @property
    def lowest(self) -> Array:
        """(S,) m, the lowest point of all feet."""
        return np.asarray(self.low.min(axis=1))


@dataclass(frozen=True)
class Plausibility:
    """How far a clip is from what sound clips have; see docs/check.md.

    Args:
      slide: m/s, mean over the steps on the ground, but for the worst twentieth, of the slowest low foot's speed.
      spread: m, 10th to 90th percentile of the lowest foot point's height.
      excess: rad, mean over frames of the farthest joint beyond its limits.
      tilt: deg, mean of the root.
      sole: deg, mean over the steps on the ground of the lowest foot's sole.
      height: m, of the root above the median of the lowest foot point.
      floor: m, that median.
      footing: the first three in units of what a sound clip has, added up: what feet and joints say.
      score: all six so, and a little for a root at no height of the robot.
      scale: factor by which the root's path is longer than the path that the standing feet make.
      agreement: correlation, 0 to 1, of the two paths once one is turned and scaled.
    """

    slide: float
    spread: float
    excess: float
    tilt: float
    sole: float
    height: float
    floor: float
    footing: float
    score: float
    scale: float
    agreement: float

    @property
    def feet(self) -> float:
        """What the feet alone say, of `footing`."""
        return self.footing - self.excess / EXCESS_UNIT_RAD


@dataclass(frozen=True)
class PathTurn:
    """How the direction of the root's path lies to that of the path which the standing feet make.

    Args:
      degrees: by which the path of the feet must be turned about the vertical; 0 where nothing travels.
      agreement: correlation, 0 to 1, of the two paths once they are turned so.
      speed: of the root, in units of √(g·h).
      seconds: that the clip lasts.
    """

    degrees: float
    agreement: float
    speed: float
    seconds: float

    @property
    def is_clear(self) -> bool:
        """Whether the clip travels, and its two paths are alike enough to tell the turn."""
        return self.agreement >= 0.85 and self.speed >= 0.04 and self.seconds >= 1.5

    @property
    def is_doubtful(self) -> bool:
        """Whether it is worth trying other headings."""
        return self.is_off or (self.is_clear and self.seconds >= 2.0 and abs(self.degrees) >= 10.0)

    @property
    def is_off(self) -> bool:
        """Whether the heading of the root is wrong beyond doubt; good clips have up to 9 degrees, or 16 in 1.5 s."""
        is_sure = self.agreement >= 0.95 and self.seconds >= 2.0
        return self.is_clear and abs(self.degrees) >= (15.0 if is_sure else 25.0)


class FootMeasure:
    """A robot's measure of poses."""

    def __init__(self, robot: Robot, size: int = 1024) -> None:
        from amp_core.kinematics import FootTracker, body_poses  # noqa: PLC0415 - reading a motion needs no MuJoCo

        self.robot = robot
        low, high = robot.height_range
        self.height = 0.5 * (low + high)
        self.speed_unit = math.sqrt(GRAVITY * self.height)
        self._tracker, self._body_poses = FootTracker(robot, size=size), partial(body_poses, robot)
        # The vertical of the robot's zero pose in the frame of each foot that is flat.
        zero = np.array(robot.model.qpos0)[None]
        places, axes = self._body_poses(zero)
        extents = [np.ptp(foot[0], axis=0) for foot in self._tracker.corners(zero, (places, axes))]
        self._soles = [
            axes[0, foot.body].reshape(3, 3)[2] if extent[2] < FLAT_SHARE * max(extent[:2]) else None
            for foot, extent in zip(robot.feet, extents, strict=True)
        ]

    def steps(self, start: Poses, end: Poses, fps: float) -> Steps:
        """The feet in steps that begin at the poses `start` and end at the poses `end`, 1 / fps later."""
        count = len(start.root_pos)
        both = Poses(*(np.concatenate(pair) for pair in zip(start, end, strict=True)))
        qpos = self.robot.poses(both.root_pos, rotations.normalize(both.root_rot), both.dof_pos)
        bodies = self._body_poses(qpos)
        corners = self._tracker.corners(qpos, bodies)
        heights = [foot[:, :, 2].min(axis=1) for foot in corners]
        low = np.stack([np.maximum(height[:count], height[count:]) for height in heights], axis=1)
        path = [(foot[count:] - foot[:count])[:, :, :2] * fps for foot in corners]
        speed = np.stack([np.sqrt((velocity**2).sum(axis=2).min(axis=1)) for velocity in path], axis=1)
        root_velocity = (end.root_pos - start.root_pos)[:, :2] * fps
        # The lowest corner of the lowest foot stands, if any does.
        rows, foot = np.arange(count), low.argmin(axis=1)
        lowest = [(places[:count, :, 2] + places[count:, :, 2]).argmin(axis=1) for places in corners]
        standing = np.stack([velocity[rows, corner] for velocity, corner in zip(path, lowest, strict=True)], axis=1)[rows, foot]
        # The last row of a body's rotation matrix is the world's vertical in its frame.
        level = np.stack(
            [
                np.ones(count) if up is None else bodies[1][:count, body.body].reshape(-1, 3, 3)[:, 2] @ up
                for body, up in zip(self.robot.feet, self._soles, strict=True)
            ],
            axis=1,
        )[rows, foot]
        sole = np.degrees(np.arccos(np.clip(level, -1.0, 1.0)))
        return Steps(low, speed, sole, root_velocity, root_velocity - standing)

    def least_steps(self, poses: Poses) -> Array:
        """(N - 1,) m: how far the foot that moves the least, by its slowest corner, moves between neighbours of (N) poses."""
        corners = self._tracker.corners(self.robot.poses(*poses))
        steps = [np.linalg.norm(np.diff(foot, axis=0), axis=2).min(axis=1) for foot in corners]
        return np.asarray(np.stack(steps, axis=1).min(axis=1))

    def slide(self, steps: Steps) -> Array:
        """(S,) m/s: the speed of the slowest foot of those that may carry weight."""
        near = steps.low - steps.lowest[:, None] < NEAR_SHARE * self.height
        return np.asarray(np.where(near, steps.speed, np.inf).min(axis=1))

    def turn(self, root_pos: Array, push: Array, in_flight: Flags, fps: float) -> PathTurn:
        """The turn of a path, by its chords of a quarter of a second in which a foot stands most of the time.

        Args:
          root_pos: (N, 3) m.
          push: (N, 2) m, and in_flight (N,): as `footing.Footing` has them.
        """
        chord, seconds = max(1, round(SWAY_SEC * fps)), (len(root_pos) - 1) / fps
        if len(root_pos) <= chord:
            return PathTurn(0.0, 0.0, 0.0, seconds)
        path, flights = np.cumsum(push, axis=0), np.cumsum(in_flight)
        stands = flights[chord:] - flights[:-chord] <= STANDING_SHARE * chord
        feet, root = (path[chord:] - path[:-chord])[stands], (root_pos[chord:] - root_pos[:-chord])[stands, :2]
        degrees, _, agreement = _compare_paths(feet, root)
        speed = math.sqrt(float((root**2).sum(axis=1).mean())) * fps / chord if len(root) else 0.0
        return PathTurn(degrees, agreement, speed / self.speed_unit, seconds)

    def measure(self, start: Poses, end: Poses, fps: float) -> Plausibility:
        """How plausible the steps are from the poses `start` to the poses `end`."""
        return self.judge(self.steps(start, end, fps), start)

    def judge(self, steps: Steps, poses: Poses) -> Plausibility:
        """How plausible the steps are that begin at the poses."""
        lowest = steps.lowest
        floor = float(np.median(lowest))
        on_ground = lowest < floor + GROUND_SHARE * self.height
        # The few worst steps are left out: a jump of one frame is for `continuity`, and says nothing about the reading.
        ranked = np.sort(self.slide(steps)[on_ground])
        slide = float(ranked[: max(1, math.ceil(KEPT_SHARE * len(ranked)))].mean())
        spread = float(np.subtract(*np.percentile(lowest, [90, 10])))
        limits, (low, high) = self.robot.joint_range, self.robot.height_range
        overshoot = np.maximum(limits[:, 0] - poses.dof_pos, poses.dof_pos - limits[:, 1]).max(axis=1)
        excess = float(np.maximum(overshoot, 0.0).mean())
        tilt = math.degrees(float(rotations.tilt(poses.root_rot).mean()))
        sole = float(steps.sole[on_ground].mean())
        height = float(poses.root_pos[:, 2].mean()) - floor
        footing = slide / (0.05 * self.speed_unit) + spread / (0.08 * self.height) + excess / EXCESS_UNIT_RAD
        score = (
            footing
            + max(0.0, tilt - 15.0) / 15.0
            + max(0.0, sole - LEVEL_SOLE_DEG) / SOLE_UNIT_DEG
            + abs(height - self.height) / (0.25 * self.height)
            + (0.0 if low <= float(poses.root_pos[:, 2].mean()) <= high else OFF_RANGE)
        )
        _, scale, agreement = _compare_paths(steps.pushed[on_ground], steps.root_velocity[on_ground])
        return Plausibility(slide, spread, excess, tilt, sole, height, floor, footing, score, scale, agreement)


def _compare_paths(pushed: Array, actual: Array) -> tuple[float, float, float]:
    """The turn [deg] and the factor that take the velocities `pushed` to `actual` (S, 2), and their correlation."""
    u, v = pushed[:, 0] + 1j * pushed[:, 1], actual[:, 0] + 1j * actual[:, 1]
    power_u, power_v = float((np.abs(u) ** 2).sum()), float((np.abs(v) ** 2).sum())
    if min(power_u, power_v) < 1e-12:
        return 0.0, 1.0, 0.0
    product = complex((np.conj(u) * v).sum())
    return math.degrees(np.angle(product)), math.sqrt(power_v / power_u), abs(product) / math.sqrt(power_u * power_v)
