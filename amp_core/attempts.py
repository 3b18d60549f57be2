"""Attempts of the tracked mode: the goals of a plan, and which of several plans is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amp_core.metrics import SLIP_RATE_GOAL
from amp_core.tiers import GateProfile, Op, Tier
from amp_core.verdict import Verdict

TRACKED_GOALS: dict[str, tuple[Op, float]] = {
    "unloaded_frame_rate": ("<=", 0.05),
    "joint_rmse_rad": ("<=", 0.13),
    "root_drift_m": ("<=", 0.15),
    "slip_rate": ("<=", SLIP_RATE_GOAL),
    "contact_agreement": (">=", 0.7),
}
"""The goals of a tracked clip, stricter than the gates: missing one is a reason for another attempt and changes no tier."""

_FLYING_GOALS: dict[str, tuple[Op, float]] = {
    "unloaded_excess": ("<=", 0.05),
    **{name: TRACKED_GOALS[name] for name in ("joint_rmse_rad", "root_drift_m", "contact_agreement")},
}
"""Those by a profile that compares with the clip's own flight: a run is in the air, and its feet land at speed."""

_WORST = 1e9  # the largest share of a goal: JSON has no infinity, and larger ones mean no more


@dataclass(frozen=True)
class Attempt:
    """One plan of a tracked clip.

    Args:
      attempt: its number; each plans with other noise.
      worst: the largest of its metrics as a share of their goals; at most 1 where every goal is met.
      missed: the goals that it missed.
      figures: the metrics that have a goal.
    """

    attempt: int
    tier: Tier
    tier_reason: str
    worst: float
    missed: tuple[str, ...]
    figures: dict[str, float | int | None]

    @classmethod
    def of(cls, number: int, verdict: Verdict, profile: GateProfile) -> Attempt:
        """The attempt with this number and verdict. A metric without a value misses no goal.

        Args:
          profile: the verdict's.
        """
        metrics, goals = verdict.quality_metrics, _FLYING_GOALS if profile.is_relative else TRACKED_GOALS
        values = {name: metrics[name] for name in goals if name in metrics}
        shares = {name: share_of_goal(name, value) for name, value in values.items() if value is not None}
        return cls(
            attempt=number,
            tier=verdict.tier,
            tier_reason=verdict.tier_reason,
            # The metrics of a simulation that stopped early do not count.
            worst=max(shares.values(), default=0.0) if metrics["finite_frame_rate"] == 1.0 else _WORST,
            missed=tuple(name for name, share in shares.items() if share > 1.0),
            figures=values,
        )

    @property
    def meets_goals(self) -> bool:
        """Whether another attempt is needless: Tier 0, and every goal met."""
        return self.tier == Tier.TIER_0 and not self.missed


def share_of_goal(name: str, value: float) -> float:
    """1 at the goal of the metric, less where the value is better; at most 1e9."""
    op, goal = (TRACKED_GOALS | _FLYING_GOALS)[name]
    share = value / goal if op == "<=" else goal / max(value, 1e-9)
    return min(share, _WORST) if math.isfinite(share) else _WORST


def best_attempt(attempts: Sequence[Attempt]) -> int:
    """The number of the attempt with the best tier; of equals the one that comes closest to its goals, then the first."""
    return min(attempts, key=lambda plan: (Tier(plan.tier).rank, plan.worst, plan.attempt)).attempt
