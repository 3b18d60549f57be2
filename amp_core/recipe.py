"""Recipes: the frozen settings of one generation, and their digest.

Everything that can change a result is in the recipe, so that the same recipe digest and the same motion bytes give the same
result bytes on the same robot and MuJoCo version (both of which a result names beside the recipe).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from amp_core.errors import RecipeRefused
from amp_core.strict_json import json_digest
from amp_core.tiers import gate_profile
from amp_core.version import GENERATOR_VERSION

GATE_PROFILE = "amp-0.11"
"""The gate profile that new recipes use."""

MODES = ("rollout", "teacher_forced", "tracked", "auto")
"""Every mode that a recipe may name."""

AVAILABLE_MODES = MODES
"""The modes that this version can be asked for."""

GENERATED_MODES = ("rollout", "teacher_forced", "tracked")
"""The modes that a rollout can be in: `auto` picks one of them."""

DEFAULT_MODE = "auto"
"""The mode where nobody says one."""

INITIAL_VELOCITIES = ("from_clip", "zero")

SCALE_RANGE = (0.1, 10.0)
"""The least and the greatest factor that a physics scale may apply."""

CANONICAL = "canonical"
"""What the bucket of the robot's own physics is called."""

MAX_ATTEMPTS = 16
MAX_SAMPLES = 4096
"""The most plans that a recipe may ask for."""

_MAX_SEED = 2**53 - 1  # The largest that every JSON reader keeps exact.


def _number(value: object, key: str, *, minimum: float, maximum: float = math.inf) -> float:
    """`value` as a finite float within `[minimum, maximum]`, or a refusal that names `key`."""
    expected = f"a number of at least {minimum:g}" + (f" and at most {maximum:g}" if math.isfinite(maximum) else "")
    # numpy's scalars are welcome; booleans, which Python counts as integers, are not.
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        raise RecipeRefused(f"{value!r:.80} is not a number", key=key, expected=expected)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RecipeRefused("the value is not a number", key=key, expected=expected) from None
    if not math.isfinite(number) or not minimum <= number <= maximum:
        raise RecipeRefused(f"{number!r} is out of range", key=key, expected=expected)
    # -0.0 and 0.0 mean the same and must have the same digest.
    return number + 0.0


def _whole(value: object, key: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RecipeRefused(f"{value!r:.80} is not right here", key=key, expected=f"an integer from {low} to {high}")
    return value


def _numbers(value: object, key: str, low: float, high: float) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 16:
        raise RecipeRefused("it is not a short list of numbers", key=key, expected="1 to 16 numbers")
    return tuple(_number(item, f"{key}[{i}]", minimum=low, maximum=high) for i, item in enumerate(value))


def _choice(value: object, key: str, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise RecipeRefused(f"{value!r:.80} is not known", key=key, expected=f"one of {', '.join(choices)}")
    return value


@dataclass(frozen=True, slots=True)
class Harness:
    """The vertical assist at the root: `F = clip(kp·(target − z) − kd·ż, ±cap)`, off while the root leans too far.

    Args:
      height_kp: N/m.
      height_kd: N·s/m.
      force_cap: N, the greatest force either way; `None` is uncapped, 0 switches the harness off.
      orient_gate: rad; the harness acts only while |pitch| and |roll| are both below it.
    """

    height_kp: float
    height_kd: float
    force_cap: float | None
    orient_gate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "height_kp", _number(self.height_kp, "harness.height_kp", minimum=0.0))
        object.__setattr__(self, "height_kd", _number(self.height_kd, "harness.height_kd", minimum=0.0))
        if self.force_cap is not None:
            object.__setattr__(self, "force_cap", _number(self.force_cap, "harness.force_cap", minimum=0.0))
        object.__setattr__(self, "orient_gate", _number(self.orient_gate, "harness.orient_gate", minimum=0.0, maximum=math.pi))

    @classmethod
    def assist(cls) -> Harness:
        """The seed's weak assist of rollout mode: at most 4 N, about 12 % of WildRobot's weight."""
        return cls(height_kp=60.0, height_kd=10.0, force_cap=4.0, orient_gate=0.436)

    @classmethod
    def strong(cls) -> Harness:
        """The seed's stabilizer of teacher-forced mode. The seed gives no cap for it, so it has none."""
        return cls(height_kp=500.0, height_kd=50.0, force_cap=None, orient_gate=0.436)

    @classmethod
    def off(cls) -> Harness:
        """No harness at all: the force is exactly 0 N."""
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

    friction: float = 1.0
    mass: float = 1.0
    damping: float = 1.0

    def __post_init__(self) -> None:
        low, high = SCALE_RANGE
        for name in ("friction", "mass", "damping"):
            object.__setattr__(self, name, _number(getattr(self, name), f"physics.{name}", minimum=low, maximum=high))

    @classmethod
    def parse(cls, text: str) -> PhysicsScale:
        """The scale that `text` names, as `name` writes it: `canonical`, or factors such as `friction=0.7,mass=1.1`; what is
        left out is 1.

        Raises:
          RecipeRefused: it says something else, says a factor twice, or one is out of range.
        """
        expected = f"{CANONICAL}, or factors such as friction=0.7,mass=1.1 (of {', '.join(cls.__dataclass_fields__)})"
        if text.strip() == CANONICAL:
            return cls()
        factors: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in cls.__dataclass_fields__ or name in factors:
                raise RecipeRefused(f"{text!r:.80} is no physics scale", key="physics", expected=expected)
            try:
                factors[name] = float(value)
            except ValueError:
                raise RecipeRefused(f"{text!r:.80} is no physics scale", key=f"physics.{name}", expected=expected) from None
        return cls(**factors)

    @property
    def is_identity(self) -> bool:
        return (self.friction, self.mass, self.damping) == (1.0, 1.0, 1.0)

    @property
    def name(self) -> str:
        """What the bucket is called: `canonical`, or its factors other than 1 in a fixed order, `friction=0.7,mass=1.1`."""
        factors = [f"{name}={factor!r}".removesuffix(".0") for name, factor in asdict(self).items() if factor != 1.0]
        return ",".join(factors) or CANONICAL

    @property
    def order(self) -> tuple[Any, ...]:
        """A sort key: the robot's own physics, then what differs from it in one factor (friction, mass, damping), in two, …"""
        values = (self.friction, self.mass, self.damping)
        same = tuple(value == 1.0 for value in values)
        return 3 - sum(same), same, values


@dataclass(frozen=True, slots=True)
class TrackingCost:
    """Weights of the tracked mode's cost: each multiplies a sum of squares, for a frame of 20 ms.

    Args:
      joints: rad, from the clip's angles.
      height, place: m, of the root, vertically and horizontally.
      upright, heading: differences of the root's z and x axes.
      feet: m, of the soles from the clip's.
      slip: m/s, of a sole that is as low as the clip's lowest.
      stance_slip: m/s, of a sole that the clip means to stand.
      stance: m, a standing sole's height above the ground, and what a swinging one lacks in height.
      contact: by how much a standing foot is not pressed to the ground, and a swinging one is, from 0 to 1.
      vertical_velocity: m/s, of the root.
      load: share of the weight by which the ground's force differs from the weight.
      unloaded: share of the weight by which it falls short of 0.8 of the weight.
      root_rate, joint_rate: rad/s. control: rad, from the clip's angles.
      leaning: by how much the root's z axis falls short of 0.9 in the vertical; not squared.
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
        for field in fields(self):
            value = _number(getattr(self, field.name), f"planner.cost.{field.name}", minimum=0.0)
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, slots=True)
class Planner:
    """Settings of the tracked mode's planner; docs/tracking.md explains it.

    Args:
      samples: simulations a round.
      horizon_sec: s that each plan looks ahead.
      replan_sec: s that are executed before the next plan.
      step_sec: s, the longest physics step of the planning model.
      rounds, first_rounds: rounds a plan; more for the first one, which starts from the clip alone.
      noise_rad: rad, standard deviation of the noise on the controls. noise_correlation: of it between two control steps.
      ridge: of the regression, a sample.
      pooling: weight of the neighbouring steps' samples in a step's regression.
      discard: share of the samples, the worst, that the regression leaves out.
      damping: of the Gauss-Newton steps that are tried. step_lengths: the shares of each that are tried.
      branches: planners that work side by side, each with its own noise. branch_sec: s after which all of them go on from the
        best one's state.
      attempts: plans with other noise that are made when one does not give Tier 0 or misses a goal; the best is kept.
      attempt_growth: how many times more simulations a round each further attempt gets: an easy clip is done with few.
      cost: the weights.
    """

    samples: int = 64
    horizon_sec: float = 0.8
    replan_sec: float = 0.08
    step_sec: float = 0.007
    rounds: int = 1
    first_rounds: int = 6
    noise_rad: float = 0.1
    noise_correlation: float = 0.8
    ridge: float = 0.1
    pooling: float = 1.0
    discard: float = 0.15
    damping: tuple[float, ...] = (0.1, 1.0, 10.0)
    step_lengths: tuple[float, ...] = (1.0, 0.4)
    branches: int = 2
    branch_sec: float = 0.48
    attempts: int = 3
    attempt_growth: float = 2.0
    cost: TrackingCost = TrackingCost()

    def __post_init__(self) -> None:
        for key, low, high in (
            ("samples", 16, MAX_SAMPLES),
            ("rounds", 1, 64),
            ("first_rounds", 1, 256),
            ("attempts", 1, MAX_ATTEMPTS),
        ):
            object.__setattr__(self, key, _whole(getattr(self, key), f"planner.{key}", low, high))
        for key, least, most in (
            ("horizon_sec", 0.1, 4.0),
            ("replan_sec", 0.001, 4.0),
            ("branch_sec", 0.001, 60.0),
            ("step_sec", 0.0005, 0.02),
            ("noise_rad", 1e-4, 1.0),
            ("noise_correlation", 0.0, 0.999),
            ("ridge", 1e-6, 1e3),
            ("pooling", 0.0, 1.0),
            ("discard", 0.0, 0.9),
            ("attempt_growth", 1.0, 8.0),
        ):
            value = _number(getattr(self, key), f"planner.{key}", minimum=least, maximum=most)
            object.__setattr__(self, key, value)
        for key, least, most in (("damping", 1e-6, 1e6), ("step_lengths", 1e-3, 1.0)):
            object.__setattr__(self, key, _numbers(getattr(self, key), f"planner.{key}", least, most))
        if len(self.damping) * len(self.step_lengths) + 2 > self.samples:
            what = f"{len(self.damping)} dampings of {len(self.step_lengths)} step lengths are more than the samples"
            raise RecipeRefused(what, key="planner.damping", expected=f"at most {self.samples - 2} in all")
        if not isinstance(self.cost, TrackingCost):
            raise RecipeRefused("the cost is not a TrackingCost", key="planner.cost", expected="a TrackingCost")

    def samples_of(self, attempt: int) -> int:
        """Simulations a round of an attempt, the first being 0."""
        return min(MAX_SAMPLES, round(self.samples * self.attempt_growth**attempt))

    @property
    def effort(self) -> float:
        """How many times the work of one plan with the usual settings all attempts may take."""
        usual = _USUAL_PLAN
        rounds = self.rounds * usual.replan_sec / self.replan_sec
        one = rounds * self.branches * self.horizon_sec / (usual.rounds * usual.branches * usual.horizon_sec)
        return one * sum(self.samples_of(attempt) for attempt in range(self.attempts)) / usual.samples

    @classmethod
    def from_dict(cls, facts: object) -> Planner:
        """The planner that `facts` describes; what is left out takes its usual value.

        Raises:
          RecipeRefused: an unknown key, a value of the wrong type or out of range.
        """
        given = _mapping(facts, "planner", {field.name for field in fields(cls)})
        if "cost" in given:
            known = {field.name for field in fields(TrackingCost)}
            given["cost"] = TrackingCost(**_mapping(given["cost"], "planner.cost", known))
        return cls(**given)


_USUAL_PLAN = Planner()


@dataclass(frozen=True, slots=True)
class Recipe:
    """The frozen settings of one generation.

    Args:
      mode: `rollout` (start once, drive the controls, weak harness) or `teacher_forced` (the pose is overwritten before every
        control step, strong harness; Tier 1 at best), `tracked` (planned controls, no harness at all), or `auto` (the cheapest
        of `rollout` and `tracked` that gives Tier 0; `stage` says under which recipes).
      harness: the vertical assist; in mode `auto` that of its rollout.
      seed: of the planner's noise; the other modes draw no random numbers, so there it only changes the digest.
      physics: factors on friction, mass and damping.
      planner: settings of the tracked mode's planner, which `auto` may come to; `None` for the modes that do not plan.
      gate_profile: the name of the gate profile that decides the tier.
      generator_version: of the code that generates.
      force_threshold: N; a contact channel counts as touching above this normal force.
      initial_velocity: `from_clip` starts with the conditioned motion's velocity, `zero` at rest.

    Raises:
      RecipeRefused: a value of the wrong type or out of its range, or a mode that there is not.
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
        _choice(self.mode, "mode", AVAILABLE_MODES)
        if not isinstance(self.harness, Harness):
            raise RecipeRefused("the harness is not a Harness", key="harness", expected="a Harness")
        if not isinstance(self.physics, PhysicsScale):
            raise RecipeRefused("the physics scale is not a PhysicsScale", key="physics", expected="a PhysicsScale")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= _MAX_SEED:
            raise RecipeRefused(f"{self.seed!r:.80} is not a seed", key="seed", expected=f"an integer from 0 to {_MAX_SEED}")
        plans = self.mode in ("tracked", "auto")
        if not plans and self.planner is not None:
            raise RecipeRefused(f"mode {self.mode!r} does not plan", key="planner", expected="null")
        if plans and not isinstance(self.planner, Planner):
            raise RecipeRefused(f"mode {self.mode!r} needs a planner", key="planner", expected="a Planner")
        if self.mode == "tracked" and not self.harness.is_off:
            what = "mode 'tracked' has no harness: its promise is that the feet alone carry the robot"
            raise RecipeRefused(what, key="harness.force_cap", expected="0")
        # `check_usable` looks at what they name: a recipe of another version can still be read.
        for key in ("gate_profile", "generator_version"):
            value = getattr(self, key)
            if not isinstance(value, str) or not 0 < len(value) <= 64:
                raise RecipeRefused(f"{value!r:.80} is not a name", key=key, expected="a text of 1 to 64 characters")
        object.__setattr__(self, "force_threshold", _number(self.force_threshold, "force_threshold", minimum=0.0))
        _choice(self.initial_velocity, "initial_velocity", INITIAL_VELOCITIES)

    @classmethod
    def for_mode(cls, mode: str, seed: int = 0, physics: PhysicsScale | None = None) -> Recipe:
        """The mode's usual recipe.

        Raises:
          RecipeRefused: there is no such mode.
        """
        _choice(mode, "mode", AVAILABLE_MODES)
        harness = {"teacher_forced": Harness.strong(), "tracked": Harness.off()}.get(mode, Harness.assist())
        planner = Planner() if mode in ("tracked", "auto") else None
        scale = physics if physics is not None else PhysicsScale()
        return cls(mode=mode, harness=harness, seed=seed, physics=scale, planner=planner)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Recipe:
        """The recipe that `facts` describes. Keys that are left out take the mode's usual value.

        Args:
          facts: what `to_dict` writes, or a part of it; `mode` is the one key that must be there.

        Raises:
          RecipeRefused: an unknown key, a value of the wrong type or out of range.
        """
        facts = _mapping(facts, "recipe", {field.name for field in fields(cls)})
        if "mode" not in facts:
            raise RecipeRefused("the recipe names no mode", key="mode", expected=f"one of {', '.join(AVAILABLE_MODES)}")
        usual = cls.for_mode(facts["mode"])
        given = dict(facts)
        if "harness" in given:
            parts = _mapping(given["harness"], "harness", {field.name for field in fields(Harness)})
            given["harness"] = replace(usual.harness, **parts)
        if "physics" in given:
            given["physics"] = PhysicsScale(**_mapping(given["physics"], "physics", {f.name for f in fields(PhysicsScale)}))
        if given.get("planner") is not None:
            given["planner"] = Planner.from_dict(given["planner"])
        elif usual.planner is not None:
            given.pop("planner", None)
        return replace(usual, **given)

    def stage(self, mode: str) -> Recipe:
        """The recipe under which mode `auto` scores a clip in `mode`, `rollout` or `tracked`: its own settings, those of them
        that the mode has. From the usual recipe of `auto` this is the usual recipe of `mode`."""
        harness = self.harness if mode == "rollout" else Harness.off()
        return replace(self, mode=mode, harness=harness, planner=self.planner if mode == "tracked" else None)

    def to_dict(self) -> dict[str, Any]:
        """Every setting as JSON-ready data; `from_dict` reads it back to an equal recipe."""
        facts = asdict(self)
        if self.planner is not None:
            # As JSON will give them back, so that a stored recipe equals a fresh one.
            facts["planner"] |= {key: list(facts["planner"][key]) for key in ("damping", "step_lengths")}
        return facts

    def check_usable(self) -> None:
        """Whether this code can generate and judge by the recipe. One that it cannot can be read all the same.

        Raises:
          RecipeRefused: a gate profile that there is not, or the generator of another release, whose bytes this one would
            only claim to make.
        """
        gate_profile(self.gate_profile)
        if self.generator_version != GENERATOR_VERSION:
            raise RecipeRefused(
                f"generator_version {self.generator_version!r:.80} is not this release's",
                key="generator_version",
                expected=GENERATOR_VERSION,
                remedy="Leave generator_version out; for another release's results use that release",
            )

    @property
    def digest(self) -> str:
        """`sha256:…` over the canonical JSON of `to_dict()`: sorted keys, no blanks, ASCII, shortest round-trip floats."""
        return json_digest(self.to_dict())


def _mapping(value: object, key: str, known: set[str]) -> dict[str, Any]:
    """`value` as a dict that has no other keys than `known`."""
    if not isinstance(value, Mapping):
        raise RecipeRefused(f"it is a {type(value).__name__}", key=key, expected="an object")
    unknown = [name for name in value if name not in known]
    if unknown:
        shown = ", ".join(f"{name!r:.40}" for name in unknown[:5])
        raise RecipeRefused(f"unknown key {shown}", key=key, expected=f"only {', '.join(sorted(known))}")
    return dict(value)
