"""Buckets: the rows of a version by the physics that they were generated in.

A version of the robot's own physics has one bucket, `canonical`. One that holds clips in several has a bucket for each, with
the same figures as the whole version: rows, clips by tier, hash and statistics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset._stats import ColumnStats
from amp_core.recipe import PhysicsScale

__all__ = ["Buckets", "scale_of"]


def scale_of(physics: Mapping[str, float] | None) -> PhysicsScale:
    """The scale that a recipe's `physics` says; None, like every factor that is left out, is the robot's own."""
    return PhysicsScale(**(physics or {}))


class Buckets:
    """What is gathered of each bucket while the rows pass.

    Args:
      scales: of every member; which buckets there are.
      dim: number of columns, F.
    """

    def __init__(self, scales: Iterable[PhysicsScale], dim: int) -> None:
        self.scales = tuple(sorted(set(scales), key=lambda scale: scale.order))
        self._stats = [ColumnStats(dim) for _ in self.scales]
        self._hashes = [hashlib.sha256() for _ in self.scales]
        self._runs: list[list[list[int]]] = [[] for _ in self.scales]
        self._dim = dim

    def index(self, scale: PhysicsScale) -> int:
        """Which bucket a scale is."""
        return self.scales.index(scale)

    def take(self, bucket: int, row: int, rows: NDArray[np.float32]) -> None:
        """Take in rows of a bucket, shape (k, F), the first of which is the version's `row`."""
        self._stats[bucket].add(rows)
        # With one bucket, its hash is the version's, which is computed anyway.
        if len(self.scales) > 1:
            self._hashes[bucket].update(np.ascontiguousarray(rows, dtype="<f4").data)
        runs = self._runs[bucket]
        if runs and runs[-1][1] == row:
            runs[-1][1] = row + len(rows)
        else:
            runs.append([row, row + len(rows)])

    def whole(self) -> ColumnStats:
        """The statistics of all rows."""
        stats = ColumnStats(self._dim)
        for part in self._stats:
            stats.merge(part)
        return stats

    def to_list(self, dataset_hash: str, counts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The manifest's `buckets`.

        Args:
          dataset_hash: of all rows.
          counts: of each bucket, `num_clips`, `num_segments` and `gates`.
        """
        alone = len(self.scales) == 1
        return [
            {
                "name": scale.name,
                "physics": asdict(scale),
                **counts[i],
                "num_frames": self._stats[i].count,
                "rows": self._runs[i],
                "dataset_hash": dataset_hash if alone else f"sha256:{self._hashes[i].hexdigest()}",
                "statistics": self._stats[i].to_dict(),
            }
            for i, scale in enumerate(self.scales)
        ]
