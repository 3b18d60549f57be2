"""Sampling weights: how far a segment is inside what its feet, its slip and its lean are allowed.

A segment that only just passes is worth less to a discriminator than one that is far inside: near a gate, the motion is close
to what the gate refuses. How much less is bounded, so that no segment is left unseen and few effective frames are lost. A
segment's raw weight follows from its own metrics alone; only the last step, which makes the mean over frames 1, looks at the
whole version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from amp_core.tiers import Tier, gate_profile

__all__ = [
    "ASPECTS",
    "LEAST_RAW_WEIGHT",
    "RULE",
    "WEIGHT_METRICS",
    "Limit",
    "effective_share",
    "margins",
    "normalized",
    "raw_weight",
    "weighting",
]

RULE = "margins/1"
"""Names the formula and its limits; other limits or another formula are another name, as with gate profiles."""

LEAST_RAW_WEIGHT = 0.25
"""The raw weight of a segment without any margin; with all of it, it is 1.

At a ratio of 4 between the most and the least, a weighted sample is worth at least 4ab/(a+b)² = 64 % of its frames, however
the margins are spread (Kantorovich's inequality for Kish's effective sample size).
"""

_DIGITS = 4


class Limit(NamedTuple):
    """A metric, the value at which its margin is 0, and the one at which it is 1."""

    metric: str
    threshold: float
    ideal: float

    def margin(self, value: float | int | None) -> float:
        """In [0, 1]; 0 for a metric that has no value, as such a metric passes no gate."""
        if value is None or not math.isfinite(value):
            return 0.0
        return min(1.0, max(0.0, (float(value) - self.threshold) / (self.ideal - self.threshold)))


def _gate_limit(metric: str) -> Limit:
    gate = gate_profile("amp-0.11").for_tier(Tier.TIER_0)[metric]
    assert isinstance(gate.threshold, float)
    assert isinstance(gate.ideal, float)
    return Limit(metric, gate.threshold, gate.ideal)


ASPECTS: Mapping[str, tuple[Limit, ...]] = {
    "load": (_gate_limit("mean_sum_fn_over_mg"), _gate_limit("unloaded_frame_rate")),
    "slip": (Limit("slip_rate", 0.10, 0.0),),
    "tilt": (_gate_limit("p95_pitch_deg"), _gate_limit("p95_roll_deg"), _gate_limit("max_tilt_deg")),
}
"""The limits of load and tilt are the Tier 0 gates of the profile amp-0.11, whichever profile chose the segment, so that a
weight always means the same. That profile has no gate for slip: 0.10 is the goal of a tracked clip."""

WEIGHT_METRICS: tuple[str, ...] = tuple(limit.metric for limits in ASPECTS.values() for limit in limits)
"""The metrics that a weight is made of."""


def margins(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The margin of each aspect, in [0, 1] with four decimals: that of its limit with the least.

    Args:
      metrics: of the segment, as `quality.measure` gives them; one that is missing counts as having no value.
    """
    return {
        aspect: round(min(limit.margin(metrics.get(limit.metric)) for limit in limits), _DIGITS)
        for aspect, limits in ASPECTS.items()
    }


def raw_weight(found: Mapping[str, float]) -> float:
    """In [0.25, 1], of the margins of all aspects: `0.25 + 0.75 · mean margin`."""
    return LEAST_RAW_WEIGHT + (1.0 - LEAST_RAW_WEIGHT) * math.fsum(found[aspect] for aspect in ASPECTS) / len(ASPECTS)


def normalized(raw: Sequence[float], frames: Sequence[int]) -> list[float]:
    """The weight of a frame of each segment, as float32 holds it: their mean over all frames is 1.

    Args:
      raw: of each segment.
      frames: of each segment.
    """
    # Rounded once, whatever the order of the segments.
    total = math.fsum(weight * count for weight, count in zip(raw, frames, strict=True))
    scale = sum(frames) / total
    return [float(np.float32(weight * scale)) for weight in raw]


def effective_share(weights: Iterable[float], frames: Sequence[int]) -> float:
    """What share of its frames a weighted sample is worth, in (0, 1]: Kish's `(Σw)² / (N·Σw²)`, with four decimals."""
    pairs = list(zip(weights, frames, strict=True))
    first = math.fsum(weight * count for weight, count in pairs)
    second = math.fsum(weight * weight * count for weight, count in pairs)
    return round(first * first / (sum(frames) * second), _DIGITS)


def weighting(weights: Sequence[float], frames: Sequence[int]) -> dict[str, Any]:
    """What the manifest says of the weights: the rule with its limits, the extremes, and what they cost."""
    return {
        "rule": RULE,
        "least_raw_weight": LEAST_RAW_WEIGHT,
        "aspects": {aspect: [limit._asdict() for limit in limits] for aspect, limits in ASPECTS.items()},
        "least": min(weights),
        "greatest": max(weights),
        "effective_share": effective_share(weights, frames),
    }
