"""The usual faults of feature code, told apart by what they make of known states.

When features are not what the states say, each block of them is compared with what the usual faults would have made of those
states: velocities left in another frame, quaternions in another order, a frame's lag, finite differences, columns in another
order, degrees, a wrong sign. The fault whose outcome fits is named; where none does, nothing is claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.features import body_to_world, world_to_heading
from amp_core.rotations import to_xyzw
from amp_core.verify.states import assemble, finite_differences

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

_FITS = 0.02  # of the error that a fault would explain, root mean square, what may be left unexplained
_FLOOR = 1e-5  # rms error below which there is nothing to explain

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
    robot: Robot,
    found: npt.NDArray[Any],
    qpos: Array,
    qvel: Array,
    start: Array,
    contacts: npt.NDArray[Any],
) -> list[str]:
    """What is wrong with one clip's features, in words; empty where nothing is, or where no usual fault explains it.

    Args:
      found: (N, F) the features in question.
      qpos, qvel, contacts: (N, …) what they should have been made of.
      start: (N, nq) the pose that each frame started from.
    """
    given = np.asarray(found, dtype=np.float64)
    truth = assemble(robot, qpos, qvel, contacts).astype(np.float64)
    whole = _whole(robot, truth, qpos, start, contacts)
    sayings: dict[str, list[str]] = {}
    for block in robot.layout.blocks:
        here = block.slice
        error = _rms(given[:, here] - truth[:, here])
        if not error > _FLOOR:
            continue
        names = robot.layout.names[here]
        best, what = np.inf, ""
        for saying, guess in (whole | _of_block(robot, block.name, truth[:, here], qpos, qvel)).items():
            value = guess[:, here] if guess.shape[1] == given.shape[1] else guess
            known = ~np.isnan(value).any(axis=1)  # A lag does not say what the first row is.
            left = _rms(given[known][:, here] - value[known])
            if left < best:
                best, what = left, saying
        if not best <= _FITS * error:
            what = _columns(given[:, here], truth[:, here], names)
        if what:
            sayings.setdefault(what, []).append(block.name)
    return [f"{', '.join(blocks)}: {what}" for what, blocks in sayings.items()]


def _whole(robot: Robot, truth: Array, qpos: Array, start: Array, contacts: npt.NDArray[Any]) -> dict[str, Array]:
    nothing = np.full((1, truth.shape[1]), np.nan)
    return {
        LAG: np.concatenate([nothing, truth[:-1]]),
        LEAD: np.concatenate([truth[1:], nothing]),
        DIFFERENCES: assemble(robot, qpos, finite_differences(robot, start, qpos), contacts).astype(np.float64),
    }


def _of_block(robot: Robot, name: str, truth: Array, qpos: Array, qvel: Array) -> dict[str, Array]:
    q, v = robot.root_qpos_adr, robot.root_qvel_adr
    wxyz = qpos[:, q + 3 : q + 7]
    xyzw = to_xyzw(wxyz)
    twice = to_xyzw(xyzw)
    linear, angular = qvel[:, v : v + 3], qvel[:, v + 3 : v + 6]
    if name == "root_lin_vel":
        return {
            NOT_TURNED: linear,
            QUATERNION: world_to_heading(wxyz, linear),
            QUATERNION_BACK: world_to_heading(twice, linear),
        }
    if name == "root_ang_vel":
        return {
            BODY_AS_WORLD: world_to_heading(xyzw, angular),
            BODY: angular,
            NOT_TURNED: body_to_world(xyzw, angular),
            QUATERNION: world_to_heading(wxyz, body_to_world(wxyz, angular)),
            QUATERNION_BACK: world_to_heading(twice, body_to_world(twice, angular)),
            DEGREES: np.degrees(truth),
        }
    if name in ("joint_pos", "joint_vel"):
        return {DEGREES: np.degrees(truth), RADIANS_TWICE: np.radians(truth)}
    return {}


def _columns(given: Array, truth: Array, names: tuple[str, ...]) -> str:
    """Columns in another order or with another sign, or which ones are wrong in some other way."""
    wrong = [i for i in range(len(names)) if _rms(given[:, i] - truth[:, i]) > _FLOOR]
    short = [name.partition(".")[2] for name in names]
    fits = {i: [j for j in range(len(names)) if _fits(given[:, i], truth[:, j], truth[:, i])] for i in wrong}
    if len(wrong) > 1 and all(fits[i] for i in wrong):
        source = {i: next((j for j in fits[i] if j in wrong), fits[i][0]) for i in wrong}
        if len(wrong) == 2 and source[wrong[0]] == wrong[1] and source[wrong[1]] == wrong[0]:
            return f"{short[wrong[0]]} and {short[wrong[1]]} look swapped"
        return "columns in another order: " + ", ".join(f"{short[i]} holds {short[j]}" for i, j in source.items())
    if wrong and all(_fits(given[:, i], -truth[:, i], truth[:, i]) for i in wrong):
        return f"the sign of {', '.join(short[i] for i in wrong)} is turned round"
    if wrong and len(wrong) < len(names):
        return f"{', '.join(short[i] for i in wrong)} differ, in a way that no usual fault explains"
    return ""


def _fits(given: Array, guess: Array, truth: Array) -> bool:
    return _rms(given - guess) <= _FITS * _rms(given - truth)


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean())) if values.size else 0.0


def name_velocity_fault(robot: Robot, given: Array, truth: Array, qpos: Array, start: Array) -> str:
    """What a recorded `qvel` (N, nv) is, where it is not the one (N, nv) that the simulation has."""
    if np.array_equal(given, truth):
        return ""
    error = _rms(given - truth)
    guesses = {
        "the recorded qvel is the finite differences of qpos": (given, finite_differences(robot, start, qpos)),
        "the recorded qvel has a lag of one frame": (given[1:], truth[:-1]),
        "the recorded qvel is one frame early": (given[:-1], truth[1:]),
        "the recorded qvel is in degrees": (given, np.degrees(truth)),
    }
    for saying, (one, other) in guesses.items():
        if _rms(one - other) <= _FITS * error:
            return saying
    return ""


def swapped_columns(agreement: Array, names: tuple[str, ...], gain: float) -> str:
    """Which channels look exchanged, from (C, C) agreements of true channel i with found channel j; empty where none do.

    Args:
      gain: how much better, at least, the two must agree crosswise than straight, on average.
    """
    best, pair = gain, ("", "")
    count = len(names)
    for i in range(count):
        for j in range(i + 1, count):
            better = (agreement[i, j] + agreement[j, i] - agreement[i, i] - agreement[j, j]) / 2
            if better > best:
                best, pair = better, (names[i], names[j])
    return f"{pair[0]} and {pair[1]} look swapped" if pair[0] else ""
