"""The flights of a clip, as a robot can fly: in the air its centre of mass falls freely, whatever the clip shows.

A clip that was scaled from a human to a smaller robot, at the human's pace, hangs in the air longer than gravity allows. A plan
for it would be late in one half of the jump and early in the other. So the root's height is mended, by as little as makes the
flight a parabola.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.kinematics import iterate_poses
from amp_core.robot import Robot
from amp_core.runs import find_runs

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FALLS = 0.25  # of gravity; a clip whose feet are off its floor while its mass falls more slowly only stands elsewhere
_LEAST_FRAMES = 4
_PUSH_SEC = 0.24  # before and after a flight, in which the course comes back to what was asked for

# Of the least squares: a centimetre, 0.1 m/s² in the air and 10 m/s² on the ground weigh the same.
_AIR_WEIGHT = 0.1
_GROUND_WEIGHT = 0.001
_END_WEIGHT = 100.0
_ROUNDS = 12
_FLOOR = 0.1


def find_mass_height(robot: Robot, qpos: Array) -> Array:
    """(N,) m, the height of the centre of mass in each pose (N, nq)."""
    height = np.empty(len(qpos))
    for frame, data in enumerate(iterate_poses(robot.kinematic_model, qpos)):
        mujoco.mj_comPos(robot.kinematic_model, data)
        height[frame] = data.subtree_com[robot.root_body, 2]
    return height


def find_falls(height: Array, in_flight: Bools, dt: float, gravity: float) -> Bools:
    """(N,) those flights in which the centre of mass falls.

    Args:
      height: (N,) m, of the centre of mass. in_flight: (N,) as in `Footing`. gravity: m/s².
    """
    falls = np.zeros_like(in_flight)
    for start, stop in find_runs(in_flight):
        if stop - start >= _LEAST_FRAMES:
            time = np.arange(stop - start) * dt
            falls[start:stop] = 2.0 * np.polyfit(time, height[start:stop], 2)[0] < -_FALLS * gravity
    return falls


def find_course(height: Array, shift: Array, falls: Bools, dt: float, gravity: float) -> Array:
    """(N,) m, how much higher the root has to be than the clip's for the centre of mass to fall freely where it falls.

    There it is as near to the clip as can be where it is farthest from it: least squares, weighted anew by the distance
    (Lawson's algorithm). Elsewhere it comes near to a given shift, with little acceleration.

    Args:
      height: (N,) m, the clip's centre of mass. shift: (N,) m, how much higher the root is to be on the ground.
    """
    acceleration = np.diff(height, 2) / dt**2
    course, reach, runs = shift.copy(), round(_PUSH_SEC / dt), find_runs(falls)
    for k, (start, stop) in enumerate(runs):
        # Flights that follow each other closely share the stance between them.
        first = max(start - reach, (runs[k - 1][1] + start) // 2 if k else 0)
        last = min(stop + reach, (stop + runs[k + 1][0]) // 2 if k + 1 < len(runs) else len(shift))
        is_air = falls[first:last]
        hold = np.ones(last - first)
        hold[: 2 if first > 0 else 0] = hold[len(hold) - (2 if last < len(shift) else 0) :] = _END_WEIGHT
        goal = np.where(is_air, 0.0, shift[first:last])
        weight = np.where(is_air[1:-1], _AIR_WEIGHT, _GROUND_WEIGHT)
        bend = np.where(is_air[1:-1], -gravity - acceleration[first : last - 2], 0.0)
        bends = weight[:, None] * np.diff(np.eye(last - first), 2, axis=0) / dt**2
        for _ in range(_ROUNDS):
            rows = np.concatenate([np.diag(hold), bends])
            course[first:last] = np.linalg.lstsq(rows, np.concatenate([hold * goal, weight * bend]), rcond=None)[0]
            distance = np.abs(course[first:last][is_air])
            hold[is_air] *= np.sqrt(_FLOOR + distance / max(float(distance.max()), 1e-9))
            hold[is_air] /= np.sqrt((hold[is_air] ** 2).mean())
    return course
