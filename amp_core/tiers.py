"""Tiers: named, versioned gate profiles as data, and the rule that turns metrics into a tier.

Validity comes first: a clip that fails a validity gate is Rejected whatever its feet carried, because the feet of a robot that
lies on the floor carry weight too. Then all Tier 0 gates make Tier 0, all Tier 1 gates make Tier 1, and the rest is Rejected.
A profile never changes: other thresholds are another name, so that a stored result keeps its tier.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

from amp_core.errors import RecipeRefused
from amp_core.recipe import GATE_PROFILE, RECORDED, Recipe
from amp_core.strict_json import json_data
from amp_core.version import GENERATOR_VERSION


class Tier(IntEnum):
    """The verdict on a clip, a window or a rollout. The members stand from the best to the worst.

    The values are those of the JSON, the database and the API. They are not in order of merit: compare by `rank`.
    """

    TIER_0 = 0
    TIER_1 = 1
    REJECTED = -1

    @property
    def label(self) -> str:
        """`Tier 0`, `Tier 1` or `Rejected`."""
        return "Rejected" if self is Tier.REJECTED else f"Tier {self.value}"

    @property
    def rank(self) -> int:
        """0 for the best tier, greater for each worse one."""
        return tuple(Tier).index(self)

    @classmethod
    def best(cls, tiers: Iterable[int]) -> Tier:
        return min(map(cls, tiers), key=lambda tier: tier.rank)

    @classmethod
    def worst(cls, tiers: Iterable[int]) -> Tier:
        return max(map(cls, tiers), key=lambda tier: tier.rank)


Op = Literal[">=", "<=", ">", "==", "in"]
Level = Literal["validity"] | Tier
Threshold = float | tuple[float, float]

_COMPARISONS: Mapping[Op, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "==": operator.eq,
}

MODE_GATE = "mode"
"""The gate whose value is not a metric but how the mode forces the robot: 0, or that of `FORCED_MODES`."""

FORCED_MODES: Mapping[str, int] = {"assisted": 1, "teacher_forced": 2}
"""The modes that are Tier 1 at best, with the value of their `mode` gate: 1 holds the robot up, 2 overwrites its pose.

Between rollouts of one tier the smaller is the better."""

CLIP_PREFIX = "clip_"
"""Metrics with this prefix are the clip's own: no controller and no plan can change them."""

CLIP_CODES: Mapping[str, str] = {
    "clip_max_tilt_deg": "clip_not_upright",
    "clip_flight_rate": "flight",
    "clip_ground_range_m": "ground_not_flat",
    "clip_foot_slide": "clip_feet_slide",
    "clip_path_ratio": "clip_feet_slide",
    "clip_still_rate": "stands_still",
}
"""What a clip is that fails a gate of its own, by the gate's name."""

FIDELITY_METRICS = frozenset(
    {
        "joint_rmse_rad", "joint_rmse_raw_rad", "mpjpe_m", "worst_second_mpjpe_m", "heading_error_deg", "tilt_error_deg",
        "height_error_m", "root_drift_m", "speed_ratio", "contact_agreement", "contact_rate_error",
    }
)  # fmt: skip
"""The metrics that say how far the robot's motion is from the clip's."""


@dataclass(frozen=True)
class HeightShare:
    """A threshold in metres as a share of the robot's height: of the middle of its height range."""

    height_share: float

    def resolve(self, height_range: tuple[float, float]) -> float:
        """m, for a robot of this height range, (low, high) m."""
        return self.height_share * sum(height_range) / 2


LYING_DEG = 75.0
"""A clip whose root leans further at any time lies, gets up or turns over: no plan follows that on the feet."""


def merit_order(
    tier: int, mode: str, tier_0_frames: int, *, profile: str = GATE_PROFILE, scaled: bool = False
) -> tuple[int, ...]:
    """A sort key for the rollouts of one clip, the best first. Of equals, the newest is the best.

    A rollout in the robot's own physics comes before any in scaled physics, because a domain-randomization bucket tells how
    robust a clip is and not what it is. Then a verdict by a current profile before any by a superseded one, then the better
    tier, then a free simulation before one whose poses were forced, then, below Tier 0, more frames in windows that are Tier 0
    on their own, then the profile of new recipes before the others.

    Args:
      tier_0_frames: frames in Tier 0 segments; of no weight where the whole rollout is Tier 0.
      profile: the gate profile that gave the tier.
      scaled: whether the recipe scales the robot's physics.
    """
    frames = 0 if tier == Tier.TIER_0 else -tier_0_frames
    is_superseded, is_other = profile in SUPERSEDED_PROFILES, profile != GATE_PROFILE
    return scaled, is_superseded, Tier(tier).rank, FORCED_MODES.get(mode, 0), frames, is_other


@dataclass(frozen=True)
class GateSpec:
    """One gate of a profile.

    Args:
      name: the metric that it tests (or `mode`).
      op: how the metric is compared with the threshold; `in` means within `[low, high]`, both ends included.
      threshold: a number, (low, high) or a share of the robot's height; `robot.height_low` and `robot.height_high` stand for
        the robot's own height range.
      tier: which tier needs it: `validity` (both), 0 or 1.
      ideal: the value at which the gate's margin is 1, for a segment's score; None leaves the gate out of the score.
        `middle` is the middle of the range that the threshold belongs to.
      modes: the modes it applies to; None for all.
      optional: a metric without a value passes.
    """

    name: str
    op: Op
    threshold: Threshold | HeightShare | Literal["robot.height_low", "robot.height_high"]
    tier: Level
    ideal: float | Literal["middle"] | None = None
    modes: tuple[str, ...] | None = None
    optional: bool = False

    def resolve(self, height_range: tuple[float, float]) -> Threshold:
        """The threshold for a robot of this height range, (low, high) m."""
        if isinstance(self.threshold, str):
            return height_range[self.threshold == "robot.height_high"]
        if isinstance(self.threshold, HeightShare):
            return self.threshold.resolve(height_range)
        return self.threshold

    def evaluate(self, metrics: Mapping[str, float | int | None], mode: str, height_range: tuple[float, float]) -> Gate:
        """The gate's outcome for one clip. The arguments are those of `classify`."""
        metric = FORCED_MODES.get(mode, 0) if self.name == MODE_GATE else metrics[self.name]
        value = None if metric is None else float(metric)
        threshold = self.resolve(height_range)
        bounds = threshold if isinstance(threshold, tuple) else height_range
        ideal = sum(bounds) / 2 if self.ideal == "middle" else self.ideal
        margin = None
        if value is not None and ideal is not None:
            nearest = threshold[value >= ideal] if isinstance(threshold, tuple) else threshold
            margin = min(1.0, max(0.0, (value - nearest) / (ideal - nearest)))
        is_pass = self.optional if value is None else holds(value, self.op, threshold)
        return Gate(self.name, value, threshold, self.op, is_pass, self.tier, margin)


@dataclass(frozen=True)
class GateProfile:
    """A named set of gates."""

    name: str
    gates: tuple[GateSpec, ...]

    def for_mode(self, mode: str) -> tuple[GateSpec, ...]:
        """The gates that apply to `mode`; those of `tracked` to `recorded`, which promises the same."""
        judged_mode = "tracked" if mode == RECORDED else mode
        return tuple(gate for gate in self.gates if gate.modes is None or judged_mode in gate.modes)

    def for_tier(self, tier: Tier) -> dict[str, GateSpec]:
        """The validity gates and those of `tier`, of every mode, by name."""
        return {gate.name: gate for gate in self.gates if gate.tier in ("validity", tier)}

    @property
    def is_relative(self) -> bool:
        """Whether the robot's posture is compared with the clip's, so that it may lie or turn over where the clip does."""
        return "tilt_excess_deg" in self.for_tier(Tier.TIER_0)


_SOUND = (GateSpec("finite_frame_rate", ">=", 1.0, "validity"), GateSpec("solver_warnings", "==", 0.0, "validity"))

_UPRIGHT = (
    *_SOUND,
    GateSpec("max_tilt_deg", "<=", 60.0, "validity", ideal=0.0),
    GateSpec("p95_pitch_deg", "<=", 30.0, "validity", ideal=0.0),
    GateSpec("p95_roll_deg", "<=", 30.0, "validity", ideal=0.0),
    GateSpec("height_min", ">=", "robot.height_low", "validity", ideal="middle"),
    GateSpec("height_max", "<=", "robot.height_high", "validity", ideal="middle"),
    GateSpec("nonfoot_contact_rate", "==", 0.0, "validity"),
)

_ON_ITS_FEET = (
    GateSpec("mean_sum_fn_over_mg", ">=", 0.85, Tier.TIER_0, ideal=1.0),
    GateSpec("p90_stab_force_over_mg", "<=", 0.15, Tier.TIER_0, ideal=0.0),
    GateSpec("unloaded_frame_rate", "<=", 0.10, Tier.TIER_0, ideal=0.0),
    GateSpec("contact_rate", "in", (0.3, 0.95), Tier.TIER_0, ideal="middle"),
    GateSpec("height_std", ">", 0.001, Tier.TIER_0, ideal=0.005),
)

_TIER_1 = (
    GateSpec(MODE_GATE, "==", 0.0, Tier.TIER_0),
    GateSpec("mean_sum_fn_over_mg", ">=", 0.60, Tier.TIER_1),
    GateSpec("p90_stab_force_over_mg", "<=", 0.40, Tier.TIER_1),
    GateSpec("unloaded_frame_rate", "<=", 0.30, Tier.TIER_1),
)

# docs/fidelity.md has the figures that chose these thresholds. They have no ideal: a score tells segments of one rollout apart
# by how well the feet carry the robot.
_FAITHFUL = (
    GateSpec("joint_rmse_raw_rad", "<=", 0.18, Tier.TIER_0),
    GateSpec("mpjpe_m", "<=", HeightShare(0.06), Tier.TIER_0),
    GateSpec("worst_second_mpjpe_m", "<=", HeightShare(0.10), Tier.TIER_0),
    GateSpec("root_drift_m", "<=", 0.25, Tier.TIER_0, modes=("tracked", "assisted")),
    GateSpec("root_drift_m", "<=", 0.60, Tier.TIER_0, modes=("rollout", "teacher_forced")),
    GateSpec("speed_ratio", "in", (0.6, 1.3), Tier.TIER_0, optional=True),
    GateSpec("clip_foot_slide", "<=", 0.15, Tier.TIER_0, optional=True),
    GateSpec("clip_path_ratio", "in", (0.85, 1.3), Tier.TIER_0, optional=True),
    GateSpec("clip_still_rate", "<=", 0.95, Tier.TIER_0),
)

GATE_PROFILES: Mapping[str, GateProfile] = {
    "amp-0.11": GateProfile(
        "amp-0.11",
        (
            *_UPRIGHT,
            *_ON_ITS_FEET,
            GateSpec("joint_rmse_rad", "<=", 0.25, Tier.TIER_0, ideal=0.0, modes=("tracked",)),
            GateSpec("root_drift_m", "<=", 0.25, Tier.TIER_0, ideal=0.0, modes=("tracked",)),
            *_TIER_1,
        ),
    ),
    "amp-0.12": GateProfile(
        "amp-0.12",
        (
            *_UPRIGHT,
            GateSpec("clip_max_tilt_deg", "<=", 60.0, "validity"),
            *_ON_ITS_FEET,
            *_FAITHFUL,
            GateSpec("heading_error_deg", "<=", 20.0, Tier.TIER_0),
            GateSpec("tilt_error_deg", "<=", 15.0, Tier.TIER_0),
            GateSpec("height_error_m", "<=", HeightShare(0.07), Tier.TIER_0),
            GateSpec("contact_rate_error", "<=", 0.25, Tier.TIER_0),
            GateSpec("clip_flight_rate", "<=", 0.15, Tier.TIER_0),
            GateSpec("clip_ground_range_m", "<=", HeightShare(0.10), Tier.TIER_0, optional=True),
            *_TIER_1,
        ),
    ),
    "amp-0.12-dynamic": GateProfile(
        "amp-0.12-dynamic",
        (
            *_SOUND,
            GateSpec("tilt_excess_deg", "<=", 30.0, "validity", ideal=0.0),
            GateSpec("pitch_excess_deg", "<=", 15.0, "validity", ideal=0.0),
            GateSpec("roll_excess_deg", "<=", 15.0, "validity", ideal=0.0),
            GateSpec("nonfoot_excess", "==", 0.0, "validity"),
            GateSpec("p90_stab_force_over_mg", "<=", 0.15, Tier.TIER_0, ideal=0.0),
            GateSpec("unloaded_excess", "<=", 0.10, Tier.TIER_0, ideal=0.0),
            GateSpec("contact_rate_error", "<=", 0.20, Tier.TIER_0, ideal=0.0),
            GateSpec("contact_agreement", ">=", 0.70, Tier.TIER_0, ideal=1.0),
            *_FAITHFUL,
            GateSpec("heading_error_deg", "<=", 30.0, Tier.TIER_0),
            GateSpec("tilt_error_deg", "<=", 30.0, Tier.TIER_0),
            GateSpec("height_error_m", "<=", HeightShare(0.07), Tier.TIER_0),
            GateSpec(MODE_GATE, "==", 0.0, Tier.TIER_0),
            GateSpec("p90_stab_force_over_mg", "<=", 0.40, Tier.TIER_1),
            GateSpec("unloaded_excess", "<=", 0.30, Tier.TIER_1),
        ),
    ),
}
"""Every profile by name."""

SUPERSEDED_PROFILES = ("amp-0.11",)
"""Profiles that a later one replaced, because they let clips pass that are not what Tier 0 means today.

What they judged keeps its tier, and stands for a clip only where no current profile judged it. All others are current: they are
for different motions, so that the best verdict by any of them stands for the clip. The catalog stores which rollout that is: a
profile that is added here, or another one of new recipes, needs a migration that ranks them anew, such as revision 0009."""

DYNAMIC_PROFILES: Mapping[str, str] = {"amp-0.12": "amp-0.12-dynamic"}
"""The profile for running, jumping and dancing that goes with one for walking."""


def gate_profile(name: str) -> GateProfile:
    """The profile called `name`.

    Raises:
      RecipeRefused: no profile has this name.
    """
    if name not in GATE_PROFILES:
        raise RecipeRefused(
            f"there is no gate profile {name!r:.80}",
            key="gate_profile",
            expected=f"one of {', '.join(GATE_PROFILES)}",
            remedy="Leave gate_profile out to take the usual one",
        )
    return GATE_PROFILES[name]


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that this release can read but neither generate nor judge by.

    Raises:
      RecipeRefused: an unknown gate profile, or the generator of another release, whose bytes this one would only claim to
        make.
    """
    gate_profile(recipe.gate_profile)
    if recipe.generator_version != GENERATOR_VERSION:
        raise RecipeRefused(
            f"generator_version {recipe.generator_version!r:.80} is not this release's",
            key="generator_version",
            expected=GENERATOR_VERSION,
            remedy="Leave generator_version out; for another release's results use that release",
        )


@dataclass(frozen=True)
class Gate:
    """A gate's outcome for one clip.

    Args:
      value: the metric; None where it has none, which fails the gate.
      margin: 0 at the threshold (and beyond), 1 at the ideal; None for a gate without one.
    """

    name: str
    value: float | None
    threshold: Threshold
    op: Op
    passed: bool
    tier: Level
    margin: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields but for the margin, JSON-ready."""
        return {name: value for name, value in json_data(self).items() if name != "margin"}

    def explain(self) -> str:
        """What is wrong, for a gate that failed: `max_tilt_deg 92.3 is over 60`."""
        if self.name == MODE_GATE:
            action = "assisted may hold the robot up" if self.value == 1.0 else "teacher_forced overwrites the pose"
            return f"mode {action}, so it is Tier 1 at best"
        if self.value is None:
            return f"{self.name} has no value"
        if isinstance(self.threshold, tuple):
            return f"{self.name} {_format_value(self.value)} is outside {_format_threshold(self.threshold)}"
        words = {">=": "is below", "<=": "is over", ">": "is not over", "==": "is not"}[self.op]
        return f"{self.name} {_format_value(self.value, self.threshold)} {words} {_format_threshold(self.threshold)}"


@dataclass(frozen=True)
class Classification:
    """A tier, why, and every gate.

    Args:
      score: in [0, 1], for what is Tier 0: the mean margin of the validity and Tier 0 gates that have an ideal; otherwise 0.
        (The least margin would not tell segments apart: they are grown until some gate is at its threshold.)
    """

    tier: Tier
    tier_reason: str
    gates: tuple[Gate, ...]
    score: float

    def with_cause(self, cause: str) -> Classification:
        """The classification of a Rejected clip whose reason names `cause` before the gates that failed."""
        failures = self.tier_reason.removeprefix("Rejected: ")
        return replace(self, tier_reason=f"Rejected: {cause}; {failures}")


def classify(
    metrics: Mapping[str, float | int | None], profile: GateProfile, mode: str, *, height_range: tuple[float, float]
) -> Classification:
    """The tier of a clip or of a window.

    Args:
      metrics: of `quality.measure`.
      height_range: (low, high) m, the robot's.
    """
    gates = tuple(spec.evaluate(metrics, mode, height_range) for spec in profile.for_mode(mode))
    failed_gates = [gate for gate in gates if not gate.passed]
    levels = {gate.tier for gate in failed_gates}
    if levels <= {Tier.TIER_1}:
        tier, reason = Tier.TIER_0, "All Tier 0 gates passed"
    elif levels == {Tier.TIER_0}:
        tier, reason = Tier.TIER_1, f"Tier 1, not Tier 0: {describe_failures(failed_gates, profile)}"
    else:
        tier, reason = Tier.REJECTED, f"Rejected: {describe_failures(failed_gates, profile)}"
    margins = [gate.margin for gate in gates if gate.tier != Tier.TIER_1 and gate.margin is not None]
    score = sum(margins) / len(margins) if tier == Tier.TIER_0 and margins else 0.0
    return Classification(tier=tier, tier_reason=reason, gates=gates, score=score)


def clip_failures(gates: Iterable[Gate]) -> list[Gate]:
    """The gates that the clip itself fails, however well it is followed: none where the simulation did not reach its end.

    Args:
      gates: of one rollout, those that failed at least.
    """
    failed = [gate for gate in gates if not gate.passed]
    if any(gate.name == "finite_frame_rate" for gate in failed):
        return []
    return [gate for gate in failed if gate.name.startswith(CLIP_PREFIX) and gate.value is not None]


def best_tier(gates: Iterable[Gate]) -> Tier:
    """The best tier that another rollout in the same mode may have: by the gates on the clip itself and on the mode.

    Args:
      gates: of one rollout of the clip.
    """
    gates = list(gates)
    permanent = [*clip_failures(gates), *(gate for gate in gates if gate.name == MODE_GATE and not gate.passed)]
    if not permanent:
        return Tier.TIER_0
    return Tier.TIER_1 if all(gate.tier == Tier.TIER_0 for gate in permanent) else Tier.REJECTED


def describe_failures(failed: Sequence[Gate], profile: GateProfile) -> str:
    """What is wrong, by the gates that failed: first those of the clip itself, then those of the robot.

    Of a clip that is Tier 1, the words also say where nothing but fidelity is missing.
    """
    clip_gates = clip_failures(failed)
    robot_gates = [gate for gate in failed if gate not in clip_gates]
    is_tier_1 = all(gate.tier == Tier.TIER_0 for gate in failed)
    about_clip, about_robot = (
        "; ".join([gate.explain() for gate in gates] if is_tier_1 else _explain_all(gates))
        for gates in (clip_gates, robot_gates)
    )
    if robot_gates and is_tier_1 and all(gate.name in FIDELITY_METRICS for gate in robot_gates):
        about_robot = f"{'it ' if clip_gates else ''}stands, but is not the clip's motion: {about_robot}"
    elif robot_gates and clip_gates:
        about_robot = f"also {about_robot}"
    if clip_gates:
        about_clip = f"by {profile.name} this clip cannot be Tier 0: {about_clip}"
    return "; ".join(filter(None, (about_clip, about_robot)))


def _explain_all(failed: Sequence[Gate]) -> list[str]:
    """Every failed gate, the validity gates first; a metric that fails for both tiers is named once, with both thresholds:
    `slip_rate 0.6 is over 0.3 (Tier 1) and 0.1 (Tier 0)`."""
    labels: dict[Level, str] = {"validity": "", Tier.TIER_1: " (Tier 1)", Tier.TIER_0: " (Tier 0)"}
    metrics: dict[tuple[str, Op, bool], list[Gate]] = {}
    for gate in sorted(failed, key=lambda gate: list(labels).index(gate.tier)):
        metrics.setdefault((gate.name, gate.op, gate.tier == "validity"), []).append(gate)
    reasons = []
    for first, *rest in metrics.values():
        if first.value is None and rest:
            reasons.append(f"{first.explain()} (Tier 1 and Tier 0)")
        else:
            further = (f" and {_format_threshold(gate.threshold)}{labels[gate.tier]}" for gate in rest)
            reasons.append(first.explain() + labels[first.tier] + "".join(further))
    return reasons


def holds(value: float, op: Op, threshold: Threshold) -> bool:
    """Whether `value op threshold`. NaN never holds."""
    if isinstance(threshold, tuple):
        return threshold[0] <= value <= threshold[1]
    return _COMPARISONS[op](value, threshold)


def _format_value(value: float, threshold: float | None = None) -> str:
    """`value` with three digits, or as many as it takes to tell it from the threshold."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if threshold is None or float(text) != threshold or value == threshold:
            return text
    return repr(value)


def _format_threshold(threshold: Threshold) -> str:
    return f"[{threshold[0]:g}, {threshold[1]:g}]" if isinstance(threshold, tuple) else f"{threshold:g}"
