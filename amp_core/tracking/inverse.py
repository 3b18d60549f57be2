"""Inverse dynamics of a clip: what moves its root and its joints.

The method is that of Featherstone, Rigid Body Dynamics Algorithms, 2008, chapter 9.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco

Array = npt.NDArray[np.float64]

_SMOOTH_SEC = 0.1
"""Of the means over velocities and accelerations: a clip's own second differences are mostly noise."""


def iterate_inverse(model: Any, qpos: Array, dt: float) -> Iterator[Any]:
    """Yields one `MjData` for each pose (N, nq), `dt` s apart, with the generalized force of its motion in `qfrc_inverse`.

    Nothing touches anything: what the ground does is in the root's part of that force.
    """
    model, bits = copy.copy(model), mujoco.mjtDisableBit
    model.opt.disableflags |= int(bits.mjDSBL_CONSTRAINT) | int(bits.mjDSBL_CONTACT) | int(bits.mjDSBL_SENSOR)
    count = len(qpos)
    velocity = np.zeros((count, model.nv))
    for frame in range(1, count):
        mujoco.mj_differentiatePos(model, velocity[frame], dt, qpos[frame - 1], qpos[frame])
    velocity[0] = velocity[min(1, count - 1)]
    velocity = smooth(velocity, _SMOOTH_SEC / dt)
    acceleration = smooth(np.gradient(velocity, dt, axis=0) if count > 1 else np.zeros_like(velocity), _SMOOTH_SEC / dt)
    data = mujoco.MjData(model)
    for frame in range(count):
        data.qpos[:], data.qvel[:], data.qacc[:] = qpos[frame], velocity[frame], acceleration[frame]
        mujoco.mj_inverse(model, data)
        yield data


def smooth(values: Array, width: float) -> Array:
    """(N, k) the mean over so many frames about each, and over what there is of them at the ends."""
    reach = max(0, round(width / 2))
    padded = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return np.asarray((padded[last] - padded[first]) / (last - first)[:, None])
