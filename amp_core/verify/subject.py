"""The subject of a verification: clips as they were generated, and all inputs that generate and read them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.features import feature_code_hash
from amp_core.tiers import Tier
from amp_core.version import GENERATOR_VERSION

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.recipe import Recipe
    from amp_core.robot import Robot
    from amp_core.scoring import Score

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Clip:
    """One generated clip under test.

    Args:
      name: the clip's.
      tier: 0, 1 or -1, its verdict.
      recipe: it was generated with this one; its `mode` is `rollout`, `teacher_forced` or `tracked`.
      attempt: the number of the plan that was kept, in mode `tracked`.
      load: returns the export's arrays (contract: `features`, `foot_contacts`, `qpos`, `qvel`, `ctrl`, `stab_force`,
        `sum_fn_per_frame`, …), read-only; called once.
      ranges: half-open frame ranges that go into the version; empty for the whole clip.
      motion: returns the motion as it was read, or None where its bytes are not available.
      metrics: the recorded quality metrics of the whole rollout, or None where none are at hand.
    """

    name: str
    tier: int
    recipe: Recipe
    load: Callable[[], Arrays]
    attempt: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    motion: Callable[[], Motion] | None = None
    metrics: Mapping[str, float | int | None] | None = None

    @cached_property
    def arrays(self) -> Arrays:
        return self.load()

    @cached_property
    def frames(self) -> int:
        """Rows of the export."""
        return len(self.arrays["features"])

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """The half-open frame ranges that go into the version."""
        return self.ranges or ((0, self.frames),)

    @property
    def version_tier(self) -> Tier:
        """The tier of the frames that go into the version: a Rejected clip takes part by its Tier 0 windows, or not at all."""
        return Tier.TIER_0 if self.tier == Tier.REJECTED and self.ranges else Tier(self.tier)

    def version_rows(self, key: str) -> npt.NDArray[Any]:
        """(M, …) the rows of an array that go into the version."""
        array = np.asarray(self.arrays[key])
        return np.concatenate([array[start:end] for start, end in self.ranges]) if self.ranges else array

    @cached_property
    def version_features(self) -> npt.NDArray[np.float32]:
        """(M, F) the rows of `features` that go into the version."""
        return self.version_rows("features").astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Artifacts:
    """A locked version's files, read: what training nodes get.

    Args:
      features: (N, F) float32, rows in the order of the subject's clips.
      stats: the normalization statistics' JSON object.
      manifest: the manifest's.
    """

    features: npt.NDArray[np.float32]
    stats: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Subject:
    """All inputs of a verification.

    Args:
      robot: all clips were generated with this one.
      clips: at least one.
      artifacts: the version's files, for a version that is locked already.
      facts: further JSON-ready facts for the report (dataset and version, or file names).

    Raises:
      ValueError: there is no clip.
    """

    robot: Robot
    clips: tuple[Clip, ...]
    artifacts: Artifacts | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.clips:
            raise ValueError("there is no clip to verify")

    @property
    def nonempty_clips(self) -> list[Clip]:
        """The clips that have frames; test 4 reports the others."""
        return [clip for clip in self.clips if clip.frames]

    @property
    def tier_0_clips(self) -> list[Clip]:
        """The clips whose frames in the version training uses as Tier 0."""
        return [clip for clip in self.clips if clip.version_tier is Tier.TIER_0]

    @classmethod
    def of_scores(cls, scores: Sequence[Score], motions: Sequence[Motion], robot: Robot, **facts: Any) -> Subject:
        """A subject from what `amp_core.score` returned for these motions, in the same order."""
        clips = tuple(
            Clip(
                name=score.name,
                tier=score.tier,
                recipe=score.rollout.recipe,
                attempt=int(score.provenance.get("attempt", 0)),
                load=score.rollout.arrays,
                motion=lambda motion=motion: motion,  # type: ignore[misc]
                metrics=score.quality_metrics,
            )
            for score, motion in zip(scores, motions, strict=True)
        )
        return cls(robot=robot, clips=clips, facts=facts)

    def to_dict(self) -> dict[str, Any]:
        """The subject in the report, JSON-ready."""
        clips, total = [], 0
        for clip in self.clips:
            try:
                frames = len(clip.version_features)
            except Exception:  # An unreadable clip fails every test, which gives the reason.
                frames = 0
            total += frames
            clips.append(
                {
                    "name": clip.name,
                    "tier": clip.tier,
                    "mode": clip.recipe.mode,
                    "recipe_digest": clip.recipe.digest,
                    "frames": frames,
                    "ranges": [list(window) for window in clip.ranges],
                }
            )
        return {
            "robot": self.robot.name,
            "robot_digest": self.robot.digest,
            "clips": clips,
            "frames": total,
            "seconds": total * self.robot.control_dt,
            "feature_code_hash": feature_code_hash(),
            "generator_version": GENERATOR_VERSION,
            "mujoco_version": mujoco.__version__,
            **self.facts,
        }


def stack_rows(clips: Sequence[Clip], key: str) -> npt.NDArray[Any]:
    """An array of the exports, of all clips one after the other."""
    return np.concatenate([np.asarray(clip.arrays[key]) for clip in clips])


def locate_row(index: int, lengths: Sequence[int]) -> tuple[int, int]:
    """The number of the clip, and the frame in it, that a row of all clips' stacked rows belongs to.

    Args:
      lengths: rows of each clip.

    Raises:
      IndexError: there are fewer rows.
    """
    for number, length in enumerate(lengths):
        if index < length:
            return number, index
        index -= length
    raise IndexError("there are fewer rows")
