"""Domain randomization: the same clips in several physics, side by side.

A **bucket** is a `PhysicsScale`: factors on the robot's friction, mass and damping. Reference data of a bucket were generated
in it, with controls planned anew where the mode plans: what a policy that meets these physics can be asked to look like (the
seed's Approach B). `compare` scores clips in every bucket and says what share of each is Tier 0 there, and what share of what
is Tier 0 in the robot's own physics stays so. With `replay` it also drives the other buckets with the controls that were made
for the canonical one, which shows how far a plan carries where nobody planned again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.motion import condition
from amp_core.progress import Progress, scale_progress
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.rollout import generate
from amp_core.score import judge, score
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.robot import Robot
    from amp_core.score import Judgement, Score

__all__ = ["DEFAULT_FACTORS", "BucketSum", "ClipBuckets", "Comparison", "Outcome", "buckets", "compare"]

DEFAULT_FACTORS: dict[str, tuple[float, ...]] = {
    "friction": (0.7, 1.0, 1.3),
    "mass": (0.9, 1.0, 1.1),
    "damping": (0.7, 1.0, 1.3),
}
"""The factors that are compared where nobody names any."""

_REPLAYED_SHARE = 0.02  # of the bar: replaying takes next to nothing beside planning


def buckets(
    friction: Iterable[float] = (), mass: Iterable[float] = (), damping: Iterable[float] = (), *, grid: bool = False
) -> tuple[PhysicsScale, ...]:
    """The buckets that some factors span, the canonical one always among them and first.

    Args:
      friction, mass, damping: the factors of each; none for one that is not to vary. Without any, `DEFAULT_FACTORS`.
      grid: every combination of the factors; otherwise one quantity at a time differs from the robot's own.

    Raises:
      RecipeRefused: a factor that is out of range.
    """
    given = {"friction": tuple(friction), "mass": tuple(mass), "damping": tuple(damping)}
    if not any(given.values()):
        given = dict(DEFAULT_FACTORS)
    if grid:
        values = [dict.fromkeys((1.0, *factors)) for factors in given.values()]
        scales = [PhysicsScale(*factors) for factors in itertools.product(*values)]
    else:
        scales = [PhysicsScale(**{name: factor}) for name, factors in given.items() for factor in factors]
    return tuple(sorted({PhysicsScale(), *scales}, key=lambda scale: scale.order))


@dataclass(frozen=True)
class Outcome:
    """A clip in a bucket.

    Args:
      mode: the mode that the rollout is in; what `auto` came to.
      tier, tier_reason: of the whole clip.
      ranges: half-open frame ranges that are Tier 0: the whole clip, or its windows that pass on their own.
      frames: of the clip.
      stays: of the frames that are Tier 0 in the robot's own physics, the share that is Tier 0 here; None where there are none.
      quality_metrics: of the whole clip.
      recipe_digest: of the recipe that `mode` was simulated with.
    """

    mode: str
    tier: int
    tier_reason: str
    ranges: tuple[tuple[int, int], ...]
    frames: int
    dt: float
    stays: float | None
    quality_metrics: dict[str, float | int | None]
    recipe_digest: str

    @property
    def tier_0_frames(self) -> int:
        """How many frames are Tier 0."""
        return sum(end - start for start, end in self.ranges)

    @property
    def tier_0_sec(self) -> float:
        """s: frames · dt."""
        return self.tier_0_frames * self.dt

    @property
    def share(self) -> float:
        """Of the clip's frames, those that are Tier 0."""
        return self.tier_0_frames / self.frames

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "mode": self.mode,
            "tier": self.tier,
            "tier_reason": self.tier_reason,
            "tier_0_frames": self.tier_0_frames,
            "tier_0_sec": self.tier_0_sec,
            "share": self.share,
            "stays": self.stays,
            "ranges": [list(span) for span in self.ranges],
            "quality_metrics": dict(self.quality_metrics),
            "recipe_digest": self.recipe_digest,
        }


@dataclass(frozen=True)
class ClipBuckets:
    """A clip in every bucket.

    Args:
      outcomes: one a bucket, in the comparison's order: generated in that bucket.
      replayed: one a bucket: the canonical rollout's controls in that bucket; empty unless it was asked for.
    """

    name: str
    source_digest: str
    frames: int
    duration_sec: float
    outcomes: tuple[Outcome, ...]
    replayed: tuple[Outcome, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the buckets' names are the comparison's."""
        replayed: Sequence[Outcome | None] = self.replayed or [None] * len(self.outcomes)
        return {
            "name": self.name,
            "source_digest": self.source_digest,
            "frames": self.frames,
            "duration_sec": self.duration_sec,
            "buckets": [
                outcome.to_dict() | {"replay": None if again is None else again.to_dict()}
                for outcome, again in zip(self.outcomes, replayed, strict=True)
            ],
        }


@dataclass(frozen=True)
class BucketSum:
    """All clips in one bucket.

    Args:
      clips_by_tier: 0, 1 and -1, how many clips each.
      share: of all clips' frames, those that are Tier 0.
      stays: of the frames that are Tier 0 in the robot's own physics, those that are Tier 0 here; None where there are none.
    """

    clips_by_tier: dict[Tier, int]
    tier_0_sec: float
    share: float
    stays: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        by_tier = {str(tier): count for tier, count in self.clips_by_tier.items()}
        return {"clips_by_tier": by_tier, "tier_0_sec": self.tier_0_sec, "share": self.share, "stays": self.stays}


@dataclass(frozen=True)
class Comparison:
    """Clips in buckets, the canonical bucket first.

    Args:
      robot, robot_digest: the robot that all clips are for.
      recipe: in the robot's own physics; each bucket's differs from it in `physics` alone.
    """

    robot: str
    robot_digest: str
    recipe: Recipe
    buckets: tuple[PhysicsScale, ...]
    clips: tuple[ClipBuckets, ...]

    def sums(self, *, replayed: bool = False) -> tuple[BucketSum, ...]:
        """Over the clips, one a bucket; `replayed` sums up what became of the canonical controls."""
        rows = [clip.replayed if replayed else clip.outcomes for clip in self.clips]
        return tuple(
            _sum([row[i] for row in rows], [clip.outcomes[0] for clip in self.clips]) for i in range(len(self.buckets))
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: settings, a sum a bucket, and every clip with its buckets in the same order."""
        sums = self.sums()
        replayed: Sequence[BucketSum | None] = [None] * len(sums)
        if self.clips and self.clips[0].replayed:
            replayed = self.sums(replayed=True)
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
                    "replay": None if again is None else again.to_dict(),
                }
                for scale, total, again in zip(self.buckets, sums, replayed, strict=True)
            ],
            "clips": [_named(clip.to_dict(), self.buckets) for clip in self.clips],
        }


def _named(clip: dict[str, Any], scales: Sequence[PhysicsScale]) -> dict[str, Any]:
    return clip | {"buckets": [{"name": one.name, **found} for one, found in zip(scales, clip["buckets"], strict=True)]}


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
    """Score motions in every bucket, all of them in each at a time.

    Args:
      recipe: its physics is left aside.
      scales: the buckets; the canonical one is added where it is missing, and comes first.
      replay: simulate the canonical rollouts' controls in every bucket, too. In mode `rollout` that is the same again, because
        its controls are the clip's joint angles in every bucket.
      nthread, progress: as for `score`.

    Raises:
      MotionRefused, RecipeRefused: as `score`.
    """
    ordered = tuple(sorted({PhysicsScale(), *scales}, key=lambda scale: scale.order))
    whole = 1.0 - _REPLAYED_SHARE if replay else 1.0
    own: list[Score] = []
    before: list[npt.NDArray[np.bool_]] = []
    outcomes: list[list[Outcome]] = []
    for i, scale in enumerate(ordered):
        part = scale_progress(progress, whole * i / len(ordered), whole * (i + 1) / len(ordered), f"{scale.name}: ")
        scores = score(motions, robot, replace(recipe, physics=scale), nthread=nthread, progress=part)
        if i == 0:
            own, before = scores, [_tier_0(one, one.frames) for one in scores]
        # Of the other buckets only the figures are kept: their arrays would be as many times the memory.
        outcomes.append([_outcome(one, one, held) for one, held in zip(scores, before, strict=True)])
    again: list[list[Outcome]] = []
    if replay:
        for scale, judged in zip(ordered, _replay(motions, robot, own, ordered, nthread), strict=True):
            again.append([_outcome(*found, scale) for found in zip(judged, own, before, strict=True)])
        if progress is not None:
            progress(1.0, "replayed")
    clips = tuple(
        ClipBuckets(
            name=one.name,
            source_digest=one.source_digest,
            frames=one.frames,
            duration_sec=one.duration_sec,
            outcomes=tuple(row[i] for row in outcomes),
            replayed=tuple(row[i] for row in again),
        )
        for i, one in enumerate(own)
    )
    return Comparison(robot.name, robot.digest, replace(recipe, physics=PhysicsScale()), ordered, clips)


def _replay(
    motions: Sequence[Motion], robot: Robot, own: Sequence[Score], scales: Sequence[PhysicsScale], nthread: int
) -> list[list[Judgement]]:
    """Of each bucket, each clip's rollout with the controls of its canonical one; all of them in one batch."""
    conditioned = [condition(motion, robot) for motion in motions]
    rollouts = generate(
        robot,
        conditioned * len(scales),
        [replace(one.rollout.recipe, physics=scale) for scale in scales for one in own],
        nthread=nthread,
        plans=[one.rollout.plan for one in own] * len(scales),
    )
    judged = [judge(rollout, robot) for rollout in rollouts]
    return [judged[i : i + len(own)] for i in range(0, len(judged), len(own))]


def _outcome(judged: Score | Judgement, of: Score, before: npt.NDArray[np.bool_], scale: PhysicsScale | None = None) -> Outcome:
    """A verdict as an outcome.

    Args:
      of: the score whose recipe it was simulated with, in the physics of `scale` where that is given.
      before: (N,) bool, the frames that are Tier 0 in the robot's own physics.
    """
    recipe = of.rollout.recipe if scale is None else replace(of.rollout.recipe, physics=scale)
    here = _tier_0(judged, of.frames)
    classification = judged.classification
    return Outcome(
        mode=recipe.mode,
        tier=classification.tier,
        tier_reason=classification.tier_reason,
        ranges=_ranges(here),
        frames=of.frames,
        dt=of.rollout.dt,
        stays=float((here & before).sum() / before.sum()) if before.any() else None,
        quality_metrics=dict(judged.quality_metrics),
        recipe_digest=recipe.digest,
    )


def _tier_0(judged: Score | Judgement, frames: int) -> npt.NDArray[np.bool_]:
    """(frames,) which frames are Tier 0: all of a clip that is, else those in windows that pass on their own."""
    found = np.zeros(frames, dtype=bool)
    if judged.classification.tier == Tier.TIER_0:
        found[:] = True
    else:
        for segment in judged.segments:
            found[segment.start : segment.stop] |= segment.tier == Tier.TIER_0
    return found


def _ranges(held: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """The runs of what is held, half-open."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], held, [False])).astype(np.int8)))
    return tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))


def _sum(outcomes: Sequence[Outcome], own: Sequence[Outcome]) -> BucketSum:
    """Of one bucket's outcomes; `own` are the same clips' in the robot's own physics."""
    tiers = {tier: sum(one.tier == tier for one in outcomes) for tier in Tier}
    held, before = sum(one.tier_0_frames for one in outcomes), sum(one.tier_0_frames for one in own)
    kept = sum(round((one.stays or 0.0) * first.tier_0_frames) for one, first in zip(outcomes, own, strict=True))
    return BucketSum(
        clips_by_tier=tiers,
        tier_0_sec=sum(one.tier_0_sec for one in outcomes),
        share=held / max(1, sum(one.frames for one in outcomes)),
        stays=kept / before if before else None,
    )
