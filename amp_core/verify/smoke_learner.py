"""The networks of the micro-training and their updates, in JAX: the one module of the verification that needs it to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from amp_core.verify.smoke_settings import LSGAN, SmokeSettings

Array = jax.Array
Floats = npt.NDArray[np.float32]

QUANTITIES = (
    ("observations are", "the physics left the finite numbers; a control or a model that explodes"),
    ("the policy's features are", "the physics left the finite numbers, or the extractor divides by 0"),
    ("the reference's normalized features are", "the statistics"),
    ("the policy's normalized features are", "the statistics"),
    ("actions are", "the policy's network"),
    ("the discriminator's logits are", "its network; is its learning rate too large?"),
    ("rewards are", "the style reward"),
    ("values are", "the critic's network"),
    ("advantages are", "the rewards' or the values' size"),
    ("the discriminator's loss is", "its logits' size"),
    ("the discriminator's gradients are", "its loss' size; is the gradient penalty too large?"),
    ("the discriminator's parameters are", "is its learning rate too large?"),
    ("the policy's loss is", "the ratio of probabilities overflows; is its learning rate too large?"),
    ("the critic's loss is", "the returns' size"),
    ("the policy's gradients are", "its loss' size"),
    ("the policy's parameters are", "is its learning rate too large?"),
)
"""Every quantity of an iteration in the order of computation, and where to look when it is the first that is not finite."""

CURVES = (
    "d_loss",
    "d_loss_train",
    "gradient_penalty",
    "d_reference",
    "d_policy",
    "reward_mean",
    "reward_std",
    "policy_loss",
    "value_loss",
    "kl",
    "action_std",
    "fall_rate",
)
"""The figures of an iteration, in the order of `Learner.learn`."""

_OBS_CLIP = 5.0


@dataclass(frozen=True)
class Learner:
    """The networks of actor, critic and discriminator, and their updates.

    A state is (parameters, optimizer states), both dicts of `policy` (actor, critic, log std) and `discriminator`. Equal
    learners share their compiled code.

    Args:
      settings: of the training.
      config, observe, extract: of the policy side.
      dt: s, the control step.
      actions: nu.
    """

    settings: SmokeSettings
    config: Any
    observe: Callable[..., Any]
    extract: Callable[..., Any]
    dt: float
    actions: int

    @property
    def optimizer(self) -> Any:
        return optax.chain(optax.clip_by_global_norm(self.settings.max_gradient), optax.scale_by_adam())

    def initial_state(self, generator: np.random.Generator, features: int, observations: int) -> Any:
        """The state before the first iteration.

        The last layers are 0: an untrained discriminator gives 0 for everything, which is exactly chance, and an untrained
        policy is noise about the reference's mean pose.
        """
        hidden = self.settings.hidden
        parameters = {
            "policy": {
                "actor": _layers(generator, (observations, *hidden, self.actions)),
                "critic": _layers(generator, (observations, *hidden, 1)),
                "log_std": np.zeros(self.actions, np.float32),
            },
            "discriminator": _layers(generator, (2 * features, *hidden, 1)),
        }
        return parameters, {name: self.optimizer.init(tree) for name, tree in parameters.items()}

    @partial(jax.jit, static_argnums=0)
    def act(self, parameters: Any, obs_stats: Any, qpos: Array, qvel: Array, prev_action: Array, noise: Array) -> Any:
        """Observations, actions, their log probabilities and values in the worlds' states."""
        policy = parameters["policy"]
        obs = self.observe(self.config, qpos, qvel, prev_action)
        x = _normalize(obs_stats, obs)
        mean = _network(policy["actor"], x)
        action = mean + jnp.exp(policy["log_std"]) * noise
        return obs, action, _log_probability(policy, mean, action), _network(policy["critic"], x)[..., 0]

    @partial(jax.jit, static_argnums=0)
    def learn(
        self, state: Any, rates: Any, obs_stats: Any, normal: Any, rollout: Any, real: Array, held_out: Array, untrained: Array,
        order: Array,
    ) -> Any:  # fmt: skip
        """An iteration's evaluation, then its updates.

        Args:
          rates: Adam's step sizes.
          obs_stats: mean and std of observations.
          normal: the features' `Normalization`.
          rollout: of `Collector.collect`.
          real: (P, B, 2F) the reference's minibatches.
          held_out: (H, 2F) held-out transitions of the reference.
          untrained: (U, 2F) transitions of the untrained policy.
          order: (epochs · P, B) rows of the rollout.

        Returns:
          the new state, `CURVES`, the logits of `held_out`, the rollout and `untrained`, and whether `QUANTITIES` are finite.
        """
        parameters, memory = state
        discriminator, policy = parameters["discriminator"], parameters["policy"]
        obs, action = rollout["obs"], rollout["action"]
        next_obs = self.observe(self.config, rollout["after_qpos"], rollout["after_qvel"], action)
        pair = [
            self._features(obs, rollout["before_qpos"], rollout["before_qpos"], rollout["before_contacts"]),
            self._features(next_obs, rollout["after_qpos"], rollout["before_qpos"], rollout["after_contacts"]),
        ]
        mean, scale, limit = normal
        fake = jnp.concatenate([jnp.clip((part - mean) / scale, -limit, limit) for part in pair], axis=-1)
        # Before any update of this iteration: on transitions that the discriminator was not trained on.
        logits, held_out_logits = _logits(discriminator, fake), _logits(discriminator, held_out)
        untrained_logits = _logits(discriminator, untrained)
        d_loss = self._adversarial_loss(held_out_logits, logits)
        # The style reward: for `bce` −log(1 − D), with D the probability of the reference.
        lsgan = self.settings.loss == LSGAN
        reward = jnp.maximum(0.0, 1 - 0.25 * (logits - 1) ** 2) if lsgan else jax.nn.softplus(logits)
        value, next_value = rollout["value"], _network(policy["critic"], _normalize(obs_stats, next_obs))[..., 0]
        is_end, cut = rollout["ended"].astype(jnp.float32), rollout["cut"].astype(jnp.float32)
        advantage = self._advantages(reward, value, next_value, is_end, cut)
        target = advantage + value
        standard = (advantage - advantage.mean()) / (advantage.std() + 1e-6)

        def flatten(array: Array) -> Array:
            return array.reshape(-1, *array.shape[2:])

        batches = (real, flatten(fake)[order[: len(real)]])
        (discriminator, d_memory), (penalty, d_finite) = jax.lax.scan(
            self._update(self._discriminator_loss, rates["discriminator"]), (discriminator, memory["discriminator"]), batches
        )
        d_train = self._adversarial_loss(_logits(discriminator, real), _logits(discriminator, fake))
        samples = (_normalize(obs_stats, obs), action, rollout["log_prob"], standard, target)
        (policy, p_memory), ((loss, value_loss, kl), p_finite) = jax.lax.scan(
            self._update(self._policy_loss, rates["policy"]),
            (policy, memory["policy"]),
            tuple(flatten(array)[order] for array in samples),
        )
        finite = (
            _is_finite(obs, next_obs),
            _is_finite(pair),
            _is_finite(real, held_out, untrained),
            _is_finite(fake),
            _is_finite(action, rollout["log_prob"]),
            _is_finite(logits, held_out_logits, untrained_logits),
            _is_finite(reward),
            _is_finite(value, next_value),
            _is_finite(advantage, standard),
            _is_finite(d_loss, penalty),
            d_finite.all(),
            _is_finite(discriminator, d_train),
            _is_finite(loss, kl),
            _is_finite(value_loss),
            p_finite.all(),
            _is_finite(policy),
        )
        values = (
            d_loss,
            d_train,
            penalty.mean(),
            held_out_logits.mean(),
            logits.mean(),
            reward.mean(),
            reward.std(),
            loss.mean(),
            value_loss.mean(),
            kl[-1],
            jnp.exp(policy["log_std"]).mean(),
            is_end.mean(),
        )
        state = ({"policy": policy, "discriminator": discriminator}, {"policy": p_memory, "discriminator": d_memory})
        return state, jnp.stack(values), (held_out_logits, logits.reshape(-1), untrained_logits), jnp.stack(finite)

    def _features(self, obs: Array, qpos: Array, prev_qpos: Array, contacts: Array) -> Array:
        height, joints = qpos[..., self.config.root_qpos_adr + 2], prev_qpos[..., np.array(self.config.joint_qpos_adr)]
        features: Array = self.extract(
            obs, self.config, height, joints, self.dt, foot_contacts_override=contacts, use_obs_joint_vel=True
        )
        return features

    def _adversarial_loss(self, real: Array, fake: Array) -> Array:
        if self.settings.loss == LSGAN:
            return 0.5 * (((real - 1) ** 2).mean() + ((fake + 1) ** 2).mean())
        return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())

    def _discriminator_loss(self, discriminator: Any, real: Array, fake: Array) -> tuple[Array, Array]:
        slopes = jax.vmap(jax.grad(_logits, argnums=1), in_axes=(None, 0))(discriminator, real)
        penalty = (slopes * slopes).sum(axis=-1).mean()
        loss = self._adversarial_loss(_logits(discriminator, real), _logits(discriminator, fake))
        return loss + self.settings.gradient_penalty * penalty, penalty

    def _policy_loss(self, policy: Any, x: Array, action: Array, old: Array, advantage: Array, target: Array) -> Any:
        clip = self.settings.clip
        change = _log_probability(policy, _network(policy["actor"], x), action) - old
        ratio = jnp.exp(change)
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage).mean()
        value = 0.5 * ((_network(policy["critic"], x)[..., 0] - target) ** 2).mean()
        loss = -surrogate - self.settings.entropy * policy["log_std"].sum()
        return loss + value, (loss, value, ((ratio - 1) - change).mean())

    def _advantages(self, reward: Array, value: Array, next_value: Array, is_end: Array, cut: Array) -> Array:
        """Generalized advantage estimates: an ended episode has no value after it, and neither ended nor cut ones carry on."""

        def step(later: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
            delta, carries_on = frame
            total = delta + self.settings.discount * self.settings.trace * carries_on * later
            return total, total

        delta = reward + self.settings.discount * (1.0 - is_end) * next_value - value
        carries_on = 1.0 - jnp.maximum(is_end, cut)
        return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, carries_on), reverse=True)[1]

    def _update(self, loss: Callable[..., Any], rate: Array) -> Callable[..., Any]:
        """A step of a scan over minibatches: updates network and optimizer; gives losses and whether the gradient is finite."""

        def step(carry: Any, batch: Any) -> Any:
            parameters, memory = carry
            (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, *batch)
            changes, memory = self.optimizer.update(gradient, memory, parameters)
            changes = jax.tree.map(lambda change: -rate * change, changes)
            return (optax.apply_updates(parameters, changes), memory), (losses, _is_finite(gradient))

        return step


def parameter_distance(parameters: Any, initial: Any) -> float:
    """The norm of the difference of two parameter trees."""
    pairs = zip(jax.tree.leaves(parameters), jax.tree.leaves(initial), strict=True)
    return float(np.sqrt(sum(float(((np.asarray(a, np.float64) - np.asarray(b)) ** 2).sum()) for a, b in pairs)))


def _layers(generator: np.random.Generator, sizes: tuple[int, ...]) -> list[tuple[Floats, Floats]]:
    """Random weights and zero biases; the last layer's weights are 0 too."""
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = generator.standard_normal((inputs, outputs), np.float32) / np.sqrt(np.float32(inputs))
        layers.append((weight if i < len(sizes) - 2 else np.zeros_like(weight), np.zeros(outputs, np.float32)))
    return layers


def _network(layers: Any, x: Array) -> Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.elu(x @ weight + bias)
    weight, bias = layers[-1]
    output: Array = x @ weight + bias
    return output


def _logits(discriminator: Any, pairs: Array) -> Array:
    return _network(discriminator, pairs)[..., 0]


def _normalize(obs_stats: Any, obs: Array) -> Array:
    return jnp.clip((obs - obs_stats[0]) / obs_stats[1], -_OBS_CLIP, _OBS_CLIP)


def _log_probability(policy: Any, mean: Array, action: Array) -> Array:
    z = (action - mean) * jnp.exp(-policy["log_std"])
    log_probability: Array = -0.5 * (z * z).sum(axis=-1) - policy["log_std"].sum()
    return log_probability


def _is_finite(*trees: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for tree in trees for leaf in jax.tree.leaves(tree)]).all()
