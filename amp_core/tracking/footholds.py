"""A clip on feet that stand: what of its poses a robot can hold that has to carry itself.

A retargeted clip says where its feet are, frame by frame, and nothing makes them stand: they tip on their toes in a squat, sink
into the floor or hover over it, slide by centimetres, and carry a body whose weight is beside them. A plan that follows all of
this stumbles over what no robot can do. So before it is planned for, the poses are mended, by as little as gives:

- feet that stand still are flat on the floor, and stay where they are on average; the root follows them, in height as far as
  its fidelity allows
- in flight the centre of mass falls freely (`flight`)
- the centre of pressure that the motion needs is within the feet that stand: the root sways

The legs' joints are solved for by inverse kinematics. What is measured is the clip as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core import rotations
from amp_core.engine import mujoco
from amp_core.kinematics import KINEMATIC_SPEED, FootTracker, box_corners, iterate_poses
from amp_core.robot import Robot
from amp_core.runs import find_runs
from amp_core.tracking.flight import find_course
from amp_core.tracking.inverse import iterate_inverse, smooth
from amp_core.tracking.scaling import carries_foot

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Lengths are those of a robot like WildRobot; another one's go with its size, and speeds with the root of it.
_LOW = 0.021  # m; a foot that is at most as much higher than the lowest one may stand
_MARGIN = 0.012  # m, from the edge of the feet that stand to the centre of pressure
_TURN_RATE = 1.0  # rad/s; a foot that rolls over heel or toe turns faster than one that stands still
_LEAST_UP = 0.7  # vertical part of a foot's z axis; a foot that leans further is not meant to be flat
_WINDOW_SEC = 0.2  # over which a foot's speed and rate are taken: single frames of a clip jump
_STILL_SEC = 0.4  # the least for which a foot stands still: those of a brisk walk do not, and are left as they are
_FADE_SEC = 0.1
_SLOW_FADE_SEC = 0.2  # of the root's height: a root that follows each foot up and down stumbles over the next
_ROOT_SHARE = 0.75  # of the way that the standing feet are moved, which the root goes with them
_LIFT = 0.0215  # m, at most, by which the root goes up or down with the feet; the legs bend or stretch for the rest
_NEAR = 0.001  # m
_FREE_FALL = 0.3  # of the weight; a motion that needs less force from the ground has no centre of pressure to speak of
_RAYS = 36

# Of the inverse kinematics: errors of 1 cm, 0.1 rad of a foot and 0.5 rad of a joint weigh the same.
_PLACE_WEIGHT = 10.0
_JOINT_WEIGHT = 0.2
_ROUNDS = 8
_LONGEST_STEP = 0.2  # rad, of a joint in a round: next to a straight knee a step may be far too long
_CONVERGED = 1e-4  # rad


def stand_feet(
    robot: Robot, model: Any, qpos: Array, size: float, in_flight: Bools, mass_height: Array, *, sways: bool
) -> Array:
    """(N, nq) the clip's poses on feet that stand.

    Args:
      model: of the robot's dynamics.
      qpos: (N, nq) the clip's, a control step apart.
      size: the robot's, as in `Scaling`.
      in_flight: (N,) whether the clip falls through the air, as of `flight.find_falls`.
      mass_height: (N,) m, of the clip's centre of mass.
      sways: whether the root sways over the feet; not in a clip that flies, which has no feet to be over.
    """
    dt, count, feet = robot.control_dt, len(qpos), robot.feet
    place, rotation = np.empty((count, len(feet), 3)), np.empty((count, len(feet), 4))
    for frame, data in enumerate(iterate_poses(robot.kinematic_model, qpos)):
        for i, foot in enumerate(feet):
            place[frame, i], rotation[frame, i] = data.xpos[foot.body], rotations.to_xyzw(data.xquat[foot.body])
    corners = FootTracker(robot, size=count).corners(qpos)
    height = np.stack([foot[:, :, 2].min(axis=1) for foot in corners], axis=1)
    is_low = (height - height.min(axis=1)[:, None] < _LOW * size) & ~in_flight[:, None]
    is_still = is_low & _find_still(corners, rotations.z_axis(rotation), dt, size)
    flat_height = -np.array([box_corners(robot.model, foot.geoms)[:, 2].min() for foot in feet])

    # The root goes to where the standing feet are on the floor, and most of the way with those that are held in place.
    shift = np.zeros((count, 3))
    lowest = np.where(is_still, place[:, :, 2] - flat_height, height).min(axis=1)
    shift[:, 2] = -_fill(lowest, ~in_flight, _SLOW_FADE_SEC / dt)
    lift, gravity = np.clip(shift[:, 2], -_LIFT * size, _LIFT * size), -float(model.opt.gravity[2])
    course = find_course(mass_height, lift, in_flight, dt, gravity)
    slide = np.zeros((count, len(feet), 2))
    for i in range(len(feet)):
        for start, stop in find_runs(is_still[:, i]):
            slide[start:stop, i] = place[start:stop, i, :2].mean(axis=0) - place[start:stop, i, :2]
    common = (slide * is_still[:, :, None]).sum(axis=1) / np.maximum(is_still.sum(axis=1), 1)[:, None]
    for axis in range(2):
        shift[:, axis] = _ROOT_SHARE * _fill(common[:, axis], is_still.any(axis=1), _FADE_SEC / dt)

    # Where each foot is to be: still ones flat in their place, the others as they are under the root; in flight it goes with
    # the root, but not through the floor.
    target, turn = place + shift[:, None], rotation.copy()
    target[in_flight, :, 2] = (place[:, :, 2] + np.maximum(course[:, None], -height))[in_flight]
    is_moved = np.abs(target[:, :, 2] - place[:, :, 2] - course[:, None]) > _NEAR
    share = smooth(is_still.astype(np.float64), _FADE_SEC / dt)
    for i in range(len(feet)):
        frames = np.flatnonzero(is_still[:, i])
        for frame in np.flatnonzero(share[:, i]).tolist():
            near = int(frames[np.abs(frames - frame).argmin()])
            goal = np.append(place[near, i, :2] + slide[near, i], flat_height[i])
            target[frame, i] += share[frame, i] * (goal - target[frame, i])
            up = rotations.z_axis(rotation[frame, i])
            axis_angle = np.array([up[1], -up[0], 0.0])
            sine = math.hypot(up[0], up[1])
            axis_angle *= share[frame, i] * math.atan2(sine, up[2]) / max(sine, 1e-9)
            turn[frame, i] = rotations.multiply(rotations.from_rotation_vector(axis_angle), rotation[frame, i])

    result, root = qpos.copy(), robot.root_qpos_adr
    result[:, root : root + 2] += shift[:, :2]
    result[:, root + 2] += course
    if sways:
        offset = (target - place)[:, :, None]
        soles = np.concatenate([foot[:, :, :2] + offset[:, i, :, :2] for i, foot in enumerate(corners)], axis=1)
        is_under = np.repeat(is_low, [foot.shape[1] for foot in corners], axis=1)
        result[:, root : root + 2] += _find_sway(robot, model, result, soles, is_under, size)
    share = np.maximum(share, smooth((is_low | is_moved).astype(np.float64), _FADE_SEC / dt))
    change = _solve_legs(robot, result, target, turn, share)
    result[:, robot.qpos_adr] += smooth(change, _FADE_SEC / dt)
    return result


def _find_still(corners: Sequence[Array], up: Array, dt: float, size: float) -> Bools:
    """(N, F) whether a foot that is low stands still, for a while: neither slides nor rolls."""
    frames, reach = np.arange(len(up)), max(1, round(_WINDOW_SEC / 2 / dt))
    first, last = np.maximum(frames - reach, 0), np.minimum(frames + reach, len(up) - 1)
    elapsed = (np.maximum(last - first, 1) * dt)[:, None]
    rate = np.linalg.norm(up[last] - up[first], axis=2) / elapsed
    ways = [np.linalg.norm((foot[last] - foot[first])[:, :, :2], axis=2).min(axis=1) for foot in corners]
    is_slow = np.stack(ways, axis=1) / elapsed < KINEMATIC_SPEED * math.sqrt(size)
    stands_still: Bools = is_slow & (rate < _TURN_RATE) & (up[:, :, 2] > _LEAST_UP)
    for i in range(stands_still.shape[1]):
        for start, stop in find_runs(stands_still[:, i]):
            # What begins or ends with the clip is half of what may have lasted longer.
            ends = (start == 0) + (stop == len(up))
            stands_still[start:stop, i] = (stop - start) * dt * (1 + ends) >= _STILL_SEC
    return stands_still


def _find_sway(robot: Robot, model: Any, qpos: Array, soles: Array, is_under: Bools, size: float) -> Array:
    """(N, 2) m, how far the root has to be from where it is for the centre of pressure to be within the standing feet.

    With the centre of mass at the height h, a sway s moves the centre of pressure by s − h/g·s̈ (the linear inverted pendulum:
    Kajita and others, ICRA 2003). That it moves by as much as it is out is a tridiagonal system: the sway begins in time.

    Args:
      soles: (N, K, 2) m, the places of the feet's corners. is_under: (N, K) whether a corner is of a foot that may stand.
    """
    count, root_q, root_v = len(qpos), robot.root_qpos_adr, robot.root_qvel_adr
    gravity = -float(model.opt.gravity[2])
    angles = np.linspace(0.0, 2.0 * np.pi, _RAYS, endpoint=False)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    excess, heights = np.zeros((count, 2)), np.empty(count)
    for frame, data in enumerate(iterate_inverse(model, qpos, robot.control_dt)):
        heights[frame] = data.subtree_com[robot.root_body, 2]
        force = data.qfrc_inverse[root_v : root_v + 3]
        if force[2] < _FREE_FALL * robot.mg or not is_under[frame].any():
            continue
        axes = data.xmat[robot.root_body].reshape(3, 3)
        # The joint's torque is in the body's frame, and about its origin.
        moment = axes @ data.qfrc_inverse[root_v + 3 : root_v + 6] + np.cross(qpos[frame, root_q : root_q + 3], force)
        points = soles[frame, is_under[frame]]
        centre = points.mean(axis=0)
        reach = np.maximum(((points - centre) @ rays.T).max(axis=0) - _MARGIN * size, 0.0)
        pressure = np.array([-moment[1], moment[0]]) / force[2] - centre
        excess[frame] = pressure - _project(pressure, rays, reach)
    excess = smooth(excess, _FADE_SEC / robot.control_dt)
    stiffness = float(np.median(heights)) / gravity / robot.control_dt**2
    diagonal, sway = np.full(count, 1.0 + 2.0 * stiffness), -excess
    diagonal[0] -= stiffness
    diagonal[-1] -= stiffness
    for frame in range(1, count):
        share = stiffness / diagonal[frame - 1]
        diagonal[frame] -= share * stiffness
        sway[frame] += share * sway[frame - 1]
    sway[-1] /= diagonal[-1]
    for frame in range(count - 2, -1, -1):
        sway[frame] = (sway[frame] + stiffness * sway[frame + 1]) / diagonal[frame]
    return sway


def _project(point: Array, rays: Array, reach: Array) -> Array:
    """(2,) a point of the polygon {x: rays · x ≤ reach} near to the given one, by going to the farthest edge in turn."""
    for _ in range(len(rays)):
        over = rays @ point - reach
        worst = int(over.argmax())
        if over[worst] <= 0.0:
            break
        point = point - over[worst] * rays[worst]
    return point


def _solve_legs(robot: Robot, qpos: Array, target: Array, turn: Array, share: Array) -> Array:
    """(N, n) rad, by which a share of the way brings each foot's body to its target.

    Args:
      target: (N, F, 3) m. turn: (N, F, 4) unit xyzw. share: (N, F) from 0 to 1.
    """
    model = robot.kinematic_model
    data, change = mujoco.MjData(model), np.zeros((len(qpos), len(robot.joint_names)))
    jacobian, error = np.zeros((2, 3, model.nv)), np.zeros(3)
    for i, foot in enumerate(robot.feet):
        joints = [
            k for k, dof in enumerate(robot.qvel_adr.tolist()) if carries_foot(model, int(model.dof_bodyid[dof]), foot.body)
        ]
        dofs, places = robot.qvel_adr[joints], robot.qpos_adr[joints]
        low, high = robot.joint_range[joints].T
        for frame in np.flatnonzero(share[:, i]).tolist():
            data.qpos[:] = qpos[frame]
            goal = rotations.to_wxyz(turn[frame, i])
            for _ in range(_ROUNDS):
                mujoco.mj_kinematics(model, data)
                mujoco.mj_comPos(model, data)
                mujoco.mj_jacBody(model, data, *jacobian, foot.body)
                mujoco.mju_subQuat(error, goal, data.xquat[foot.body])
                error = data.xmat[foot.body].reshape(3, 3) @ error
                columns = [_PLACE_WEIGHT * jacobian[0][:, dofs], jacobian[1][:, dofs], _JOINT_WEIGHT * np.eye(len(dofs))]
                offset = _PLACE_WEIGHT * (target[frame, i] - data.xpos[foot.body])
                rest = _JOINT_WEIGHT * (qpos[frame, places] - data.qpos[places])
                step = np.linalg.lstsq(np.concatenate(columns), np.concatenate([offset, error, rest]), rcond=None)[0]
                step = np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
                data.qpos[places] = np.clip(data.qpos[places] + step, low, high)
                if np.abs(step).max() < _CONVERGED:
                    break
            change[frame, joints] += share[frame, i] * (data.qpos[places] - qpos[frame, places])
    return change


def _fill(values: Array, has_value: Bools, fade: float) -> Array:
    """(N,) smoothed over `fade` frames, and where it is not has_value between those where it is; 0 where it never is."""
    if not has_value.any():
        return np.zeros(len(values))
    frames = np.arange(len(values))
    filled = np.interp(frames, frames[has_value], values[has_value])
    reach = round(fade)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(filled, reach, mode="edge"), 2 * reach + 1)
    # A median first: a foot that begins to stand, or stops, changes it at once.
    return smooth(np.median(windows, axis=1)[:, None], 2 * fade)[:, 0]
