"""The harness: a vertical force on the root. The rollout applies it, and the planner of mode `assisted` expects it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amp_core.recipe import Harness, Recipe
from amp_core.rotations import pitch_roll_of_frame, pitch_roll_tilt

__all__ = ["harness_force", "harness_forces", "harness_targets"]

Array = npt.NDArray[np.float64]


def harness_targets(root_pos: Array, recipe: Recipe) -> Array:
    """(N,) m, the height that the harness holds the root to: the clip's mean or, in mode `assisted`, that of each frame.

    Args:
      root_pos: (N, 3) m, the clip's.
    """
    heights: Array = root_pos[:, 2]
    return heights.copy() if recipe.mode == "assisted" else np.full(len(heights), float(heights.mean()))


def harness_force(harness: Harness, target: float, height: float, velocity: float, quat_wxyz: Sequence[float]) -> float:
    """N, the vertical force on the root for one control step; positive is up.

    `clip(kp·(target − height) − kd·velocity, ±cap)`, and 0 while |pitch| or |roll| is at the gate or beyond. Plain floats and
    libm on purpose: numpy's vector kernels may round differently in batches of another size.

    Args:
      target, height: m. velocity: m/s, vertical.
    """
    if harness.is_off:
        return 0.0
    gate, cap = harness.orient_gate, harness.force_cap
    pitch, roll = pitch_roll_of_frame(quat_wxyz)
    if not (-gate < pitch < gate and -gate < roll < gate):
        return 0.0
    force = harness.height_kp * (target - height) - harness.height_kd * velocity
    return force if cap is None else min(max(force, -cap), cap)


def harness_forces(harness: Harness, target: float, height: Array, velocity: Array, rotation: Array) -> Array:
    """(S,) N, `harness_force` of many robots, up to rounding: for the planner's simulations.

    Args:
      height, velocity: (S,) m and m/s. rotation: (S, 4) of the roots, xyzw.
    """
    pitch, roll, _ = pitch_roll_tilt(rotation)
    force = harness.height_kp * (target - height) - harness.height_kd * velocity
    if harness.force_cap is not None:
        force = np.clip(force, -harness.force_cap, harness.force_cap)
    acts = (np.abs(pitch) < harness.orient_gate) & (np.abs(roll) < harness.orient_gate)
    return np.where(acts, force, 0.0)
