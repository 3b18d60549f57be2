"""What the planner compares with: the clip's poses, its feet, and which of them it means to stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from amp_core.contacts import FootTracker, kinematic_contacts
from amp_core.engine import mujoco

if TYPE_CHECKING:
    from amp_core.motion import Conditioned
    from amp_core.robot import Robot
    from amp_core.tracking.model import PlanningModel

Array = npt.NDArray[np.float64]

_CLEARANCE = 0.012
"""m; a swinging foot is asked to keep at least this height, so that it does not scuff where the clip's own feet hardly lift."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A clip as the planner sees it: N frames, n joints, F feet.

    Args:
      dof_pos: (N, n) rad. root_pos: (N, 3) m. up, forward: (N, 3) the root's z and x axes in the world.
      soles: (N, F, 3) m, the centres of the soles' boxes when the planning model reports them, one physics step before the
        end of the frame.
      standing: (N, F) from 0 to 1, how much the clip means this foot to stand: its kinematic contact, smoothed over three
        frames.
      clearance: (N, F) m, the least height of a swinging foot's lowest corner.
    """

    dof_pos: Array
    root_pos: Array
    up: Array
    forward: Array
    soles: Array
    standing: Array
    clearance: Array

    @property
    def frames(self) -> int:
        return len(self.dof_pos)

    @classmethod
    def of(cls, robot: Robot, motion: Conditioned, planning: PlanningModel) -> Reference:
        qpos = motion.qpos(robot)
        data = mujoco.MjData(planning.model)
        soles = np.empty((len(qpos), len(planning.soles), 3))
        for k, row in enumerate(qpos):
            data.qpos[:] = row
            mujoco.mj_kinematics(planning.model, data)
            soles[k] = data.geom_xpos[planning.soles]
        early = soles.copy()
        early[1:] += (soles[:-1] - soles[1:]) / planning.substeps
        contact = kinematic_contacts(robot, qpos).astype(np.float64)
        standing = contact.copy()
        standing[1:-1] = (contact[:-2] + contact[1:-1] + contact[2:]) / 3
        up, forward = rotation_axes(motion.root_rot[:, [3, 0, 1, 2]])
        return cls(
            dof_pos=motion.dof_pos,
            root_pos=motion.root_pos,
            up=up,
            forward=forward,
            soles=early,
            standing=standing,
            clearance=np.maximum(FootTracker(robot, size=len(qpos)).heights(qpos), _CLEARANCE),
        )


def rotation_axes(quat_wxyz: Array) -> tuple[Array, Array]:
    """(…, 3) the z and the x axis, in the world, of the frames that (…, 4) unit quaternions give."""
    w, x, y, z = np.moveaxis(quat_wxyz, -1, 0)
    up = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=-1)
    forward = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=-1)
    return up, forward
