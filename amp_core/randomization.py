"""Domain randomization: the same clips in several physics, side by side.

A **bucket** is a `PhysicsScale`: factors on the robot's friction, mass and damping. The **canonical** bucket is the robot's own
physics. Reference data of a bucket were generated in it, with controls planned in it where the mode plans: what a policy that
meets these physics can be asked to look like (the specification's Approach B). `compare` scores clips in every bucket and
reports the share of each that is Tier 0 there, and the share of the canonical Tier 0 frames that stay so. With `replay` it
also simulates the canonical rollouts' controls in the other buckets, which shows how far a plan carries without planning again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.formats import Motion
from amp_core.motion import condition
from amp_core.progress import Progress, scale_progress
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate
from amp_core.runs import find_runs
from amp_core.scoring import Score, score
from amp_core.strict_json import json_data
from amp_core.tiers import Tier
from amp_core.verdict import Verdict, judge

__all__ = ["DEFAULT_FACTORS", "BucketSum", "ClipBuckets", "Comparison", "Outcome", "buckets", "compare"]

Bools = npt.NDArray[np.bool_]

DEFAULT_FACTORS: dict[str, tuple[float, ...]] = {
    "friction": (0.7, 1.0, 1.3),
    "mass": (0.9, 1.0, 1.1),
    "damping": (0.7, 1.0, 1.3),
}
"""The factors that are compared by default."""

_REPLAYED_SHARE = 0.02  # of the progress: replaying takes next to nothing beside planning


def buckets(
    friction: Iterable[float] = (), mass: Iterable[float] = (), damping: Iterable[float] = (), *, grid: bool = False
) -> tuple[PhysicsScale, ...]:
    """The buckets that some factors span; the canonical one is always among them and first.

    Args:
      friction, mass, damping: the factors of each; none for one that is not to vary. Without any, `DEFAULT_FACTORS`.
      grid: every combination of the factors; otherwise one quantity at a time differs from the robot's own.

    Raises:
      RecipeRefused: a factor that is out of range.
    """
    factors = {"friction": tuple(friction), "mass": tuple(mass), "damping": tuple(damping)}
    if not any(factors.values()):
        factors = DEFAULT_FACTORS
    if grid:
        scales = [PhysicsScale(*row) for row in itertools.product(*((1.0, *values) for values in factors.values()))]
    else:
        scales = [PhysicsScale(**{name: value}) for name, values in factors.items() for value in values]
    return tuple(sorted({PhysicsScale(), *scales}))


@dataclass(frozen=True)
class Outcome:
    """A clip in a bucket.

    Args:
      mode: of the rollout; for `auto` the mode that it chose.
      tier, tier_reason: of the whole clip.
      tier_0_frames, tier_0_sec: of `ranges` together; the latter in s.
      share: the Tier 0 frames over the clip's frames.
      stays: of the frames that are Tier 0 in the canonical bucket, the share that is Tier 0 in this one; None where there are
        none.
      ranges: half-open frame ranges that are Tier 0: the whole clip, or its windows that pass on their own.
      quality_metrics: of the whole clip.
      recipe_digest: of the recipe that was simulated, in the physics of this bucket.
    """

    mode: str
    tier: int
    tier_reason: str
    tier_0_frames: int
    tier_0_sec: float
    share: float
    stays: float | None
    ranges: tuple[tuple[int, int], ...]
    quality_metrics: dict[str, float | int | None]
    recipe_digest: str

    @classmethod
    def of(cls, verdict: Verdict, rollout: Rollout, canonical: Bools) -> Outcome:
        """The outcome of a rollout's verdict; `canonical` (frames,) are the frames that are Tier 0 in the canonical bucket."""
        tier_0 = _tier_0_frames(verdict, rollout.clip_frames)
        count = int(tier_0.sum())
        return cls(
            mode=rollout.recipe.mode,
            tier=verdict.tier,
            tier_reason=verdict.tier_reason,
            tier_0_frames=count,
            tier_0_sec=count * rollout.dt,
            share=count / rollout.clip_frames,
            stays=float((tier_0 & canonical).sum() / canonical.sum()) if canonical.any() else None,
            ranges=tuple(find_runs(tier_0)),
            quality_metrics=verdict.quality_metrics,
            recipe_digest=rollout.recipe.digest,
        )


@dataclass(frozen=True)
class ClipBuckets:
    """A clip in every bucket.

    Args:
      outcomes: one a bucket, in the comparison's order, generated in that bucket.
      replayed: one a bucket, of the canonical rollout's controls in that bucket; empty without `replay`.
    """

    name: str
    source_digest: str
    frames: int
    duration_sec: float
    outcomes: tuple[Outcome, ...]
    replayed: tuple[Outcome, ...] = ()

    def to_dict(self, scales: Sequence[PhysicsScale]) -> dict[str, Any]:
        replays: Sequence[Outcome | None] = self.replayed or [None] * len(self.outcomes)
        return {
            "name": self.name,
            "source_digest": self.source_digest,
            "frames": self.frames,
            "duration_sec": self.duration_sec,
            "buckets": [
                {"name": scale.name, **json_data(outcome), "replay": json_data(replay)}
                for scale, outcome, replay in zip(scales, self.outcomes, replays, strict=True)
            ],
        }


@dataclass(frozen=True)
class BucketSum:
    """All clips in one bucket.

    Args:
      clips_by_tier: the number of clips of each tier.
      tier_0_sec: s, over all clips.
      share: the Tier 0 frames over all clips' frames.
      stays: of the frames that are Tier 0 in the canonical bucket, the share that is Tier 0 in this one; None where there are
        none.
    """

    clips_by_tier: dict[Tier, int]
    tier_0_sec: float
    share: float
    stays: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"clips_by_tier": {str(tier): count for tier, count in self.clips_by_tier.items()}}


@dataclass(frozen=True)
class Comparison:
    """Clips in buckets, the canonical bucket first.

    Args:
      recipe: in the robot's own physics; each bucket's differs from it in `physics` alone.
    """

    robot: str
    robot_digest: str
    recipe: Recipe
    buckets: tuple[PhysicsScale, ...]
    clips: tuple[ClipBuckets, ...]

    def sums(self, *, replayed: bool = False) -> tuple[BucketSum, ...]:
        """The sums over the clips, one a bucket; of the replayed canonical controls with `replayed`."""
        frames = sum(clip.frames for clip in self.clips)
        canonical = [clip.outcomes[0].tier_0_frames for clip in self.clips]
        sums = []
        for i in range(len(self.buckets)):
            outcomes = [(clip.replayed if replayed else clip.outcomes)[i] for clip in self.clips]
            staying = sum(round((outcome.stays or 0.0) * count) for outcome, count in zip(outcomes, canonical, strict=True))
            sums.append(
                BucketSum(
                    clips_by_tier={tier: sum(outcome.tier == tier for outcome in outcomes) for tier in Tier},
                    tier_0_sec=sum(outcome.tier_0_sec for outcome in outcomes),
                    share=sum(outcome.tier_0_frames for outcome in outcomes) / max(1, frames),
                    stays=staying / sum(canonical) if any(canonical) else None,
                )
            )
        return tuple(sums)

    def to_dict(self) -> dict[str, Any]:
        """The settings, a sum a bucket, and every clip with its buckets in the same order."""
        replay_sums: Sequence[BucketSum | None] = [None] * len(self.buckets)
        if self.clips and self.clips[0].replayed:
            replay_sums = self.sums(replayed=True)
        return {
            "robot": self.robot,
            "robot_digest": self.robot_digest,
            "recipe": self.recipe.to_dict(),
            "buckets": [
                {
                    "name": scale.name,
                    "physics": asdict(scale),
                    "recipe_digest": replace(self.recipe, physics=scale).digest,
                    **total.to_dict(),
                    "replay": None if replay is None else replay.to_dict(),
                }
                for scale, total, replay in zip(self.buckets, self.sums(), replay_sums, strict=True)
            ],
            "clips": [clip.to_dict(self.buckets) for clip in self.clips],
        }


def compare(
    motions: Sequence[Motion],
    robot: Robot,
    recipe: Recipe,
    scales: Sequence[PhysicsScale],
    *,
    replay: bool = False,
    nthread: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Score motions in every bucket, all motions of a bucket in one batch.

    Args:
      recipe: its physics is ignored.
      scales: the buckets; the canonical one is added where it is missing, and comes first.
      replay: also simulate the canonical rollouts' controls in every bucket. In mode `rollout` that gives the same outcomes,
        because its controls are the clip's joint angles in every bucket.

    Raises:
      MotionRefused, RecipeRefused: as `score`.
    """
    sorted_scales = tuple(sorted({PhysicsScale(), *scales}))
    share = (1.0 - _REPLAYED_SHARE if replay else 1.0) / len(sorted_scales)
    canonical: list[Score] = []
    canonical_frames: list[Bools] = []
    outcomes: list[list[Outcome]] = []
    for i, scale in enumerate(sorted_scales):
        bucket_progress = scale_progress(progress, share * i, share * (i + 1), f"{scale.name}: ")
        scores = score(motions, robot, replace(recipe, physics=scale), nthread=nthread, progress=bucket_progress)
        if i == 0:
            canonical, canonical_frames = scores, [_tier_0_frames(clip, clip.frames) for clip in scores]
        # Of the other buckets only the metrics are kept: their arrays would be as many times the memory.
        outcomes.append([Outcome.of(clip, clip.rollout, frames) for clip, frames in zip(scores, canonical_frames, strict=True)])
    replays: list[list[Outcome]] = []
    if replay:
        # All buckets in one batch, a clip after the other within each.
        clips = [
            condition(motion, robot, mode=clip.rollout.recipe.mode) for motion, clip in zip(motions, canonical, strict=True)
        ]
        rollouts = generate(
            robot,
            clips * len(sorted_scales),
            [replace(clip.rollout.recipe, physics=scale) for scale in sorted_scales for clip in canonical],
            nthread=nthread,
            plans=[clip.rollout.plan for clip in canonical] * len(sorted_scales),
            attempt=[clip.provenance["attempt"] for clip in canonical] * len(sorted_scales),
        )
        replays = [
            [
                Outcome.of(judge(rollout, robot), rollout, frames)
                for rollout, frames in zip(rollouts[i : i + len(clips)], canonical_frames, strict=True)
            ]
            for i in range(0, len(rollouts), len(clips))
        ]
        if progress is not None:
            progress(1.0, "replayed")
    return Comparison(
        robot=robot.name,
        robot_digest=robot.digest,
        recipe=replace(recipe, physics=PhysicsScale()),
        buckets=sorted_scales,
        clips=tuple(
            ClipBuckets(
                name=clip.name,
                source_digest=clip.source_digest,
                frames=clip.frames,
                duration_sec=clip.duration_sec,
                outcomes=tuple(row[i] for row in outcomes),
                replayed=tuple(row[i] for row in replays),
            )
            for i, clip in enumerate(canonical)
        ),
    )


def _tier_0_frames(verdict: Verdict, frames: int) -> Bools:
    """(frames,) the frames that are Tier 0: all of a clip that is, else those in windows that pass on their own."""
    mask = np.full(frames, verdict.tier == Tier.TIER_0)
    for segment in verdict.segments:
        mask[segment.start : segment.stop] |= segment.tier == Tier.TIER_0
    return mask
