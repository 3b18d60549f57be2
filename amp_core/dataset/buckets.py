"""Buckets: the rows of a version by the physics that they were generated in.

A version of the robot's own physics has one bucket, `canonical`. A version with clips in several physics has a bucket for each,
with the figures of the whole version: rows, clips by tier, hash and statistics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset.members import Member
from amp_core.dataset.statistics import ColumnStats
from amp_core.recipe import PhysicsScale

__all__ = ["Bucket", "count_outcome", "make_buckets"]


class Bucket:
    """Hash, statistics and places of one bucket's rows, gathered while they are written.

    Args:
      scale: the physics of the bucket.
      members: those of the version that were generated in it.
      dim: number of columns, F.
      with_hash: whether to hash the rows; a version's only bucket has the version's own hash.
    """

    def __init__(self, scale: PhysicsScale, members: Sequence[Member], dim: int, *, with_hash: bool) -> None:
        self.scale = scale
        self.members = members
        self.stats = ColumnStats(dim)
        self._sha = hashlib.sha256() if with_hash else None
        self._runs: list[list[int]] = []

    def add(self, first: int, rows: NDArray[np.float32]) -> None:
        """Add rows of shape (k, F), which begin at the version's row `first`."""
        self.stats.add(rows)
        if self._sha is not None:
            self._sha.update(np.ascontiguousarray(rows, dtype="<f4").data)
        if self._runs and self._runs[-1][1] == first:
            self._runs[-1][1] = first + len(rows)
        else:
            self._runs.append([first, first + len(rows)])

    def to_dict(self, dataset_hash: str) -> dict[str, Any]:
        """The bucket's entry in the manifest.

        Args:
          dataset_hash: of all rows of the version.
        """
        return {
            "name": self.scale.name,
            "physics": asdict(self.scale),
            "num_clips": len(self.members),
            "num_segments": sum(len(member.ranges) for member in self.members),
            "gates": count_outcome(self.members),
            "num_frames": self.stats.count,
            "rows": self._runs,
            "dataset_hash": dataset_hash if self._sha is None else f"sha256:{self._sha.hexdigest()}",
            "statistics": self.stats.to_dict(),
        }


def make_buckets(members: Sequence[Member], dim: int) -> list[Bucket]:
    """An empty bucket for each physics, the robot's own first."""
    scales = sorted({member.scale for member in members})
    return [
        Bucket(scale, [member for member in members if member.scale == scale], dim, with_hash=len(scales) > 1)
        for scale in scales
    ]


def count_outcome(members: Iterable[Member]) -> dict[str, Any]:
    """The gates' outcome over members: clips and frames by tier, and for each gate how many clips failed it."""
    clips: dict[str, int] = {}
    frames: dict[str, int] = {}
    failures: dict[str, int] = {}
    for member in members:
        clips[str(member.tier)] = clips.get(str(member.tier), 0) + 1
        for (start, end), tier in zip(member.ranges, member.tiers, strict=True):
            frames[str(tier)] = frames.get(str(tier), 0) + int(end - start)
        for gate in member.gates:
            name = str(gate["name"])
            failures[name] = failures.get(name, 0) + (not gate["passed"])
    return {"clips_by_tier": clips, "frames_by_tier": frames, "clips_failed_by_gate": failures}
