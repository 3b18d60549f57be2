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
from amp_core.tracking.flight import find_falls, find_mass_height
from amp_core.tracking.footholds import stand_feet
from amp_core.tracking.inverse import smooth
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

_LEAP_SEC = 0.4
_LEAP_WEIGHT = 15.0
"""More than elsewhere that the root's height weighs so long before and after a flight: what a jump lacks in speed when it
leaves the ground cannot be made up for in the air."""

_SMOOTH_SEC = 0.06  # of the means over the course of the root and of the centre of mass


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
      carried: (N,) 1 where the ground is to carry the load below; 0 in the flights of a clip that runs or jumps, and about
        them.
      load: (N,) the force of the ground on the robot over its weight. rise: (N,) m/s, the upward speed of its root. For a robot
        of many joints those of its poses, for another one 1 and 0.
      height_weight: (N,) factor on the weight of the root's height.
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
    load: Array
    rise: Array
    height_weight: Array

    @property
    def frames(self) -> int:
        return len(self.dof_pos)

    @classmethod
    def of(cls, robot: Robot, clip: Conditioned, planning: PlanningModel, scaling: Scaling) -> Reference:
        qpos, dt, root = clip.qpos(robot), robot.control_dt, robot.root_qpos_adr
        in_flight = Footing.of(robot, qpos).in_flight
        flies = bool(in_flight.mean() > _FLIGHT_SHARE)
        is_airborne = _widen(in_flight & flies, _FLIGHT_SEC / dt)
        load, rise, height_weight = np.ones(len(qpos)), np.zeros(len(qpos)), np.ones(len(qpos))
        if scaling.has_many:
            model, gravity, width = planning.model, -float(planning.model.opt.gravity[2]), _SMOOTH_SEC / dt
            mass_height = find_mass_height(robot, qpos)
            falls = find_falls(mass_height, in_flight, dt, gravity)
            qpos = stand_feet(robot, model, qpos, scaling.size, falls, mass_height, sways=not flies)
            # With a load and a speed to follow, flights are nothing to be left out.
            is_airborne[:] = False
            course = smooth(np.stack([find_mass_height(robot, qpos), qpos[:, root + 2]], axis=1), width)
            speed = np.gradient(course, dt, axis=0)
            load = np.maximum(0.0, 1.0 + smooth(np.gradient(speed[:, :1], dt, axis=0), width)[:, 0] / gravity)
            rise = speed[:, 1]
            height_weight += _LEAP_WEIGHT * smooth(_widen(falls, _LEAP_SEC / dt)[:, None].astype(np.float64), 0.1 / dt)[:, 0]
        soles = geom_poses(planning.model, planning.soles, qpos)[0]
        early = soles.copy()
        early[1:] += (soles[:-1] - soles[1:]) / planning.substeps
        contact = kinematic_contacts(robot, qpos, scaling.size).astype(np.float64)
        standing = contact.copy()
        standing[1:-1] = (contact[:-2] + contact[1:-1] + contact[2:]) / 3
        dof_pos = qpos[:, robot.qpos_adr]
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
            load=load,
            rise=rise,
            height_weight=height_weight,
        )


def _widen(flags: npt.NDArray[np.bool_], reach: float) -> npt.NDArray[np.bool_]:
    """(N,) whether a flag is set within so many frames."""
    return np.asarray(np.convolve(flags, np.ones(2 * round(reach) + 1))[round(reach) : len(flags) + round(reach)] > 0)
