"""The footing of a clip: where its feet stand, how far they slide while they stand, and when no foot is on the ground.

It is read off the clip's poses alone, without simulating, as is whether anything moves. No floor is assumed: a foot counts as
being on the ground by what it does and not by its height over z = 0, so that a slope, stairs, or a clip whose height drifts is
measured as what it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core import rotations
from amp_core.kinematics import BodyPoses, FootTracker, geom_poses, support
from amp_core.metrics import GRAVITY
from amp_core.robot import Robot

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Lengths are shares of the robot's height h (`standing_height`), speeds are shares of √(g·h): the same for every size of robot.
_LEVEL = 0.045  # a foot at most this much higher than the lowest one is as low
_HIGH = 0.10  # a lowest foot this much higher than at any time within `_GROUND_SEC` is in the air
_FAST = 0.30  # a foot whose slowest corner moves faster does not stand
_SLIDE_SEC = 0.1  # over which a slide is taken: between two frames, noise of 2 mm is as fast as a sliding foot
_NEAR = 0.05  # a part of the clip's body as close to the floor may touch it
_GROUND_SEC = 0.5
_SMOOTH_SEC = 0.5  # of the moving median of the ground's height
_STILL_SEC = 0.5  # on either side of a frame, in which a pose that is held changes by less than the next two
_STILL_ANGLE = 0.1  # rad, of a joint or of the root's lean
_STILL_RISE = 0.10  # of the root


def standing_height(height_range: tuple[float, float]) -> float:
    """m: the middle of a robot's height range, the length that shares of its height refer to."""
    return (height_range[0] + height_range[1]) / 2


@dataclass(frozen=True, eq=False)
class Footing:
    """The footing of N consecutive poses. A step is that from the pose before; the first pose has that of the second.

    Args:
      slide: (N,) m/s, horizontal speed of the slowest of the lowest feet about the step, by the slowest corner of each; NaN
        where no foot is on the ground.
      push: (N, 2) m, how the root would move in the step if that foot stood still, which is how the legs say that it moves;
        as the root does where no foot is on the ground.
      in_flight: (N,) bool, no foot is on the ground: the lowest is far above where it was or will be within half a second, or
        all low feet move faster than a foot that stands.
      ground: (N,) m, height of the lowest foot, smoothed by a median over half a second of the frames with a foot on the
        ground; NaN where there is none.
    """

    slide: Array
    push: Array
    in_flight: Bools
    ground: Array

    @classmethod
    def of(cls, robot: Robot, qpos: Array, poses: BodyPoses | None = None) -> Footing:
        """The footing of the poses (N, nq), a control step apart.

        Args:
          poses: the `body_poses` of these poses, where they are known.
        """
        count, dt, height = len(qpos), robot.control_dt, standing_height(robot.height_range)
        if count == 0:
            return cls(np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=bool), np.zeros(0))
        corners = FootTracker(robot, size=count).corners(qpos, poses)
        heights = np.stack([foot[:, :, 2].min(axis=1) for foot in corners], axis=1)
        lowest = heights.min(axis=1)
        along, fastest, drag = np.zeros(count), np.zeros(count), np.zeros((count, 2))
        if count > 1:
            rise = np.maximum(heights[:-1], heights[1:]) - np.maximum(lowest[:-1], lowest[1:])[:, None]
            step, reach = np.arange(count - 1), max(0, round((_SLIDE_SEC / dt - 1) / 2))
            first, last = np.maximum(step - reach, 0), np.minimum(step + 1 + reach, count - 1)
            # (S, F, 2) m/s, of the slowest corner of each foot; infinite for a foot that is not low.
            slides = np.empty((count - 1, len(corners), 2))
            speeds = np.empty((count - 1, len(corners)))
            for i, foot in enumerate(corners):
                velocity = (foot[last] - foot[first])[:, :, :2] / ((last - first) * dt)[:, None, None]
                slides[:, i] = velocity[step, np.linalg.norm(velocity, axis=2).argmin(axis=1)]
                speeds[:, i] = np.linalg.norm(np.diff(foot, axis=0), axis=2).min(axis=1) / dt
            is_low = rise < _LEVEL * height
            slide = np.where(is_low, np.linalg.norm(slides, axis=2), np.inf)
            along[1:], fastest[1:] = slide.min(axis=1), np.where(is_low, speeds, np.inf).min(axis=1)
            along[0], fastest[0] = along[1], fastest[1]
            drag[1:] = dt * slides[step, slide.argmin(axis=1)]
        floor = _windows(lowest, round(_GROUND_SEC / dt), np.inf).min(axis=1)
        in_flight = (lowest - floor > _HIGH * height) | (fastest > _FAST * math.sqrt(GRAVITY * height))
        ground = _moving_median(np.where(in_flight, np.nan, lowest), round(_SMOOTH_SEC / 2 / dt))
        root = qpos[:, robot.root_qpos_adr : robot.root_qpos_adr + 2]
        steps = np.diff(root, axis=0, prepend=root[:1])
        push = steps - np.where(in_flight[:, None], 0.0, drag)
        return cls(np.where(in_flight, np.nan, along), push, in_flight, ground)


def chord_lengths(path: Array, frames: int) -> Array:
    """(N,) m, horizontal distance of each place in (N, 2 or 3) from that so many frames before; 0 in the first ones."""
    return np.asarray(np.hypot(*_chords(path, frames).T))


def travel_along(path: Array, reference: Array, frames: int) -> Array:
    """(N,) m, how far a path goes in so many frames along the chord of another: sway is no travel, the way back is negative."""
    chords, ways = _chords(path, frames), _chords(reference, frames)
    lengths = np.hypot(*ways.T)
    return np.asarray(np.divide((chords * ways).sum(axis=1), lengths, out=np.zeros(len(path)), where=lengths > 0))


def _chords(path: Array, frames: int) -> Array:
    chords = np.zeros((len(path), 2))
    chords[frames:] = path[frames:, :2] - path[:-frames, :2]
    return chords


def least_chords(slowest: float, travel: float, count: int, chord: int) -> float:
    """m, the least sum of so many chords by which a path travels: fast enough, and far enough in all.

    Args:
      slowest: m, a chord of a path that is just fast enough.
      travel: m, the way of a path that is just long enough; it has about its length over `chord` frames in chords.
    """
    return max(slowest * count, travel * min(count, chord))


def path_ratio(root: float, feet: float, least: float) -> float | None:
    """Travelled path over the path that the standing feet make, 100 at most; None where both are shorter than the least.

    Args:
      root, feet: m, sums of the chords of `root_pos` and of the sums of `Footing.push`.
    """
    longest = max(root, feet)
    return None if longest == 0.0 or longest < least else root / max(feet, 0.01 * root)


def still_frames(root_pos: Array, root_rot: Array, dof_pos: Array, dt: float, height: float) -> Bools:
    """(N,) whether a pose is held: within half a second on either side no joint, lean or height changes to speak of.

    Where the root is and where it heads are no pose: legs that do not move take it nowhere.

    Args:
      root_pos, root_rot, dof_pos: (N, 3) m, (N, 4) unit xyzw, (N, n) rad, `dt` s apart.
      height: m, the robot's.
    """
    reach = round(_STILL_SEC / dt)
    if len(root_pos) == 0:
        return np.zeros(0, dtype=bool)
    # Each in its own unit, so that all of it is compared with 1; a difference of two up axes is the angle between them.
    pose = np.concatenate(
        [dof_pos / _STILL_ANGLE, rotations.up_in_body(root_rot) / _STILL_ANGLE, root_pos[:, 2:] / (_STILL_RISE * height)],
        axis=1,
    )
    around = np.lib.stride_tricks.sliding_window_view(np.pad(pose, ((reach, reach), (0, 0)), mode="edge"), 2 * reach + 1, 0)
    return np.asarray(np.ptp(around, axis=2).max(axis=1) < 1.0)


def touches_ground(robot: Robot, qpos: Array) -> Bools:
    """(N,) whether anything but a foot is at the floor z = 0, or close to it, in the poses (N, nq)."""
    model, feet = robot.model, robot.foot_bodies
    types, affinities, ground = model.geom_contype, model.geom_conaffinity, robot.ground_geom
    collides = (types & affinities[ground]) | (types[ground] & affinities)
    root = model.body_rootid[robot.root_body]
    geoms = [
        geom
        for geom, body in enumerate(model.geom_bodyid.tolist())
        if collides[geom] and body not in feet and model.body_rootid[body] == root
    ]
    if not geoms or len(qpos) == 0:
        return np.zeros(len(qpos), dtype=bool)
    centres, ups = geom_poses(model, geoms, qpos)
    reach = np.stack([support(model, geom, ups[:, i]) for i, geom in enumerate(geoms)], axis=1)
    near: Bools = (centres[:, :, 2] - reach).min(axis=1) < _NEAR * standing_height(robot.height_range)
    return near


def robot_bodies(robot: Robot) -> npt.NDArray[np.int64]:
    """The ids of the robot's bodies, the root's among them."""
    model = robot.kinematic_model
    return np.flatnonzero(model.body_rootid == model.body_rootid[robot.root_body])


def _windows(values: Array, reach: int, fill: float) -> Array:
    """(N, 2·reach + 1): each value with its neighbours on either side, `fill` beyond the ends."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, constant_values=fill), 2 * reach + 1)


def _moving_median(values: Array, reach: int) -> Array:
    """(N,) the median of the neighbours that are not NaN, and NaN where all of them are."""
    windows = np.sort(_windows(values, reach, np.nan), axis=1)  # NaN goes to the end
    counts = np.count_nonzero(~np.isnan(windows), axis=1)
    # The two order statistics in the middle; the first of no value at all is NaN.
    middle = np.stack([np.maximum(counts - 1, 0) // 2, counts // 2], axis=1)
    return np.asarray(np.take_along_axis(windows, np.where(counts > 0, middle.T, 0).T, axis=1).mean(axis=1))
