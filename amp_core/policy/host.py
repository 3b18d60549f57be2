"""Observations in numpy, and the checks of the states that they are made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amp_core.features import body_to_world, rotation_matrix, world_to_heading
from amp_core.policy.config import AMPFeatureConfig, select_columns
from amp_core.rotations import to_xyzw


def observe_host(
    config: AMPFeatureConfig, qpos: npt.ArrayLike, qvel: npt.ArrayLike, prev_action: npt.ArrayLike | None = None
) -> npt.NDArray[np.float32]:
    """`observe` in numpy: float64 by the functions of `amp_core.features`, and rounded once.

    Features of these observations are the reference's features, bit for bit. Arguments and errors are those of `observe`.
    """
    pos, vel = np.asarray(qpos, np.float64), np.asarray(qvel, np.float64)
    lead = check_state(config, pos.shape, vel.shape)
    action = np.zeros((*lead, config.nu)) if prev_action is None else np.asarray(prev_action, np.float32)
    check_action(config, action.shape, lead)
    root_q, root_v = config.root_qpos_adr, config.root_qvel_adr
    rotation = to_xyzw(pos[..., root_q + 3 : root_q + 7])
    angular = body_to_world(rotation, vel[..., root_v + 3 : root_v + 6])
    parts = [
        rotation_matrix(rotation)[..., 2, :],
        world_to_heading(rotation, angular),
        world_to_heading(rotation, vel[..., root_v : root_v + 3]),
        select_columns(pos, config.joint_qpos_adr),
        select_columns(vel, config.joint_qvel_adr),
        action,
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def check_state(config: AMPFeatureConfig, qpos: tuple[int, ...], qvel: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of states of these shapes.

    Raises:
      ValueError: they are not (…, nq) and (…, nv).
    """
    lead = qpos[:-1]
    if not qpos or qpos[-1] != config.nq or qvel != (*lead, config.nv):
        raise ValueError(
            f"qpos is {qpos} and qvel {qvel}; expected (…, {config.nq}) and (…, {config.nv}) with the same leading axes, "
            f"for the robot {config.robot!r}"
        )
    return lead


def check_action(config: AMPFeatureConfig, action: tuple[int, ...], lead: tuple[int, ...]) -> None:
    """Check the shape of a previous action.

    Raises:
      ValueError: it is not (…, nu).
    """
    expected = (*lead, config.nu)
    if action != expected:
        raise ValueError(f"prev_action is {action}; expected {expected}, as the leading axes of qpos are {lead}")
