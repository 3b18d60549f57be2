"""The micro-training: does a discriminator learn on this reference, and does its reward reach a policy?

A hundred iterations of adversarial motion priors (Peng et al., 2021) on the robot in MuJoCo, small and whole: a discriminator
on transitions of normalized AMP features, and PPO on the reward that it gives. It proves wiring: features, statistics,
contacts, physics and both losses fit together. It does not train a gait. docs/smoke.md says what it runs, and what a failure
means.

JAX and optax are imported by the functions that need them: this module imports without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amp_core.verify.context import NO_JAX, Context, Findings, PolicySide
from amp_core.verify.environment import ACTION_SCALE, EPISODE_FRAMES, Environment, mean_pose, random_policy_rollout, stream
from amp_core.verify.report import FAIL, PASS, Row, TestReport, check
from amp_core.verify.sanity import usable

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Curves = Mapping[str, Sequence[float]]

LSGAN, BCE = "lsgan", "bce"

AUC = 0.55
"""The seed's: the discriminator must rank reference above policy more often than this; 0.5 is chance."""

LOSS_FALL = 0.01
"""Share of its initial value by which the discriminator's loss must have fallen: less is noise and rounding."""

REWARD_STD = 0.01
"""The seed's: a reward that varies less says nothing to the policy."""

LAST = 0.1
"""The share of the iterations, the last ones, over whose mean the gates are."""

FEATURE_CLIP = 3.0
"""Normalized features are held to ± this, contacts apart, as `Dataset.normalize(x, clip=True)` does on a training node."""

STATS_TOLERANCE = 0.05
"""How far the version's normalized rows may be from mean 0 and std 1: statistics of these rows leave rounding alone."""

_BLOCK, _EVERY = 10, 5  # Every fifth block of ten transitions is held out of training.
_HELD_OUT = 512  # transitions of those that are drawn for each iteration's evaluation
_STD_FLOOR = 0.01  # `amp_core.client.STD_FLOOR`, without its HTTP library; a test holds the two together.
_OBS_CLIP, _OBS_FLOOR = 5.0, 0.05
_NETS, _NOISE, _BATCHES = 0x4E7, 0x401, 0xBA7  # streams of random numbers


@dataclass(frozen=True)
class SmokeSettings:
    """What is trained, and how long.

    Args:
      iterations: of both networks.
      worlds, steps: control steps an iteration are their product.
      loss: `lsgan` (least squares, targets ±1) or `bce` (logistic), both with a gradient penalty.
      gradient_penalty: factor on the mean squared gradient of the discriminator in the reference's transitions.
      hidden: sizes of the hidden layers of actor, critic and discriminator.
      discriminator_rate, policy_rate: Adam's step sizes.
      minibatch: transitions, of the policy and as many of the reference.
      epochs: of PPO over an iteration's control steps; the discriminator sees each once.
      discount, trace: γ and λ of the generalized advantage estimate.
      clip: of the surrogate's ratio.
      entropy: weight of the policy's entropy.
      max_gradient: norm that gradients are clipped to.
      action_scale: rad, what an action of 1 adds to a joint's target.
      episode_frames: control steps an episode, at most.
      untrained: frames of the untrained policy, on whose transitions the discriminator is tested and never trained.
    """

    iterations: int = 100
    worlds: int = 64
    steps: int = 16
    loss: str = LSGAN
    gradient_penalty: float = 5.0
    hidden: tuple[int, ...] = (64, 64)
    discriminator_rate: float = 1e-3
    policy_rate: float = 1e-3
    minibatch: int = 256
    epochs: int = 3
    discount: float = 0.95
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    max_gradient: float = 1.0
    action_scale: float = ACTION_SCALE
    episode_frames: int = EPISODE_FRAMES
    untrained: int = 10_000

    def __post_init__(self) -> None:
        if self.loss not in (LSGAN, BCE):
            raise ValueError(f"loss is {self.loss!r}; expected {LSGAN!r} or {BCE!r}")
        for name in ("iterations", "worlds", "steps", "minibatch", "epochs", "untrained"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.frames % self.minibatch:
            raise ValueError(
                f"worlds · steps is {self.frames}, which is no multiple of the minibatch of {self.minibatch} transitions"
            )

    @property
    def frames(self) -> int:
        """Control steps an iteration."""
        return self.worlds * self.steps


def run(context: Context, settings: SmokeSettings | None = None) -> TestReport:
    """The micro-training on the subject's Tier 0 frames."""
    chosen = SmokeSettings() if settings is None else settings
    found = Findings("smoke", "micro-train")
    # Read when JAX first looks for devices: what runs on the CPU must not take a GPU's memory from the training beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    side = context.policy_side
    if side is None:
        return found.skipped(NO_JAX)
    try:
        import jax
        import optax  # noqa: F401
    except ImportError:
        return found.skipped(NO_JAX)
    reference = Reference.of(context)
    if reference is None:
        return found.skipped("there is no Tier 0 clip: training would have no transition")
    if not _reference_is_finite(found, reference):
        return found.report(reference.told)
    normal = _normalization(found, context, reference)
    if normal is None:
        return found.report(reference.told)
    # One place on every machine, so that the same seed gives the same figures beside a GPU too.
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        return found.skipped(f"JAX has no CPU to run on ({error}): add cpu to JAX_PLATFORMS")
    with jax.default_device(device):
        curves, fault = _train(context, chosen, side, reference, normal)
    found.figures["curves"] = {name: [_short(value) for value in values] for name, values in curves.items()}
    found.figures["settings"] = {name: getattr(chosen, name) for name in chosen.__dataclass_fields__}
    found.figures["reference"] = {"transitions": len(reference.train), "held_out": len(reference.held_out)}
    judge(found, curves, chosen, fault)
    return found.report(
        f"{len(curves['auc'])} iterations of {chosen.frames} control steps in {chosen.worlds} worlds: {chosen.loss.upper()} "
        f"with a gradient penalty on transitions of normalized features, PPO on its reward; {reference.told}"
    )


# --- The gates ------------------------------------------------------------------------------------------------------------


def judge(found: Findings, curves: Curves, settings: SmokeSettings, fault: Fault | None) -> None:
    """The seed's gates on curves that have a value an iteration.

    Args:
      curves: `d_loss` and `auc` on held-out reference and on fresh policy transitions, before each iteration's updates;
        `auc_untrained`, against the untrained policy's; `reward_std`; `policy_loss`; `policy_moved`, the norm of what all
        updates so far changed in the policy's parameters; and what is told only.
      fault: what was not finite, if anything; the curves end before it.
    """
    if fault is not None:
        found.add(Row("nonfinite", fault.iteration, FAIL, note=fault.quantity, where=f"iteration {fault.iteration}"))
        found.because(
            f"{fault.quantity} not finite in iteration {fault.iteration} of {settings.iterations}, the first of all quantities "
            f"in the order of their computation: {fault.remedy}"
        )
        return
    found.add(Row("nonfinite", 0, PASS, "==", 0.0, note="features, logits, rewards, losses, gradients and parameters"))
    window = max(1, round(LAST * len(curves["auc"])))
    last = {name: float(np.mean(values[-window:])) for name, values in curves.items()}
    where = f"mean of the last {window} iterations"

    first = float(curves["d_loss"][0])
    fall = (first - last["d_loss"]) / first
    note = f"share; from {first:.4g}, which is chance, to {last['d_loss']:.4g} on transitions that it was not trained on"
    if not found.add(check("d_loss.fall", fall, ">", LOSS_FALL, where=where, note=note)):
        found.because(
            f"the discriminator's loss does not fall (from {first:.4g} to {last['d_loss']:.4g}): it does not learn; is its "
            f"learning rate ({settings.discriminator_rate:g}) too small or too large, or is there nothing to learn?"
        )
    note = "of its outputs on held-out reference and on fresh policy transitions; 0.5 is chance"
    if not found.add(check("auc", last["auc"], ">", AUC, where=where, note=note)):
        found.because(
            f"the discriminator cannot tell reference from policy (AUC {last['auc']:.3f}, asked > {AUC:g}): run tests 1A to 5, "
            "look at test 6 for degenerate features and at test 7 for the reference's quality, and check that the statistics "
            "are this version's"
        )
    note = "the same against the untrained policy's own rollout, which the discriminator was not trained on"
    if not found.add(check("auc_untrained", last["auc_untrained"], ">", AUC, where=where, note=note)):
        found.because(
            f"the discriminator cannot tell reference from an untrained policy (AUC {last['auc_untrained']:.3f}, asked > "
            f"{AUC:g}): the reference looks like noise about its mean pose; was it recorded from a policy?"
        )
    if not found.add(check("reward_std", last["reward_std"], ">", REWARD_STD, where=where)):
        found.because(
            f"the AMP reward is constant (std {last['reward_std']:.2g}, asked > {REWARD_STD:g}): the policy is told nothing; a "
            "discriminator that does not learn, one that is certain of everything, or features without variance (stale "
            "statistics)"
        )
    bad = sum(not np.isfinite(value) for value in curves["policy_loss"])
    note = f"iterations; {last['policy_loss']:.3g} in the mean of the last ones"
    found.add(check("policy_loss.nonfinite", bad, "==", 0.0, note=note))
    moved = float(curves["policy_moved"][-1])
    if not found.add(check("policy_moved", moved, ">", 0.0, note="norm of the change of the policy's parameters")):
        found.because("the policy's parameters did not change: the reward does not reach it, or its learning rate is 0")
    for name in ("reward_mean", "fall_rate", "value_loss"):
        found.add(Row(name, last[name], PASS, where=where, note=f"told only; {curves[name][0]:.3g} in the first iteration"))


def area_under_curve(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """The share of all pairs of which the positive one is ranked higher (Mann and Whitney); ties count one half."""
    high, low = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    below, not_above = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + not_above).mean() / (2 * len(low)))


class Fault(NamedTuple):
    """The first quantity that was not finite."""

    iteration: int
    quantity: str
    remedy: str


# Every quantity that an iteration computes, in this order, and where to look when it is the first that is not finite.
_QUANTITIES = (
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


# --- The reference --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reference:
    """The Tier 0 frames of one physics: transitions for the discriminator, states for the environment to start from.

    Args:
      robot: theirs.
      physics, force_threshold: what they were generated with.
      rows: (M, F) the frames' features. names: (M,) "clip, frame" of each.
      starts_qpos, starts_qvel, starts_contacts: (M, …) their states and contacts.
      train, held_out: first rows of the transitions (i, i + 1); none crosses from one window to another.
      told: in words.
    """

    robot: Robot
    physics: PhysicsScale
    force_threshold: float
    rows: Floats
    names: tuple[tuple[str, int], ...]
    starts_qpos: Array
    starts_qvel: Array
    starts_contacts: Floats
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    told: str

    @classmethod
    def of(cls, context: Context) -> Reference | None:
        """That of a subject; of several physics the one with the most frames. None where there is no transition."""
        robot = context.subject.robot
        groups: dict[tuple[PhysicsScale, float], list[Clip]] = {}
        for clip in usable(context):
            groups.setdefault((clip.recipe.physics, clip.recipe.force_threshold), []).append(clip)
        if not groups:
            return None
        (physics, threshold), members = max(groups.items(), key=lambda item: sum(len(clip.taken) for clip in item[1]))
        parts: dict[str, list[npt.NDArray[Any]]] = {key: [] for key in ("features", "qpos", "qvel", "foot_contacts")}
        names: list[tuple[str, int]] = []
        firsts: list[int] = []
        for clip in members:
            for start, end in clip.ranges or ((0, clip.frames),):
                stop = min(end, clip.frames)
                firsts += range(len(names), len(names) + max(0, stop - start - 1))
                names += [(clip.name, frame) for frame in range(start, stop)]
                for key, found in parts.items():
                    found.append(np.asarray(clip.arrays[key])[start:stop])
        transitions = np.array(firsts, np.int64)
        if len(transitions) < _EVERY:
            return None
        # Neighbours look alike, so whole blocks are held out; where there are few transitions, shorter ones.
        block = max(1, min(_BLOCK, len(transitions) // (2 * _EVERY)))
        held = (np.arange(len(transitions)) // block) % _EVERY == _EVERY - 1
        others = f", the physics with the most frames of {len(groups)}" if len(groups) > 1 else ""
        return cls(
            robot=robot,
            physics=physics,
            force_threshold=threshold,
            rows=np.concatenate(parts["features"]).astype(np.float32),
            names=tuple(names),
            starts_qpos=np.concatenate(parts["qpos"]),
            starts_qvel=np.concatenate(parts["qvel"]),
            starts_contacts=np.concatenate(parts["foot_contacts"]).astype(np.float32),
            train=transitions[~held],
            held_out=transitions[held],
            told=f"{len(names):,} reference frames of {len(members)} Tier 0 clips in {physics.name} physics{others}",
        )


class Normalization(NamedTuple):
    """(F,) what features are normalized by: `clip((x − mean) / scale, ± limit)`."""

    mean: Floats
    scale: Floats
    limit: Floats

    def apply(self, rows: Floats) -> Floats:
        normal: Floats = np.clip((rows - self.mean) / self.scale, -self.limit, self.limit)
        return normal


def _reference_is_finite(found: Findings, reference: Reference) -> bool:
    finite = np.isfinite(reference.rows)
    if finite.all():
        return True
    row, column = (int(index) for index in np.argwhere(~finite)[0])
    clip, frame = reference.names[row]
    dimension, count = reference.robot.layout.names[column], int((~finite).sum())
    where = f"clip {clip}, frame {frame}, {dimension}"
    found.add(
        Row("nonfinite", count, FAIL, "==", 0.0, where=where, note="the reference's features, before the first iteration")
    )
    found.because(
        f"the reference's features are not finite: {count} values, the first in {where}; take the clip out of the version and "
        "generate it again"
    )
    return False


def _normalization(found: Findings, context: Context, reference: Reference) -> Normalization | None:
    """By a locked version's own statistics, else by those of the reference; None, and a FAIL, where they cannot be used."""
    layout, artifacts = reference.robot.layout, context.subject.artifacts
    if artifacts is None:
        rows = reference.rows.astype(np.float64)
        mean, std = rows.mean(axis=0), rows.std(axis=0)
    else:
        mean, std = (np.asarray(artifacts.stats.get(key, ()), np.float64) for key in ("mean", "std"))
        usable_stats = mean.shape == std.shape == (layout.dim,) and np.isfinite([mean, std]).all() and bool((std >= 0).all())
        if not usable_stats:
            found.add(
                Row("stats", None, FAIL, note=f"mean {mean.shape}, std {std.shape}; expected ({layout.dim},) finite numbers")
            )
            found.because(
                f"the version's statistics cannot be used: mean and std are {mean.shape} and {std.shape}, expected "
                f"{layout.dim} finite numbers each, no std below 0; lock the version again"
            )
            return None
        _statistics_fit(found, context, mean, std)
    limit = np.full(layout.dim, FEATURE_CLIP)
    limit[layout.block("foot_contacts").slice] = np.inf
    scale = np.maximum(std, _STD_FLOOR)
    return Normalization(mean.astype(np.float32), scale.astype(np.float32), limit.astype(np.float32))


def _statistics_fit(found: Findings, context: Context, mean: Array, std: Array) -> None:
    """Whether the version's statistics are those of its rows, of every tier."""
    names, clips = context.subject.robot.layout.names, context.subject.clips
    rows = sum(len(clip.taken) for clip in clips)
    center = sum(clip.taken.sum(axis=0, dtype=np.float64) for clip in clips) / rows
    spread = np.sqrt(sum(((clip.taken - center) ** 2).sum(axis=0) for clip in clips) / rows)
    scale = np.maximum(std, _STD_FLOOR)
    shift, stretch = np.abs(center - mean) / scale, np.abs(spread - std) / scale
    fine = True
    for name, off, words in (("stats.mean", shift, "normalized mean from 0"), ("stats.std", stretch, "normalized std from 1")):
        worst = int(np.argmax(off))
        fine &= found.add(check(name, float(off[worst]), "<=", STATS_TOLERANCE, where=names[worst], note=words))
    if not fine:
        worst = int(np.argmax(np.maximum(shift, stretch)))
        found.because(
            f"the normalization statistics are not those of the version's rows (stale?): {names[worst]} is {center[worst]:.3g} "
            f"± {spread[worst]:.3g}, the statistics say {mean[worst]:.3g} ± {std[worst]:.3g}; use the file that was locked "
            "with these rows"
        )


# --- The training ---------------------------------------------------------------------------------------------------------


def _train(
    context: Context, settings: SmokeSettings, side: PolicySide, reference: Reference, normal: Normalization
) -> tuple[dict[str, list[float]], Fault | None]:
    """Curves, a value an iteration; and what was not finite, which ends the training."""
    robot = reference.robot
    env = Environment(
        robot,
        reference.starts_qpos,
        reference.starts_qvel,
        starts_contacts=reference.starts_contacts,
        count=settings.worlds,
        nthread=context.nthread,
        seed=context.seed,
        scale=reference.physics,
        force_threshold=reference.force_threshold,
        episode_frames=settings.episode_frames,
    )
    sight = _observation_statistics(side, reference)
    unseen = _untrained(context, settings, reference, normal)
    # What compiled code does not depend on is not in its key.
    general = replace(settings, iterations=1, discriminator_rate=0.0, policy_rate=0.0)
    rates = {"discriminator": np.float32(settings.discriminator_rate), "policy": np.float32(settings.policy_rate)}
    learner = _learner(general, side.config, side.observe, side.extract, robot.control_dt, robot.model.nu)
    state = learner.begin(stream(context.seed, _NETS), robot.layout.dim, len(sight[0]))
    initial = state[0]["policy"]
    collector = _Collector(env, settings, mean_pose(robot, reference.starts_qpos), stream(context.seed, _NOISE))
    batches = stream(context.seed, _BATCHES)
    pairs = np.concatenate([normal.apply(reference.rows[:-1]), normal.apply(reference.rows[1:])], axis=1)
    parts, size = settings.frames // settings.minibatch, settings.minibatch
    curves: dict[str, list[float]] = {name: [] for name in (*_FIGURES, "auc", "auc_untrained", "policy_moved")}
    for iteration in range(settings.iterations):
        rollout = collector.collect(lambda *now: learner.act(state[0], sight, *now))  # noqa: B023 - called at once
        order = np.stack([batches.permutation(settings.frames) for _ in range(settings.epochs)]).reshape(-1, size)
        real = pairs[batches.choice(reference.train, (parts, size))]
        apart = pairs[batches.choice(reference.held_out, _HELD_OUT)]
        state, figures, logits, finite = learner.learn(state, rates, sight, normal, rollout, real, apart, unseen, order)
        flags = np.asarray(finite)
        if not flags.all():
            return curves, Fault(iteration, *_QUANTITIES[int(np.argmin(flags))])
        for name, value in zip(_FIGURES, np.asarray(figures), strict=True):
            curves[name].append(float(value))
        on_reference, on_policy, on_noise = (np.asarray(part) for part in logits)
        curves["auc"].append(area_under_curve(on_reference, on_policy))
        curves["auc_untrained"].append(area_under_curve(on_reference, on_noise))
        curves["policy_moved"].append(_distance(initial, state[0]["policy"]))
        context.progress((iteration + 1) / settings.iterations, f"iteration {iteration + 1} of {settings.iterations}")
    return curves, None


_FIGURES = (
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


def _untrained(context: Context, settings: SmokeSettings, reference: Reference, normal: Normalization) -> Floats:
    """(U, 2F) normalized transitions of the policy as it is before any update."""
    rollout = random_policy_rollout(
        reference.robot,
        reference.starts_qpos,
        reference.starts_qvel,
        starts_contacts=reference.starts_contacts,
        frames=settings.untrained,
        seed=context.seed,
        scale=reference.physics,
        nthread=context.nthread,
        force_threshold=reference.force_threshold,
        action_std=settings.action_scale,
    )
    rows = normal.apply(rollout["features"])
    # As many in every rollout, so that code is compiled once; a few transitions are there twice.
    firsts = np.resize(np.flatnonzero(np.diff(rollout["episode"]) == 0), settings.untrained)
    return np.concatenate([rows[firsts], rows[firsts + 1]], axis=1)


def _observation_statistics(side: PolicySide, reference: Reference) -> tuple[Floats, Floats]:
    """(O,), (O,) what observations are normalized by: mean and std in the reference's states; actions stay as they are."""
    seen = side.on_host(reference.starts_qpos, reference.starts_qvel).astype(np.float64)
    mean, std = seen.mean(axis=0), np.maximum(seen.std(axis=0), _OBS_FLOOR)
    actions = seen.shape[1] - reference.robot.model.nu
    mean[actions:], std[actions:] = 0.0, 1.0
    return mean.astype(np.float32), std.astype(np.float32)


class _Collector:
    """Control steps in the environment, with the policy that there is."""

    def __init__(self, env: Environment, settings: SmokeSettings, pose: Array, noise: np.random.Generator) -> None:
        self._env, self._settings, self._pose, self._noise = env, settings, pose, noise
        # By actuator, as the environment's controls are.
        self._actions = np.zeros((env.count, env.robot.model.nu), np.float32)

    def collect(self, act: Callable[..., tuple[Any, ...]]) -> dict[str, npt.NDArray[Any]]:
        """(T, E, …) each: `obs`, `action`, `log_prob`, `value`; states `before` and `after` each step; `ended` and `cut`."""
        env, adr = self._env, self._env.robot.ctrl_adr
        rows: dict[str, list[npt.NDArray[Any]]] = {}
        for _ in range(self._settings.steps):
            noise = self._noise.standard_normal(self._actions.shape, np.float32)
            before = self._state("before")
            drawn = act(before["before_qpos"], before["before_qvel"], self._actions, noise)
            obs, action, log_prob, value = (np.array(part) for part in drawn)
            ctrl = self._settings.action_scale * action.astype(np.float64)
            ctrl[:, adr] += self._pose
            done = env.step(ctrl)
            cut = env.truncated.copy()
            row = {"obs": obs, "action": action, "log_prob": log_prob, "value": value, "ended": done & ~cut, "cut": cut}
            for key, array in (before | row | self._state("after")).items():
                rows.setdefault(key, []).append(array)
            env.reset(done)
            self._actions = np.where(done[:, None], np.float32(0.0), action)
        return {key: np.stack(arrays) for key, arrays in rows.items()}

    def _state(self, when: str) -> dict[str, npt.NDArray[Any]]:
        env = self._env
        with np.errstate(over="ignore"):
            # What float32 cannot hold is infinite there, and is found.
            state = {"qpos": env.qpos.astype(np.float32), "qvel": env.qvel.astype(np.float32), "contacts": env.contacts.copy()}
        return {f"{when}_{key}": array for key, array in state.items()}


class _Learner(NamedTuple):
    """Compiled functions; what they are given and return is explained in `_learner`."""

    begin: Callable[[np.random.Generator, int, int], Any]
    act: Callable[..., Any]
    learn: Callable[..., Any]


@lru_cache(maxsize=4)
def _learner(settings: SmokeSettings, config: Any, observe: Any, extract: Any, dt: float, actions: int) -> _Learner:
    """The networks and their updates, compiled once for the same settings and robot.

    A state is (parameters, optimizer states), both dicts of `policy` (actor, critic, log std) and `discriminator`.
    """
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.chain(optax.clip_by_global_norm(settings.max_gradient), optax.scale_by_adam())

    def begin(generator: np.random.Generator, features: int, observations: int) -> Any:
        # Zero in the end: an untrained discriminator says 0 of everything, which is exactly chance, and an untrained policy
        # is noise about the reference's mean pose.
        parameters = {
            "policy": {
                "actor": _layers(generator, (observations, *settings.hidden, actions)),
                "critic": _layers(generator, (observations, *settings.hidden, 1)),
                "log_std": np.zeros(actions, np.float32),
            },
            "discriminator": _layers(generator, (2 * features, *settings.hidden, 1)),
        }
        return parameters, {name: optimizer.init(tree) for name, tree in parameters.items()}

    def network(layers: Any, x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jax.nn.elu(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    def seen(sight: Any, obs: Any) -> Any:
        return jnp.clip((obs - sight[0]) / sight[1], -_OBS_CLIP, _OBS_CLIP)

    def log_probability(policy: Any, mean: Any, action: Any) -> Any:
        z = (action - mean) * jnp.exp(-policy["log_std"])
        return -0.5 * (z * z).sum(axis=-1) - policy["log_std"].sum()

    @jax.jit
    def act(parameters: Any, sight: Any, qpos: Any, qvel: Any, before: Any, noise: Any) -> Any:
        policy = parameters["policy"]
        obs = observe(config, qpos, qvel, before)
        x = seen(sight, obs)
        mean = network(policy["actor"], x)
        action = mean + jnp.exp(policy["log_std"]) * noise
        return obs, action, log_probability(policy, mean, action), network(policy["critic"], x)[..., 0]

    def judged(discriminator: Any, pairs: Any) -> Any:
        return network(discriminator, pairs)[..., 0]

    def adversarial_loss(real: Any, fake: Any) -> Any:
        if settings.loss == LSGAN:
            return 0.5 * (((real - 1) ** 2).mean() + ((fake + 1) ** 2).mean())
        return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())

    def style_reward(logits: Any) -> Any:
        if settings.loss == LSGAN:
            return jnp.maximum(0.0, 1 - 0.25 * (logits - 1) ** 2)
        # −log(1 − D) of the probability D that this is the reference.
        return jax.nn.softplus(logits)

    def discriminator_loss(discriminator: Any, real: Any, fake: Any) -> Any:
        slopes = jax.vmap(jax.grad(judged, argnums=1), in_axes=(None, 0))(discriminator, real)
        penalty = (slopes * slopes).sum(axis=-1).mean()
        loss = adversarial_loss(judged(discriminator, real), judged(discriminator, fake))
        return loss + settings.gradient_penalty * penalty, penalty

    def policy_loss(policy: Any, x: Any, action: Any, old: Any, advantage: Any, target: Any) -> Any:
        change = log_probability(policy, network(policy["actor"], x), action) - old
        ratio = jnp.exp(change)
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip) * advantage).mean()
        value = 0.5 * ((network(policy["critic"], x)[..., 0] - target) ** 2).mean()
        loss = -surrogate - settings.entropy * policy["log_std"].sum()
        return loss + value, (loss, value, ((ratio - 1) - change).mean())

    def features(obs: Any, qpos: Any, before: Any, contacts: Any) -> Any:
        height, joints = qpos[..., config.root_qpos_adr + 2], before[..., np.array(config.joint_qpos_adr)]
        return extract(obs, config, height, joints, dt, foot_contacts_override=contacts, use_obs_joint_vel=True)

    def advantages(reward: Any, value: Any, following: Any, ended: Any, cut: Any) -> Any:
        def back(later: Any, now: Any) -> Any:
            delta, goes_on = now
            total = delta + settings.discount * settings.trace * goes_on * later
            return total, total

        delta = reward + settings.discount * (1.0 - ended) * following - value
        goes_on = 1.0 - jnp.maximum(ended, cut)
        return jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, goes_on), reverse=True)[1]

    def finite(*trees: Any) -> Any:
        return jnp.stack([jnp.isfinite(leaf).all() for tree in trees for leaf in jax.tree.leaves(tree)]).all()

    def update(loss: Any, rate: Any) -> Any:
        """A step of a scan over minibatches: network and optimizer on; out the losses, and whether the gradient is finite."""

        def step(carry: Any, batch: Any) -> Any:
            parameters, memory = carry
            (_, told), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, *batch)
            changes, memory = optimizer.update(gradient, memory, parameters)
            changes = jax.tree.map(lambda change: -rate * change, changes)
            return (optax.apply_updates(parameters, changes), memory), (told, finite(gradient))

        return step

    @jax.jit
    def learn(
        state: Any, rates: Any, sight: Any, normal: Any, rollout: Any, real: Any, apart: Any, unseen: Any, order: Any
    ) -> Any:
        """An iteration's evaluation, then its updates.

        Args:
          rates: Adam's step sizes. sight: mean and std of observations. normal: of features.
          rollout: of `_Collector.collect`. real: (P, B, 2F) the reference's minibatches. apart: (H, 2F) held-out transitions.
          unseen: (U, 2F) the untrained policy's. order: (epochs · P, B) rows of the rollout.

        Returns:
          state, figures (`_FIGURES`), logits of `apart`, of the rollout and of `unseen`, what was finite (`_QUANTITIES`).
        """
        parameters, memory = state
        discriminator, policy = parameters["discriminator"], parameters["policy"]
        obs, action = rollout["obs"], rollout["action"]
        afterwards = observe(config, rollout["after_qpos"], rollout["after_qvel"], action)
        pair = [
            features(obs, rollout["before_qpos"], rollout["before_qpos"], rollout["before_contacts"]),
            features(afterwards, rollout["after_qpos"], rollout["before_qpos"], rollout["after_contacts"]),
        ]
        mean, scale, limit = normal
        fake = jnp.concatenate([jnp.clip((part - mean) / scale, -limit, limit) for part in pair], axis=-1)
        # Before any update of this iteration: on what the discriminator has not seen.
        logits, apart_logits = judged(discriminator, fake), judged(discriminator, apart)
        unseen_logits = judged(discriminator, unseen)
        d_loss = adversarial_loss(apart_logits, logits)
        reward = style_reward(logits)
        value, following = rollout["value"], network(policy["critic"], seen(sight, afterwards))[..., 0]
        ended, cut = rollout["ended"].astype(jnp.float32), rollout["cut"].astype(jnp.float32)
        advantage = advantages(reward, value, following, ended, cut)
        target = advantage + value
        standard = (advantage - advantage.mean()) / (advantage.std() + 1e-6)

        def flat(array: Any) -> Any:
            return array.reshape(-1, *array.shape[2:])

        batches = (real, flat(fake)[order[: len(real)]])
        (discriminator, d_memory), (penalty, d_fine) = jax.lax.scan(
            update(discriminator_loss, rates["discriminator"]), (discriminator, memory["discriminator"]), batches
        )
        d_train = adversarial_loss(judged(discriminator, real), judged(discriminator, fake))
        whole = (seen(sight, obs), action, rollout["log_prob"], standard, target)
        (policy, p_memory), ((loss, value_loss, kl), p_fine) = jax.lax.scan(
            update(policy_loss, rates["policy"]), (policy, memory["policy"]), tuple(flat(part)[order] for part in whole)
        )
        fine = jnp.stack(
            [
                finite(obs, afterwards),
                finite(pair),
                finite(real, apart, unseen),
                finite(fake),
                finite(action, rollout["log_prob"]),
                finite(logits, apart_logits, unseen_logits),
                finite(reward),
                finite(value, following),
                finite(advantage, standard),
                finite(d_loss, penalty),
                d_fine.all(),
                finite(discriminator, d_train),
                finite(loss, kl),
                finite(value_loss),
                p_fine.all(),
                finite(policy),
            ]
        )
        figures = jnp.stack(
            [
                d_loss,
                d_train,
                penalty.mean(),
                apart_logits.mean(),
                logits.mean(),
                reward.mean(),
                reward.std(),
                loss.mean(),
                value_loss.mean(),
                kl[-1],
                jnp.exp(policy["log_std"]).mean(),
                ended.mean(),
            ]
        )
        parameters = {"policy": policy, "discriminator": discriminator}
        memory = {"policy": p_memory, "discriminator": d_memory}
        return (parameters, memory), figures, (apart_logits, logits.reshape(-1), unseen_logits), fine

    return _Learner(begin, act, learn)


def _layers(generator: np.random.Generator, sizes: tuple[int, ...]) -> list[tuple[Floats, Floats]]:
    """Weights and biases; the last layer's are 0."""
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = generator.standard_normal((inputs, outputs), np.float32) / np.sqrt(np.float32(inputs))
        layers.append((weight if i < len(sizes) - 2 else np.zeros_like(weight), np.zeros(outputs, np.float32)))
    return layers


def _distance(one: Any, other: Any) -> float:
    """The norm of the difference of two parameter trees."""
    import jax

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(np.sqrt(sum(float(((np.asarray(a, np.float64) - np.asarray(b)) ** 2).sum()) for a, b in pairs)))


def _short(value: float) -> float | None:
    """For a figure: five digits, and None for what JSON has no number for."""
    return float(f"{value:.5g}") if np.isfinite(value) else None
