"""The loop of the micro-training: rollouts of the policy in the environment, updates, and a curve of each figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amp_core.verify.environment import Environment, mean_pose, random_policy_rollout, stream

if TYPE_CHECKING:
    from amp_core.verify.context import Context
    from amp_core.verify.policy_side import PolicySide
    from amp_core.verify.smoke_reference import Normalization, Reference
    from amp_core.verify.smoke_settings import SmokeSettings

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_HELD_OUT = 512
"""Random held-out transitions in each iteration's evaluation."""

_OBS_STD_FLOOR = 0.05

_NETS, _NOISE, _BATCHES = 0x4E7, 0x401, 0xBA7
"""The purposes of the streams of random numbers."""


class Fault(NamedTuple):
    """The first quantity that was not finite."""

    iteration: int
    quantity: str
    remedy: str


def train(
    context: Context, settings: SmokeSettings, side: PolicySide, reference: Reference, normal: Normalization
) -> tuple[dict[str, list[float]], Fault | None]:
    """Curves with a value an iteration, and what was not finite, which ends the training."""
    from amp_core.verify.smoke_learner import CURVES, QUANTITIES, Learner, parameter_distance  # noqa: PLC0415 - JAX is optional

    robot = reference.robot
    # Iterations and rates are no part of compiled code, and so not of its key.
    general = replace(settings, iterations=1, discriminator_rate=0.0, policy_rate=0.0)
    rates = {"discriminator": np.float32(settings.discriminator_rate), "policy": np.float32(settings.policy_rate)}
    learner = Learner(general, side.config, side.observe, side.extract, robot.control_dt, robot.model.nu)
    # The mean and std of observations in the reference's states; the previous action's entries stay as they are.
    obs = side.observations("observe_host", reference.starts_qpos, reference.starts_qvel).astype(np.float64)
    obs_mean, obs_std = obs.mean(axis=0), np.maximum(obs.std(axis=0), _OBS_STD_FLOOR)
    obs_mean[-robot.model.nu :], obs_std[-robot.model.nu :] = 0.0, 1.0
    obs_stats = (obs_mean.astype(np.float32), obs_std.astype(np.float32))
    # Transitions before any update: equally many for every reference, some repeated, so that code is compiled once.
    noise = random_policy_rollout(
        **reference.environment,
        frames=settings.untrained,
        action_std=settings.action_scale,
        seed=context.seed,
        nthread=context.nthread,
    )
    rows, firsts = normal.apply(noise["features"]), np.flatnonzero(np.diff(noise["episode"]) == 0)
    firsts = np.resize(firsts, settings.untrained)
    untrained = np.concatenate([rows[firsts], rows[firsts + 1]], axis=1)
    state = learner.initial_state(stream(context.seed, _NETS), robot.layout.dim, len(obs_mean))
    initial_policy = state[0]["policy"]
    collector = Collector(context, settings, reference)
    batches = stream(context.seed, _BATCHES)
    pairs = np.concatenate([normal.apply(reference.rows[:-1]), normal.apply(reference.rows[1:])], axis=1)
    parts, size = settings.frames // settings.minibatch, settings.minibatch
    curves: dict[str, list[float]] = {name: [] for name in (*CURVES, "auc", "auc_untrained", "policy_moved")}
    for iteration in range(settings.iterations):
        rollout = collector.collect(lambda *states: learner.act(state[0], obs_stats, *states))  # noqa: B023 - called at once
        order = np.stack([batches.permutation(settings.frames) for _ in range(settings.epochs)]).reshape(-1, size)
        real = pairs[batches.choice(reference.train, (parts, size))]
        held_out = pairs[batches.choice(reference.held_out, _HELD_OUT)]
        state, values, logits, finite = learner.learn(
            state, rates, obs_stats, normal, rollout, real, held_out, untrained, order
        )
        flags = np.asarray(finite)
        if not flags.all():
            return curves, Fault(iteration, *QUANTITIES[int(np.argmin(flags))])
        for name, value in zip(CURVES, np.asarray(values), strict=True):
            curves[name].append(float(value))
        on_reference, on_policy, on_untrained = (np.asarray(part) for part in logits)
        curves["auc"].append(area_under_curve(on_reference, on_policy))
        curves["auc_untrained"].append(area_under_curve(on_reference, on_untrained))
        curves["policy_moved"].append(parameter_distance(initial_policy, state[0]["policy"]))
        context.progress((iteration + 1) / settings.iterations, f"iteration {iteration + 1} of {settings.iterations}")
    return curves, None


def area_under_curve(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """The share of all pairs whose positive member is ranked higher (Mann and Whitney); ties count one half."""
    high, low = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    below, not_above = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + not_above).mean() / (2 * len(low)))


class Collector:
    """Control steps of the current policy in the environment."""

    def __init__(self, context: Context, settings: SmokeSettings, reference: Reference) -> None:
        self._env = Environment(
            **reference.environment,
            count=settings.worlds,
            nthread=context.nthread,
            seed=context.seed,
            episode_frames=settings.episode_frames,
        )
        self._settings = settings
        self._pose = mean_pose(reference.robot, reference.starts_qpos)
        self._noise = stream(context.seed, _NOISE)
        # By actuator, as the environment's controls are.
        self._actions = np.zeros((settings.worlds, reference.robot.model.nu), np.float32)

    def collect(self, act: Callable[..., tuple[Any, ...]]) -> dict[str, npt.NDArray[Any]]:
        """(T, E, …) each: `obs`, `action`, `log_prob`, `value`; states `before_…` and `after_…` the step; `ended` and `cut`."""
        env = self._env
        rows: dict[str, list[npt.NDArray[Any]]] = {}
        for _ in range(self._settings.steps):
            noise = self._noise.standard_normal(self._actions.shape, np.float32)
            start = self._state("before")
            outputs = act(start["before_qpos"], start["before_qvel"], self._actions, noise)
            obs, action, log_prob, value = (np.array(output) for output in outputs)
            ctrl = self._settings.action_scale * action.astype(np.float64)
            ctrl[:, env.robot.ctrl_adr] += self._pose
            is_over = env.step(ctrl)
            cut = env.truncated.copy()
            row = {"obs": obs, "action": action, "log_prob": log_prob, "value": value, "ended": is_over & ~cut, "cut": cut}
            for key, array in (start | row | self._state("after")).items():
                rows.setdefault(key, []).append(array)
            env.reset(is_over)
            self._actions = np.where(is_over[:, None], np.float32(0.0), action)
        return {key: np.stack(arrays) for key, arrays in rows.items()}

    def _state(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        env = self._env
        with np.errstate(over="ignore"):
            # What float32 cannot hold becomes infinite, which the checks detect.
            state = {"qpos": env.qpos.astype(np.float32), "qvel": env.qvel.astype(np.float32), "contacts": env.contacts.copy()}
        return {f"{prefix}_{key}": array for key, array in state.items()}
