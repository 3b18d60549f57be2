"""Recipes: the frozen settings of one generation, and their digest.

Everything that can change a result is in the recipe, so that the same recipe digest and the same motion bytes give the same
result bytes on the same robot and MuJoCo version (both of which a result names beside the recipe).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from amp_core.errors import RecipeRefused
from amp_core.version import GENERATOR_VERSION

GATE_PROFILE = "amp-0.11"
"""The gate profile that new recipes use."""

MODES = ("rollout", "teacher_forced", "tracked", "auto")
"""Every mode that a recipe may name."""

AVAILABLE_MODES = ("rollout", "teacher_forced")
"""The modes that this version can generate."""

INITIAL_VELOCITIES = ("from_clip", "zero")

SCALE_RANGE = (0.1, 10.0)
"""The least and the greatest factor that a physics scale may apply."""

_MAX_SEED = 2**63 - 1


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

    @property
    def is_identity(self) -> bool:
        return (self.friction, self.mass, self.damping) == (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The frozen settings of one generation.

    Args:
      mode: `rollout` (start once, drive the controls, weak harness) or `teacher_forced` (the pose is overwritten before every
        control step, strong harness; Tier 1 at best). `tracked` and `auto` are known names that this version refuses.
      harness: the vertical assist.
      seed: of the planner's random numbers; the modes of this version draw none, so it only changes the digest.
      physics: factors on friction, mass and damping.
      planner: settings of the tracked mode's planner; `None` for the modes that do not plan.
      gate_profile: the name of the gate profile that decides the tier.
      generator_version: of the code that generates.
      force_threshold: N; a contact channel counts as touching above this normal force.
      initial_velocity: `from_clip` starts with the conditioned motion's velocity, `zero` at rest.

    Raises:
      RecipeRefused: a value of the wrong type or out of its range, or a mode that is not available.
    """

    mode: str
    harness: Harness
    seed: int = 0
    physics: PhysicsScale = PhysicsScale()
    planner: None = None
    gate_profile: str = GATE_PROFILE
    generator_version: str = GENERATOR_VERSION
    force_threshold: float = 1.0
    initial_velocity: str = "from_clip"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            _choice(self.mode, "mode", AVAILABLE_MODES)
        if self.mode not in AVAILABLE_MODES:
            raise RecipeRefused(
                f"the mode {self.mode!r} is not available yet",
                key="mode",
                expected=f"one of {', '.join(AVAILABLE_MODES)}",
                remedy="Use mode 'rollout'",
            )
        if not isinstance(self.harness, Harness):
            raise RecipeRefused("the harness is not a Harness", key="harness", expected="a Harness")
        if not isinstance(self.physics, PhysicsScale):
            raise RecipeRefused("the physics scale is not a PhysicsScale", key="physics", expected="a PhysicsScale")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= _MAX_SEED:
            raise RecipeRefused(f"{self.seed!r:.80} is not a seed", key="seed", expected=f"an integer from 0 to {_MAX_SEED}")
        if self.planner is not None:
            raise RecipeRefused(f"mode {self.mode!r} does not plan", key="planner", expected="null")
        # The profile is looked up when the recipe is used; a recipe that names one of another version can still be read.
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
          RecipeRefused: no such mode, or one that is not available.
        """
        harness = Harness.strong() if mode == "teacher_forced" else Harness.assist()
        return cls(mode=mode, harness=harness, seed=seed, physics=physics if physics is not None else PhysicsScale())

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
        return replace(usual, **given)

    def to_dict(self) -> dict[str, Any]:
        """Every setting as JSON-ready data; `from_dict` reads it back to an equal recipe."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """`sha256:…` over the canonical JSON of `to_dict()`: sorted keys, no blanks, ASCII, shortest round-trip floats."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def _mapping(value: object, key: str, known: set[str]) -> dict[str, Any]:
    """`value` as a dict that has no other keys than `known`."""
    if not isinstance(value, Mapping):
        raise RecipeRefused(f"it is a {type(value).__name__}", key=key, expected="an object")
    unknown = [name for name in value if name not in known]
    if unknown:
        shown = ", ".join(f"{name!r:.40}" for name in unknown[:5])
        raise RecipeRefused(f"unknown key {shown}", key=key, expected=f"only {', '.join(sorted(known))}")
    return dict(value)
