"""Simulator states under test: simulated again by a plain loop, rotated, differentiated, and turned into features.

The loop shares nothing with the generator: it is `mujoco.mj_step` on the robot's own model, and contacts are read with
`mj_contactForce` from `mjData.contact` instead of the generator's sensors. Only `amp_core.features` is common to both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core import features
from amp_core.engine import mujoco
from amp_core.rotations import rotate_about_vertical, rotate_yaw, to_wxyz

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

SUSPICIOUS = 1e-5
"""Relative: more than rounding explains, even where the specification's limit on the mean absolute error permits it."""

VELOCITIES = ("joint_vel", "root_lin_vel", "root_ang_vel")
"""The feature blocks of velocities."""

_SAME_DEPTH = 1e-9
"""m; contacts of two simulations that agree to rounding differ by less, or collision detection chose other points."""


def controls_member(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """The member of an export that has its controls as they were applied."""
    return "ctrl_substeps" if "ctrl_substeps" in arrays else "ctrl"


@dataclass(frozen=True, eq=False)
class Drive:
    """A simulation's start and its controls over N frames.

    Args:
      qpos, qvel: (nq,), (nv,) the state before the first frame.
      ctrl: (N, nu), held over each frame; or (N, substeps, nu).
      stab: (N,) N, upwards on the root.
      forced: (N, nq) written into `qpos` before each frame, or None.
      warmstart: (nv,) the solver's first accelerations, or None.
    """

    qpos: Array
    qvel: Array
    ctrl: Array
    stab: Array
    forced: Array | None = None
    warmstart: Array | None = None

    @classmethod
    def of(cls, clip: Clip, frames: int) -> Drive:
        """The recorded one of a clip's first frames."""
        arrays = clip.arrays
        forced_qpos = arrays["forced_qpos"][:frames] if clip.recipe.mode == "teacher_forced" else None
        ctrl = arrays[controls_member(arrays)][:frames]
        return cls(arrays["initial_qpos"], arrays["initial_qvel"], ctrl, arrays["stab_force"][:frames], forced_qpos)

    def rotate_yaw(self, robot: Robot, angle: float) -> Drive:
        """The drive rotated about the world's z axis by `angle` rad."""
        qpos, qvel = rotate_states(robot, self.qpos[None], self.qvel[None], angle)
        forced_qpos = self.forced
        if forced_qpos is not None:
            forced_qpos, _ = rotate_states(robot, forced_qpos, np.zeros((len(forced_qpos), len(self.qvel))), angle)
        warmstart = self.warmstart
        if warmstart is not None:
            # An acceleration rotates as a velocity does.
            warmstart = rotate_states(robot, self.qpos[None], warmstart[None], angle)[1][0]
        return replace(self, qpos=qpos[0], qvel=qvel[0], forced=forced_qpos, warmstart=warmstart)

    def flip_sign(self, robot: Robot) -> Drive:
        """The drive with −q for the root's quaternion q."""
        forced_qpos = None if self.forced is None else flip_quaternions(robot, self.forced)
        return replace(self, qpos=flip_quaternions(robot, self.qpos[None])[0], forced=forced_qpos)

    def tail(self, frame: int, trace: Trace) -> Drive:
        """The rest of the drive from a frame on, started from the state before it in a trace of the drive."""
        return Drive(
            qpos=trace.qpos[frame - 1],
            qvel=trace.qvel[frame - 1],
            ctrl=self.ctrl[frame:],
            stab=self.stab[frame:],
            forced=None if self.forced is None else self.forced[frame:],
            warmstart=trace.warmstart[frame - 1],
        )


@dataclass(frozen=True, eq=False)
class Trace:
    """What a simulation went through in N frames of S substeps.

    Args:
      qpos, qvel, warmstart: (N, nq), (N, nv), (N, nv) after each frame.
      substep_qpos, substep_qvel: (N·S, nq), (N·S, nv) before each substep.
      contacts: N·S times, of the substep, (n, 2) the geoms in contact and (n,) their depths [m].
    """

    qpos: Array
    qvel: Array
    warmstart: Array
    substep_qpos: Array
    substep_qvel: Array
    contacts: list[tuple[npt.NDArray[np.int32], Array]]

    def has_same_contacts(self, substep: int, turn: Trace, turn_substep: int) -> bool:
        """Whether the same geoms touch equally deep in a substep of this one and of a rotated one.

        Where two simulations agree, collision detection may still choose otherwise: a contact that begins exactly at the
        surface comes a substep apart, and two boxes side by side touch in several ways.
        """
        (pairs, depths), (turn_pairs, turn_depths) = self.contacts[substep], turn.contacts[turn_substep]
        if len(pairs) != len(turn_pairs):
            return False
        order, turn_order = (np.lexsort((d, p[:, 1], p[:, 0])) for p, d in ((pairs, depths), (turn_pairs, turn_depths)))
        return bool(
            np.array_equal(pairs[order], turn_pairs[turn_order])
            and (np.abs(depths[order] - turn_depths[turn_order]) <= _SAME_DEPTH).all()
        )

    def touches_itself(self, substep: int, ground_geom: int) -> bool:
        """Whether two geoms are in contact in a substep of which neither is the ground."""
        pairs, _ = self.contacts[substep]
        return bool((pairs != ground_geom).all(axis=1).any())


class Loop:
    """A plain simulation of a drive, frame by frame."""

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
        self._is_foot = np.isin(model.geom_bodyid, list(robot.foot_bodies))
        self.nonfoot = False
        self._force = np.zeros(6)

    def begin_frame(self) -> None:
        """Set the controls and forces of the coming frame."""
        data, drive, k = self.data, self.drive, self.frame
        if drive.forced is not None:
            data.qpos[:] = drive.forced[k]
        self._controls = iter(drive.ctrl[k] if drive.ctrl.ndim == 3 else ())
        if drive.ctrl.ndim == 2:
            data.ctrl[:] = drive.ctrl[k]
        data.qfrc_applied[self.robot.root_qvel_adr + 2] = drive.stab[k]
        self.frame += 1
        self.nonfoot = False

    def substep(self) -> None:
        if (ctrl := next(self._controls, None)) is not None:
            self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data)

    def loads(self) -> Array:
        """(C,) N: the ground's upward force on each channel in the last substep; notes in `nonfoot` what else touches it."""
        data, ground, loads = self.data, self.robot.ground_geom, np.zeros(len(self.robot.channels))
        count = int(data.ncon)
        if count == 0:
            return loads
        pairs, frames = data.contact.geom, data.contact.frame
        for i in range(count):
            first, second = int(pairs[i, 0]), int(pairs[i, 1])
            if ground not in (first, second):
                continue
            geom = second if first == ground else first
            channel = self._channel[geom]
            if channel < 0:
                self.nonfoot |= not self._is_foot[geom]
                continue
            force, axes = self._force, frames[i]
            mujoco.mj_contactForce(self.model, data, i, force)
            # The force acts on the second geom; the rows of the frame are its axes, the normal first.
            up = axes[2] * force[0] + axes[5] * force[1] + axes[8] * force[2]
            loads[channel] += up if first == ground else -up
        return loads

    def trace(self, frames: int) -> Trace:
        """The coming frames."""
        data, model, substeps = self.data, self.model, self.robot.substeps
        qpos, qvel, warmstart = np.empty((frames, model.nq)), np.empty((frames, model.nv)), np.empty((frames, model.nv))
        substep_qpos, substep_qvel = np.empty((frames * substeps, model.nq)), np.empty((frames * substeps, model.nv))
        contacts = []
        for k in range(frames):
            self.begin_frame()
            for s in range(k * substeps, (k + 1) * substeps):
                substep_qpos[s], substep_qvel[s] = data.qpos, data.qvel
                self.substep()
                contact, count = data.contact, int(data.ncon)
                contacts.append((contact.geom[:count].copy(), contact.dist[:count].copy()))
            qpos[k], qvel[k], warmstart[k] = data.qpos, data.qvel, data.qacc_warmstart
        return Trace(qpos, qvel, warmstart, substep_qpos, substep_qvel, contacts)


@dataclass(frozen=True, eq=False)
class States:
    """A simulation's result, N rows.

    Args:
      qpos, qvel: (N, nq), (N, nv) after each frame.
      loads, last_loads: (N, C) N on each channel, mean over the frame's substeps and in the last one.
      actuator_force: (N, nu) N·m (N for a slide), in the last substep.
      nonfoot: (N,) whether anything but a foot touched the ground in any substep.
    """

    qpos: Array
    qvel: Array
    loads: Array
    last_loads: Array
    actuator_force: Array
    nonfoot: npt.NDArray[np.bool_]

    def contacts(self, threshold: float) -> Floats:
        """(N, C) 0/1: whether the channel carries more than `threshold` [N] in the last substep."""
        return (self.last_loads > threshold).astype(np.float32)


def simulate(robot: Robot, model: Any, drive: Drive, with_loads: bool = True) -> States:
    """All frames of a drive, on a robot's model at some physics scale; loads and `nonfoot`, which take time, are else 0."""
    loop = Loop(robot, model, drive)
    frames, channels = len(drive.ctrl), len(robot.channels)
    qpos, qvel = np.empty((frames, model.nq)), np.empty((frames, model.nv))
    loads, last_loads = np.zeros((frames, channels)), np.zeros((frames, channels))
    forces, nonfoot = np.empty((frames, model.nu)), np.zeros(frames, dtype=bool)
    for k in range(frames):
        loop.begin_frame()
        for _ in range(robot.substeps):
            loop.substep()
            if with_loads:
                last_loads[k] = loop.loads()
                loads[k] += last_loads[k]
        qpos[k], qvel[k], forces[k], nonfoot[k] = loop.data.qpos, loop.data.qvel, loop.data.actuator_force, loop.nonfoot
    return States(qpos, qvel, loads / robot.substeps, last_loads, forces, nonfoot)


def compute_features(robot: Robot, qpos: Array, qvel: Array, contacts: npt.NDArray[Any]) -> Floats:
    """(N, F) AMP features of simulator states (N, nq), (N, nv) with contacts (N, C), by `amp_core.features`."""
    v = robot.root_qvel_adr
    rotation = robot.root_rotation(qpos)
    return features.extract(
        joint_pos=qpos[:, robot.qpos_adr],
        joint_vel=qvel[:, robot.qvel_adr],
        root_rot=rotation,
        root_lin_vel=qvel[:, v : v + 3],
        # A free joint's angular velocity is in the body frame.
        root_ang_vel=features.body_to_world(rotation, qvel[:, v + 3 : v + 6]),
        root_height=qpos[:, robot.root_qpos_adr + 2],
        foot_contacts=contacts,
    )


def start_poses(clip: Clip) -> Array:
    """(N, nq) the pose at the start of each frame."""
    arrays = clip.arrays
    if clip.recipe.mode == "teacher_forced":
        return np.asarray(arrays["forced_qpos"])
    return np.concatenate([arrays["initial_qpos"][None], arrays["qpos"][:-1]])[: clip.frames]


def finite_differences(robot: Robot, start: Array, end: Array) -> Array:
    """(N, nv) the velocities that would take poses (N, nq) to others in one frame, in MuJoCo's convention."""
    velocities = np.empty((len(end), robot.model.nv))
    for k in range(len(end)):
        mujoco.mj_differentiatePos(robot.model, velocities[k], robot.control_dt, start[k], end[k])
    return velocities


def rotate_states(robot: Robot, qpos: Array, qvel: Array, angle: float) -> tuple[Array, Array]:
    """States (N, nq), (N, nv) rotated about the world's z axis by `angle` rad."""
    q, v = robot.root_qpos_adr, robot.root_qvel_adr
    rotated_qpos, rotated_qvel = qpos.copy(), qvel.copy()
    for target, first in ((rotated_qpos, q), (rotated_qvel, v)):
        target[:, first : first + 3] = rotate_about_vertical(target[:, first : first + 3], angle)
    quaternion = to_wxyz(rotate_yaw(robot.root_rotation(qpos), angle))
    # Of the two signs the one of the original: test 3 is about the sign.
    quaternion[(quaternion[:, 0] < 0.0) != (qpos[:, q + 3] < 0.0)] *= -1.0
    rotated_qpos[:, q + 3 : q + 7] = quaternion
    # The angular velocity is in the body's frame, which rotates with it.
    return rotated_qpos, rotated_qvel


def flip_quaternions(robot: Robot, qpos: Array) -> Array:
    """Poses (N, nq) with −q for the root's quaternion q."""
    q = robot.root_qpos_adr
    flipped_qpos = qpos.copy()
    flipped_qpos[:, q + 3 : q + 7] *= -1.0
    return flipped_qpos


def heading_length(robot: Robot, qpos: Array) -> Array:
    """(N,) the length of the root's x axis on the ground: 1 when it is level, 0 when it is vertical and gives no heading."""
    forward = features.rotation_matrix(robot.root_rotation(qpos))[:, :2, 0]
    return np.asarray(np.linalg.norm(forward, axis=1))


def with_elliptic_cone(model: Any) -> Any:
    """A copy of the model with the elliptic friction cone, which is the same in every direction of the ground."""
    model = copy.copy(model)
    model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    return model


def has_pyramidal_cone(model: Any) -> bool:
    """Whether friction is a pyramid, whose sides lie in fixed directions of the world."""
    return int(model.opt.cone) == int(mujoco.mjtCone.mjCONE_PYRAMIDAL)


def max_magnitude(values: npt.NDArray[Any]) -> float:
    """The largest magnitude; 0 of nothing, NaN where there is one."""
    return float(np.abs(values).max()) if values.size else 0.0
