"""The planner's reference: the clip's poses, its feet, and which of them stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core.footing import Footing
from amp_core.kinematics import FootTracker, geom_poses, kinematic_contacts
from amp_core.motion import Conditioned
from amp_core.robot import Robot
from amp_core.rotations import x_axis, z_axis
from amp_core.tracking.feedforward import compute_controls
from amp_core.tracking.footholds import stand_feet
from amp_core.tracking.model import PlanningModel
from amp_core.tracking.scaling import Scaling

Array = npt.NDArray[np.float64]

_CLEARANCE = 0.012
"""m, of a robot like WildRobot: the least height of a swinging foot, so that it does not scuff where the clip's own feet hardly
lift."""


_FLIGHT_SHARE = 0.15
"""Of the frames: a clip that flies in more runs or jumps. In others a flight is a fault of the recording."""

_FLIGHT_SEC = 0.06
"""Before and after a flight, in which the robot pushes off and lands."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A clip in the planner's terms: N frames, n joints, F feet.

    Args:
      dof_pos, controls: (N, n) rad, the clip's angles, and the servos' targets that a plan begins with. The poses of a robot of
        many joints are on feet that stand (`footholds.stand_feet`), those of another one the clip's own.
      root_pos: (N, 3) m. up, forward: (N, 3) the root's z and x axes in the world.
      soles: (N, F, 3) m, the centres of the soles' boxes when the planning model reports them, one physics step before the
        end of the frame.
      standing: (N, F) from 0 to 1, how far this foot stands: its kinematic contact, smoothed over three frames.
      clearance: (N, F) m, the least height of a swinging foot's lowest corner.
      carried: (N,) 1 where the ground is to carry the weight; 0 in the flights of a clip that runs or jumps, and about them.
    """

    dof_pos: Array
    controls: Array
    root_pos: Array
    up: Array
    forward: Array
    soles: Array
    standing: Array
    clearance: Array
    carried: Array

    @property
    def frames(self) -> int:
        return len(self.dof_pos)

    @classmethod
    def of(cls, robot: Robot, clip: Conditioned, planning: PlanningModel, scaling: Scaling) -> Reference:
        qpos = clip.qpos(robot)
        in_flight, reach = Footing.of(robot, qpos).in_flight, round(_FLIGHT_SEC / robot.control_dt)
        flies = in_flight.mean() > _FLIGHT_SHARE
        if scaling.has_many:
            qpos = stand_feet(robot, planning.model, qpos, scaling.size, in_flight, sways=not flies)
        soles = geom_poses(planning.model, planning.soles, qpos)[0]
        early = soles.copy()
        early[1:] += (soles[:-1] - soles[1:]) / planning.substeps
        contact = kinematic_contacts(robot, qpos, scaling.size).astype(np.float64)
        standing = contact.copy()
        standing[1:-1] = (contact[:-2] + contact[1:-1] + contact[2:]) / 3
        is_airborne = np.convolve(in_flight & flies, np.ones(2 * reach + 1), "same") > 0
        dof_pos, root = qpos[:, robot.qpos_adr], robot.root_qpos_adr
        rotation = robot.root_rotation(qpos)
        controls = compute_controls(robot, planning.model, qpos, planning.soles, standing) if scaling.is_soft else dof_pos
        return cls(
            dof_pos=dof_pos,
            controls=controls,
            root_pos=qpos[:, root : root + 3],
            up=z_axis(rotation),
            forward=x_axis(rotation),
            soles=early,
            standing=standing,
            clearance=np.maximum(FootTracker(robot, size=len(qpos)).heights(qpos), _CLEARANCE * scaling.size),
            carried=(~is_airborne).astype(np.float64),
        )
