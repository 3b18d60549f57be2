"""How the values of each feature of a version are spread, which frames lie furthest out, and what the robot does meanwhile.

One pass over the rows, in any pieces, in memory that does not grow with them. Mean and standard deviation are those that the
version pins, so that a z-score here is the one that training sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["OUTLIER_Z", "FeatureSpread", "Outlier"]

OUTLIER_Z: Final = 6.0
"""A value further than so many standard deviations from the mean is an outlier."""

SPEED_CELL: Final = 0.1
"""m/s: of the forward speed, a side of a cell of the histogram of two dimensions."""

TURN_CELL: Final = 0.5
"""rad/s: of the turning rate, the other side."""

_CELLS = 1 << 16
_REACH = 8.0  # Standard deviations from the mean that the cells cover; what lies beyond counts in the outermost.
_BINS = 32
_MOST_OUTLIERS = 5
_QUANTILES = (0.01, 0.5, 0.99)
_EDGE_SHARE = 0.002  # Of the rows, at either end, that the bins need not hold.
_MOST_SPEEDS, _MOST_TURNS = 50, 25  # Cells to either side: ±5 m/s and ±12.5 rad/s.
_ROWS = 1 << 14


@dataclass(frozen=True)
class Outlier:
    """The value of a segment that lies furthest out, for one feature.

    Args:
      segment: its number in the version.
      offset: the frame, counted from the segment's first.
      z: standard deviations from the mean.
    """

    segment: int
    offset: int
    value: float
    z: float


class FeatureSpread:
    """Gathers the spread of a version's rows.

    Args:
      statistics: `mean`, `std`, `min`, `max` of the columns.
      blocks: name to `[begin, end)`, the columns of each block of features.
      feet: name and columns of each foot's contact channels.
    """

    def __init__(
        self,
        statistics: Mapping[str, Sequence[float]],
        blocks: Mapping[str, tuple[int, int]],
        feet: Mapping[str, Sequence[int]],
    ) -> None:
        self._mean, self._std, self._min, self._max = (
            np.array(statistics[name], np.float64) for name in ("mean", "std", "min", "max")
        )
        dim = len(self._mean)
        self._low = np.maximum(self._min, self._mean - _REACH * self._std)
        self._high = np.minimum(self._max, self._mean + _REACH * self._std)
        self._width = np.where(self._high > self._low, (self._high - self._low) / _CELLS, 1.0)
        self._counts = np.zeros((dim, _CELLS), np.int64)
        self._outliers: list[list[Outlier]] = [[] for _ in range(dim)]
        self._forward, self._turn = blocks["root_lin_vel"][0], blocks["root_ang_vel"][0] + 2
        self._feet = {name: list(columns) for name, columns in feet.items()}
        self._motion = np.zeros((2 * _MOST_SPEEDS, 2 * _MOST_TURNS), np.int64)
        self._phases = np.zeros(1 << len(feet), np.int64)
        self._num_rows = 0
        self._segment, self._segment_row = -1, 0

    def add(self, rows: NDArray[np.float32], segments: NDArray[np.int32]) -> None:
        """Add the next rows, (k, F), with the number of each one's segment; a segment's rows come one after the other."""
        for begin in range(0, len(rows), _ROWS):
            self._add(np.asarray(rows[begin : begin + _ROWS], np.float64), np.asarray(segments[begin : begin + _ROWS]))

    def _add(self, rows: NDArray[np.float64], segments: NDArray[np.int32]) -> None:
        cells = np.clip((rows - self._low) / self._width, 0, _CELLS - 1).astype(np.intp)
        for column, counts in enumerate(self._counts):
            counts += np.bincount(cells[:, column], minlength=_CELLS)
        self._count_motion(rows)
        # The row that each row's segment begins at.
        first_row = self._num_rows
        is_first = np.concatenate([[segments[0] != self._segment], segments[1:] != segments[:-1]])
        starts = np.where(is_first, np.arange(first_row, first_row + len(rows)), self._segment_row)
        starts = np.maximum.accumulate(starts)
        self._find_outliers(rows, segments, first_row + np.arange(len(rows)) - starts)
        self._segment, self._segment_row = int(segments[-1]), int(starts[-1])
        self._num_rows += len(rows)

    def _find_outliers(self, rows: NDArray[np.float64], segments: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        z = np.divide(rows - self._mean, self._std, out=np.zeros_like(rows), where=self._std > 0)
        far = np.abs(z) > OUTLIER_Z
        for column in np.flatnonzero(far.any(axis=0)).tolist():
            places = np.flatnonzero(far[:, column])
            places = places[np.argsort(-np.abs(z[places, column]), kind="stable")]
            _, firsts = np.unique(segments[places], return_index=True)
            # The furthest of each segment, and of those the furthest.
            best = places[np.sort(firsts)[:_MOST_OUTLIERS]]
            fresh = [
                Outlier(int(segments[row]), int(offsets[row]), float(rows[row, column]), float(z[row, column])) for row in best
            ]
            self._outliers[column] = _keep_furthest([*self._outliers[column], *fresh])

    def _count_motion(self, rows: NDArray[np.float64]) -> None:
        axes = ((self._forward, SPEED_CELL, _MOST_SPEEDS), (self._turn, TURN_CELL, _MOST_TURNS))
        forward, turn = (
            np.clip(np.floor(rows[:, column] / width), -most, most - 1).astype(np.intp) + most for column, width, most in axes
        )
        self._motion += np.bincount(forward * 2 * _MOST_TURNS + turn, minlength=self._motion.size).reshape(self._motion.shape)
        phase = np.zeros(len(rows), np.intp)
        for bit, columns in enumerate(self._feet.values()):
            phase |= (rows[:, columns] > 0.5).any(axis=1).astype(np.intp) << bit
        self._phases += np.bincount(phase, minlength=len(self._phases))

    def describe_features(self) -> list[dict[str, Any]]:
        """Of each column `mean, std, min, max, p01, p50, p99`, and a histogram: `edges` and `counts`, `below` and `above`."""
        return [self._describe(column) for column in range(len(self._mean))]

    def _describe(self, column: int) -> dict[str, Any]:
        counts, low, width = self._counts[column], float(self._low[column]), float(self._width[column])
        facts = {"mean": self._mean, "std": self._std, "min": self._min, "max": self._max}
        cumulative = np.cumsum(counts)
        quantiles = {}
        for share in _QUANTILES:
            cell = int(np.searchsorted(cumulative, math.ceil(share * self._num_rows)))
            # The middle of its cell; of features with two values, all are in the outermost.
            value = low if cell == 0 else float(self._high[column]) if cell == _CELLS - 1 else low + (cell + 0.5) * width
            quantiles[f"p{100 * share:02.0f}"] = value
        return {
            **{name: float(values[column]) for name, values in facts.items()},
            **quantiles,
            "histogram": None if self._min[column] == self._max[column] else self._make_bins(cumulative, low, width),
        }

    def _make_bins(self, cumulative: NDArray[np.int64], low: float, width: float) -> dict[str, Any]:
        first = int(np.searchsorted(cumulative, _EDGE_SHARE * self._num_rows, side="right"))
        last = int(np.searchsorted(cumulative, (1 - _EDGE_SHARE) * self._num_rows)) + 1
        step = max(1, math.ceil((last - first) / _BINS))
        edges = np.clip(first + step * np.arange(_BINS + 1), 0, _CELLS)
        rows_below = np.concatenate([[0], cumulative])[edges]
        return {
            "edges": [float(edge) for edge in low + edges * width],
            "counts": np.diff(rows_below).tolist(),
            "below": int(rows_below[0]),
            "above": self._num_rows - int(rows_below[-1]),
        }

    def list_outliers(self) -> list[list[Outlier]]:
        """Of each column the segments that reach furthest out, the furthest first; each with its furthest frame."""
        return [list(outliers) for outliers in self._outliers]

    def describe_motion(self) -> dict[str, Any]:
        """`turning`: rows by forward speed (a list a cell) and turning rate; `phases`: rows by the feet on the ground."""
        used = np.argwhere(self._motion)
        (begin, left), (end, right) = (used.min(axis=0), used.max(axis=0) + 1) if len(used) else ((0, 0), (0, 0))
        phases = []
        for number, count in enumerate(self._phases.tolist()):
            standing = [name for bit, name in enumerate(self._feet) if number >> bit & 1]
            phases.append({"feet": standing, "frames": count})
        return {
            "turning": {
                "speed": {"unit": "m/s", "bin": SPEED_CELL, "from": round((int(begin) - _MOST_SPEEDS) * SPEED_CELL, 4)},
                "turn": {"unit": "rad/s", "bin": TURN_CELL, "from": round((int(left) - _MOST_TURNS) * TURN_CELL, 4)},
                "frames": self._motion[begin:end, left:right].tolist(),
            },
            "phases": sorted(phases, key=lambda phase: -phase["frames"]),
        }


def _keep_furthest(outliers: Sequence[Outlier]) -> list[Outlier]:
    best: dict[int, Outlier] = {}
    for outlier in outliers:
        if outlier.segment not in best or abs(outlier.z) > abs(best[outlier.segment].z):
            best[outlier.segment] = outlier
    return sorted(best.values(), key=lambda outlier: (-abs(outlier.z), outlier.segment))[:_MOST_OUTLIERS]
