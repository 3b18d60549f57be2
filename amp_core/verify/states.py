"""States under test: simulated again by a plain loop, turned, differentiated, and made into features.

Nothing here is shared with the generator: the loop is `mujoco.mj_step` on the robot's own model, and contacts are read with
`mj_contactForce` from `mjData.contact`, not with the generator's sensors. Only the feature code is the one that is everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core import features, rotations
from amp_core.engine import mujoco
from amp_core.features import body_to_world

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_SAME_DEPTH = 1e-9
"""m; contacts of two simulations that agree to rounding differ by less, or were chosen otherwise."""


@dataclass(frozen=True, eq=False)
class Drive:
    """What a simulation starts from and is driven by: N frames.

    Args:
      qpos, qvel: (nq,), (nv,) the state before the first frame. warmstart: (nv,) what the solver starts from.
      ctrl: (N, nu). stab: (N,) N, upwards on the root. forced: (N, nq) written into `qpos` before each frame, or None.
    """

    qpos: Array
    qvel: Array
    ctrl: Array
    stab: Array
    forced: Array | None = None
    warmstart: Array | None = None

    @classmethod
    def of(cls, clip: Clip, frames: int | None = None) -> Drive:
        """The recorded one."""
        arrays = clip.arrays
        forced = arrays["forced_qpos"][:frames] if clip.recipe.mode == "teacher_forced" else None
        ctrl, stab = arrays["ctrl"][:frames], arrays["stab_force"][:frames]
        return cls(arrays["initial_qpos"], arrays["initial_qvel"], ctrl, stab, forced)

    def turned(self, robot: Robot, angle: float) -> Drive:
        """The same about the world's z axis, by `angle` rad."""
        qpos, qvel = turned(robot, self.qpos[None], self.qvel[None], angle)
        forced = (
            None if self.forced is None else turned(robot, self.forced, np.zeros((len(self.forced), len(self.qvel))), angle)[0]
        )
        # An acceleration turns as a velocity does.
        warm = None if self.warmstart is None else turned(robot, self.qpos[None], self.warmstart[None], angle)[1][0]
        return replace(self, qpos=qpos[0], qvel=qvel[0], forced=forced, warmstart=warm)

    def flipped(self, robot: Robot) -> Drive:
        """The same with −q for the root's q."""
        forced = None if self.forced is None else flipped(robot, self.forced)
        return replace(self, qpos=flipped(robot, self.qpos[None])[0], forced=forced)

    def later(self, frame: int, qpos: Array, qvel: Array, warmstart: Array) -> Drive:
        """What is left from a frame on, from a state before it."""
        forced = None if self.forced is None else self.forced[frame:]
        return Drive(qpos, qvel, self.ctrl[frame:], self.stab[frame:], forced, warmstart)


class Loop:
    """A plain simulation, frame by frame."""

    def __init__(self, robot: Robot, model: Any, drive: Drive) -> None:
        self.robot, self.model, self.drive = robot, model, drive
        self.data = data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = drive.qpos, drive.qvel
        if drive.warmstart is not None:
            data.qacc_warmstart[:] = drive.warmstart
        self.frame = 0
        self._channel = np.full(model.ngeom, -1)
        for channel, geoms in enumerate(robot.channel_geoms):
            self._channel[list(geoms)] = channel
        self._force = np.zeros(6)

    def begin_frame(self) -> None:
        """Set what holds over the coming frame."""
        data, drive, k = self.data, self.drive, self.frame
        if drive.forced is not None:
            data.qpos[:] = drive.forced[k]
        data.ctrl[:] = drive.ctrl[k]
        data.qfrc_applied[self.robot.root_qvel_adr + 2] = drive.stab[k]
        self.frame += 1

    def substep(self) -> None:
        mujoco.mj_step(self.model, self.data)

    def loads(self) -> Array:
        """(C,) N: how hard the ground presses on each channel, upwards, in the last substep."""
        data, ground, found = self.data, self.robot.ground_geom, np.zeros(len(self.robot.channels))
        count = int(data.ncon)
        if count == 0:
            return found
        pairs, frames = data.contact.geom, data.contact.frame
        for i in range(count):
            first, second = int(pairs[i, 0]), int(pairs[i, 1])
            if ground not in (first, second):
                continue
            channel = self._channel[second if first == ground else first]
            if channel < 0:
                continue
            force, axes = self._force, frames[i]
            mujoco.mj_contactForce(self.model, data, i, force)
            # The force acts on the second geom; the rows of the frame are its axes, the normal first.
            up = axes[2] * force[0] + axes[5] * force[1] + axes[8] * force[2]
            found[channel] += up if first == ground else -up
        return found

    def contacts(self) -> list[tuple[int, float]]:
        """Who touched whom in the last substep and how deep [m], in an order that can be compared."""
        count = int(self.data.ncon)
        if count == 0:
            return []
        pairs, depths = self.data.contact.geom[:count].tolist(), self.data.contact.dist[:count].tolist()
        return sorted((a * self.model.ngeom + b, depth) for (a, b), depth in zip(pairs, depths, strict=True))

    def touches_itself(self) -> bool:
        """Whether two geoms touched of which neither is the ground."""
        count = int(self.data.ncon)
        return count > 0 and bool((self.data.contact.geom[:count] != self.robot.ground_geom).all(axis=1).any())


@dataclass(frozen=True, eq=False)
class States:
    """What a simulation gave, N rows.

    Args:
      qpos, qvel: (N, nq), (N, nv) after each frame.
      loads, last_loads: (N, C) N on each channel, mean over the frame's substeps and in the last one.
    """

    qpos: Array
    qvel: Array
    loads: Array
    last_loads: Array

    def contacts(self, threshold: float) -> Floats:
        """(N, C) 0/1: whether the channel carries more than `threshold` [N] in the last substep."""
        return (self.last_loads > threshold).astype(np.float32)


def same_contacts(one: Loop, other: Loop) -> bool:
    """Whether the same geoms touched equally deep: where two simulations agree, collision detection may still choose otherwise,
    as a contact that begins exactly at the surface comes a substep apart, and two boxes side by side touch in several ways."""
    first, second = one.contacts(), other.contacts()
    return len(first) == len(second) and all(
        a[0] == b[0] and abs(a[1] - b[1]) <= _SAME_DEPTH for a, b in zip(first, second, strict=True)
    )


def simulate(robot: Robot, model: Any, drive: Drive) -> States:
    """All frames of a drive, on a robot's model at some physics scale."""
    loop = Loop(robot, model, drive)
    frames, channels = len(drive.ctrl), len(robot.channels)
    qpos, qvel = np.empty((frames, model.nq)), np.empty((frames, model.nv))
    loads, last = np.zeros((frames, channels)), np.zeros((frames, channels))
    for k in range(frames):
        loop.begin_frame()
        for _ in range(robot.substeps):
            loop.substep()
            last[k] = loop.loads()
            loads[k] += last[k]
        qpos[k], qvel[k] = loop.data.qpos, loop.data.qvel
    return States(qpos, qvel, loads / robot.substeps, last)


def run(robot: Robot, model: Any, drive: Drive) -> tuple[Array, Array]:
    """The states of a drive, without the loads."""
    loop, frames = Loop(robot, model, drive), len(drive.ctrl)
    qpos, qvel = np.empty((frames, model.nq)), np.empty((frames, model.nv))
    for k in range(frames):
        loop.begin_frame()
        for _ in range(robot.substeps):
            loop.substep()
        qpos[k], qvel[k] = loop.data.qpos, loop.data.qvel
    return qpos, qvel


def assemble(robot: Robot, qpos: Array, qvel: Array, contacts: npt.NDArray[Any]) -> Floats:
    """(N, F) the features of states (N, nq), (N, nv) with contacts (N, C)."""
    q, v = robot.root_qpos_adr, robot.root_qvel_adr
    rotation = robot.root_rotation(qpos)
    return features.extract(
        joint_pos=qpos[:, robot.qpos_adr],
        joint_vel=qvel[:, robot.qvel_adr],
        root_rot=rotation,
        root_lin_vel=qvel[:, v : v + 3],
        root_ang_vel=body_to_world(rotation, qvel[:, v + 3 : v + 6]),
        root_height=qpos[:, q + 2],
        foot_contacts=contacts,
    )


def before(clip: Clip) -> Array:
    """(N, nq) the pose that each frame started from."""
    arrays = clip.arrays
    if clip.recipe.mode == "teacher_forced":
        return np.asarray(arrays["forced_qpos"])
    return np.concatenate([arrays["initial_qpos"][None], arrays["qpos"][:-1]])[: clip.frames]


def finite_differences(robot: Robot, start: Array, end: Array) -> Array:
    """(N, nv) the velocities that would take poses (N, nq) to others in one frame, in MuJoCo's convention."""
    found = np.empty((len(end), robot.model.nv))
    for k in range(len(end)):
        mujoco.mj_differentiatePos(robot.model, found[k], robot.control_dt, start[k], end[k])
    return found


def turned(robot: Robot, qpos: Array, qvel: Array, angle: float) -> tuple[Array, Array]:
    """States (N, nq), (N, nv) turned about the world's z axis by `angle` rad."""
    q, v = robot.root_qpos_adr, robot.root_qvel_adr
    moved, moving = qpos.copy(), qvel.copy()
    for target, first in ((moved, q), (moving, v)):
        target[:, first : first + 3] = rotations.rotate_about_vertical(target[:, first : first + 3], angle)
    quaternion = rotations.to_wxyz(rotations.rotate_yaw(robot.root_rotation(qpos), angle))
    # Of the two signs the one of the original: what a sign may change is another test's question.
    quaternion[(quaternion[:, 0] < 0.0) != (qpos[:, q + 3] < 0.0)] *= -1.0
    moved[:, q + 3 : q + 7] = quaternion
    # The angular velocity is in the body's frame, which turns along.
    return moved, moving


def heading_length(robot: Robot, qpos: Array) -> Array:
    """(N,) how long the root's x axis is on the ground: 1 when it is level, 0 when it is vertical and gives no heading."""
    forward = features.rotation_matrix(robot.root_rotation(qpos))[:, :2, 0]
    length: Array = np.linalg.norm(forward, axis=1)
    return length


def flipped(robot: Robot, qpos: Array) -> Array:
    """Poses (N, nq) with −q for the root's q."""
    q = robot.root_qpos_adr
    other = qpos.copy()
    other[:, q + 3 : q + 7] *= -1.0
    return other


def elliptic(model: Any) -> Any:
    """The model with the elliptic friction cone, which is the same in every direction of the ground."""
    other = copy.copy(model)
    other.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    return other


def pyramidal(model: Any) -> bool:
    """Whether friction is a pyramid, whose sides lie in fixed directions of the world."""
    return int(model.opt.cone) == int(mujoco.mjtCone.mjCONE_PYRAMIDAL)


def largest(values: npt.NDArray[Any]) -> float:
    """The largest magnitude; 0 of nothing, NaN where there is one."""
    return float(np.abs(values).max()) if values.size else 0.0


def relative(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Array:
    """|found − truth| over max(1, |truth|): float32 rounds in proportion."""
    f, t = np.asarray(found, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    share: Array = np.abs(f - t) / np.maximum(1.0, np.abs(t))
    return share


def clip_of(index: int, lengths: Sequence[int]) -> tuple[int, int]:
    """Which clip, and which frame of it, a row of all clips' rows is."""
    for number, length in enumerate(lengths):
        if index < length:
            return number, index
        index -= length
    raise IndexError("there are fewer rows")
