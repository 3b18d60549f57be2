"""Sampling weights: the farther a segment is inside its bounds of load, slip and tilt, the more it weighs.

Near a gate, a motion is close to what the gate refuses, and worth less to a discriminator. The ratio of the weights is bounded,
so that every segment is drawn and few effective frames are lost. A segment's raw weight follows from its own metrics alone;
only the last step, which makes the mean over frames 1, uses the whole version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from amp_core.metrics import SLIP_RATE_GOAL
from amp_core.tiers import Tier, gate_profile

__all__ = [
    "ASPECTS",
    "LEAST_RAW_WEIGHT",
    "RULE",
    "WEIGHT_METRICS",
    "Bound",
    "describe_weighting",
    "effective_share",
    "margins",
    "normalize_weights",
    "raw_weight",
]

RULE = "margins/1"
"""The name of the formula with its bounds. It changes when either changes, as with gate profiles."""

LEAST_RAW_WEIGHT = 0.25
"""The raw weight of a segment whose margins are all 0; with all margins at 1 it is 1.

At a ratio of 4 between the greatest and the least weight, a weighted sample is worth at least 4ab/(a+b)² = 64 % of its frames,
however the margins are spread (Kantorovich's inequality for Kish's effective sample size).
"""

_DIGITS = 4


class Bound(NamedTuple):
    """A metric, the value at which its margin is 0, and the value at which its margin is 1."""

    metric: str
    threshold: float
    ideal: float

    def margin(self, value: float | int | None) -> float:
        """The margin in [0, 1]; 0 for a metric without a finite value, which passes no gate."""
        if value is None or not math.isfinite(value):
            return 0.0
        return min(1.0, max(0.0, (float(value) - self.threshold) / (self.ideal - self.threshold)))


def _gate_bound(metric: str) -> Bound:
    gate = gate_profile("amp-0.11").for_tier(Tier.TIER_0)[metric]
    assert isinstance(gate.threshold, float)
    assert isinstance(gate.ideal, float)
    return Bound(metric, gate.threshold, gate.ideal)


ASPECTS: Mapping[str, tuple[Bound, ...]] = {
    "load": (_gate_bound("mean_sum_fn_over_mg"), _gate_bound("unloaded_frame_rate")),
    "slip": (Bound("slip_rate", SLIP_RATE_GOAL, 0.0),),
    "tilt": (_gate_bound("p95_pitch_deg"), _gate_bound("p95_roll_deg"), _gate_bound("max_tilt_deg")),
}
"""The bounds of load and tilt are the Tier 0 gates of the profile amp-0.11, whichever profile classified the segment, so that a
weight has one meaning. That profile has no gate for slip; its bound is the goal of a tracked clip."""

WEIGHT_METRICS: tuple[str, ...] = tuple(bound.metric for bounds in ASPECTS.values() for bound in bounds)
"""The metrics that a weight depends on."""


def margins(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The margin of each aspect, in [0, 1] with four decimals: the least margin of its bounds.

    Args:
      metrics: of the segment, as `quality.measure` gives them; a missing metric has the margin 0.
    """
    return {
        aspect: round(min(bound.margin(metrics.get(bound.metric)) for bound in bounds), _DIGITS)
        for aspect, bounds in ASPECTS.items()
    }


def raw_weight(margins: Mapping[str, float]) -> float:
    """The weight before normalization, in [0.25, 1]: `0.25 + 0.75 · mean margin` over the aspects."""
    return LEAST_RAW_WEIGHT + (1.0 - LEAST_RAW_WEIGHT) * math.fsum(margins[aspect] for aspect in ASPECTS) / len(ASPECTS)


def normalize_weights(raw: Sequence[float], frames: Sequence[int]) -> list[float]:
    """The weights of segments, rounded to float32; their mean over all frames is 1.

    Args:
      raw: raw weight of each segment.
      frames: number of frames of each segment.
    """
    # fsum rounds once, whatever the order of the segments.
    total = math.fsum(weight * count for weight, count in zip(raw, frames, strict=True))
    scale = sum(frames) / total
    return [float(np.float32(weight * scale)) for weight in raw]


def effective_share(weights: Iterable[float], frames: Sequence[int]) -> float:
    """Kish's effective sample size over the number of frames N, `(Σw)² / (N·Σw²)` in (0, 1], with four decimals."""
    pairs = list(zip(weights, frames, strict=True))
    total = math.fsum(weight * count for weight, count in pairs)
    squares = math.fsum(weight * weight * count for weight, count in pairs)
    return round(total * total / (sum(frames) * squares), _DIGITS)


def describe_weighting(weights: Sequence[float], frames: Sequence[int]) -> dict[str, Any]:
    """The manifest's `weighting`: the rule with its bounds, the extreme weights, and the effective share of the frames."""
    return {
        "rule": RULE,
        "least_raw_weight": LEAST_RAW_WEIGHT,
        "aspects": {aspect: [bound._asdict() for bound in bounds] for aspect, bounds in ASPECTS.items()},
        "least": min(weights),
        "greatest": max(weights),
        "effective_share": effective_share(weights, frames),
    }
