"""The usual faults of feature code, recognized by their effect on given states.

When features are not those of the states, each of their blocks is compared with what the usual faults would have made of those
states: velocities in another frame, quaternions in another order, a lag of one frame, finite differences, columns in another
order, degrees, a wrong sign. The fault whose effect fits is named; where none fits, nothing is claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.features import body_to_world, world_to_heading
from amp_core.rotations import to_xyzw
from amp_core.verify.states import compute_features, finite_differences

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

_MAX_RESIDUAL = 0.02
"""The share of an error, root mean square, that a fault may leave unexplained and still fit."""

_FLOOR = 1e-5
"""Root mean square error below which there is nothing to explain."""

LAG = "lag of one frame: row k holds what belongs to frame k - 1"
LEAD = "one frame early: row k holds what belongs to frame k + 1"
DIFFERENCES = "the features are the finite differences of qpos, not the true qvel"
NOT_TURNED = "left in the world frame: it was not turned to the heading frame"
BODY_AS_WORLD = "qvel[3:6] was taken for a world-frame vector, but a free joint's angular velocity is in the body frame"
BODY = "left in the body frame"
QUATERNION = "the quaternion is wxyz and was read as xyzw"
QUATERNION_BACK = "the quaternion was xyzw already where wxyz is expected"
DEGREES = "in degrees where radians belong"
RADIANS_TWICE = "converted to radians twice"


def name_faults(
    robot: Robot, features: npt.NDArray[Any], qpos: Array, qvel: Array, start: Array, contacts: npt.NDArray[Any]
) -> list[str]:
    """The faults of one clip's features, in words; empty where there are none, or where no usual fault explains them.

    Args:
      features: (N, F) the features in question.
      qpos, qvel, contacts: (N, …) the states and contacts that they should have been computed from.
      start: (N, nq) the pose at the start of each frame.
    """
    actual = np.asarray(features, dtype=np.float64)
    expected = compute_features(robot, qpos, qvel, contacts).astype(np.float64)
    unknown = np.full((1, expected.shape[1]), np.nan)
    of_all_blocks = {
        LAG: np.concatenate([unknown, expected[:-1]]),
        LEAD: np.concatenate([expected[1:], unknown]),
        DIFFERENCES: compute_features(robot, qpos, finite_differences(robot, start, qpos), contacts).astype(np.float64),
    }
    faults: dict[str, list[str]] = {}
    for block in robot.layout.blocks:
        columns = block.slice
        error = _rms(actual[:, columns] - expected[:, columns])
        if not error > _FLOOR:
            continue
        guesses = {fault: values[:, columns] for fault, values in of_all_blocks.items()}
        guesses |= _guess_block(robot, block.name, expected[:, columns], qpos, qvel)
        least, best_fault = np.inf, ""
        for fault, values in guesses.items():
            rows = ~np.isnan(values).any(axis=1)  # A lag does not determine the first row.
            residual = _rms(actual[rows][:, columns] - values[rows])
            if residual < least:
                least, best_fault = residual, fault
        if not least <= _MAX_RESIDUAL * error:
            best_fault = _name_column_fault(actual[:, columns], expected[:, columns], robot.layout.names[columns])
        if best_fault:
            faults.setdefault(best_fault, []).append(block.name)
    return [f"{', '.join(blocks)}: {fault}" for fault, blocks in faults.items()]


def _guess_block(robot: Robot, name: str, expected: Array, qpos: Array, qvel: Array) -> dict[str, Array]:
    """What the faults that concern one block would have made of it."""
    q, v = robot.root_qpos_adr, robot.root_qvel_adr
    wxyz = qpos[:, q + 3 : q + 7]
    xyzw = to_xyzw(wxyz)
    reordered_twice = to_xyzw(xyzw)
    linear, angular = qvel[:, v : v + 3], qvel[:, v + 3 : v + 6]
    if name == "root_lin_vel":
        return {
            NOT_TURNED: linear,
            QUATERNION: world_to_heading(wxyz, linear),
            QUATERNION_BACK: world_to_heading(reordered_twice, linear),
        }
    if name == "root_ang_vel":
        return {
            BODY_AS_WORLD: world_to_heading(xyzw, angular),
            BODY: angular,
            NOT_TURNED: body_to_world(xyzw, angular),
            QUATERNION: world_to_heading(wxyz, body_to_world(wxyz, angular)),
            QUATERNION_BACK: world_to_heading(reordered_twice, body_to_world(reordered_twice, angular)),
            DEGREES: np.degrees(expected),
        }
    if name in ("joint_pos", "joint_vel"):
        return {DEGREES: np.degrees(expected), RADIANS_TWICE: np.radians(expected)}
    return {}


def _name_column_fault(actual: Array, expected: Array, names: tuple[str, ...]) -> str:
    """Columns in another order or with another sign, or the columns that are wrong in some other way."""

    def fits(i: int, guess: Array) -> bool:
        return _rms(actual[:, i] - guess) <= _MAX_RESIDUAL * _rms(actual[:, i] - expected[:, i])

    wrong = [i for i in range(len(names)) if _rms(actual[:, i] - expected[:, i]) > _FLOOR]
    parts = [name.partition(".")[2] for name in names]
    matches = {i: [j for j in range(len(names)) if fits(i, expected[:, j])] for i in wrong}
    if len(wrong) > 1 and all(matches[i] for i in wrong):
        source = {i: next((j for j in matches[i] if j in wrong), matches[i][0]) for i in wrong}
        if len(wrong) == 2 and source[wrong[0]] == wrong[1] and source[wrong[1]] == wrong[0]:
            return f"{parts[wrong[0]]} and {parts[wrong[1]]} look swapped"
        return "columns in another order: " + ", ".join(f"{parts[i]} holds {parts[j]}" for i, j in source.items())
    if wrong and all(fits(i, -expected[:, i]) for i in wrong):
        return f"the sign of {', '.join(parts[i] for i in wrong)} is turned round"
    if wrong and len(wrong) < len(names):
        return f"{', '.join(parts[i] for i in wrong)} differ, in a way that no usual fault explains"
    return ""


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean())) if values.size else 0.0


def name_velocity_fault(robot: Robot, actual: Array, expected: Array, qpos: Array, start: Array) -> str:
    """What a recorded `qvel` (N, nv) is instead of the simulation's (N, nv); empty where they agree or no usual fault fits."""
    if np.array_equal(actual, expected):
        return ""
    error = _rms(actual - expected)
    guesses = {
        "the recorded qvel is the finite differences of qpos": (actual, finite_differences(robot, start, qpos)),
        "the recorded qvel has a lag of one frame": (actual[1:], expected[:-1]),
        "the recorded qvel is one frame early": (actual[:-1], expected[1:]),
        "the recorded qvel is in degrees": (actual, np.degrees(expected)),
    }
    return next((fault for fault, (a, b) in guesses.items() if _rms(a - b) <= _MAX_RESIDUAL * error), "")


def name_swapped_channels(agreement: Array, names: tuple[str, ...], gain: float) -> str:
    """The two channels that look exchanged, in words; empty where none do.

    Args:
      agreement: (C, C) share of the frames in which channel i of one side equals channel j of the other.
      gain: the least by which the two must agree better crosswise than straight, on average.
    """
    best, pair = gain, ("", "")
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            better = (agreement[i, j] + agreement[j, i] - agreement[i, i] - agreement[j, j]) / 2
            if better > best:
                best, pair = better, (names[i], names[j])
    return f"{pair[0]} and {pair[1]} look swapped" if pair[0] else ""
