"""A scored rollout as it is remembered, before it is checked and becomes a member of a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Candidate"]


@dataclass(frozen=True)
class Candidate:
    """A rollout that may go into a version, as the catalog remembers it.

    Args:
      path: the export with its arrays.
      ranges: the frames `(start, end, tier)` that it gives.
      range_metrics: of each range the metrics that its sampling weight is made of.
      physics: factors on friction, mass and damping; None for the robot's own.
    """

    name: str
    path: str
    source_digest: str
    arrays_digest: str
    robot_digest: str
    recipe_digest: str
    feature_code_hash: str
    mujoco_version: str
    generator_version: str | None
    gate_profile: str
    mode: str
    tier: int
    metrics: Mapping[str, float | int | None]
    ranges: tuple[tuple[int, int, int], ...] = ()
    range_metrics: tuple[Mapping[str, float | int | None], ...] = ()
    parent_digest: str | None = None
    ancestor_digest: str | None = None
    augmentation: str | None = None
    physics: Mapping[str, float] | None = None
