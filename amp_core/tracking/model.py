"""The planning model: the robot's dynamics with simple feet and a long step, for thousands of short rollouts.

It differs from the robot's own model in three ways, all for speed: each foot is one box around its channel geoms, nothing else
touches anything, and the step and the solver's iterations are coarser. What it predicts is only ever used to choose controls;
the clip itself is always simulated in the robot's own model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core import contacts
from amp_core.engine import mujoco
from amp_core.kinematics import box_corners

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale, Planner
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

_COM_SENSOR = "ampref.com_velocity"
_LOAD_SENSOR = "ampref.load."
_SOLVER_ITERATIONS = 4
_LINE_SEARCH_ITERATIONS = 8
# Measured on the bundled robot: as good as a converged solver over a planning horizon, at 0.6 of its time.


@dataclass(frozen=True, eq=False)
class PlanningModel:
    """The model and where its feet are.

    Args:
      model: an `MjModel` with the robot's `qpos`, `qvel` and `ctrl`; a sensor tells the velocity of the robot's
        centre of mass in world axes [m/s].
      substeps: physics steps a control step.
      com_velocity: first of its three columns in `sensordata`.
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
      PhysicsFailed: the model file is not what it was when the robot was loaded.
    """
    source = robot.scaled_model(physics)

    def add(spec: Any, geoms: Mapping[int, str], bodies: Mapping[int, str]) -> None:
        of, body = mujoco.mjtSensor.mjSENS_SUBTREELINVEL, mujoco.mjtObj.mjOBJ_BODY
        spec.add_sensor(name=_COM_SENSOR, type=of, objtype=body, objname=bodies[robot.root_body])
        for foot in robot.feet:
            contacts.add_force_sensor(spec, f"{_LOAD_SENSOR}{foot.body}", geoms[robot.ground_geom], geoms[foot.geoms[0]])

    model = contacts.replace_sensors(robot, source, add)
    soles = []
    for foot in robot.feet:
        low, high = _bounds(model, foot.geoms)
        sole = foot.geoms[0]
        size = (high - low) / 2
        model.geom_type[sole] = mujoco.mjtGeom.mjGEOM_BOX
        model.geom_dataid[sole] = -1
        model.geom_size[sole] = size
        model.geom_pos[sole] = (low + high) / 2
        model.geom_quat[sole] = (1.0, 0.0, 0.0, 0.0)
        model.geom_aabb[sole] = (0.0, 0.0, 0.0, *size)
        model.geom_rbound[sole] = np.linalg.norm(size)
        model.geom_sameframe[sole] = int(mujoco.mjtSameFrame.mjSAMEFRAME_NONE)
        soles.append(sole)
    others = np.ones(model.ngeom, dtype=bool)
    others[[*soles, robot.ground_geom]] = False
    model.geom_contype[others] = 0
    model.geom_conaffinity[others] = 0

    # The longest step that divides a control step and is no longer than asked for, but never finer than the robot's own.
    model.opt.timestep = max(robot.sim_dt, robot.control_dt / math.ceil(robot.control_dt / settings.step_sec - 1e-9))
    model.opt.iterations = min(model.opt.iterations, _SOLVER_ITERATIONS)
    model.opt.ls_iterations = min(model.opt.ls_iterations, _LINE_SEARCH_ITERATIONS)
    # Boxes that were changed by hand are not in the tree that the mid-phase would search.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return PlanningModel(
        model=model,
        substeps=round(robot.control_dt / model.opt.timestep),
        com_velocity=int(model.sensor(_COM_SENSOR).adr[0]),
        loads=np.array([int(model.sensor(f"{_LOAD_SENSOR}{foot.body}").adr[0]) + 2 for foot in robot.feet], dtype=np.int64),
        soles=np.array(soles, dtype=np.int64),
    )


def _bounds(model: Any, geoms: tuple[int, ...]) -> tuple[Array, Array]:
    """The corners, in their body's frame, of the box around some geoms."""
    corners = box_corners(model, geoms)
    return corners.min(axis=0), corners.max(axis=0)
