"""Buckets: the rows of a version by the physics that they were generated in.

A version of the robot's own physics has one bucket, `canonical`. A version with clips in several physics has a bucket for each,
with the figures of the whole version: rows, clips by tier, hash and statistics.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset.members import Member
from amp_core.dataset.statistics import ColumnStats
from amp_core.recipe import PhysicsScale

__all__ = ["Bucket", "Outcome", "make_buckets"]


class Outcome:
    """The gates' outcome over members: clips and frames by tier, and for each gate how many clips failed it."""

    def __init__(self) -> None:
        self.num_clips = 0
        self.num_segments = 0
        self._clips: Counter[str] = Counter()
        self._frames: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def add(self, member: Member) -> None:
        """Count a member."""
        self.num_clips += 1
        self.num_segments += len(member.ranges)
        self._clips[str(member.tier)] += 1
        for (start, end), tier in zip(member.ranges, member.tiers, strict=True):
            self._frames[str(tier)] += int(end - start)
        for gate in member.gates:
            self._failures[str(gate["name"])] += not gate["passed"]

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `gates`."""
        counts = {"clips_by_tier": self._clips, "frames_by_tier": self._frames, "clips_failed_by_gate": self._failures}
        return {key: dict(count) for key, count in counts.items()}


class Bucket:
    """Hash, statistics and places of one bucket's rows, gathered while they are written.

    Args:
      scale: the physics of the bucket.
      dim: number of columns, F.
      with_hash: whether to hash the rows; a version's only bucket has the version's own hash.

    Attributes:
      outcome: of its members; who writes their rows adds them.
    """

    def __init__(self, scale: PhysicsScale, dim: int, *, with_hash: bool) -> None:
        self.scale = scale
        self.outcome = Outcome()
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
            "num_clips": self.outcome.num_clips,
            "num_segments": self.outcome.num_segments,
            "gates": self.outcome.to_dict(),
            "num_frames": self.stats.count,
            "rows": self._runs,
            "dataset_hash": dataset_hash if self._sha is None else f"sha256:{self._sha.hexdigest()}",
            "statistics": self.stats.to_dict(),
        }


def make_buckets(scales: Iterable[PhysicsScale], dim: int) -> dict[PhysicsScale, Bucket]:
    """An empty bucket for each physics, the robot's own first."""
    physics = sorted(set(scales))
    return {scale: Bucket(scale, dim, with_hash=len(physics) > 1) for scale in physics}
