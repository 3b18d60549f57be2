"""The verdict on a rollout: the part of a score that follows from the rollout alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amp_core.quality import FrameSeries, contact_warnings, measure
from amp_core.robot import Robot
from amp_core.rollout import Rollout
from amp_core.segments import Segment, find_segments
from amp_core.tiers import Classification, Gate, Tier, classify, gate_profile


@dataclass(frozen=True, eq=False)
class Verdict:
    """A rollout's tier and the measurements behind it.

    Args:
      quality_metrics: by name, as `quality.METRICS` lists them; None where a metric has no value.
      classification: the tier and its gates.
      segments: the windows that pass Tier 0 on their own, in the order of time.
      contact_warnings: suspicious contact patterns, which change no tier.
    """

    quality_metrics: dict[str, float | int | None]
    classification: Classification
    segments: tuple[Segment, ...]
    contact_warnings: tuple[dict[str, Any], ...]

    @property
    def tier(self) -> Tier:
        return self.classification.tier

    @property
    def tier_reason(self) -> str:
        return self.classification.tier_reason

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self.classification.gates


def judge(rollout: Rollout, robot: Robot) -> Verdict:
    """Measure a rollout, ask its recipe's gates, find its segments.

    Raises:
      RecipeRefused: an unknown gate profile.
    """
    recipe = rollout.recipe
    profile = gate_profile(recipe.gate_profile)
    series = FrameSeries.of(rollout, robot)
    metrics = measure(series)
    classification = classify(metrics, profile, recipe.mode, height_range=robot.height_range)
    if rollout.failure is not None:
        # The gates say that frames are missing; the failure gives the reason, which can be acted on.
        classification = classification.with_cause(rollout.failure.reason)
    return Verdict(
        quality_metrics=metrics,
        classification=classification,
        segments=tuple(find_segments(series, profile, recipe.mode, rollout.dt)),
        contact_warnings=tuple(contact_warnings(rollout.foot_contacts, robot)),
    )
