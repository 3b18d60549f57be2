"""The state of the robot as terms see it: joints in the robot's order, bodies with places, axes and velocities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.robot import Robot

__all__ = ["RobotState"]

Array = npt.NDArray[np.float64]


class RobotState:
    """What is known of one state; `set` moves on to the next. The simulation's own data is only read.

    Attributes:
      joint_pos, joint_vel: (n,) rad and rad/s, in the robot file's order.
      root_pos: (3,) m. root_rot: (4,) xyzw, body to world.
      body_pos: (nbody, 3) m, the places of the bodies' origins in the world.
      body_axes: (nbody, 3, 3) rotation matrices, body to world.
    """

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._data = mujoco.MjData(robot.kinematic_model)

    def set(self, qpos: Array, qvel: Array) -> None:
        """Compute everything for a state (nq,), (nv,) as MuJoCo has it."""
        robot, model, data = self._robot, self._robot.kinematic_model, self._data
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        self.joint_pos, self.joint_vel = data.qpos[robot.qpos_adr], data.qvel[robot.qvel_adr]
        root = robot.root_qpos_adr
        self.root_pos = data.qpos[root : root + 3].copy()
        self.root_rot = robot.root_rotation(data.qpos)
        self.body_pos = data.xpos.copy()
        self.body_axes = data.xmat.reshape(-1, 3, 3).copy()

    def angular_velocity(self, body: int) -> Array:
        """(3,) rad/s of a body, in its own frame."""
        return self._velocity(body)[:3]

    def point_velocity(self, body: int, point: Sequence[float]) -> Array:
        """(3,) m/s of a point of a body, in the body's frame.

        Args:
          point: (3,) m, in the body's frame.
        """
        velocity = self._velocity(body)
        return velocity[3:] + np.cross(velocity[:3], np.asarray(point))

    def _velocity(self, body: int) -> Array:
        """(6,) angular and linear velocity of a body's origin, both in the body's frame."""
        result = np.empty(6)
        local = 1
        mujoco.mj_objectVelocity(self._robot.kinematic_model, self._data, mujoco.mjtObj.mjOBJ_XBODY, body, result, local)
        return result
