"""The replay certificate: a rollout's controls alone reproduce its states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.errors import PhysicsFailed
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout.record import Rollout

Array = npt.NDArray[np.float64]


def replay(robot: Robot, rollout: Rollout | Mapping[str, npt.NDArray[Any]], recipe: Recipe) -> tuple[Array, Array]:
    """Run the recorded controls again, from a fresh `MjData`, on the robot's own model.

    The data starts at `initial_qpos` and `initial_qvel`. Every row k writes `forced_qpos[k]` into `qpos` where the rollout has
    it, sets `ctrl` and the root's vertical `qfrc_applied`, and steps `substeps` times. The **replay certificate** is that the
    result equals the recorded `qpos` and `qvel` bit for bit.

    Args:
      rollout: a rollout, or the arrays of its export.
      recipe: of the rollout, for its physics scale.

    Returns:
      (N, nq) and (N, nv).

    Raises:
      PhysicsFailed: an array is missing.
    """
    arrays = rollout if isinstance(rollout, Mapping) else rollout.arrays()
    needed = ("initial_qpos", "initial_qvel", "ctrl", "stab_force")
    for key in (*needed, *(("forced_qpos",) if recipe.mode == "teacher_forced" else ())):
        if key not in arrays:
            raise PhysicsFailed("the export lacks an array that the replay needs", key=key, expected=", ".join(needed))
    model = robot.scaled_model(recipe.physics)
    data = mujoco.MjData(model)
    data.qpos[:] = arrays["initial_qpos"]
    data.qvel[:] = arrays["initial_qvel"]
    forced = arrays.get("forced_qpos")
    rows = len(arrays["ctrl"])
    qpos, qvel = np.empty((rows, model.nq)), np.empty((rows, model.nv))
    for k in range(rows):
        if forced is not None:
            data.qpos[:] = forced[k]
        data.ctrl[:] = arrays["ctrl"][k]
        data.qfrc_applied[robot.root_qvel_adr + 2] = arrays["stab_force"][k]
        mujoco.mj_step(model, data, nstep=robot.substeps)
        qpos[k], qvel[k] = data.qpos, data.qvel
    return qpos, qvel
