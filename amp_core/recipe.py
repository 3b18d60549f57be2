"""Recipes: the frozen settings of one generation, and their digest.

Everything that can change a result is in the recipe, so that the same recipe digest and the same motion bytes give the same
result bytes on the same robot and MuJoCo version (both of which a result names beside the recipe).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any

from amp_core.errors import RecipeRefused
from amp_core.strict_json import json_data, json_digest
from amp_core.version import GENERATOR_VERSION

GATE_PROFILE = "amp-0.12"
"""The gate profile that new recipes use."""

MODES = ("rollout", "teacher_forced", "tracked", "assisted", "recorded", "auto")
"""Every mode that a recipe may name."""

GENERATED_MODES = ("rollout", "teacher_forced", "tracked", "assisted", "recorded")
"""The modes that a rollout can be in: `auto` picks one of them."""

PLANNED_MODES = ("tracked", "assisted")
"""The modes whose controls are planned."""

RECORDED = "recorded"
"""The mode whose controls came with the clip."""

DEFAULT_MODE = "auto"

ASSISTED_CAP = 0.40
"""The greatest harness force of mode `assisted`, over the robot's weight: the gate of Tier 1."""

WILDROBOT_WEIGHT = 33.19
"""N; a harness that is not relative is one for a robot of this weight."""

INITIAL_VELOCITIES = ("from_clip", "zero")

SCALE_RANGE = (0.1, 10.0)
"""The least and the greatest factor that a physics scale may apply."""

CANONICAL = "canonical"
"""The name of the bucket of the robot's own physics."""

MAX_ATTEMPTS = 16
MAX_SAMPLES = 4096
"""The most plans that a recipe may ask for."""

_MAX_SEED = 2**53 - 1  # The largest integer that every JSON reader keeps exact.


def _number(value: object, key: str, low: float, high: float = math.inf) -> float:
    """`value` as a finite float within `[low, high]`, or a refusal that names `key`."""
    expected = f"a number of at least {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    # numpy's scalars are accepted; booleans, which Python counts as integers, are not.
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise RecipeRefused(f"{value!r:.80} is not a number", key=key, expected=expected)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RecipeRefused("the value is not a number", key=key, expected=expected) from None
    if not math.isfinite(number) or not low <= number <= high:
        raise RecipeRefused(f"{number!r} is out of range", key=key, expected=expected)
    # -0.0 and 0.0 are the same setting and must have the same digest.
    return number + 0.0


def _integer(value: object, key: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RecipeRefused(f"{value!r:.80} is not valid", key=key, expected=f"an integer from {low} to {high}")
    return value


def _choice(value: object, key: str, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise RecipeRefused(f"{value!r:.80} is not known", key=key, expected=f"one of {', '.join(choices)}")
    return value


def _check_type(value: object, key: str, cls: type) -> None:
    if not isinstance(value, cls):
        raise RecipeRefused(f"it is a {type(value).__name__}", key=key, expected=f"a {cls.__name__}")


def _bounded_field(default: Any, low: float, high: float) -> Any:
    """A dataclass field with a default and the range that `_check_ranges` holds it to."""
    return field(default=default, metadata={"range": (low, high)})


def _check_ranges(settings: Any, key: str) -> None:
    """Refuse a value outside its field's range, or below 0 where the field names none; None is accepted where its type does."""
    for setting in fields(settings):
        value, (low, high) = getattr(settings, setting.name), setting.metadata.get("range", (0.0, math.inf))
        if isinstance(setting.default, TrackingCost) or (value is None and "None" in setting.type):
            continue
        if setting.type == "bool":
            _check_type(value, f"{key}.{setting.name}", bool)
            continue
        path = f"{key}.{setting.name}"
        if isinstance(setting.default, int):
            value = _integer(value, path, low, high)
        elif isinstance(setting.default, tuple):
            if not isinstance(value, list | tuple) or not 0 < len(value) <= 16:
                raise RecipeRefused("it is not a short list of numbers", key=path, expected="1 to 16 numbers")
            value = tuple(_number(item, f"{path}[{i}]", low, high) for i, item in enumerate(value))
        else:
            value = _number(value, path, low, high)
        object.__setattr__(settings, setting.name, value)


def _fields(cls: type[Any], value: object, key: str) -> dict[str, Any]:
    """`value` as a dict with no other keys than the fields of the dataclass `cls`."""
    names = [entry.name for entry in fields(cls)]
    if not isinstance(value, Mapping):
        raise RecipeRefused(f"it is a {type(value).__name__}", key=key, expected="an object")
    unknown = [name for name in value if name not in names]
    if unknown:
        listing = ", ".join(f"{name!r:.40}" for name in unknown[:5])
        raise RecipeRefused(f"unknown key {listing}", key=key, expected=f"only {', '.join(sorted(names))}")
    return dict(value)


@dataclass(frozen=True, slots=True)
class Harness:
    """The vertical assist at the root: `F = clip(kp·(target − z) − kd·ż, ±cap)`, off while the root leans too far.

    The first three settings are those for a robot of WildRobot's weight; on another one they act in proportion to its weight
    (`scale`), so that the same harness carries the same share of every robot.

    Args:
      height_kp: N/m.
      height_kd: N·s/m.
      force_cap: N, the greatest force either way; `None` is uncapped, 0 switches the harness off.
      orient_gate: rad; the harness acts only while |pitch| and |roll| are both below it.
      relative: whether the first three are shares of the robot's weight instead: 1/m, s/m and a number.
    """

    height_kp: float
    height_kd: float
    force_cap: float | None
    orient_gate: float = field(metadata={"range": (0.0, math.pi)})
    relative: bool = False

    def __post_init__(self) -> None:
        _check_ranges(self, "harness")

    @classmethod
    def assist(cls) -> Harness:
        """The specification's weak assist of rollout mode: at most 4 N on WildRobot, 12 % of any robot's weight."""
        return cls(height_kp=60.0, height_kd=10.0, force_cap=4.0, orient_gate=0.436)

    @classmethod
    def strong(cls) -> Harness:
        """The specification's stabilizer of teacher-forced mode. The specification gives no cap for it, so it has none."""
        return cls(height_kp=500.0, height_kd=50.0, force_cap=None, orient_gate=0.436)

    @classmethod
    def support(cls) -> Harness:
        """The support of mode `assisted` at its strongest, 38 % of the robot's weight: below the 40 % that Tier 1 allows."""
        return cls(height_kp=10.0, height_kd=0.6, force_cap=0.38, orient_gate=0.436, relative=True)

    def scale(self, weight: float, share: float = 1.0) -> Harness:
        """What acts on a robot of this weight [N], in N, with a share of the cap; the gains stay, and 0 switches it off.

        Unless it is relative, the factor on its settings is the weight over WildRobot's, to three digits: 1 for WildRobot.
        """
        if share == 0.0:
            return Harness.none()
        unit = weight if self.relative else float(f"{weight / WILDROBOT_WEIGHT:.3g}")
        cap = None if self.force_cap is None else self.force_cap * unit * share
        return Harness(self.height_kp * unit, self.height_kd * unit, cap, self.orient_gate)

    def to_dict(self) -> dict[str, Any]:
        """Every setting as JSON-ready data; `relative` only where it is true: recipes from before it keep their digests."""
        document: dict[str, Any] = json_data(self)
        return document if self.relative else {key: value for key, value in document.items() if key != "relative"}

    @classmethod
    def none(cls) -> Harness:
        """No harness: the force is exactly 0 N."""
        return cls(height_kp=0.0, height_kd=0.0, force_cap=0.0, orient_gate=0.0)

    @property
    def is_off(self) -> bool:
        return self.force_cap == 0.0 or (self.height_kp == 0.0 and self.height_kd == 0.0)


@dataclass(frozen=True, slots=True)
class PhysicsScale:
    """Factors on the robot's own physics: one domain-randomization bucket. 1 leaves a quantity as the model has it.

    Args:
      friction: factor on the friction of every geom.
      mass: factor on every body's mass and inertia.
      damping: factor on every joint's damping.
    """

    friction: float = _bounded_field(1.0, *SCALE_RANGE)
    mass: float = _bounded_field(1.0, *SCALE_RANGE)
    damping: float = _bounded_field(1.0, *SCALE_RANGE)

    def __post_init__(self) -> None:
        _check_ranges(self, "physics")

    @classmethod
    def parse(cls, text: str) -> PhysicsScale:
        """The scale with the name `text`: `canonical`, or factors such as `friction=0.7,mass=1.1`, the others being 1.

        Raises:
          RecipeRefused: the text is neither, or a factor is repeated or out of range.
        """
        names = [factor.name for factor in fields(cls)]
        refusal = RecipeRefused(
            f"{text!r:.80} is no physics scale",
            key="physics",
            expected=f"{CANONICAL}, or factors such as friction=0.7,mass=1.1 (of {', '.join(names)})",
        )
        if text.strip() == CANONICAL:
            return cls()
        factors: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in names or name in factors:
                raise refusal
            try:
                factors[name] = float(value)
            except ValueError:
                raise refusal from None
        return cls(**factors)

    @property
    def is_identity(self) -> bool:
        return self == PhysicsScale()

    @property
    def name(self) -> str:
        """The bucket's name: `canonical`, or the factors other than 1 in a fixed order, `friction=0.7,mass=1.1`."""
        factors = [f"{name}={factor!r}".removesuffix(".0") for name, factor in asdict(self).items() if factor != 1.0]
        return ",".join(factors) or CANONICAL

    def __lt__(self, scale: PhysicsScale) -> bool:
        """The robot's own physics comes first, then by the number of factors other than 1, and by which they are."""
        return self._sort_key < scale._sort_key

    @property
    def _sort_key(self) -> tuple[Any, ...]:
        values = astuple(self)
        neutral = tuple(value == 1.0 for value in values)
        return len(values) - sum(neutral), neutral, values


@dataclass(frozen=True, slots=True)
class TrackingCost:
    """Weights of the tracked mode's cost: each multiplies a sum of squares, for a frame of 20 ms.

    Args:
      joints: rad, from the clip's angles.
      height, place: m, of the root, vertically and horizontally.
      upright, heading: differences of the root's z and x axes.
      feet: m, of the soles from the clip's.
      slip: m/s, of a sole that is as low as the clip's lowest.
      stance_slip: m/s, of a sole that stands in the clip.
      stance: m, the height above the ground of a sole that stands, and what a swinging one lacks in height.
      contact: from 0 to 1, how far a foot that stands is not pressed to the ground, and how far a swinging one is.
      vertical_velocity: m/s, of the root.
      load: the ground's force less the weight, over the weight.
      unloaded: what the ground's force lacks of 0.8 of the weight, over the weight.
      root_rate, joint_rate: rad/s. control: rad, from the clip's angles.
      leaning: what the vertical part of the root's z axis lacks of 0.9; not squared.
    """

    joints: float = 6.0
    height: float = 200.0
    place: float = 80.0
    upright: float = 20.0
    heading: float = 8.0
    feet: float = 20.0
    slip: float = 5.0
    stance_slip: float = 1.0
    stance: float = 200.0
    contact: float = 0.5
    vertical_velocity: float = 5.0
    load: float = 1.0
    unloaded: float = 16.0
    root_rate: float = 0.05
    joint_rate: float = 0.002
    control: float = 0.05
    leaning: float = 500.0

    def __post_init__(self) -> None:
        _check_ranges(self, "planner.cost")


@dataclass(frozen=True, slots=True)
class Planner:
    """Settings of the tracked mode's planner; docs/tracking.md explains it.

    Args:
      samples: simulations a round.
      horizon_sec: s that each plan looks ahead.
      replan_sec: s that are executed before the next plan.
      step_sec: s, the longest physics step of the planning model.
      rounds, first_rounds: rounds a plan; more for the first one, which starts from the clip alone.
      noise_rad: rad, standard deviation of the noise on the controls.
      noise_correlation: of the noise between two control steps.
      ridge: of the regression, a sample.
      pooling: weight of the neighbouring steps' samples in a step's regression.
      discard: share of the samples, the worst, that the regression leaves out.
      damping: of the candidate Gauss-Newton steps.
      step_lengths: shares of each Gauss-Newton step that are candidates.
      branches: planners that work side by side, each with its own noise.
      branch_sec: s after which all branches continue from the state of the best one.
      attempts: the most plans, each with other noise, that are made until one is Tier 0 and meets every goal.
      attempt_growth: factor on the simulations a round from one attempt to the next: an easy clip needs few.
      cost: the weights.
    """

    samples: int = _bounded_field(64, 16, MAX_SAMPLES)
    horizon_sec: float = _bounded_field(0.8, 0.1, 4.0)
    replan_sec: float = _bounded_field(0.08, 0.001, 4.0)
    step_sec: float = _bounded_field(0.007, 0.0005, 0.02)
    rounds: int = _bounded_field(1, 1, 64)
    first_rounds: int = _bounded_field(6, 1, 256)
    noise_rad: float = _bounded_field(0.1, 1e-4, 1.0)
    noise_correlation: float = _bounded_field(0.8, 0.0, 0.999)
    ridge: float = _bounded_field(0.1, 1e-6, 1e3)
    pooling: float = _bounded_field(1.0, 0.0, 1.0)
    discard: float = _bounded_field(0.15, 0.0, 0.9)
    damping: tuple[float, ...] = _bounded_field((0.1, 1.0, 10.0), 1e-6, 1e6)
    step_lengths: tuple[float, ...] = _bounded_field((1.0, 0.4), 1e-3, 1.0)
    branches: int = _bounded_field(2, 1, 64)
    branch_sec: float = _bounded_field(0.48, 0.001, 60.0)
    attempts: int = _bounded_field(3, 1, MAX_ATTEMPTS)
    attempt_growth: float = _bounded_field(2.0, 1.0, 8.0)
    cost: TrackingCost = TrackingCost()

    def __post_init__(self) -> None:
        _check_type(self.cost, "planner.cost", TrackingCost)
        _check_ranges(self, "planner")
        if len(self.damping) * len(self.step_lengths) + 2 > self.samples:
            raise RecipeRefused(
                f"{len(self.damping)} dampings of {len(self.step_lengths)} step lengths are more than the samples",
                key="planner.damping",
                expected=f"at most {self.samples - 2} in all",
            )

    def samples_of(self, attempt: int) -> int:
        """Simulations a round of an attempt; the first attempt is 0."""
        return min(MAX_SAMPLES, round(self.samples * self.attempt_growth**attempt))

    @property
    def effort(self) -> float:
        """The work of all attempts, in plans with the default settings."""
        default = _DEFAULT_PLANNER
        rounds = self.rounds * default.replan_sec / self.replan_sec * default.step_sec / self.step_sec
        plan = rounds * self.branches * self.horizon_sec / (default.rounds * default.branches * default.horizon_sec)
        return plan * sum(self.samples_of(attempt) for attempt in range(self.attempts)) / default.samples

    @classmethod
    def from_dict(cls, document: object, default: Planner | None = None) -> Planner:
        """The planner that `document` describes. A key that is left out has the value of `default`.

        Raises:
          RecipeRefused: an unknown key, a value of the wrong type or out of range.
        """
        settings = _fields(cls, document, "planner")
        if "cost" in settings:
            settings["cost"] = TrackingCost(**_fields(TrackingCost, settings["cost"], "planner.cost"))
        return replace(default or cls(), **settings)


_DEFAULT_PLANNER = Planner()

_PLANNERS: Mapping[str, Planner] = {
    "tracked": _DEFAULT_PLANNER,
    "auto": _DEFAULT_PLANNER,
    # As many simulations in each attempt: it is the harness that grows.
    "assisted": Planner(samples=128, attempts=4, attempt_growth=1.0),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The frozen settings of one generation; `Recipe.for_mode` gives the default ones of a mode.

    Args:
      mode: `rollout` (start once, drive the controls, weak harness), `teacher_forced` (the pose is overwritten before every
        control step, strong harness; Tier 1 at best), `tracked` (planned controls, no harness), `assisted` (planned controls,
        the least harness that keeps it up; Tier 1 at best), `recorded` (the controls and the initial state that came with the
        clip, no harness), or `auto` (the cheapest that gives Tier 0; `stage` gives theirs).
      harness: the vertical assist; in mode `auto` that of its rollout. It acts in proportion to the robot's weight.
      seed: of the planner's noise. The other modes draw no random numbers, so there it only changes the digest.
      physics: factors on friction, mass and damping.
      planner: settings of the planner of modes `tracked`, `assisted` and `auto`; `None` for the modes that do not plan.
      gate_profile: the name of the gate profile that decides the tier.
      generator_version: of the code that generates.
      force_threshold: N; a contact channel counts as touching above this normal force.
      initial_velocity: `from_clip` starts with the conditioned motion's velocity, `zero` at rest.

    Raises:
      RecipeRefused: a value of the wrong type or out of its range, or an unknown mode.
    """

    mode: str
    harness: Harness
    seed: int = 0
    physics: PhysicsScale = PhysicsScale()
    planner: Planner | None = None
    gate_profile: str = GATE_PROFILE
    generator_version: str = GENERATOR_VERSION
    force_threshold: float = 1.0
    initial_velocity: str = "from_clip"

    def __post_init__(self) -> None:
        _choice(self.mode, "mode", MODES)
        _check_type(self.harness, "harness", Harness)
        _check_type(self.physics, "physics", PhysicsScale)
        _integer(self.seed, "seed", 0, _MAX_SEED)
        plans = self.mode in (*PLANNED_MODES, "auto")
        if not plans and self.planner is not None:
            raise RecipeRefused(f"mode {self.mode!r} does not plan", key="planner", expected="null")
        if plans and not isinstance(self.planner, Planner):
            raise RecipeRefused(f"mode {self.mode!r} needs a planner", key="planner", expected="a Planner")
        if self.mode in ("tracked", RECORDED) and not self.harness.is_off:
            reason = f"mode {self.mode!r} has no harness: its promise is that the feet alone carry the robot"
            raise RecipeRefused(reason, key="harness.force_cap", expected="0")
        cap = self.harness.force_cap
        if self.mode == "assisted" and (not self.harness.relative or cap is None or cap > ASSISTED_CAP):
            raise RecipeRefused(
                "mode 'assisted' has a harness that is a share of the robot's weight",
                key="harness.force_cap",
                expected=f"at most {ASSISTED_CAP:g}, with relative true",
            )
        # Whether they exist is for `tiers.check_recipe`: a recipe of another release can still be read.
        for key in ("gate_profile", "generator_version"):
            value = getattr(self, key)
            if not isinstance(value, str) or not 0 < len(value) <= 64:
                raise RecipeRefused(f"{value!r:.80} is not a name", key=key, expected="a text of 1 to 64 characters")
        object.__setattr__(self, "force_threshold", _number(self.force_threshold, "force_threshold", 0.0))
        _choice(self.initial_velocity, "initial_velocity", INITIAL_VELOCITIES)
        if self.mode == RECORDED and self.initial_velocity != "from_clip":
            reason = "mode 'recorded' starts with the velocity that was recorded"
            raise RecipeRefused(reason, key="initial_velocity", expected="from_clip")

    @classmethod
    def for_mode(cls, mode: str, seed: int = 0, physics: PhysicsScale | None = None) -> Recipe:
        """The mode's default recipe.

        Raises:
          RecipeRefused: an unknown mode.
        """
        _choice(mode, "mode", MODES)
        harnesses = {"teacher_forced": Harness.strong(), "assisted": Harness.support()}
        harnesses |= dict.fromkeys(("tracked", RECORDED), Harness.none())
        harness = harnesses.get(mode, Harness.assist())
        planner = _PLANNERS.get(mode)
        return cls(mode=mode, harness=harness, seed=seed, physics=physics or PhysicsScale(), planner=planner)

    @classmethod
    def from_dict(cls, document: object) -> Recipe:
        """The recipe that `document` describes. A key that is left out has the mode's default.

        Args:
          document: what `to_dict` returns, or a part of it; `mode` is the one key that it must have.

        Raises:
          RecipeRefused: an unknown key, a value of the wrong type or out of range.
        """
        settings = _fields(cls, document, "recipe")
        if "mode" not in settings:
            raise RecipeRefused("the recipe names no mode", key="mode", expected=f"one of {', '.join(MODES)}")
        default = cls.for_mode(settings["mode"])
        if "harness" in settings:
            settings["harness"] = replace(default.harness, **_fields(Harness, settings["harness"], "harness"))
        if "physics" in settings:
            settings["physics"] = PhysicsScale(**_fields(PhysicsScale, settings["physics"], "physics"))
        if settings.get("planner") is not None:
            settings["planner"] = Planner.from_dict(settings["planner"], default.planner or _DEFAULT_PLANNER)
        elif default.planner is not None:
            settings.pop("planner", None)
        return replace(default, **settings)

    def stage(self, mode: str) -> Recipe:
        """The recipe under which mode `auto` scores a clip in `mode`: `rollout`, `tracked`, `assisted` or `recorded`.

        It has those settings of this recipe that the mode has. The default recipe of `auto` gives the default one of `mode`.
        """
        usual = Recipe.for_mode(mode)
        harness, planner = (self.harness if mode == "rollout" else usual.harness), usual.planner
        if planner is not None and self.planner is not None:
            planner = self.planner
            if mode == "assisted":
                ladder = {key: getattr(_PLANNERS[mode], key) for key in ("attempts", "attempt_growth")}
                planner = replace(planner, samples=max(planner.samples, _PLANNERS[mode].samples), **ladder)
        velocity = usual.initial_velocity if mode == RECORDED else self.initial_velocity
        return replace(self, mode=mode, harness=harness, planner=planner, initial_velocity=velocity)

    def harness_of(self, attempt: int, weight: float) -> Harness:
        """What acts in an attempt on a robot that weighs so much [N] in this recipe's physics, in N.

        In mode `assisted` the first attempt has none, and the cap grows in equal steps to the recipe's in the last one.
        """
        if not self.harness.relative:
            # A bucket changes the robot and not what acts on it.
            weight /= self.physics.mass
        if self.mode != "assisted" or self.planner is None:
            return self.harness.scale(weight)
        last = self.planner.attempts - 1
        return self.harness.scale(weight, min(1.0, attempt / last) if last else 1.0)

    def harness_params(self, weight: float) -> dict[str, Any]:
        """The harness as a result records it: what acts on a robot of this weight [N], in N, or the recipe's shares of it.

        The weight is that in this recipe's physics. Shares are those of the last attempt.
        """
        return (self.harness if self.harness.relative else self.harness_of(0, weight)).to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Every setting as JSON-ready data; `from_dict` reads it back to an equal recipe."""
        document: dict[str, Any] = json_data(self)
        return document | {"harness": self.harness.to_dict()}

    @property
    def digest(self) -> str:
        """`sha256:…` over the canonical JSON of `to_dict()`: sorted keys, no blanks, ASCII, shortest round-trip floats."""
        return json_digest(self.to_dict())
