"""The planning model: the robot's dynamics with simple feet and a long step, for thousands of short rollouts.

It differs from the robot's own model in three ways, all for speed: each foot is one box around its channel geoms, nothing else
touches anything, and the step and the solver's iterations are coarser. Its predictions only choose controls; the clip itself is
always simulated in the robot's own model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core import contacts
from amp_core.engine import mujoco
from amp_core.kinematics import box_corners
from amp_core.recipe import PhysicsScale, Planner
from amp_core.robot import Robot
from amp_core.tracking.scaling import STEP_SHARE

Array = npt.NDArray[np.float64]

_COM_SENSOR = "ampref.com_velocity"
_LOAD_SENSOR = "ampref.load."
# Measured on the bundled robot: as good as a converged solver over a planning horizon, at 0.6 of its time.
_SOLVER_ITERATIONS = 4
_LINE_SEARCH_ITERATIONS = 8
_ROUND = (int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE))
_LEAST_SHARE = 0.3  # of a sole's box that is left where it is round altogether, as a point foot is


@dataclass(frozen=True, eq=False)
class PlanningModel:
    """The model, its sensors and its feet.

    Args:
      model: an `MjModel` with the robot's `qpos`, `qvel` and `ctrl`.
      substeps: physics steps a control step.
      com_velocity: the first of three columns of `sensordata` with the velocity of the robot's centre of mass [m/s, world].
      loads: (F,) columns of `sensordata` with the ground's vertical force on each sole [N].
      soles: (F,) geom ids of the boxes, one a foot, in the order of `robot.feet`.
    """

    model: Any
    substeps: int
    com_velocity: int
    loads: npt.NDArray[np.int64]
    soles: npt.NDArray[np.int64]


def planning_model(robot: Robot, physics: PhysicsScale, settings: Planner) -> PlanningModel:
    """Build the planning model of a robot at a physics scale.

    Raises:
      PhysicsFailed: the model file has changed since the robot was loaded.
    """
    source = robot.scaled_model(physics)

    def add(spec: Any, geoms: Mapping[int, str], bodies: Mapping[int, str]) -> None:
        kind, body = mujoco.mjtSensor.mjSENS_SUBTREELINVEL, mujoco.mjtObj.mjOBJ_BODY
        spec.add_sensor(name=_COM_SENSOR, type=kind, objtype=body, objname=bodies[robot.root_body])
        for foot in robot.feet:
            contacts.add_force_sensor(spec, f"{_LOAD_SENSOR}{foot.body}", geoms[robot.ground_geom], geoms[foot.geoms[0]])

    model = contacts.replace_sensors(robot, source, add)
    soles = [foot.geoms[0] for foot in robot.feet]
    for sole, foot in zip(soles, robot.feet, strict=True):
        low, high = _bound_sole(model, foot.geoms)
        size = (high - low) / 2
        model.geom_type[sole] = mujoco.mjtGeom.mjGEOM_BOX
        model.geom_dataid[sole] = -1
        model.geom_size[sole] = size
        model.geom_pos[sole] = (low + high) / 2
        model.geom_quat[sole] = (1.0, 0.0, 0.0, 0.0)
        model.geom_aabb[sole] = (0.0, 0.0, 0.0, *size)
        model.geom_rbound[sole] = np.linalg.norm(size)
        model.geom_sameframe[sole] = int(mujoco.mjtSameFrame.mjSAMEFRAME_NONE)
    inert = np.ones(model.ngeom, dtype=bool)
    inert[[*soles, robot.ground_geom]] = False
    model.geom_contype[inert] = 0
    model.geom_conaffinity[inert] = 0

    # The longest step that divides a control step, is within the setting and follows the servos, but never finer than the
    # robot's own.
    longest = min(settings.step_sec, STEP_SHARE / float(robot.servo_frequency.max()))
    model.opt.timestep = max(robot.sim_dt, robot.control_dt / math.ceil(robot.control_dt / longest - 1e-9))
    model.opt.iterations = min(model.opt.iterations, _SOLVER_ITERATIONS)
    model.opt.ls_iterations = min(model.opt.ls_iterations, _LINE_SEARCH_ITERATIONS)
    # The tree that the mid-phase searches does not know the new boxes.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return PlanningModel(
        model=model,
        substeps=round(robot.control_dt / model.opt.timestep),
        com_velocity=int(model.sensor(_COM_SENSOR).adr[0]),
        loads=np.array([int(model.sensor(f"{_LOAD_SENSOR}{foot.body}").adr[0]) + 2 for foot in robot.feet], dtype=np.int64),
        soles=np.array(soles, dtype=np.int64),
    )


def _bound_sole(model: Any, geoms: tuple[int, ...]) -> tuple[Array, Array]:
    """(3,) and (3,) m, the corners of the box that stands for a sole, in the frame of its body, whose z axis is up.

    It is as high as the geoms, and as long and wide as what of them can touch a flat floor: a round edge cannot.
    """
    corners = box_corners(model, geoms)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if all(model.geom_type[geom] in _ROUND for geom in geoms):
        radius = min(float(model.geom_size[geom, 0]) for geom in geoms)
        rounding = np.minimum([radius, radius, 0.0], (1.0 - _LEAST_SHARE) * (high - low) / 2)
        low, high = low + rounding, high - rounding
    return low, high
