"""The controls that would hold a clip's motion if nothing disturbed it: the first guess of a plan for a soft robot.

A servo pushes only while its joint is off the target. A soft one that carries a leg's load is off by tenths of a radian, so
that the clip's own angles let the robot sink. Here the target is as far beyond the angle as the motion needs torque: by inverse
dynamics, with the ground's forces on the standing soles that balance the root with the least squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.robot import Robot
from amp_core.tracking.inverse import iterate_inverse, smooth

Array = npt.NDArray[np.float64]

_SMOOTH_SEC = 0.1  # of the mean over torques

_SIDEWAYS = 0.3  # weight of a horizontal force of a sole against that of a vertical one
_BALANCE = 1e-4  # of all that the forces can do: where they cannot balance the root they come near to it


def compute_controls(robot: Robot, model: Any, qpos: Array, soles: npt.NDArray[np.int64], standing: Array) -> Array:
    """(N, n) rad, the servos' targets in the order of `joint_names`.

    Args:
      model: the planning model, whose boxes are the soles.
      qpos: (N, nq) the clip's poses, a control step apart.
      soles: (F,) geom ids of boxes.
      standing: (N, F) from 0 to 1, how far each foot stands.
    """
    joints, root = robot.qvel_adr, slice(robot.root_qvel_adr, robot.root_qvel_adr + 6)
    corners = _list_corners(model, soles)
    dt, count = robot.control_dt, len(qpos)
    torque, speed = np.empty((count, len(joints))), np.empty((count, len(joints)))
    jacobian = np.empty((len(corners) * 4, 3, model.nv))
    for frame, data in enumerate(iterate_inverse(model, qpos, dt)):
        speed[frame] = data.qvel[joints]
        wrench = data.qfrc_inverse.copy()
        for k, (geom, points) in enumerate(corners):
            axes = data.geom_xmat[geom].reshape(3, 3)
            for i, point in enumerate(data.geom_xpos[geom] + points @ axes.T):
                mujoco.mj_jac(model, data, jacobian[4 * k + i], None, point, int(model.geom_bodyid[geom]))
        columns = jacobian.reshape(-1, model.nv).T
        forces = _balance(columns[root], wrench[root], np.repeat(standing[frame], 4))
        torque[frame] = wrench[joints] - columns[joints] @ forces
    limit = robot.force_limit
    torque = np.clip(smooth(torque, _SMOOTH_SEC / dt), -limit, limit)
    kp = model.actuator_gainprm[robot.ctrl_adr, 0]
    kd = -model.actuator_biasprm[robot.ctrl_adr, 2]
    return np.asarray(qpos[:, robot.qpos_adr] + (torque + kd * speed) / kp)


def _balance(columns: Array, wrench: Array, standing: Array) -> Array:
    """(3·K,) N, forces at K points that come near to a wrench on the root, with the least squares and none that pulls.

    Args:
      columns: (6, 3·K) the wrench of a unit of each force.
      standing: (K,) from 0 to 1; a point that does not stand gives no force.
    """
    weights = np.repeat(standing, 3) * np.tile([_SIDEWAYS, _SIDEWAYS, 1.0], len(standing))
    forces = np.zeros(len(weights))
    for _ in range(len(standing)):
        gram = (columns * weights) @ columns.T
        if not np.trace(gram) > 0.0:
            return np.zeros(len(weights))  # in flight
        forces = weights * (columns.T @ np.linalg.solve(gram + _BALANCE * np.trace(gram) * np.eye(6), wrench))
        pulling = forces[2::3] < 0.0
        if not pulling.any():
            break
        weights[np.repeat(pulling, 3)] = 0.0
    return forces


def _list_corners(model: Any, soles: npt.NDArray[np.int64]) -> list[tuple[int, Array]]:
    """Of each sole's box the (4, 3) m corners of its bottom, in the box's frame."""
    signs = np.array([[1, 1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, -1]], dtype=np.float64)
    return [(int(geom), signs * model.geom_size[geom]) for geom in soles]
