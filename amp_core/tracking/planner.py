"""The planner of the tracked mode: a receding horizon, linear models fitted to noisy rollouts, and feedback.

One round over a horizon of H control steps:

1. Roll K simulations out from the robot's state with the plan's controls, the plan's feedback and time-correlated noise; the
   first one has no noise and is the nominal.
2. At every step, fit a linear model by ridge regression over the simulations: from the state's and the control's difference to
   the nominal, to the next state's difference and to the cost's residuals. The noise makes this an average over the contacts
   that may or may not happen, which a derivative at one point is not.
3. A Riccati recursion over these models, a Gauss-Newton step in time, gives better controls and feedback gains, for several
   dampings. Each candidate is simulated; the best replaces the plan.

The first few controls of the plan then drive the robot's own model, corrected by the feedback, and the horizon moves on.
Fitting linear-Gaussian models to samples for trajectory optimization through contact follows Levine and Abbeel, "Learning
Neural Network Policies with Guided Policy Search under Unknown Dynamics", NeurIPS 2014; the recursion is that of iterative LQR
(Tassa, Erez and Todorov, IROS 2012).

Nothing here depends on the number of threads, on other clips, or on the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from amp_core.engine import Batch, SimulationError, mujoco
from amp_core.rotations import rotation_vector, x_axis, z_axis
from amp_core.tracking.model import planning_model
from amp_core.tracking.reference import Reference

if TYPE_CHECKING:
    from amp_core.motion import Conditioned
    from amp_core.recipe import Recipe
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

_LOST = 1e12  # the cost of a simulation that left the finite numbers
_FALLEN_UP = 0.5  # vertical part of the root's z axis: 60° of tilt
_LEANING_UP = 0.9  # where the cost of leaning begins: 26°
_STANDING = 0.15  # of the weight; a foot that carries as much stands, one that carries half of it half stands
_LOW = 0.012  # m
_NOMINAL_DT = 0.02  # s; the costs are given for a frame of this length


@dataclass(frozen=True, eq=False)
class Plan:
    """Planned controls.

    Args:
      ctrl: (N, nu) rad, what to hold over each control step.
      fell_at: the frame at which the robot was lost, from where on `ctrl` is the clip's joint angles; None if it never was.
      simulated_sec: s of simulated time that planning took.
    """

    ctrl: Array
    fell_at: int | None
    simulated_sec: float


def plan(
    robot: Robot,
    motion: Conditioned,
    recipe: Recipe,
    initial_qvel: Array,
    *,
    attempt: int = 0,
    nthread: int = 1,
    progress: Callable[[int], None] | None = None,
    frames: int | None = None,
) -> Plan:
    """Plan the controls that make the robot follow a clip.

    Args:
      motion: conditioned for this robot.
      recipe: with a planner.
      initial_qvel: (nv,) the velocity that the rollout starts with.
      attempt: another number draws other noise, and a higher one more of it.
      nthread: threads that simulate; the plan does not depend on it.
      progress: called with the number of frames that are planned. What it raises stops the work and is passed on.
      frames: stop once as many frames are planned, the whole clip's by default; they are the whole plan's first ones, and
        what follows them is the clip's joint angles.
    """
    assert recipe.planner is not None
    count = recipe.planner.branches
    branches = [
        _Planner(robot, motion, recipe, initial_qvel, (recipe.seed, attempt, branch), max(1, nthread // count))
        for branch in range(count)
    ]
    total = len(motion.dof_pos)
    wanted = total if frames is None else min(frames, total)
    stretch = max(1, round(recipe.planner.branch_sec / robot.control_dt))
    said, stop = threading.Lock(), threading.Event()
    steps_done = 0

    def advanced(steps: int) -> None:
        nonlocal steps_done
        if stop.is_set():
            raise _StoppedError
        with said:
            steps_done += steps
            if progress is not None:
                progress(min(total, steps_done // count))

    def advance(until: int) -> None:
        if pool is None:
            for branch in branches:
                branch.advance(until, advanced)
            return
        work = [pool.submit(branch.advance, until, advanced) for branch in branches]
        try:
            wait(work, return_when=FIRST_EXCEPTION)
            # The first that failed, rather than one that stopped for that reason.
            for future in sorted(work, key=lambda future: not future.done()):
                future.result()
        except BaseException:
            stop.set()
            raise

    pool = ThreadPoolExecutor(min(nthread, count)) if nthread > 1 and count > 1 else None
    with pool if pool is not None else nullcontext():
        best = branches[0]
        while best.frame < wanted and not best.lost:
            # Every stop is where the whole plan has one, so that the choice among the branches is the same.
            advance(min(total, best.frame + stretch))
            best = min(branches, key=lambda branch: branch.score)  # The first of equals.
            steps_done = count * best.frame  # One that was lost has done fewer.
            if best.lost:
                # Nobody stands: the one that stood the longest is the best there is.
                best = max(branches, key=lambda branch: branch.frame)
            for branch in branches:
                if branch is not best:
                    branch.become(best)
    return Plan(
        ctrl=best.plan(),
        fell_at=best.frame if best.lost else None,
        simulated_sec=sum(branch.simulated_sec for branch in branches),
    )


class _StoppedError(Exception):
    """Another branch has failed, or somebody wants no more of this plan."""


@dataclass(frozen=True, eq=False)
class _Trajectory:
    """A plan over T steps.

    Args:
      ctrl: (T, nu) rad. gains: (T, nu, nx) act on the state's difference from `qpos`, `qvel` (T+1, …).
      cost: (T,) of each step.
    """

    ctrl: Array
    qpos: Array
    qvel: Array
    gains: Array
    cost: Array


@dataclass(frozen=True, eq=False)
class _Samples:
    """S simulations of T steps: (S, T+1, nq), (S, T+1, nv), (S, T, nu), (S, T, residuals), (S,)."""

    qpos: Array
    qvel: Array
    ctrl: Array
    residuals: Array
    cost: Array


@dataclass(frozen=True, eq=False)
class _State:
    """Where the robot's own model is, and what the first step's residuals are measured from."""

    qpos: Array
    qvel: Array
    warmstart: Array
    soles: Array
    com_velocity: float


class _Planner:
    def __init__(
        self, robot: Robot, motion: Conditioned, recipe: Recipe, initial_qvel: Array, stream: tuple[int, ...], nthread: int
    ) -> None:
        assert recipe.planner is not None
        settings = self.settings = recipe.planner
        self.robot = robot
        self.planning = planning_model(robot, recipe.physics, settings)
        self.executing = robot.scaled_model(recipe.physics)
        self.reference = Reference.of(robot, motion, self.planning)
        model = self.planning.model

        self.horizon = max(2, round(settings.horizon_sec / robot.control_dt))
        self.replan = max(1, min(self.horizon, round(settings.replan_sec / robot.control_dt)))
        self.samples = settings.samples_of(stream[1])
        self.batch = Batch(model, self.samples, nthread=nthread)
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self.warmstart = self.batch.bind("qacc_warmstart")
        self.sole_places, self.sole_axes = self.batch.bind("geom_xpos"), self.batch.bind("geom_xmat")
        self.sensors = self.batch.bind("sensordata")
        self.gravity = -float(model.opt.gravity[2])
        # Every planner has its own stream of noise, so that no other changes it.
        self.noise_stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream[0], spawn_key=stream[1:])))
        limited = model.actuator_ctrllimited.astype(bool)
        self.ctrl_low = np.where(limited, model.actuator_ctrlrange[:, 0], -np.inf)
        self.ctrl_high = np.where(limited, model.actuator_ctrlrange[:, 1], np.inf)
        # The clip's joint angles in the actuators' order.
        self.reference_ctrl = np.zeros((self.reference.frames, model.nu))
        self.reference_ctrl[:, robot.ctrl_adr] = self.reference.dof_pos

        joints = len(robot.joint_names)
        self.nx = 2 * (6 + joints)
        # What counts as one unit of each state difference in the regression: about what the noise makes of it.
        self.state_scale = np.concatenate([[0.03] * 3, [0.06] * 3, [0.1] * joints, [0.2] * 3, [0.6] * 3, [1.5] * joints])
        self.ctrl_scale = 0.1
        self.sole_size = model.geom_size[self.planning.soles]
        self.first_share = max(1, self.planning.substeps - 1) / self.planning.substeps
        self.weight = robot.mg_for(recipe.physics)
        self.simulated_sec = 0.0

        # As the rollout will: a fresh MjData, and nothing computed before the first step, which would be a warm start.
        self.data = mujoco.MjData(self.executing)
        self.data.qpos[:], self.data.qvel[:] = motion.initial_qpos, initial_qvel
        self.probe = mujoco.MjData(model)
        self.executed = np.zeros_like(self.reference_ctrl)
        self.frame, self.lost, self.spent, self.ahead = 0, False, 0.0, 0.0
        self.trajectory: _Trajectory | None = None

    # --- The receding horizon ---------------------------------------------------------------------------------------------

    def advance(self, until: int, progress: Callable[[int], None]) -> None:
        """Plan and execute until frame `until`, or until the robot is lost; tells how many steps were executed."""
        robot, settings, data = self.robot, self.settings, self.data
        while self.frame < until and not self.lost:
            state = self._state()
            trajectory = self._improve(state, self.frame, self.trajectory)
            for _ in range((settings.first_rounds if self.frame == 0 else settings.rounds) - 1):
                progress(0)  # The first plan takes a while, in which the work may be stopped.
                trajectory = self._improve(state, self.frame, trajectory)
            steps = min(self.replan, self.reference.frames - self.frame)
            self.spent += float(trajectory.cost[:steps].sum())
            self.ahead = float(trajectory.cost[steps:].sum())
            for step in range(steps):
                off = self._difference(data.qpos, data.qvel, trajectory.qpos[step], trajectory.qvel[step])
                held = trajectory.ctrl[step] + trajectory.gains[step] @ off
                self.executed[self.frame] = data.ctrl[:] = np.clip(held, self.ctrl_low, self.ctrl_high)
                mujoco.mj_step(self.executing, data, nstep=robot.substeps)
                self.frame += 1
            self.lost = not self._upright()
            self.trajectory = self._shifted(trajectory)
            progress(steps)

    @property
    def score(self) -> float:
        """What was spent so far and what the plan still costs; infinite once the robot is lost."""
        return np.inf if self.lost else self.spent + self.ahead

    def become(self, other: _Planner) -> None:
        """Take another planner's robot and plan, and go on from there with noise of one's own."""
        row = np.empty(mujoco.mj_stateSize(self.executing, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.executing, other.data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_setState(self.executing, self.data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.executed[:] = other.executed
        self.frame, self.lost, self.trajectory = other.frame, other.lost, other.trajectory
        self.spent, self.ahead = other.spent, other.ahead

    def plan(self) -> Array:
        """(N, nu) what was executed, and the clip's angles from where the robot was lost."""
        ctrl = self.executed.copy()
        ctrl[self.frame :] = np.clip(self.reference_ctrl[self.frame :], self.ctrl_low, self.ctrl_high)
        return ctrl

    def _state(self) -> _State:
        data, probe = self.data, self.probe
        probe.qpos[:], probe.qvel[:] = data.qpos, data.qvel
        mujoco.mj_fwdPosition(self.planning.model, probe)
        mujoco.mj_sensorPos(self.planning.model, probe)
        mujoco.mj_fwdVelocity(self.planning.model, probe)
        mujoco.mj_sensorVel(self.planning.model, probe)
        return _State(
            qpos=data.qpos.copy(),
            qvel=data.qvel.copy(),
            warmstart=data.qacc_warmstart.copy(),
            soles=probe.geom_xpos[self.planning.soles].copy(),
            com_velocity=float(probe.sensordata[self.planning.com_velocity + 2]),
        )

    def _upright(self) -> bool:
        data = self.data
        if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            return False
        return bool(z_axis(self.robot.root_rotation(data.qpos))[2] > _FALLEN_UP)

    def _shifted(self, trajectory: _Trajectory) -> _Trajectory:
        """The trajectory without the steps that are done, and with as many new ones that fade towards the clip's angles."""
        done, horizon, frame = self.replan, self.horizon, self.frame
        frames = np.minimum(np.arange(frame + horizon - done - 1, frame + horizon), self.reference.frames - 1)
        offset = trajectory.ctrl[-1] - self.reference_ctrl[frames[0]]
        tail = self.reference_ctrl[frames[1:]] + offset * np.linspace(1.0, 0.5, done)[:, None]

        def moved(values: Array, fill: Array) -> Array:
            return np.concatenate([values[done:], fill])

        return _Trajectory(
            ctrl=moved(trajectory.ctrl, tail),
            qpos=moved(trajectory.qpos, np.repeat(trajectory.qpos[-1:], done, axis=0)),
            qvel=moved(trajectory.qvel, np.repeat(trajectory.qvel[-1:], done, axis=0)),
            gains=moved(trajectory.gains, np.zeros((done, *trajectory.gains.shape[1:]))),
            cost=moved(trajectory.cost, np.repeat(trajectory.cost[-1:], done)),
        )

    # --- One round ----------------------------------------------------------------------------------------------------------

    def _improve(self, state: _State, frame: int, trajectory: _Trajectory | None) -> _Trajectory:
        settings = self.settings
        controls = self._clip_controls(frame) if trajectory is None else trajectory.ctrl
        no_gains = np.zeros((*controls.shape, self.nx))
        samples = self._simulate(state, frame, controls, trajectory, self._noise())
        if samples.cost[0] >= _LOST:
            # There is nothing to fit about. Another sample may do for a nominal; else there is nothing to follow either.
            return self._without_model(state, frame, samples)
        dynamics, residuals = self._fit(samples)
        candidates, gains = [samples.ctrl[0]], [no_gains if trajectory is None else trajectory.gains]
        for damping in settings.damping:
            feedback, change = self._riccati(dynamics, residuals, samples.residuals[0], damping)
            for length in settings.step_lengths:
                candidates.append(samples.ctrl[0] + length * change)
                gains.append(feedback)
        candidates.append(samples.ctrl[int(np.argmin(samples.cost))])
        gains.append(no_gains)

        nothing = np.zeros(self.horizon)
        nominal = _Trajectory(np.array(candidates), samples.qpos[0], samples.qvel[0], np.array(gains), nothing)
        tried = self._simulate(state, frame, nominal.ctrl, nominal, np.zeros_like(nominal.ctrl))
        best = int(np.argmin(tried.cost))
        # The gains of the most damped step are also the best there are for a trajectory that no step could better.
        usable = best if 0 < best < len(candidates) - 1 else len(candidates) - 2
        cost = (tried.residuals[best] ** 2).sum(axis=1)
        return _Trajectory(tried.ctrl[best], tried.qpos[best], tried.qvel[best], nominal.gains[usable], cost)

    def _without_model(self, state: _State, frame: int, samples: _Samples) -> _Trajectory:
        best = int(np.argmin(samples.cost))
        no_gains = np.zeros((self.horizon, samples.ctrl.shape[2], self.nx))
        if samples.cost[best] < _LOST:
            cost = (samples.residuals[best] ** 2).sum(axis=1)
            return _Trajectory(samples.ctrl[best], samples.qpos[best], samples.qvel[best], no_gains, cost)
        qpos, qvel = (np.repeat(values[None], self.horizon + 1, axis=0) for values in (state.qpos, state.qvel))
        return _Trajectory(self._clip_controls(frame), qpos, qvel, no_gains, np.full(self.horizon, _LOST))

    def _clip_controls(self, frame: int) -> Array:
        """(H, nu) rad, the clip's joint angles from a frame on."""
        return self.reference_ctrl[np.minimum(np.arange(frame, frame + self.horizon), self.reference.frames - 1)]

    def _noise(self) -> Array:
        """(K, H, nu) rad, correlated in time; none for the first simulation."""
        settings = self.settings
        noise = self.noise_stream.standard_normal((self.samples, self.horizon, self.reference_ctrl.shape[1]))
        keep = settings.noise_correlation
        for step in range(1, self.horizon):
            noise[:, step] = keep * noise[:, step - 1] + np.sqrt(1.0 - keep * keep) * noise[:, step]
        noise *= settings.noise_rad
        noise[0] = 0.0
        return noise

    def _simulate(self, state: _State, frame: int, controls: Array, about: _Trajectory | None, noise: Array) -> _Samples:
        """Simulate from `state`: `controls`, (T, nu) for all or (S, T, nu), plus feedback about a trajectory, plus noise."""
        count, steps, _ = noise.shape
        ids = None if count == self.batch.nsim else np.arange(count)
        qpos, qvel = self.qpos[:count], self.qvel[:count]
        qpos[:], qvel[:], self.warmstart[:count] = state.qpos, state.qvel, state.warmstart
        com = self.planning.com_velocity + 2
        all_qpos = np.empty((count, steps + 1, qpos.shape[1]))
        all_qvel = np.empty((count, steps + 1, qvel.shape[1]))
        all_ctrl = np.empty((count, steps, noise.shape[2]))
        all_qpos[:, 0], all_qvel[:, 0] = qpos, qvel
        soles, com_velocity = np.repeat(state.soles[None], count, axis=0), np.full(count, state.com_velocity)
        residuals: list[Array] = []
        failed: set[int] = set()
        for step in range(steps):
            held = controls[..., step, :] + noise[:, step]
            if about is not None:
                off = self._difference(qpos, qvel, about.qpos[step], about.qvel[step])
                if about.gains.ndim == 3:
                    held = held + off @ about.gains[step].T
                else:
                    held = held + (about.gains[:, step] @ off[:, :, None])[:, :, 0]
            all_ctrl[:, step] = self.ctrl[:count] = np.clip(held, self.ctrl_low, self.ctrl_high)
            try:
                self.batch.step(nstep=self.planning.substeps, ids=ids)
            except SimulationError as error:
                failed.update(int(i) for i in error.ids)
            all_qpos[:, step + 1], all_qvel[:, step + 1] = qpos, qvel
            places, velocity = self.sole_places[:count, self.planning.soles], self.sensors[:count, com].copy()
            # Sensors and places are those of one physics step before the end, so that from the start, which is exact, the first
            # step's changes are over less time.
            elapsed = self.robot.control_dt * (self.first_share if step == 0 else 1.0)
            # The third row of a box's axes: how far up each of them reaches.
            rise = np.abs(self.sole_axes[:count, self.planning.soles, 6:9])
            residuals.append(
                self._residuals(
                    min(frame + step, self.reference.frames - 1),
                    qpos,
                    qvel,
                    all_ctrl[:, step],
                    places,
                    soles,
                    places[:, :, 2] - (rise * self.sole_size).sum(axis=-1),
                    (velocity - com_velocity) / elapsed,
                    elapsed,
                    self.sensors[:count, self.planning.loads],
                )
            )
            soles, com_velocity = places, velocity
        self.simulated_sec += count * steps * self.robot.control_dt
        stacked = np.stack(residuals, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            cost = (stacked**2).sum(axis=(1, 2))
        lost = ~np.isfinite(cost) | (cost > _LOST)
        lost[list(failed)] = True
        cost[lost] = _LOST
        stacked[lost] = 0.0
        return _Samples(all_qpos, all_qvel, all_ctrl, stacked, cost)

    def _residuals(
        self,
        frame: int,
        qpos: Array,
        qvel: Array,
        ctrl: Array,
        soles: Array,
        before: Array,
        lowest: Array,
        com_acceleration: Array,
        elapsed: float,
        forces: Array,
    ) -> Array:
        """(S, R) what is wrong with frame `frame`; the cost is the sum of the squares."""
        robot, reference, cost = self.robot, self.reference, self.settings.cost
        root_q, root_v, count = robot.root_qpos_adr, robot.root_qvel_adr, len(qpos)
        position, velocity = qpos[:, root_q : root_q + 3], qvel[:, root_v : root_v + 3]
        rotation = robot.root_rotation(qpos)
        up, forward = z_axis(rotation), x_axis(rotation)
        away = position - reference.root_pos[frame]
        sole_velocity = (soles - before)[:, :, :2] / elapsed
        standing = reference.standing[frame]
        # A foot that is as low as this may be carrying weight, whether the clip means it to or not.
        low = np.clip((_LOW - lowest) / _LOW, 0.0, 1.0)
        load = 1.0 + com_acceleration / self.gravity
        pressed = np.clip(forces / (_STANDING * self.weight), 0.0, 1.0)
        joints = qpos[:, robot.qpos_adr] - reference.dof_pos[frame]
        parts: list[tuple[float, Array]] = [
            (cost.joints, joints),
            (cost.height, away[:, 2:]),
            (cost.upright, up - reference.up[frame]),
            (cost.heading, forward - reference.forward[frame]),
            (cost.place, away[:, :2]),
            (cost.feet, (soles - reference.soles[frame]).reshape(count, -1)),
            (cost.slip, (np.sqrt(low)[:, :, None] * sole_velocity).reshape(count, -1)),
            (cost.stance_slip, (np.sqrt(standing)[:, None] * sole_velocity).reshape(count, -1)),
            (cost.stance, np.sqrt(standing) * lowest),
            (cost.stance, np.sqrt(1.0 - standing) * np.minimum(0.0, lowest - reference.clearance[frame])),
            (cost.contact, np.sqrt(standing) * (1.0 - pressed)),
            (cost.contact, np.sqrt(1.0 - standing) * pressed),
            (cost.vertical_velocity, velocity[:, 2:]),
            (cost.load, (load - 1.0)[:, None]),
            (cost.unloaded, np.minimum(0.0, load - 0.8)[:, None]),
            (cost.root_rate, qvel[:, root_v + 3 : root_v + 6]),
            (cost.joint_rate, qvel[:, robot.qvel_adr]),
            (cost.control, ctrl - self.reference_ctrl[frame]),
            (cost.leaning, np.sqrt(np.maximum(0.0, _LEANING_UP - up[:, 2:]))),
        ]
        with np.errstate(over="ignore", invalid="ignore"):
            scale = robot.control_dt / _NOMINAL_DT
            return np.concatenate([np.sqrt(weight * scale) * values for weight, values in parts], axis=1)

    def _difference(self, qpos: Array, qvel: Array, qpos0: Array, qvel0: Array) -> Array:
        """(…, nx) a state's difference from another: position, rotation vector in the body's frame, joints, velocities."""
        robot = self.robot
        root_q, root_v = robot.root_qpos_adr, robot.root_qvel_adr
        change = qvel - qvel0
        return np.concatenate(
            [
                qpos[..., root_q : root_q + 3] - qpos0[..., root_q : root_q + 3],
                rotation_vector(robot.root_rotation(qpos0), robot.root_rotation(qpos)),
                qpos[..., robot.qpos_adr] - qpos0[..., robot.qpos_adr],
                change[..., root_v : root_v + 6],
                change[..., robot.qvel_adr],
            ],
            axis=-1,
        )

    def _fit(self, samples: _Samples) -> tuple[Array, Array]:
        """Scaled linear models about the nominal: (H, nx, nx+nu) of the next state, (H, R, nx+nu) of the residuals."""
        settings, nx = self.settings, self.nx
        # What fell says little about the neighbourhood of what did not.
        kept = samples.cost <= np.quantile(samples.cost, 1.0 - settings.discard)
        kept &= samples.cost < _LOST
        kept[0] = True
        states = self._difference(samples.qpos[kept], samples.qvel[kept], samples.qpos[0], samples.qvel[0]) / self.state_scale
        controls = (samples.ctrl[kept] - samples.ctrl[0]) / self.ctrl_scale
        causes = np.concatenate([states[:, :-1], controls], axis=2).swapaxes(0, 1)
        # The state's change rather than the next state: ridge then pulls towards "stays as it is", not towards zero.
        effects = np.concatenate(
            [states[:, 1:] - states[:, :-1], samples.residuals[kept] - samples.residuals[0]], axis=2
        ).swapaxes(0, 1)
        transposed = causes.swapaxes(1, 2)
        gram, cross = _pooled(transposed @ causes, settings.pooling), _pooled(transposed @ effects, settings.pooling)
        gram += settings.ridge * len(states) * np.eye(gram.shape[1])
        solution = np.asarray(np.linalg.solve(gram, cross), dtype=np.float64).swapaxes(1, 2)
        solution[:, :nx, :nx] += np.eye(nx)
        return solution[:, :nx], solution[:, nx:]

    def _riccati(self, dynamics: Array, residuals: Array, nominal: Array, damping: float) -> tuple[Array, Array]:
        """Gains (H, nu, nx) and change (H, nu) [rad] of the controls that minimize the modelled cost."""
        nx, steps = self.nx, len(dynamics)
        nu = dynamics.shape[2] - nx
        gains, change = np.empty((steps, nu, nx)), np.empty((steps, nu))
        value, slope = np.zeros((nx, nx)), np.zeros(nx)
        extra = damping * np.eye(nu)
        hessians = residuals.swapaxes(1, 2) @ residuals
        slopes = (residuals.swapaxes(1, 2) @ nominal[:, :, None])[:, :, 0]
        for step in range(steps - 1, -1, -1):
            model = dynamics[step]
            hessian = model.T @ value @ model + hessians[step]
            gradient = model.T @ slope + slopes[step]
            uu, ux = hessian[nx:, nx:], hessian[nx:, :nx]
            solved = np.linalg.solve(uu + extra, np.concatenate([ux, gradient[nx:, None]], axis=1))
            gain, shift = -solved[:, :nx], -solved[:, nx]
            gains[step], change[step] = gain, shift
            # The value of acting so, not that of acting best: with damping the two differ.
            value = hessian[:nx, :nx] + gain.T @ uu @ gain + gain.T @ ux + ux.T @ gain
            value = (value + value.T) / 2
            slope = gradient[:nx] + gain.T @ (uu @ shift + gradient[nx:]) + ux.T @ shift
        return gains * (self.ctrl_scale / self.state_scale), change * self.ctrl_scale


def _pooled(values: Array, weight: float) -> Array:
    """Each step's sums with its neighbours' at a weight, as a mean."""
    pooled = values.copy()
    pooled[1:] += weight * values[:-1]
    pooled[:-1] += weight * values[1:]
    return pooled / (1.0 + 2.0 * weight)
