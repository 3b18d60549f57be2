"""What a version is made of: scored rollouts with the frame ranges that it takes, and the robot that they share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from amp_core.dataset.coverage import FootLike
from amp_core.dataset.weights import margins, raw_weight
from amp_core.errors import InputRefused
from amp_core.features import FeatureLayout
from amp_core.recipe import PhysicsScale
from amp_core.tiers import Tier

__all__ = ["Member", "Place", "RobotFacts", "RobotLike", "sort_members"]


class RobotLike(Protocol):
    """The part of a `Robot` that locking needs."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def joint_names(self) -> Sequence[str]: ...
    @property
    def control_dt(self) -> float: ...
    @property
    def layout(self) -> FeatureLayout: ...
    @property
    def feet(self) -> Sequence[FootLike]: ...


@dataclass(frozen=True)
class RobotFacts:
    """A robot as far as a dataset needs it, where no model is compiled.

    Args:
      digest: `sha256:` of the robot's specification and model files.
      control_dt: seconds a frame.
      feet: which contact channels are on one foot; when empty, each channel is a foot of its own.
    """

    name: str
    digest: str
    joint_names: tuple[str, ...]
    control_dt: float
    layout: FeatureLayout
    feet: tuple[FootLike, ...] = ()


@dataclass(frozen=True)
class Member:
    """One scored rollout, and which of its frames a version takes.

    Args:
      name: the clip's name.
      digest: `sha256:` of the motion's bytes.
      tier: 0, 1 or -1: of the whole rollout.
      mode: the recipe's mode.
      recipe_digest: `sha256:` of the recipe.
      ranges: half-open frame ranges `(start, end)` in ascending order that do not overlap; each becomes one segment.
      quality_metrics: of the whole rollout; numbers or None.
      load: returns the whole rollout's features, (N, F) float32; called when the member is written, and before that where
        another one has as many frames.
      gates: outcome of every gate, with its `name` and whether it `passed`; of the whole rollout.
      range_tiers: of each range on its own, where the ranges are windows of a clip; `tier` for each when empty.
      range_metrics: of each range on its own, for its weight; `quality_metrics` for each when empty. `WEIGHT_METRICS` are
        enough; a missing one has no margin.
      lineage: digest of the motion at the root of this one's family; its own when empty. Coverage counts both as one source.
      parent, augmentation: of a variant, the digest of the motion that it was made from and what was done to it; else None.
      physics: the recipe's factors on friction, mass and damping; None, like a missing factor, is the robot's own physics.
    """

    name: str
    digest: str
    tier: int
    mode: str
    recipe_digest: str
    ranges: Sequence[tuple[int, int]]
    quality_metrics: Mapping[str, Any]
    load: Callable[[], NDArray[Any]]
    gates: Sequence[Mapping[str, Any]] = field(default=())
    range_tiers: Sequence[int] = ()
    range_metrics: Sequence[Mapping[str, Any]] = ()
    lineage: str = ""
    parent: str | None = None
    augmentation: str | None = None
    physics: Mapping[str, float] | None = None

    @property
    def scale(self) -> PhysicsScale:
        """The physics that it was generated in: its bucket."""
        return PhysicsScale(**(self.physics or {}))

    @property
    def frames(self) -> int:
        """How many frames the version takes."""
        return sum(end - start for start, end in self.ranges)

    @property
    def tiers(self) -> tuple[int, ...]:
        """The tier of each range."""
        return tuple(int(tier) for tier in self.range_tiers) or (int(self.tier),) * len(self.ranges)

    @property
    def worst_tier(self) -> int:
        """The worst tier of the frames that the version takes."""
        return Tier.worst(self.tiers)

    @property
    def source(self) -> str:
        """Digest of the clip that it comes from: its own, or that of the clip it is a variant of."""
        return self.lineage or self.digest

    @property
    def margins(self) -> list[dict[str, float]]:
        """The margins of each range, which decide its weight."""
        return [margins(metrics) for metrics in self.range_metrics or (self.quality_metrics,) * len(self.ranges)]

    def check(self) -> None:
        """Raise `InputRefused` when the ranges overlap or are empty, or when tiers or metrics do not fit them."""
        position = 0
        for start, end in self.ranges:
            if not (position <= start < end):
                raise InputRefused(
                    f"clip {self.name!r} has the frame range [{start}, {end}) after frame {position}",
                    key="ranges",
                    frame=int(start),
                    expected="ascending half-open ranges with at least one frame that do not overlap",
                )
            position = end
        if not self.ranges:
            raise InputRefused(f"clip {self.name!r} has no frame range", key="ranges", expected="at least one")
        if len(self.tiers) != len(self.ranges) or not set(self.tiers) <= set(Tier):
            raise InputRefused(
                f"clip {self.name!r} has the tiers {list(self.tiers)} for {len(self.ranges)} frame ranges",
                key="range_tiers",
                expected="0, 1 or -1 for every range, or none at all",
            )
        if self.range_metrics and len(self.range_metrics) != len(self.ranges):
            raise InputRefused(
                f"clip {self.name!r} has metrics of {len(self.range_metrics)} windows for {len(self.ranges)} frame ranges",
                key="range_metrics",
                expected="the metrics of every range, or none at all",
            )


class Place(NamedTuple):
    """What a lock remembers of a member between its passes.

    Args:
      name, digest, recipe_digest: as of the member; the order of a version.
      number: the member's place in the sequence that it came in.
      scale, ranges: as of the member.
      raw_weights: of each range.
    """

    name: str
    digest: str
    recipe_digest: str
    number: int
    scale: PhysicsScale
    ranges: tuple[tuple[int, int], ...]
    raw_weights: tuple[float, ...]

    @property
    def frames(self) -> int:
        """How many frames the version takes."""
        return sum(end - start for start, end in self.ranges)


def sort_members(members: Sequence[Member]) -> list[Place]:
    """The places of the members by name, digest and recipe, each member checked.

    Raises:
      InputRefused: there is none, a pair of motion and recipe comes twice, or `Member.check` refuses one.
    """
    scales: dict[PhysicsScale, PhysicsScale] = {}
    places = []
    for number, member in enumerate(members):
        member.check()
        scale = scales.setdefault(member.scale, member.scale)
        ranges = tuple((int(start), int(end)) for start, end in member.ranges)
        weights = tuple(raw_weight(margins) for margins in member.margins)
        identity = member.name, member.digest, sys.intern(member.recipe_digest)
        places.append(Place(*identity, number, scale, ranges, weights))
    places.sort()
    if not places:
        raise InputRefused(
            "the selection holds no clip",
            key="select",
            expected="at least one rollout with a frame range",
            remedy="Widen the selection, or score more clips: ampref clips lists what there is.",
        )
    for previous, place in pairwise(places):
        if previous[:3] == place[:3]:
            raise InputRefused(
                f"clip {place.name!r} comes twice with the same recipe",
                key="clips",
                expected="every pair of motion and recipe once",
                remedy="Put all frame ranges of a rollout into one member.",
            )
    return places
