"""The robot in MuJoCo as in training: many worlds that start from states of the reference, and a random policy.

    env = Environment(robot, starts_qpos, starts_qvel, count=64, nthread=2, seed=0)
    done = env.step(ctrl)                   # one control step in every world; env.qpos, env.qvel, env.contacts are its outcome
    env.reset(done)                         # finished worlds start again from states of the reference

The physics is the generator's: the robot's own model at some physics scale, `robot.substeps` physics steps a control step with
constant controls, contacts by the same sensors and the same threshold in the same substep. The controls of a recorded rollout
give that rollout again, bit for bit. There is no harness.

The module needs numpy and MuJoCo, and no JAX.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core import contacts
from amp_core.engine import Batch, SimulationError, mujoco
from amp_core.metrics import FALLEN_TILT_DEG
from amp_core.recipe import PhysicsScale
from amp_core.rotations import cosine_of_tilt
from amp_core.verify.states import compute_features

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FORCE_THRESHOLD = 1.0
"""N; the recipes' default: a channel touches above this normal force."""

EPISODE_FRAMES = 500
"""Control steps (10 s at 50 Hz) after which an episode ends though nothing is wrong."""

ACTION_SCALE = 0.25
"""rad; what an action of 1 adds to a joint's target. An untrained policy's actions have the standard deviation 1."""

_WORLDS = 64
_STARTS, _ACTIONS = 0x57A7, 0xAC7
"""The purposes of the two streams of random numbers."""


class Environment:
    """`count` worlds with one robot each. Nothing depends on `nthread`.

    A world starts each episode from a random state of the reference. An episode is over when the root's tilt exceeds 60°, when
    its height leaves the robot's range, when the state is not finite or MuJoCo warns or fails (`broken` is then set), or after
    `episode_frames` control steps (`truncated` is then set). A world whose episode is over keeps its last state until a reset.

    Args:
      robot: its own model is simulated.
      starts_qpos, starts_qvel: (S, nq), (S, nv) states to start from.
      starts_contacts: (S, C) 0/1, contacts in those states where they are recorded. None: from the forces of a robot whose
        servos hold the pose.
      count: worlds.
      nthread: threads that step the physics.
      seed: of the random start states.
      scale: factors on the robot's physics.
      force_threshold: N; a channel touches above this normal force.
      episode_frames: control steps an episode, at most.

    Raises:
      ValueError: shapes that do not fit together, start states that are not finite, or none.
    """

    def __init__(
        self,
        robot: Robot,
        starts_qpos: npt.ArrayLike,
        starts_qvel: npt.ArrayLike,
        *,
        starts_contacts: npt.ArrayLike | None = None,
        count: int = _WORLDS,
        nthread: int = 1,
        seed: int = 0,
        scale: PhysicsScale | None = None,
        force_threshold: float = FORCE_THRESHOLD,
        episode_frames: int = EPISODE_FRAMES,
    ) -> None:
        self.robot = robot
        self.count = count
        self._starts = _check_starts(robot, starts_qpos, starts_qvel)
        self._start_contacts = None if starts_contacts is None else np.asarray(starts_contacts, np.float32)
        expected = (len(self._starts[0]), len(robot.channels))
        if self._start_contacts is not None and self._start_contacts.shape != expected:
            raise ValueError(f"starts_contacts is {self._start_contacts.shape}; expected {expected}, a row a start state")
        self._probe = contacts.instrument(robot, PhysicsScale() if scale is None else scale)
        model = self._probe.model
        # Sleeping islands keep state outside the rows that a batch normally swaps in and out.
        sleeps = bool(model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_SLEEP))
        self._batch = Batch(model, count, nthread=nthread, persistent=sleeps)
        self.qpos: Array = self._batch.bind("qpos")
        self.qvel: Array = self._batch.bind("qvel")
        self._ctrl: Array = self._batch.bind("ctrl")
        self._sensordata = self._batch.bind("sensordata")
        self.contacts: npt.NDArray[np.float32] = np.zeros((count, len(robot.channels)), np.float32)
        self.age: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self.episodes: npt.NDArray[np.int64] = np.full(count, -1)
        self.broken: Bools = np.zeros(count, bool)
        self.truncated: Bools = np.zeros(count, bool)
        self._threshold = force_threshold
        self._limit = episode_frames
        self._generator = stream(seed, _STARTS)
        has_limit = model.actuator_ctrllimited.astype(bool)
        self.ctrl_low: Array = np.where(has_limit, model.actuator_ctrlrange[:, 0], -np.inf)
        self.ctrl_high: Array = np.where(has_limit, model.actuator_ctrlrange[:, 1], np.inf)
        self.reset(np.ones(count, bool))

    def step(self, ctrl: npt.ArrayLike) -> Bools:
        """One control step in every world.

        Args:
          ctrl: (count, nu) rad, the servos' targets in the order of the model's actuators; clipped to their range.

        Returns:
          (count,) whether the episode is over with the present state.
        """
        warnings = self._batch.warning[:, :, 1].copy()
        self._ctrl[:] = np.clip(ctrl, self.ctrl_low, self.ctrl_high)
        has_failed = np.zeros(self.count, bool)
        try:
            self._batch.step(nstep=self.robot.substeps)
        except SimulationError as error:
            # These worlds keep their state; the others have stepped.
            has_failed[error.ids] = True
        # The sensors are one substep behind the state, and so hold the forces that acted during the last substep.
        self.contacts[:] = self._probe.loads(self._sensordata) > self._threshold
        self.age += 1
        finite = np.isfinite(self.qpos).all(axis=1) & np.isfinite(self.qvel).all(axis=1)
        self.broken[:] = has_failed | ~finite | (self._batch.warning[:, :, 1] > warnings).any(axis=1)
        over = self.has_fallen() | self.broken
        self.truncated[:] = (self.age >= self._limit) & ~over
        return over | self.truncated

    def has_fallen(self) -> Bools:
        """(count,) whether the root's tilt exceeds 60°, its height is outside the robot's range, or the state is not finite."""
        low, high = self.robot.height_range
        height = self.qpos[:, self.robot.root_qpos_adr + 2]
        with np.errstate(invalid="ignore", over="ignore"):
            up = cosine_of_tilt(self.robot.root_rotation(self.qpos))
            upright: Bools = (up >= math.cos(math.radians(FALLEN_TILT_DEG))) & (height >= low) & (height <= high)
        return ~upright

    def reset(self, mask: npt.ArrayLike) -> None:
        """Start a new episode in the worlds of the mask (count,), each from a random state of the reference."""
        ids = np.flatnonzero(np.asarray(mask, bool))
        if not len(ids):
            return
        rows = self._generator.integers(len(self._starts[0]), size=len(ids))
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.qpos[ids], self.qvel[ids] = self._starts[0][rows], self._starts[1][rows]
        self.age[ids] = 0
        self.episodes[ids] += 1
        self.broken[ids] = self.truncated[ids] = False
        if self._start_contacts is not None:
            self.contacts[ids] = self._start_contacts[rows]
            return
        self._ctrl[np.ix_(ids, self.robot.ctrl_adr)] = self.qpos[np.ix_(ids, self.robot.qpos_adr)]
        self._batch.forward(ids)
        self.contacts[ids] = self._probe.loads(self._sensordata)[ids] > self._threshold


def stream(seed: int, purpose: int) -> np.random.Generator:
    """A stream of random numbers of its own for each purpose."""
    return np.random.Generator(np.random.PCG64([seed, purpose]))


def random_policy_rollout(
    robot: Robot,
    starts_qpos: npt.ArrayLike,
    starts_qvel: npt.ArrayLike,
    *,
    frames: int = 10_000,
    seed: int = 0,
    action_std: float = ACTION_SCALE,
    **options: Any,
) -> dict[str, npt.NDArray[Any]]:
    """The rollout of an untrained policy.

    Its targets are Gaussian about the mean joint angles of the start states, independent for each joint and control step, and
    clipped to the servos' range. Worlds whose episode is over start again. A frame is the state after a control step, as in the
    reference; start states are not frames.

    Args:
      starts_qpos, starts_qvel: (S, nq), (S, nv) states of the reference, to start from.
      frames: rows to return.
      seed: of the start states and of the actions, which have a stream each.
      action_std: rad.
      **options: further ones of `Environment`, such as `scale` and `nthread`.

    Returns:
      `qpos` (frames, nq), `qvel` (frames, nv), `foot_contacts` (frames, C) float32, `features` (frames, F) float32, and
      `episode` (frames,): the number of a row's episode. Rows of an episode follow each other.

    Raises:
      ValueError: no frames, or the errors of `Environment`.
    """
    if frames < 1:
        raise ValueError(f"{frames} frames of a random policy; expected at least 1")
    count = min(_WORLDS, frames)
    env = Environment(robot, starts_qpos, starts_qvel, count=count, seed=seed, **options)
    generator, pose = stream(seed, _ACTIONS), mean_pose(robot, starts_qpos)
    steps = -(-frames // count)
    model = env.robot.model
    qpos, qvel = np.empty((count, steps, model.nq)), np.empty((count, steps, model.nv))
    touching = np.empty((count, steps, len(robot.channels)), np.float32)
    episode = np.empty((count, steps), np.int64)
    ctrl = np.empty((count, model.nu))
    for k in range(steps):
        ctrl[:, robot.ctrl_adr] = pose + action_std * generator.standard_normal((count, len(pose)))
        is_over = env.step(ctrl)
        qpos[:, k], qvel[:, k], touching[:, k], episode[:, k] = env.qpos, env.qvel, env.contacts, env.episodes
        env.reset(is_over)
    # Numbered in the order of the rows: world by world, and in each by time.
    number = episode + np.concatenate([[0], np.cumsum(episode.max(axis=1) + 1)[:-1]])[:, None]
    arrays = {
        "qpos": qpos.reshape(-1, model.nq)[:frames],
        "qvel": qvel.reshape(-1, model.nv)[:frames],
        "foot_contacts": touching.reshape(-1, len(robot.channels))[:frames],
        "episode": number.reshape(-1)[:frames],
    }
    # A state that is not finite gives features that are not, which the caller can check.
    with np.errstate(invalid="ignore", over="ignore"):
        arrays["features"] = compute_features(robot, arrays["qpos"], arrays["qvel"], arrays["foot_contacts"])
    return arrays


def mean_pose(robot: Robot, starts_qpos: npt.ArrayLike) -> Array:
    """(n,) rad: the mean joint angles of states (S, nq), in feature order; the target of a policy's action of 0."""
    return np.asarray(np.asarray(starts_qpos, np.float64)[:, robot.qpos_adr].mean(axis=0))


def _check_starts(robot: Robot, starts_qpos: npt.ArrayLike, starts_qvel: npt.ArrayLike) -> tuple[Array, Array]:
    qpos, qvel = np.asarray(starts_qpos, np.float64), np.asarray(starts_qvel, np.float64)
    rows = len(qpos) if qpos.ndim else 0
    nq, nv = robot.model.nq, robot.model.nv
    if qpos.shape != (rows, nq) or qvel.shape != (rows, nv) or rows == 0:
        raise ValueError(
            f"start states are {qpos.shape} and {qvel.shape}; expected (S, {nq}) and (S, {nv}) with at least one row, for the "
            f"robot {robot.name!r}"
        )
    finite = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1)
    if not finite.all():
        raise ValueError(f"start state {int(np.argmin(finite))} is not finite; expected states of the reference")
    return qpos, qvel
