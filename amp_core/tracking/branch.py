"""One planner with a receding horizon: it plans, executes the first steps in the robot's own model, and plans again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.motion import Conditioned
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rotations import z_axis
from amp_core.tracking.harness import harness_force, harness_targets
from amp_core.tracking.sampler import FAILED_COST, Sampler, Samples, State, Trajectory
from amp_core.tracking.scaling import Scaling

Array = npt.NDArray[np.float64]

# A robot so far from its clip is in trouble: lengths are those of a robot like WildRobot.
_OFF_UP = math.radians(35.0)
_OFF_PLACE = 0.15  # m
_OFF_HEIGHT = 0.027  # m, at any time: a jump is over before the next look

_RESCUE_ROUNDS = 2
_STEADY_UP = 0.94  # cosine of 20° between the root's z axis and the clip's, at the end of a plan that holds
_FALLEN_UP = 0.5  # vertical part of the root's z axis: 60° of tilt


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A robot and its plan at a frame, as `Branch` has them; `state` is MuJoCo's integration state."""

    state: Array
    executed: Array
    frame: int
    fell: bool
    trajectory: Trajectory | None
    spent: float
    plan_cost: float
    height_error: float


class Branch:
    """One planner, with its own noise and its own robot.

    Args:
      stream: seed, attempt and number of the branch: they select the noise.
    """

    def __init__(
        self, robot: Robot, clip: Conditioned, recipe: Recipe, initial_qvel: Array, stream: tuple[int, int, int], nthread: int
    ) -> None:
        assert recipe.planner is not None
        self.settings = recipe.planner
        self.harness = recipe.harness_of(stream[1], robot.mg_for(recipe.physics))
        self.targets = harness_targets(clip.root_pos, recipe).tolist()
        samples = self.settings.samples_of(Scaling.of(robot).step_effort(stream[1]))
        self.samplers = [Sampler(robot, clip, recipe, samples, nthread, self.harness)]
        self.make_strong_sampler = partial(Sampler, robot, clip, recipe, 2 * samples, nthread, self.harness)
        self.sampler = self.samplers[0]
        self.rescue_rounds = _RESCUE_ROUNDS if self.sampler.scaling.has_many else 0
        self.replan = max(1, min(self.sampler.horizon, round(self.settings.replan_sec / robot.control_dt)))
        self.noise_stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream[0], spawn_key=stream[1:])))
        self.model = robot.scaled_model(recipe.physics)
        # As the rollout will: a fresh MjData, and nothing computed before the first step, which would be a warm start.
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:], self.data.qvel[:] = clip.initial_qpos, initial_qvel
        self.executed = np.zeros_like(self.sampler.reference_ctrl)
        self.clip_height = clip.root_pos[:, 2]
        self.frame, self.fell, self.spent, self.plan_cost = 0, False, 0.0, 0.0
        self.height_error = 0.0
        self.trajectory: Trajectory | None = None
        self.partings: list[float] = []

    def advance(self, until: int, progress: Callable[[int], None]) -> None:
        """Plan and execute until frame `until`, or until the robot falls.

        Args:
          progress: called with the number of steps executed since its last call; it may raise to stop the work.
        """
        sampler, settings, data = self.sampler, self.settings, self.data
        height = sampler.robot.root_qpos_adr + 2
        self.height_error = 0.0
        while self.frame < until and not self.fell:
            state = sampler.read_state(data)
            trajectory = self.improve(state, self.trajectory)
            for _ in range((settings.first_rounds if self.frame == 0 else settings.rounds) - 1):
                progress(0)  # The first plan takes a while, in which the work may be stopped.
                trajectory = self.improve(state, trajectory)
            for _ in range(self.rescue_rounds):
                if not self._leans_over(trajectory):
                    break
                progress(0)
                trajectory = self.improve(state, trajectory)
            steps = min(self.replan, len(self.executed) - self.frame)
            self.spent += float(trajectory.cost[:steps].sum())
            self.plan_cost = float(trajectory.cost[steps:].sum())
            for step in range(steps):
                offset = sampler.difference(data.qpos, data.qvel, trajectory.qpos[step], trajectory.qvel[step])
                ctrl = trajectory.ctrl[step] + trajectory.gains[step] @ offset
                self.executed[self.frame] = data.ctrl[:] = np.clip(ctrl, *sampler.ctrl_range)
                self._apply_harness()
                mujoco.mj_step(self.model, data, nstep=sampler.robot.substeps)
                self.height_error = max(self.height_error, abs(float(data.qpos[height] - self.clip_height[self.frame])))
                self.frame += 1
            joints = data.qpos[sampler.active_qpos] - trajectory.qpos[steps][sampler.active_qpos]
            with np.errstate(over="ignore", invalid="ignore"):
                self.partings.append(float(np.sqrt((joints**2).mean())))
            finite = np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()
            self.fell = not (finite and z_axis(sampler.robot.root_rotation(data.qpos))[2] > _FALLEN_UP)
            frames = np.arange(self.frame + sampler.horizon - self.replan - 1, self.frame + sampler.horizon)
            self.trajectory = trajectory.shift(sampler.reference_ctrl[np.minimum(frames, len(self.executed) - 1)])
            progress(steps)

    def _leans_over(self, trajectory: Trajectory) -> bool:
        """Whether a plan ends in a robot that leans much further than the clip."""
        sampler = self.sampler
        frame = min(self.frame + sampler.horizon, sampler.reference.frames) - 1
        up = z_axis(sampler.robot.root_rotation(trajectory.qpos[-1]))
        return not float(up @ sampler.reference.up[frame]) > _STEADY_UP

    def _apply_harness(self) -> None:
        """Apply the force that the rollout will apply in this frame, by the same plain floats."""
        if self.harness.is_off:
            return
        robot, data = self.sampler.robot, self.data
        q, v = robot.root_qpos_adr, robot.root_qvel_adr + 2
        height, *quat = data.qpos[q + 2 : q + 7].tolist()
        velocity = float(data.qvel[v])
        data.qfrc_applied[v] = harness_force(self.harness, self.targets[self.frame], height, velocity, quat)

    @property
    def score(self) -> float:
        """The cost of the executed steps and of the plan ahead; infinite once the robot fell."""
        return np.inf if self.fell else self.spent + self.plan_cost

    @property
    def deviation(self) -> float:
        """How far the robot is from the clip, in height since it last began to advance; trouble begins at 1.

        One that fell is infinitely far.
        """
        if self.fell or self.frame == 0:
            return np.inf if self.fell else 0.0
        sampler, frame, root = self.sampler, self.frame - 1, self.sampler.robot.root_qpos_adr
        up = z_axis(sampler.robot.root_rotation(self.data.qpos))
        tilt = math.acos(min(1.0, float(up @ sampler.reference.up[frame])))
        x, y = self.data.qpos[root : root + 2] - sampler.reference.root_pos[frame, :2]
        size = sampler.scaling.size
        return max(tilt / _OFF_UP, math.hypot(x, y) / (_OFF_PLACE * size), self.height_error / (_OFF_HEIGHT * size))

    @property
    def parting_rad(self) -> float:
        """rad, the joints' root mean square difference from the plan when the next one is made: its median over all plans."""
        return float(np.median(self.partings)) if self.partings else 0.0

    @property
    def simulated_sec(self) -> float:
        """s of simulated time that planning took."""
        return sum(sampler.simulated_sec for sampler in self.samplers)

    def use_sampler(self, *, strong: bool) -> None:
        """Plan with twice the simulations from now on, or with as many as the recipe says."""
        if strong and len(self.samplers) == 1:
            self.samplers.append(self.make_strong_sampler())
        self.sampler = self.samplers[strong]

    def save(self) -> Checkpoint:
        """The robot and the plan as they are now."""
        state = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        scores = (self.spent, self.plan_cost, self.height_error)
        return Checkpoint(state, self.executed.copy(), self.frame, self.fell, self.trajectory, *scores)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from another robot and plan, perhaps another branch's, with this branch's own noise."""
        mujoco.mj_setState(self.model, self.data, checkpoint.state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.executed[:] = checkpoint.executed
        self.frame, self.fell, self.trajectory = checkpoint.frame, checkpoint.fell, checkpoint.trajectory
        self.spent, self.plan_cost, self.height_error = checkpoint.spent, checkpoint.plan_cost, checkpoint.height_error

    def controls(self) -> Array:
        """(N, nu) rad, the executed controls, and the clip's angles from the fall on."""
        ctrl = self.executed.copy()
        ctrl[self.frame :] = np.clip(self.sampler.reference_ctrl[self.frame :], *self.sampler.ctrl_range)
        return ctrl

    def improve(self, state: State, trajectory: Trajectory | None) -> Trajectory:
        """One round from the current frame: a better trajectory than the given one, or than the clip's joint angles."""
        sampler = self.sampler
        controls = sampler.clip_controls(self.frame) if trajectory is None else trajectory.ctrl
        no_gains = np.zeros((*controls.shape, sampler.nx))
        samples = sampler.simulate(state, self.frame, controls, trajectory, self._draw_noise())
        if samples.cost[0] >= FAILED_COST:
            return self._fall_back(state, samples, no_gains)
        models = sampler.fit(samples)
        candidates, gains = [samples.ctrl[0]], [no_gains if trajectory is None else trajectory.gains]
        for damping in self.settings.damping:
            feedback, change = sampler.step_controls(models, samples.residuals[0], damping)
            for length in self.settings.step_lengths:
                candidates.append(samples.ctrl[0] + length * change)
                gains.append(feedback)
        candidates.append(samples.ctrl[int(np.argmin(samples.cost))])
        gains.append(no_gains)

        nominal = Trajectory(np.array(candidates), samples.qpos[0], samples.qvel[0], np.array(gains), np.zeros(sampler.horizon))
        trials = sampler.simulate(state, self.frame, nominal.ctrl, nominal, np.zeros_like(nominal.ctrl))
        best = int(np.argmin(trials.cost))
        # The gains of the most damped step are also the best there are for a trajectory that no step could better.
        usable = best if 0 < best < len(candidates) - 1 else len(candidates) - 2
        return trials.trajectory(best, nominal.gains[usable])

    def _fall_back(self, state: State, samples: Samples, no_gains: Array) -> Trajectory:
        """The best sample where the nominal simulation failed and nothing can be fitted about it; else the clip's angles."""
        best = int(np.argmin(samples.cost))
        if samples.cost[best] < FAILED_COST:
            return samples.trajectory(best, no_gains)
        qpos, qvel = (np.repeat(values[None], self.sampler.horizon + 1, axis=0) for values in (state.qpos, state.qvel))
        cost = np.full(self.sampler.horizon, FAILED_COST)
        return Trajectory(self.sampler.clip_controls(self.frame), qpos, qvel, no_gains, cost)

    def _draw_noise(self) -> Array:
        """(K, H, nu) rad, correlated in time; none for the first simulation."""
        sampler, settings = self.sampler, self.settings
        noise = self.noise_stream.standard_normal((sampler.batch.nsim, sampler.horizon, sampler.reference_ctrl.shape[1]))
        keep = settings.noise_correlation
        for step in range(1, sampler.horizon):
            noise[:, step] = keep * noise[:, step - 1] + np.sqrt(1.0 - keep * keep) * noise[:, step]
        noise *= sampler.noise
        noise[0] = 0.0
        return noise
