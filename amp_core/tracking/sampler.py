"""Simulations of the planning model from one state of the robot: their cost, and linear models of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import Batch, SimulationError, mujoco
from amp_core.motion import Conditioned
from amp_core.recipe import MAX_SAMPLES, Harness, Recipe
from amp_core.robot import Robot
from amp_core.rotations import rotation_vector, x_axis, z_axis
from amp_core.tracking.gauss_newton import fit_models, solve_riccati
from amp_core.tracking.harness import harness_forces, harness_targets
from amp_core.tracking.model import planning_model
from amp_core.tracking.reference import Reference
from amp_core.tracking.scaling import Scaling

Array = npt.NDArray[np.float64]

FAILED_COST = 1e12
"""The cost of a simulation that left the finite numbers."""

_LEANING_UP = 0.9  # vertical part of the root's z axis where the cost of leaning begins: 26°
_STANDING = 0.15  # of the weight; a foot that carries as much stands, one that carries half of it half stands
_LOW = 0.012  # m, of a robot like WildRobot
_LIMITS = 100.0  # weight of the squares of what joints are beyond their range, in rad
_NOMINAL_DT = 0.02  # s; the costs are given for a frame of this length


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A plan over T steps.

    Args:
      ctrl: (T, nu) rad.
      qpos, qvel: (T+1, …) the states that it expects.
      gains: (T, nu, nx) of the feedback on the state's difference from `qpos` and `qvel`.
      cost: (T,) of each step.
    """

    ctrl: Array
    qpos: Array
    qvel: Array
    gains: Array
    cost: Array

    def shift(self, reference: Array) -> Trajectory:
        """The trajectory without its first S steps, and with as many new ones that fade towards the clip's angles.

        Args:
          reference: (S+1, nu) rad, the clip's angles at the last step and at the new ones.
        """
        steps = len(reference) - 1
        tail = reference[1:] + (self.ctrl[-1] - reference[0]) * np.linspace(1.0, 0.5, steps)[:, None]

        def extend(values: Array, tail: Array) -> Array:
            return np.concatenate([values[steps:], tail])

        return Trajectory(
            ctrl=extend(self.ctrl, tail),
            qpos=extend(self.qpos, np.repeat(self.qpos[-1:], steps, axis=0)),
            qvel=extend(self.qvel, np.repeat(self.qvel[-1:], steps, axis=0)),
            gains=extend(self.gains, np.zeros((steps, *self.gains.shape[1:]))),
            cost=extend(self.cost, np.repeat(self.cost[-1:], steps)),
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """S simulations of T steps: (S, T+1, nq), (S, T+1, nv), (S, T, nu) rad, (S, T, residuals), (S,)."""

    qpos: Array
    qvel: Array
    ctrl: Array
    residuals: Array
    cost: Array

    def trajectory(self, sample: int, gains: Array) -> Trajectory:
        """One simulation as a plan."""
        cost = (self.residuals[sample] ** 2).sum(axis=1)
        return Trajectory(self.ctrl[sample], self.qpos[sample], self.qvel[sample], gains, cost)


@dataclass(frozen=True, eq=False)
class State:
    """A state of the robot's own model, and what the first step's residuals are measured from.

    Args:
      soles: (F, 3) m. com_velocity: m/s, vertical.
    """

    qpos: Array
    qvel: Array
    warmstart: Array
    soles: Array
    com_velocity: float


class Sampler:
    """Simulates a clip's planning model, as many simulations side by side as a round has.

    Args:
      samples: of a round, for a robot like WildRobot.
      harness: what carries a part of the robot, in N.
    """

    def __init__(self, robot: Robot, clip: Conditioned, recipe: Recipe, samples: int, nthread: int, harness: Harness) -> None:
        assert recipe.planner is not None
        self.robot, self.settings = robot, recipe.planner
        self.planning = planning_model(robot, recipe.physics, self.settings)
        self.scaling = scaling = Scaling.of(robot)
        self.reference = Reference.of(robot, clip, self.planning, scaling)
        model = self.planning.model
        self.horizon = max(2, round(self.settings.horizon_sec / robot.control_dt))
        samples = min(MAX_SAMPLES, round(samples * scaling.samples))
        self.batch = Batch(model, samples, nthread=nthread)
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self.warmstart = self.batch.bind("qacc_warmstart")
        self.sole_places, self.sole_axes = self.batch.bind("geom_xpos"), self.batch.bind("geom_xmat")
        self.sensors = self.batch.bind("sensordata")
        self.probe = mujoco.MjData(model)
        self.ctrl_range = robot.ctrl_range
        # In the actuators' order.
        self.reference_ctrl = np.zeros((self.reference.frames, model.nu))
        self.reference_ctrl[:, robot.ctrl_adr] = self.reference.controls

        # The joints that are steered: their places in states and controls.
        active = scaling.active
        self.active_qpos, self.active_qvel = robot.qpos_adr[active], robot.qvel_adr[active]
        self.active_ctrl = robot.ctrl_adr[active]
        self.nx = 2 * (6 + len(active))
        size, speed, share = scaling.size, scaling.speed, scaling.noise
        # One unit of each state difference in the regression: about what the noise makes of it.
        self.state_scale = np.concatenate(
            [[0.03 * size] * 3, [0.06] * 3, 0.1 * share, [0.2 * speed] * 3, [0.6] * 3, 1.5 * share]
        )
        self.ctrl_scale = 0.1 * share
        self.noise = np.zeros(model.nu)
        self.noise[self.active_ctrl] = self.settings.noise_rad * share
        self.sole_size = model.geom_size[self.planning.soles]
        self.first_share = max(1, self.planning.substeps - 1) / self.planning.substeps
        self.gravity = -float(model.opt.gravity[2])
        self.weight = robot.mg_for(recipe.physics)
        self.harness = harness
        self.harness_targets = harness_targets(clip.root_pos, recipe)
        # Of each simulation, the harness's force in this step, over the weight.
        self.lift = np.zeros(samples)
        self.applied = self.batch.bind("qfrc_applied")
        self.simulated_sec = 0.0

    def clip_controls(self, frame: int) -> Array:
        """(H, nu) rad, the clip's joint angles from a frame on."""
        return self.reference_ctrl[np.minimum(np.arange(frame, frame + self.horizon), self.reference.frames - 1)]

    def read_state(self, data: Any) -> State:
        """The state of an `MjData` of the robot's own model."""
        probe, model = self.probe, self.planning.model
        probe.qpos[:], probe.qvel[:] = data.qpos, data.qvel
        mujoco.mj_fwdPosition(model, probe)
        mujoco.mj_sensorPos(model, probe)
        mujoco.mj_fwdVelocity(model, probe)
        mujoco.mj_sensorVel(model, probe)
        return State(
            qpos=data.qpos.copy(),
            qvel=data.qvel.copy(),
            warmstart=data.qacc_warmstart.copy(),
            soles=probe.geom_xpos[self.planning.soles].copy(),
            com_velocity=float(probe.sensordata[self.planning.com_velocity + 2]),
        )

    def simulate(self, state: State, frame: int, controls: Array, about: Trajectory | None, noise: Array) -> Samples:
        """Simulate S times T steps from `state`.

        Args:
          frame: of the clip, at which the first step is.
          controls: (T, nu) for all or (S, T, nu) rad.
          about: adds feedback about this trajectory, whose gains are (T, nu, nx) for all or (S, T, nu, nx).
          noise: (S, T, nu) rad, added to the controls.
        """
        count, steps, _ = noise.shape
        ids = None if count == self.batch.nsim else np.arange(count)
        qpos, qvel = self.qpos[:count], self.qvel[:count]
        qpos[:], qvel[:], self.warmstart[:count] = state.qpos, state.qvel, state.warmstart
        all_qpos = np.empty((count, steps + 1, qpos.shape[1]))
        all_qvel = np.empty((count, steps + 1, qvel.shape[1]))
        all_ctrl = np.empty((count, steps, noise.shape[2]))
        all_qpos[:, 0], all_qvel[:, 0] = qpos, qvel
        soles, com_velocity = np.repeat(state.soles[None], count, axis=0), np.full(count, state.com_velocity)
        residuals: list[Array] = []
        failed_ids: set[int] = set()
        for step in range(steps):
            ctrl = controls[..., step, :] + noise[:, step]
            if about is not None:
                offset = self.difference(qpos, qvel, about.qpos[step], about.qvel[step])
                # Of a simulation that has left the finite numbers; the cost will tell.
                with np.errstate(over="ignore", invalid="ignore"):
                    if about.gains.ndim == 3:
                        ctrl = ctrl + offset @ about.gains[step].T
                    else:
                        ctrl = ctrl + (about.gains[:, step] @ offset[:, :, None])[:, :, 0]
            all_ctrl[:, step] = self.ctrl[:count] = np.clip(ctrl, *self.ctrl_range)
            if not self.harness.is_off:
                self._apply_harness(min(frame + step, self.reference.frames - 1), qpos, qvel)
            try:
                self.batch.step(nstep=self.planning.substeps, ids=ids)
            except SimulationError as error:
                failed_ids.update(int(i) for i in error.ids)
            all_qpos[:, step + 1], all_qvel[:, step + 1] = qpos, qvel
            # Sensors and places are those of one physics step before the end, so that from the start, which is exact, the first
            # step's changes are over less time.
            step_sec = self.robot.control_dt * (self.first_share if step == 0 else 1.0)
            frame_residuals, soles, com_velocity = self.residuals(
                min(frame + step, self.reference.frames - 1), all_ctrl[:, step], soles, com_velocity, step_sec
            )
            residuals.append(frame_residuals)
        self.simulated_sec += count * steps * self.robot.control_dt
        deviations = np.stack(residuals, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            cost = (deviations**2).sum(axis=(1, 2))
        has_diverged = ~np.isfinite(cost) | (cost > FAILED_COST)
        has_diverged[list(failed_ids)] = True
        cost[has_diverged] = FAILED_COST
        deviations[has_diverged] = 0.0
        return Samples(all_qpos, all_qvel, all_ctrl, deviations, cost)

    def _apply_harness(self, frame: int, qpos: Array, qvel: Array) -> None:
        """Let the harness act on the first S simulations in their next step; not on one that has left the finite numbers."""
        robot = self.robot
        v = robot.root_qvel_adr + 2
        with np.errstate(over="ignore", invalid="ignore"):
            force = harness_forces(
                self.harness,
                self.harness_targets[frame],
                qpos[:, robot.root_qpos_adr + 2],
                qvel[:, v],
                robot.root_rotation(qpos),
            )
        self.applied[: len(qpos), v] = np.where(np.isfinite(force), force, 0.0)
        self.lift[: len(qpos)] = self.applied[: len(qpos), v] / self.weight

    def residuals(
        self, frame: int, ctrl: Array, soles: Array, com_velocity: Array, elapsed_sec: float
    ) -> tuple[Array, Array, Array]:
        """How far the first S simulations of the batch are from frame `frame` of the clip.

        Args:
          ctrl: (S, nu) rad.
          soles, com_velocity: (S, F, 3) m and (S,) m/s, vertical; as they were `elapsed_sec` s ago.

        Returns:
          (S, R) the deviations, whose sum of squares is the cost, and the `soles` and `com_velocity` of now.
        """
        robot, reference, cost, count = self.robot, self.reference, self.settings.cost, len(ctrl)
        root_q, root_v = robot.root_qpos_adr, robot.root_qvel_adr
        qpos, qvel, sensors = self.qpos[:count], self.qvel[:count], self.sensors[:count]
        places, com_now = self.sole_places[:count, self.planning.soles], sensors[:, self.planning.com_velocity + 2].copy()
        # The third row of a box's axes: how far up each of them reaches.
        rise = np.abs(self.sole_axes[:count, self.planning.soles, 6:9])
        lowest = places[:, :, 2] - (rise * self.sole_size).sum(axis=-1)
        sole_velocity = (places - soles)[:, :, :2] / elapsed_sec
        position, velocity = qpos[:, root_q : root_q + 3], qvel[:, root_v : root_v + 3]
        rotation = robot.root_rotation(qpos)
        up, forward = z_axis(rotation), x_axis(rotation)
        offset = position - reference.root_pos[frame]
        standing = reference.standing[frame]
        # A foot that is as low as this may be carrying weight, also where it does not stand in the clip.
        size, carried, aim = self.scaling.size, reference.carried[frame], float(reference.load[frame])
        area, lowness = size * size, _LOW * size
        low = np.clip((lowness - lowest) / lowness, 0.0, 1.0)
        load = 1.0 + (com_now - com_velocity) / elapsed_sec / self.gravity - self.lift[:count]
        pressure = np.clip(sensors[:, self.planning.loads] / (_STANDING * self.weight), 0.0, 1.0)
        angles = qpos[:, robot.qpos_adr]
        joints = angles - reference.dof_pos[frame]
        # Weights are for a robot like WildRobot; a larger one's lengths weigh less, but for its place: drift is in metres.
        parts: list[tuple[float, Array]] = [
            (cost.joints, joints),
            (cost.height * reference.height_weight[frame] / area, offset[:, 2:]),
            (cost.upright, up - reference.up[frame]),
            (cost.heading, forward - reference.forward[frame]),
            (cost.place * size, offset[:, :2]),
            (cost.feet / area, (places - reference.soles[frame]).reshape(count, -1)),
            (cost.slip / size, (np.sqrt(low)[:, :, None] * sole_velocity).reshape(count, -1)),
            (cost.stance_slip / size, (np.sqrt(standing)[:, None] * sole_velocity).reshape(count, -1)),
            (cost.stance / area, np.sqrt(standing) * lowest),
            (cost.stance / area, np.sqrt(1.0 - standing) * np.minimum(0.0, lowest - reference.clearance[frame])),
            (cost.contact, np.sqrt(standing) * (1.0 - pressure)),
            (cost.contact, np.sqrt(1.0 - standing) * pressure),
            (cost.vertical_velocity * carried / size, velocity[:, 2:] - reference.rise[frame]),
            (cost.load * carried, (load - aim)[:, None]),
            (cost.unloaded * carried, np.minimum(0.0, load - 0.8 * min(1.0, aim))[:, None]),
            (cost.root_rate, qvel[:, root_v + 3 : root_v + 6]),
            (cost.joint_rate, qvel[:, robot.qvel_adr]),
            (cost.control, ctrl - self.reference_ctrl[frame]),
            (cost.leaning, np.sqrt(np.maximum(0.0, _LEANING_UP - up[:, 2:]))),
        ]
        if self.scaling.has_many:
            parts.append((_LIMITS, np.clip(angles, *robot.joint_range.T) - angles))
        with np.errstate(over="ignore", invalid="ignore"):
            scale = robot.control_dt / _NOMINAL_DT
            deviations = np.concatenate([np.sqrt(weight * scale) * values for weight, values in parts], axis=1)
        return deviations, places, com_now

    def difference(self, qpos: Array, qvel: Array, qpos0: Array, qvel0: Array) -> Array:
        """(…, nx) a state's difference from another: position, rotation vector in the body's frame, joints, velocities."""
        robot = self.robot
        root_q, root_v = robot.root_qpos_adr, robot.root_qvel_adr
        change = qvel - qvel0
        return np.concatenate(
            [
                qpos[..., root_q : root_q + 3] - qpos0[..., root_q : root_q + 3],
                rotation_vector(robot.root_rotation(qpos0), robot.root_rotation(qpos)),
                qpos[..., self.active_qpos] - qpos0[..., self.active_qpos],
                change[..., root_v : root_v + 6],
                change[..., self.active_qvel],
            ],
            axis=-1,
        )

    def fit(self, samples: Samples) -> tuple[Array, Array]:
        """`fit_models` about the first sample, in units of `state_scale` and `ctrl_scale`."""
        settings = self.settings
        # The most expensive samples, such as those of a robot that fell, would distort a model of the neighbourhood.
        near = samples.cost <= np.quantile(samples.cost, 1.0 - settings.discard)
        near &= samples.cost < FAILED_COST
        near[0] = True
        states = self.difference(samples.qpos[near], samples.qvel[near], samples.qpos[0], samples.qvel[0]) / self.state_scale
        controls = (samples.ctrl[near] - samples.ctrl[0])[..., self.active_ctrl] / self.ctrl_scale
        residuals = samples.residuals[near] - samples.residuals[0]
        return fit_models(states, controls, residuals, ridge=settings.ridge, pooling=settings.pooling)

    def step_controls(self, models: tuple[Array, Array], nominal: Array, damping: float) -> tuple[Array, Array]:
        """`solve_riccati` over the models of `fit`, in rad: gains (T, nu, nx) and change (T, nu)."""
        active_gains, active_change = solve_riccati(*models, nominal, damping)
        steps, nu = len(nominal), len(self.noise)
        gains, change = np.zeros((steps, nu, self.nx)), np.zeros((steps, nu))
        gains[:, self.active_ctrl] = active_gains * (self.ctrl_scale[:, None] / self.state_scale)
        change[:, self.active_ctrl] = active_change * self.ctrl_scale
        return gains, change
