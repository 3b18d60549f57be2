"""The planner's reference: the clip's poses, its feet, and which of them stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core.kinematics import FootTracker, geom_poses, kinematic_contacts
from amp_core.motion import Conditioned
from amp_core.robot import Robot
from amp_core.rotations import x_axis, z_axis
from amp_core.tracking.model import PlanningModel

Array = npt.NDArray[np.float64]

_CLEARANCE = 0.012
"""m; the least height of a swinging foot, so that it does not scuff where the clip's own feet hardly lift."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A clip in the planner's terms: N frames, n joints, F feet.

    Args:
      dof_pos: (N, n) rad. root_pos: (N, 3) m. up, forward: (N, 3) the root's z and x axes in the world.
      soles: (N, F, 3) m, the centres of the soles' boxes when the planning model reports them, one physics step before the
        end of the frame.
      standing: (N, F) from 0 to 1, how far this foot stands: its kinematic contact, smoothed over three frames.
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
    def of(cls, robot: Robot, clip: Conditioned, planning: PlanningModel) -> Reference:
        qpos = clip.qpos(robot)
        soles = geom_poses(planning.model, planning.soles, qpos)[0]
        early = soles.copy()
        early[1:] += (soles[:-1] - soles[1:]) / planning.substeps
        contact = kinematic_contacts(robot, qpos).astype(np.float64)
        standing = contact.copy()
        standing[1:-1] = (contact[:-2] + contact[1:-1] + contact[2:]) / 3
        return cls(
            dof_pos=clip.dof_pos,
            root_pos=clip.root_pos,
            up=z_axis(clip.root_rot),
            forward=x_axis(clip.root_rot),
            soles=early,
            standing=standing,
            clearance=np.maximum(FootTracker(robot, size=len(qpos)).heights(qpos), _CLEARANCE),
        )
