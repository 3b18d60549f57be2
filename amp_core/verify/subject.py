"""What is tested: clips as they were generated, and everything that is needed to generate and to read them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.recipe import Recipe
    from amp_core.robot import Robot
    from amp_core.score import Score

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Clip:
    """One generated clip under test.

    Args:
      name: the clip's.
      tier: 0, 1 or -1, as it was judged.
      recipe: it was generated with this one; its `mode` is `rollout`, `teacher_forced` or `tracked`.
      attempt: which plan was kept, in mode `tracked`.
      load: returns the export's arrays (contract: `features`, `foot_contacts`, `qpos`, `qvel`, `ctrl`, `stab_force`,
        `sum_fn_per_frame`, …), read-only; called once.
      ranges: half-open frame ranges that go into the version; the whole clip where none are given.
      motion: returns the motion as it was read, or None where its bytes are not at hand.
    """

    name: str
    tier: int
    recipe: Recipe
    load: Callable[[], Arrays]
    attempt: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    motion: Callable[[], Motion] | None = None

    @cached_property
    def arrays(self) -> Arrays:
        return self.load()

    @cached_property
    def frames(self) -> int:
        """Rows of the export."""
        return len(self.arrays["features"])

    @cached_property
    def taken(self) -> npt.NDArray[np.float32]:
        """(M, F) the rows of `features` that go into the version."""
        features = np.asarray(self.arrays["features"], dtype=np.float32)
        if not self.ranges:
            return features
        return np.concatenate([features[start:end] for start, end in self.ranges])


@dataclass(frozen=True, eq=False)
class Artifacts:
    """A locked version's own files, read: what training nodes will get.

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
    """Everything a verification looks at.

    Args:
      robot: all clips were generated with this one.
      clips: at least one.
      artifacts: the version's files, where it is locked already.
      facts: further JSON-ready facts for the report (dataset and version, or file names).
    """

    robot: Robot
    clips: tuple[Clip, ...]
    artifacts: Artifacts | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.clips:
            raise ValueError("there is no clip to verify")

    @cached_property
    def tier_0(self) -> tuple[Clip, ...]:
        """The clips of whose frames training may use every one that is in `taken`: those judged Tier 0, and windows of others
        that are taken because they are Tier 0 on their own."""
        return tuple(clip for clip in self.clips if clip.tier == 0)

    @classmethod
    def of_scores(cls, scores: Sequence[Score], motions: Sequence[Motion], robot: Robot, **facts: Any) -> Subject:
        """A subject from what `amp_core.score.score` returned for these motions, in the same order."""
        clips = []
        for score, motion in zip(scores, motions, strict=True):
            rollout = score.rollout
            clips.append(
                Clip(
                    name=score.name,
                    tier=score.tier,
                    recipe=rollout.recipe,
                    attempt=int(score.provenance.get("attempt", 0)),
                    load=rollout.arrays,
                    motion=lambda motion=motion: motion,  # type: ignore[misc]
                )
            )
        return cls(robot=robot, clips=tuple(clips), facts=facts)
