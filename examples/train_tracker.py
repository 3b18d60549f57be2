"""Trains a small tracker for the bundled WildRobot by imitation of the planner, and writes it as ONNX.

    python examples/train_tracker.py [--clip NAME] [--rounds N] [--out FILE.onnx]

The planner of mode `tracked` is the expert. In each round it plans along the clip. The controls that it would give, its
feedback included, are recorded at the robot's state and at states near it. A network then learns them from what
`walk_tracker.yaml` declares. From the second round on the network drives the robot for a growing share of the time while the
planner goes on to say what it would do: so the data have the states that the network itself comes into (Ross, Gordon and
Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning", AISTATS 2011).

Needs ampref with the extras [physics,train]. Three rounds take four minutes on two processors. The best network of all rounds
is kept: one that stays up, with noise on its actions as well, and near the clip. Another machine rounds otherwise, and gets
another network.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_writer
import optax

from amp_core.engine import mujoco
from amp_core.formats import read_motion
from amp_core.motion import Conditioned, condition
from amp_core.motions import bundled_motions, reading_options
from amp_core.onnx_policy import ClipReference, Observer, read_spec
from amp_core.recipe import Harness, Planner, Recipe
from amp_core.robot import Robot
from amp_core.rotations import tilt
from amp_core.tracking.branch import Branch

FOLDER = Path(__file__).parent
SPEC = FOLDER / "walk_tracker.yaml"
DRIVEN_SHARES = (0.0, 0.2, 0.35, 0.5)
"""Of the stretches of a round, those in which the network drives; the last holds for all that follow."""
NEIGHBOURS = 40
"""States near each visited one, the visited one included."""
PLACE_NOISE, TURN_NOISE, JOINT_NOISE = 0.01, 0.03, 0.03  # m, rad, rad
SPEED_NOISE, SPIN_NOISE, JOINT_SPEED_NOISE = 0.05, 0.2, 0.4  # m/s, rad/s, rad/s
CTRL_NOISE = 0.03  # rad, on what drives the robot
GOAL_ERROR, GOAL_DRIFT, OFF_COST = 0.13, 0.15, 50.0  # rad, m (the goals of mode tracked); frames that missing one costs
FALLEN_RAD = np.deg2rad(60.0)
HIDDEN = (128, 128)
LEARNING_RATE, BATCH, STEPS = 2e-3, 512, 5000
INPUT_NOISE = 0.1
"""Of a number's deviation: what keeps the network smooth between the samples."""


@dataclass(frozen=True)
class Network:
    """tanh layers on a normalized observation; the action is the last layer's, in rad."""

    mean: np.ndarray
    deviation: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        values = (observation - self.mean) / self.deviation
        for weights, bias in self.layers[:-1]:
            values = np.tanh(values @ weights + bias)
        weights, bias = self.layers[-1]
        return values @ weights + bias

    def to_onnx(self, robot: Robot) -> bytes:
        """The model, with the joints and servos that it was trained with, as exports of this field have them."""
        servos = robot.model.actuator_gainprm[robot.ctrl_adr, 0], -robot.model.actuator_biasprm[robot.ctrl_adr, 2]
        stiffness, damping = (",".join(f"{gain:.4f}" for gain in gains) for gains in servos)
        metadata = {"joint_names": ",".join(robot.joint_names), "joint_stiffness": stiffness, "joint_damping": damping}
        constants: dict[str, Any] = {"mean": self.mean, "deviation": self.deviation}
        nodes = [
            onnx_writer.node("Sub", ["obs", "mean"], ["centred"]),
            onnx_writer.node("Div", ["centred", "deviation"], ["x0"]),
        ]
        last = len(self.layers) - 1
        for index, (weights, bias) in enumerate(self.layers):
            constants |= {f"weights{index}": weights, f"bias{index}": bias}
            name = "actions" if index == last else f"sum{index}"
            nodes.append(onnx_writer.node("Gemm", [f"x{index}", f"weights{index}", f"bias{index}"], [name]))
            if index < last:
                nodes.append(onnx_writer.node("Tanh", [name], [f"x{index + 1}"]))
        sizes = len(self.mean), len(self.layers[-1][1])
        inputs, outputs = (onnx_writer.value(name, [1, size]) for name, size in zip(("obs", "actions"), sizes, strict=True))
        weights32 = {name: np.asarray(array, np.float32) for name, array in constants.items()}
        return onnx_writer.model(nodes, [inputs], [outputs], weights32, metadata)


class Course:
    """A clip, the observation of a state in it, and a robot that is driven along it."""

    def __init__(self, robot: Robot, clip: Conditioned) -> None:
        self.robot, self.clip = robot, clip
        self.recipe = Recipe(mode="tracked", harness=Harness.none(), planner=Planner())
        self.observer = Observer(read_spec(SPEC, robot), robot, ClipReference.of(clip, robot))
        self.no_action = np.zeros(len(robot.joint_names))

    def observe(self, qpos: np.ndarray, qvel: np.ndarray, frame: int) -> np.ndarray:
        return self.observer.observe(qpos, qvel, frame, self.no_action)

    def apply(self, frame: int, action: np.ndarray) -> np.ndarray:
        """(nu,) rad, the controls of an action."""
        ctrl = np.zeros(self.robot.model.nu)
        ctrl[self.robot.ctrl_adr] = self.clip.dof_pos[frame] + action
        return np.clip(ctrl, *self.robot.ctrl_range)

    def has_fallen(self, data: Any) -> bool:
        return not float(tilt(self.robot.root_rotation(data.qpos))) < FALLEN_RAD

    def collect(self, network: Network | None, share: float, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Observations and the expert's actions of one round, in which the network drives a share of the stretches."""
        robot, clip, rng = self.robot, self.clip, np.random.default_rng(number)
        branch = Branch(robot, clip, self.recipe, clip.initial_qvel, (0, number, 0), 2)
        sampler, data = branch.sampler, branch.data
        observations, actions = [], []
        while branch.frame < clip.num_frames and not self.has_fallen(data):
            trajectory = branch.improve(sampler.read_state(data), branch.trajectory)
            for _ in range((branch.settings.first_rounds if branch.frame == 0 else branch.settings.rounds) - 1):
                trajectory = branch.improve(sampler.read_state(data), trajectory)
            is_driven = network is not None and rng.random() < share
            steps = min(branch.replan, clip.num_frames - branch.frame)
            for step in range(steps):
                qpos, qvel = data.qpos.copy(), data.qvel.copy()
                plan = trajectory.ctrl[step], trajectory.gains[step], trajectory.qpos[step], trajectory.qvel[step]
                for near_qpos, near_qvel in self.disturb(qpos, qvel, rng):
                    ctrl = plan[0] + plan[1] @ sampler.difference(near_qpos, near_qvel, *plan[2:])
                    expert = np.clip(ctrl, *robot.ctrl_range)[robot.ctrl_adr] - clip.dof_pos[branch.frame]
                    observations.append(self.observe(near_qpos, near_qvel, branch.frame))
                    actions.append(expert)
                # The first is the state itself.
                expert = actions[-NEIGHBOURS] + CTRL_NOISE * rng.standard_normal(len(robot.joint_names))
                action = network(self.observe(qpos, qvel, branch.frame)) if network and is_driven else expert
                data.ctrl[:] = branch.executed[branch.frame] = self.apply(branch.frame, action)
                mujoco.mj_step(robot.model, data, nstep=robot.substeps)
                branch.frame += 1
            frames = np.arange(branch.frame + sampler.horizon - branch.replan - 1, branch.frame + sampler.horizon)
            branch.trajectory = trajectory.shift(sampler.reference_ctrl[np.minimum(frames, clip.num_frames - 1)])
        return np.array(observations), np.array(actions)

    def disturb(self, qpos: np.ndarray, qvel: np.ndarray, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """A state, and states near it."""
        count = len(self.robot.joint_names)
        places = np.repeat([PLACE_NOISE, TURN_NOISE, JOINT_NOISE], [3, 3, count])
        speeds = np.repeat([SPEED_NOISE, SPIN_NOISE, JOINT_SPEED_NOISE], [3, 3, count])
        states = [(qpos, qvel)]
        for _ in range(NEIGHBOURS - 1):
            near = qpos.copy()
            mujoco.mj_integratePos(self.robot.model, near, places * rng.standard_normal(len(places)), 1.0)
            states.append((near, qvel + speeds * rng.standard_normal(len(speeds))))
        return states

    def drive(self, network: Network, noise: float = 0.0, seed: int = 0) -> tuple[int, float, float]:
        """Frames until the robot falls, the joints' root mean square error in rad, and the drift in m."""
        robot, clip, rng = self.robot, self.clip, np.random.default_rng(seed)
        data = mujoco.MjData(robot.model)
        data.qpos[:], data.qvel[:] = clip.initial_qpos, clip.initial_qvel
        errors, drift = [], 0.0
        for frame in range(clip.num_frames):
            action = network(self.observe(data.qpos, data.qvel, frame)) + noise * rng.standard_normal(len(robot.joint_names))
            data.ctrl[:] = self.apply(frame, action)
            mujoco.mj_step(robot.model, data, nstep=robot.substeps)
            errors.append(data.qpos[robot.qpos_adr] - clip.dof_pos[frame])
            drift = max(drift, float(np.linalg.norm(data.qpos[:2] - clip.root_pos[frame, :2])))
            if self.has_fallen(data):
                return frame, float(np.sqrt(np.mean(np.square(errors)))), drift
        return clip.num_frames, float(np.sqrt(np.mean(np.square(errors)))), drift


def fit(observations: np.ndarray, actions: np.ndarray) -> Network:
    """A network that answers as the expert does."""
    rng = np.random.default_rng(0)
    sizes = [observations.shape[1], *HIDDEN, actions.shape[1]]
    first = [(rng.standard_normal(shape) / np.sqrt(shape[0]), np.zeros(shape[1])) for shape in pairwise(sizes)]
    first[-1] = (0.1 * first[-1][0], first[-1][1])
    mean, deviation = observations.mean(axis=0), observations.std(axis=0) + 0.02
    values = jnp.asarray((observations - mean) / deviation, jnp.float32)
    targets = jnp.asarray(actions, jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    def loss(layers: Any, rows: Any, key: Any) -> Any:
        hidden = values[rows] + INPUT_NOISE * jax.random.normal(key, (BATCH, values.shape[1]))
        for weights, bias in layers[:-1]:
            hidden = jnp.tanh(hidden @ weights + bias)
        return jnp.mean((hidden @ layers[-1][0] + layers[-1][1] - targets[rows]) ** 2)

    @jax.jit
    def update(layers: Any, state: Any, rows: Any, key: Any) -> Any:
        changes, state = optimizer.update(jax.grad(loss)(layers, rows, key), state)
        return optax.apply_updates(layers, changes), state

    layers: Any = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), first)
    state = optimizer.init(layers)
    for step in range(STEPS):
        rows = jnp.asarray(rng.integers(0, len(values), BATCH))
        layers, state = update(layers, state, rows, jax.random.PRNGKey(step))
    arrays = [(np.asarray(weights, np.float64), np.asarray(bias, np.float64)) for weights, bias in layers]
    return Network(mean, deviation, tuple(arrays))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small tracker for the bundled WildRobot.")
    parser.add_argument("--clip", default="walk_long_stride", help="a bundled motion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER / "walk_tracker.onnx")
    args = parser.parse_args()

    robot, start = Robot.load("wildrobot"), time.monotonic()
    path = next(path for path in bundled_motions() if path.stem == args.clip)
    course = Course(robot, condition(read_motion(path, **reading_options(path)), robot))
    network: Network | None = None
    best, data = -np.inf, list[tuple[np.ndarray, np.ndarray]]()
    for number in range(args.rounds):
        data.append(course.collect(network, DRIVEN_SHARES[min(number, len(DRIVEN_SHARES) - 1)], number))
        observations, actions = (np.concatenate(arrays) for arrays in zip(*data, strict=True))
        network = fit(observations, actions)
        frames, error, drift = course.drive(network)
        noisy = [course.drive(network, CTRL_NOISE, seed)[0] for seed in range(1, 10)]
        result = frames + float(np.mean(noisy)) - OFF_COST * (error / GOAL_ERROR + drift / GOAL_DRIFT)
        is_best = result > best
        if is_best:
            best = result
            args.out.write_bytes(network.to_onnx(robot))
        print(
            f"round {number}: {len(observations)} samples, {time.monotonic() - start:.0f} s; stands {frames} of "
            f"{course.clip.num_frames} frames, {np.mean(noisy):.0f} with noise; joints {error:.3f} rad, drift {drift:.2f} m"
            f"{'; kept' if is_best else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
